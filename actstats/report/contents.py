"""Pack the data that the page's script reads: one part with an overview of all units, and one part per layer.

A part is JSON and named arrays, deflated. In the page it is base64, which needs no escaping: names of files and
classes never appear in the page's markup.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis import class_means, spectrum
from actstats.analysis.coverage import usable
from actstats.analysis.spectra import rings_of
from actstats.errors import ActstatsError
from actstats.layers.receptive import ReceptiveField
from actstats.report.findings import Compared
from actstats.report.networks import field_step
from actstats.report.pictures import Pictures
from actstats.store.manifest import LayerRecord, Manifest
from actstats.store.merging import reduce_partitions
from actstats.store.sweep import Sweep
from actstats_kernels.bins import (
    BIN_NEGATIVE_OVERFLOW,
    BIN_NEGATIVE_UNDERFLOW,
    BIN_POSITIVE_INFINITY,
    BIN_POSITIVE_OVERFLOW,
    BIN_POSITIVE_UNDERFLOW,
    histogram_edges,
)

if TYPE_CHECKING:
    from actstats.probing.forward import Passes

_TOP: Final = ("top_value", "top_image", "top_position")
SHOWN: Final = (*_TOP, "mean", "power_spectrum", "histogram")
"""Variables that `read_side` reads, as do the measures of the findings."""
_TOGETHER: Final = 4
"""Number of histogram bins shown as one bin, half an octave wide."""
_CLASSES: Final = 10
"""Number of classes listed per unit, those with the greatest mean activation."""
_MAP_SIDE: Final = 14
"""Largest side of an activation map on the page: 8 maps of a unit take 1.6 kB before compression."""
_ALIGNMENT: Final = 8
_KINDS: Final = {"f4": "Float32Array", "i4": "Int32Array", "u2": "Uint16Array", "u1": "Uint8Array"}


@dataclass(frozen=True)
class ClassTable:
    """The classes of a store, whose labels may be any numbers.

    Attributes:
        labels: the labels in ascending order, i8 [label].
        indices: the index of each in `Classes.names`, i4 [label].
    """

    labels: NDArray[np.int64]
    indices: NDArray[np.int32]

    def __getitem__(self, labels: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the index in `Classes.names` of each label, i4, and -1 for images without one (-1)."""
        if not len(self.labels):
            return np.full(labels.shape, -1, dtype=np.int32)
        place = np.searchsorted(self.labels, labels).clip(max=len(self.labels) - 1)
        return np.where(self.labels[place] == labels, self.indices[place], -1).astype(np.int32)


@dataclass(frozen=True)
class Classes:
    """The classes of all stores.

    Attributes:
        names: the distinct class names; two stores may number them differently.
        tables: for each store, the index in `names` of each of its labels.
    """

    names: list[str]
    tables: list[ClassTable]


def class_names(stores: Sequence[tuple[NDArray[np.int64], Sequence[str]]]) -> Classes:
    """Return the classes of stores, given the label of each image [image] and the names of the classes of each."""
    numbers: dict[str, int] = {}
    tables = []
    for of_images, known in stores:
        occurring = np.unique(of_images.astype(np.int64))
        labels = np.union1d(occurring[occurring >= 0], np.arange(len(known)))
        names = [known[label] if label < len(known) else f"class {label}" for label in labels.tolist()]
        indices = [numbers.setdefault(name, len(numbers)) for name in names]
        tables.append(ClassTable(labels, np.array(indices, dtype=np.int32)))
    return Classes(list(numbers), tables)


@dataclass(frozen=True)
class Profile:
    """Mean activation of units by class.

    Attributes:
        label: the classes with the greatest mean, i4 [unit, shown].
        mean: their means, f4 [unit, shown].
        rest: the mean over the other classes, f4 [unit]; NaN where there are none.
        others: number of other classes.
        preferred: the class with the greatest mean, i4 [unit]; -1 where all means are equal.
    """

    label: NDArray[np.int32]
    mean: NDArray[np.float32]
    rest: NDArray[np.float32]
    others: int
    preferred: NDArray[np.int32]


@dataclass(frozen=True)
class Side:
    """The data of one store's units that the report shows; None for variables that the store lacks.

    Attributes:
        top: value f4, image i8 and flat position i4 of the top images, each [unit, rank].
        spectrum: mean power of one coefficient, f4 [unit, frequency].
        coefficients: number of coefficients in each bin, i8 [unit, frequency].
        histogram: share of positions in each shown bin, f4 [unit, shown bin].
        profile: mean activation by class.
    """

    top: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]] | None
    spectrum: NDArray[np.float32] | None
    coefficients: NDArray[np.int64]
    histogram: NDArray[np.float32] | None
    profile: Profile | None


