"""Controls of an ablation, against the same ablations with plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actstats import ActstatsError, Loaded, open_source, select_layers
from actstats.probing.ablate import ablate_accuracy, ablate_decisions
from actstats.probing.controls import Control, random_sets, with_random_sets
from actstats.probing.forward import Passes
from actstats.probing.unit_sets import UnitSet, complement, units_named
from tests.cli.conftest import actstats
from tests.probing.probed import COLOURS, PLAIN, write_stimuli

UNITS, DEAD = 12, (4, 9)
PASSES = Passes(batch_size=4, device="cpu", workers=0)


class Net(nn.Module):
    """Twelve units, two of them dead."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.features, self.relu = nn.Conv2d(3, UNITS, 3), nn.ReLU()
            self.fc = nn.Linear(UNITS, 3)
            with torch.no_grad():
                self.features.bias[:] = 1.0
                self.features.bias[list(DEAD)] = -100.0
                self.fc.bias[:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.features(x)).amax((2, 3)))


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stimuli(tmp_path_factory.mktemp("stimuli"))


def net() -> tuple[nn.Module, object]:
    """For the command line."""
    return Net(), PLAIN


def pixels_of(source: object) -> Tensor:
    return torch.stack([PLAIN(source.image(index)) for index in range(len(source))])


def decided(model: Net, pixels: Tensor, zero: tuple[int, ...]) -> np.ndarray:
    """The decisions with these units at zero, by hand."""
    with torch.no_grad():
        maps = model.relu(model.features(pixels))
        maps[:, list(zero)] = 0
        return model.fc(maps.amax((2, 3))).argmax(1).numpy()


def test_p_is_the_share_of_random_sets_that_are_as_bad(stimuli):
    loaded, source = Loaded.of(Net(), PLAIN), open_source(stimuli)
    layers = select_layers(loaded.model, torch.zeros(2, 3, 30, 30), ["relu"])
    sets = [units_named([f"relu/{unit}" for unit in units]) for units in ((0,), (1, 2, 4), (3, 5, 6, 7, 8))]
    control = Control(40, seed=3)
    options = {"classes": list(COLOURS), "control": control, "at_once": 7, "passes": PASSES}
    pixels = pixels_of(source)
    with torch.no_grad():
        maps = loaded.model.relu(loaded.model.features(pixels))
    active = {"relu": (maps > 0).double().mean((0, 2, 3)).numpy()}
    assert np.flatnonzero(active["relu"] == 0).tolist() == list(DEAD)
    accuracy = ablate_accuracy(loaded, source, layers, sets, **options)
    trials = ablate_decisions(loaded, source, layers, sets, **options)
    conflicts = np.array(
        [Path(p).stem.split("-")[0][:-1] != Path(p).stem.split("-")[1][:-1] for p in source.paths]
    )
    for table, shown in ((accuracy, np.ones(9, bool)), (trials, conflicts)):
        truth = source.labels[shown]  # the folders are the shapes, in the order of the outputs
        intact = (decided(loaded.model, pixels[shown], ()) == truth).mean()
        assert table.loc[0, ["random_mean", "random_worst", "p_random"]].isna().all()
        for row, chosen in zip(table.iloc[1:].itertuples(), sets, strict=True):
            drawn = random_sets(chosen, active, control)
            living = set(chosen.units["relu"]) - set(DEAD)
            assert {len(one) for one in drawn} == {len(living)}
            assert not {unit for one in drawn for unit in one.units["relu"]} & set(DEAD)
            own = (decided(loaded.model, pixels[shown], chosen.units["relu"]) == truth).sum()
            right = np.array(
                [(decided(loaded.model, pixels[shown], one.units["relu"]) == truth).sum() for one in drawn]
            )
            assert row.p_random == (np.sum(right <= own) + 1) / 41
            assert row.random_mean == pytest.approx(right.mean() / shown.sum() - intact)
            assert row.random_worst == pytest.approx(right.min() / shown.sum() - intact)
    assert (
        "p_random: 40 random sets of as many living units of the same layers for each set (seed 3)"
        in (accuracy.attrs["notes"])
    )
    plain = ablate_accuracy(loaded, source, layers, sets, classes=list(COLOURS), passes=PASSES)
    assert plain.equals(accuracy[list(plain)])


