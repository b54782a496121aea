"""The studies of the embedded pair run, end to end, on a few photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import actstats
from actstats.models.sources import demo_file
from tests.data.images import encoded, write_folder, write_tar

pytestmark = pytest.mark.once

STUDIES = Path(__file__).parents[2] / "docs" / "studies"


def run(script: str, *arguments: object) -> str:
    """What a script of the studies prints."""
    command = [sys.executable, str(STUDIES / script), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A tar of a split with crops on whose category both networks agree, at most three of each."""
    pair = [actstats.load_model("googlenet", "demo", robust=robust) for robust in (False, True)]
    crops = actstats.open_source("demo", limit=256)
    # The other split has all categories, so that their numbers are the networks'.
    classes = pair[0].identity["classes"]
    files = {f"made/train/{category}/0.png": encoded(crops.image(0)) for category in classes}
    for index in range(0, len(crops), 3):
        image = crops.image(index).resize((64, 64))
        with torch.inference_mode():
            said = {int(loaded.model(loaded.preprocessing(image)[None]).argmax()) for loaded in pair}
        category = classes[min(said)]
        if len(said) == 1 and sum(f"val/{category}/" in name for name in files) < 3:
            files[f"made/val/{category}/{index}.png"] = encoded(image)
    assert len({name.split("/")[2] for name in files if "/val/" in name}) > 1
    return write_tar(tmp_path_factory.mktemp("photographs") / "made.tar", files)


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """A folder with another network of R: the same function, its first filters in other units."""
    folder = tmp_path_factory.mktemp("seed1")
    with safe_open(demo_file("r"), "pt") as opened:
        notes, names = opened.metadata(), list(opened.keys())
        weights = {name: opened.get_tensor(name) for name in names}
    for name, factor in (("conv.weight", 4), ("bn.running_mean", 4), ("bn.running_var", 16)):
        weights[f"conv1.{name}"] = weights[f"conv1.{name}"] * factor
    recipe = json.dumps({**json.loads(notes["training"]), "seed": 1})
    save_file(weights, folder / "googlenet-r.safetensors", {**notes, "training": recipe})
    return folder


def test_the_study_writes_all_its_tables_and_figures(photographs, further, tmp_path):
    names = ["cat/cat1-dog1.png", "dog/dog1-car2.png", "car/car3-bear1.png", "bear/bear1-bear2.png"]
    image = encoded(Image.effect_noise((64, 64), 60).convert("RGB"))
    stimuli = write_folder(tmp_path / "stimuli", dict.fromkeys(names, image))
    into = tmp_path / "out"
    command = (
        *("study_pair.py", "--data", photographs, "--stimuli", stimuli, "--seeds", further, "--random", 2),
        *("--work", tmp_path / "work", "--into", into),
    )
    run(*command)
    assert sorted(path.name for path in into.iterdir()) == [
        *(
            "pair-kernels.png",
            "pair-layers.png",
            "pair-probes.png",
            "pair.json",
            "pair.tables",
            "probes.tables",
        )
    ]
    layers, probes = ((into / f"{name}.tables").read_text() for name in ("pair", "probes"))
    # A table of each invariant measure, and one of the noise that is blocked.
    assert layers.count("| inception5b | ") == 8
    assert [line.split(" | ")[0] for line in layers.splitlines()[2:7]] == [
        *("| network", "| ---", "| S0", "| R0", "| R1")
    ]
    assert "1 network of S and 2 of R: too few for verdicts" in layers
    assert "| R0 | 3 |" in probes  # the fourth has no conflict
    assert "| scramble:2 | " in probes
    # Three layers of each network are ablated.
    assert [
        probes.count(f"| conv{layer} | {name} | ") for layer in (1, 2, 3) for name in ("S0", "R0", "R1")
    ] == [1] * 9
    figures = json.loads((into / "pair.json").read_text())
    for line in figures["findings"]:
        for layer in line["by_layer"]:
            assert layer["medians_r"][0] == pytest.approx(layer["medians_r"][1], rel=2e-2, abs=2e-3), layer


