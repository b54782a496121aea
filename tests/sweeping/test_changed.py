"""Clean and changed images in one pass: the stores of separate sweeps, and what happened to each map besides."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from click.testing import CliRunner
from PIL import Image
from torch import nn

import actstats
from actstats import ActstatsError, Preprocessing, plan, sweep, sweep_together
from actstats.analysis import map_changes
from actstats.distort import parse
from actstats.distort.steps import Place
from actstats.store.manifest import Manifest
from actstats.sweeping.repairing import _of_clean_images
from actstats_cli.main import main
from tests.conftest import SmallNet, files_of

SMALL = Preprocessing.imagenet(size=32, resize=36)
SIZES = {"preprocessing": SMALL, "batch_size": 4, "partition_size": 6, "device": "cpu"}
PAIRED = ("map_change", "map_correlation")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["actstats.sweeping.run", "tests.conftest"])


class Pooled(nn.Module):
    """Maps with several positions, some of them constant, and 1 x 1 maps, in one network of 6 and 4 units."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.wide = nn.Conv2d(3, 6, 5, stride=3)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.narrow = nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            self.wide.weight[2] = 0  # a unit that says the same everywhere
            self.narrow.weight[1] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.pool(self.wide(x).relu())).flatten(1)


def pooled() -> tuple[nn.Module, Preprocessing]:
    return Pooled(), SMALL


def small_net() -> tuple[nn.Module, Preprocessing]:
    return SmallNet(), SMALL


def by_hand(network: nn.Module, layers: list[str], folder: Path, spec: str, amp: str = "off"):
    """Both statistics with plain hooks, one image at a time in f64, f64 [2, image, unit]."""
    taken: dict[str, torch.Tensor] = {}
    network.eval()

    def keep(name):
        return lambda _, __, output: taken.__setitem__(name, output.detach().double())

    for name in layers:
        network.get_submodule(name).register_forward_hook(keep(name))
    chain = parse(spec)
    rows = []
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        pixels = SMALL.pixels(image)
        changed = chain.image(pixels, Place(index, str(path.relative_to(folder)), SMALL, image.size))
        maps = []
        for given in (pixels.astype(np.float32) / 255, changed):
            tensor = torch.from_numpy(given).permute(2, 0, 1)[None]
            tensor = (tensor - torch.tensor(SMALL.mean)[:, None, None]) / torch.tensor(SMALL.std)[
                :, None, None
            ]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
                network(tensor)
            maps.append({name: values[0].flatten(1).numpy() for name, values in taken.items()})
        row = []
        for name in layers:
            for a, b in zip(maps[0][name], maps[1][name], strict=True):
                constant = np.ptp(a) == 0 or np.ptp(b) == 0
                row.append((np.mean((b - a) ** 2), np.nan if constant else np.corrcoef(a, b)[0, 1]))
        rows.append(row)
    return np.array(rows).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("factory", "layers"), [(small_net, ["first", "second"]), (pooled, ["wide", "narrow"])]
)
def test_what_changed_equals_plain_hooks_through_the_command(photographs, tmp_path, factory, layers):
    stores = {"noise:0.1": tmp_path / "noise.zarr", "scramble:4": tmp_path / "scramble.zarr"}
    command = [
        *("sweep", "--arch", f"{__name__}:{factory.__name__}", "--data", str(photographs), "--device", "cpu"),
        *("--batch-size", "4", "--partition-size", "6", "--layers", ",".join(layers), "--json"),
        *("--out", str(tmp_path / "clean.zarr")),
        *(word for spec, store in stores.items() for word in ("--changed", f"{spec}={store}")),
    ]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.output
    assert [Path(record["store"]).name for record in json.loads(ran.stdout)["sweeps"]] == [
        *("clean.zarr", "noise.zarr", "scramble.zarr")
    ]
    clean = xarray.open_zarr(tmp_path / "clean.zarr")
    assert not {*PAIRED} & {*clean.data_vars}
    assert "paired_with" not in clean.attrs
    for spec, store in stores.items():
        changed = xarray.open_zarr(store)
        expected = by_hand(factory()[0], layers, photographs, spec)
        for name, values in zip(PAIRED, expected, strict=True):
            assert changed[name].dtype == "float32"
            np.testing.assert_allclose(changed[name].values, values, rtol=1e-5, atol=1e-5, err_msg=name)
        assert len(changed.attrs["paired_with"]) == 64
    if factory is pooled:
        assert changed["map_correlation"].isnull().all("image").values.nonzero()[0].tolist() == [
            2,
            6,
            7,
            8,
            9,
        ]
        assert (changed["map_change"].values[:, [2, 7]] == 0).all()
        assert (changed["map_change"].values[:, [6, 8, 9]] > 0).any()