def read_side(dataset: xr.Dataset, ranks: int, classes: ClassTable) -> Side:
    """Read the data of a store's units that the report shows, with one variable in memory at a time.

    `ranks` is the number of top images per unit, `classes` the store's table of `Classes`.
    """
    top = None
    if all(name in dataset for name in _TOP):
        lists = reduce_partitions(usable(dataset, "the report", *_TOP)).isel(rank=slice(0, ranks)).compute()
        value, image, position = (lists[name].transpose("unit", "rank").values for name in _TOP)
        top = value, image, position
    power, coefficients = None, rings_of(dataset["height"].values, dataset["width"].values)[0]
    if "power_spectrum" in dataset:
        summed = spectrum(dataset)["power"].transpose("unit", "frequency").values
        power = (summed / np.maximum(coefficients, 1)).astype(np.float32)
    shares = None
    if "histogram" in dataset:
        shares = _histogram(usable(dataset, "the report", "histogram"))
    return Side(top, power, coefficients, shares, _profile(dataset, classes))


def overview_part(
    title: str,
    compared: Compared,
    sides: Sequence[Side],
    classes: Sequence[str],
    fields: Mapping[str, ReceptiveField],
    pictures: Pictures,
    kept: Sequence[bool],
) -> str:
    """Return the part `overview`: stores, layers, the measures of every unit, and which image each picture shows.

    `kept` says for each picture whether it has a thumbnail.
    """
    manifest = compared.manifests[0]
    crop = manifest.preprocessing.shape[1]
    layers = []
    # Those of the first layer's maps; layers whose maps have another size have their own.
    frequency = _frequencies(manifest.layers[0])
    for entry in manifest.layers:
        layer = {key: getattr(entry, key) for key in ("name", "units", "height", "width")}
        start, field = manifest.axis[entry.name].start, _shares(fields.get(entry.name), crop)
        layers.append({**layer, "start": start, "field": field})
        if (own := _frequencies(entry)) != frequency:
            layers[-1]["frequency"] = own
    content = {
        "title": title,
        "stores": [{"name": name} for name in compared.names],
        "pairing": compared.pairing.way,
        "units": manifest.units,
        "crop": crop,
        "fieldStep": field_step(crop),
        "layers": layers,
        "measures": [
            {"key": measure.key, "name": measure.name, "unit": measure.unit, "about": measure.about}
            for measure in compared.measures
        ],
        "classes": list(classes),
        "frequency": frequency,
        "histogram": shown_edges().tolist(),
        "pictures": {"paths": pictures.paths, "kept": [int(has) for has in kept]},
    }
    arrays: dict[str, NDArray[Any]] = {
        f"{measure.key}:{store}": shortened(units[measure.key].values)
        for store, units in enumerate(compared.measured)
        for measure in compared.measures
    }
    if compared.pairing.way == "match":
        for (a, b), found in compared.pairing.found.items():
            for name in ("counterpart", "best"):
                arrays[f"{name}:{a}:{b}"] = found[name].values.astype(np.int32)
            arrays[f"held:{a}:{b}"] = shortened(found["held_out"].values)
            for name in ("stable", "reciprocal"):
                arrays[f"{name}:{a}:{b}"] = found[name].values.astype(np.uint8)
    for store, side in enumerate(sides):
        if side.profile is not None:
            arrays[f"preferred:{store}"] = side.profile.preferred
    return pack(content, {**arrays, "picture:label": pictures.labels})


def layer_parts(
    manifest: Manifest,
    sides: Sequence[Side],
    numbers: Sequence[NDArray[np.int32] | None],
    maps: Sequence[Mapping[str, NDArray[np.uint8]]],
) -> Iterator[tuple[str, str]]:
    """Yield name and text of one part per layer: top images, spectra, histograms and classes of its units.

    For each side, `numbers` holds the numbers of its top images among all pictures, i4 [unit, rank], and `maps` the
    result of `top_maps`.
    """
    for index, (name, units) in enumerate(manifest.axis.items()):
        arrays: dict[str, NDArray[Any]] = {}
        content: dict[str, Any] = {"ranks": [], "classes": [], "others": [], "maps": []}
        for store, (side, pictures, laid) in enumerate(zip(sides, numbers, maps, strict=True)):
            arrays |= {f"{key}:{store}": values for key, values in _of_units(side, pictures, units).items()}
            if (shares := laid.get(name)) is not None:
                arrays[f"map:{store}"] = shares
            content["maps"].append(None if shares is None else shares.shape[2:])
            content["ranks"].append(0 if pictures is None else pictures.shape[1])
            content["classes"].append(0 if side.profile is None else side.profile.label.shape[1])
            content["others"].append(0 if side.profile is None else side.profile.others)
        yield f"layer-{index}", pack(content, arrays)


