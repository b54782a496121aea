"""Options of a sweep: `Settings` determines its results, `Execution` how they are computed.

This module does not import torch, so the command line can read its defaults quickly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from actstats.errors import ActstatsError
from actstats.metrics import DEFAULT, Metric
from actstats.support import one_or_more
from actstats.text import printable

if TYPE_CHECKING:
    from distributed import Client

    from actstats.passes.images import Progress
    from actstats.store.manifest import Manifest
    from actstats.sweeping.progress import Started

_RECORDED: Final = (
    "distort", "per_image", "top_k", "batch_size", "partition_size", "amp", "bitround", "compression", "compile",
    "decode",
)  # fmt: skip
"""Settings that the manifest records under their names."""
AMP: Final = ("off", "bf16", "fp16")
DECODERS: Final = ("pillow", "device")
AUTO_COMPILE: Final = 5_000
"""Number of images above which compiling for the CPU saves more time than it takes (docs/performance.md)."""


@dataclass(frozen=True)
class Settings:
    """Options that affect the results of a sweep, apart from the network and the images.

    Attributes:
        layers: presets (`conv`, `block`, `all`, `paper`), module names and patterns (`actstats.select_layers`).
        metrics: names of built-in and installed metrics.
        custom: custom metrics: objects, classes, or `"package.module:Class"`.
        distort: distortions of each cropped image, such as `("scramble:4", "noise:0.1")` (see `actstats.distort`),
            or a `Chain` from `actstats.distort.parse`.
        top_k: images kept per unit.
        per_image: whether to store the variables with the dimension `image`; if False, only sums over partitions.
        batch_size: images per forward pass. It can change the last bits of an activation.
        partition_size: images per partition, the block that is computed and stored as a whole.
        amp: "bf16" or "fp16" to run the forward pass under autocast, or "off".
        compile: whether to compile the network together with its statistics before the first batch. It can change
            the last bits of an activation. "auto" compiles on a CPU if there are enough images to make up for it.
        decode: "device" to decode, resize and crop JPEGs on the network's device, with nvJPEG on a GPU. The
            pixels differ slightly from those of "pillow", which the weights' authors used.
        bitround: mantissa bits (1 to 23) kept of per-image floats, so that they compress better; None keeps all.
        compression: "zstd", "zstd:LEVEL", "blosc:lz4" or "none".

    A single name may replace a list of one, so `layers="conv"` and `layers=["conv"]` are equal.

    Raises:
        ActstatsError: a value is out of range.
    """

    layers: Sequence[str] = ("conv",)
    metrics: Sequence[str] = DEFAULT
    custom: Sequence[str | Metric | type[Metric]] = ()
    distort: Sequence[str] = ()
    top_k: int = 16
    per_image: bool = True
    batch_size: int = 32
    partition_size: int = 1024
    amp: str = "off"
    compile: bool | str = False
    decode: str = "pillow"
    bitround: int | None = None
    compression: str = "zstd:1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "distort", getattr(self.distort, "specs", self.distort))
        for name in ("layers", "metrics", "distort"):
            object.__setattr__(self, name, tuple(one_or_more(getattr(self, name))))
        several = isinstance(self.custom, Sequence) and not isinstance(self.custom, str)
        object.__setattr__(self, "custom", tuple(self.custom) if several else (self.custom,))
        for name in ("batch_size", "partition_size", "top_k"):
            _require_whole(name, getattr(self, name), least=1)
        _require_choice("amp", self.amp, AMP)
        if self.compile not in (True, False, "auto"):
            raise ActstatsError(f"compile is {self.compile!r}; it must be True, False or 'auto'")
        _require_choice("decode", self.decode, DECODERS)
        if self.bitround is not None and not 1 <= self.bitround <= 23:
            raise ActstatsError(
                f"bitround is {self.bitround}; it must be 1 to 23, the mantissa bits of a float32"
            )

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """Return the settings recorded in the manifest of a sweep."""
        named = manifest.metrics
        return cls(
            layers=manifest.selectors,
            metrics=tuple(name for name in named if ":" not in name),
            custom=tuple(name for name in named if ":" in name),
            **{name: getattr(manifest, name) for name in _RECORDED},
        )

    def compiles(self, images: int, device: str) -> bool:
        """Return whether a sweep over `images` images on a device of this kind compiles the network."""
        if self.compile == "auto":
            return device == "cpu" and images >= AUTO_COMPILE and self.why_eager(images, device) is None
        return bool(self.compile)

    def why_eager(self, images: int, device: str) -> str | None:
        """Return what the machine lacks if only that keeps "auto" from compiling, in one line, or None."""
        if self.compile != "auto" or device != "cpu" or images < AUTO_COMPILE:
            return None
        from actstats.passes.device import missing_for_compiling

        return missing_for_compiling()


@dataclass(frozen=True)
class Execution:
    """Options of how a sweep is computed; they do not affect its results.

    Attributes:
        device: "cpu", "cuda" or "cuda:1"; None for the device that the plan was made for.
        workers: threads that decode images; None for one per core, at most 8; 0 to decode in the calling thread.
        part: (i, n) to compute every n-th partition, starting with the i-th, so that n processes can fill one store.
        strict: raise an error at the first image that cannot be read, instead of recording it, and if the network
            cannot be compiled, instead of running it eagerly.
        overwrite: replace the store if it holds another sweep.
        repair: check every object of the store first, and recompute partitions with damaged objects.
        max_failed: fraction of unreadable images, 0 to 1, above which `Summary.failed` is set.
        client: a `distributed.Client` to compute on its cluster; the workers need access to the images and the store.
        on_start: called once, after the store has been opened.
        on_progress: called after each batch, or on a cluster after each partition.
        progress: whether to show a tqdm progress bar; None shows it in a notebook if `on_progress` is not given.
        on_note: called with each message to the user, one line; None for `warnings.warn`.

    Raises:
        ActstatsError: a value is out of range.
    """

    device: str | None = None
    workers: int | None = None
    part: tuple[int, int] = (0, 1)
    strict: bool = False
    overwrite: bool = False
    repair: bool = False
    max_failed: float = 0.5
    client: Client | None = None
    on_start: Callable[[Started], None] | None = None
    on_progress: Callable[[Progress], None] | None = None
    progress: bool | None = None
    on_note: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            _require_whole("workers", self.workers, least=0)
        index, count = self.part
        if not 0 <= index < count:
            raise ActstatsError(f"part is {index}/{count}; it must be I/N with 0 <= I < N")
        if not 0 <= self.max_failed <= 1:
            raise ActstatsError(f"max_failed is {self.max_failed}; it must be between 0 and 1")

    def note(self, text: str) -> None:
        """Report `text`, a single line, to the caller."""
        if self.on_note is not None:
            self.on_note(text)
        else:
            warnings.warn(printable(text), stacklevel=2)


def _require_whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        limit = f"must be at least {least}" if not isinstance(value, int) or value < least else "is too large"
        raise ActstatsError(f"{name} is {str(value)[:20]}; it {limit}")


def _require_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ActstatsError(f"{name} is {value!r}; choose from {', '.join(known)}")
