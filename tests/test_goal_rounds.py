"""Rounds of an agent with goals: its rows in the store, a model that is refreshed by them, and the best by its real score."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mutants import mutant
from test_dual import BONK, VOCABULARY, Eyes, policy

from metabonk.act import goal_rounds
from metabonk.act.agent import Agent
from metabonk.act.dreaming import DreamConfig
from metabonk.act.dual import DualAgent
from metabonk.act.finetune import FineTuneConfig
from metabonk.act.goal_codes import GoalRows
from metabonk.act.goal_rounds import AskedRows, GoalRounds, GoalUpdates
from metabonk.act.planner import GraphPlanner, read_journal
from metabonk.act.planner_loop import LoopConfig
from metabonk.core.errors import UsageError
from metabonk.core.learner import Learner, TrainConfig
from metabonk.dream.probes import GoalHead, Heads, Probe, ProbeHeads
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import ExperienceData, SequenceConfig
from metabonk.record.store import Store

SETTINGS = {"ticks_per_step": 12, "max_steps": 15, "start_screen": 5}
SHORT = TrainConfig.preset("tiny", steps=2)


class Cells(Eyes):
    """Pictures that fade, as fast as it has learned."""

    def __init__(self):
        super().__init__()
        self.fade = torch.nn.Parameter(torch.tensor(0.5))

    def observe(self, context, state=None, every=False, generator=None):
        image = (context.image if every else context.image[:, -1:]).flatten(0, 1)
        return {"seen": torch.nn.functional.adaptive_avg_pool2d(image.movedim(-1, 1).float() / 255, 4).flatten(1)}

    def advance(self, state, action, generator=None):
        return {"seen": self.fade * state["seen"]}

    def reward(self, features):
        return 0 * features[..., 0]

    def continuation(self, features):
        return 1 + 0 * features[..., 0]

    def save(self, folder):
        folder.mkdir()
        torch.save(self.fade.data, folder / "fade.pt")

    @classmethod
    def load(cls, folder):
        model = cls()
        model.fade.data = torch.load(folder / "fade.pt")
        return model


class Fades(Learner):
    """Learns how fast."""

    def __init__(self, model: Cells):
        super().__init__()
        self.model = model

    def losses(self, batch):
        seen = self.model.observe(batch, every=True)["seen"].unflatten(0, batch.first.shape)
        return {"next": (self.model.fade * seen[:, :-1] - seen[:, 1:]).square().mean(-1)}


def data(store: Path, archive: Path) -> ExperienceData:
    return ExperienceData(store, SequenceConfig(length=8, batch_size=4, recent=0.5, marked=0.25), marks=archive)


def learners(model, heads, asked):
    codes = torch.from_numpy(VOCABULARY.table(BONK)[1:])
    return {"model": (Fades(model), SHORT), "probes": (heads.learner(model, asked.table, codes, asked.hold), SHORT)}


def rounds_in(folder: Path, kind: type[GoalRounds] = GoalRounds, update=None, count: int = 2, **more) -> GoalRounds:
    """Not played yet; a recording of one episode is there."""
    if not Store.exists(folder / "store"):
        record("bonk", folder / "store", "script:up 30", episodes=1, settings=SETTINGS)
    torch.manual_seed(0)
    heads = Heads(ProbeHeads(48, {"screen": Probe.of("place", np.arange(9.0))}), GoalHead(48, VOCABULARY.size))
    dreams = DreamConfig(horizon=2, replay=0.0, starts=8)
    update = update or GoalUpdates(data, learners, heads, policy=SHORT, dreams=dreams)
    config, loop = FineTuneConfig(rounds=count, episodes=2, games=2), LoopConfig(latency_steps=2, gap_steps=0)
    dual = DualAgent(Agent(Cells(), policy()), VOCABULARY, BONK)
    return kind(dual, "bonk", folder / "store", folder / "rounds", update, lambda rooms, game: GraphPlanner(BONK, rooms),
                config, SETTINGS, loop, **more)  # fmt: skip


def missing(rounds: GoalRounds) -> list[str]:
    """What is not as it should be after all rounds."""
    numbers = [episode.about.get("round") for episode in Store.open(rounds.store).episodes]
    wrong = [] if numbers == [None, 0, 0, 1, 1, 2, 2] else ["rows"]
    heads = [rounds.update.of_round(rounds.folder, number).state_dict() for number in (1, 2)]
    wrong += [] if rounds.agent.model.fade != 0.5 else ["model"]
    wrong += [] if any(not heads[1][name].equal(value) for name, value in heads[0].items()) else ["heads"]
    weights = rounds.agent.agent.actor_critic.state_dict()
    wrong += [] if any(not weights[name].equal(value) for name, value in policy().state_dict().items()) else ["policy"]
    listed = pd.read_csv(rounds.place(2) / "archive.csv")
    return wrong + ([] if listed["episode"].max() > 0 or "rows" in wrong else ["archive"])


def test_each_round_adds_rows_and_refreshes_model_heads_and_policy(tmp_path):
    rounds = rounds_in(tmp_path)
    table = rounds.run()
    assert missing(rounds) == [] and table["steps"].tolist() == [30, 60, 90]
    calls = [line for line in read_journal(rounds.place(2) / "journals/1.jsonl") if line["event"] == "call"]
    assert calls and calls[0]["latency_steps"] == 2
    best = DualAgent.load(rounds.best_agent, Cells.load, BONK)
    assert (best.model.fade == 0.5) == (rounds.best == 0) and table["score"][rounds.best] == table["score"].max()
    again = rounds_in(tmp_path)
    assert again.run().equals(table) and again.agent.model.fade == rounds.agent.model.fade, "nothing is left to do"


@pytest.mark.parametrize(("owner", "name", "old", "new", "wrong"), [
    (GoalUpdates, "__call__", "uninterrupted(fit(learner, self.data(store, archive), folder / name, train))", "pass",
     ["model", "heads"]),
    (GoalRounds, "perform", "self.settings, self.store, about)", "self.settings, None, about)", ["rows"]),
    (GoalUpdates, "__call__", "uninterrupted(fit(dreamer,", "(lambda *_: None)((dreamer,", ["policy"]),
], ids=["the model is not refreshed", "what was played is not kept", "the policy does not learn"])  # fmt: skip
def test_rounds_that_leave_something_out_are_caught(tmp_path, monkeypatch, owner, name, old, new, wrong):
    "Negative controls."
    monkeypatch.setattr(owner, name, mutant(vars(owner)[name], old, new))
    rounds = rounds_in(tmp_path)
    rounds.run()
    assert missing(rounds) == wrong


@pytest.mark.parametrize(("best_by", "best"), [("return", 1), ("milestones", 2)])
def test_the_best_is_chosen_by_its_real_score(tmp_path, monkeypatch, best_by, best):
    coins = iter([(1.0, 1), (5.0, 0), (2.0, 2), (5.0, 0)])

    def played(*given):
        earned, reached = next(coins)
        times = {f"milestones/{n}": [3.0 if i < reached else np.nan] for i, n in enumerate(("key", "first_coin"))}
        return pd.DataFrame({"return": [earned], "length": [1], **times})

    monkeypatch.setattr(goal_rounds, "play_episodes", played)
    rounds = rounds_in(tmp_path, update=lambda dual, store, folder: None, count=3, best_by=best_by)
    table = rounds.run()
    assert rounds.best == best and rounds.best_agent.exists()
    assert table["return"].tolist() == [1, 5, 2, 5] and table["milestones"].tolist() == [1, 0, 2, 0]


def test_bad_input_is_told(tmp_path):
    with pytest.raises(UsageError, match="best_by"):
        rounds_in(tmp_path, best_by="luck")
    rounds = rounds_in(tmp_path)
    rounds.store = tmp_path / "nowhere"
    with pytest.raises(UsageError, match="no recording"):
        rounds.run()


def test_what_dreams_are_asked_for_is_the_planners_or_came_later(tmp_path):
    record("bonk", tmp_path / "store", "script:up 30", episodes=2, settings={**SETTINGS, "max_steps": 40})
    cache = Cache.build(Store.open(tmp_path / "store"))
    planned, later = (AskedRows.of(cache, BONK, share) for share in (0.0, 1.0))
    rows = GoalRows.of(cache, BONK)
    assert planned.station.sum() == rows.reached.any(1).sum() > 0
    first = planned.aims[rows.order[0]]
    assert first == 1 + BONK.milestones.index("first_coin"), "the graph planner's first wish"
    assert (later.aims > 0).all() and (later.aims != planned.aims).any()
    listed = pd.read_csv(planned.archive(tmp_path / "deep/archive.csv"))
    assert list(listed.columns) == ["episode", "step"] and len(listed) == planned.station.sum()