def top_maps(sweep: Sweep, side: Side, data: object, passes: Passes) -> dict[str, NDArray[np.uint8]]:
    """Return the activation maps of all units on their top images, by layer, u1 [unit, rank, height, width].

    255 is the unit's greatest activation in these images, 0 is no activation. Layers with one position have no map.

    Raises:
        ActstatsError: the network cannot be rebuilt, or none of the images can be read.
    """
    from actstats.probing.maps import activation_maps

    if side.top is None:
        return {}
    images = {
        layer.name: side.top[1][sweep.axis[layer.name]]
        for layer in sweep.manifest.layers
        if layer.height * layer.width > 1
    }
    asked = {name: np.nonzero(of_layer >= 0) for name, of_layer in images.items()}
    wanted = {name: (at[0], images[name][at]) for name, at in asked.items() if len(at[0])}
    if not wanted:
        return {}
    shares = {}
    for name, maps in activation_maps(
        sweep, sweep.images(data), wanted, largest=_MAP_SIDE, passes=passes
    ).items():
        laid = np.zeros((*images[name].shape, *maps.shape[1:]), dtype=np.float32)
        laid[asked[name]] = np.nan_to_num(maps, posinf=0, neginf=0).clip(min=0)
        greatest = laid.max((1, 2, 3), keepdims=True)
        laid *= np.divide(255, greatest, out=np.zeros_like(greatest), where=greatest > 0)
        shares[name] = laid.round().astype(np.uint8)
    return shares


def shown_edges() -> NDArray[np.float64]:
    """Return the edges of the histogram bins as shown, f64 [shown bins + 1].

    The bins are half octaves, one bin around 0, and one overflow bin at each end, drawn half an octave wide.
    """
    left, right = histogram_edges()
    starts = _starts()
    edges = np.append(left[starts], right[BIN_POSITIVE_OVERFLOW])
    edges[0] = right[BIN_NEGATIVE_OVERFLOW] * 1.5
    edges[-1] = left[BIN_POSITIVE_OVERFLOW] * 1.5
    return edges


