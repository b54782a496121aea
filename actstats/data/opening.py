"""Open a source of images: the demo photographs, a folder, tar or Parquet files, or Python objects."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from actstats.data.demo import DemoSource
from actstats.data.folder import FolderSource, RemoteFolderSource, list_folder, segmented_images
from actstats.data.image import is_hidden, is_image_name
from actstats.data.objects import RemoteFile, list_remote
from actstats.data.parquet import ParquetSource
from actstats.data.source import NO_LABEL, UNNAMED, Sample, Source
from actstats.data.tar import TarSource
from actstats.errors import ActstatsError, nearest
from actstats.support import URL, located

FILES: Final[dict[str, type[TarSource | ParquetSource]]] = {".tar": TarSource, ".parquet": ParquetSource}
"""Sources that read files of many images, by the ending of the files; the first that fits reads a folder of them."""
REOPENED: Final = frozenset({DemoSource.kind, FolderSource.kind, *(source.kind for source in FILES.values())})
"""Kinds of source that another process opens by their `spec` alone, as those of objects in Python are not."""
_RANGE: Final = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def open_source(
    spec: object,
    *,
    limit: int | None = None,
    sample: int | str | None = None,
    fingerprint: str | None = None,
) -> Source:
    """Open the images that `spec` names or contains, or only the first `limit` or a random `sample` of them.

    `spec` is `demo`, a folder of images (flat, or with a folder per class), a tar or Parquet file, a folder of such
    files, or several of them as `shard-{000000..000009}.tar`; or the URL of one of these, such as
    `s3://bucket/shards/`, `https://host/val.tar` or `hf://datasets/owner/name`. For a segmented dataset (Broden, or
    `images/` next to `masks/`) the images are opened without the masks. With a limit, nothing beyond it is listed; in
    a tar file, it selects the first members.

    `spec` may also be a torch `Dataset` or `DataLoader`, a Hugging Face dataset, a tensor or a list of images, whose
    items are images, or tuples or mappings that contain one. `fingerprint` is a string that identifies images without
    a fingerprint of their own, so that a resumed sweep can check that they are the same. An open source is also
    accepted.

    `sample` is a number of images, or `"N:SEED"` with the seed of the choice (default 0). Each class, and the images
    without a class, have their share of the sample, up to rounding.

    Raises `ActstatsError` if `spec` does not exist, or contains no images.
    """
    if limit is not None and limit < 1:
        raise ActstatsError(f"`limit=` must be at least 1, not {limit}")
    if sample is None:
        return _opened(spec, limit, fingerprint)
    if limit is not None:
        raise ActstatsError("`limit=` and `sample=` exclude each other; give one of them")
    count, seed = _parse_sample(sample)
    return _sampled(_opened(spec, None, fingerprint), count, seed, fingerprint)


_SAMPLE: Final = re.compile(r"(\d{1,18})(?::(\d{1,18}))?", re.ASCII)


def _parse_sample(sample: object) -> tuple[int, int]:
    """Return the number of images and the seed."""
    fields = _SAMPLE.fullmatch(str(sample)) if type(sample) in (int, str) else None
    if fields is None or int(fields[1]) < 1:
        raise ActstatsError(
            f"`sample=` must be N or N:SEED, such as 5000 or 5000:1, not {str(sample)[:40]!r}"
        )
    return int(fields[1]), int(fields[2] or 0)


def _sampled(source: Source, count: int, seed: int, fingerprint: str | None) -> Source:
    """Return a random sample of a source, in the order of the source."""
    name = f"{count}:{seed}"
    if (there := getattr(source, "sample", None)) is not None:
        if there == name:
            return source
        raise ActstatsError(
            f"the images are the sample {there} already; `sample={name}` cannot be drawn from it"
        )
    indices = _stratified(source, count, seed)
    chosen: Any = _selected(source, indices, f"sample {name} {indices}", fingerprint)
    chosen.sample = name
    return chosen  # type: ignore[no-any-return]


def _selected(source: Source, indices: Sequence[int], choice: str, fingerprint: str | None = None) -> Source:
    """Return the images of a source at `indices`; `choice` becomes part of the fingerprint, if the source has one."""
    mark = source.fingerprint
    if fingerprint is None and not mark.startswith(UNNAMED):
        mark = hashlib.sha256(f"{mark}\0{choice}".encode()).hexdigest()
    select = getattr(source, "select", None)
    return Sample(source, indices, mark) if select is None else select(indices, mark)


def _stratified(source: Source, count: int, seed: int) -> list[int]:
    """Return the indices of up to `count` images, of each class in proportion to its images."""

    def rank(text: str) -> bytes:  # the same with any version of any library
        return hashlib.sha256(f"{seed}\0{text}".encode()).digest()

    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(np.asarray(source.labels).tolist()):
        members[label].append(index)
    total = len(source)
    count = min(count, total)
    shares = {label: divmod(count * len(indices), total) for label, indices in members.items()}
    left = count - sum(share for share, _ in shares.values())
    largest = sorted(shares, key=lambda label: (-shares[label][1], rank(str(label))))
    rounded_up = set(largest[:left])
    chosen: list[int] = []
    for label, indices in members.items():
        ranked = sorted(indices, key=lambda index: rank(source.paths[index]))
        chosen += ranked[: shares[label][0] + (label in rounded_up)]
    return sorted(chosen)


def _opened(spec: Any, limit: int | None, fingerprint: str | None) -> Source:
    if not isinstance(spec, (str, Path)):
        if hasattr(spec, "image") and hasattr(spec, "paths"):
            source: Source = spec
            _check(source)
            return source if limit is None or limit >= len(source) else _first(source, limit)
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
    for ending in FILES:
        if shards := sorted(
            file for file in path.glob(f"*{ending}") if not is_hidden(file.name) and file.is_file()
        ):
            return _files(spec, shards, limit)
    raise ActstatsError(f"no images in {path}: it has no image, .tar or .parquet files")


def _first(source: Source, limit: int) -> Source:
    return _selected(source, range(limit), f"first {limit}")


def _check(source: Source) -> None:
    """Raise `ActstatsError` if the labels of a source of the caller's own do not fit its images and classes."""
    labels, most = np.asarray(source.labels), len(source.classes) or 2**31
    if labels.shape != (len(source),) or labels.dtype.kind not in "iu" or len(source.paths) != len(source):
        raise ActstatsError(
            f"a {type(source).__name__} of {len(source)} images must have a path and an integer label for each, not "
            f"{len(source.paths)} paths and labels {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) and (labels.min() < NO_LABEL or labels.max() >= most):
        raise ActstatsError(
            f"the labels of a {type(source).__name__} are from {labels.min()} to {labels.max()}; they must be "
            f"numbers of its {len(source.classes)} classes, or -1 for none"
        )


def _remote(url: URL, limit: int | None) -> Source:
    """Open images that are not on this machine."""
    if _RANGE.search(url) or url.endswith(tuple(FILES)):
        return _files(url, [RemoteFile(URL(name)) for name in expand_ranges(url)], limit)
    listed = list(list_remote(url))
    images = sorted(entry for entry in listed if is_image_name(entry[0]))
    if images:
        return RemoteFolderSource(url, url, images, limit)
    for ending in FILES:
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
    for ending, source in FILES.items():
        if all(file.name.endswith(ending) for file in files):
            return source(spec, files, limit)
    return TarSource(spec, files, limit)  # whatever its name; it refuses other files


def stem(spec: str) -> str:
    """Return the name of images without the ending of a file, for the name of their store.

    >>> stem("/data/val.tar"), stem("/data/val/"), stem("hf://datasets/owner/photos")
    ('val', 'val', 'photos')
    """
    name = URL(spec).name
    return next((name.removesuffix(ending) for ending in FILES if name.endswith(ending)), name)


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
