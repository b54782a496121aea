"""`actstats layers`, `info` and `top`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

import actstats as package
from tests.analysis.made import make_store
from tests.cli.conftest import SWEEP, actstats, output_of


def failure_of(command: str) -> str:
    """The one line that a command which cannot go on prints."""
    result = actstats(command)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("actstats: error: ").rstrip()


def test_layers_lists_what_can_be_hooked():
    text = output_of("layers --arch squeezenet1_1")
    row = next(line for line in text.splitlines() if line.startswith("features.3 "))
    assert row.split() == [
        "features.3", "Fire", "[N,", "128,", "55,", "55]", "128", "55", "x", "55", "block", "all",
    ]  # fmt: skip
    assert "1,281,167 images" not in text


def test_layers_says_the_size_of_a_store_of_those_chosen(store):
    text = output_of("layers --arch alexnet --layers conv")
    # 1,152 units x 24 bytes an image, x 2,480 bytes a partition
    assert "27.6 kB per image and 2.86 MB per partition of 1,024 images" in text
    assert "50,000 images: 1.52 GB" in text
    found = json.loads(
        output_of(
            "layers --arch squeezenet1_1 --layers features.1,features.3 --partition-size 4 --top-k 5 --json"
        )
    )
    assert [layer["name"] for layer in found["layers"]] == ["features.1", "features.3"]
    assert found["units"] == 192
    dataset = xr.open_zarr(store)
    per_image = sum(v.nbytes for v in dataset.data_vars.values() if "image" in v.dims)
    assert found["bytes"]["image"] == per_image / 9
    assert (
        found["bytes"]["partition"]
        == sum(v.nbytes for v in dataset.data_vars.values() if "partition" in v.dims) / 3
    )


def test_layers_counts_only_what_is_going_to_be_stored():
    found = json.loads(
        output_of("layers --arch squeezenet1_1 --layers features.1 --metrics mean,top --no-per-image --json")
    )
    assert found["bytes"]["image"] == 0
    assert found["bytes"]["partition"] == 64 * 16 * (4 + 8 + 4)


def test_layers_names_what_cannot_be_hooked():
    text = output_of("layers --arch swin_t")
    assert "24 modules cannot be hooked:" in text
    assert "  features.1.0.attn.qkv: features.1.0.attn does not call it in eval mode" in text
    assert "and 14 more: --json lists all" in text
    assert failure_of("layers --arch alexnet --layers featurs.1").startswith(
        "no layer matches 'featurs.1'; did you mean"
    )


def test_info_says_what_was_swept_how_complete_it_is_and_what_was_not_read(images, store):
    text = output_of(f"info {store}")
    assert "squeezenet1_1, weights none (random, seed 0), sha256 " in text
    assert f"9 of {images} (folder): 7 read, 2 unreadable" in text
    assert "3 of 3 of 4 images, complete" in text
    assert "2 images could not be read:\n  cat/1.png: unreadable\n  dog/5.png: unreadable" in text
    variables = [line.split()[0] for line in text.splitlines() if ", unit" in line]
    assert set(variables) == set(xr.open_zarr(store).data_vars)


def test_info_as_json_has_manifest_and_sizes(store):
    found = json.loads(output_of(f"info {store} --json"))
    dataset = xr.open_zarr(store)
    assert found["manifest"] == dataset.attrs
    assert found["complete"]
    assert found["failures"] == {"cat/1.png": "unreadable", "dog/5.png": "unreadable"}
    sizes = {variable["name"]: variable for variable in found["variables"]}
    for name, variable in dataset.data_vars.items():
        assert sizes[name]["nbytes"] == variable.nbytes
        assert tuple(sizes[name]["dims"]) == variable.dims
    stored = sum(v["stored"] for v in [*found["variables"], *found["coordinates"]])
    files = [path for path in store.rglob("*") if path.is_file() and path.parent != store]
    assert stored == sum(path.stat().st_size for path in files)


def test_info_of_a_sweep_that_is_not_complete(images, tmp_path):
    output_of(
        f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean --partition-size 4 --part 1/3 "
        "--distort greyscale+scramble:4"
    )
    text = output_of(f"info {tmp_path / 's.zarr'}")
    assert "5 pending, 3 read, 1 unreadable" in text
    assert "resize 256, crop 224, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in text
    assert ", distorted: greyscale + scramble:4" in text
    assert "1 of 3 of 4 images, not complete: rerun the same sweep to resume" in text


def test_what_is_no_store_is_named(store, tmp_path):
    zarr.create_group(tmp_path / "foreign.zarr")
    zarr.create_group(tmp_path / "newer.zarr", attributes={"actstats": 99})
    (tmp_path / "file").write_text("")
    shutil.copytree(store, tmp_path / "damaged.zarr")
    (tmp_path / "damaged.zarr" / "zarr.json").write_text("{")
    for name, said in {
        "gone.zarr": "no store at",
        "foreign.zarr": "is not a store of actstats, but another Zarr group",
        "newer.zarr": "has store format 99, but this version of actstats reads 1 and 2",
        "file": "it is not a Zarr v3 group",
        "damaged.zarr": "is damaged: zarr.json is missing or cannot be read",
    }.items():
        assert said in failure_of(f"info {tmp_path / name}")
        assert said in failure_of(f"top {tmp_path / name} features.1/0")


def test_damage_that_an_analysis_meets_names_the_store_and_a_command_that_runs(store, tmp_path):
    damaged = shutil.copytree(store, tmp_path / "damaged.zarr")
    chunk = damaged / "total_variation" / "c.1.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    said = failure_of(f"analyze smoothness {damaged}")
    assert said.startswith(f"{damaged} is damaged: total_variation cannot be read (")
    assert f"run `actstats info --verify {damaged}` to list all damage" in said
    listed = actstats(f"info --verify {damaged}")
    assert "total_variation of partition 1 is damaged" in listed.stdout


def test_top_lists_the_greatest_maxima_of_all_partitions(store):
    merged = package.merge(xr.open_zarr(store))
    unit = merged.set_xindex(["layer", "channel"]).sel(layer="features.3", channel=17).load()
    found = json.loads(output_of(f"top {store} features.3/17 --json"))["images"]
    assert [hit["rank"] for hit in found] == [1, 2, 3, 4, 5]
    assert [hit["image"] for hit in found] == unit["top_image"].values.tolist()
    assert [hit["value"] for hit in found] == unit["top_value"].values.tolist()
    width = int(unit["width"])
    assert [hit["row"] * width + hit["column"] for hit in found] == unit["top_position"].values.tolist()
    assert [hit["path"] for hit in found] == merged["path"].values[unit["top_image"].values].tolist()
    rows = output_of(f"top {store} features.3/17").splitlines()
    assert rows[0].split() == ["rank", "value", "image", "row", "column"]
    assert [row.split()[2] for row in rows[1:]] == [hit["path"] for hit in found]


def test_top_draws_a_sheet_also_of_images_that_were_moved_or_lost(images, store, tmp_path):
    assert "drawn to" in output_of(f"top {store} features.3/17 --out {tmp_path / 'sheet.png'}")
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()
    shutil.copytree(images, tmp_path / "moved")
    output_of(f"top {store} features.3/17 --out {tmp_path / 'again.png'} --data {tmp_path / 'moved'}")
    with Image.open(tmp_path / "again.png") as again:
        assert again.tobytes() == sheet.tobytes()
    (tmp_path / "moved" / "cat" / "0.png").unlink()
    said = failure_of(f"top {store} features.3/17 --out {tmp_path / 'x.png'} --data {tmp_path / 'moved'}")
    assert "have other names or sizes than those of the sweep" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("features.1", "unit 'features.1' is not of the form LAYER/CHANNEL, such as features.1/0"),
        ("features.1/x", "is not of the form LAYER/CHANNEL"),
        ("featurs.1/0", "no layer 'featurs.1' was swept; did you mean features.1"),
        ("features.1/64", "layer features.1 has no channel 64; its channels are 0 to 63"),
        ("features.1/0 --out sheet.xyz", "cannot draw to sheet.xyz: .xyz is not an image format; use .png"),
        (
            "features.1/0 --out no/such/folder/sheet.png",
            "no/such/folder/sheet.png: No such file or directory",
        ),
        ("features.1/0 --out sheet.png --data nowhere", "no such folder or tar file: nowhere"),
    ],
)
def test_top_says_what_is_wrong(arguments, said, store):
    assert said in failure_of(f"top {store} {arguments}")


def test_top_says_when_the_images_are_not_where_they_were(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    output_of(f"{SWEEP} --data {tmp_path / 'images'} --out {tmp_path / 's.zarr'} --metrics top")
    (tmp_path / "images").rename(tmp_path / "moved")
    said = failure_of(f"top {tmp_path / 's.zarr'} features.1/0 --out {tmp_path / 'sheet.png'}")
    assert said.endswith("if the images were moved, pass their new location as --data")


def test_top_needs_the_metric_and_a_complete_partition(images, tmp_path):
    output_of(f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean")
    said = failure_of(f"top {tmp_path / 's.zarr'} features.1/0")
    assert "has no top images; sweep again with the metric top" in said
    actstats(f"{SWEEP} --data {images} --out {tmp_path / 't.zarr'} --metrics top --strict")
    assert "no partition of" in failure_of(f"top {tmp_path / 't.zarr'} features.1/0")


def test_top_says_which_images_do_not_activate_the_unit(tmp_path):
    maps = np.zeros((6, 2, 3, 3), dtype=np.float32)
    maps[2, 1] = 1
    make_store(tmp_path / "s.zarr", {"a": maps}, top_k=4)
    for unit, still in (("a/0", 4), ("a/1", 3)):
        result = actstats(f"top {tmp_path / 's.zarr'} {unit}")
        assert result.exit_code == 0
        assert f"{still} of 4 images do not activate {unit}" in result.stderr
