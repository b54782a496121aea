"""The real Fourier basis of a map's sides and the radial bin of each coefficient, cached per device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats_kernels.bins import radial_bins
from actstats_kernels.gpu.launch import Spectrum, multiple


def real_fourier(n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the orthonormal real Fourier basis of `n` points, f64 [n, n], and the frequency of each row, i64 [n].

    Rows are the constant, then cos and sin of each frequency; if `n` is even, the last row alternates in sign.

    >>> rows, frequency = real_fourier(4)
    >>> frequency.tolist(), bool(np.allclose(rows @ rows.T, np.eye(4)))
    ([0, 1, 1, 2], True)
    """
    frequency = (np.arange(n) + 1) // 2
    # Remove whole turns in integers, before the float product, which keeps the angle exact for any n.
    turns = frequency[:, None] * np.arange(n)[None, :] % n / n
    sine = (np.arange(n) > 0) & (np.arange(n) % 2 == 0)
    rows = np.where(sine[:, None], np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns))
    return rows / np.sqrt(np.where(2 * frequency % n == 0, n, n / 2))[:, None], frequency


@lru_cache(maxsize=512)
def constants(
    tiles: Spectrum, height: int, width: int, precision: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `basis_h`, `basis_w` and `rings` as the kernels read them, on `device`.

    `basis_h` is [2, pitch_u, padded rows] and `basis_w` [parities, 2, padded points, pitch_v]: two parts whose sum is
    the wave, in bf16, or in f32 with precision "ieee", which uses only the first. `rings` is i8 [pitch_u, pitch_v],
    the radial bin of each coefficient, 0 for padding. They are cached, because copying them to the GPU in every batch
    would wait for the device.
    """
    rows, across = real_fourier(height)
    columns, along = real_fourier(width)
    bins = radial_bins(height, width)
    if tiles.kind == "vector":
        waves = [np.asarray(np.kron(rows, columns), dtype=np.float64)]
        bins = bins[across[:, None], along[None, :]].reshape(1, -1)
        rows = np.zeros((1, 1))
    elif tiles.fold:
        # By frequency: the cosines, and the sines, whose first row is zero.
        cosine = np.concatenate([[0], np.flatnonzero(along[1:] != along[:-1]) + 1])
        sine = np.zeros((tiles.points, width))
        sine[1 : 1 + (width - 1) // 2] = columns[2::2]
        mirrored = np.arange(tiles.points)
        alone = np.where(2 * mirrored % width == 0, 0.5, 1)
        waves = [columns[cosine][:, : tiles.points] * alone, sine[:, : tiles.points]]
        bins = bins[across[:, None], np.arange(tiles.points)[None, :]]
    else:
        waves = [columns]
        bins = bins[across[:, None], along[None, :]]
    depth_h = multiple(rows.shape[1], tiles.depth_h)
    depth_w = multiple(tiles.points, tiles.depth_w)
    with torch.inference_mode(False):
        basis_h = _parts(_padded(rows, tiles.pitch_u, depth_h), precision)
        basis_w = torch.stack([_parts(_padded(w.T, depth_w, tiles.pitch_v), precision) for w in waves])
        rings = torch.from_numpy(_padded(bins, tiles.pitch_u, tiles.pitch_v))
        return basis_h.to(device), basis_w.to(device), rings.to(device, torch.int8)


def _parts(table: NDArray[np.float64], precision: str) -> Tensor:
    dtype = torch.float32 if precision == "ieee" else torch.bfloat16
    whole = torch.from_numpy(table)
    high = whole.to(dtype)
    return torch.stack([high, (whole - high.double()).to(dtype)])


def _padded(table: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    # `np.pad` keeps the memory order of a transposed table, and the kernels read rows.
    return np.ascontiguousarray(np.pad(table, ((0, rows - table.shape[0]), (0, columns - table.shape[1]))))
