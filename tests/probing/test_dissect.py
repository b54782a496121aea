"""Network dissection: against a plain float64 implementation on a made-up Broden, and by hand."""

from __future__ import annotations

import csv
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from actstats import ActstatsError, Loaded, Preprocessing, open_source, select_layers, sweep
from actstats.probing.concepts import Concepts, open_segmented
from actstats.probing.dissect import detectors, dissection, iou, labels_on_grid, overlaps, thresholds
from actstats.probing.forward import Passes
from tests.conftest import SmallNet, photograph

CPU = Passes(device="cpu", workers=0)

PLAIN = Preprocessing(resize=40, crop=32)
CATEGORIES = ("color", "object", "part", "scene")
NAMES = ("-", "red", "blue", "cat", "dog", "leg", "head", "street", "both")


def write_csv(file: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([header.split(","), *rows])


def save_mask(file: Path, numbers: np.ndarray) -> None:
    """As Broden codes them: R + 256 G."""
    channels = [numbers % 256, numbers // 256, np.zeros_like(numbers)]
    Image.fromarray(np.stack(channels, -1).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def broden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images; masks of half their size, two of parts which overlap; scenes; what is labelled varies."""
    root = tmp_path_factory.mktemp("broden")
    (root / "images" / "set").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for index in range(9):
        photograph(index, (48, 48)).save(root / "images" / "set" / f"{index}.png")
        cells = {}
        for name, values in (
            ("color", [0, 1, 2]),
            ("object", [0, 3, 4, 8]),
            ("part", [0, 5, 6]),
            ("part2", [0, 6, 8]),
        ):
            blocks = rng.choice(values, (6, 6)).repeat(4, 0).repeat(4, 1)
            cells[name] = f"set/{index}_{name}.png"
            save_mask(root / "images" / cells[name], blocks)
        rows.append((
            f"set/{index}.png", "train", 48, 48, 24, 24, cells["color"] if index % 2 else "",
            cells["object"] if index % 3 else "", f"{cells['part']};{cells['part2']}" if index else "5",
            "7;3" if index in (2, 3) else "",
        ))  # fmt: skip
    write_csv(root / "index.csv", f"image,split,ih,iw,sh,sw,{','.join(CATEGORIES)}", rows)
    write_csv(
        root / "category.csv", "name,first,last,count,frequency", [(name, 0, 0, 0, 0) for name in CATEGORIES]
    )
    write_csv(root / "label.csv", "number,name,category,frequency,coverage,syns",
              [(number, name, "", 1, 1.0, "") for number, name in enumerate(NAMES)])  # fmt: skip
    coverage = {
        "color": {1: 2, 2: 2},
        "object": {3: 2, 4: 2, 8: 1},
        "part": {5: 2, 6: 2, 8: 1.5},
        "scene": {7: 3, 3: 1},
    }
    for name, numbers in coverage.items():
        rows = [
            (code, number, NAMES[number], 1, float(numbers[number])) for code, number in enumerate(numbers)
        ]
        write_csv(root / f"c_{name}.csv", "code,number,name,frequency,coverage", rows)
    return root


CATEGORY_OF = {1: "color", 2: "color", 3: "object", 4: "object", 5: "part", 6: "part", 7: "scene", 8: "part"}
"""Of two categories the one that a concept covers most of: `cat` is an object, `both` a part."""


def plain_dissection(
    root: Path, outputs: list[np.ndarray], limits: np.ndarray, see: list[int | None]
) -> dict[tuple[int, int], float]:
    """IoU by (unit, concept) in float64, with sets of positions and nothing clever.

    `see` says which of a mask's rows (and columns) each row of the grid shows.
    """
    grid, units = len(see), len(limits)
    intersection, union = np.zeros((units, 9)), np.zeros((units, 9))
    with (root / "index.csv").open() as text:
        rows = list(csv.DictReader(text))
    for index, row in enumerate(rows):
        where: dict[int, set[tuple[int, int]]] = {}
        for name in CATEGORIES:
            for item in filter(None, row[name].split(";")):
                if item.isdigit():
                    mask = np.full((24, 24), int(item))
                else:
                    pixels = np.asarray(Image.open(root / "images" / item)).astype(int)
                    mask = pixels[..., 0] + 256 * pixels[..., 1]
                for i, a in enumerate(see):
                    for j, b in enumerate(see):
                        if a is not None and b is not None and mask[a, b]:
                            where.setdefault(int(mask[a, b]), set()).add((i, j))
        seen = {CATEGORY_OF[number] for number in where}
        unit = 0
        for maps in outputs:
            whole = F.interpolate(
                torch.from_numpy(maps[index : index + 1]).double(), (grid, grid), mode="bilinear"
            )
            for grown in whole[0].numpy():
                active = set(zip(*np.nonzero(grown > limits[unit]), strict=True))
                for number, category in CATEGORY_OF.items():
                    if category in seen:
                        labelled = where.get(number, set())
                        intersection[unit, number] += len(active & labelled)
                        union[unit, number] += len(active | labelled)
                unit += 1
    return {
        (u, n): intersection[u, n] / union[u, n] if union[u, n] else 0.0
        for u in range(units)
        for n in CATEGORY_OF
    }


def positions(length: int, resized: int, corner: int, crop: int, grid: int) -> list[int | None]:
    """Which position of a mask's side each of the grid's shows, in exact fractions."""
    found: list[int | None] = []
    for i in range(grid):
        at = (Fraction(2 * i + 1, 2 * grid) * crop + corner) / resized
        found.append(floor(at * length) if 0 <= at < 1 else None)
    return found


@pytest.mark.parametrize(
    "preprocessing", [PLAIN, Preprocessing(resize=48, crop=48)], ids=["cropped", "whole"]
)
@pytest.mark.parametrize("resolution", [24, 17])
def test_it_equals_a_plain_float64_implementation(broden, tmp_path, preprocessing, resolution):
    loaded = Loaded.of(SmallNet(), preprocessing)
    segmented = open_segmented(broden)
    sweep(
        loaded,
        broden,
        tmp_path / "store.zarr",
        metrics=["histogram"],
        per_image=False,
        batch_size=4,
        device="cpu",
    )
    limits = thresholds(xr.open_zarr(tmp_path / "store.zarr"), 0.05)
    layers = select_layers(loaded.model, torch.zeros(2, *preprocessing.shape), ["conv"])
    counts = overlaps(loaded, segmented, layers, limits, resolution=resolution, passes=Passes(4, "cpu", 2))

    outputs: dict[str, list[Tensor]] = {"first": [], "second": []}
    for name, kept in outputs.items():
        getattr(loaded.model, name).register_forward_hook(
            lambda _m, _a, out, kept=kept: kept.append(out.clone())
        )
    source = open_source(broden)
    images = [preprocessing(source.image(index)) for index in range(9)]
    with torch.inference_mode():
        for start in (0, 4, 8):
            batch = torch.stack(images[start : start + 4])
            loaded.model.eval()(batch.contiguous(memory_format=torch.channels_last))
    maps = [torch.cat(kept).numpy() for kept in outputs.values()]
    resized = preprocessing.resize
    corner = (resized - preprocessing.crop) // 2
    expected = plain_dissection(
        broden, maps, limits, positions(24, resized, corner, preprocessing.crop, resolution)
    )

    shares = iou(counts)
    assert shares.shape == (16, 8)
    got = {(u, int(n)): float(shares[u, k]) for u in range(16) for k, n in enumerate(counts["number"].values)}
    assert got == expected
    assert sum(value > 0 for value in got.values()) > 60

    found = dissection(counts, least=0.1)
    for unit in range(16):
        best = max(CATEGORY_OF, key=lambda n, unit=unit: (expected[unit, n], -n))
        row = found.isel(unit=unit)
        assert row["concept_name"].item() == NAMES[best]
        assert row["concept_category"].item() == CATEGORY_OF[best]
        assert row["iou"].item() == expected[unit, best]
        assert row["detects"].item() == (expected[unit, best] >= 0.1)
        parts = [expected[unit, n] for n, kind in CATEGORY_OF.items() if kind == "part"]
        assert row["part_iou"].item() == max(parts)
    table = detectors(found).set_index(["layer", "category"])
    assert table.loc[("first", "all"), "units"] == 5
    chosen = found.isel(unit=found["detects"].values & (found["layer"].values == "second"))
    assert table.loc[("second", "all"), "detectors"] == chosen.sizes["unit"]
    assert table.loc[("second", "all"), "concepts"] == len(set(chosen["concept_name"].values.tolist()))
    by_category = table.drop("all", level="category").groupby("layer")["detectors"].sum()
    assert by_category["second"] == chosen.sizes["unit"]


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    mask=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    resize=st.none() | st.integers(4, 40),
    crop=st.integers(2, 40),
    grid=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_masks_follow_the_crop_and_no_label_is_twice_at_a_place(size, mask, resize, crop, grid, seed):
    rng = np.random.default_rng(seed)
    concepts = Concepts(("", *"abcde"), ("x",), np.array([-1, 0, 0, -1, 0, 0]))
    masks = [rng.integers(0, 6, mask).astype(np.int32) for _ in range(3)]
    preprocessing = Preprocessing(resize=resize, crop=crop)
    resized = preprocessing.resized(size)
    if min(resized) < 1:
        return
    corner = preprocessing.corner(resized)
    columns, rows = (
        positions(length, r, c, crop, grid) for length, r, c in zip(mask[::-1], resized, corner, strict=True)
    )
    labels = [*masks[:2], 4, masks[2]]
    stacked = labels_on_grid(labels, size, concepts, preprocessing, grid)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            here = [] if a is None or b is None else [4, *(m[a, b] for m in masks)]
            there = [label for label in stacked[:, i, j].tolist() if label]
            assert sorted(there) == sorted({int(label) for label in here} - {0, 3})


class BrightNet(nn.Module):
    """One unit that is the red channel, one that never fires."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.bright.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 0]])[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.bright(x).mean((2, 3))


def test_a_folder_of_masks_with_a_known_overlap(tmp_path):
    # 16 x 16: the unit is active in the left half; `thing` covers three quarters of it and as much beside.
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, :8, 0] = 255
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/one.png", "two.png"):
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    for folder in ("object/a", "part/a", "part.2/a"):
        (tmp_path / "masks" / folder).mkdir(parents=True)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 2:14] = 3
    Image.fromarray(mask).save(tmp_path / "masks" / "object" / "a" / "one.png")
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:8] = 1
    Image.fromarray(half).save(tmp_path / "masks" / "part" / "a" / "one.png")
    Image.fromarray(half[::-1].astype(np.uint16) * 2).save(tmp_path / "masks" / "part.2" / "a" / "one.png")
    (tmp_path / "labels.csv").write_text(
        "category,number,name\nobject,3,thing\npart,1,upper\npart,2,lower\nother,1,x\n"
    )

    loaded = Loaded.of(BrightNet(), Preprocessing(None, 16, mean=(0, 0, 0), std=(1, 1, 1)))
    layers = select_layers(loaded.model, torch.zeros(2, 3, 16, 16), ["bright"])
    segmented = open_segmented(tmp_path)
    counts = overlaps(loaded, segmented, layers, np.array([0.5, np.nan]), passes=CPU)
    # The second image has no labels, so that it counts for no category.
    assert counts["name"].values.tolist() == ["thing", "upper", "lower"]
    assert counts["active"].values.tolist() == [[128, 128], [0, 0]]
    assert iou(counts).values.tolist() == [
        [96 / (128 + 192 - 96), 64 / (128 + 128 - 64), 64 / 192],
        [0, 0, 0],
    ]
    found = dissection(counts)
    assert found["concept_name"].values.tolist() == ["thing", ""]
    assert found["detects"].values.tolist() == [True, False]
    assert found["part_name"].values.tolist() == ["upper", ""]
    assert counts.attrs["images_read"] == 2

    only = open_segmented(tmp_path, ["part"], limit=1)
    assert len(only.source) == 1
    assert overlaps(loaded, only, layers, np.zeros(2), passes=CPU)["name"].values.tolist() == [
        "upper",
        "lower",
    ]
    (tmp_path / "masks" / "object" / "a" / "one.png").write_bytes(b"no image")
    counts = overlaps(loaded, segmented, layers, np.array([0.5, 0.5]), passes=CPU)
    assert counts.attrs["images_unreadable"] == 1
    assert dissection(counts)["concept_name"].values.tolist() == ["", ""]


