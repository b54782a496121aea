"""Sweeps: from images and a network to a store.

`planning.plan` makes a `SweepPlan`, which `run`s; `sweeps.sweep` is both. `settings.Settings` decide its numbers,
`settings.Execution` how it is computed.
"""
