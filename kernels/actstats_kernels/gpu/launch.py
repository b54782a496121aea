"""The table of launch parameters: the tiles of a program, given the shape of the maps.

Nothing is tuned while a sweep runs: the parameters depend only on height, width, channels and the size of a value, so
two runs over the same maps do the same arithmetic in the same order. docs/gpu.md explains the numbers; a test checks
their cost in registers and shared memory.
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
LANE_VALUES: Final = 8
"""Values that a thread processes side by side, row by row; each takes seven registers."""
COUNTED_VALUES: Final = 16
"""Values that a thread counts at a time; the slots are cleared and read back once per group."""
ENERGY_REGISTERS: Final = 32
"""Registers per thread for the energy of the coefficients, and again for the coefficients of each parity."""
TILE_BYTES: Final = 16 * 1024
"""Bytes of maps read for one product; a few such tiles are in flight in shared memory."""
WIDEST_BLOCK: Final = 64
"""Largest number of columns of coefficients, of one parity, per block."""
VECTOR_POSITIONS: Final = 64
"""Largest number of positions for which the spectrum is one product with the whole basis, to save padding."""
FUSED_POSITIONS: Final = 64 * 64
"""Largest number of positions for which the maps of a program stay in a cache until their spectrum is computed."""
PROGRAMS: Final = 1024
"""Enough programs to fill any current GPU several times over; beyond that, a program takes several rounds."""
CACHED_BYTES: Final = 200 * 1024
"""Bytes a program may read: registers limit an H100 to one program on each of 132 multiprocessors, 27 MB in all."""


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
    columns = power_of_two(width)
    apart = size > FUSED_POSITIONS
    block = channel_block(channels, SECTOR // itemsize)
    lanes = LANE_VALUES * 32 * WARPS
    while block > 1 and (block * columns > lanes or (apart and block > 8)):
        block //= 2
    free = max(lanes // (block * columns), 1)
    images = min(free, 8) if columns <= 16 else 1
    rows = min(free // images, power_of_two(height))
    positions = max(COUNTED_VALUES * 32 * WARPS // block, 1)
    spectrum = _spectrum(height, width, block, itemsize)
    return Tiles(images, block, rows, columns, positions, spectrum, apart, WARPS)


def _spectrum(height: int, width: int, channels: int, itemsize: int) -> Spectrum:
    energies = ENERGY_REGISTERS * 32 * WARPS
    size = height * width
    if width == 1 or size <= VECTOR_POSITIONS:
        v = min(max(power_of_two(size), LEAST_DOT), WIDEST_BLOCK)
        images = max(min(energies // (v * channels), 8), LEAST_DOT // channels, 1)
        return Spectrum("vector", images, channels, False, size, 1, multiple(size, v), 1, v, 1, 32, WARPS)
    pairs = power_of_two(width // 2 + 1)
    # A power of two has width // 2 + 1 cosines, one too many for a block of half its width.
    fold = max(2 * pairs, 2 * LEAST_DOT) <= power_of_two(width)
    v = min(pairs if fold else max(power_of_two(width), LEAST_DOT), WIDEST_BLOCK)
    # Take all rows at once if they are few, so that a map is read once and not again by each block.
    u = 32 if LEAST_DOT < height <= 32 and 32 * v * channels <= energies else LEAST_DOT
    points = width // 2 + 1 if fold else width
    pitches = multiple(height, u), multiple(width // 2 + 1 if fold else width, v)
    depth_h = min(max(power_of_two(height), LEAST_DOT), 32)
    images = min(energies // (u * v), TILE_BYTES // (depth_h * LEAST_DOT * itemsize)) // channels
    images = max(images, 1)
    return Spectrum("map", images, channels, fold, points, *pitches, u, v, depth_h, LEAST_DOT, WARPS)


def multiple(n: int, of: int) -> int:
    """Return the smallest multiple of `of` that is at least `n`."""
    return -(-n // of) * of


def rounds(programs: int, groups: int, most: int) -> int:
    """Return how many of `groups` a program takes, up to `most`, if each group needs `programs` programs."""
    return max(1, min(programs * groups // PROGRAMS, most))


def cached_rounds(tiles: Tiles, size: int, itemsize: int) -> int:
    """Return how many rounds of maps of `size` values stay in the cache until a program reads them again."""
    return CACHED_BYTES // (tiles.images * tiles.channels * size * itemsize)