def test_what_changed_under_autocast_equals_plain_hooks(photographs, tmp_path):
    given = {**SIZES, "amp": "bf16", "layers": ["wide", "narrow"]}
    sweep(Pooled(), photographs, tmp_path / "clean.zarr", changed={"noise:0.1": tmp_path / "n.zarr"}, **given)
    changed = xarray.open_zarr(tmp_path / "n.zarr")
    expected = by_hand(Pooled(), ["wide", "narrow"], photographs, "noise:0.1", "bf16")
    for name, values in zip(PAIRED, expected, strict=True):
        # bf16 has 8 bits, and a batch of another size may round another way.
        np.testing.assert_allclose(changed[name].values, values, rtol=0.05, atol=1e-3, err_msg=name)


def test_all_other_variables_are_those_of_separate_sweeps(damaged, tmp_path):
    for name, distort in (("clean", []), ("n", ["noise:0.1"]), ("a", ["noise:0.1", "pgd:l2:1:2"])):
        sweep(SmallNet(), damaged, tmp_path / f"{name}-alone.zarr", distort=distort, **SIZES)
    stores = {"noise:0.1": tmp_path / "n.zarr", "noise:0.1+pgd:l2:1:2": tmp_path / "a.zarr"}
    summary = sweep(SmallNet(), damaged, tmp_path / "clean.zarr", changed=stores, **SIZES)
    assert [list(one.failures) for one in (summary, *summary.changed.values())] == [["cat/02.png"]] * 3
    assert summary.changed["noise:0.1+pgd:l2:1:2"].attack.images == 13
    for name in ("clean", "n", "a"):
        alone, paired = (files_of(tmp_path / f"{n}.zarr") for n in (f"{name}-alone", name))
        more = {object_ for object_ in paired if object_.startswith(PAIRED)}
        assert {k: v for k, v in paired.items() if k not in more} == alone
        assert bool(more) == (name != "clean")
    missing = xarray.open_zarr(tmp_path / "n.zarr")
    row = missing["path"].values.tolist().index("cat/02.png")
    assert missing["map_change"].isnull().all("unit").values.nonzero()[0].tolist() == [row]


def test_changes_follow_the_distortions_of_the_first_sweep_and_show_progress(photographs, tmp_path, capsys):
    given = {**SIZES, "limit": 4, "distort": "greyscale"}
    sweep(
        SmallNet(), photographs, tmp_path / "g.zarr", changed={"noise:0.1": tmp_path / "gn.zarr"}, progress=True,
        **given,
    )  # fmt: skip
    assert "4/4" in capsys.readouterr().err
    sweep(SmallNet(), photographs, tmp_path / "alone.zarr", **{**given, "distort": "greyscale+noise:0.1"})
    alone, paired = (actstats.open_dataset(tmp_path / f"{name}.zarr") for name in ("alone", "gn"))
    assert list(alone.attrs["distort"]) == list(paired.attrs["distort"]) == ["greyscale", "noise:0.1"]
    assert (alone["mean"] == paired["mean"]).all()
    grey = {
        name: map_changes(actstats.open_dataset(tmp_path / "g.zarr"), paired)[name].values for name in PAIRED
    }
    np.testing.assert_allclose(grey["map_change"], paired["map_change"].mean("image"), rtol=1e-6)


