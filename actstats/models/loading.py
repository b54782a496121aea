"""Load a network, given an architecture, a choice of weights and a threat model.

>>> loaded = load_model("squeezenet1_1", "none", seed=3)
>>> loaded.identity["weights"]["source"], loaded.preprocessing.shape
('none', (3, 224, 224))
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from actstats.attributes import entries_of
from actstats.data.preprocessing import Preprocessing
from actstats.data.transform import Transform, preprocessing_from
from actstats.errors import ActstatsError
from actstats.identity import Identity, NetworkRecord
from actstats.models import torchvision_zoo as zoo
from actstats.models.builders import Builder, Own, builder_of
from actstats.models.checkpoints import Checkpoint, read_checkpoint, state_sha256, unwrap
from actstats.models.loaded import Loaded
from actstats.models.sources import Located, locate, relocate
from actstats.records import InvalidError, parse, shortened

_IDENTITY: Final = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and standard deviation that leave an image unchanged."""
_NAMED: Final = ("file:", "url:", "hf:")
"""Sources of weights that the maker of a store chooses freely."""
MOST_CLASSES: Final = 100_000
"""Largest number of classes accepted without a tensor that confirms it. ImageNet-21k has 21,843."""
_LARGEST_IMAGE: Final = 2048
"""Largest image side accepted for a vision transformer, whose position embedding grows with its square."""
_ARCH: Final = re.compile(r"(timm/)?[\w.-]{1,200}|[\w.]{1,200}:[\w.]{1,200}", re.ASCII)
_SOURCE: Final = re.compile(
    r"none|factory|file:.+|torchvision:[\w.]+|timm:[\w.-]+|robust:[\w./-]+|demo:[rs]|url:https?://\S+|hf://\S+",
    re.DOTALL,
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def load_model(
    arch: str,
    weights: str | Path | None = "default",
    *,
    robust: str | bool | None = None,
    seed: int = 0,
    offline: bool = False,
) -> Loaded:
    """Return a classification network by name, with the preprocessing of its weights.

    `arch` is the name of a torchvision model, `timm/NAME` (extra `timm`), or `package.module:factory`: your own
    function without arguments that returns a module, or a module and its `Preprocessing`. If it returns none,
    a sweep of images needs `preprocessing=`.

    `weights` is one of:

    - `default` (the best published weights) or the name of another torchvision weight set (`IMAGENET1K_V1`);
    - `none` or None, as in torchvision: random weights drawn from `seed`;
    - `demo`: the small GoogLeNet that is included in actstats, trained on 11 categories;
    - a file written by torch, safetensors or pickle; `FILE#KEY` selects a part of it, and `FILE#prefix=NAME` one
      of several networks in it, by what precedes its names;
    - a URL (`https://...`), or `hf://owner/repository/file` on the Hugging Face Hub (extra `hub`).

    `robust` selects adversarially trained weights from the registry of published checkpoints: True or `default` (l2,
    epsilon 3), `l2:EPSILON`, or `linf:EPSILON` (in 1/255). With `demo`, it selects the robust network of the pair.
    Files that are not in the cache are downloaded, unless `offline` is True.

    The number of classes is inferred from the file. The preprocessing is the file's own, if it contains a normaliser
    or, in safetensors metadata, an entry `preprocessing`. Otherwise it is that of the torchvision weight set that the
    file belongs to, or of `default`. Code in a file is never executed.

    Raises `ActstatsError` for an unknown name, a failed download, or a file that does not fit;
    `NotCachedError` if `offline` forbids a download.
    """
    builder = builder_of(arch)
    asked = None if robust is None or robust is False else "default" if robust is True else robust
    spec = "none" if weights is None else str(weights)
    if asked is None and (spec == "none" or (spec == "default" and isinstance(builder, Own))):
        return _drawn(builder, seed)
    located = locate(builder, spec, asked, offline=offline)
    return _from_file(builder, located)


def load_from_manifest(
    manifest: NetworkRecord | Mapping[str, object],
    *,
    weights: str | Path | None = None,
    offline: bool = False,
    arch: str | None = None,
    trust: bool = False,
) -> tuple[nn.Module, Preprocessing | Transform]:
    """Rebuild the network that was swept from the manifest of its store.

    Nothing that the manifest names is imported or called. Of the weights, it may name random ones, those of the
    demo and published ones (torchvision's, timm's and those of the registry of robust networks). For a factory pass
    `arch`, for weights from a file or a URL `weights`, or for a store of your own `trust`.

    Args:
        manifest: the manifest (`Sweep.manifest`), or the attributes of the store, which hold it.
        weights: path of the weights file.
        offline: do not access the network.
        arch: the factory `package.module:factory`, if the network was made by one. It is imported and called only if
            it is the one that the manifest names.
        trust: use the factory, weights file or URL that the manifest names. Only for stores of your own.

    Returns:
        The network in eval mode, and its preprocessing.

    Raises:
        ActstatsError: an entry is missing, of the wrong type or out of bounds; the weights are no longer available or
            differ from those that were swept; a factory made the network and `arch` is not that factory; the weights
            come from a file or a URL, and neither `weights` nor `trust` is given.
    """
    network = manifest if isinstance(manifest, NetworkRecord) else _network_in(manifest)
    name, record = network.arch, network.weights
    arguments = _arguments_in(network)
    if arch is not None and arch != name:
        raise ActstatsError(f"the network that was swept is {name}, not {arch}")
    if ":" in name and arch is None and not trust:
        raise ActstatsError(
            f"the network comes from {name}, which is not called without permission; for a store of your own, "
            "pass `trust=True`"
        )
    builder, preprocessing = builder_of(name), preprocessing_from(network.preprocessing)
    if record.seed is not None:
        model = builder.build(arguments, record.seed)
    else:
        if weights is None and not trust and record.source.startswith(_NAMED):
            raise ActstatsError(
                f"the weights come from {record.source}, which is not opened without permission; for a store of your "
                "own, pass `trust=True`"
            )
        located = relocate(builder, record, weights, offline=offline)
        checkpoint = _read(builder, located)
        model = builder.fill(arguments, checkpoint, published=located.published)
    if trust and isinstance(preprocessing, Transform):
        preprocessing = preprocessing.opened()
    if state_sha256(model) != record.sha256:
        raise ActstatsError(
            f"the weights of {name} ({record.source}) differ from the swept ones in their SHA-256"
        )
    return model, preprocessing


def _network_in(attributes: Mapping[str, object]) -> NetworkRecord:
    entries = entries_of(attributes)
    names = [field.name for field in dataclasses.fields(NetworkRecord)]
    try:
        return parse(NetworkRecord, {name: entries[name] for name in names if name in entries})
    except InvalidError as error:
        raise ActstatsError(f"the attributes are not those of a store: {error}") from None


def _arguments_in(network: NetworkRecord) -> Mapping[str, int | bool]:
    """Return the arguments of the builder in a record, which a stranger may have written.

    Raises:
        ActstatsError: the network was a module of the caller, which has no recorded name, or the record names what
            no record of a sweep does.
    """
    record, file = network.weights, network.weights.file_sha256
    if record.builder is None:
        raise ActstatsError(
            f"the network was passed as a {network.arch[:80]!r} object, which cannot be rebuilt by name"
        )
    needed = {"none": "seed", "factory": "seed", "file": "resolved"}.get(
        record.source.partition(":")[0], "file_sha256"
    )
    for entry, value, valid in (
        ("arch", network.arch, _ARCH.fullmatch(network.arch)),
        ("weights.source", record.source, _SOURCE.fullmatch(record.source)),
        ("weights.sha256", record.sha256, _SHA256.fullmatch(record.sha256)),
        ("weights.file_sha256", file, file is None or _SHA256.fullmatch(file)),
        (f"weights.{needed}", getattr(record, needed), getattr(record, needed) is not None),
        *((f"weights.builder.{name}", value, _fits(name, value)) for name, value in record.builder.items()),
    ):
        if not valid:
            raise ActstatsError(f"the store has an invalid {entry}: {shortened(value)}")
    return record.builder


def _fits(argument: str, value: int | bool) -> bool:
    """Whether a builder may be called with this argument: sizes cost memory before any tensor confirms them."""
    if argument in ("aux_logits", "init_weights", "transform_input"):
        return isinstance(value, bool)
    most = {"num_classes": MOST_CLASSES, "image_size": _LARGEST_IMAGE}.get(argument, 0)
    return not isinstance(value, bool) and 1 <= value <= most


def _drawn(builder: Builder, seed: int) -> Loaded:
    preprocessing = builder.preprocessing(None)
    arguments = builder.arguments(preprocessing, None, transform_input=False)
    model = builder.build(arguments, seed)
    source = "factory" if isinstance(builder, Own) else "none"
    return _identified(builder, model, preprocessing, arguments, {"source": source, "seed": seed})


def _from_file(builder: Builder, located: Located) -> Loaded:
    checkpoint = _read(builder, located)
    own = _own_preprocessing(builder, checkpoint)
    preprocessing = own or located.preprocessing or builder.preprocessing(checkpoint)
    # Files of GoogLeNet and Inception v3 without a preprocessing most likely derive from torchvision's, whose
    # networks transform their input.
    arguments = builder.arguments(
        preprocessing, _classes(builder, checkpoint), transform_input=located.published or own is None
    )
    model = builder.fill(arguments, checkpoint, published=located.published)
    record = {**located.record, "file_sha256": checkpoint.sha256}
    if checkpoint.part:
        record["part"] = checkpoint.part
    if checkpoint.prefix or located.prefix is not None:
        record["prefix"] = checkpoint.prefix
    if checkpoint.foreign:
        record["foreign"] = list(checkpoint.foreign)
    loaded = _identified(builder, model, preprocessing, arguments, record)
    if classes := checkpoint.note("classes"):
        loaded.identity["classes"] = classes
    return loaded


def _read(builder: Builder, located: Located) -> Checkpoint:
    """Return the weights under the network's own names, after checking that the file is the expected one."""
    checkpoint = read_checkpoint(located.path, located.part, located.sha256)
    noted = checkpoint.notes.get("arch")
    if noted and noted != builder.arch:
        raise ActstatsError(f"{checkpoint.path.name} holds weights of {noted}, not of {builder.arch}")
    layer = zoo.class_layer(builder.skeleton)
    free = (f"{layer[0]}.weight", f"{layer[0]}.bias") if layer else ()
    checkpoint = unwrap(checkpoint, builder.state(), free, located.prefix)
    state = {name: tensor for name, tensor in checkpoint.state.items() if not name.startswith(builder.heads)}
    return dataclasses.replace(checkpoint, state=state)


def _own_preprocessing(builder: Builder, checkpoint: Checkpoint) -> Preprocessing | None:
    """Return the preprocessing in a file's metadata or normaliser. If it has both, they are applied only once."""
    try:
        record = checkpoint.note("preprocessing")
        noted = None if record is None else Preprocessing.from_dict(record)
    except (ValueError, TypeError, AttributeError, ActstatsError) as error:
        raise ActstatsError(
            f"{checkpoint.path} has no usable preprocessing in its metadata: {error}"
        ) from None
    inside = checkpoint.normaliser
    if inside is None:
        return noted
    if noted is None:
        # The library `robustness`, whose files have one, evaluates on the centre of images resized to 256.
        sizes = builder.preprocessing(None) if isinstance(builder, Own) else Preprocessing.imagenet()
        return sizes and dataclasses.replace(sizes, mean=inside.mean, std=inside.std)
    if (noted.mean, noted.std) not in ((inside.mean, inside.std), _IDENTITY):
        raise ActstatsError(
            f"{checkpoint.path} has two normalisers: mean {list(noted.mean)} in its metadata, "
            f"{list(inside.mean)} among its tensors; remove one"
        )
    return dataclasses.replace(noted, mean=inside.mean, std=inside.std)


def _classes(builder: Builder, checkpoint: Checkpoint) -> int | None:
    """Return the number of classes of a file, or None if it cannot be inferred."""
    weight = checkpoint.state.get(builder.class_weight() or "")
    noted = checkpoint.note("num_classes")
    if noted is not None and type(noted) is not int:
        raise ActstatsError(
            f"{checkpoint.path} has num_classes={noted!r} in its metadata, which is not an integer"
        )
    if weight is None and noted is not None and not 0 < noted <= MOST_CLASSES:
        raise ActstatsError(
            f"{checkpoint.path} has num_classes={noted} in its metadata; it must be from 1 to {MOST_CLASSES:,}"
        )
    if weight is not None and noted is not None and len(weight) != noted:
        raise ActstatsError(
            f"{checkpoint.path} has {len(weight)} classes, but {noted!r} according to its metadata"
        )
    return noted if weight is None else len(weight)


def _identified(
    builder: Builder,
    model: nn.Module,
    preprocessing: Preprocessing | None,
    arguments: Mapping[str, Any],
    record: Mapping[str, Any],
) -> Loaded:
    weights = {**record, "builder": dict(arguments), "sha256": state_sha256(model)}
    layer = zoo.class_layer(model)
    identity: Identity = {"arch": builder.arch}
    if classes := arguments.get("num_classes") or (layer and layer[1]):
        identity["num_classes"] = classes
    return Loaded(model, preprocessing, {**identity, "weights": weights})
