"""An agent that is asked for tasks hears the right one in each game and step, and is judged as a recording of it would be."""

import numpy as np
import pandas as pd
import pytest
import torch

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.act.asked import AskedAgent, asked_table, play_asked
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.dynamics import DynamicsConfig, ShortcutModel
from metabonk.measure.milestones import asked_gains
from metabonk.play.game import make_game
from metabonk.record.cache import Cache
from metabonk.record.store import Store
from metabonk.record.tasks import TaskSet, TaskWatch

SETTINGS = {"max_steps": 24, "ticks_per_step": 12, "image_size": (16, 16)}
TASKS = TaskSet(
    "Two", {"coin": "gain(coins) > 0", "bonk": "gain(bonks) > 0"}, {"some": "bonks >= 3", "first_bonk": "bonks > 0"},
    sequence={"some": "coin", "first_bonk": "bonk"},
)  # fmt: skip


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.manual_seed(0)
    with make_game("bonk", **SETTINGS) as game:
        spec = ActionSpec.of(game.action_space)
    tiny = {"width": 8, "layers": 2, "heads": 2, "time_every": 2}
    eyes = CausalTokenizer(CausalTokenizerConfig(size=(16, 16), patch=8, latents=2, bottleneck=2, context=2, **tiny)).eval()
    config = DynamicsConfig(**tiny, context=2, kv_heads=1, registers=1, units=8, tasks=2)
    model = ShortcutModel(eyes, spec, config, game="bonk").eval()
    return Agent(model, ActorCritic(ActorCriticConfig(layers=1, units=8), model.feature_size, spec))


def heard(player: AskedAgent, monkeypatch) -> tuple[list[list[int]], pd.DataFrame]:
    """The tasks of all rows that the model reads in two episodes that are played at once, and what was played."""
    told, observe = [], player.model.observe

    def spy(rows, *given, **named):
        told.append(rows.task[:, 0].tolist())
        return observe(rows, *given, **named)

    monkeypatch.setattr(player.model, "observe", spy)
    played = play_asked(player, "bonk", TASKS, 2, games=2, settings=SETTINGS)
    return told, played


def follows(told: list[list[int]], played: pd.DataFrame) -> bool:
    """Whether each game hears of coins until three bonks, then of bonks."""
    some = played["milestones/some"].to_numpy()
    return all(told[t] == [int(t >= when) for when in some] for t in range(len(told)))


def test_each_game_is_asked_for_its_own_next_task(agent, monkeypatch):
    told, played = heard(AskedAgent(agent, TASKS), monkeypatch)
    assert played["milestones/some"].notna().all() and len(told) == 24
    assert [0, 0] in told and [1, 1] in told and follows(told, played)


def test_a_sequence_that_does_not_go_on_is_caught(agent, monkeypatch):
    "Negative control."
    monkeypatch.setattr(TaskWatch, "asked", property(lambda self: "coin"))
    assert not follows(*heard(AskedAgent(agent, TASKS), monkeypatch))


def test_asked_for_one_task_it_hears_nothing_else(agent, monkeypatch):
    told, _ = heard(AskedAgent(agent, TASKS, "bonk"), monkeypatch)
    assert set(map(tuple, told)) == {(1, 1)}


def test_what_is_asked_for_reaches_the_policy(agent):
    features = []
    for task in TASKS.tasks:
        player = AskedAgent(agent, TASKS, task)
        with make_game("bonk", **SETTINGS) as game:
            observation, info = game.reset(seed=3)
            player.reset(0)
            player(observation, info)
        features.append(agent.model.features(player.state))
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_it_is_judged_as_its_recording_would_be(agent, tmp_path):
    judged = play_asked(agent, "bonk", TASKS, 2, 5, 2, SETTINGS)
    played = play_episodes(agent, "bonk", 2, 5, 2, SETTINGS, store=tmp_path / "store")
    assert judged["return"].tolist() == played["return"].tolist()
    store = Store.open(tmp_path / "store")
    cache, seeds = Cache.build(store), {episode.number: episode.about["seed"] for episode in store.episodes}
    done, reached = TASKS.done(cache), TASKS.reached(cache).set_index("episode")
    for number, seed in seeds.items():
        row = judged[judged["seed"] == seed].iloc[0]
        counts = done[cache.table["episode"] == number].sum(0).tolist()
        assert [row["done/coin"], row["done/bonk"]] == counts
        for name in TASKS.milestones:
            assert np.isclose(row[f"milestones/{name}"], reached.loc[number, f"milestones/{name}"], equal_nan=True)
    assert judged[["done/coin", "done/bonk"]].to_numpy().sum() > 0, "nothing was done, so nothing was compared"


