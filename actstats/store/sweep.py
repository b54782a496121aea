"""Open a stored sweep: its results, its top images, and the network and images that it was made of.

sweep = open_sweep("googlenet.zarr")
sweep.dataset["mean"].isel(unit=sweep.axis["conv1"])
sweep.top("conv1/3")[0].path
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from actstats.data.opening import REOPENED, open_source
from actstats.data.preprocessing import Preprocessing
from actstats.data.source import UNNAMED
from actstats.errors import ActstatsError, nearest
from actstats.identity import Identity, PreprocessingRecord
from actstats.store.manifest import Manifest, Unit, UnitAxis
from actstats.store.store import Store
from actstats.support import URL, on_this_machine

if TYPE_CHECKING:
    import xarray as xr

    from actstats.data import Source
    from actstats.data.transform import Transform
    from actstats.distort import Chain
    from actstats.layers import Layer
    from actstats.models import Loaded


class Recorded:
    """What the manifest of a sweep refers to.

    Attributes:
        manifest: the record of the sweep.
    """

    def __init__(self, manifest: Manifest, *, trust: bool = False) -> None:
        self.manifest = manifest
        self._trust = trust
        self._loaded: Loaded | None = None
        self._source: Source | None = None

    @property
    def axis(self) -> UnitAxis:
        """The slice of the axis `unit` that belongs to each layer, by its name."""
        return self.manifest.axis

    @cached_property
    def preprocessing(self) -> Preprocessing | Transform:
        """The preprocessing that turns an image into the network's input."""
        record = self.manifest.preprocessing
        if isinstance(record, PreprocessingRecord):
            return Preprocessing(**vars(record))
        from actstats.data.transform import Transform  # imports torch, which reading a store does not need

        return Transform.of_record(record)

    @cached_property
    def chain(self) -> Chain:
        """The distortions of the cropped images; empty (and falsy) for clean images."""
        from actstats.distort import parse

        return parse(self.manifest.distort)

    def network(
        self, *, arch: str | None = None, weights: str | Path | None = None, offline: bool = False
    ) -> Loaded:
        """Return the network of the sweep.

        Args:
            arch: `package.module:factory`, the factory that created the network. It must be the same as in the sweep.
            weights: path of the weights file; required for an untrusted store, unless the weights are published.
            offline: whether to forbid internet access.

        Raises:
            ActstatsError: the weights are unavailable or have changed, or the network was passed as a module.
        """
        if self._loaded is None:
            from actstats.models import Loaded, load_from_manifest

            model, preprocessing = load_from_manifest(
                self.manifest, weights=weights, offline=offline, arch=arch, trust=self._trust
            )
            entries = self.manifest.json
            identity = {name: entries[name] for name in Identity.__annotations__ if name in entries}
            self._loaded = Loaded(model, preprocessing, cast(Identity, identity))
        return self._loaded

    def images(self, data: object = None) -> Source:
        """Return the images of the sweep; pass `data`, their location or the images (see `open_source`), if moved.

        Raises:
            ActstatsError: the images are not found, or are not those of the sweep.
        """
        if self._source is not None and data is None:
            return self._source
        source = self.images_there(data)
        record = self.manifest.data
        if source.fingerprint != record.fingerprint or len(source) != record.images:
            raise ActstatsError(
                f"the images of {source.spec} have other names or sizes than those of the sweep; "
                "pass the location of the original images as `data=`"
            )
        self._source = source
        return source

    def images_there(self, data: object = None) -> Source:
        """Return the images that are where `images` looks for them, which need not be those of the sweep.

        Raises:
            ActstatsError: the images are not found.
        """
        record = self.manifest.data
        if data is not None:
            source = open_source(data, limit=record.limit, sample=record.sample)
            if source.fingerprint.startswith(UNNAMED):  # trust the caller that they are the same images
                source = open_source(
                    data, limit=record.limit, sample=record.sample, fingerprint=record.fingerprint
                )
            return source
        if record.kind not in REOPENED:
            raise ActstatsError(f"the images came from a {record.spec} object; pass it again as `data=`")
        # Try the spec as given, then its absolute path: the working directory may be different now.
        there = Path(record.spec).exists() or not Path(record.resolved or record.spec).exists()
        spec = record.spec if there else record.resolved or record.spec
        if not self._trust:
            on_this_machine(spec)
        try:
            return open_source(spec, limit=record.limit, sample=record.sample)
        except ActstatsError as error:
            raise ActstatsError(
                f"{error}; if the images were moved, pass their new location as `data=`"
            ) from None

    def layers(self, selectors: Sequence[str] = ()) -> tuple[list[Layer], list[slice]]:
        """Return the swept layers that match `selectors`, by default all, and the slice of the unit axis of each.

        Raises:
            ActstatsError: a selector matches a layer that was not swept, or the network does not match the manifest.
        """
        import torch

        from actstats.layers import named_layers, select_layers

        loaded, axis = self.network(), self.axis
        device = next((p.device for p in loaded.model.parameters()), torch.device("cpu"))
        choose = select_layers if selectors else named_layers
        layers = choose(loaded.model, loaded.preprocessing.example(2, device), list(selectors or axis))
        for layer in layers:
            if layer.name not in axis:
                raise ActstatsError(
                    f"layer {layer.name} was not swept into this store{nearest(layer.name, axis)}"
                )
            place = axis[layer.name]
            if place.stop - place.start != layer.units:
                raise ActstatsError(
                    f"layer {layer.name} has {layer.units} units, but the store has {place.stop - place.start}"
                )
        return layers, [axis[layer.name] for layer in layers]


