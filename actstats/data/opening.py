"""From what the user names to a source of images: the demo photographs, a folder, or tar files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from actstats.data.demo import DemoSource
from actstats.data.folder import FolderSource, list_folder, segmented_images
from actstats.data.source import Source
from actstats.data.tar import TarSource
from actstats.errors import ActstatsError, nearest

_RANGE: Final = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def open_source(spec: Any, *, limit: int | None = None, fingerprint: str | None = None) -> Source:
    """Open the images that `spec` names or holds, the first `limit` of them.

    `spec` is `demo`, a folder of images (flat, or with a folder per class), a tar file, a folder of tar
    files, or several tar files as `shard-{000000..000009}.tar`. Of a segmented dataset (Broden, or `images/`
    beside `masks/`) the images are opened without the masks. With a limit nothing beyond it is listed: of tar
    files it takes the first members.

    Or `spec` is a torch `Dataset` or `DataLoader`, a Hugging Face dataset, a tensor or a list of images: its items
    are images, or tuples or mappings with one. `fingerprint` is the text by which a resumed sweep knows that they
    are the same, for images that have none of their own. An open source is returned as it is.

    Raises `ActstatsError` if there is nothing of that name, or no image in it.
    """
    if limit is not None and limit < 1:
        raise ActstatsError(f"the limit must be at least 1 image, not {limit}")
    if not isinstance(spec, (str, Path)):
        if hasattr(spec, "image") and hasattr(spec, "paths"):
            source: Source = spec
            return source
        from actstats.data.dataset import DatasetSource  # which needs torch

        return DatasetSource(spec, limit, fingerprint)
    if fingerprint is not None:
        raise ActstatsError("images in files have a fingerprint of their own; leave `fingerprint=` out")
    spec = str(spec)
    if spec == "demo":
        return DemoSource(limit)
    if _RANGE.search(spec):
        return _tar(spec, (_existing(name) for name in expand_ranges(spec)), limit)
    path = _existing(spec)
    if not path.is_dir():
        return _tar(spec, [path], limit)
    segmented = segmented_images(path, limit)
    root, (names, more) = (
        (path, list_folder(path, limit)) if segmented is None else (path / "images", segmented)
    )
    if names:
        return FolderSource(spec, root, names, more)
    shards = sorted(file for file in path.glob("*.tar") if file.is_file())
    if shards:
        return _tar(spec, shards, limit)
    raise ActstatsError(f"no image in {path}: neither files such as .jpg or .png, nor .tar files")


def expand_ranges(spec: str) -> Iterator[str]:
    """Yield the names that a pattern with `{first..last}` stands for; numbers are as wide as `first`.

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


def _tar(spec: str, shards: Iterable[Path], limit: int | None) -> TarSource:
    source = TarSource(spec, shards, limit)
    if not len(source):
        raise ActstatsError(f"no image in {spec}: no member ends in .jpg, .png or the like")
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
