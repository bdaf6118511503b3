"""Tasks and milestones: told from probes, episode by episode, whatever order the rows lie in; and how often they are reached."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.measure.milestones import milestone_table
from metabonk.record.cache import Cache
from metabonk.record.experience import Schema, Step
from metabonk.record.store import Store
from metabonk.record.tasks import TaskSet, in_time, relevant_rows, task_files

COINS = [[0, 0, 1, 1, 3, 3, 3], [5, 5, 6], [0, 0, 0, 0]]  # of three episodes


def recorded(path: Path, streams: list[list[list[int]]], probe: str = "coins", chunk: int = 2) -> Cache:
    """Episodes whose probe has these values; the games of all streams were played side by side."""
    schema = Schema(game="test", image_shape=(2, 2, 3), channels=1, sample_rate=1000, clock_rate=60.0,
                    actions=ActionSpec(categorical=(2,)),
                    probes={probe: "int64"})  # fmt: skip
    rows = [[Step(np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2), np.int16), np.array(0), float(t == 1), False, t == len(e) - 1,
                  t == 0, t, t, {probe: value}) for e in stream for t, value in enumerate(e)] for stream in streams]  # fmt: skip
    store = Store.create(path, schema)
    with store.writer(chunk) as writer:
        for side_by_side in itertools.zip_longest(*rows):
            for number, row in enumerate(side_by_side):
                if row is not None:
                    writer.add(row, number)
    return Cache.build(Store.open(path))


TASK = TaskSet("test", {"collect": "gain(coins) > 0", "twice": "gain(coins) >= 2", "paid": "reward > 0"},
               {"some": "coins > 0", "three": "coins >= 3"})  # fmt: skip


@pytest.mark.parametrize("streams", [[COINS], [[COINS[0]], [COINS[1], COINS[2]]]], ids=["one game", "two games at once"])
def test_each_episode_is_told_for_itself(tmp_path, streams):
    cache = recorded(tmp_path / "store", streams)
    order, done = in_time(cache), TASK.done(cache)
    found = {}
    for episode in np.unique(cache.table["episode"]):
        rows = [row for row in order if cache.table["episode"][row] == episode]
        found[tuple(cache.table["probes/coins"][rows])] = done[rows].astype(int).T.tolist()
    assert found == {
        (0, 0, 1, 1, 3, 3, 3): [[0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0]],
        (5, 5, 6): [[0, 0, 1], [0, 0, 0], [0, 1, 0]],  # what another episode had is no gain
        (0, 0, 0, 0): [[0] * 4, [0] * 4, [0, 1, 0, 0]],
    }
    reached = TASK.reached(cache).set_index("length").drop(columns="episode")
    assert reached.loc[6].tolist() == [2, 4] and reached.loc[2].tolist() == [0, 0] and reached.loc[3].isna().all()


def test_rows_on_the_way_end_at_their_episode(tmp_path):
    cache = recorded(tmp_path / "store", [[COINS[0]], [COINS[1], COINS[2]]])
    done = TASK.done(cache)
    for within in (0, 1, 3):
        near = relevant_rows(done, cache, within)
        for row in range(len(done)):
            same = cache.table["episode"] == cache.table["episode"][row]
            ahead = cache.table["step"].astype(int) - int(cache.table["step"][row])
            assert (near[row] == done[same & (ahead >= 0) & (ahead <= within)].any(0)).all()


@pytest.mark.parametrize("name", task_files())
def test_files_that_come_along_can_be_read(name):
    tasks = TaskSet.load(name)
    assert tasks.title and tasks.tasks
    least = {"bonk": (8, 9), "bonk_first": (3, 3), "minecraft": (8, 9), "pendulum": (1, 2), "reward": (1, 0)}[name]
    assert len(tasks.tasks) >= least[0] and len(tasks.milestones) >= least[1]


def test_a_diamond_is_told_from_its_count(tmp_path):
    tasks = TaskSet.load("minecraft")
    mined = TaskSet("one", {"mine_diamond": tasks.tasks["mine_diamond"]}, {"diamond": tasks.milestones["diamond"]})
    cache = recorded(tmp_path / "store", [[[0, 0, 1, 2]]], probe="mine_diamond")
    assert mined.done(cache)[:, 0].tolist() == [False, False, True, True]
    assert mined.reached(cache)["milestones/diamond"].tolist() == [2]


def test_bad_files_say_what_is_wrong(tmp_path):
    cache = recorded(tmp_path / "store", [[[0, 1]]])
    texts = {"tasks: {}": "no task", "title: x": "no task", "tasks: [a]": "must hold lines", "goals: {a: 1}": "unknown section",
             "- a": "not a task set", "tasks: {a: b": "not YAML"}  # fmt: skip
    for text, said in texts.items():
        path = tmp_path / "file.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            TaskSet.load(path)
    for expression, said in {"coin > 0": "coin.*coins", "gain(": "not an expression", "open('x')": "open"}.items():
        with pytest.raises(UsageError, match=said):
            TaskSet("test", {"a": expression}, {}).done(cache)
    with pytest.raises(UsageError, match="bonk"):
        TaskSet.load("bonkk")
    with pytest.raises(UsageError, match="there is no task set .*missing.yaml"):
        TaskSet.load(tmp_path / "missing.yaml")


def test_shares_and_times():
    times = {"milestones/all": [1.0, 2, 3, 4], "milestones/one": [np.nan, 6, np.nan, np.nan], "milestones/none": [np.nan] * 4}
    table = milestone_table(pd.DataFrame(times), step_seconds=30)
    assert table["share"]["estimate"].tolist() == [1, 0.25, 0] and table["reached"].squeeze().tolist() == [4, 1, 0]
    # Wilson, by hand: n = 4, z = 1.96; (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)
    assert table["share"].loc["one", "low"] == pytest.approx(0.0456, abs=1e-3)
    assert table["share"].loc["one", "high"] == pytest.approx(0.6994, abs=1e-3)
    assert table["share"].loc["none", "high"] > 0.4 and table["share"].loc["all", "low"] < 0.6
    assert table["minutes"].loc["all", "estimate"] == 1.25 and table["minutes"].loc["one", "estimate"] == 3
    assert np.isnan(table["minutes"].loc["one", "low"]) and np.isnan(table["minutes"].loc["none", "estimate"])
    with pytest.raises(UsageError, match="milestones"):
        milestone_table(pd.DataFrame({"return": [1.0]}))
