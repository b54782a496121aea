"""Fused statistics of activation maps, from tensors to tensors, without files, hooks or models.

`ops.accumulate` is the fused kernel (numba on a CPU, Triton on a GPU), and `ops.top_k` ranks a partition. `reference`
defines both in plain float64 torch, and `bins` contains the tables that all of them share.
"""
