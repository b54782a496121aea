"""Open a source of images: the demo photographs, a folder, tar or Parquet files, or Python objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from actstats.data.demo import DemoSource
from actstats.data.folder import FolderSource, RemoteFolderSource, list_folder, segmented_images
from actstats.data.image import is_hidden, is_image_name
from actstats.data.objects import RemoteFile, list_remote
from actstats.data.parquet import ParquetSource
from actstats.data.source import Source
from actstats.data.tar import TarSource
from actstats.errors import ActstatsError, nearest
from actstats.support import URL, located

_PACKED: Final = (".tar", ".parquet")
"""Endings of files that hold many images."""
_RANGE: Final = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def open_source(spec: Any, *, limit: int | None = None, fingerprint: str | None = None) -> Source:
    """Open the images that `spec` names or contains, or only the first `limit` of them.

    `spec` is `demo`, a folder of images (flat, or with a folder per class), a tar or Parquet file, a folder of such
    files, or several of them as `shard-{000000..000009}.tar`; or the URL of one of these, such as
    `s3://bucket/shards/`, `https://host/val.tar` or `hf://datasets/owner/name`. For a segmented dataset (Broden, or
    `images/` next to `masks/`) the images are opened without the masks. With a limit, nothing beyond it is listed; in
    a tar file, it selects the first members.

    `spec` may also be a torch `Dataset` or `DataLoader`, a Hugging Face dataset, a tensor or a list of images, whose
    items are images, or tuples or mappings that contain one. `fingerprint` is a string that identifies images without
    a fingerprint of their own, so that a resumed sweep can check that they are the same. An open source is returned
    unchanged.

    Raises `ActstatsError` if `spec` does not exist, or contains no images.
    """
    if limit is not None and limit < 1:
        raise ActstatsError(f"`limit=` must be at least 1, not {limit}")
    if not isinstance(spec, (str, Path)):
        if hasattr(spec, "image") and hasattr(spec, "paths"):
            source: Source = spec
            return source
        from actstats.data.dataset import DatasetSource  # requires torch

        return DatasetSource(spec, limit, fingerprint)
    if fingerprint is not None:
        raise ActstatsError("images in files have a fingerprint of their own; omit `fingerprint=`")
    spec = str(spec)
    if spec == "demo":
        return DemoSource(limit)
    if isinstance(url := located(spec), URL):
        return _remote(url, limit)
    if _RANGE.search(spec):
        return _files(spec, [_existing(name) for name in expand_ranges(spec)], limit)
    path = _existing(spec)
    if not path.is_dir():
        return _files(spec, [path], limit)
    segmented = segmented_images(path, limit)
    root, (names, more) = (
        (path, list_folder(path, limit)) if segmented is None else (path / "images", segmented)
    )
    if names:
        return FolderSource(spec, root, names, more)
    for ending in _PACKED:
        if shards := sorted(
            file for file in path.glob(f"*{ending}") if not is_hidden(file.name) and file.is_file()
        ):
            return _files(spec, shards, limit)
    raise ActstatsError(f"no images in {path}: it has no image, .tar or .parquet files")


def _remote(url: URL, limit: int | None) -> Source:
    """Open images that are not on this machine."""
    if _RANGE.search(url) or url.endswith(_PACKED):
        return _files(url, [RemoteFile(URL(name)) for name in expand_ranges(url)], limit)
    listed = list(list_remote(url))
    images = sorted(entry for entry in listed if is_image_name(entry[0]))
    if images:
        return RemoteFolderSource(url, url, images, limit)
    for ending in _PACKED:
        if shards := [name for name, _ in listed if name.endswith(ending) and not is_hidden(name)]:
            return _files(url, [RemoteFile(URL(f"{url.rstrip('/')}/{name}")) for name in shards], limit)
    raise ActstatsError(f"no images below {url}: it has no image, .tar or .parquet files")


def expand_ranges(spec: str) -> Iterator[str]:
    """Yield the names that a pattern with `{first..last}` expands to, with numbers padded to the width of `first`.

    >>> list(expand_ranges("a-{08..10}.tar"))
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = _RANGE.search(spec)
    if found is None:
        yield spec
        return
    first, last = found.groups()
    if int(last) < int(first):
        raise ActstatsError(f"the range {found.group()} of {spec} is empty")
    for number in range(int(first), int(last) + 1):
        for tail in expand_ranges(spec[found.end() :]):
            yield f"{spec[: found.start()]}{number:0{len(first)}d}{tail}"


def _files(spec: str, files: Sequence[Path] | Sequence[RemoteFile], limit: int | None) -> Source:
    if all(file.name.endswith(".parquet") for file in files):
        return ParquetSource(spec, files, limit)
    source = TarSource(spec, files, limit)
    if not len(source):
        raise ActstatsError(f"no images in {spec}: no member has the extension of an image (.jpg, .png, ...)")
    return source


def _existing(name: str) -> Path:
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # no such user
        raise ActstatsError(f"no such folder or tar file: {name} ({error})") from None
    if path.is_file() or path.is_dir():
        return path
    if path.exists():
        raise ActstatsError(f"{path} is neither a folder nor a regular file")
    hint = nearest(path.name, (entry.name for entry in path.parent.iterdir())) if path.parent.is_dir() else ""
    raise ActstatsError(f"no such folder or tar file: {path}{hint}")
