"""The Triton kernels are compiled, without a GPU, and may take no more of one than the table says that they do."""

from __future__ import annotations

import pytest

from tests.machine import need

need("linux")  # Triton has no build for other systems

from actstats_kernels.gpu import compat  # noqa: E402
from tests.kernels import resources  # noqa: E402

pytestmark = pytest.mark.skipif(
    compat.VERSION < (3, 3), reason="Triton 3.2 describes what it compiles otherwise"
)

TABLE, KEPT = resources.kept()
QUICK = [b for b in KEPT if b.target == "sm_90" and b.dtype == "bf16" and b.height in (7, 28, 56, 112)]
REST = [b for b in KEPT if b not in QUICK]


def name(build: resources.Build) -> str:
    return f"{build.target}-{build.dtype}-{build.kernel}-{build.height}x{build.width}"


def check(build: resources.Build, folder, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    reason = resources.worse(build, resources.compiled(build), KEPT[build], TABLE["triton"])
    assert reason is None, reason


@pytest.mark.slow
@pytest.mark.parametrize("build", QUICK, ids=name)
def test_a_kernel_takes_no_more_than_the_table_says(build, tmp_path, monkeypatch):
    check(build, tmp_path, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("build", REST, ids=name)
def test_any_other_kernel_takes_no_more_than_the_table_says(build, tmp_path, monkeypatch):
    check(build, tmp_path, monkeypatch)


def test_no_kernel_for_moments_and_histogram_spills():
    assert not [
        name(build) for build, usage in KEPT.items() if build.kernel == "accumulate" and usage.spilled
    ]


@pytest.mark.parametrize(("target", "most"), [("sm_80", 163 * 1024), ("sm_90", 227 * 1024)])
def test_shared_memory_suffices(target, most):
    assert max(usage.shared for build, usage in KEPT.items() if build.target == target) <= most


@pytest.mark.parametrize("target", resources.TARGETS)
@pytest.mark.parametrize("dtype", resources.DTYPES)
def test_the_table_has_every_kernel_of_the_networks(target, dtype):
    expected = list(resources.builds(TABLE["networks"], target, dtype))
    assert [b for b in KEPT if (b.target, b.dtype) == (target, dtype)] == expected


@pytest.mark.slow
def test_the_layers_of_a_network_are_those_of_the_table(monkeypatch):
    monkeypatch.setattr(resources, "NETWORKS", ("alexnet",))
    assert resources.layers() == {"alexnet": TABLE["networks"]["alexnet"]}


@pytest.mark.slow
@pytest.mark.parametrize("target", resources.TARGETS)
def test_the_kernel_for_pairs_spills_nothing(target, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert not resources.compiled(resources.Build(target, "bf16", "compare", 28, 28, 96)).spilled