def test_what_does_not_fit_is_said_in_one_line(broden, tmp_path):
    with pytest.raises(ActstatsError, match="is no segmented dataset: neither Broden"):
        open_segmented(tmp_path)
    with pytest.raises(ActstatsError, match="no category 'objects'; did you mean object"):
        open_segmented(broden, ["objects"])
    loaded = Loaded.of(SmallNet(), PLAIN)
    layers = select_layers(loaded.model, torch.zeros(2, *PLAIN.shape), ["first"])
    with pytest.raises(ActstatsError, match="4 thresholds for the 5 units"):
        overlaps(loaded, open_segmented(broden), layers, np.zeros(4), passes=CPU)
    with pytest.raises(ActstatsError, match="resolution is 0"):
        overlaps(loaded, open_segmented(broden), layers, np.zeros(5), resolution=0, passes=CPU)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "object").mkdir(parents=True)
    photograph(0).save(tmp_path / "images" / "x.png")
    Image.fromarray(np.full((8, 8), 7, dtype=np.uint8)).save(tmp_path / "masks" / "object" / "x.png")
    (tmp_path / "labels.csv").write_text("category,number,name\nobject,2,thing\n")
    with pytest.raises(ActstatsError, match="labelled with the number 7, but the last that has a name is 2"):
        overlaps(loaded, open_segmented(tmp_path), layers, np.zeros(5), passes=CPU)
    (tmp_path / "labels.csv").write_text("category,number,name\nobject,two,thing\n")
    with pytest.raises(ActstatsError, match="is a positive integer, not 'two'"):
        open_segmented(tmp_path)
    (tmp_path / "labels.csv").write_text("number,name\n1,thing\n")
    with pytest.raises(ActstatsError, match=r"labels\.csv has no column category"):
        open_segmented(tmp_path)


