"""`actstats sweep`: its options reach the engine, and what it prints."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr
from torchvision.models import squeezenet1_1

from tests.cli.conftest import SWEEP, actstats, output_of
from tests.conftest import files_of, photograph
from tests.data.images import encoded, require_torchcodec, write_folder, write_tar


@pytest.fixture
def some(tmp_path):
    """Three photographs in one folder, and their place."""
    files = {f"{index}.png": encoded(photograph(index)) for index in range(3)}
    return write_folder(tmp_path / "some", files)


def test_the_store_opens_and_is_that_of_the_python_function(images, store, tmp_path):
    import actstats as package

    package.sweep(
        "squeezenet1_1", images, tmp_path / "s.zarr", weights="none", device="cpu",
        layers=["features.1", "features.3"], partition_size=4, batch_size=2, top_k=5,
    )  # fmt: skip
    assert files_of(store) == files_of(tmp_path / "s.zarr")
    assert dict(xr.open_zarr(store).sizes) == {
        "image": 9, "unit": 64 + 128, "partition": 3, "frequency": 18, "bin": 520, "rank": 5,
    }  # fmt: skip


def test_the_summary_names_the_store_the_sizes_and_what_could_not_be_read(images, tmp_path):
    text = output_of(f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean")
    assert f"{tmp_path / 's.zarr'}: 9 images, 192 units of 2 layers" in text
    assert "9 images in " in text
    assert "2 images could not be read and are excluded:" in text
    assert "  cat/1.png: not an image of a known format" in text
    again = output_of(f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean")
    assert "already complete, nothing to do" in again


def test_many_images_that_could_not_be_read_are_counted_and_a_few_named(some, tmp_path):
    for index in range(8):
        (some / f"{index}.jpg").write_bytes(b"")
    for _ in range(2):  # also once there is nothing left to do
        result = actstats(f"{SWEEP} --data {some} --out {tmp_path / 's.zarr'} --metrics mean")
        assert result.exit_code == 1
        assert "more than 50% of the images could not be read (--max-failed 0.5)" in result.stderr
    text = output_of(f"{SWEEP} --data {some} --out {tmp_path / 't.zarr'} --metrics mean --max-failed 0.9")
    assert "8 images could not be read" in text
    assert text.count("the file is empty") == 5
    assert "and 3 more: actstats info" in text


def test_json_is_the_whole_of_stdout(images, tmp_path):
    found = json.loads(
        output_of(f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean --json")
    )
    assert found["store"] == str(tmp_path / "s.zarr")
    assert (found["images"], found["layers"], found["units"], found["complete"]) == (9, 2, 192, True)
    assert found["failures"].keys() == {"cat/1.png", "dog/5.png"}
    assert (found["run"]["images"], found["run"]["partitions"]) == (9, 1)
    assert found["run"]["images_per_second"] > 0
    assert 0 <= found["run"]["waiting_share"] <= 1


def test_every_option_reaches_the_manifest(some, tmp_path):
    torch.save(squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    output_of(
        f"sweep --arch squeezenet1_1 --weights {tmp_path / 'weights.pth'} --data {some} --out {tmp_path / 's.zarr'} "
        "--layers features.1 --layers 'features.3.*,features.12' --metrics mean,kurtosis --metrics histogram "
        "--metric actstats.metrics.examples:UnitCovariance --top-k 3 --partition-size 2 --batch-size 1 --limit 2 "
        "--device cpu --amp bf16 --workers 0 --bitround 9 --compression zstd:5 --no-per-image"
    )
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    assert set(dataset.data_vars) == {
        "histogram", "covariance_product", "covariance_sum", "covariance_count",
    }  # fmt: skip
    attrs = dataset.attrs
    assert attrs["weights"]["source"] == "file:weights.pth"
    assert attrs["selectors"] == ["features.1", "features.3.*", "features.12"]
    assert attrs["metrics"] == ["mean", "histogram", "kurtosis", "actstats.metrics.examples:UnitCovariance"]
    assert {name: attrs[name] for name in ("top_k", "partition_size", "batch_size", "amp", "bitround")} == {
        "top_k": 3, "partition_size": 2, "batch_size": 1, "amp": "bf16", "bitround": 9,
    }  # fmt: skip
    assert attrs["compression"] == "zstd:5"
    assert attrs["data"]["images"] == 2


def test_a_sample_is_drawn_from_every_class(images, tmp_path):
    output_of(f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean --sample 4:1")
    swept = xr.open_zarr(tmp_path / "s.zarr")
    assert swept.attrs["data"]["sample"] == "4:1"
    assert swept.sizes["image"] == 4
    assert set(swept["label"].values.tolist()) == {0, 1}


def test_random_weights_come_from_the_seed(some, tmp_path):
    for seed in (0, 1):
        output_of(f"{SWEEP} --data {some} --out {tmp_path / f'{seed}.zarr'} --metrics mean --seed {seed}")
    a, b = (xr.open_zarr(tmp_path / f"{seed}.zarr")["mean"].values for seed in (0, 1))
    assert not np.allclose(a, b)


def test_parts_fill_one_store(images, store, tmp_path):
    command = (
        f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --partition-size 4 --batch-size 2 --top-k 5"
    )
    text = output_of(f"{command} --part 1/2")
    assert "not all partitions are complete" in text
    result = actstats(f"{command} --part 0/2")
    assert "resuming: 1 of 3 partitions are complete" in result.stderr
    assert files_of(tmp_path / "s.zarr") == files_of(store)


def test_tars_and_webdataset_shards_are_swept_in_place(some, tmp_path):
    files = {path.name: path.read_bytes() for path in sorted(some.iterdir())}
    write_tar(tmp_path / "all.tar", files)
    for shard, names in enumerate((("0.png", "1.png"), ("2.png",))):
        members = {name: files[name] for name in names} | {
            f"{name[0]}.cls": name[:1].encode() for name in names
        }
        write_tar(tmp_path / f"shard-{shard}.tar", members)
    means = []
    for number, data in enumerate((some, tmp_path / "all.tar", tmp_path / "shard-{0..1}.tar")):
        output_of(f"{SWEEP} --data '{data}' --out {tmp_path / f'{number}.zarr'} --metrics mean")
        means.append(xr.open_zarr(tmp_path / f"{number}.zarr")["mean"].load())
    np.testing.assert_array_equal(means[0], means[1])
    np.testing.assert_array_equal(means[0], means[2])
    assert means[2]["label"].values.tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Files and folders that cannot be swept, each named for what is wrong with it."""
    folder = tmp_path_factory.mktemp("bad")
    write_folder(folder / "good", {"a.png": encoded(photograph(0))})
    write_folder(folder / "texts", {"a.txt": b"x"})
    write_folder(folder / "broken", {"a.jpg": b"no", "b.png": b""})
    write_folder(folder / "precious", {"thesis.txt": b"years of work"})
    write_tar(folder / "images.tar.gz", {"a.png": encoded(photograph(0))}, mode="w:gz")
    torch.save(squeezenet1_1().state_dict(), folder / "squeezenet.pth")
    (folder / "junk.pth").write_bytes(b"junk")
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--arch squeeznet1_1", "unknown architecture 'squeeznet1_1'; did you mean squeezenet1_1"),
        ("--layers featres.1", "no layer matches 'featres.1'; did you mean features.1"),
        ("--layers paper", "preset 'paper' supports only AlexNet, GoogLeNet, ResNet-50"),
        ("--data {bad}/godo", "no such folder or tar file: {bad}/godo; did you mean good?"),
        ("--data {bad}/texts", "no images in {bad}/texts"),
        ("--data {bad}/broken", "none of the 2 images of {bad}/broken can be read; a.jpg: not an image"),
        (
            "--data {bad}/images.tar.gz",
            "images.tar.gz is compressed and cannot be read in place; gunzip it first",
        ),
        ("--out {bad}/precious", "{bad}/precious is not a store of actstats"),
        ("--out {bad}/precious --overwrite", "{bad}/precious is not a store of actstats"),
        ("--out {bad}/junk.pth/s.zarr", "cannot write {bad}/junk.pth/s.zarr: {bad}/junk.pth is a file"),
        ("--weights {bad}/gone.pth", "no such weights file: {bad}/gone.pth"),
        ("--weights {bad}/junk.pth", "junk.pth is no weights file of PyTorch, or a damaged one"),
        (
            "--weights {bad}/squeezenet.pth --arch alexnet",
            "squeezenet.pth does not fit alexnet: 12 missing (",
        ),
        (
            "--weights IMAGENET1K_V9",
            "squeezenet1_1 has no weights 'IMAGENET1K_V9'; did you mean IMAGENET1K_V1?",
        ),
        ("--sample 2:x", "--sample must be N or N:SEED, such as 5000 or 5000:1, not '2:x'"),
        ("--sample 2 --limit 2", "--limit and --sample exclude each other"),
        ("--device abacus", "unknown device 'abacus'"),
        ("--metrics meen", "no metric is named 'meen'; did you mean mean?"),
        ("--metric no_such_module:Metric", "cannot import no_such_module"),
        ("--metric pathlib:Path", "pathlib:Path is not a class derived from actstats.Metric"),
        (
            "--compression zip",
            "unknown compression 'zip'; choose none, zstd, zstd:LEVEL with LEVEL from 1 to ",
        ),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(options, said, bad, tmp_path):
    options = options.format(bad=bad)
    result = actstats(
        f"sweep --arch squeezenet1_1 --weights none --data {bad}/good --out {tmp_path / 's.zarr'} {options}"
    )
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("actstats: error: ")
    assert result.stderr.count("\n") == 1
    assert said.format(bad=bad) in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert (bad / "precious" / "thesis.txt").exists()


def test_another_sweep_on_the_same_store_is_refused_with_the_difference(images, store):
    result = actstats(f"{SWEEP} --data {images} --out {store} --partition-size 4 --batch-size 3 --top-k 5")
    assert result.exit_code == 1
    assert result.stderr == (
        f"actstats: error: {store} holds another sweep: batch_size is 2 in the store and 3 in this sweep. "
        "Choose another --out, or use --overwrite to replace it\n"
    )


def test_strict_stops_at_the_first_unreadable_image(images, tmp_path):
    result = actstats(f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean --strict")
    assert result.exit_code == 1
    assert "cat/1.png: not an image of a known format" in result.stderr.splitlines()[-1]


def test_a_sweep_whose_images_the_device_decodes_says_so(tmp_path):
    require_torchcodec()
    files = {f"{index}.jpg": encoded(photograph(index), "JPEG") for index in range(3)}
    folder, store = write_folder(tmp_path / "some", files), tmp_path / "s.zarr"
    output_of(f"{SWEEP} --data {folder} --out {store} --metrics mean --decode device")
    assert "JPEGs decoded by the device" in output_of(f"info {store}")
