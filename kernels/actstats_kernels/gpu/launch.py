"""The table of launch parameters: the tiles of a program, given the shape of the maps.

Nothing is tuned while a sweep runs: the parameters depend only on height, width, channels and the size of a value, so
two runs over the same maps do the same arithmetic in the same order. docs/gpu-kernels.md explains the numbers; a
test checks their cost in registers and shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

LEAST_DOT: Final = 16
"""Smallest side of a `tl.dot` operand."""
SECTOR: Final = 32
"""Bytes that a GPU fetches at once. A program takes as many channels in channels_last memory, if registers allow."""
WARPS: Final = 8
"""Warps per program."""
LANE_VALUES: Final = 2
"""Maps that a thread processes side by side; a map takes six registers, and one for each column of a lane."""
LANE_COLUMNS: Final = 8
"""Largest number of adjacent columns of a lane, for which `read_moments` is written."""
LANE_IMAGES: Final = 32
"""Largest number of images per program."""
COUNTED_VALUES: Final = 16
"""Values that a thread counts at a time; the slots are cleared and read back once per group."""
ENERGY_REGISTERS: Final = 32
"""Registers per thread for the energy of the coefficients, and again for the coefficients of each parity."""
WIDEST_BLOCK: Final = 64
"""Largest number of columns of coefficients, of one parity, per block."""
VECTOR_POSITIONS: Final = 64
"""Largest number of positions for which the spectrum is one product with the whole basis, to save padding."""
LOAD: Final = 16
"""Bytes that a thread loads at once. A program of the kernel for spectra takes as many channels."""
WARP_MAPS: Final = 2
"""Maps that a warp of the kernel for spectra multiplies by itself, without waiting for others."""
LEAST_MAPS: Final = 4
"""Maps of a program of the kernel for spectra; where there are fewer channels, those of several images."""
WHOLE_ROWS: Final = 64
"""Largest number of rows that are multiplied at once; maps with more rows are multiplied 32 rows at a time."""
MOST_REGISTERS: Final = 128
"""Registers per thread of the kernel for moments and histogram, so that two programs fit on a multiprocessor."""
PROGRAMS: Final = 1024
"""Enough programs to fill any current GPU several times over; beyond that, a program takes several rounds."""
CACHED_BYTES: Final = 200 * 1024
"""Bytes of maps per program, which reads them twice: those of two programs on each of 132 multiprocessors are 54 MB,
about the size of the cache of an H100 or H200."""


@dataclass(frozen=True)
class Spectrum:
    """How a spectrum is computed: in blocks of `u` x `v` of the `pitch_u` x `pitch_v` coefficients of a map.

    `kind` is "map", "vector" (the map is treated as one row of values), or "mean" (it has one position). With `fold`,
    columns are multiplied in mirrored pairs, separately for even and odd waves, and `v` and `pitch_v` count the
    coefficients of one parity. `points` is the number of columns of the map (of pairs, if folded), which are taken
    `depth_w` at a time, with `depth_h` rows.
    """

    kind: str
    images: int
    channels: int
    fold: bool
    points: int
    pitch_u: int
    pitch_v: int
    u: int
    v: int
    depth_h: int
    depth_w: int
    warps: int

    @property
    def blocks(self) -> int:
        """Number of blocks of coefficients."""
        return self.pitch_u // self.u * (self.pitch_v // self.v)


@dataclass(frozen=True)
class Tiles:
    """Constants of `accumulate_kernel`; if `apart`, `spectrum_kernel` computes the spectrum."""

    images: int
    channels: int
    rows: int
    columns: int
    positions: int
    spectrum: Spectrum
    apart: bool
    warps: int


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def channel_block(channels: int, most: int) -> int:
    """Return the channels per program, a power of two; if a divisor of `channels` is at least half as large, that."""
    block = min(most, power_of_two(channels))
    even = block
    while channels % even:
        even //= 2
    return even if 2 * even >= block else block


@lru_cache(maxsize=4096)
def choose(height: int, width: int, channels: int, itemsize: int) -> Tiles:
    """Return the tiles for maps of `channels` x `height` x `width` values of `itemsize` bytes."""
    size = height * width
    if size == 1:
        # Without neighbours and with frequency 0 alone, channels have to fill a program.
        block = channel_block(channels, 64)
        images = 1024 // block
        spectrum = Spectrum("mean", images, block, False, 1, 1, 1, 1, 1, 1, 1, 4)
        return Tiles(images, block, 1, 1, 1024 // block, spectrum, False, 4)
    columns = power_of_two(multiple(width, LANE_COLUMNS) // LANE_COLUMNS)
    block = channel_block(channels, SECTOR // itemsize)
    lanes = LANE_VALUES * 32 * WARPS
    while block > 1 and block * columns > lanes:
        block //= 2
    free = max(lanes // (block * columns), 1)
    most = min(free, LANE_IMAGES, max(power_of_two(CACHED_BYTES // (block * size * itemsize) + 1) // 2, 1))
    # As few rows beyond the map's edge as possible; among equals, as many images as possible.
    splits = [1 << k for k in range(free.bit_length()) if free <= most << k and 1 << k < 2 * height]
    rows = min(splits, key=lambda r: multiple(height, r)) if splits else power_of_two(height)
    images = min(free // rows, most)
    positions = max(COUNTED_VALUES * 32 * WARPS // block, 1)
    apart = width > 1 and size > VECTOR_POSITIONS
    if apart:
        spectrum = _map_spectrum(height, width, channel_block(channels, LOAD // itemsize))
    else:
        spectrum = _vector_spectrum(size, block)
    return Tiles(images, block, rows, columns, positions, spectrum, apart, WARPS)


def _vector_spectrum(size: int, channels: int) -> Spectrum:
    v = min(max(power_of_two(size), LEAST_DOT), WIDEST_BLOCK)
    energies = ENERGY_REGISTERS * 32 * WARPS
    images = max(min(energies // (v * channels), 8), LEAST_DOT // channels, 1)
    return Spectrum("vector", images, channels, False, size, 1, multiple(size, v), 1, v, 1, 32, WARPS)


def _map_spectrum(height: int, width: int, channels: int) -> Spectrum:
    pairs = power_of_two(width // 2 + 1)
    # A power of two has width // 2 + 1 cosines, one too many for a block of half its width.
    fold = max(2 * pairs, 2 * LEAST_DOT) <= power_of_two(width)
    points = width // 2 + 1 if fold else width
    v = min(pairs if fold else max(power_of_two(width), LEAST_DOT), WIDEST_BLOCK)
    images = max(LEAST_MAPS // channels, 1)
    warps = images * channels // WARP_MAPS
    # More rows of coefficients at once, so that a map is read fewer times.
    u = 32 if height > LEAST_DOT and 32 * v * WARP_MAPS <= 32 * ENERGY_REGISTERS else LEAST_DOT
    depth_h = max(power_of_two(height), LEAST_DOT) if height <= WHOLE_ROWS else 32
    pitches = multiple(height, u), multiple(points, v)
    return Spectrum("map", images, channels, fold, points, *pitches, u, v, depth_h, LEAST_DOT, warps)


def multiple(n: int, of: int) -> int:
    """Return the smallest multiple of `of` that is at least `n`."""
    return -(-n // of) * of


def rounds(programs: int, groups: int, most: int) -> int:
    """Return how many of `groups` a program takes, up to `most`, if each group needs `programs` programs."""
    return max(1, min(programs * groups // PROGRAMS, most))


def cached_rounds(tiles: Tiles, size: int, itemsize: int) -> int:
    """Return how many rounds of maps of `size` values stay in the cache until a program reads them again."""
    return CACHED_BYTES // (tiles.images * tiles.channels * size * itemsize)
