"""What a report holds is what its stores hold, and no name in it is markup."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import nn

import actstats as actstats_package
from actstats import merge
from actstats.analysis import class_means, compare_units, selectivity, smoothness, spectrum
from actstats.errors import ActstatsError
from actstats.probing.maps import activation_maps
from actstats.report import compare, write_report
from actstats.report.contact_sheet import save_contact_sheet
from actstats.report.contents import class_names, pack, shortened, unpack
from actstats.report.findings import common_measures, derive_findings
from actstats.store.sweep import open_sweep
from actstats_cli.compare import compare as compare_command
from actstats_kernels.bins import BIN_ZERO
from tests.cli.conftest import actstats, output_of
from tests.conftest import photograph
from tests.report.conftest import HOSTILE, LAYERS, NAMES, parts_of, swept


@pytest.fixture(scope="module")
def parts(page):
    return parts_of(page)


def test_every_measure_of_every_unit_is_what_the_analyses_give(parts, stores):
    content, arrays = parts["overview"]
    assert [layer["name"] for layer in content["layers"]] == list(LAYERS)
    for number, store in enumerate(stores):
        dataset = xr.open_zarr(store)
        for key, found in (
            ("roughness", smoothness(dataset)),
            ("total_variation", smoothness(dataset)),
            ("high_share", spectrum(dataset)),
            ("top_classes", selectivity(dataset)),
            ("selectivity", selectivity(dataset)),
        ):
            assert key in {measure["key"] for measure in content["measures"]}
            np.testing.assert_allclose(arrays[f"{key}:{number}"], found[key].values, rtol=2**-10)


def test_top_images_of_every_unit_are_those_of_the_store(parts, stores):
    content, _ = parts["overview"]
    paths = content["pictures"]["paths"]
    for number, store in enumerate(stores):
        dataset = xr.open_zarr(store)
        merged = merge(dataset).isel(rank=slice(0, 8)).load()
        for layer, name in enumerate(LAYERS):
            units = merged.isel(unit=merged["layer"].values == name)
            _, arrays = parts[f"layer-{layer}"]
            shown = np.array([*paths, ""])[arrays[f"picture:{number}"]].reshape(-1, 8)
            wanted = dataset["path"].values[units["top_image"].transpose("unit", "rank").values]
            np.testing.assert_array_equal(shown, wanted)
            positions = units["top_position"].transpose("unit", "rank").values.ravel()
            np.testing.assert_array_equal(arrays[f"position:{number}"], positions)


def test_spectra_histograms_and_classes_of_a_unit_are_those_of_the_store(parts, stores):
    dataset = xr.open_zarr(stores[1])
    merged, means = merge(dataset).load(), class_means(dataset).compute()
    content, arrays = parts["layer-1"]
    first = int(np.flatnonzero(merged["layer"].values == LAYERS[1])[0])
    for channel in (0, 5):
        unit = merged.isel(unit=first + channel)
        counts = unit["histogram"].values[:-1]
        shares = arrays["histogram:1"].reshape(-1, 131)[channel]
        assert shares[65] == pytest.approx(
            counts[BIN_ZERO - 1 : BIN_ZERO + 2].sum() / counts.sum(), rel=2**-8
        )
        assert shares.sum() == pytest.approx(1, rel=2**-8)
        coefficient = arrays["spectrum:1"].reshape(-1, 18)[channel, 0]  # DC has one
        assert coefficient == pytest.approx(float(unit["power_spectrum"][0]) / len(HOSTILE), rel=2**-10)
        label = arrays["class:1"].reshape(-1, content["classes"][1])[channel]
        value = arrays["class-mean:1"].reshape(-1, content["classes"][1])[channel]
        expected = means.isel(unit=first + channel).sel(label=label).values
        np.testing.assert_allclose(value, expected, rtol=2**-10)
        assert (np.diff(value) <= 0).all()


def test_receptive_fields_are_shares_of_the_input(parts):
    layers = parts["overview"][0]["layers"]
    for layer in layers:
        assert len(layer["field"]["top"]) == layer["height"]
        assert len(layer["field"]["right"]) == layer["width"]
        assert layer["field"]["bottom"][-1] <= 1
    sizes = [
        layer["field"]["bottom"][layer["height"] // 2] - layer["field"]["top"][layer["height"] // 2]
        for layer in layers
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(3 / 40, abs=1e-3)  # a 3 x 3 kernel on 40 pixels


class Tags(HTMLParser):
    """The elements of a page, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_names_are_text_and_nothing_points_to_a_network(page, page_with_folder):
    for path in (page, page_with_folder):
        text = path.read_text()
        tags = Tags(text)
        for name in NAMES:
            assert name in tags.text
        assert not {"b", "i", "img", "iframe"} & {
            tag for tag, attributes in tags.elements if not attributes.get("aria-hidden")
        }
        assert not [
            a for _, attributes in tags.elements for a in attributes if a.startswith("on") or a == "style"
        ]
        assert "alert(" not in text
        assert set(re.findall(r"\w+://[\w.]+", text)) == {"http://www.w3.org"}  # the namespace of SVG
        policy = next(
            a["content"] for tag, a in tags.elements if a.get("http-equiv") == "Content-Security-Policy"
        )
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        links = [a["href"] for _, a in tags.elements if a.get("href")]
        assert all(link.startswith("#") for link in links)