def test_a_category_without_any_mask_is_refused(tmp_path):
    for folder in ("images", "masks/colour", "masks/object"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 24)).save(tmp_path / "images" / f"{number}.png")
        save_mask(tmp_path / "masks" / "colour" / f"{number}.png", np.ones((24, 32)))
    save_mask(tmp_path / "masks" / "object" / "other.png", np.ones((24, 32)))
    with pytest.raises(ActstatsError, match=r"none of the 3 images .* has a mask in masks/object"):
        open_segmented(tmp_path)
    assert open_segmented(tmp_path, ["colour"]).concepts.categories == ("colour",)
    # A limit may leave images without any mask of a category.
    save_mask(tmp_path / "masks" / "object" / "2.png", np.ones((24, 32)))
    assert len(open_segmented(tmp_path, limit=1).labels(0)) == 1


def test_a_mask_whose_sides_are_exchanged_is_refused(tmp_path):
    for folder in ("images", "masks/object"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (33, 24)).save(tmp_path / "images" / "0.png")
    for shape in ((24, 33), (12, 16), (12, 17), (48, 66), (1, 1)):
        save_mask(tmp_path / "masks" / "object" / "0.png", np.ones(shape))
        assert len(open_segmented(tmp_path).labels(0)) == 1
    for shape in ((33, 24), (24, 24), (12, 33)):
        save_mask(tmp_path / "masks" / "object" / "0.png", np.ones(shape))
        with pytest.raises(ActstatsError, match="not those of its image, scaled: 33 x 24"):
            open_segmented(tmp_path).labels(0)