def test_the_table_has_a_row_for_each_question():
    frames = {"a": pd.DataFrame({"done/a": [2, 4], "done/b": [0, 1]}), "b": pd.DataFrame({"done/a": [0, 0], "done/b": [5, 5]})}
    table = asked_table(frames)
    assert table.loc["a"].tolist() == [3, 0.5] and table.loc["b"].tolist() == [0, 5]


def test_what_can_not_be_asked_for_says_so(agent):
    with pytest.raises(UsageError, match="unknown task 'bonkk': did you mean 'bonk'"):
        AskedAgent(agent, TASKS, "bonkk")
    with pytest.raises(UsageError, match="the model learned 2 tasks, a task set has 1"):
        AskedAgent(agent, TaskSet("One", {"coin": "coins > 0"}, {}))
    with pytest.raises(UsageError, match="sequence: unknown milestone 'som'"):
        TaskSet("Astray", TASKS.tasks, TASKS.milestones, sequence={"som": "coin"})
    with pytest.raises(UsageError, match="sequence: unknown task 'coins'"):
        TaskSet("Astray", TASKS.tasks, TASKS.milestones, sequence={"some": "coins"})


def test_a_file_with_a_sequence(tmp_path):
    text = "title: Two\ntasks: {coin: gain(coins) > 0}\nmilestones: {one: coins > 0, ten: coins >= 10}\nsequence:\n  one: coin\n"
    (tmp_path / "two.yaml").write_text(text + "  ten: coin\n")
    assert TaskSet.load(tmp_path / "two.yaml").sequence == {"one": "coin", "ten": "coin"}
    (tmp_path / "two.yaml").write_text(text + "  one: coin\n")
    with pytest.raises(UsageError, match="'one' is there twice"):
        TaskSet.load(tmp_path / "two.yaml")
    (tmp_path / "two.yaml").write_text(text.replace("one: coin\n", "one: 3\n"))
    with pytest.raises(UsageError, match="sequence"):
        TaskSet.load(tmp_path / "two.yaml")


def test_without_a_sequence_the_first_task_is_asked_for():
    watch = TaskWatch(TaskSet("Two", TASKS.tasks, TASKS.milestones), ["coins", "bonks"])
    watch.step({"coins": 0, "bonks": 0})
    assert watch.asked == "coin" and watch.reached == {} and watch.done == {"coin": 0, "bonk": 0}
    watch.step({"coins": 1, "bonks": 0})
    watch.step({"coins": 1, "bonks": 6})
    assert watch.reached == {"some": 2, "first_bonk": 2} and watch.done == {"coin": 1, "bonk": 1}


def test_what_asking_is_worth_is_told_against_asking_for_another():
    """Three tasks, two episodes each: by hand; who does not listen gains nothing."""
    frame = pd.DataFrame({"done/a": [1, 3], "done/b": [2, 2], "done/c": [0, 4]})
    heard = {"a": frame.assign(**{"done/a": [4, 6]}), "b": frame, "c": frame.assign(**{"done/a": [3, 5]})}
    gains = asked_gains(heard)
    assert gains.loc["a", ["asked for it", "asked for others", "difference"]].tolist() == [5, 3, 2]  # others: (2 + 4) / 2
    assert gains.loc["a", "low"] == gains.loc["a", "high"] == 2, "run by run the same"
    assert gains.loc["b", "difference"] == gains.loc["c", "difference"] == 0
    deaf = asked_gains(dict.fromkeys("abc", frame))
    assert (deaf["difference"] == 0).all()
    with pytest.raises(UsageError, match="wrong one"):
        asked_gains({"a": frame})
