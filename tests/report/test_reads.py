"""How often a command opens each store and reads each of its arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import actstats
from actstats.analysis import class_means, quantiles, selectivity, spectrum
from actstats.report.contents import SHOWN
from actstats.store import merging
from actstats.store.files import RegularFiles
from actstats.store.place import Folder
from actstats_cli.main import main
from tests.analysis.made import make_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three stores of the same 32 images in four partitions, each of two layers, 166 units."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    shapes = {"conv1": (32, 96, 6, 6), "conv2": (32, 70, 4, 4)}
    paths = [folder / f"{name}.zarr" for name in "srt"]
    for seed, path in enumerate(paths):
        maps = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        weights = {"source": "module", "sha256": f"{seed}"}
        make_store(path, maps, np.arange(32) % 4, partition_size=8, weights=weights)
    return paths


class Reads:
    """Counts what is read of each store."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()
        """How often the root object of each store was read."""
        self.bytes: Counter[tuple[str, str]] = Counter()
        """Bytes read of the objects of each array, by the name of the store."""

    def times(self, stores: list[Path]) -> dict[str, float]:
        """Bytes read of each array, as a multiple of what is stored, of the store where it is greatest."""
        found: dict[str, float] = {}
        for (name, array), read in self.bytes.items():
            (store,) = (path for path in stores if path.name == name)
            stored = sum(path.stat().st_size for path in (store / array).glob("c.*"))
            found[array] = max(found.get(array, 0), read / stored)
        return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counts, get, root = Reads(), RegularFiles.get, Folder.root

    async def counted(self, key, prototype=None, byte_range=None):
        data = await get(self, key, prototype, byte_range)
        counts.bytes[self.root.name, key.partition("/")[0]] += 0 if data is None else len(data)
        return data

    def opened(self, most):
        counts.opened[self.location.name] += 1
        return root(self, most)

    monkeypatch.setattr(RegularFiles, "get", counted)
    monkeypatch.setattr(Folder, "root", opened)
    return counts


def cli(*words: object) -> None:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output


COMMANDS: dict[str, Callable[[list[Path], Path], object]] = {
    "compare": lambda stores, _: cli("compare", *stores[:2]),
    "compare three": lambda stores, _: cli("compare", *stores),
    "report": lambda stores, folder: cli("compare", *stores[:2], "--report", folder / "r.html"),
    "match": lambda stores, folder: cli("analyze", "match", *stores[:2]),
    "merge": lambda stores, _: actstats.merge(actstats.open_dataset(stores[0])).compute(),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_store_is_opened_and_each_array_is_read_once(stores, tmp_path, reads, command):
    COMMANDS[command](stores, tmp_path)
    assert max(reads.opened.values()) == 1
    assert {name: times for name, times in reads.times(stores).items() if times > 1.2} == {}


@pytest.mark.parametrize("stop_after", [None, 2])
def test_analyses_of_variables_in_memory_are_the_same_to_the_last_digit(tmp_path, reads, stop_after):
    maps = {"conv": np.random.default_rng(3).normal(size=(30, 7, 5, 5)).astype(np.float32)}
    dataset = make_store(
        tmp_path / "s.zarr",
        maps,
        np.arange(30) % 4,
        partition_size=8,
        unreadable=[1, 9],
        stop_after=stop_after,
    )
    (held,) = merging.hold([dataset], [*SHOWN, "missing"])
    before = dict(reads.bytes)
    found = [analysis(held).compute() for analysis in (selectivity, spectrum, quantiles, class_means)]
    assert reads.bytes == before
    for analysis, there in zip((selectivity, spectrum, quantiles, class_means), found, strict=True):
        xr.testing.assert_equal(analysis(dataset).compute(), there)


def test_more_than_the_limit_stays_on_the_disk(stores, monkeypatch):
    monkeypatch.setattr(merging, "HELD", 1000)
    dataset = actstats.open_dataset(stores[0])
    assert merging.hold([dataset, dataset], SHOWN) == [dataset, dataset]
    assert all(dataset[name].chunks for name in SHOWN)
