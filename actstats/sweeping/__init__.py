"""Sweeps: compute the statistics of a network over images and write them to a store.

`planning.plan` returns a `SweepPlan`, `SweepPlan.run` executes it, and `sweeps.sweep` does both. `settings.Settings`
determines the results, `settings.Execution` how they are computed.
"""
