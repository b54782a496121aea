"""The manifest: the record of a sweep, as JSON in the attributes of its store.

`Manifest` is that record with types. Whoever opens a store gets it from `Manifest.from_json`, which checks all of it.

It has three kinds of entries. Those that affect results must agree for two sweeps to share a store (`differences`).
Those that should not affect results, such as the version of Python, are reported when they change (`changes`). The
others record when, where and with which arguments the store was created, and are not compared.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import itertools
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from actstats.errors import ActstatsError, nearest
from actstats.identity import NetworkRecord
from actstats.records import (
    Count,
    Form,
    Identifier,
    InvalidError,
    Longest,
    Name,
    Number,
    Place,
    Range,
    Text,
    Texts,
    Whole,
    invalid,
    parse,
)
from actstats.version import __version__
from actstats_kernels.bins import PAIRED

if TYPE_CHECKING:
    from actstats.layers import Layer

FORMAT: Final = 2
"""Store format that this version of actstats writes."""
READABLE: Final = (1, 2)
"""Store formats that it reads. Format 1 has chunks of 700 units, no checksums, no provenance and nested folders."""

CORRECTED: Final = "0.2.0"
"""The version that last corrected a number of a sweep; `docs/corrections.md` lists them."""

_TOLD: Final = frozenset({"versions.python", "versions.zarr"})
_RECORDED: Final = frozenset(
    {
        "checksum",
        "created",
        "digests",
        "machine",
        "request",
        "data.spec",
        "data.resolved",
        "weights.path",
        "weights.resolved",
        "selectors",
    }
)
_PACKAGES: Final = ("torch", "torchvision", "triton", "numba", "pillow", "zarr")


MOST_UNITS: Final = 2**21
"""Most units of all layers together."""
_Side = Annotated[int, Range(1, 2**20)]


Digest = Annotated[str, Form("[0-9a-f]{8}", "a digest of 8 hexadecimal digits")]


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """A layer along the unit axis; its fields are those of `actstats.layers.Layer`."""

    name: Name
    module: Name
    call: Whole
    units: Annotated[int, Range(1, MOST_UNITS)]
    height: _Side
    width: _Side
    kind: Text = ""
    shape: tuple[Count, ...] = ()
    axes: Annotated[str, Form("[nchwt]{0,5}", "letters of axes")] = ""
    prefix: Whole = 0
    calls: Count = 1


class UnitAxis(dict[str, slice]):
    """The slice of the axis `unit` that belongs to each layer, by its name, in the order of the axis.

    >>> axis = UnitAxis({"conv1": 64, "conv2": 192})
    >>> axis["conv2"], axis.total
    (slice(64, 256, None), 256)
    """

    def __init__(self, units: Mapping[str, int]) -> None:
        ends = list(itertools.accumulate(units.values(), initial=0))
        super().__init__(zip(units, itertools.starmap(slice, itertools.pairwise(ends)), strict=True))
        self.total = ends[-1]
        """Number of units of all layers."""

    @classmethod
    def of(cls, layers: Iterable[Layer | LayerRecord]) -> Self:
        """Return the axis on which the units of these layers follow each other."""
        return cls({layer.name: layer.units for layer in layers})


@dataclass(frozen=True)
class Unit:
    """A channel of a layer, and its index on the axis `unit`."""

    layer: str
    channel: int
    index: int
    height: int
    """Height of its maps."""
    width: int
    """Width of its maps."""

    def __str__(self) -> str:
        return f"{self.layer}/{self.channel}"


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The images: where they were, how many, and a fingerprint of their names and sizes."""

    spec: Place
    kind: Text
    images: Count
    fingerprint: Text
    classes: Texts
    resolved: Place | None = None
    sample: Annotated[str, Form(r"[0-9]{1,18}:[0-9]{1,18}", "N:SEED")] | None = None

    @property
    def limit(self) -> int | None:
        """The argument `limit` of `open_source` that chooses these images; None for a sample."""
        return self.images if self.sample is None else None


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """The arguments with which a named network was requested."""

    arch: Text
    weights: Text
    robust: Text | None
    seed: Whole
    device: Text


