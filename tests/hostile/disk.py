"""A disk that records what a program does to a folder, and what a power cut would leave of it.

It watches the program's own calls of the operating system: Python's audit events tell when a file is opened for
writing, renamed or removed, and `os.fsync` tells what has to be on the disk from then on. Before each of them the
power is cut, in thought, and the states are noted in which the folder may be when the machine starts again. Nothing
needs root, and no file system is mounted.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

Tree = dict[str, "bytes | Tree"]
"""A folder: the bytes of its files and the trees of its folders, by name."""
Listing = dict[str, int]
"""The inodes in a folder, by name."""

CHANGES = frozenset({"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"})
"""Audit events that change what is in a folder, besides opening a file for writing."""


class Disk:
    """The folder `root` on a disk whose power is cut at every step.

    Attributes:
        cuts: how often the power was cut.
        states: every state that a cut may leave, once, with the number of the first such cut.
    """

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.cuts = root, 0
        self.states: list[tuple[int, Tree]] = []
        self._seen: set[bytes] = set()
        self._random = random.Random(seed)
        self._held: list[int] = []
        """Descriptors of all that is safe, so that no inode is given to another file."""
        self._lock = threading.RLock()
        self._cache: dict[tuple[int, int, int], bytes] = {}
        self._safe: tuple[dict[int, Listing], dict[int, bytes]] = self._look()
        for path in (root, *root.rglob("*")):
            self._held.append(os.open(path, os.O_RDONLY))

    @contextmanager
    def record(self) -> Iterator[None]:
        """Watch what this process does inside a `with` block."""
        watching = True

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
            if watching and (writes or event in CHANGES):
                self.cut()

        def recorded(descriptor: int) -> None:
            with self._lock:
                self.cut()
                self._keep(descriptor)  # this disk keeps what it is told to; the real one need not

        sys.addaudithook(hook)  # which cannot be taken off again
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", recorded)
                yield
        finally:
            watching = False
            self.cut()
            for descriptor in self._held:
                os.close(descriptor)

    def cut(self) -> None:
        """Note what may be left if the power is cut now.

        There is only what was synchronised; or all that was written; or, of each file and each folder, one of them,
        or half of the file, as chance has it.
        """
        with self._lock:
            self.cuts += 1
            now = self._look()
            chances: tuple[Callable[[], str], ...] = (
                lambda: "safe",
                lambda: "now",
                lambda: self._random.choice(("safe", "now", "half")),
            )
            for chance in chances:
                tree = self._tree(self.root.stat().st_ino, now, chance)
                digest = hashlib.sha256(repr(tree).encode()).digest()
                if digest not in self._seen:
                    self._seen.add(digest)
                    assert isinstance(tree, dict)
                    self.states.append((self.cuts, tree))

    def _tree(
        self, inode: int, now: tuple[dict[int, Listing], dict[int, bytes]], chance: Callable[[], str]
    ) -> bytes | Tree:
        choice = chance()
        if inode in now[0] or inode in self._safe[0]:
            listings = (self._safe[0], now[0]) if choice == "safe" else (now[0], self._safe[0])
            found = listings[0].get(inode) or ({} if choice == "safe" else listings[1].get(inode, {}))
            return {name: self._tree(inner, now, chance) for name, inner in sorted(found.items())}
        safe = self._safe[1].get(inode, b"")
        data = safe if choice == "safe" else now[1].get(inode, safe)
        return data[: len(data) // 2] if choice == "half" and data != safe else data

    def _look(self) -> tuple[dict[int, Listing], dict[int, bytes]]:
        """Return what the program sees: the listing of each folder and the bytes of each file, by inode."""
        folders: dict[int, Listing] = {}
        files: dict[int, bytes] = {}
        for folder, _, _ in os.walk(self.root):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                folders[Path(folder).stat().st_ino] = listing = {e.name: e.inode() for e in entries}
                for name, inode in listing.items():
                    with suppress(FileNotFoundError, IsADirectoryError):
                        files[inode] = self._read(Path(folder, name))
        return folders, files

    def _read(self, path: Path) -> bytes:
        found = path.stat()
        version = found.st_ino, found.st_mtime_ns, found.st_size
        if version not in self._cache:
            self._cache[version] = path.read_bytes()
        return self._cache[version]

    def _keep(self, descriptor: int) -> None:
        """Note that what was synchronised is safe."""
        inode = os.fstat(descriptor).st_ino
        folders, files = self._look()
        if inode in folders:
            self._safe[0][inode] = folders[inode]
            with os.scandir(descriptor) as entries:
                self._held += [os.open(entry.name, os.O_RDONLY, dir_fd=descriptor) for entry in entries]
        elif inode in files:
            self._safe[1][inode] = files[inode]
        else:
            return
        self._held.append(os.dup(descriptor))


def lay_out(tree: Tree, folder: Path) -> None:
    """Make the files and folders of a tree in `folder`, which is made too."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            lay_out(content, folder / name)
