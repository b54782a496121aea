"""From a network's outputs to named decisions: its own classes, ImageNet's, entry-level categories, or learned ones.

>>> import torch
>>> readout = Readout(("cat", "dog"), ((0, 1), (2,)))
>>> [readout.names[i] for i in readout.decide(torch.tensor([[2.0, 0.0, 1.9], [2.0, 2.0, 1.9]]))]
['dog', 'cat']
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats.data import NO_LABEL, Source
from actstats.data.source import in_order, is_number
from actstats.errors import ActstatsError
from actstats.models import Loaded
from actstats.probing.forward import Passes, logits, ready_for_images
from actstats.probing.imagenet import CATEGORIES, SYNSETS


@dataclass(frozen=True)
class Readout:
    """What a network can say: `names`, and the outputs that stand for each (`groups`).

    Attributes:
        names: the possible decisions.
        groups: the outputs that stand for each name.
        pooled: whether the outputs of a name count together, by their mean probability, or each for itself.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    pooled: bool = True

    def decide(self, logits: Tensor) -> NDArray[np.int64]:
        """Return the decision for each image, i64 [N], as an index into `names`; the lowest on ties, -1 on NaN.

        `logits` is [N, outputs]. Where outputs are pooled it is the name whose outputs have the greatest mean
        probability (softmax over all outputs, f64), as Geirhos et al. 2019 decide; else that of the greatest output.
        """
        values = logits.double()
        if all(len(group) == 1 for group in self.groups):
            values = values[:, [group[0] for group in self.groups]]
        elif not self.pooled:
            values = torch.stack([values[:, list(group)].amax(1) for group in self.groups], 1)
        else:
            probabilities = values.softmax(1)
            values = torch.stack([probabilities[:, list(group)].mean(1) for group in self.groups], 1)
        # NumPy's argmax is the first of equal values; torch's may be any.
        return _or_undecided(values.cpu().numpy().argmax(1), logits)

    def restricted(self, names: Sequence[str]) -> Readout:
        """Return the forced choice among those of `names` that can be said, in this readout's order."""
        kept = [index for index, name in enumerate(self.names) if name in set(names)]
        return Readout(tuple(self.names[i] for i in kept), tuple(self.groups[i] for i in kept), self.pooled)


@dataclass(frozen=True)
class NearestMean:
    """What a network's outputs were seen to mean: `names`, and the mean outputs of each, f64 [names, outputs]."""

    names: tuple[str, ...]
    means: Tensor

    def decide(self, logits: Tensor) -> NDArray[np.int64]:
        """Return for each image, i64 [N], the name whose mean outputs are nearest (Euclidean).

        The lowest on ties, -1 on NaN.
        """
        return _or_undecided(torch.cdist(logits.double().cpu(), self.means).numpy().argmin(1), logits)


UNDECIDED: Final = -1
"""The decision for an image for which an output is NaN: it is neither right nor for any class."""
UNREAD: Final = -2
"""In place of a decision, for an image that could not be read."""


def _or_undecided(decisions: NDArray[np.int64], logits: Tensor) -> NDArray[np.int64]:
    undefined = logits.isnan().any(1).cpu().numpy()
    return np.where(undefined, UNDECIDED, decisions)


def nearest_mean(loaded: Loaded, source: Source, device: torch.device, passes: Passes) -> NearestMean:
    """Return the mean outputs of a network, on `device`, over the images of each class of a source.

    Raises:
        ActstatsError: fewer than two classes have an image that can be read.
    """
    rows, found = logits(loaded, source, device, passes)
    labels = source.labels[rows]
    seen = np.unique(labels[labels != NO_LABEL])
    if len(seen) < 2:
        raise ActstatsError(f"nothing can be learned from {source.spec}: it has fewer than two classes")
    means = torch.stack([found[torch.from_numpy(labels == label)].double().mean(0) for label in seen])
    return NearestMean(
        tuple(source.classes[label] if source.classes else str(label) for label in seen), means
    )


def exclusions(
    name: str, known: NDArray[np.bool_], decisions: NDArray[np.int64], what: str = "images"
) -> list[str]:
    """Return a line for each reason why images are excluded, or cannot be right.

    Args:
        name: what the network and the images are called.
        known: whether the network knows the class of an image, bool [images].
        decisions: the decision for each image, i64 [images]: `UNREAD` if it could not be read, `UNDECIDED` if an
            output is NaN.
        what: what the images are called.
    """
    counts = {
        "excluded, as the network does not know their class": ~known,
        "excluded, as they could not be read": known & (decisions == UNREAD),
        "counted as wrong, as an output of the network is NaN": known & (decisions == UNDECIDED),
    }
    return [
        f"{name}: {chosen.sum():,} of {len(known):,} {what} {why}"
        for why, chosen in counts.items()
        if chosen.any()
    ]