@dataclass(frozen=True, kw_only=True)
class Manifest(NetworkRecord):
    """The record of a sweep, checked: every field has its type and is within bounds.

    `docs/store.md` says what each entry means. Entries that this version does not know are refused, since they may
    change the meaning of the others.
    """

    format: Literal[1, 2] = field(metadata={"key": "actstats"})
    layers: Annotated[tuple[LayerRecord, ...], Longest(100_000)]
    selectors: Texts
    metrics: Texts
    outputs: Annotated[tuple[Identifier, ...], Longest(10_000)]
    top_k: Count
    batch_size: Count
    partition_size: Count
    data: DataRecord
    device: Annotated[str, Form("[a-z]{1,20}", "a type of device")]
    amp: Literal["off", "bf16", "fp16"]
    bitround: Annotated[int, Range(1, 23)] | None
    compression: Annotated[
        str, Form("none|blosc:lz4|zstd(:([1-9]|1[0-9]|2[0-2]))?", "none, zstd:LEVEL or blosc:lz4")
    ]
    versions: Mapping[str, Text]
    machine: Mapping[str, Text]
    created: Text
    num_classes: Count | None = None
    classes: Texts | None = None
    distort: Texts = ()
    masks: Text | None = None
    paired_with: Annotated[str, Form("[0-9a-f]{64}", "a SHA-256")] | None = None
    """`identity` of the sweep of the clean images with whose maps those of this one were compared."""
    per_image: bool = True
    compile: bool = False
    memory_format: Literal["contiguous"] | None = None
    decode: Literal["pillow", "device"] = "pillow"
    request: RequestRecord | None = None
    digests: Mapping[str, Digest] | None = None
    checksum: Text | None = None
    json: dict[str, Any] = field(init=False, repr=False, compare=False)
    """The entries as they are stored."""

    def __post_init__(self) -> None:
        if self.weights.source == "none" and self.weights.seed is None:
            raise InvalidError("weights.seed is missing")
        for name in ("layers", "outputs"):
            if not getattr(self, name):
                raise InvalidError(f"{name} is empty")
        if self.units > MOST_UNITS:
            raise InvalidError(f"the layers have {self.units:,} units, more than {MOST_UNITS:,}")
        if self.paired_with is not None and (lacking := set(PAIRED).difference(self.outputs)):
            raise InvalidError(f"outputs lack {min(lacking)}, which a sweep with paired_with has")
        for name, entries in (
            ("layers", [layer.name for layer in self.layers]),
            ("outputs", self.outputs),
            ("metrics", self.metrics),
        ):
            if len(set(entries)) < len(entries):
                raise InvalidError(f"{name} has an entry twice")

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Return the manifest that a store or a plan contains.

        Raises:
            ActstatsError: an entry is missing, unknown, of another type or out of bounds, or a newer version of
                actstats wrote the manifest.
        """
        if not isinstance(entries, Mapping):
            raise invalid("manifest", entries, "an object")
        known = {name: value for name, value in entries.items() if name != "coordinates"}
        try:
            manifest = parse(cls, known)
        except InvalidError as error:
            if newer := _newer(known):
                raise InvalidError(
                    f"it was written by actstats {newer}, and this is {__version__}: use that version to read it "
                    f"({error})"
                ) from None
            raise
        object.__setattr__(manifest, "json", known)
        return manifest

    @property
    def outdated(self) -> str:
        """The version that swept the store, if numbers were corrected since then; else an empty text."""
        return outdated(self.json)

    @property
    def identity(self) -> str:
        """The SHA-256, in hex, of the entries that affect results, wherever the store is."""
        return identity(self.json)

    @property
    def treatment(self) -> dict[str, Any]:
        """What the sweep did to its images and numbers: two networks compare only where this is the same.

        The entries are `distortion`, `masks`, `amp`, `bitround` and `preprocessing`, in JSON.
        """
        return {
            "distortion": " + ".join(self.distort) or "none",
            "masks": self.masks,
            "amp": self.amp,
            "bitround": self.bitround,
            "preprocessing": self.json["preprocessing"],
        }

    @functools.cached_property
    def axis(self) -> UnitAxis:
        """Where the units of each layer are on the axis `unit`."""
        return UnitAxis.of(self.layers)

    @property
    def units(self) -> int:
        """Number of units of all layers."""
        return self.axis.total

    def unit(self, name: str) -> Unit:
        """Return the unit called `name`, LAYER/CHANNEL.

        Raises:
            ActstatsError: the name is malformed, or the sweep has no such layer or channel.
        """
        layer, slash, channel = name.rpartition("/")
        if not slash or not channel.isdecimal():
            raise ActstatsError(
                f"unit {name!r} is not of the form LAYER/CHANNEL, such as {self.layers[0].name}/0"
            )
        entry = next((entry for entry in self.layers if entry.name == layer), None)
        if entry is None:
            hint = nearest(layer, self.axis) or "; list them with: actstats info STORE --json"
            raise ActstatsError(f"no layer {layer!r} was swept{hint}")
        if int(channel) >= entry.units:
            raise ActstatsError(
                f"layer {layer} has no channel {channel}; its channels are 0 to {entry.units - 1}"
            )
        return Unit(layer, int(channel), self.axis[layer].start + int(channel), entry.height, entry.width)

    @property
    def partitions(self) -> int:
        """Number of partitions; the last one may be smaller."""
        return -(-self.data.images // self.partition_size)

    @property
    def partition_length(self) -> int:
        """Images per partition, of which there may be fewer than `partition_size`."""
        return min(self.partition_size, self.data.images)


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """A plan in JSON: the manifest of a sweep, and the path of its store."""

    actstats_plan: Count
    manifest: Manifest
    store: Place


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """How far an attack moved the images of a partition; the fields of `actstats.store.description.Attack`."""

    images: Whole
    distance: Number
    unmoved: Whole


@dataclass(frozen=True, kw_only=True)
class ProvenanceRecord:
    """The entries of the provenance of a partition that are reported."""

    device: Text = ""
    compiled: bool = False
    versions: Mapping[str, Text] = field(default_factory=dict)
    attack: AttackRecord | None = None

    @classmethod
    def known(cls, entries: object) -> dict[str, Any]:
        """Return the provenance in JSON, without those of these entries that have another type."""
        record = dict(entries) if isinstance(entries, Mapping) else {}
        for name in cls.__dataclass_fields__.keys() & record.keys():
            try:
                parse(cls, {name: record[name]})
            except InvalidError:
                del record[name]
        return record


def _newer(entries: Mapping[str, Any]) -> str:
    """Return the version that wrote a manifest if it is newer than this one; else an empty text."""
    versions = entries.get("versions")
    text = versions.get("actstats") if isinstance(versions, Mapping) else None
    if not isinstance(text, str) or not re.fullmatch(r"[0-9][0-9a-z.+]{0,30}", text):
        return ""
    return text if _release(text) > _release(__version__) else ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that are used in a sweep."""
    packages = {name: text for name in _PACKAGES if (text := _version(name))}
    return {"python": platform.python_version(), "actstats": __version__, **packages}