def test_matched_sets_have_as_many_units_in_each_fifth_of_activity():
    rng = np.random.default_rng(0)
    values = rng.random(30)
    values[[3, 17]] = 0  # dead
    living = np.flatnonzero(values)
    ranks = np.full(30, -1)
    ranks[living[np.argsort(values[living])]] = np.arange(28)
    # 28 living units in fifths of 6, 6, 6, 5 and 5.
    fifth = np.searchsorted([6, 12, 18, 23], ranks, side="right")
    chosen = UnitSet.of(
        "most active", [("a", unit) for unit in np.argsort(values)[-8:].tolist()] + [("a", 3)]
    )
    counts = np.bincount(fifth[[unit for unit in chosen.units["a"] if unit != 3]], minlength=5)
    free = random_sets(chosen, {"a": values}, Control(60))
    matched = random_sets(chosen, {"a": values}, Control(60, matched=True))
    for drawn in (*free, *matched):
        assert len(set(drawn.units["a"])) == 8
        assert not set(drawn.units["a"]) & {3, 17}
    assert all((np.bincount(fifth[list(d.units["a"])], minlength=5) == counts).all() for d in matched)
    assert len({drawn.units["a"] for drawn in matched}) > 5
    # Without matching, units of all activities are drawn, each about as often.
    often = np.bincount([unit for drawn in free for unit in drawn.units["a"]], minlength=30)
    assert (often[living] > 4).all()
    assert values[list(free[0].units["a"])].mean() < values[list(chosen.units["a"])].mean()


def test_equal_sets_run_once_and_a_seed_gives_the_same_sets():
    active = {"a": np.linspace(0, 1, 9), "b": np.ones(4)}
    singles = [UnitSet(f"a/{unit}", {"a": (unit,)}) for unit in range(9)]
    every, places = with_random_sets(singles, active, Control(200))
    # Unit 0 is dead: its random sets have no unit. Those of the others are among the sets themselves.
    assert [chosen.units["a"] for chosen in every[9:]] == [()]
    assert (places[0] == 9).all()
    assert set(np.unique(places[1:])) == set(range(1, 9))
    both = UnitSet("both", {"a": (1, 2), "b": (0,)})
    alone = random_sets(both, active, Control(20, seed=1))
    assert [drawn.units for drawn in alone] == [
        d.units for d in random_sets(both, active, Control(20, seed=1))
    ]
    assert [drawn.units for drawn in alone] != [
        d.units for d in random_sets(both, active, Control(20, seed=2))
    ]
    assert {(len(drawn.units["a"]), len(drawn.units["b"])) for drawn in alone} == {(2, 1)}
    every, places = with_random_sets([*singles, both], active, Control(20, seed=1))
    assert [every[at].units for at in places[-1]] == [drawn.units for drawn in alone]


def test_what_comes_before_the_layer_runs_once_for_all_random_sets(stimuli):
    loaded = Loaded.of(Net(), PLAIN)
    layers = select_layers(loaded.model, torch.zeros(2, 3, 30, 30), ["relu"])
    seen = []
    loaded.model.features.register_forward_hook(lambda _m, _a, out: seen.append(len(out)))
    chosen = complement(units_named(["relu/0", "relu/1"]), layers)
    counts = []
    for control in (None, Control(100)):
        seen.clear()
        options = {"classes": list(COLOURS), "control": control, "passes": PASSES}
        ablate_accuracy(loaded, open_source(stimuli), layers, [chosen], **options)
        counts.append(sum(seen))
    assert counts[1] - counts[0] == 9  # the pass that measures which units are living


@pytest.mark.parametrize(
    ("options", "message"), [({"sets": 0}, "at least 1"), ({"sets": 9, "seed": -1}, "0 or more")]
)
def test_a_control_of_no_sets_is_refused(options, message):
    with pytest.raises(ActstatsError, match=message):
        Control(**options)


def test_the_command_adds_the_control_to_its_table(stimuli):
    command = f"analyze ablate tests.probing.test_controls:net --data {stimuli} --classes bear,bird,dog"
    sets = "--unit relu/0,relu/3 --random 19 --matched --seed 7 --device cpu"
    result = actstats(f"{command} {sets} --json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["rows"][0]["p_random"] is None
    p = found["rows"][1]["p_random"] * 20
    assert p == pytest.approx(round(p))
    assert (
        "p_random: 19 random sets of as many living units of the same layers, matched by activity"
        in found["notes"][0]
    )
    assert "p_random" in actstats(f"{command} {sets}").stdout.splitlines()[0]
    for given in ("--matched", "--seed 3"):
        result = actstats(f"{command} --unit relu/0 {given}")
        assert result.exit_code == 1
        assert result.stderr.startswith(
            f"actstats: error: {given.split()[0]} is for random sets: give --random too"
        )
    few = actstats(f"{command} --unit relu/0 --random 3 --json --device cpu")
    assert "p_random is at least 0.25 with 3 random sets" in json.loads(few.stdout)["notes"]
