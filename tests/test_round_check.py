"""What a model got wrong about a round of real play is counted and marked; what its policy dreams of earning; scores by parts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_measure import PLACES, Walker, walks

from metabonk.core.errors import StoreError, UsageError
from metabonk.measure import reality
from metabonk.measure.evaluation import score_parts
from metabonk.measure.reality import RewardSound, RoundCheck, dreamed_returns, first_rows
from metabonk.nn.distributions import Categorical
from metabonk.record.segments import SEGMENT


class Reader(Walker):
    """Reads every row; `silent` hears no bell, `deaf_to` forgets the bell of one place."""

    def observe(self, context: Any, state: Any = None, every: bool = False, generator: Any = None) -> dict[str, torch.Tensor]:
        assert not self.training
        part = context if every else context.map(lambda column: column[:, -1:])
        place = part.image.argmax(-1).flatten()
        return {"place": place, "rang": part.audio[..., 0].flatten(), "before": torch.zeros_like(place)}


class Cache:
    """Three walks, of episodes 4, 5 and 6."""

    path, sizes = "nowhere", {"audio": (1, 2)}

    def __init__(self) -> None:
        self.walks = walks(sequences=3, rows=30, seed=2)
        self.segments = np.array([(0, 0, 0, 30, 4 + i, 0, 30 * i) for i in range(3)], SEGMENT)
        columns = {"audio": self.walks.audio.numpy().reshape(90, 1), "reward": self.walks.reward.numpy().reshape(90)}
        self.table = np.zeros(90, [("audio", np.int64, (1,)), ("reward", np.float32)])
        for name, column in columns.items():
            self.table[name] = column.reshape(self.table[name].shape)

    def gather(self, places: Any) -> Any:
        [[(begin, end)]] = places
        some = self.walks.map(lambda column: column[begin // 30 : begin // 30 + 1, : end - begin])
        some.torch = lambda: some
        return some


@pytest.fixture
def check(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> RoundCheck:
    """Of a store in which episode 4 is of round 0 and the others of round 1."""
    cache = Cache()
    about = [SimpleNamespace(number=n, about={"round": r}) for n, r in ((4, 0), (5, 1), (6, 1))]
    about.append(SimpleNamespace(number=1, about={}))
    monkeypatch.setattr(reality.Store, "open", lambda path: SimpleNamespace(episodes=about))
    data = SimpleNamespace(prepare_data=lambda: None, open=lambda: cache)
    return RoundCheck(tmp_path, lambda store: data)


def agent(**wrong: Any) -> Any:
    return SimpleNamespace(model=Reader(**wrong).eval())


def rang(episodes: slice = slice(1, 3)) -> int:
    return int(walks(sequences=3, rows=30, seed=2).reward[episodes, 1:].sum())


def test_a_model_that_is_right_is_wrong_nowhere(check: RoundCheck) -> None:
    counts = check(agent(), Path("store"))
    assert counts["rewards"] == counts["sounds"] == rang() > 3
    assert sum(counts.values()) == 2 * rang() and len(pd.read_csv(check.marks)) == 0


def test_invented_rewards_and_sounds_are_counted_and_marked(check: RoundCheck) -> None:
    """A bell at every place from 4 on: paid and heard, and in the rows that are marked."""
    check.slack = 0
    counts = check(agent(invents=4), Path("store"))
    played = walks(sequences=3, rows=30, seed=2)
    false = (played.image.argmax(-1) >= 4) & (played.action == 1) & ~played.first
    wanted = [(4 + e, t) for e, t in np.argwhere(false.numpy()).tolist() if e > 0]
    assert counts["hallucinated rewards"] == counts["hallucinated sounds"] == len(wanted) > 3
    assert counts["missed rewards"] == counts["missed sounds"] == 0
    marks = pd.read_csv(check.marks)
    assert list(zip(marks["episode"], marks["step"], strict=True)) == wanted and set(marks["round"]) == {1}


def test_a_round_that_is_counted_again_replaces_itself(check: RoundCheck) -> None:
    pd.DataFrame({"episode": [4, 5], "step": [2, 9], "round": [0, 1]}).to_csv(check.marks, index=False)
    check(agent(), Path("store"))
    assert pd.read_csv(check.marks).to_dict("list") == {"episode": [4], "step": [2], "round": [0]}


def test_rewards_that_come_late_are_missed(check: RoundCheck) -> None:
    """Negative control: actions read a step late, one step ahead: no bell is foreseen."""
    counts = check(agent(late=True), Path("store"))
    assert counts["missed rewards"] == counts["missed sounds"] == rang() and counts["hallucinated rewards"] == 0


def test_the_sound_of_rewards_is_found_among_others() -> None:
    generator = np.random.default_rng(0)
    rewarded = generator.random(2_000) < 0.05
    tokens = generator.integers(0, 6, (2_000, 4))
    tokens[rewarded, 2] = 7  # the ding
    tokens[generator.random(2_000) < 0.1, 3] = 6  # a thud, as often with a reward as without
    heard = RewardSound.of(tokens, rewarded, 9)
    assert heard.score.argmax() == 7 and (heard(tokens) == rewarded).mean() > 0.999
    assert not RewardSound.of(tokens, np.zeros(2_000, bool), 9)(tokens).any()


def test_a_dream_s_rewards_count_as_far_as_it_goes_on() -> None:
    """Always on: a bell every round; with an end at place 3, nothing behind it counts."""
    always = lambda features: Categorical(torch.tensor([-50.0, 50.0]).expand(len(features), 2))  # noqa: E731
    batch = walks(sequences=4, rows=2)
    endless = dreamed_returns(Reader().eval(), always, batch, 10 * PLACES)
    assert endless.tolist() == [10] * 4
    start = batch.image[:, -1].argmax(-1).numpy()
    ended = dreamed_returns(Reader(end=3).eval(), always, batch, 10 * PLACES)
    assert ended.tolist() == [float(0 < place > 3) if place != 3 else 1.0 for place in start]


def test_first_rows_are_the_first() -> None:
    class Tokens:
        path, segments = "tokens", np.array([(0, 0, 0, 9, 1, 0, 0), (0, 0, 9, 9, 1, 9, 9), (0, 0, 18, 3, 2, 0, 18)], SEGMENT)

        def gather(self, places: Any) -> Any:
            return SimpleNamespace(torch=lambda: places)

    assert first_rows(Tokens(), 4) == [[(0, 4)]] and first_rows(Tokens(), 3) == [[(0, 3)], [(18, 21)]]
    with pytest.raises(UsageError, match="begins with 10 rows"):
        first_rows(Tokens(), 10)


def test_a_score_is_the_sum_of_its_parts() -> None:
    one = pd.DataFrame({"return": [3.0, 5.0], "terms/score": [4.0, 6.0], "terms/hurt": [-1.0, -1.0], "terms/badge": [0.0, 0.0],
                        "probes/coins": [1, 3], "probes/visited": [2, 2]})  # fmt: skip
    none = one * 0
    table = score_parts({"dreams only": one, "random": none}, {"dreams only": 12.0})
    assert table["dreams only"].round(6).to_dict() == {
        "score": 4, "by score": 5, "by hurt": -1, "coins": 2, "screens": 2, "dreamed": 12, "dreamed / score": 3}  # fmt: skip
    assert table.loc["dreamed"].isna()["random"] and "bonks" not in table.index
    assert "dreamed" not in score_parts({"random": none}).index


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"episode,step\n1,2\n"])
def test_a_damaged_file_of_marks_is_told(check: RoundCheck, content: bytes) -> None:
    check.marks.write_bytes(content)
    with pytest.raises(StoreError, match="no list of rows"):
        check(agent(), Path("store"))