def singly(names: Sequence[str]) -> Readout:
    """Return the readout of one output for each of `names`, in order; outputs of the same name are one decision."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return Readout(tuple(groups), tuple(map(tuple, groups.values())), pooled=False)


def entry_level() -> Readout:
    """Return the readout of an ImageNet classifier's 1,000 outputs as 16 entry-level categories."""
    return Readout(tuple(CATEGORIES), tuple(CATEGORIES.values()))


def class_names(loaded: Loaded) -> tuple[str, ...] | None:
    """Return the names of a network's outputs in order, where its weights brought them (`identity`), or None."""
    known = loaded.identity.get("classes")
    return None if known is None else tuple(str(name) for name in known)


def output_count(loaded: Loaded, device: torch.device) -> int:
    """Return how many outputs the network has, from one blank image, on `device`, where it must be.

    Raises:
        ActstatsError: it returns something else than a row of outputs for each image.
    """
    with ready_for_images(loaded), torch.no_grad():
        found = loaded.model(loaded.preprocessing.example(1, device))
    if not isinstance(found, Tensor) or found.ndim != 2:
        what = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ActstatsError(f"the network is no classifier: it returns {what} for an image, not [1, classes]")
    return int(found.shape[1])


def readout_for(outputs: int, wanted: Sequence[str], classes: Sequence[str] | None = None) -> Readout:
    """Return the readout for a network with `outputs` outputs that covers all names in `wanted`.

    The first of: the network's own `classes`; the synsets (`n02123045`) or the 16 entry-level categories, with
    ImageNet's 1,000 outputs; the names themselves in sorted order, if there are as many as outputs.

    Raises:
        ActstatsError: none of them covers the names.
    """
    if (readout := _by_name(outputs, wanted, classes)) is not None:
        return readout
    if classes is None and len(set(wanted)) == outputs:
        return singly(sorted(set(wanted)))
    raise _unmatched(outputs, wanted, classes)


def _by_name(outputs: int, wanted: Sequence[str], classes: Sequence[str] | None) -> Readout | None:
    """Return the readout whose names include all those in `wanted`, or None."""
    if classes is not None and len(classes) != outputs:
        raise ActstatsError(f"{len(classes)} class names were given, but the network has {outputs} outputs")
    readouts = [] if classes is None else [singly(classes)]
    if outputs == len(SYNSETS):
        readouts += [singly(SYNSETS), entry_level()]
    return next((readout for readout in readouts if set(wanted) <= set(readout.names)), None)


def _unmatched(outputs: int, wanted: Sequence[str], classes: Sequence[str] | None) -> ActstatsError:
    known = set(classes or ()) | (set(SYNSETS) | set(CATEGORIES) if outputs == len(SYNSETS) else set())
    odd = [name for name in wanted if name not in known]
    return ActstatsError(
        f"the network's {outputs} outputs cannot be matched with the images' {len(set(wanted))} classes "
        f"({', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}): name its outputs in order with `classes=`"
    )


_FROM_FOLDERS: Final = ("folder", "tar")
"""Kinds of source whose classes are folders, sorted. Others state an order of their own."""
_ORDINAL: Final = re.compile(r"\d+[\s._-]+(?=\S)")


def match_outputs(
    outputs: int, source: Source, classes: Sequence[str] | None = None
) -> tuple[Readout, list[int]]:
    """Return a readout that covers the classes of a source, and the index into its names of each class.

    The index is `NO_LABEL` for a class without images that the readout lacks. Classes are matched, in this order:

    1. by name: with `classes`, the names of the network's outputs, or with ImageNet's 1,000 outputs, with the synsets
       or the 16 entry-level categories;
    2. by name, up to case, separators and a leading number (`2-hot_dog` is `hot dog`), with `classes`;
    3. by number, if all names are numbers, counted from 0;
    4. by position, if the names of the outputs are not known, and there are as many classes as outputs: in the order
       that the data set states, or that of the sorted folders.

    Raises:
        ActstatsError: none of these applies, or it is not clear what the numbers count.
    """
    names = list(source.classes)
    used = [names[label] for label in np.unique(source.labels[source.labels != NO_LABEL])]
    if classes is not None and names == list(classes):
        return _each(names), list(range(outputs))
    for wanted in (names, used):
        if (readout := _by_name(outputs, wanted, classes)) is not None:
            at = {name: index for index, name in enumerate(readout.names)}
            return readout, [at.get(name, NO_LABEL) for name in names]
    if classes is not None and (matched := _by_plain_name(names, used, classes)) is not None:
        return matched
    if all(map(is_number, names)) and (numbers := _numbers(outputs, source)) is not None:
        return _each([str(index) for index in range(outputs)]), numbers
    if classes is None and len(names) == outputs:
        if outputs == len(SYNSETS) and source.kind in _FROM_FOLDERS:
            raise ActstatsError(
                f"the {outputs} folders of {source.spec} are not named after ImageNet's synsets or numbers, so the "
                "order of the outputs is not clear: name them in order with `classes=`"
            )
        return _each(names), list(range(outputs))
    raise _unmatched(outputs, used, classes)


