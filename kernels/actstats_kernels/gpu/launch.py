"""The table of launch parameters: from the shape of the maps to the tiles of a program.

Nothing is tuned while a sweep runs: the parameters follow from height, width and channels alone, so two runs over
the same maps do the same arithmetic in the same order. The reasons for the numbers are on docs/gpu.md; what they cost
in registers and shared memory is held by a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

LEAST_DOT: Final = 16
"""The least side of a `tl.dot` operand."""
CHANNELS: Final = 8
"""Channels a program: 16 or 32 adjacent bytes in channels_last memory; more would hold too many counts at once."""
LANE_VALUES: Final = 8
"""Values that a thread follows down the rows; each takes seven registers."""
ENERGY_REGISTERS: Final = 32
"""Registers a thread may keep for the energy of the coefficients, the greatest of what it keeps."""
WIDEST_BLOCK: Final = 128
"""Columns of coefficients that `spectrum_kernel` takes at once."""
VECTOR_POSITIONS: Final = 64
"""Up to so many positions the spectrum of a map is one product with the whole basis; it wastes less on padding."""
PROGRAMS: Final = 2048
"""Programs enough to fill any GPU of today several times over; what is more is rounds of one program."""


@dataclass(frozen=True)
class Tiles:
    """Constants of `accumulate_kernel`; `spectrum` is "" where `spectrum_kernel` has to do it."""

    images: int
    channels: int
    rows: int
    columns: int
    positions: int
    spectrum: str
    u: int
    v: int
    depth_h: int
    depth_w: int
    warps: int


@dataclass(frozen=True)
class SpectrumTiles:
    """Constants of `spectrum_kernel`: blocks of `u` x `v` of the `pitch_u` x `pitch_v` coefficients."""

    channels: int
    spectrum: str
    pitch_u: int
    pitch_v: int
    u: int
    v: int
    depth_h: int
    depth_w: int
    warps: int

    @property
    def blocks(self) -> int:
        """Blocks of coefficients."""
        return self.pitch_u // self.u * (self.pitch_v // self.v)


def power_of_two(n: int) -> int:
    """Return the least power of two that is not less than `n`."""
    return 1 << max(n - 1, 0).bit_length()


def channel_block(channels: int, most: int) -> int:
    """Return how many channels a program takes: a power of two, one that divides them if it can be half as great."""
    block = min(most, power_of_two(channels))
    even = block
    while channels % even:
        even //= 2
    return even if 2 * even >= block else block


@lru_cache(maxsize=4096)
def choose(height: int, width: int, channels: int) -> tuple[Tiles, SpectrumTiles | None]:
    """Return the tiles of `accumulate_kernel`, and those of `spectrum_kernel` where the spectrum needs it."""
    size = height * width
    columns = power_of_two(width)
    if size == 1:
        # No neighbours, and no frequency but 0: channels alone fill a program.
        block = channel_block(channels, 64)
        return Tiles(1024 // block, block, 1, 1, 1024 // block, "mean", 1, 1, 1, 1, 4), None
    warps = 4 if columns <= 16 or size <= VECTOR_POSITIONS else 8
    block = channel_block(channels, CHANNELS)
    lanes = LANE_VALUES * 32 * warps
    while block > 1 and block * columns > lanes:
        block //= 2
    kind, u, v = _coefficients(height, width)
    units = ENERGY_REGISTERS * 32 * warps // (u * v)
    least = LEAST_DOT if kind == "vector" else 1
    free = max(lanes // (block * columns), 1)
    fused = units >= max(block, least)
    images = min(free, units // block) if fused else 1
    images = max(images, -(-least // block)) if fused else images
    rows = min(max(free // images, 1), power_of_two(height))
    positions = max(LANE_VALUES * 32 * warps // block, 1)
    tiles = Tiles(
        images,
        block,
        rows,
        columns,
        positions,
        kind if fused else "",
        u,
        v,
        *_depths(kind, height, width),
        warps,
    )
    return tiles, None if fused else _apart(height, width, channels)


def _coefficients(height: int, width: int) -> tuple[str, int, int]:
    """Return how a spectrum is computed, and the padded rows and columns of its coefficients."""
    if width == 1 or height * width <= VECTOR_POSITIONS:
        return "vector", 1, max(power_of_two(height * width), LEAST_DOT)
    return "map", max(power_of_two(height), LEAST_DOT), max(power_of_two(width), LEAST_DOT)


def _depths(kind: str, height: int, width: int) -> tuple[int, int]:
    """Return how many rows and columns of a map are multiplied at a time."""
    return (1, 32) if kind == "vector" else (min(max(power_of_two(height), LEAST_DOT), 32), LEAST_DOT)


def _apart(height: int, width: int, channels: int) -> SpectrumTiles:
    kind, _, v = _coefficients(height, width)
    v = min(v, WIDEST_BLOCK)
    if kind == "vector":
        return SpectrumTiles(LEAST_DOT, kind, 1, _multiple(height * width, v), 1, v, 1, 32, 8)
    block = channel_block(channels, CHANNELS)
    pitches = _multiple(height, LEAST_DOT), _multiple(width, v)
    # The block's energy takes 8 registers a thread and 16 columns: with 64 of them, 32 rows at a time are too many.
    depth_h = LEAST_DOT if v == WIDEST_BLOCK else _depths(kind, height, width)[0]
    return SpectrumTiles(block, kind, *pitches, LEAST_DOT, v, depth_h, LEAST_DOT, 8)


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


def rounds(programs: int, groups: int) -> int:
    """Return how many of `groups` one program takes, when there are `programs` for each group."""
    return max(1, programs * groups // PROGRAMS)