def test_only_partitions_that_a_store_lacks_are_computed(photographs, tmp_path):
    def planned(folder):
        clean = plan(SmallNet(), photographs, folder / "clean.zarr", **SIZES)
        return [clean, *(clean.changed(s, folder / f"{s[:5]}.zarr") for s in ("noise:0.1", "scramble:4"))]

    whole = planned(tmp_path / "whole")
    sweep_together(whole)
    parts = planned(tmp_path / "parts")
    parts[0].run(part=(1, 3))
    sweep_together(parts[:2], part=(0, 3))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*/c.*")}
    summaries = sweep_together(parts)
    assert [summary.partitions for summary in summaries] == [1, 2, 3]
    assert {path for path, time_ in before.items() if path.stat().st_mtime_ns != time_} == set()
    for one, other in zip(whole, parts, strict=True):
        assert files_of(one.store) == files_of(other.store)
    assert [summary.partitions for summary in sweep_together(parts)] == [0, 0, 0]


def sweep_slowly(images: Path, folder: Path) -> None:
    """Seven partitions of two images."""
    sweep(
        SmallNet(), images, folder / "clean.zarr", preprocessing=SMALL, device="cpu", batch_size=1,
        partition_size=2, workers=1, changed={"noise:0.1": folder / "n.zarr", "greyscale": folder / "g.zarr"},
        on_progress=lambda _: time.sleep(0.03),
    )  # fmt: skip


def test_a_killed_pass_ends_as_one_that_was_not(photographs, tmp_path):
    begun = time.perf_counter()
    sweep_slowly(photographs, tmp_path / "whole")
    duration = time.perf_counter() - begun
    for share in (0.3, 0.5, 0.7):
        process = PROCESSES.Process(target=sweep_slowly, args=(photographs, tmp_path / "killed"))
        process.start()
        process.join(share * duration)
        process.kill()
        process.join()
    sweep_slowly(photographs, tmp_path / "killed")
    for name in ("clean", "n", "g"):
        assert files_of(tmp_path / "killed" / f"{name}.zarr") == files_of(tmp_path / "whole" / f"{name}.zarr")


@pytest.fixture
def masks(photographs, tmp_path):
    """A mask for each photograph, one of them damaged."""
    folder = tmp_path / "masks"
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:30, 10:30] = 255
    for path in photographs.rglob("*.png"):
        target = folder / path.relative_to(photographs)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            Image.fromarray(mask).resize(image.size).save(target)
    (folder / "dog" / "05.png").write_bytes(b"damaged")
    return folder


def test_an_image_whose_mask_is_damaged_is_unreadable_in_all_stores_also_later(photographs, masks, tmp_path):
    def status(name):
        return xarray.open_zarr(tmp_path / name)["status"].values

    clean = plan(SmallNet(), photographs, tmp_path / "clean.zarr", **SIZES)
    silhouette = clean.changed(f"silhouette:{masks}", tmp_path / "s.zarr")
    noisy = clean.changed("noise:0.1", tmp_path / "n.zarr")
    summaries = sweep_together([clean, silhouette])
    assert [list(summary.failures) for summary in summaries] == [["dog/05.png"]] * 2
    sweep_together([clean, noisy])
    row = xarray.open_zarr(tmp_path / "clean.zarr")["path"].values.tolist().index("dog/05.png")
    for name in ("clean.zarr", "s.zarr", "n.zarr"):
        assert status(name).nonzero()[0].tolist() == [row]
    for name in ("s.zarr", "n.zarr"):
        assert np.isnan(xarray.open_zarr(tmp_path / name)["map_change"].values[row]).all()


def test_two_networks_each_have_changed_images_of_their_own(photographs, tmp_path):
    command = [
        *("sweep", "--arch", f"{__name__}:small_net", "--data", str(photographs), "--device", "cpu"),
        *("--limit", "4", "--batch-size", "4", "--out", str(tmp_path / "s.zarr")),
        *("--changed", f"noise:0.1={tmp_path}/sn.zarr"),
        "--also",
        f"--arch {__name__}:pooled --out {tmp_path}/p.zarr --changed noise:0.1={tmp_path}/pn.zarr",
        "--json",
    ]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.output
    arch = {n: xarray.open_zarr(tmp_path / f"{n}.zarr").attrs["arch"] for n in ("s", "sn", "p", "pn")}
    assert arch["s"] == arch["sn"] != arch["p"] == arch["pn"]
    for name, network in (("sn", SmallNet()), ("pn", Pooled())):
        swept = actstats.open_dataset(tmp_path / f"{name}.zarr")
        layers = list(dict.fromkeys(swept["layer"].values))
        expected = by_hand(network, layers, photographs, "noise:0.1")[0, :4]
        np.testing.assert_allclose(swept["map_change"].values, expected, rtol=1e-4, atol=1e-7)


