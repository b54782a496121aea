"""Two small sweeps of one network with other weights, over images with names that try to be markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import actstats
from actstats.report import write_report
from actstats.report.contents import unpack
from tests.conftest import photograph

HOSTILE = (
    "<b>cat/<img src=x onerror=alert(1)>.png",
    "<b>cat/'\"><svg onload=alert(2)>.png",
    "<b>cat/2.png",
    "<script>alert(3)</script>.png",  # in a folder, as a path holds it
    "<script>alert(3)</${alert(4)}{{ 7 * 7 }}.png",
    "<script>alert(3)</&lt;i&gt;ä\u2028.png",
    "]]>--!>/6.png",
    "]]>--!>/javascript:alert(5).png",
    "]]>--!>/8.png",
)
NAMES = ("standard <i>S</i>", "robust \"R\" & 'co'")
LAYERS = ("features.1", "features.3.squeeze_activation", "features.3.expand3x3_activation")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine photographs."""
    folder = tmp_path_factory.mktemp("hostile")
    for index, name in enumerate(HOSTILE):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        photograph(index, (90, 80)).save(path)
    return folder


def swept(images: Path, store: Path, seed: int, **options: object) -> Path:
    """The store of a sweep of a few layers of SqueezeNet with small images."""
    usual = {"weights": "none", "layers": LAYERS, "partition_size": 4, "batch_size": 4, "device": "cpu"}
    usual |= {"preprocessing": actstats.Preprocessing.imagenet(size=40, resize=48)}
    actstats.sweep("squeezenet1_1", images, store, seed=seed, **usual | options)  # type: ignore[arg-type]
    return store


def parts_of(page: Path) -> dict[str, tuple[dict, dict]]:
    """Every part of a report in one file, unpacked."""
    found = re.findall(
        r'<script type="application/octet-stream" id="part-([\w-]+)">([^<]*)</script>', page.read_text()
    )
    return {name: unpack(text) for name, text in found}


@pytest.fixture(scope="session")
def stores(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """S and R."""
    folder = tmp_path_factory.mktemp("stores")
    return [swept(hostile, folder / f"{name}.zarr", seed) for seed, name in enumerate(("s", "r"))]


@pytest.fixture(scope="session")
def page(stores: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of both in one file."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(stores, path, names=NAMES, pair="index").folder is None
    return path


@pytest.fixture(scope="session")
def page_with_folder(stores: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of both as a page and a folder, with a name that an address has to quote."""
    path = tmp_path_factory.mktemp("folder") / "the #1 report?.html"
    assert write_report(stores, path, names=NAMES, largest_page=0, pair="index").folder is not None
    return path