def pack(content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> str:
    """Return `content`, which must fit JSON, and `arrays` (f4, i4, u2 or u1) as one part, in base64.

    Before compression a part is the JSON's length as u4, the JSON, and the arrays one after another, each starting
    at a multiple of 8 bytes, little-endian. The JSON's key `arrays` says where: name -> [JavaScript type, offset,
    length].

    >>> unpack(pack({"name": "conv1"}, {"x": np.arange(3, dtype=np.float32)}))
    ({'name': 'conv1'}, {'x': array([0., 1., 2.], dtype=float32)})
    """
    offset, places, blocks = 0, {}, []
    for name, values in (arrays or {}).items():
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        places[name] = [_KINDS[little.dtype.str[1:]], offset, little.size]
        blocks.append(_padded(little.tobytes()))
        offset += len(blocks[-1])
    # Non-ASCII names are shorter unescaped. JSON has no NaN, so `content` must not hold any.
    text = json.dumps(
        {**content, "arrays": places}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    encoded = text.encode("utf-8", "replace")
    head = len(encoded).to_bytes(4, "little") + encoded
    return base64.b64encode(zlib.compress(b"".join([_padded(head), *blocks]), 9)).decode("ascii")


def unpack(part: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Undo `pack`, as the page's script does; the arrays are flat."""
    data = zlib.decompress(base64.b64decode(part))
    length = int.from_bytes(data[:4], "little")
    content = json.loads(data[4 : 4 + length])
    start = len(_padded(data[: 4 + length]))
    types = {kind: dtype for dtype, kind in _KINDS.items()}
    arrays = {
        name: np.frombuffer(data, f"<{types[kind]}", count, start + offset)
        for name, (kind, offset, count) in content.pop("arrays").items()
    }
    return content, arrays


def shortened(values: NDArray[Any], bits: int = 10) -> NDArray[np.float32]:
    """Return `values` as f4 rounded to `bits` of the 23 mantissa bits; the zeros that remain compress well.

    The relative error is at most 2^-(bits + 1). NaN and infinities are unchanged.

    >>> shortened(np.array([3.14159265, np.nan]), 4)
    array([3.125,   nan], dtype=float32)
    """
    whole = np.ascontiguousarray(values, np.float32)
    drop = np.uint32(23 - bits)
    rounded = whole.view(np.uint32) + (np.uint32(1) << (drop - np.uint32(1)))
    rounded = (rounded >> drop) << drop
    return np.where(np.isfinite(whole), rounded.view(np.float32), whole)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def _of_units(side: Side, pictures: NDArray[np.int32] | None, units: slice) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    if side.top is not None and pictures is not None:
        value, _, position = side.top
        found |= {
            "picture": pictures[units],
            "position": position[units],
            "value": shortened(value[units], 12),
        }
    if side.spectrum is not None:
        power = side.spectrum[units]
        found |= {"spectrum": shortened(power), "mean-spectrum": _mean_share(power, side.coefficients[units])}
    if side.histogram is not None:
        found["histogram"] = shortened(side.histogram[units], 8)
    if side.profile is not None:
        profile = side.profile
        found |= {"class": profile.label[units], "class-mean": shortened(profile.mean[units])}
        found["class-rest"] = shortened(profile.rest[units])
    return found


def _mean_share(power: NDArray[np.float32], coefficients: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean over units of one coefficient's share of the unit's power without DC, [frequency].

    Units without power are left out.
    """
    varying = np.nansum((power * coefficients)[:, 1:], 1, keepdims=True)
    active = varying[:, 0] > 0
    if not active.any():
        return np.full(power.shape[1], np.nan, dtype=np.float32)
    return np.asarray((power[active] / varying[active]).mean(0), dtype=np.float32)


def _frequencies(layer: LayerRecord) -> list[float | None]:
    """Return the frequency of each radial bin in maps of a layer, in cycles per pixel; None where they have none."""
    sides = (np.array([side], dtype=np.int32) for side in (layer.height, layer.width))
    (middle,) = rings_of(*sides)[1]
    return [None if np.isnan(frequency) else round(frequency, 6) for frequency in middle.tolist()]


def _shares(field: ReceptiveField | None, crop: int) -> dict[str, list[float]] | None:
    """Return the edges of a layer's receptive fields as shares of the input's side."""
    if field is None:
        return None
    edges = {"top": field.top, "bottom": field.bottom + 1, "left": field.left, "right": field.right + 1}
    return {name: np.round(values / crop, 4).tolist() for name, values in edges.items()}


def _starts() -> NDArray[np.int64]:
    """Return the first bin of each shown bin. The overflow bins are kept, the underflow bins and zero are merged."""
    negative = np.arange(BIN_NEGATIVE_OVERFLOW + 1, BIN_NEGATIVE_UNDERFLOW, _TOGETHER)
    positive = np.arange(BIN_POSITIVE_UNDERFLOW + 1, BIN_POSITIVE_OVERFLOW, _TOGETHER)
    outer = [BIN_NEGATIVE_OVERFLOW], [BIN_POSITIVE_OVERFLOW]
    return np.concatenate([outer[0], negative, [BIN_NEGATIVE_UNDERFLOW], positive, outer[1]])


def _histogram(swept: xr.Dataset) -> NDArray[np.float32]:
    counts = reduce_partitions(swept)["histogram"].chunk({"bin": -1})
    found = xr.apply_ufunc(
        _bin_shares,
        counts,
        input_core_dims=[["bin"]],
        output_core_dims=[["shown"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"shown": len(_starts())}},
    )
    return np.asarray(found.transpose("unit", "shown").values)


def _bin_shares(counts: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Return the share of all finite values in each shown bin, [..., shown], from counts [..., bin]."""
    finite = counts[..., :BIN_POSITIVE_INFINITY].astype(np.float64)
    summed = np.add.reduceat(finite, _starts(), axis=-1)
    return np.asarray(summed / np.maximum(summed.sum(-1, keepdims=True), 1), dtype=np.float32)


def _profile(dataset: xr.Dataset, classes: ClassTable) -> Profile | None:
    try:
        means = class_means(dataset).transpose("unit", "label").compute()
    except ActstatsError:  # No labels, or no variable `mean`: the page shows the rest.
        return None
    values, label = means.values.astype(np.float32), classes[means["label"].values]
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=1, kind="stable")
    first, others = order[:, :_CLASSES], order[:, _CLASSES:]
    rest = np.full(len(values), np.nan, dtype=np.float32)
    if others.shape[1]:
        rest = np.take_along_axis(values, others, 1).mean(1)
    # Comparisons with NaN are false, so a class without images does not count as a difference.
    differs = (values < np.take_along_axis(values, first[:, :1], 1)).any(1)
    preferred = np.where(differs, label[first[:, 0]], -1).astype(np.int32)
    return Profile(label[first], np.take_along_axis(values, first, 1), rest, others.shape[1], preferred)
