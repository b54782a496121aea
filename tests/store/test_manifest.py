"""What makes two sweeps the same, and how a difference is told."""

from __future__ import annotations

import pytest

from actstats.store import manifest


def sweep_of(**parts):
    return manifest.build(
        **{
            "arch": "alexnet",
            "weights": {"source": "none", "seed": 0, "path": None},
            "layers": [{"name": "features.1", "height": 55}, {"name": "features.4", "height": 27}],
            "data": {"spec": "photos", "fingerprint": "ab"},
            **parts,
        }
    )


def test_two_manifests_of_one_sweep_agree_whenever_and_wherever_they_were_made():
    there = sweep_of()
    here = sweep_of(data={"spec": "/elsewhere/photos", "fingerprint": "ab"})
    here["created"], here["machine"] = "2020-01-01", {"system": "another"}
    assert manifest.differences(there, here) == []


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"arch": "vgg16"}, "arch is 'alexnet' in the store and 'vgg16' in this sweep"),
        ({"weights": {"source": "none", "seed": 1}}, "weights.seed is 0 in the store and 1 in this sweep"),
        (
            {"data": {"spec": "photos", "fingerprint": "cd"}},
            "data.fingerprint is 'ab' in the store and 'cd' in this sweep",
        ),
        ({"amp": "bf16"}, "amp is absent in the store and 'bf16' in this sweep"),
        ({"layers": [{"name": "features.1", "height": 55}]}, "layers differ: features.4 only in the store"),
        (
            {"layers": [{"name": "features.1", "height": 1}, {"name": "features.4", "height": 27}]},
            "layers differ in order or details",
        ),
    ],
)
def test_a_difference_is_named(change, phrase):
    assert manifest.differences(sweep_of(), sweep_of(**change)) == [phrase]


def test_another_version_of_torch_is_a_difference():
    here = sweep_of()
    here["versions"] = {**here["versions"], "torch": "1.0"}
    (found,) = manifest.differences(sweep_of(), here)
    assert found.startswith("versions.torch is ")