def test_a_folder_holds_the_same_parts(parts, page_with_folder):
    folder = page_with_folder.with_name(f"{page_with_folder.stem}_files")
    loaded = {}
    for file in folder.glob("*.js"):
        name, text = json.loads(
            f"[{file.read_text().removeprefix('actstatsPart(').removesuffix(');' + chr(10))}]"
        )
        loaded[name] = unpack(text)
    assert set(loaded) == set(parts) - {"pictures"}
    for name, (content, arrays) in loaded.items():
        assert content == parts[name][0]
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, parts[name][1][key])
    ends = parts["pictures"][1]["ends"]
    images = parts["pictures"][1]["bytes"].tobytes()
    for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        assert (folder / "pictures" / f"{index}.jpg").read_bytes() == images[start:end]


def test_the_same_stores_give_the_same_bytes_and_replace_what_was_there(stores, page_with_folder):
    folder = page_with_folder.with_name(f"{page_with_folder.stem}_files")
    files = sorted(path for path in (page_with_folder, *folder.rglob("*")) if path.is_file())
    before = {path: path.read_bytes() for path in files}
    (folder / "pictures" / "999.jpg").write_bytes(b"of an earlier report")
    write_report(stores, page_with_folder, names=NAMES, largest_page=0, pair="index")
    assert {path: path.read_bytes() for path in files} == before
    assert not (folder / "pictures" / "999.jpg").exists()
    assert sorted(p.name for p in page_with_folder.parent.iterdir()) == sorted(
        [page_with_folder.name, folder.name]
    )


def test_one_store_has_measures_and_no_claims(stores, tmp_path):
    report = write_report(stores[:1], tmp_path / "one.html")
    assert {finding.comparisons for finding in report.findings} == {()}
    assert {len(finding.values) for finding in report.findings} == {1}
    assert [store["name"] for store in parts_of(report.page)["overview"][0]["stores"]] == ["s"]