def test_the_pair_is_measured_by_one_command(photographs, tmp_path):
    run("evaluate_pair.py", "--data", photographs, "--every", 4, "--out", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    for network in "SR":
        clean, near, far = figures[network]["accuracy"].values()
        assert clean == 1 >= near >= far


def test_the_tables_of_the_page_are_those_of_its_figures(monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    from pair_tables import tables

    for name, text in tables(json.loads((STUDIES / "pair.json").read_text())).items():
        assert (STUDIES / name).read_text() == text, "run python docs/studies/pair_tables.py"


def test_verdicts_take_three_networks_of_each_kind(monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    from pair_tables import tables

    figures = json.loads((STUDIES / "pair.json").read_text())
    networks = {kind: [of for of in figures["networks"] if of["kind"] == kind] for kind in "SR"}
    enough = min(map(len, networks.values())) >= 3
    assert all(line["scope"].startswith("over") == enough for line in figures["findings"] if line["by_layer"])
    assert ("too few for verdicts" in tables(figures)["pair.tables"]) != enough
    assert len({of["sha256"] for of in figures["networks"]}) == len(figures["networks"])


def test_a_number_per_network_is_compared_by_welch_from_three_networks_a_side_on(monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    from pair_tables import compared

    values = {"S0": 1.0, "S1": 2.0, "S2": 3.0, "R0": 11.0, "R1": 15.0, "R2": 19.0}
    figures = {"networks": [{"name": name, "kind": name[0]} for name in values]}
    # The variances of both means are 1/3 and 16/3, so t is 13 / sqrt(17/3), with (17/3)^2 / ((1/3)^2/2 + (16/3)^2/2)
    # = 2.2491 degrees of freedom; its 97.5 % quantile is 3.8769, and p is 0.0245.
    assert compared(figures, values, 1) == (
        *("1.0 / 2.0 / 3.0", "11.0 / 15.0 / 19.0", "**+13.0 (+3.8 to +22.2)**", "0.025"),
    )
    figures["networks"] = [of for of in figures["networks"] if of["name"] != "S2"]
    assert compared(figures, values, 1)[2:] == ("+13.5", "none")


def test_concepts_are_read_off_the_pixels(monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    from pair_photographs import colours, edges, textures

    red = np.zeros((16, 16, 3), np.uint8)
    red[:, 8:] = 250, 20, 20
    assert np.unique(colours(Image.fromarray(red))[:, 8:]).tolist() == [1]
    assert np.unique(colours(Image.fromarray(red))[:, :8]).tolist() == [0]
    step = np.zeros((16, 16), np.uint8)
    step[:, 8:] = 255
    for turned, number in ((step, 1), (step.T, 3)):
        found = edges(Image.fromarray(turned).convert("RGB"))
        assert np.unique(found).tolist() == [0, number]
    flat = Image.new("RGB", (16, 16), "grey")
    checks = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert np.unique(textures(flat)).tolist() == [1]
    assert np.unique(textures(checks)).tolist() == [3]


def test_training_goes_on_from_its_state_to_the_same_weights(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(STUDIES)
    from train_pair import Images, Recipe, fit

    pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    images = Images(pixels.contiguous(memory_format=torch.channels_last), torch.arange(8) % 2, ["a", "b"])
    recipe = Recipe(1.0, cycles=((2, 0.01),), settled=1, batch_size=4, growth=((0, 48, 1), (1, 64, 2)))
    fit(tmp_path / "once", recipe, images, images)

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> float:
        raise StoppedError

    import train_pair

    whole = train_pair.one_epoch
    monkeypatch.setattr(train_pair, "one_epoch", lambda *given: stop() if given[-1] == 1 else whole(*given))
    with pytest.raises(StoppedError):
        fit(tmp_path / "twice", recipe, images, images)
    monkeypatch.setattr(train_pair, "one_epoch", whole)
    fit(tmp_path / "twice", recipe, images, images)
    assert len((tmp_path / "twice.jsonl").read_text().splitlines()) == 2
    models = [
        actstats.load_model("googlenet", tmp_path / f"{name}.safetensors") for name in ("once", "twice")
    ]
    first, second = (loaded.model.state_dict() for loaded in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert models[0].identity["num_classes"] == 2
