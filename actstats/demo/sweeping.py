"""Four sweeps of a pair of networks: S and R, over the same images clean and with noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from actstats.data import Source
from actstats.models import Loaded
from actstats.store import Schema, Store
from actstats.sweeping.progress import Progress, Summary
from actstats.sweeping.run import sweep


@dataclass(frozen=True)
class Stores:
    """Where the four sweeps are."""

    standard: Path
    robust: Path
    standard_noisy: Path
    robust_noisy: Path

    @classmethod
    def within(cls, folder: Path) -> Stores:
        """Return the places that they have in `folder`."""
        return cls(*(folder / f"{name}.zarr" for name in ("s", "r", "s-noisy", "r-noisy")))

    @property
    def clean(self) -> tuple[Path, Path]:
        """S and R on the clean images."""
        return self.standard, self.robust

    @property
    def noisy(self) -> tuple[Path, Path]:
        """S and R on the noisy images."""
        return self.standard_noisy, self.robust_noisy

    def opened(self, noisy: bool = False) -> tuple[xr.Dataset, xr.Dataset]:
        """Return the datasets of S and R, lazily."""
        first, second = (xr.open_zarr(path) for path in (self.noisy if noisy else self.clean))
        return first, second


def sweep_pair(
    standard: Loaded,
    robust: Loaded,
    images: str | Path | Source,
    folder: Path,
    *,
    noise: float = 0.1,
    layers: Sequence[str] = ("paper",),
    limit: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    started: Callable[[Store, Schema, int], None] | None = None,
) -> tuple[Stores, list[Summary]]:
    """Sweep both networks over the images, clean and with noise of standard deviation `noise`, into `folder`.

    The noise of an image is the same for both. Sweeps that are complete already are not repeated.

    Raises:
        ActstatsError: as `sweep`.
    """
    stores = Stores.within(folder)

    def sweeps() -> Iterator[Summary]:
        for places, distort in ((stores.clean, ()), (stores.noisy, (f"noise:{noise:g}",))):
            for loaded, place in zip((standard, robust), places, strict=True):
                yield sweep(
                    loaded,
                    images,
                    place,
                    distort=distort,
                    layers=layers,
                    limit=limit,
                    device=device,
                    overwrite=overwrite,
                    progress=progress,
                    started=started,
                )

    return stores, list(sweeps())