def test_images_that_are_gone_leave_a_note_and_placeholders(stores, hostile, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(hostile, moved)
    store = swept(moved, tmp_path / "s.zarr", 0)
    moved.rename(tmp_path / "elsewhere")
    report = write_report([store], tmp_path / "gone.html")
    assert any("`data=`" in note for note in report.notes)
    assert not any(parts_of(report.page)["overview"][0]["pictures"]["kept"])
    found = write_report([store], tmp_path / "found.html", data=str(tmp_path / "elsewhere"))
    assert not found.notes
    assert all(parts_of(found.page)["overview"][0]["pictures"]["kept"])


def units_with(shifts: list[float], seed: int) -> xr.Dataset:
    """The measure `roughness` of 40 units in each of some layers, normal around `shifts`."""
    values = np.random.default_rng(seed).normal(np.repeat(shifts, 40), 1.0)
    layers = np.repeat([f"layer{number}" for number in range(len(shifts))], 40)
    coordinates = {"layer": ("unit", layers), "channel": ("unit", np.tile(np.arange(40), len(shifts)))}
    return xr.Dataset({"roughness": ("unit", values)}, coords=coordinates)


@pytest.mark.parametrize(
    ("shifts", "verdict", "layers"),
    [
        ([-3, -3, -3, 0, 3], "agrees", (3, 1, 1)),
        ([3, 3, 3, 0, -3], "differs", (1, 1, 3)),
        ([-3, -3, 3, 3, 0], "open", (2, 1, 2)),
        ([-3, -3, 0, 0, 0], "negligible", (2, 3, 0)),
    ],
)
def test_a_finding_counts_the_layers_that_lie_beyond_chance(shifts, verdict, layers):
    measured = [units_with([0.0] * len(shifts), 0), units_with(shifts, 1)]
    first, *_ = derive_findings(measured, common_measures(measured), ["no weights", "no weights"])
    (against,) = first.comparisons
    assert first.claim == "R's activation maps are smoother"
    assert (against.network, against.verdict, against.layers) == ("R", verdict, layers)


def test_a_difference_that_is_certain_but_small_is_negligible():
    # 4,000 units make any interval narrow: every one leaves out 0, and no delta reaches a small effect.
    ranks = np.arange(4000.0)
    layers = {
        "layer": ("unit", np.repeat(["a", "b"], 2000)),
        "channel": ("unit", np.tile(np.arange(2000), 2)),
    }
    measured = [xr.Dataset({"centroid": ("unit", v)}, coords=layers) for v in (ranks, ranks - 110)]
    table = compare_units(*measured, resamples=100)
    assert (table["delta_high"] < 0).all()
    first, *_ = derive_findings(measured, common_measures(measured), ["no weights", "no weights"])
    (against,) = first.comparisons
    assert (against.verdict, against.words, against.layers) == (
        "negligible",
        "this pair: negligible",
        (0, 2, 0),
    )
    assert against.delta == pytest.approx(-0.107, abs=1e-3)
    assert against.difference == "delta -0.11; lower in 0 of 2 layers, higher in 0"


def test_a_report_of_the_demo_says_that_it_decides_nothing(stores, tmp_path):
    store = swept("demo", tmp_path / "demo.zarr", 0, limit=12)
    note = "These 12 images are crops of 8 photographs: enough to show what a report looks like, too few for"
    assert [line for line in compare([store]).notes if line.startswith(note)]
    assert not [line for line in compare(stores).notes if "photographs" in line]


def test_images_of_a_source_of_ones_own_are_shown(stores, hostile, tmp_path):
    class Mine:
        """As little as a source may have; its spec names nothing on the disk."""

        kind, spec, fingerprint = "mine", "my photographs", "12"

        def __init__(self):
            self.paths, self.classes = list(HOSTILE), ["cat", "dog"]
            self.labels = np.arange(len(HOSTILE)) % 2

        def __len__(self):
            return len(self.paths)

        def image(self, index):
            return photograph(index, (90, 80))

    store = swept(Mine(), tmp_path / "mine.zarr", 0)
    assert any(
        "Images are not shown" in note for note in write_report([store], tmp_path / "without.html").notes
    )
    report = write_report([store], tmp_path / "with.html", data=Mine())
    assert not report.notes
    assert all(parts_of(report.page)["overview"][0]["pictures"]["kept"])
    save_contact_sheet(open_sweep(store), f"{LAYERS[0]}/0", tmp_path / "sheet.png", data=Mine())
    other = write_report(stores[:1], tmp_path / "other.html", data=Mine())
    assert any("other names or sizes than those of the sweep" in note for note in other.notes)


def test_the_class_a_unit_prefers_is_the_one_with_its_greatest_mean(parts, stores):
    classes = parts["overview"][0]["classes"]
    for number, store in enumerate(stores):
        means = class_means(xr.open_zarr(store)).transpose("unit", "label").compute()
        expected = np.array(classes)[means["label"].values[np.nanargmax(means.values, 1)]]
        preferred = parts["overview"][1][f"preferred:{number}"]
        constant = (means == means[:, 0]).all("label").values
        np.testing.assert_array_equal(np.array([*classes, ""])[preferred][~constant], expected[~constant])
        assert (preferred[constant] == -1).all()


def test_kernels_are_compared_in_the_first_layer_and_in_all():
    torch.manual_seed(0)
    standard, robust = (nn.Sequential(nn.Conv2d(3, 30, 5), nn.Conv2d(30, 30, 3)) for _ in "sr")
    ramp = torch.linspace(-1, 1, 5)
    with torch.no_grad():  # of the robust network the first kernels are smooth
        robust[0].weight[:] = ramp + 0.1 * robust[0].weight
    measured = [units_with([0.0], 0), units_with([0.0], 1)]
    _, first, all_layers, *_ = derive_findings(measured, common_measures(measured), [standard, robust])
    assert first.claim == "R's first kernels are smoother (0)"
    assert first.comparisons[0].verdict == "agrees"
    assert all_layers.comparisons[0].layers == (1, 1, 0)
    *_, missing = derive_findings(measured, common_measures(measured), [standard, "the weights are gone"])
    assert missing.comparisons[0].words == "not measured"
    assert "the weights are gone" in missing.comparisons[0].difference


def test_noisy_sweeps_bring_the_change_by_noise(hostile, stores, tmp_path):
    noisy = [swept(hostile, tmp_path / f"noisy{seed}.zarr", seed, distort=["noise:0.2"]) for seed in (0, 1)]
    compared = compare(stores, noisy=noisy)
    claims = {finding.claim for finding in compared.findings}
    assert "Noise adds less total variation to R's units" in claims
    assert "Noise changes R's maps less" not in claims
    unmeasured = (
        f"How much noise changes the maps is not measured for {', '.join(compared.names)}: sweep clean and"
    )
    assert sum(note.startswith(unmeasured) for note in compared.notes) == 1
    said = rf"`noisy=` for {compared.names[0]} is of a different network: .* in the same order$"
    with pytest.raises(ActstatsError, match=said):
        compare(stores, noisy=noisy[::-1])


def test_a_store_without_images_of_its_own_metrics_shows_what_it_has(hostile, tmp_path):
    store = swept(hostile, tmp_path / "few.zarr", 0, per_image=False, metrics=("histogram",))
    report = write_report([store], tmp_path / "few.html")
    assert [finding.claim for finding in report.findings] == ["sparsity"]
    assert any("total_variation" in note for note in report.notes)
    assert set(parts_of(report.page)["layer-0"][1]) == {"histogram:0"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("{s} {r} {s} --name a --name b", "give a name for each of the 3 stores, not 2"),
        ("{s} {r} --pair index --matches {s}/zarr.json", "--matches pairs units by match: omit it, or"),
        ("{s} {r} --matches {s}/zarr.json", "zarr.json holds no matches by unit: it lacks"),
        ("{s} nowhere.zarr", "no store at nowhere.zarr"),
        ("{s} {r} --report report.pdf", "give a name that ends in .html, not report.pdf"),
        ("{s} {r} --name one", "give a name for each of the 2 stores, not 1"),
        ("{s} {r} --name one --name one", "names of stores must be unique, got one, one"),
        ("{s} {r} --noisy {s}", "give a noisy sweep for each of the 2 stores, not 1"),
        ("{s} {other}", "the stores have different layers"),
        (
            "{s} {small} --report report.html",
            "layer features.1 has maps of 19 x 19 in the first store and 15 x 15",
        ),
        ("{s} --report {taken}/report.html --largest-page 0", "exists and is not a report's folder"),
        ("{s} --maps", "--maps is for the page: give --report too"),
        ("{s} --top 3", "--top is for the page: give --report too"),
        ("{s} --maps --report a.html --data gone", "no such folder or tar file: gone"),
        ("{s} --report a.html --largest-page nan", "'--largest-page': nan is not a size of 0 MB or more"),
        ("{s} --report a.html --largest-page -1", "'--largest-page': -1 is not a size of 0 MB or more"),
        ("{s} --report a.html --largest-page -inf", "'--largest-page': -inf is not a size of 0 MB or more"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(arguments, line, stores, hostile, tmp_path):
    other = (
        swept(hostile, tmp_path / "other.zarr", 0, layers=("features.1",)) if "{other}" in arguments else ""
    )
    size = actstats_package.Preprocessing.imagenet(size=32, resize=36)
    small = swept(hostile, tmp_path / "small.zarr", 0, preprocessing=size) if "{small}" in arguments else ""
    (tmp_path / "report_files").mkdir()
    given = {"s": stores[0], "r": stores[1], "other": other, "small": small, "taken": tmp_path}
    result = actstats("compare " + arguments.format(**given))
    usage = "--largest-page" in line
    assert result.exit_code == 1 + usage
    *_, said = result.stderr.splitlines()
    assert line in said
    assert usage or result.stderr == f"{said}\n"
    assert usage or said.startswith("actstats: error: ")


@pytest.mark.parametrize(("largest", "folder"), [("inf", False), ("0", True), ("1e300", False)])
def test_the_largest_page_may_be_any_size(largest, folder, stores, tmp_path):
    page = tmp_path / "report.html"
    found = json.loads(output_of(f"compare {stores[0]} --report {page} --largest-page {largest} --json"))
    assert bool(found["folder"]) is folder


@pytest.mark.parametrize("size", [float("nan"), -1])
def test_a_size_that_is_none_is_refused(size, stores, tmp_path):
    with pytest.raises(ActstatsError, match="the largest page must be a size of 0 or more, not"):
        write_report(stores, tmp_path / "report.html", largest_page=size)
    assert not list(tmp_path.iterdir())


def test_the_command_has_the_defaults_of_the_function():
    defaults = {option.name: option.default for option in compare_command.params}
    parameters = inspect.signature(write_report).parameters
    assert defaults["largest_page"] * 1e6 == parameters["largest_page"].default
    assert defaults["top"] == parameters["top"].default


def test_a_contact_sheet_does_not_wait_for_the_report():
    loaded = "import sys, actstats.report.contact_sheet; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    ).stdout
    assert not {"actstats.analysis", "actstats.report.findings", "jinja2"} & set(modules.split())


def test_the_command_prints_the_findings_and_where_the_page_is(stores, tmp_path):
    page = tmp_path / "new" / "report.html"
    text = output_of(f"compare {stores[0]} {stores[1]} --report {page} --top 3")
    assert text.splitlines()[0].split() == ["finding", "s", "r", "difference", "verdict"]
    assert "R's activation maps are smoother" in text
    assert f"wrote {page}, " in text
    found = json.loads(output_of(f"compare {stores[0]} --name one --json"))
    assert found["names"] == ["one"]
    assert {"claim", "values", "comparisons"} <= set(found["findings"][0])


def test_classes_of_two_sources_are_told_by_name():
    stores = [
        (np.array(labels), classes)
        for labels, classes in (([0, 1, -1], ["cat", "dog"]), ([0, 1, 1], ["ant", "cat"]), ([2, -1, 0], []))
    ]
    found = class_names(stores)
    assert found.names == ["cat", "dog", "ant", "class 0", "class 2"]
    named = [
        [found.names[n] if n >= 0 else None for n in table[labels]]
        for (labels, _), table in zip(stores, found.tables, strict=True)
    ]
    assert named == [["cat", "dog", None], ["ant", "cat", "cat"], ["class 2", None, "class 0"]]


def test_labels_may_be_any_numbers():
    labels = np.array([2**31 - 1, -5, 2**62, 3])
    found = class_names([(labels, [])])
    assert found.names == ["class 3", "class 2147483647", f"class {2**62}"]
    assert found.tables[0][labels].tolist() == [1, -1, 2, 0]


def test_a_part_comes_back_as_it_was():
    arrays = {
        "a": np.arange(5, dtype=np.int32),
        "b": np.array([[1.5, np.nan]], np.float32),
        "c": np.zeros(0, np.uint8),
    }
    content, found = unpack(pack({"name": "é </script>"}, arrays))
    assert content == {"name": "é </script>"}
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values.ravel())


def test_shortened_numbers_are_near_and_keep_what_is_not_finite():
    values = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.random.default_rng(1).integers(
        -30, 30, 1000
    )
    np.testing.assert_allclose(shortened(values, 10), values, rtol=2**-11)
    np.testing.assert_array_equal(
        shortened(np.array([np.inf, -np.inf, np.nan, 0])), [np.inf, -np.inf, np.nan, 0]
    )


@pytest.fixture(scope="module")
def noisy(hostile, tmp_path_factory):
    """A store of S over the images with noise."""
    return swept(hostile, tmp_path_factory.mktemp("noisy") / "s.zarr", 0, distort="noise:0.2")


def test_maps_are_those_of_the_sweep_with_its_distortions(noisy):
    sweep = open_sweep(noisy)
    unit = sweep.manifest.unit(f"{LAYERS[0]}/5")
    hits = sweep.top(unit)[::2]
    images = np.array([hit.image for hit in hits])
    found = activation_maps(sweep, sweep.images(), {unit.layer: (np.full_like(images, unit.channel), images)})
    for hit, values in zip(hits, found[unit.layer], strict=True):
        assert values.shape == (unit.height, unit.width)
        assert values.max() == pytest.approx(hit.value, rel=1e-4)
        assert values[hit.row, hit.column] == pytest.approx(hit.value, rel=1e-4)


def test_the_report_lays_the_maps_of_each_unit_over_its_top_images(stores, tmp_path, parts):
    said = []
    write_report(stores, tmp_path / "report.html", pair="index", maps=True, on_progress=said.append)
    assert [progress.done for progress in said] == [9, 9]
    for layer, name in enumerate(LAYERS):
        content, arrays = parts_of(tmp_path / "report.html")[f"layer-{layer}"]
        assert parts[f"layer-{layer}"][0]["maps"] == [None, None]
        for number, store in enumerate(stores):
            sweep = open_sweep(store)
            height, width = content["maps"][number]
            assert (height, width) == ((14, 14) if layer == 0 else (9, 9))
            pictures = arrays[f"picture:{number}"].reshape(-1, content["ranks"][number])
            laid = arrays[f"map:{number}"].reshape(*pictures.shape, height, width)
            for channel in (0, 7):
                hits = sweep.top(f"{name}/{channel}")[: pictures.shape[1]]
                images = np.array([hit.image for hit in hits])
                whole = activation_maps(
                    sweep, sweep.images(), {name: (np.full_like(images, channel), images)}
                )[name]
                averaged = nn.functional.adaptive_avg_pool2d(torch.from_numpy(whole), (height, width)).numpy()
                shares = 255 * averaged.clip(min=0) / max(averaged.max(), 1e-9)
                np.testing.assert_allclose(laid[channel, : len(hits)], shares, atol=0.51)
                assert laid[channel].max() == (255 if averaged.max() > 0 else 0)


def test_maps_on_a_contact_sheet(stores, tmp_path):
    unit = f"{LAYERS[0]}/5"
    save_contact_sheet(open_sweep(stores[0]), unit, tmp_path / "plain.png")
    save_contact_sheet(open_sweep(stores[0]), unit, tmp_path / "maps.png", maps=True)
    plain, laid = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("plain", "maps"))
    changed = (plain != laid).any(-1)
    assert 0.01 < changed.mean() < 0.9
    # Nothing turned greener: magenta was laid over it.
    assert (laid - plain)[changed][:, 1].max() <= 1
