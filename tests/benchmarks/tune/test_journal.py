"""Which trials are drawn: the same ones however often the command is ended and begun again."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from cetnet.benchmarks.tune.journal import Journal, importances
from cetnet.benchmarks.tune.space import Setting, Tune, Values
from cetnet.trainer.errors import UserError

SPACE = {
    "lr": Setting(low=1e-4, high=1e-1, log=True),
    "layers": Setting(low=1, high=4),
    "units": Setting(choices=([16], [8, 8], {"kind": "x"})),
}


def tune(**changes: object) -> Tune:
    return Tune.model_validate({"trials": 12, "shared": SPACE} | changes)


def ne_of(values: Values) -> float:
    return 1.0 if not values else abs(math.log10(values["lr"]) + 2) + 0.1 * values["layers"]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_the_same_however_often_it_is_begun_again(tmp_path: Path, sampler: str) -> None:
    def search(folder: Path, counts: list[int]) -> list[Values]:
        folder.mkdir()
        told: set[int] = set()
        for count in counts:
            journal = Journal(folder, "one", SPACE, tune(sampler=sampler))  # as after a kill
            for number in range(count):
                journal.values(count)
                if number not in told and number % 4 == 3:
                    for each in range(number - 3, number + 1):
                        journal.finished(each, 100, ne_of(journal.values(count)[each]))
                        told.add(each)
        return journal.values(counts[-1])

    at_once = search(tmp_path / "a", [4, 8, 12])
    assert search(tmp_path / "b", [1, 2, 4, 4, 5, 8, 11, 12]) == at_once
    assert at_once[0] == {}
    for values in at_once[1:]:
        assert 1e-4 <= values["lr"] <= 1e-1
        assert values["layers"] in (1, 2, 3, 4)
        assert values["units"] in SPACE["units"].ends
    assert len({values["lr"] for values in at_once[1:]}) == 11


def test_variants_share_the_points_of_what_they_share(tmp_path: Path) -> None:
    own = Setting(low=0.0, high=1.0)
    more = {key: setting for key, setting in SPACE.items() if key != "lr"} | {"own": own}  # which has no `lr`
    one = Journal(tmp_path, "one", SPACE, tune()).values(6)
    two = Journal(tmp_path, "two", more, tune()).values(6)
    for key in ("layers", "units"):
        assert [values[key] for values in two[1:]] == [values[key] for values in one[1:]]
    assert all(0 <= values["own"] <= 1 for values in two[1:])


def test_tpe_looks_where_trials_were_good(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one", SPACE, tune(trials=60, sampler="tpe"))
    for number in range(60):
        journal.finished(number, 100, ne_of(journal.values(number + 1)[number]))
    of = [ne_of(values) for values in journal.values(60)[1:]]
    assert np.mean(of[-20:]) < 0.7 * np.mean(of[:10])


def test_a_grid_is_every_point(tmp_path: Path) -> None:
    space = {"units": SPACE["units"], "b": Setting(choices=(0, 1))}
    grid = Tune.model_validate({"trials": 6, "sampler": "grid", "shared": space})
    drawn = Journal(tmp_path, "one", space, grid).values(6)
    expected = itertools.product(space["units"].ends, space["b"].ends)
    assert drawn == [{"units": units, "b": b} for units, b in expected]


def test_is_not_gone_on_with_in_another_space(tmp_path: Path) -> None:
    Journal(tmp_path, "one", SPACE, tune()).values(2)
    Journal(tmp_path, "one", SPACE, tune())
    for other in (tune(trials=13), tune(seeds=[5]), tune(eta=2)):
        with pytest.raises(UserError, match="begun with other settings of `tune`"):
            Journal(tmp_path, "one", SPACE, other)
    with pytest.raises(UserError, match="begun with other settings of `tune`"):
        Journal(tmp_path, "one", SPACE | {"lr": Setting(low=1e-4, high=1.0, log=True)}, tune())


def test_remembers_what_became_of_trials(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one", SPACE, tune())
    journal.values(4)
    journal.stopped(1, 320, 0.9)
    journal.failed(2, "exit code 2")
    journal.finished(3, 1000, 0.8)
    journal.stopped(3, 320, 0.7)  # said a second time, after a kill
    again = Journal(tmp_path, "one", SPACE, tune())
    assert again.stops() == {1: 320}
    assert again.failures() == {2: "exit code 2"}
    assert again.count == 4


def test_the_setting_that_matters_is_the_important_one(tmp_path: Path) -> None:
    values = Journal(tmp_path, "one", SPACE, tune(trials=60, sampler="random")).values(60)
    shares = importances(SPACE, values, [abs(math.log10(each["lr"]) + 2) if each else 1.0 for each in values])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["lr"] > 0.7
    assert importances(SPACE, values[:5], [1.0] * 5) == {}