class Tired(SmallNet):
    """A network that fails on its second batch of more than two images."""

    passes = 0

    def forward(self, x):
        if len(x) > 2:  # two images are those of the probe
            self.passes += 1
        if self.passes == 3:
            raise RuntimeError("tired")
        return super().forward(x)


def test_without_the_clean_maps_the_changed_sweep_stops(photographs, tmp_path):
    clean = plan(Tired(), photographs, tmp_path / "clean.zarr", **SIZES)
    error, other = sweep_together(
        [clean, clean.changed("greyscale", tmp_path / "g.zarr")], return_errors=True
    )
    assert "tired" in str(error)
    assert "g.zarr was not completed, because the sweep of the clean images failed" in str(other)
    plan(SmallNet(), photographs, tmp_path / "other.zarr", top_k=3, **SIZES).run()
    clean = plan(SmallNet(), photographs, tmp_path / "other.zarr", **SIZES)
    error, other = sweep_together(
        [clean, clean.changed("greyscale", tmp_path / "h.zarr")], return_errors=True
    )
    assert "holds another sweep" in str(error)
    assert "h.zarr was not completed" in str(other)


def test_what_cannot_be_compared_is_refused(photographs, tmp_path):
    clean = plan(SmallNet(), photographs, tmp_path / "clean.zarr", **SIZES)
    changed = clean.changed("noise:0.1", tmp_path / "n.zarr")
    for run in (changed.run, lambda: sweep_together([changed])):
        with pytest.raises(ActstatsError, match=r"n.zarr is compared with a sweep of the clean images"):
            run()
    with pytest.raises(ActstatsError, match="is itself of changed images"):
        changed.changed("greyscale", tmp_path / "g.zarr")
    with pytest.raises(ActstatsError, match="not changed; name a distortion"):
        clean.changed([], tmp_path / "g.zarr")
    with pytest.raises(ActstatsError, match="unknown distortion 'nois'"):
        clean.changed("nois", tmp_path / "g.zarr")
    sums = plan(SmallNet(), photographs, tmp_path / "sums.zarr", per_image=False, **SIZES)
    with pytest.raises(ActstatsError, match="per_image=True"):
        sums.changed("noise:0.1", tmp_path / "g.zarr")
    sweep(SmallNet(), photographs, tmp_path / "n.zarr", distort="noise:0.1", **SIZES)
    with pytest.raises(ActstatsError, match=r"holds another sweep.*paired_with is absent in the store"):
        sweep_together([clean, changed])


def test_a_store_of_compared_images_is_not_that_of_a_separate_sweep(photographs, tmp_path):
    """Nor if it is complete, and the network need not be loaded to compare the settings."""
    options = {"weights": "none", "layers": ["features.0"], "limit": 2, "workers": 0, "device": "cpu"}
    sweep(
        "squeezenet1_1",
        photographs,
        tmp_path / "c.zarr",
        changed={"noise:0.1": tmp_path / "n.zarr"},
        **options,
    )
    with pytest.raises(ActstatsError, match="holds another sweep"):
        sweep("squeezenet1_1", photographs, tmp_path / "n.zarr", distort="noise:0.1", **options)


def test_the_kept_maps_are_in_the_estimate(photographs, tmp_path):
    clean = plan(SmallNet(), photographs, tmp_path / "clean.zarr", **SIZES)
    alone = plan(SmallNet(), photographs, tmp_path / "n.zarr", distort="noise:0.1", **SIZES)
    changed = clean.changed("noise:0.1", tmp_path / "n.zarr")
    values = sum(layer.units * layer.height * layer.width for layer in clean.manifest.layers)
    more = changed.estimate().memory - alone.estimate().memory
    assert 4 * 4 * values <= more <= 4 * 4 * values + 3 * 2 * 4 * 6 * 16  # and the two variables' buffers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--changed", "noise:0.1"], "'noise:0.1' is not SPECS=STORE"),
        (["--changed", "=x.zarr"], "is not SPECS=STORE"),
    ],
)
def test_a_mistaken_option_is_one_line(photographs, words, message):
    ran = CliRunner().invoke(main, ["sweep", "--arch", "alexnet", "--data", str(photographs), *words])
    assert ran.exit_code == 2
    assert message in ran.stderr


