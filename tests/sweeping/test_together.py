"""Several networks in one pass: the stores are those of sweeps of their own, and one failure stops no other."""

from __future__ import annotations

import json

import pytest
import torch
import xarray
from click.testing import CliRunner

from actstats import ActstatsError, Metric, Output, Preprocessing, plan, sweep_together
from actstats.data import open_source
from actstats_cli.main import main
from tests.conftest import SmallNet, files_of

SMALL, WIDE = Preprocessing.imagenet(size=32, resize=36), Preprocessing.imagenet(size=48, resize=48)
SIZES = {"batch_size": 4, "partition_size": 6}


class Counted:
    """A source that counts how often each image is decoded."""

    def __init__(self, folder):
        self._source = open_source(folder)
        self.decoded = []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def image(self, index):
        self.decoded.append(index)
        return self._source.image(index)


class Fragile(SmallNet):
    """A network that fails on its second batch of more than two."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        if len(x) > 2:  # two images are those of the probe
            self.passes += 1
        if self.passes == 2:
            raise RuntimeError("tired")
        return super().forward(x)


def planned(folder, images):
    """Plans that differ in input size, in distortion and in normalisation."""
    return [
        plan(SmallNet(), images, folder / "small.zarr", preprocessing=SMALL, **SIZES),
        plan(SmallNet(), images, folder / "wide.zarr", preprocessing=WIDE, **SIZES),
        plan(SmallNet(), images, folder / "noisy.zarr", preprocessing=SMALL, distort="noise:0.1", **SIZES),
        plan(
            SmallNet(),
            images,
            folder / "shifted.zarr",
            preprocessing=Preprocessing(36, 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            **SIZES,
        ),
    ]


def test_each_store_is_that_of_a_sweep_of_its_own(damaged, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for one in planned(alone, damaged):
        one.run()
    seen, started = [], []
    summaries = sweep_together(
        planned(together, damaged), on_progress=seen.append, on_start=started.append, workers=3
    )
    for name in ("small", "wide", "noisy", "shifted"):
        assert files_of(together / f"{name}.zarr") == files_of(alone / f"{name}.zarr")
    assert [summary.complete for summary in summaries] == [True] * 4
    assert [list(summary.failures) for summary in summaries] == [["cat/02.png"]] * 4
    assert [start.store.name for start in started] == [
        f"{n}.zarr" for n in ("small", "wide", "noisy", "shifted")
    ]
    assert [progress.done for progress in seen] == [4, 6, 10, 12, 14]
    assert seen[-1].total == 14
    assert seen[-1].failed == 1


def test_each_image_is_decoded_once(photographs, tmp_path):
    source = Counted(photographs)
    plans = planned(tmp_path, source)
    source.decoded.clear()
    sweep_together(plans)
    assert sorted(source.decoded) == list(range(14))


def test_what_is_complete_already_is_not_computed_again(photographs, tmp_path):
    first, second, *_ = planned(tmp_path, photographs)
    first.run(part=(1, 3))
    second.run()
    summaries = sweep_together([first, second])
    assert [summary.partitions for summary in summaries] == [2, 0]
    assert all(summary.complete for summary in summaries)
    again = planned(tmp_path / "again", photographs)[0]
    again.run()
    assert files_of(again.store) == files_of(first.store)


class Broken(Metric):
    outputs = (Output("broken"),)

    def update(self, activation, state):
        raise ValueError("no number today")


def test_where_one_fails_the_others_finish(photographs, tmp_path):
    def plans(folder):
        common = {"preprocessing": SMALL, **SIZES}
        return [
            plan(Fragile(), photographs, folder / "a.zarr", **common),
            plan(SmallNet(), photographs, folder / "b.zarr", **common),
            plan(SmallNet(), photographs, folder / "c.zarr", custom=Broken, **common),
        ]

    a, b, c = sweep_together(plans(tmp_path), return_errors=True)
    assert "the network fails on a batch of 4 images: RuntimeError: tired" in str(a)
    assert b.complete
    assert "Broken failed in layer first: ValueError: no number today" in str(c)
    kept = xarray.open_zarr(tmp_path / "a.zarr").completed.values.tolist()
    assert kept == [True, False, False]
    with pytest.raises(ActstatsError, match="tired"):
        sweep_together(plans(tmp_path / "raised"))
    assert xarray.open_zarr(tmp_path / "raised" / "b.zarr").completed.all()


def test_a_store_of_another_sweep_stops_only_its_own(photographs, tmp_path):
    first, second, *_ = planned(tmp_path, photographs)
    first.run()
    other = plan(SmallNet(), photographs, first.store, preprocessing=SMALL, top_k=3, **SIZES)
    error, summary = sweep_together([other, second], return_errors=True)
    assert "holds another sweep: top_k" in str(error)
    assert summary.complete


def test_plans_that_do_not_go_together_are_refused(photographs, tmp_path):
    first, *_ = planned(tmp_path, photographs)
    common = {"preprocessing": SMALL, **SIZES}
    cases = {
        "need the same `batch_size=`, got 4 and 3": {**common, "batch_size": 3},
        "need the same images": {**common, "limit": 5},
    }
    for message, options in cases.items():
        with pytest.raises(ActstatsError, match=message):
            sweep_together([first, plan(SmallNet(), photographs, tmp_path / "x.zarr", **options)])
    with pytest.raises(ActstatsError, match=r"have the same store .*small.zarr"):
        sweep_together([first, first])
    (tmp_path / "link").symlink_to(tmp_path)
    same = plan(SmallNet(), photographs, tmp_path / "link" / "small.zarr", **common)
    with pytest.raises(ActstatsError, match=r"have the same store .*small.zarr"):
        sweep_together([first, same])
    remote = [plan(SmallNet(), photographs, url, **common) for url in ("memory://x.zarr", "memory://x.zarr/")]
    with pytest.raises(ActstatsError, match="have the same store"):
        sweep_together(remote)
    assert not first.store.exists()
    with pytest.raises(ActstatsError, match="no plan"):
        sweep_together([])


@pytest.mark.compiler
@pytest.mark.slow
def test_compiled_and_eager_networks_share_a_pass(photographs, tmp_path):
    torch.compiler.reset()
    plans = [
        plan(
            SmallNet(),
            photographs,
            tmp_path / f"{name}.zarr",
            preprocessing=SMALL,
            compile=name == "c",
            **SIZES,
        )
        for name in "ec"
    ]
    notes = []
    sweep_together(plans, on_note=notes.append)
    eager, compiled = (xarray.open_zarr(one.store) for one in plans)
    xarray.testing.assert_allclose(eager["mean"], compiled["mean"], rtol=1e-4)
    assert len(notes) == 1


def test_the_command_sweeps_several_networks(photographs, tmp_path):
    common = [
        "sweep",
        "--arch",
        "squeezenet1_1",
        "--weights",
        "none",
        "--data",
        str(photographs),
        "--limit",
        "3",
    ]
    runner = CliRunner()
    out = ["--layers", "features.0", "--metrics", "mean", "--out", str(tmp_path / "a.zarr")]
    also = f"--weights none --seed 1 --top-k 2 --out {tmp_path / 'b.zarr'}"
    result = runner.invoke(main, [*common, *out, "--also", also, "--json"])
    assert result.exit_code == 0, result.output
    stores = [record["store"] for record in json.loads(result.stdout)["sweeps"]]
    assert stores == [str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")]
    a, b = (xarray.open_zarr(store).attrs for store in stores)
    assert (a["weights"]["seed"], b["weights"]["seed"]) == (0, 1)
    assert (a["top_k"], b["top_k"]) == (16, 2)
    assert a["metrics"] == b["metrics"] == ["mean"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size 3", "--batch-size applies to all networks"),
        ("--json", "--json applies to all networks"),
        ("--wieghts x", "No such option"),
        ("'", "quotation"),
    ],
)
def test_what_also_cannot_mean_is_said(photographs, words, message):
    result = CliRunner().invoke(
        main, ["sweep", "--arch", "alexnet", "--data", str(photographs), "--also", words]
    )
    assert result.exit_code == 2
    assert message in result.stderr