def _each(names: Sequence[str]) -> Readout:
    """Return the readout of each output as a decision of its own, even if another has the same name."""
    return Readout(tuple(names), tuple((index,) for index in range(len(names))))


def _by_plain_name(
    names: Sequence[str], used: Sequence[str], classes: Sequence[str]
) -> tuple[Readout, list[int]] | None:
    readout = singly(classes)
    at = {_plain(name): index for index, name in enumerate(readout.names)}
    mine = {_plain(name) for name in used}
    if len(at) < len(readout.names) or len(mine) < len(used) or not mine <= set(at):
        return None
    return readout, [at.get(_plain(name), NO_LABEL) for name in names]


def _plain(name: str) -> str:
    """Return a name without case and a leading number, and with spaces as separators.

    >>> _plain("002.Hot_Dog"), _plain("hot-dog"), _plain("7")
    ('hot dog', 'hot dog', '7')
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(re.split(r"[\s_-]+", _ORDINAL.sub("", text, count=1) if _ORDINAL.match(text) else text))


def _numbers(outputs: int, source: Source) -> list[int] | None:
    """Return the output of each class whose name is a number, or None if position decides.

    Raises:
        ActstatsError: it is not clear what the numbers count.
    """
    names = list(source.classes)
    numbers = [int(name) for name in names]
    whole, positions = len(names) == outputs, list(range(len(names)))
    as_text = names == sorted(names)
    stated = source.kind not in _FROM_FOLDERS
    if stated and whole and (numbers == positions or not as_text):
        return positions
    from_zero = sorted(numbers) == positions
    from_one = len(names) > 1 and sorted(numbers) == [index + 1 for index in positions]
    distinct = len(set(numbers)) == len(numbers)
    if distinct and max(numbers) < outputs and not from_one and not (stated and whole):
        return numbers
    if whole and not from_zero and as_text and names == in_order(names):
        return None
    raise ActstatsError(
        f"the classes of {source.spec} are numbers ({', '.join(names[:3])}, ...), and it is not clear which of the "
        f"{outputs} outputs each is: name the outputs in order with `classes=`"
    )


def forced_choice(outputs: int, wanted: Sequence[str], classes: Sequence[str] | None = None) -> Readout:
    """Return the readout that chooses among those names in `wanted` that the network knows.

    Those are its own `classes`, or, with ImageNet's 1,000 outputs, all 16 entry-level categories.

    Raises:
        ActstatsError: it knows fewer than two of them.
    """
    if classes is not None:
        readout = readout_for(outputs, classes, classes).restricted(wanted)
    elif outputs == len(SYNSETS):
        readout = entry_level()
    else:
        readout = readout_for(outputs, wanted)
    if len(set(readout.names) & set(wanted)) < 2:
        raise ActstatsError(
            f"the network's classes have {len(set(readout.names) & set(wanted))} of the stimuli's categories "
            f"({', '.join(sorted(set(wanted))[:4])}, ...) among them; the test needs at least two"
        )
    return readout


def labelled_readout(
    loaded: Loaded,
    source: Source,
    device: torch.device,
    *,
    classes: Sequence[str] | None = None,
    learned: NearestMean | None = None,
) -> tuple[Readout | NearestMean, NDArray[np.int64]]:
    """Return the readout that can say the classes of a source's images, and what it should say of each.

    The second is i64 [images], an index into the readout's names, `NO_LABEL` where an image has no class that it can
    say. Where the source's labels are bare numbers they are those of the outputs. `classes` names the outputs of the
    network, which is on `device`; None: as its weights have them, or ImageNet's. A `learned` readout stays as it is.

    Raises:
        ActstatsError: no image has a class, or the network cannot say them.
    """
    labels = source.labels
    if not (labels != NO_LABEL).any():
        raise ActstatsError(f"no image of {source.spec} has a class: accuracy needs a folder for each class")
    if learned is not None:
        named = source.classes or [str(index) for index in range(int(labels.max()) + 1)]
        return learned, _said(learned, named, labels)
    outputs = output_count(loaded, device)
    if not source.classes:
        if labels.max() >= outputs:
            raise ActstatsError(
                f"{source.spec} has the class number {labels.max()}, but the network {outputs} outputs"
            )
        return _each([str(index) for index in range(outputs)]), labels
    known = class_names(loaded) if classes is None else classes
    readout, at = match_outputs(outputs, source, known)
    return readout, np.array([*at, NO_LABEL], dtype=np.int64)[labels]


def _said(readout: NearestMean, classes: Sequence[str], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index into the readout's names of each label, `NO_LABEL` where it has none."""
    names = {name: index for index, name in enumerate(readout.names)}
    # Past the last class stands for no label, which indexes it as -1.
    said = np.array([*(names.get(name, NO_LABEL) for name in classes), NO_LABEL], dtype=np.int64)
    return said[labels]
