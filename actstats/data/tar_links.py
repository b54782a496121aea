"""Members of a tar, and the symbolic links between them, followed as a file system would.

Links lead to members of the same tar only. Nothing outside of it is read, whatever a link names: one that leaves the
tar, leads nowhere or runs in a circle is skipped.

>>> links = Links()
>>> links.add(Member("blobs/7", 512, 9))
>>> links.link("cat/a.png", "../blobs/7")
>>> links.link("dog", "./cat")
>>> [(member.name, member.offset) for member in links.members()]
[('cat/a.png', 512), ('dog/a.png', 512)]
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from actstats.data.image import UNREADABLE, ImageError, refuse_large_file

_MOST_HOPS: Final = 40
"""Number of links that lead to one another, as in Linux."""
_MOST_STEPS: Final = 10_000_000
"""Number of steps for listing linked folders; few links in each other may make many paths."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its relative name, separated by `/`, its place, and the content of a `.cls` file.

    `offset` is that of its bytes in the tar, `size` the size of the file. In a sparse file, `pieces` are the
    (offset, size) of the parts that are stored, one after the other; the rest is zeros.
    """

    name: str
    offset: int
    size: int
    text: str | None = None
    pieces: tuple[tuple[int, int], ...] | None = None

    @property
    def stored(self) -> int:
        """Number of bytes in the tar."""
        return self.size if self.pieces is None else sum(max(0, size) for _, size in self.pieces)

    def content(self, data: bytes) -> bytes:
        """Return the content of the file, given its bytes in the tar; raises `ImageError`."""
        if self.pieces is None:
            return data
        refuse_large_file(self.size)
        whole, place = bytearray(self.size), 0
        for start, size in self.pieces:
            if not 0 <= start <= start + size <= self.size:
                raise ImageError(UNREADABLE, "its map of holes in the tar is damaged")
            whole[start : start + size] = data[place : place + size]
            place += size
        return bytes(whole)


class _Folder(dict[str, "_Folder | _Link | Member"]):
    """A folder by the names in it, and the folders from the root to itself."""

    def __init__(self, above: tuple[_Folder, ...] = ()) -> None:
        super().__init__()
        self.path: tuple[_Folder, ...] = (*above, self)


@dataclass(frozen=True, slots=True)
class _Link:
    target: str
    rooted: bool


class Links:
    """The members of a tar by name, and the symbolic links to them."""

    def __init__(self) -> None:
        self._files: dict[str, Member] = {}
        self._links: dict[str, _Link] = {}

    def add(self, member: Member) -> None:
        """Add a file; it replaces an earlier file or link of its name."""
        self._files[member.name] = member
        self._links.pop(member.name, None)

    def link(self, name: str, target: str, *, rooted: bool = False) -> None:
        """Add a symbolic link; `rooted` is whether names in this tar begin with `/`, so that targets may too."""
        self._links[name] = _Link(target, rooted)
        self._files.pop(name, None)

    def same(self, name: str, other: str) -> Member | None:
        """Add a hard link to the earlier member `other`; return it as a file of this name, or None if it is none."""
        if (file := self._files.get(other)) is not None:
            self.add(replace(file, name=name))
            return self._files[name]
        if (link := self._links.get(other)) is not None:
            self._links[name] = link
        return None

    def members(self) -> Iterator[Member]:
        """Yield the files that symbolic links lead to, by the names of the links, and those in linked folders.

        Raises:
            tarfile.ReadError: linked folders contain too many links.
        """
        if not self._links:
            return
        root = self._tree()
        steps = 0
        for name, link in self._links.items():
            folder = _folder_at(root, name)
            there = None if folder is None else _follow(folder, link)
            # The names below a link, and the folders on the way, which a link must not lead back to.
            waiting = (
                [] if folder is None or there is None else [(name, there, frozenset(map(id, folder.path)))]
            )
            while waiting:
                path, node, above = waiting.pop()
                steps += 1 + len(above)
                if steps > _MOST_STEPS:
                    raise tarfile.ReadError("too many links in linked folders")
                if isinstance(node, Member):
                    yield replace(node, name=path)
                elif id(node) not in above:
                    inside = above | {id(node)}
                    for entry, inner in reversed(node.items()):
                        found = _follow(node, inner) if isinstance(inner, _Link) else inner
                        if found is not None:
                            waiting.append((f"{path}/{entry}", found, inside))

    def _tree(self) -> _Folder:
        root = _Folder()
        entries: dict[str, _Link | Member] = {**self._files, **self._links}
        for name, entry in entries.items():
            folder = _folder_at(root, name, create=True)
            if folder is not None:
                folder.setdefault(name.rpartition("/")[2], entry)
        return root


def _folder_at(root: _Folder, name: str, *, create: bool = False) -> _Folder | None:
    """Return the folder of the member `name`; None if it does not exist, or something else has its name."""
    folder = root
    for part in name.split("/")[:-1]:
        inner = folder.setdefault(part, _Folder(folder.path)) if create else folder.get(part)
        if not isinstance(inner, _Folder):
            return None
        folder = inner
    return folder


def _follow(folder: _Folder, link: _Link) -> _Folder | Member | None:
    """Return what a link in `folder` leads to, or None."""
    path, hops = list(folder.path), 0
    waiting: list[str] = []
    node: _Folder | _Link | Member | None = link
    while True:
        if isinstance(node, _Link):
            hops += 1
            absolute = node.target.startswith("/")
            if hops > _MOST_HOPS or (absolute and not node.rooted):
                return None
            path = path[:1] if absolute else path
            waiting += [part for part in reversed(node.target.split("/")) if part not in ("", ".")]
        elif isinstance(node, _Folder):
            path.append(node)
        else:
            return None if waiting else node
        while waiting and waiting[-1] == "..":
            waiting.pop()
            path.pop()
            if not path:
                return None
        if not waiting:
            return path[-1]
        node = path[-1].get(waiting.pop())
