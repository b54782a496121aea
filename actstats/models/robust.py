"""Registry of published ImageNet networks that were trained against adversarial examples.

>>> choose("resnet50", "default").name
'resnet50_l2_eps3'
>>> choose("resnet18", "linf:4").url.rpartition("/")[2]
'resnet18_linf_eps4.0.ckpt'
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from actstats.errors import ActstatsError

_SALMAN: Final = "https://huggingface.co/madrylab/robust-imagenet-models"
_CHEN: Final = "https://github.com/anguyen8/shape-bias"
DEFAULT: Final = ("l2", 3.0)
"""The threat model of `robust=True`, as in "The shape and simplicity biases of adversarially robust
ImageNet-trained CNNs" (arXiv 2006.09373)."""
_NORMS: Final = {"l2": "l2", "2": "l2", "linf": "linf", "l_inf": "linf", "inf": "linf"}
_ASKED: Final = re.compile(r"(?P<norm>[a-z_0-9]+?)(?::(?P<epsilon>\d+(?:\.\d*)?|\.\d+)(?:/255)?)?")


@dataclass(frozen=True)
class RobustCheckpoint:
    """One published checkpoint.

    `epsilon` is the radius of the training attack on images in [0, 1], in units of 1/255 for linf; 0 is the same
    recipe without an attack. `url` is a stable address, or None if the file has to be found through `page`.
    `accuracy` is the top-1 accuracy on ImageNet in percent, as published by the authors. `sha256` is None if none is
    published.
    """

    name: str
    arch: str
    norm: str
    epsilon: float
    file: str
    page: str
    url: str | None = None
    accuracy: float | None = None
    sha256: str | None = None

    @property
    def threat(self) -> str:
        """The threat model in the form of the argument `robust`, such as l2:3."""
        return f"{self.norm}:{self.epsilon:g}"


_L2: Final = (0, 0.01, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 3, 5)
_LINF: Final = (0.5, 1, 2, 4, 8)
# Names and accuracies are from the tables on the page. Linf file names have a decimal, l2 file names do not.
_ACCURACY_L2: Final[dict[str, tuple[float, ...]]] = {
    "resnet18": (69.79, 69.90, 69.24, 69.15, 68.77, 67.43, 65.49, 62.32, 53.12, 45.59),
    "resnet50": (75.80, 75.68, 75.76, 75.59, 74.78, 74.14, 73.16, 70.43, 62.83, 56.13),
    "wide_resnet50_2": (76.97, 77.25, 77.26, 77.17, 76.74, 76.21, 75.11, 73.41, 66.90, 60.94),
    "wide_resnet50_4": (77.91, 78.02, 77.87, 77.77, 77.64, 77.10, 76.52, 75.51, 69.67, 65.20),
}
_ACCURACY_LINF: Final[dict[str, tuple[float, ...]]] = {
    "resnet18": (66.13, 63.46, 59.63, 52.49, 42.11),
    "resnet50": (73.73, 72.05, 69.10, 63.86, 54.53),
    "wide_resnet50_2": (75.82, 74.65, 72.35, 68.41, 60.82),
}
_OTHERS: Final = (
    ("densenet", "densenet161", 77.37, 66.98),
    ("mnasnet", "mnasnet1_0", 60.97, 41.83),
    ("mobilenet", "mobilenet_v2", 65.26, 50.40),
    ("resnext50_32x4d", "resnext50_32x4d", 77.38, 66.25),
    ("shufflenet", "shufflenet_v2_x1_0", 64.25, 43.32),
    ("vgg16_bn", "vgg16_bn", 73.66, 57.19),
)
"""Name on the page, name in torchvision, accuracy at epsilon 0 and at epsilon 3 (l2)."""
_DRIVE: Final = (("GoogleNet_R.pt", "googlenet"), ("alexnet-r.pt", "alexnet"), ("ResNet50_R.pt", "resnet50"))
"""Files in the folder that the page links to, which has no stable address."""


