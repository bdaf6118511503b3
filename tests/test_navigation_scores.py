"""Scores of navigation are those of their formulas; success needs a stop, and the stop is counted."""

import numpy as np
import pandas as pd
import pytest
from mutants import mutant

from metabonk.core.errors import UsageError
from metabonk.measure import navigation_scores as nav


def walk(far=3.0, steps=14, turns=0, stop=True, shortest=15):
    """The row of a walk straight to the source."""
    x = np.concatenate([np.zeros(turns), 0.15 * np.arange(steps + 1)])
    x = np.concatenate([x, x[-1:]]) if stop else x
    return nav.navigation_row([1] * turns + [0] * steps + [3] * stop, np.stack([0 * x, x], 1), far - x, shortest)


def test_formulas_by_hand():
    rows = pd.DataFrame(
        [
            [1, 1, 4.0, 0.5, 5.0, 60, 30],  # found, by a detour
            [0, 1, 4.0, 2.0, 3.0, 40, 30],  # stopped too early
            [0, 0, 4.0, 0.5, 8.0, 500, 30],  # near, and never stopped
            [1, 1, 0.9, 0.9, 0.0, 1, 1],  # begins near enough
            [0, 0, 4.0, 6.0, 2.0, 500, 30],  # went away
        ],
        columns=nav.COLUMNS,
    )
    found = nav.episode_scores(rows)
    assert np.allclose(found["SPL"], [4 / 5, 0, 0, 1, 0])
    assert np.allclose(found["SoftSPL"], [3.5 / 4 * 4 / 5, 0.5, 3.5 / 4 / 2, 0, 0])
    assert found["NA"].tolist() == [60, 40, 500, 1, 500] and np.allclose(found["SNA"], [0.5, 0, 0, 1, 0])


def success_needs_a_stop() -> bool:
    there = pd.DataFrame([walk(stop=False), walk(), walk(far=3.15)])
    return nav.episode_scores(there)["success"].tolist() == [0, 1, 0] and there["success"].tolist() == [0, 1, 0]


def test_success_without_stop(monkeypatch):
    assert success_needs_a_stop()
    claimed = pd.DataFrame([walk(stop=False)]).assign(success=1)
    with pytest.raises(UsageError, match="without stop"):
        nav.episode_scores(claimed)
    for old, new in (("stopped and far[-1] < near", "far[-1] < near"), ("far[-1] < near", "far[-1] <= near + 0.2")):
        with monkeypatch.context() as patch:
            patch.setattr(nav, "navigation_row", mutant(nav.navigation_row, old, new))
            try:
                seen = not success_needs_a_stop()
            except UsageError:
                seen = True
            assert seen, new


def stop_is_counted() -> bool:
    rows = pd.DataFrame([walk(), walk(turns=5), walk(stop=False)])
    found = nav.episode_scores(rows)
    return found["NA"].tolist() == [15, 20, 14] and np.allclose(found["SNA"], [1, 15 / 20, 0])


def test_actions_without_the_stop(monkeypatch):
    assert stop_is_counted()
    wrong = mutant(nav.navigation_row, '"actions": len(acts)', '"actions": len(acts) - stopped')
    monkeypatch.setattr(nav, "navigation_row", wrong)
    with pytest.raises(UsageError, match="not counted"):
        stop_is_counted()


def test_rows_that_contradict_themselves():
    good = pd.DataFrame([walk(), walk(turns=3)], index=["a", "b"])
    assert len(nav.episode_scores(good)) == 2
    for change, what in (
        ({"geodesic_end": 1.0}, "1.0 m or more"), ({"success": 0}, "is no success"), ({"geodesic_start": 0}, "at the source"),
        ({"path_length": np.nan}, "finite"), ({"shortest_actions": 0}, "needs none"), ({"path_length": 9.0}, "walks farther"),
    ):  # fmt: skip
        bad = good.copy()
        bad.loc["b", list(change)] = list(change.values())
        with pytest.raises(UsageError, match=f"episode b .*{what}"):
            nav.episode_scores(bad)
    for table, what in ((good.drop(columns="stopped"), "stopped"), (good[:0], "no episodes")):
        with pytest.raises(UsageError, match=what):
            nav.episode_scores(table)
    x = np.zeros((4, 2))
    with pytest.raises(UsageError, match="start included"):
        nav.navigation_row([0, 0, 0, 3], x, x[:, 0] + 2, 1)
    with pytest.raises(UsageError, match="it ends an episode"):
        nav.navigation_row([0, 3, 0], x, x[:, 0] + 2, 1)


def agents():
    slow = [walk(), walk(turns=10), walk(stop=False), walk(turns=4)]
    quick = [walk(), walk(turns=2), walk(turns=20), walk(steps=5)]  # the last one stops too early
    return {name: pd.DataFrame(rows).assign(seed=range(4)) for name, rows in {"slow": slow, "quick": quick}.items()}


def test_actions_over_episodes_that_all_solved():
    scores = nav.navigation_scores(agents())
    assert scores["slow"][nav.COMMON].dropna().tolist() == [15, 25]
    assert scores["quick"][nav.COMMON].dropna().tolist() == [15, 17]
    table = nav.navigation_table(agents())
    assert table.loc[("quick", nav.COMMON), ["episodes", "estimate", "difference"]].tolist() == [2, 16, -4]
    assert table.loc[("quick", "NA"), "estimate"] == (15 + 17 + 35 + 6) / 4
    row = table.loc[("quick", "SPL")]
    assert row["low"] <= row["estimate"] <= row["high"] and row["difference_low"] <= row["difference"]
    assert np.isnan(table.loc[("slow", "NA"), "difference"])
    with_untrained = {**agents(), "untrained": pd.DataFrame([walk(stop=False)] * 4).assign(seed=range(4))}
    table = nav.navigation_table(with_untrained, control="untrained")
    assert table.loc[("quick", nav.COMMON), "episodes"] == 2, "who never succeeds has no say"
    assert table.loc[("untrained", nav.COMMON), "episodes"] == 0 and np.isnan(table.loc[("quick", nav.COMMON), "difference"])
    everything = mutant(nav.navigation_scores, "logical_and", "logical_or")
    assert everything(agents())["slow"][nav.COMMON].dropna().tolist() != [15, 25]


def test_agents_must_have_played_the_same_episodes():
    others = agents()
    for change in (others["quick"].iloc[::-1], others["quick"][:3], others["quick"].drop(columns="seed")):
        with pytest.raises(UsageError, match="other episodes"):
            nav.navigation_table({**others, "quick": change})
    with pytest.raises(UsageError, match="none of the agents"):
        nav.navigation_table(others, control="nobody")
    alone = nav.navigation_table({"one": others["slow"][2:3]})
    assert alone.loc[("one", nav.COMMON), "episodes"] == 0 and np.isnan(alone.loc[("one", nav.COMMON), "estimate"])