def test_concepts_of_one_name_in_two_categories_are_two():
    counts = xr.Dataset(
        {
            "intersection": (("unit", "concept"), np.array([[50, 0], [0, 50], [0, 50]])),
            "active": (("unit", "category"), np.full((3, 2), 60)),
            "area": ("concept", np.array([60, 60])),
        },
        coords={
            "layer": ("unit", ["c"] * 3), "channel": ("unit", range(3)), "category": ["object", "part"],
            "name": ("concept", np.array(["1", "1"], dtype=object)),
            "concept_category": ("concept", np.array(["object", "part"], dtype=object)),
        },
    )  # fmt: skip
    table = detectors(dissection(counts)).set_index("category")
    assert table["concepts"].to_dict() == {"all": 2, "object": 1, "part": 1}


def test_the_images_of_a_segmented_dataset_are_opened_without_its_masks(broden):
    assert open_source(broden).paths == [f"set/{index}.png" for index in range(9)]
    assert len(open_source(broden, limit=4)) == 4


def test_masks_that_belong_to_no_image_are_refused_with_the_layout(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "masks" / "object").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a" / "x.png")
    # One folder too high: images/a/x.png has its mask at masks/object/a/x.png.
    Image.fromarray(np.full((8, 8), 1, dtype=np.uint8)).save(tmp_path / "masks" / "object" / "x.png")
    with pytest.raises(ActstatsError, match=r"none of the 1 images .* masks/object/NAME.png"):
        open_segmented(tmp_path)
