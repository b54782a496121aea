"""Headers of tars are read as the standard library reads them, whatever wrote or damaged them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from actstats.data.tar import members_of
from actstats.errors import ActstatsError

NAMES = st.lists(
    st.sampled_from(["cat", " dog ", "n01440764", "ü", "a" * 90, ".", "..", "x y"]), min_size=0, max_size=3
).map(lambda parts: "/".join([*parts, "image.png"]))
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
SIZES = st.sampled_from([0, 1, 511, 512, 513, 2000])


def written(names: list[str], sizes: list[int], form: int, prefix: str, headers: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, pax_headers=headers) as archive:
        for name, size in zip(names, sizes, strict=False):
            entry = tarfile.TarInfo(prefix + name)
            entry.size, entry.mtime = size, 1.5 if size == 1 else 7
            archive.addfile(entry, io.BytesIO(b"\xff" * size))
    return file.getvalue()


def by_tarfile(data: bytes) -> dict[str, tuple[int, int]] | None:
    """Return offset and size of each image, or None if the tar is damaged."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            entries = archive.getmembers()
            if any(data[archive.offset : archive.offset + 512]):
                return None
    except tarfile.TarError:
        return None
    parts = [(entry, [p for p in entry.name.split("/") if p not in ("", ".", "..")]) for entry in entries]
    return {
        "/".join(path): (entry.offset_data, entry.size)
        for entry, path in parts
        if entry.isreg() and path and path[-1].endswith(".png")
    }


def by_actstats(data: bytes) -> dict[str, tuple[int, int]] | None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "images.tar")
        path.write_bytes(data)
        try:
            return {name: (member.offset, member.size) for name, member in members_of(path).items()}
        except ActstatsError:
            return None


@given(
    st.lists(NAMES, min_size=1, max_size=6),
    st.lists(SIZES, min_size=6, max_size=6),
    FORMATS,
    st.sampled_from(["", "/", "./"]),
    st.sampled_from([{}, {"comment": "from git"}]),
)
@settings(max_examples=60, deadline=None)
def test_members_are_those_of_the_standard_library(names, sizes, form, prefix, headers):
    data = written(names, sizes, form, prefix, headers)
    assert by_actstats(data) == by_tarfile(data)
    assert by_actstats(data)


@given(FORMATS, st.integers(1, 4 * 1536))
@settings(max_examples=100, deadline=None)
def test_a_tar_that_is_cut_is_whole_only_between_members(form, length):
    data = written([f"{n}/image.png" for n in range(4)], [700] * 4, form, "", {})[:length]
    whole = length % 1536 == 0
    assert by_actstats(data) == (
        {f"{n}/image.png": (n * 1536 + 512, 700) for n in range(length // 1536)} if whole else None
    )


@given(FORMATS, st.integers(0, 3), st.integers(0, 511), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_of_a_header_is_seen_as_by_the_standard_library(form, member, place, value):
    data = bytearray(written([f"{n}/image.png" for n in range(4)], [700] * 4, form, "", {}))
    data[member * 1536 + place] = value
    assert by_actstats(bytes(data)) == by_tarfile(bytes(data))
