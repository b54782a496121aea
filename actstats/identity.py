"""What identifies a network in a manifest: its architecture, where its weights came from, and its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypedDict

from actstats.records import Count, Form, Name, Number, Place, Text, Texts, Whole


class Identity(TypedDict, total=False):
    """The entries of a manifest that identify a network, in JSON; those of `weights` are the fields of
    `WeightsRecord`.
    """

    arch: str
    num_classes: int
    weights: Mapping[str, object]
    classes: list[str]


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """Where the weights came from."""

    source: Text
    sha256: Text
    seed: Whole | None = None
    builder: Mapping[str, Whole | bool] | None = None
    file_sha256: Text | None = None
    part: Text | None = None
    prefix: Text | None = None
    foreign: Texts = ()
    path: Place | None = None
    resolved: Place | None = None
    threat_model: Text | None = None
    epsilon: Number | None = None


@dataclass(frozen=True, kw_only=True)
class PreprocessingRecord:
    """The fields of `actstats.data.Preprocessing`."""

    resize: Count | None
    crop: Count
    interpolation: Text
    mean: tuple[Number, Number, Number]
    std: tuple[Number, Number, Number]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape [C, H, W] of the network's input."""
        return 3, self.crop, self.crop

    def __str__(self) -> str:
        resize = "no resize" if self.resize is None else f"resize {self.resize}"
        mean, std = (" ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return f"{resize}, crop {self.crop}, {self.interpolation}, mean {mean}, std {std}"


@dataclass(frozen=True, kw_only=True)
class FunctionRecord:
    """A function of the caller that prepares images; the fields of `actstats.data.transform.Transform`."""

    function: Annotated[str, Form(r"[^\ud800-\udfff]*", "text", 1_000_000)]
    shape: tuple[Count, Count, Count]
    dtype: Text
    first: Text

    def __str__(self) -> str:
        source = "the data as they are" if self.function == "none" else f"by {self.function}"
        return f"{' x '.join(map(str, self.shape))} {self.dtype}, {source}"


@dataclass(frozen=True, kw_only=True)
class NetworkRecord:
    """A network and its preprocessing, checked: `actstats.load_from_manifest` rebuilds it."""

    arch: Name
    weights: WeightsRecord
    preprocessing: PreprocessingRecord | FunctionRecord
