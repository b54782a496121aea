"""Fused statistics of activation maps: tensor in, statistics out. No files, no hooks, no model.

`ops.accumulate` is the fused kernel (numba on a CPU, Triton on a GPU), `ops.top_k` the selection across a partition;
`reference` holds their definitions in plain float64 torch, `bins` the tables that both share.
"""