@functools.cache  # looking it up takes longer than writing a small partition
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def machine() -> dict[str, str]:
    """Return the system and processor of this machine."""
    return {"system": platform.platform(), "processor": platform.machine()}


def other_version(planned: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Return the first package that affects results and is installed in another version than planned, or None.

    Its name comes with both versions, this machine's first. A machine without a GPU may lack triton, and builds of
    one version for CPUs and for GPUs count as the same.
    """
    here = versions()
    for name, other in planned.items():
        own = here.get(name, other)
        if differences(*({"versions": {name: text.partition("+")[0]}} for text in (other, own))):
            return name, own, other
    return None


def build(**parts: Any) -> dict[str, Any]:
    """Return a manifest with the entries `parts`, the store format, versions, machine and date."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"actstats": FORMAT, **parts, "versions": versions(), "machine": machine(), "created": now}


def identity(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of the entries of a manifest that affect results, wherever its store is."""
    entries = flatten(manifest)
    kept = {name: value for name, value in entries.items() if not _within(name, _TOLD | _RECORDED)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def checksum(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of all entries of a manifest except the checksum."""
    entries = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def outdated(manifest: Mapping[str, Any]) -> str:
    """Return the version that swept a store, if numbers were corrected since then; else an empty text.

    >>> outdated({"versions": {"actstats": "0.1.0"}}), outdated({"versions": {"actstats": "0.10"}})
    ('0.1.0', '')
    """
    versions = manifest.get("versions")
    found = versions.get("actstats") if isinstance(versions, Mapping) else None
    if not isinstance(found, str):
        return "of unknown version"
    return found if _release(found) < _release(CORRECTED) else ""


def outdated_note(version: str) -> str:
    """Return a line about a store that was swept by a version before the last corrections."""
    return (
        f"swept by actstats {version}, and numbers have been corrected since: docs/corrections.md says which stores "
        "to sweep again"
    )


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def flatten(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names, such as `weights.sha256`; lists are kept.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe each difference that prevents two sweeps from sharing a store.

    >>> differences({"arch": "alexnet"}, {"arch": "vgg16"})
    ["arch is 'alexnet' in the store and 'vgg16' in this sweep"]
    """
    return [phrase for name, phrase in _changed(old, new) if not _within(name, _TOLD | _RECORDED)]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe each difference that should not affect results, but is reported to the user.

    >>> changes({"versions": {"python": "3.11.7"}}, {"versions": {"python": "3.11.9"}})
    ["versions.python is '3.11.7' in the store and '3.11.9' in this sweep"]
    """
    return [phrase for name, phrase in _changed(old, new) if _within(name, _TOLD)]


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
    before, after = flatten(old), flatten(new)
    return [
        (name, _phrase(name, before.get(name), after.get(name)))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _within(name: str, entries: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in entries for end in range(1, len(parts) + 1))


def _phrase(name: str, before: Any, after: Any) -> str:
    if isinstance(before, list) and isinstance(after, list):
        # Show layers by name, as their full entries would fill the screen.
        first, second = (
            [x.get("name", x) if isinstance(x, Mapping) else x for x in xs] for xs in (before, after)
        )
        gone = [x for x in first if x not in second]
        added = [x for x in second if x not in first]
        if gone or added:
            sides = [
                f"{_few(xs)} only in {side}"
                for side, xs in (("the store", gone), ("this sweep", added))
                if xs
            ]
            return f"{name} differ: {', '.join(sides)}"
        return f"{name} differ in order or details"
    return f"{name} is {_short(before)} in the store and {_short(after)} in this sweep"


def _few(items: list[Any], most: int = 3) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
