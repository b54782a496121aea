"""The real Fourier basis of a map's sides, and the radial bin of each of its coefficients, kept by device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats_kernels.bins import radial_bins
from actstats_kernels.gpu.launch import SpectrumTiles, Tiles


def real_fourier(n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the orthonormal real Fourier basis of `n` points, f64 [n, n], and the frequency of each row, i64 [n].

    Rows: the constant, then cos and sin of each frequency; the last is the alternating one if `n` is even.

    >>> rows, frequency = real_fourier(4)
    >>> frequency.tolist(), bool(np.allclose(rows @ rows.T, np.eye(4)))
    ([0, 1, 1, 2], True)
    """
    frequency = (np.arange(n) + 1) // 2
    # The angle's integer part is taken off before the float product: exact for any n.
    turns = frequency[:, None] * np.arange(n)[None, :] % n / n
    sine = (np.arange(n) > 0) & (np.arange(n) % 2 == 0)
    rows = np.where(sine[:, None], np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns))
    return rows / np.sqrt(np.where(2 * frequency % n == 0, n, n / 2))[:, None], frequency


@lru_cache(maxsize=512)
def constants(
    tiles: Tiles | SpectrumTiles, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `basis_h` and `basis_w`, f32, and `rings`, i8, as the kernels read them, on `device`.

    They are made at the first batch, and kept: a copy to a GPU in each would wait for it.
    """
    pitch_u = tiles.u if isinstance(tiles, Tiles) else tiles.pitch_u
    pitch_v = tiles.v if isinstance(tiles, Tiles) else tiles.pitch_v
    rows, across = real_fourier(height)
    columns, along = real_fourier(width)
    bins = radial_bins(height, width)[across[:, None], along[None, :]]
    if tiles.spectrum == "vector":
        columns = np.asarray(np.kron(rows, columns), dtype=np.float64)
        bins = bins.reshape(1, -1)
        rows = np.zeros((1, 1))
    basis_h = _padded(rows.T, _multiple(rows.shape[1], tiles.depth_h), pitch_u)
    basis_w = _padded(columns.T, _multiple(columns.shape[1], tiles.depth_w), pitch_v)
    rings = _padded(bins, pitch_u, pitch_v)
    with torch.inference_mode(False):
        return (
            torch.from_numpy(basis_h).to(device, torch.float32),
            torch.from_numpy(basis_w).to(device, torch.float32),
            torch.from_numpy(rings).to(device, torch.int8),
        )


def _padded(table: NDArray[np.generic], rows: int, columns: int) -> NDArray[np.generic]:
    # In row-major order: `np.pad` keeps that of a transposed table.
    return np.ascontiguousarray(np.pad(table, ((0, rows - table.shape[0]), (0, columns - table.shape[1]))))


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of