def registry() -> list[RobustCheckpoint]:
    """Return all known checkpoints, sorted by architecture, norm and epsilon; those with an address come first."""
    return sorted(_rows(), key=lambda row: (row.arch, row.norm, row.epsilon, row.url is None))


def choose(arch: str, asked: str) -> RobustCheckpoint:
    """Return the checkpoint of `arch` for a threat model: `default` (l2:3), `l2:3`, `linf:4`, or a norm alone.

    A norm alone means l2:3 or linf:4. The checkpoint may have no address.

    Raises `ActstatsError`, which lists the alternatives, if there is no such checkpoint.
    """
    rows = [row for row in registry() if row.arch == arch]
    if not rows:
        known = ", ".join(dict.fromkeys(row.arch for row in registry() if row.url))
        raise ActstatsError(
            f"no published robust weights of {arch} are known; available for {known} (see `actstats models`); "
            "or give a file: `weights=FILE`"
        )
    norm, epsilon = parse_threat(asked)
    for row in rows:
        if (row.norm, row.epsilon) == (norm, epsilon):
            return row
    raise ActstatsError(
        f"no robust weights of {arch} for {norm}:{epsilon:g} are known; available: "
        f"{', '.join(dict.fromkeys(row.threat for row in rows))}"
    )


def parse_threat(asked: str) -> tuple[str, float]:
    """Return the norm and the epsilon of a threat model, as listed in the registry.

    >>> parse_threat("Linf:4/255"), parse_threat("l2"), parse_threat("default")
    (('linf', 4.0), ('l2', 3.0), ('l2', 3.0))

    Raises `ActstatsError` for anything else.
    """
    if asked == "default":
        return DEFAULT
    found = _ASKED.fullmatch(asked.lower())
    norm = _NORMS.get(found["norm"]) if found else None
    if found is None or norm is None:
        raise ActstatsError(
            f"`robust={asked}` is not a threat model; give l2:EPSILON or linf:EPSILON (in 1/255)"
        )
    if found["epsilon"] is None:
        return (norm, 3.0 if norm == "l2" else 4.0)
    return norm, float(found["epsilon"])


def by_name(name: str) -> RobustCheckpoint:
    """Return the checkpoint with this name.

    Raises `ActstatsError` if there is none.
    """
    for row in registry():
        if row.name == name:
            return row
    raise ActstatsError(f"no published checkpoint is named {name!r} (`actstats models` lists them)")


def how_to_get(row: RobustCheckpoint) -> str:
    """Return an error message that says how to get a checkpoint without an address."""
    embedded = (
        "; or use the embedded network: `weights=demo` `robust=True`" if row.arch == "googlenet" else ""
    )
    return (
        f"the robust {row.arch} ({row.threat}) has no stable address: download {row.file} from the folder that "
        f"{row.page} links to, then use `arch={row.arch}` `weights={row.file}`{embedded}"
    )


def _rows() -> Iterator[RobustCheckpoint]:
    for arch, accuracies in _ACCURACY_L2.items():
        for epsilon, accuracy in zip(_L2, accuracies, strict=True):
            yield _salman(f"{arch}_l2_eps{epsilon:g}", arch, "l2", epsilon, accuracy)
    for arch, accuracies in _ACCURACY_LINF.items():
        for epsilon, accuracy in zip(_LINF, accuracies, strict=True):
            yield _salman(f"{arch}_linf_eps{epsilon:.1f}", arch, "linf", epsilon, accuracy)
    for name, arch, clean, robust in _OTHERS:
        for epsilon, accuracy in ((0, clean), (3, robust)):
            yield _salman(f"{name}_l2_eps{epsilon}", arch, "l2", epsilon, accuracy)
    for file, arch in _DRIVE:
        yield RobustCheckpoint(f"shape-bias/{file}", arch, *DEFAULT, file, _CHEN)


def _salman(name: str, arch: str, norm: str, epsilon: float, accuracy: float) -> RobustCheckpoint:
    file = f"{name}.ckpt"
    return RobustCheckpoint(
        name, arch, norm, float(epsilon), file, _SALMAN, f"{_SALMAN}/resolve/main/{file}", accuracy
    )
