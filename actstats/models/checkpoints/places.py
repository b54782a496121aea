"""Find a network among the names in a file, whatever wrappers put before or between them.

DataParallel, an attacker or a training module put a prefix before all names of a network, and a wrapped part of it
has another within its names (`features.module.0.weight`). Neither is found by its spelling, but by comparing with the
network: a prefix is what lies before its names, and a wrapper is a module with a single child where the network's
module has other children.

>>> place = find_places(
...     ["a.fc.module.bias", "a.fc.module.weight", "b.fc.bias"], {"fc.bias": 1, "fc.weight": 1}
... )[0]
>>> place.prefix, place.names["a.fc.module.bias"], place.hits
('a.', 'fc.bias', 2)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Final, TypeAlias

Tree: TypeAlias = "dict[str, Tree | None]"

_MOST_PREFIXES: Final = 10_000
_TRIED: Final = 64
"""Number of prefixes that are compared with the network: those with most names under them."""


@dataclass
class Location:
    """Place of a network in a file.

    Attributes:
        prefix: what precedes its names, ending in a dot, or empty.
        names: name in the network by name in the file.
        modules: name of a module in the network by its name in the file.
        hits: sum of the weights, in `find_places`, of the names in the network that are there.
    """

    prefix: str
    names: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    hits: int = 0


def find_places(names: Collection[str], network: Mapping[str, int]) -> list[Location]:
    """Return the places of the network in a file, by decreasing hits and increasing length of the prefix.

    Args:
        names: all names in the file.
        network: what each name of the network counts.
    """
    roots = list(_roots(_tree(network)))
    firsts = {first for _, tree in roots for first in tree}
    counts: Counter[str] = Counter()
    for name in names:
        start = 0
        while start <= len(name):
            stop = name.find(".", start)
            stop = len(name) if stop < 0 else stop
            prefix = name[:start]
            if name[start:stop] in firsts and (prefix in counts or len(counts) < _MOST_PREFIXES):
                counts[prefix] += 1
            start = stop + 1
    file = _Names(sorted(names))
    places = []
    for prefix in nsmallest(_TRIED, counts, key=lambda prefix: (-counts[prefix], len(prefix), prefix)):
        tried = [file.place(prefix, path, tree, network) for path, tree in roots]
        places.append(max(tried, key=lambda place: place.hits))
    return sorted(
        (place for place in places if place.hits),
        key=lambda place: (-place.hits, len(place.prefix), place.prefix),
    )


class _Names:
    """The names in a file, sorted, so that those with a common prefix are adjacent."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def place(self, prefix: str, path: str, tree: Tree, network: Mapping[str, int]) -> Location:
        """Compare the names under `prefix` with the part `tree` of the network, which is its module `path`."""
        place = Location(prefix)
        self._match(prefix, tree, path, place)
        place.hits = sum(network[name] for name in place.names.values())
        return place

    def _match(self, prefix: str, tree: Tree, path: str, place: Location) -> None:
        while True:
            place.modules[prefix.removesuffix(".")] = path.removesuffix(".")
            there = [name for name, inner in tree.items() if self._has(prefix + name, leaf=inner is None)]
            if there:
                break
            if wrapper := self._only_child(prefix):
                prefix = wrapper
            elif len(tree) == 1 and (inner := next(iter(tree.values()))) is not None:
                path, tree = f"{path}{next(iter(tree))}.", inner
            else:
                return
        for name in there:
            inner = tree[name]
            if inner is None:
                place.names[prefix + name] = path + name
            else:
                self._match(f"{prefix}{name}.", inner, f"{path}{name}.", place)

    def _has(self, name: str, *, leaf: bool) -> bool:
        at = bisect_left(self._names, name if leaf else f"{name}.")
        if at == len(self._names):
            return False
        return self._names[at] == name if leaf else self._names[at].startswith(f"{name}.")

    def _only_child(self, prefix: str) -> str | None:
        """Return the prefix of all names under `prefix` that is one component longer, if there is one."""
        first = bisect_left(self._names, prefix)
        if first == len(self._names) or not self._names[first].startswith(prefix):
            return None
        stop = self._names[first].find(".", len(prefix)) + 1
        if not stop:
            return None
        longer = self._names[first][:stop]
        # The first name behind those with the longer prefix: "/" follows "." in the order of characters.
        behind = bisect_left(self._names, f"{longer[:-1]}/")
        alone = behind == len(self._names) or not self._names[behind].startswith(prefix)
        return longer if alone else None


def _tree(names: Collection[str]) -> Tree:
    tree: Tree = {}
    for name in names:
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            inner = node.setdefault(parent, {})
            if inner is None:  # a weight and a module of one name
                break
            node = inner
        else:
            node.setdefault(last, None)
    return tree


def _roots(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Yield the network, and the content of each wrapper around all of it, with the wrapper's name."""
    path = ""
    yield path, tree
    while len(tree) == 1 and (inner := next(iter(tree.values()))):
        path, tree = f"{path}{next(iter(tree))}.", inner
        yield path, tree
