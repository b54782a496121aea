"""Attributes of a dataset: the manifest of its store, in a form that netCDF and Zarr both accept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from actstats.errors import ActstatsError
from actstats.records import load

WHOLE: Final = "manifest"
"""The attribute that holds the whole manifest as JSON."""


class JsonText(str):
    """JSON text that can be indexed, iterated and compared like the list or dict that it encodes.

    netCDF has attributes of text and numbers only, so lists and dicts have to be text.

    >>> data = JsonText('{"classes": ["cat", "dog"]}')
    >>> data["classes"].index("dog"), dict(data), isinstance(data, str)
    (1, {'classes': ['cat', 'dog']}, True)
    """

    __slots__ = ()

    @property
    def value(self) -> Any:
        """The list or dict."""
        return load(str(self))

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __contains__(self, key: object) -> bool:
        return key in self.value

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) if isinstance(other, str) else bool(self.value == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __getattr__(self, name: str) -> Any:
        # `get`, `keys`, `items` and `values` of a dict
        if name in ("get", "keys", "items", "values"):
            return getattr(self.value, name)
        raise AttributeError(name)


def to_attributes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as attributes: one for each entry that is not None, and all of them in `manifest`, as JSON.

    >>> attributes = to_attributes({"arch": "alexnet", "bitround": None, "layers": [{"name": "conv1"}]})
    >>> list(attributes), attributes["layers"][0]["name"]
    (['arch', 'layers', 'manifest'], 'conv1')
    """
    entries = {
        name: int(value)
        if isinstance(value, bool)
        else value
        if isinstance(value, str | int | float)
        else None
        for name, value in manifest.items()
    }
    texts = {name: JsonText(json.dumps(v)) for name, v in manifest.items() if isinstance(v, list | Mapping)}
    known = {name: value for name, value in (entries | texts).items() if value is not None}
    return {**known, WHOLE: json.dumps(dict(manifest))}


def entries_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest in the attributes of a dataset; empty if they have none.

    `attributes` are those of `open_dataset`, also after netCDF, or those of the Zarr group.

    Raises:
        ActstatsError: the text of the manifest is not JSON.
    """
    if WHOLE not in attributes:
        return {name: value for name, value in attributes.items() if name != "coordinates"}
    try:
        found = load(str(attributes[WHOLE]))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ActstatsError(f"the attribute `{WHOLE}` of the dataset is not the manifest of a store")
    return found
