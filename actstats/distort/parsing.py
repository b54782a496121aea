"""From specs such as `scramble:4+noise:0.1` to a chain of distortions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from actstats.distort.adversarial import Adversarial
from actstats.distort.chain import Chain
from actstats.distort.frequencies import HighPass, LowPass
from actstats.distort.outlines import Contour, Silhouette
from actstats.distort.pixels import Greyscale, Noise, Scramble
from actstats.distort.step import Step
from actstats.errors import ActstatsError, nearest
from actstats.support import one_or_more

_Builder = Callable[..., Step | Adversarial]


def _pgd(norm: str, epsilon: str, steps: str) -> Adversarial:
    if norm != "l2":
        raise ActstatsError(f"pgd knows the norm l2, not {norm!r}; as in pgd:l2:0.5:20")
    return Adversarial(float(epsilon), int(steps))


_KINDS: Final[dict[str, tuple[str, _Builder]]] = {
    "scramble": ("scramble:GRID, as in scramble:4", lambda grid: Scramble(int(grid))),
    "noise": ("noise:SIGMA, as in noise:0.1", lambda sigma: Noise(float(sigma))),
    "lowpass": ("lowpass:CYCLES, as in lowpass:8", lambda cycles: LowPass(float(cycles))),
    "highpass": ("highpass:CYCLES, as in highpass:8", lambda cycles: HighPass(float(cycles))),
    "greyscale": ("greyscale, without anything after it", Greyscale),
    "silhouette": ("silhouette:FOLDER, a folder of masks", lambda folder: Silhouette(Path(folder))),
    "contour": ("contour, without anything after it", Contour),
    "pgd": ("pgd:l2:EPSILON:STEPS, as in pgd:l2:0.5:20", _pgd),
}
KINDS: Final = tuple(_KINDS)
"""The names that a spec can begin with."""


def parse(specs: str | Iterable[str]) -> Chain:
    """Return the chain of the distortions in `specs`, from first to last; each spec may join several by `+`.

    Raises `ActstatsError` for what is no distortion.

    >>> parse(["greyscale", "scramble:4+noise:0.10"]).specs
    ['greyscale', 'scramble:4', 'noise:0.1']
    """
    return Chain(tuple(_step(part) for spec in one_or_more(specs) for part in spec.split("+")))


def _step(spec: str) -> Step | Adversarial:
    name, colon, rest = spec.strip().partition(":")
    if name not in _KINDS:
        hint = nearest(name, KINDS) or f"; there are {', '.join(KINDS)}"
        raise ActstatsError(f"unknown distortion {spec!r}{hint}")
    usage, build = _KINDS[name]
    # A folder may have colons in its name.
    arguments = [rest] if name == "silhouette" and rest else rest.split(":") if colon else []
    try:
        return build(*arguments)
    except (TypeError, ValueError):
        raise ActstatsError(f"{spec!r} is no distortion; write {usage}") from None
