"""What PyTorch, pickle and dill wrote is read as they read it; what is damaged is one line."""

import io
import pickle
import random
import struct
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import dill
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from actstats.errors import ActstatsError
from actstats.models.checkpoints import read_checkpoint
from tests.models.checkpoints import crafted

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)))


def old_tar(state: dict[str, Tensor]) -> bytes:
    """What `torch.save` wrote before 2017: storages, tensors on them, and a pickle that refers to those by number."""

    class Referring(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return (
                str(names.index(value[1])) if isinstance(value, tuple) and value[:1] == ("tensor",) else None
            )

    names = list(state)
    storages, tensors, content = io.BytesIO(), io.BytesIO(), io.BytesIO()
    for file in (storages, tensors):
        pickle.dump(len(names), file, protocol=2)
    for index, tensor in enumerate(state.values()):
        pickle.dump((1000 + index, "cpu", torch.FloatStorage), storages, protocol=2)
        flat = tensor.contiguous().flatten()
        storages.write(struct.pack("<q", len(flat)) + flat.numpy().tobytes())
        pickle.dump((index, 1000 + index, torch.FloatTensor), tensors, protocol=2)
        shape = tensor.contiguous()
        tensors.write(struct.pack("<i4x", shape.dim()))
        tensors.write(struct.pack(f"<{2 * shape.dim() + 1}q", *shape.shape, *shape.stride(), 0))
    pickle.dump([], storages, protocol=2)
    Referring(content, protocol=2).dump(OrderedDict((name, ("tensor", name)) for name in names))
    files = {"storages": storages, "tensors": tensors, "pickle": content}
    return crafted.tar_of({name: file.getvalue() for name, file in files.items()})


def written(kind: str, state: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    content = {"model": state, "epoch": 3}
    match kind:
        case "zip":
            torch.save(content, file)
        case "stream":
            torch.save(content, file, _use_new_zipfile_serialization=False)
        case "dill in torch":
            torch.save({**content, "f": lambda x: x}, file, pickle_module=dill)
        case "tar":
            return old_tar(state)
        case _:
            with warnings.catch_warnings(action="ignore"):
                {"pickle": pickle, "dill": dill}[kind].dump(content, file)
    return file.getvalue()


KINDS = ["zip", "stream", "dill in torch", "tar", "pickle", "dill"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    state = network().state_dict()
    if kind == "tar":
        state = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.float32}
    (tmp_path / "a.pt").write_bytes(written(kind, state))
    if kind not in ("pickle", "dill"):
        theirs = torch.load(tmp_path / "a.pt", weights_only=False)
        assert list(theirs.get("model", theirs)) == list(state), "the file is not what PyTorch reads"
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert list(checkpoint.state) == list(state)
    assert all(torch.equal(checkpoint.state[name], state[name]) for name in state)
    assert checkpoint.part == ("" if kind == "tar" else "model")
    assert bool(checkpoint.foreign) == (kind == "dill in torch")
    if kind in ("zip", "stream"):
        assert checkpoint.layout["1"] == {"version": 2}


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=4),
    view=st.sampled_from(["whole", "part", "turned", "parameter"]),
    legacy=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_dtype_and_stride(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: torch.dtype,
    shape: list[int],
    view: str,
    legacy: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2 if dtype == torch.bool else 100, (3, *shape), generator=generator).to(dtype)
    tensor = {"whole": values, "part": values[1:], "turned": values.transpose(0, -1)}.get(view, values)
    if view == "parameter":
        tensor = nn.Parameter(values, requires_grad=False)
    path = tmp_path_factory.mktemp("dtype") / "a.pt"
    # A second view of the same storage, as tied weights are.
    torch.save({"a": tensor, "b": values[:1]}, path, _use_new_zipfile_serialization=not legacy)
    state = read_checkpoint(path).state
    assert state["a"].dtype == dtype
    assert torch.equal(state["a"], tensor)
    assert state["a"].stride() == tensor.stride() or not tensor.numel()
    assert torch.equal(state["b"], values[:1])


def test_a_whole_module(tmp_path: Path) -> None:
    model = network()
    torch.save({"net": model, "args": {"lr": 0.1}}, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    expected = model.state_dict()
    assert set(checkpoint.state) == set(expected)
    assert all(torch.equal(checkpoint.state[name], expected[name]) for name in expected)
    assert "torch.nn.modules.conv.Conv2d" in checkpoint.foreign


@pytest.mark.parametrize("kind", [*KINDS, "safetensors"])
def test_a_file_cut_short(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    state = {"weight": torch.arange(500.0)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        path.write_bytes(written(kind, state))
    whole = path.read_bytes()
    ends = sorted(
        {*range(min(40, len(whole))), *range(40, len(whole), max(1, len(whole) // 60)), len(whole) - 1}
    )
    if kind == "tar":
        ends = [end for end in ends if end < 5_000]  # what follows is padding
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(ActstatsError, match=r"a\.(pt|safetensors)") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_or_harmless(tmp_path: Path, kind: str) -> None:
    whole = written(kind, {"weight": torch.arange(100.0), "bias": torch.zeros(3, 2)})
    draw = random.Random(0)
    path = tmp_path / "a.pt"
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            read_checkpoint(path)
            outcomes.add("read")
        except ActstatsError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"<html>")
    (tmp_path / "b.tar").write_bytes(crafted.tar_of({"a.jpg": b""}))
    for name in ("a.pt", "b.tar"):
        with pytest.raises(ActstatsError, match=name):
            read_checkpoint(tmp_path / name)
    save_file({"a": torch.ones(2)}, tmp_path / "c.bin")
    assert torch.equal(read_checkpoint(tmp_path / "c.bin").state["a"], torch.ones(2))