@dataclass(frozen=True)
class TopImage:
    """One of the top images of a unit, and the position of its maximum in the map."""

    rank: int
    """Rank of the image, from 1."""
    value: float
    image: int
    """Index of the image on the axis `image`."""
    path: str
    label: int
    row: int
    column: int


class Sweep(Recorded):
    """A sweep in a store, as `open_sweep` returns it.

    Attributes:
        manifest: the record of the sweep: its network, images, layers and settings.
        store: the open store.
    """

    def __init__(self, store: Store, *, trust: bool = False) -> None:
        super().__init__(store.manifest, trust=trust)
        self.store = store

    @property
    def path(self) -> Path | URL:
        """Path or URL of the store."""
        return self.store.path

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The results, as `open_dataset` returns them."""
        from actstats.store.dataset import dataset_of  # imports xarray and pandas, which sweeps do without

        return dataset_of(self.store)

    def top(self, unit: str | Unit) -> list[TopImage]:
        """Return the images with the highest activations of a unit in all complete partitions, in descending order.

        Args:
            unit: LAYER/CHANNEL, such as "conv1/3".

        Raises:
            ActstatsError: the store does not contain the unit, or was swept without the metric `top`.
        """
        from actstats.store.dataset import as_stored
        from actstats.store.merging import merge

        store = self.store
        if isinstance(unit, str):
            unit = self.manifest.unit(unit)
        if "top_image" not in store.group:
            raise ActstatsError(f"{self.path} has no top images; sweep again with the metric top")
        if not store.completed.any():
            raise ActstatsError(f"no partition of {self.path} is complete yet; rerun its sweep to resume")
        store.require_objects()
        # Without dask, so that only the chunk with this unit is read from each partition.
        dataset = as_stored(store)
        store.require_coordinates(
            {name: dataset[name].values for name in ("layer", "channel", "height", "width")}
        )
        named = dataset[["top_value", "top_image", "top_position"]].reset_coords(drop=True)
        lists = named.isel(unit=[unit.index]).load()
        merged = merge(lists.assign_coords(completed=("partition", store.completed))).isel(unit=0)
        paths, labels = (dataset[name].values for name in ("path", "label"))
        images = merged["top_image"].values
        if images.max() >= store.images:
            raise ActstatsError(
                f"{self.path} is damaged, or was not written by actstats: image {images.max()} of {unit} does not "
                "exist; remove the store and sweep again"
            )
        found = []
        for rank, image in enumerate(images.tolist()):
            if image < 0:  # fewer images than ranks
                break
            row, column = divmod(int(merged["top_position"].values[rank]), unit.width)
            value = float(merged["top_value"].values[rank])
            found.append(TopImage(rank + 1, value, image, str(paths[image]), int(labels[image]), row, column))
        return found

    def __repr__(self) -> str:
        m = self.manifest
        return f"<Sweep: {m.arch} over {m.data.images:,} images, {len(m.layers)} layers, {m.units:,} units>"

    def _repr_html_(self) -> str:
        return self.store._repr_html_()


def open_sweep(path: str | Path, *, trust: bool = False) -> Sweep:
    """Open the sweep in a store, by default without importing code that the store names.

    With `trust`, the network's factory named in the store may be imported, and its weights file or address and the
    images' address opened. Use it only for stores that you created yourself.

    Raises:
        ActstatsError: there is no store at `path`, it was not written by actstats, or it is damaged.
    """
    return Sweep(Store.open(path), trust=trust)
