"""`actstats analyze shape-bias`, `cues`, `dissect` and `ablate` from the command line."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from actstats.data.demo import DemoSource
from actstats.probing.demo_stimuli import DemoStimuli
from actstats_cli.main import main
from tests.probing.probed import COLOURS, stimulus, write_stimuli

SHAPE, COLOUR = "tests.probing.probed:shape_net", "tests.probing.probed:colour_net"


def actstats(command: str, code: int = 0) -> str:
    """What a command prints: on stdout if it ends well, else its line on stderr."""
    result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def rows(command: str) -> list[dict[str, object]]:
    return json.loads(actstats(f"{command} --json"))["rows"]


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stimuli(tmp_path_factory.mktemp("stimuli"))


@pytest.mark.parametrize("name", ["shape-bias", "cues", "dissect", "ablate"])
def test_help_has_examples(name):
    assert f"actstats analyze {name}" in actstats(f"analyze {name} --help")


def test_networks_beside_recorded_decisions(stimuli, tmp_path):
    saved = tmp_path / "said.csv"
    shown = f"--stimuli {stimuli} --network {SHAPE} --network {COLOUR} --classes bear,bird,dog --device cpu"
    found = rows(f"analyze shape-bias {shown} --save-decisions {saved}")
    bias = {row["observer"]: row["shape_bias"] for row in found if row["category"] == "all"}
    assert bias == {SHAPE: 1.0, COLOUR: 0.0}
    # What was written is read again as what was said.
    assert rows(f"analyze shape-bias --decisions {saved}") == found
    copy = tmp_path / "human.csv"
    copy.write_text(saved.read_text().replace(SHAPE, "subject-01").replace(COLOUR, "subject-02"))
    text = actstats(f"analyze shape-bias --decisions {saved} {copy} --by category")
    assert len(text.splitlines()) == 1 + 5 * 4
    assert text.splitlines()[1].split()[:6] == ["humans", "all", "2", "12", "6", "6"]


def test_decisions_are_saved_only_where_a_file_can_be_written(stimuli, tmp_path):
    command = f"analyze shape-bias --network {SHAPE} --stimuli {stimuli} --save-decisions"
    assert "there is no folder" in actstats(f"{command} {tmp_path}/nowhere/d.csv", 2)
    assert "should end in .csv" in actstats(f"{command} {tmp_path}/d.txt", 2)


def test_categories_are_compared_in_lower_case(stimuli, tmp_path):
    for name in COLOURS:
        shutil.copytree(stimuli / name, tmp_path / "teach" / name.title())
        for path in (tmp_path / "teach" / name.title()).iterdir():
            if path.stem != f"{name}1-{name}2":
                path.unlink()
    command = f"analyze shape-bias --network {SHAPE} --stimuli {stimuli} --learn-from"
    assert rows(f"{command} {tmp_path}/teach")[0]["trials"] == 6
    shutil.move(tmp_path / "teach", tmp_path / "other")
    for at, name in enumerate(COLOURS):
        shutil.move(tmp_path / "other" / name.title(), tmp_path / "other" / f"Class{at}")
    assert "no stimulus" in (said := actstats(f"{command} {tmp_path}/other", 1))
    assert "it knows class0, class1, class2, and the stimuli show bear, bird, dog" in said


def test_cues_of_two_networks(stimuli, tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        stimulus(name, colour).save(tmp_path / name / "1.png")
    versions = f"--distort greyscale --images conflict={stimuli}"
    found = rows(f"analyze cues {SHAPE} {COLOUR} --data {tmp_path} {versions} --device cpu")
    accuracy = {(row["version"], row["network"]): row["accuracy"] for row in found}
    assert accuracy == pytest.approx({
        ("clean", SHAPE): 1, ("clean", COLOUR): 1, ("greyscale", SHAPE): 1, ("greyscale", COLOUR): 1 / 3,
        ("conflict", SHAPE): 1, ("conflict", COLOUR): 1 / 3,
    })  # fmt: skip


def test_they_run_on_what_ships():
    pair = "googlenet=demo googlenet=demo+robust"
    found = rows(f"analyze cues {pair} --distort scramble:8 --limit 32 --name S --name R")
    accuracy = {(row["version"], row["network"]): row["accuracy"] for row in found}
    assert {row["images"] for row in found} == {16}
    # Eight photographs: far above chance, and less so without shape.
    assert min(accuracy["clean", "S"], accuracy["clean", "R"]) > 0.5
    assert accuracy["scramble:8", "S"] < accuracy["clean", "S"]
    [intact, without] = rows("analyze ablate googlenet=demo --unit conv1/0,conv1/1 --limit 16")
    assert (intact["ablation"], intact["units"], without["units"], without["images"]) == ("intact", 0, 2, 8)
    stimuli = DemoStimuli(limit=9)
    assert stimuli.paths[4] == "astronaut/astronaut1-camera1.png"
    assert len(DemoStimuli()) == 7 * 6 * 4
    found = rows("analyze ablate googlenet=demo --unit conv1/0 --stimuli demo --limit 9")
    assert [row["trials"] for row in found] == [9, 9]


def test_a_stimulus_has_the_phases_of_one_crop_and_the_amplitudes_of_another():
    stimuli, crops = DemoStimuli(), DemoSource()
    index = stimuli.paths.index("coffee/coffee2-brick2.png")
    # The second crop of each photograph, as the path says.
    shape, texture = (
        crops.image([i for i, label in enumerate(crops.labels) if crops.classes[label] == name][1])
        for name in ("coffee", "brick")
    )
    shape, texture, mixed = (
        np.fft.fft2(np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), float).mean(2))
        for image in (shape, texture, stimuli.image(index))
    )
    # Clipping to 8 bits changes both a little.
    away = np.ones((224, 224), bool)
    away[0, 0] = False
    alike = np.cos(np.angle(mixed) - np.angle(shape))[away]
    assert np.average(alike, weights=np.abs(mixed)[away]) > 0.9
    assert np.corrcoef(np.log(np.abs(mixed[away])), np.log(np.abs(texture[away])))[0, 1] > 0.7


def test_ablation_of_units_sets_and_ranks(stimuli, tmp_path):
    classes = "--classes bear,bird,dog --device cpu"
    found = rows(f"analyze ablate {SHAPE} --stimuli {stimuli} --layers relu {classes}")
    assert [row["shape"] for row in found] == [6, 6, 6, 6, 0]
    text = actstats(f"analyze ablate {SHAPE} --stimuli {stimuli} --layers relu {classes}")
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["intact", "relu/3"]
    found = rows(
        f"analyze ablate {SHAPE} --data {stimuli} --unit relu/3 --unit relu/0,relu/1 --keep {classes}"
    )
    assert [(row["ablation"], row["correct"]) for row in found] == [
        ("intact", 9), ("all but relu/3", 9), ("all but relu/0+relu/1", 3),
    ]  # fmt: skip
    table = tmp_path / "units.csv"
    pd.DataFrame({
        "layer": "relu", "channel": range(4), "roughness": [1, 2, 3, 9.5], "detects": [1, 1, 0, 1],
        "concept_category": ["color", "color", "color", "object"],
    }).to_csv(table, index=False)  # fmt: skip
    found = rows(
        f"analyze ablate {SHAPE} --data {stimuli} --rank {table}:roughness --share 0.5 --concepts {table}"
    )
    assert [(row["ablation"], row["correct"]) for row in found] == [
        ("intact", 9), ("relu:color", 9), ("relu:object", 3),
        ("relu:lowest 0.5 roughness", 9), ("relu:highest 0.5 roughness", 3),
    ]  # fmt: skip


def test_dissection_of_a_swept_network(tmp_path):
    for index, (name, colour) in enumerate(COLOURS.items()):
        for folder in ("images", "masks/object"):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        stimulus(name, colour).save(tmp_path / "set" / "images" / f"{name}.png")
        mask = np.zeros((30, 30), dtype=np.uint8)
        mask[:, 10 * index : 10 * index + 10] = index + 1
        Image.fromarray(mask).save(tmp_path / "set" / "masks" / "object" / f"{name}.png")
    names = "".join(f"object,{index + 1},{name}\n" for index, name in enumerate(COLOURS))
    (tmp_path / "set" / "labels.csv").write_text("category,number,name\n" + names)
    store = tmp_path / "s.zarr"
    actstats(
        f"sweep --arch {SHAPE} --weights none --data {tmp_path / 'set'} --layers relu --metrics histogram "
        f"--no-per-image --device cpu --out {store}"
    )
    found = rows(f"analyze dissect {store} --by unit --top 0.15 --iou 0.5 --device cpu --arch {SHAPE}")
    # Each colour is in one image, where its bright third is; brightness is in all, so it has a third of each.
    assert [row["concept_name"] for row in found[:3]] == list(COLOURS)
    assert [row["detects"] for row in found] == [True, True, True, False]
    table = rows(
        f"analyze dissect {store} --top 0.15 --iou 0.5 --device cpu --layers relu --categories object "
        f"--arch {SHAPE}"
    )
    assert [(row["category"], row["detectors"], row["concepts"]) for row in table] == [
        ("all", 3, 3),
        ("object", 3, 3),
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("shape-bias", "give --decisions FILE..., or --network NETWORK"),
        ("shape-bias --stimuli {stimuli}", "--stimuli requires at least one --network"),
        (
            "shape-bias --stimuli {stimuli} --network squeezenet",
            "unknown architecture 'squeezenet'; did you mean",
        ),
        ("cues {net} {net} --data {stimuli}", "a network is given twice"),
        ("cues {net} --data {stimuli} --images x", "--images must be NAME=IMAGES"),
        (
            "cues {net} --data {stimuli} --distort scrambel:4",
            "unknown distortion 'scrambel:4'; did you mean scramble",
        ),
        (
            "ablate {net} --layers relu --data demo --stimuli demo",
            "give either --data, to measure accuracy, or --stimuli",
        ),
        ("ablate {net} --data {stimuli}", "give --layers, whose units are ablated one by one, or sets"),
        ("ablate {net} --data {stimuli} --unit relu", "a unit is named LAYER/CHANNEL"),
        ("ablate {net} --data {stimuli} --rank x", "--rank must be FILE:COLUMN"),
        ("ablate {net} --data {stimuli} --rank x.csv:y", "no such table of units: x.csv"),
        ("dissect {stimuli}", "is not a store of actstats"),
    ],
)
def test_what_cannot_be_done_is_one_line(stimuli, command, message):
    said = actstats("analyze " + command.format(stimuli=stimuli, net=SHAPE), code=1)
    assert said.startswith("actstats: error: ")
    assert message in said
    assert said.count("\n") == 1