def test_a_damaged_partition_of_one_store_is_repaired(photographs, tmp_path):
    stores = {"noise:0.1": tmp_path / "n.zarr"}
    sweep(SmallNet(), photographs, tmp_path / "clean.zarr", changed=stores, **SIZES)
    before = {name: files_of(tmp_path / name) for name in ("clean.zarr", "n.zarr")}
    (damaged,) = (tmp_path / "n.zarr" / "map_change").glob("c.1.0")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    summary = sweep(SmallNet(), photographs, tmp_path / "clean.zarr", changed=stores, repair=True, **SIZES)
    assert (summary.partitions, summary.changed["noise:0.1"].partitions) == (0, 1)
    assert {name: files_of(tmp_path / name) for name in before} == before


@pytest.mark.parametrize("before", [(), ("greyscale",)])
def test_a_store_of_changed_images_is_repaired_by_itself(photographs, tmp_path, before):
    path = tmp_path / "n.zarr"
    options = {"weights": "none", "layers": ["features.0"], "distort": before, **SIZES}
    sweep("squeezenet1_1", photographs, tmp_path / "clean.zarr", changed={"noise:0.1": path}, **options)
    stored = files_of(tmp_path)
    chunk = path / "map_change" / "c.1.0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    (path / "completed" / "c.0").unlink()  # as after an interruption
    summary = actstats.repair(path)
    assert (summary.partitions, summary.complete) == (2, True)
    assert files_of(tmp_path) == stored
    changes = map_changes(*map(actstats.open_dataset, (tmp_path / "clean.zarr", path)))
    assert (changes["map_change"] > 0).all()


def test_the_clean_images_of_a_changed_store_must_be_known(photographs, tmp_path):
    sweep(
        SmallNet(), photographs, tmp_path / "clean.zarr", changed={"noise:0.1": tmp_path / "n.zarr"}, **SIZES
    )
    record = actstats.open_sweep(tmp_path / "n.zarr").manifest.json
    assert "paired_with" not in _of_clean_images(Manifest.from_json(record))
    with pytest.raises(
        ActstatsError, match="sweep of the clean images is not known; sweep both again in one pass"
    ):
        _of_clean_images(Manifest.from_json({**record, "paired_with": "0" * 64}))


def test_parts_in_a_bucket_add_up_to_the_stores_of_one_pass(photographs, tmp_path):
    whole = {"noise:0.1": tmp_path / "n.zarr"}
    sweep(SmallNet(), photographs, tmp_path / "clean.zarr", changed=whole, **SIZES)
    clean = "memory://changed-in-parts/clean.zarr"
    for part in ((1, 2), (0, 2)):
        summary = sweep(
            SmallNet(), photographs, clean, changed={"noise:0.1": "memory://changed-in-parts/n.zarr"},
            part=part, **SIZES,
        )  # fmt: skip
    assert summary.complete
    assert summary.changed["noise:0.1"].complete
    for name in ("clean", "n"):
        found = actstats.open_dataset(f"memory://changed-in-parts/{name}.zarr")
        xarray.testing.assert_identical(
            found.drop_vars("provenance").drop_attrs(),
            actstats.open_dataset(tmp_path / f"{name}.zarr").drop_vars("provenance").drop_attrs(),
        )


def test_the_record_of_the_clean_sweep_is_checked(photographs, tmp_path):
    clean = plan(SmallNet(), photographs, tmp_path / "c.zarr", **SIZES)
    record = json.loads(json.dumps(clean.changed("greyscale", tmp_path / "g.zarr").manifest.json))
    assert Manifest.from_json(record).paired_with == record["paired_with"]
    for wrong, message in (
        ({"paired_with": "x" * 64}, "a SHA-256"),
        ({"paired_with": 3}, "paired_with"),
        ({"outputs": ["mean", "map_change"]}, "outputs lack map_correlation"),
    ):
        with pytest.raises(ActstatsError, match=message):
            Manifest.from_json(record | wrong)
