"""Restore the objects that all partitions of a store share, from its manifest and the names of its images.

The manifest is stored twice, in `zarr.json` and in `manifest.json`. With the names and labels of the images it
determines all other metadata and the coordinates, byte by byte, so whatever is damaged is created again and must have
the digest of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from actstats.errors import ActstatsError
from actstats.records import load
from actstats.store import manifest as manifests
from actstats.store.digests import COPY, ROOT, as_json, broken_seal, digest, manifest_in
from actstats.store.place import StorePlace, place_of, read_or_empty

_DAMAGED: Final = (ValueError, KeyError, TypeError, AttributeError)
"""Errors of documents that are missing or damaged."""


def recovered_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a store that may be damaged, from whichever of its two copies is intact.

    Raises:
        ActstatsError: there is no store at `path`, neither copy is intact, or it is not one that actstats writes.
    """
    place = place_of(path)
    if not place.exists():
        raise ActstatsError(f"no store at {path}; create one with `actstats sweep --out {path} ...`")
    for key in (ROOT, COPY):
        with suppress(*_DAMAGED):
            document = load(read_or_empty(place, key))
            manifest = manifest_in(document) if key == ROOT else dict(document)
            if manifest.get("actstats") == 1:
                raise ActstatsError(
                    f"{path} has store format 1, which has no copies to repair it from: run "
                    f"`actstats info --verify {path}` to check it, and sweep again only if it is damaged"
                )
            if manifest.get("checksum") == manifests.checksum(manifest):
                manifests.Manifest.from_json(manifest)
                return manifest
    raise ActstatsError(
        f"{path} cannot be repaired: it has no intact copy of its manifest, in neither {ROOT} nor {COPY}; remove it "
        "and sweep again"
    )


def restore(
    place: StorePlace, manifest: Mapping[str, Any], created: Callable[[], Mapping[str, bytes]]
) -> list[str]:
    """Restore the damaged objects that all partitions share, and return their keys.

    Args:
        place: location of the store.
        manifest: its manifest, from `recovered_manifest`.
        created: returns the objects of a new store with this manifest, by key.

    Raises:
        ActstatsError: an object cannot be created again as it was.
    """
    if "digests" not in manifest:
        restored = dict(_damaged_without_digests(place, created()))
    else:
        keys = list(_damaged(place, manifest))
        objects = created() if keys else {}
        restored = {key: objects.get(key, b"") for key in keys}
        for key, data in restored.items():
            if not _is_original(key, data, manifest):
                raise ActstatsError(
                    f"{place.location} cannot be repaired: {key} would not be the one that was written, by zarr "
                    f"{manifest['versions'].get('zarr', '?')} and for the images as they were then"
                )
    with place.explained():
        for key, data in restored.items():
            place.put(key, data)
        place.flush()
    return list(restored)


def _damaged(place: StorePlace, manifest: Mapping[str, Any]) -> Iterator[str]:
    if read_or_empty(place, COPY) != as_json(manifest):
        yield COPY
    for key, expected in manifest["digests"].items():
        data = read_or_empty(place, key)
        if (key != ROOT and digest(key, data) != expected) or (
            key == ROOT and not _is_original(key, data, manifest)
        ):
            yield key


def _is_original(key: str, data: bytes, manifest: Mapping[str, Any]) -> bool:
    if key == COPY:
        return data == as_json(manifest)
    if key != ROOT:
        expected: str = manifest["digests"][key]
        return digest(key, data) == expected
    with suppress(*_DAMAGED):
        root = load(data)
        return data == as_json(root) and manifest_in(root) == manifest and broken_seal(root) is None
    return False


def _damaged_without_digests(place: StorePlace, created: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the damaged objects of a store of an earlier version, of which the metadata are stored twice."""
    root = load(read_or_empty(place, ROOT))
    try:
        consolidated = root["consolidated_metadata"]["metadata"]
        mended = dict(consolidated)
    except (KeyError, TypeError, ValueError):
        raise ActstatsError(
            f"{place.location} cannot be repaired: {ROOT} does not describe its arrays, and {COPY} is missing; "
            "remove it and sweep again"
        ) from None
    for key, data in created.items():
        name, _, rest = key.partition("/")
        if rest != ROOT:
            if name in consolidated and read_or_empty(place, key) != data:
                yield key, data
            continue
        metadata = load(data)
        if name not in consolidated or metadata == consolidated[name] == _parsed(read_or_empty(place, key)):
            continue
        mended[name] = metadata
        if _parsed(read_or_empty(place, key)) != metadata:
            yield key, data
    if mended != consolidated:
        yield (
            ROOT,
            as_json({**root, "consolidated_metadata": {**root["consolidated_metadata"], "metadata": mended}}),
        )


def _parsed(data: bytes) -> Any:
    with suppress(ValueError):
        return load(data)
    return None
