"""The dual agent: what repeats, what never waits, what is dropped, what is refused; drift and milestones against time."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from ipywidgets import Label
from mutants import mutant

from metabonk.act import planner_loop
from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.act.dual import DualAgent, asked_for, follow, goals_of, make_planner
from metabonk.act.goal_codes import GoalRows, GoalVocabulary
from metabonk.act.goals import Goal, Goals
from metabonk.act.planner import GraphPlanner, Plan, PlannerFailed, RandomPlanner, planned_goals, read_journal
from metabonk.act.planner_loop import LoopConfig, PlannerLoop
from metabonk.act.watching import Watching
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, UsageError
from metabonk.dream.interface import WorldModel
from metabonk.dream.probes import GoalHead, Heads, Probe, ProbeHeads
from metabonk.measure import milestones
from metabonk.measure.drift import probe_drift
from metabonk.measure.milestones import milestone_curve
from metabonk.play.course import ROM
from metabonk.play.game import make_game
from metabonk.play.keyboard import play
from metabonk.play.profile import load_profile
from metabonk.record.recording import recording_schema

BONK = Goals(load_profile("bonk"))
VOCABULARY = GoalVocabulary.of(BONK)
SETTINGS = {"ticks_per_step": 12, "max_steps": 25}


class Eyes(WorldModel):
    """Sees 4 by 4 cells."""

    feature_size, actions, game = 48, ActionSpec(categorical=(11,)), "bonk"

    def observe(self, context, state=None, every=False, generator=None):
        return {"seen": F.adaptive_avg_pool2d(context.image[:, -1].movedim(-1, 1).float() / 255, 4).flatten(1)}

    def features(self, state):
        return state["seen"]

    def save(self, folder):
        folder.mkdir()

    @classmethod
    def load(cls, folder):
        return cls()


def policy(seed: int = 0, strength: float = 30.0) -> ActorCritic:
    """Not trained; what it does depends strongly on its goal."""
    torch.manual_seed(seed)
    made = ActorCritic(ActorCriticConfig(layers=1, goal_size=VOCABULARY.size, unimix=0.0), 48, Eyes.actions)
    with torch.no_grad():
        for name, weight in made.actor.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, strength / weight.shape[1] ** 0.5) if "0" in name else weight.normal_()
    return made


def dual(loops=None, kind: type[DualAgent] = DualAgent) -> DualAgent:
    """A dual agent with an untrained policy."""
    return kind(Agent(Eyes(), policy()), VOCABULARY, BONK, loops)


def graph(latency: int | None = 3, planner=None, **more):
    """Loops with a graph planner that asks often."""
    made = planner or GraphPlanner(BONK)
    return lambda number: PlannerLoop(made, BONK, LoopConfig(latency_steps=latency, gap_steps=0, stuck_steps=5), **more)


def acts(agent: DualAgent, seed: int = 0, steps: int = 20) -> tuple[list[int], list[str]]:
    """Actions, and what was asked for."""
    game, done, asked = make_game("bonk", **SETTINGS), [], []
    with agent:
        agent.check(game)
        agent.reset(seed)
        observation, info = game.reset(seed=seed)
        for _ in range(steps):
            done.append(agent(observation, info))
            asked.append(agent.loops[0].goal.text if agent.loops and agent.loops[0].goal else "")
            observation, *_, info = game.step(done[-1])
    game.close()
    return done, asked


# What repeats


def test_one_seed_and_one_latency_give_one_play():
    loops = lambda latency: graph(latency, RandomPlanner(BONK, 1))  # noqa: E731
    one, again, other = acts(dual(loops(3))), acts(dual(loops(3))), acts(dual(loops(9)))
    assert one == again and one[0] != other[0] and one[1] != other[1]
    assert one[1][:4] == ["", "", "", one[1][3]] and one[1][3]
    assert acts(dual(loops(3)), seed=1) != one


def test_the_policy_is_told_the_goal_that_stands_in_that_very_step():
    told = []

    class Ear(ActorCritic):
        def policy(self, features, goal=None, guidance=0.0):
            told.append(goal[0].numpy().copy())
            return super().policy(features, goal, guidance)

    def heard(kind=DualAgent):
        told.clear()
        agent = dual(graph(0, RandomPlanner(BONK, 1)), kind)
        agent.agent.actor_critic.__class__ = Ear
        asked = acts(agent)[1]
        return [VOCABULARY.text_size and bool(code.any()) == bool(text) for code, text in zip(told, asked, strict=True)]

    assert all(heard())

    class Late(DualAgent):
        "The goal of the step before"

    Late.decide = mutant(DualAgent.decide, "self.code(game)", "self.__dict__.setdefault('old', [self.code(9)]).pop()")
    decide = Late.decide

    def late(self, *args, **kwargs):
        result = decide(self, *args, **kwargs)
        self.old = [self.code(0)]
        return result

    Late.decide = late
    assert not all(heard(Late)), "the first goal comes a step too late"


def test_each_of_several_games_has_its_own_goal():
    with dual(lambda n: graph(0, GraphPlanner(BONK) if n else RandomPlanner(BONK, 5))(n)) as agent:
        played = play_episodes(agent, "bonk", 2, games=2, settings=SETTINGS)
        goals = [agent.loops[n].goal for n in (0, 1)]
        assert goals[0] != goals[1] and (agent.code(0) != agent.code(1)).any()
        assert agent.agent.goal.shape == (2, VOCABULARY.size)
        told = agent.agent.goal
        assert told.any(1).all() and not told[0].equal(told[1])
    assert {"milestones/first_coin", "milestones/key"} <= set(played.columns)


# What never waits


def test_a_slow_planner_never_blocks():
    answer, asked = threading.Event(), threading.Event()

    class Slow(GraphPlanner):
        "Answers when it is allowed to"

        def plan(self, situation):
            asked.set()
            assert answer.wait(60)
            return super().plan(situation)

    agent = dual(graph(None, Slow(BONK)))
    game = make_game("bonk", **SETTINGS)
    agent.reset(0)
    observation, info = game.reset(seed=0)
    for _ in range(20):  # all of them while it thinks
        observation, *_, info = game.step(agent(observation, info))
    assert asked.wait(10) and agent.loops[0].goal is None and not answer.is_set()
    answer.set()
    call = agent.loops[0].asker.call
    for _ in range(10_000):
        if call.answer is not None:
            break
        threading.Event().wait(0.001)
    agent.loops[0].step(info["probes"])
    assert agent.loops[0].counts.total() == 1
    agent.close()
    game.close()


def test_a_picture_is_made_for_a_question_alone(monkeypatch):
    pictures = []

    class Looks(GraphPlanner):
        "Keeps what it is shown"

        def plan(self, situation):
            pictures.append(situation.image)
            return super().plan(situation)

    game, rendered = make_game("bonk", **SETTINGS), []
    render = type(game.unwrapped).render
    monkeypatch.setattr(type(game.unwrapped), "render", lambda self: rendered.append(1) or render(self))
    with dual(graph(0, Looks(BONK))) as agent:
        agent.check(game)
        observation, info = game.reset(seed=0)
        for _ in range(15):
            observation, *_, info = game.step(agent(observation, info))
    assert 1 <= len(rendered) == len(pictures) < 15 and {picture.shape for picture in pictures} == {(144, 160, 3)}
    game.close()


# What is dropped


PROBES = dict.fromkeys([*BONK.profile.table, *BONK.profile.value_names], 0)


def walked(loop_class: type = PlannerLoop) -> PlannerLoop:
    """A planner is asked on the plaza, and answers once he is in the meadow."""
    loop = loop_class(GraphPlanner(BONK), BONK, LoopConfig(latency_steps=4, gap_steps=0))
    agent = dual(lambda number: loop)
    for step in range(5):
        agent.tell(0, {}, {"probes": PROBES | {"screen": 4 if step < 2 else 5, "x": 16 * step}}, step == 0)
    loop.agent = agent
    return loop


def test_an_answer_that_came_after_the_map_had_changed_is_dropped(monkeypatch):
    loop = walked()
    assert loop.counts == {"late: place": 1} and loop.goal is None and not loop.agent.code(0).any()
    stale = mutant(planner_loop.Call.stale, "seen.place != self.seen.place", "False")
    monkeypatch.setattr(planner_loop.Call, "stale", stale)
    wrong = walked()
    assert wrong.counts["kept"] == 1 and wrong.agent.code(0).any(), "planted: it is kept"


def test_a_person_asks_in_the_planners_place():
    with pytest.raises(UsageError, match="nothing is played"):
        dual(graph()).ask(BONK.place("loft"))
    agent = dual(graph(50))
    agent.tell(0, {}, {"probes": PROBES}, True)
    agent.ask(BONK.place("loft"))
    assert agent.loops[0].goal.place == "loft" and agent.code()[10 + BONK.places.index("loft")] == 1
    agent.close()


# What is refused


def test_a_saved_agent_comes_back_with_its_goals_and_no_others(tmp_path):
    agent = dual(graph())
    folder = agent.save(tmp_path / "agent")
    loaded = DualAgent.load(folder, Eyes.load, BONK, graph())
    assert acts(loaded) == acts(agent) and loaded.vocabulary == VOCABULARY
    with pytest.raises(UsageError, match="another vocabulary") as told:
        DualAgent.load(folder, Eyes.load, Goals(load_profile("course")))
    assert "\n" not in str(told.value)
    text = (folder / "goals.json").read_text()
    (folder / "goals.json").write_text(text.replace('"key"', '"keys"'))
    with pytest.raises(UsageError, match="another vocabulary"):
        DualAgent.load(folder, Eyes.load, BONK)
    (folder / "goals.json").unlink()
    with pytest.raises(FolderError, match="holds no agent with goals"):
        DualAgent.load(folder, Eyes.load, BONK)


def test_policies_and_games_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="of 9 numbers"):
        DualAgent(Agent(Eyes(), ActorCritic(ActorCriticConfig(goal_size=9), 48, Eyes.actions)), VOCABULARY, BONK)
    game = make_game("bonk", profile="none", actions=tuple(name.replace("_", "+") for name in BONK.profile.actions))
    with pytest.raises(UsageError, match="profile"):
        dual().check(game)
    game.close()
    with pytest.raises(UsageError, match="unknown planner .grpah.: did you mean .graph."):
        make_planner("grpah", BONK)
    game = make_game("minatar:breakout")
    schema = recording_schema(game, game.reset(seed=0)[1])
    game.close()
    with pytest.raises(UsageError, match="without a profile"):
        goals_of(schema)


def test_a_journal_repeats_a_followed_episode(tmp_path):
    path = tmp_path / "journal.jsonl"
    with dual(graph(3, RandomPlanner(BONK, 1), journal=path)) as agent:
        steps = follow(agent, "bonk", 4, SETTINGS)
    with dual(lambda n: PlannerLoop(make_planner(f"journal:{path}", BONK), BONK)) as agent:
        again = follow(agent, "bonk", 4, SETTINGS)
    assert steps.equals(again) and steps["goal"].nunique() > 1 and len(steps) == SETTINGS["max_steps"] + 1
    assert sum(line["event"] == "call" for line in read_journal(path)) > 1


# Goals of recorded rows


def recorded() -> tuple[GoalRows, np.ndarray]:
    """Two episodes, written out of order; a coin in the first, the key in the second."""
    order = np.array([3, 4, 5, 0, 1, 2])
    reached = np.zeros((6, 10), bool)
    reached[1, 0], reached[4, 2] = True, True
    place = np.array([4, 4, 5, 4, 1, 1])
    return GoalRows(order, reached, place, np.array([1, 0, 0, 1, 0, 0], bool)), np.array([7, 7, 7, 2, 2, 2])


def test_what_holds_in_a_row_stays_to_the_end_of_its_episode_and_no_further():
    rows, episode = recorded()
    hold = rows.hold(episode, 9)
    assert hold[:, 0].tolist() == [False, False, False, False, True, True]
    assert hold[:, 2].tolist() == [False, True, True, False, False, False]
    assert hold[:, 10:].argmax(1).tolist() == [4, 1, 1, 4, 4, 5] and (hold[:, 10:].sum(1) == 1).all()
    forever = mutant(GoalRows.hold, "(count - self.reached)[begin]", "0")
    assert forever(rows, episode, 9)[:, 0].sum() == 5, "planted: into the next episode"


def test_goals_of_rows_are_the_planners():
    rows, episode = recorded()
    found = planned_goals(rows, episode, BONK, GraphPlanner(BONK))
    assert found.tolist() == [1, 1, 1, 1, 2, 2]

    class Over:
        name = "over"

        def plan(self, situation):
            if situation.reached:
                raise PlannerFailed("story_over", "all is done")
            return Plan(BONK.place("loft"))

    assert planned_goals(rows, episode, BONK, Over()).tolist() == [1 + 10 + 2, 0, 0, 13, 0, 0]


# Heads on disk


def heads() -> Heads:
    """Heads for three probes, and for goals."""
    torch.manual_seed(0)
    probes = {"room": Probe.of("place", np.array([0, 3, 3])), "x": Probe.of("position", np.array([1, 5])), "key": Probe("flag")}
    return Heads(ProbeHeads(6, probes, 8, 2), GoalHead(6, 4, 8), {"vocabulary": VOCABULARY.to_dict()})


def test_heads_come_back_as_they_were(tmp_path):
    made = heads()
    again, features = Heads.load(made.save(tmp_path / "heads")), torch.randn(5, 6)
    assert all(value.equal(again.probes(features)[name]) for name, value in made.probes(features).items())
    assert again.goals(features, torch.ones(4)).equal(made.goals(features, torch.ones(4)))
    assert again.probes.probes == made.probes.probes
    assert GoalVocabulary.from_dict(again.about["vocabulary"]) == VOCABULARY
    (tmp_path / "heads/heads.json").write_text("{}")
    with pytest.raises(FolderError, match="holds no heads"):
        Heads.load(tmp_path / "heads")


# Milestones against time, and drift


def test_who_ended_is_not_cut_off(monkeypatch):
    frame = pd.DataFrame({"milestones/key": [2.0, 6, np.nan, np.nan], "length": 9, "terminated": [False] * 3 + [True]})
    frame["length"] = [9, 9, 4, 3]
    assert milestone_curve(frame, "key", 10)["share"].iloc[-1] == 0.625
    none = milestone_curve(frame.assign(**{"milestones/key": np.nan}), "key", 10)
    assert none["share"].eq(0).all() and 0.3 < none["high"].iloc[-1] < 0.7
    beyond = milestone_curve(frame, "key", 5)
    assert beyond["share"].iloc[-1] == 0.25, "what came after the budget does not count"
    whole = 'np.where(episodes["terminated"].to_numpy(bool), budget, np.minimum(length, budget))'
    monkeypatch.setattr(milestones, "milestone_times", mutant(milestones.milestone_times, whole, "np.minimum(length, budget)"))
    assert milestones.milestone_curve(frame, "key", 10)["share"].iloc[-1] == 1, "planted: who lost is taken for cut off"


class Walker(WorldModel):
    """A corridor of two rooms of five places."""

    feature_size, actions = 10, ActionSpec(categorical=(2,))

    def observe(self, context, state=None, every=False, generator=None):
        return {"at": context["at"].flatten() if every else context["at"][:, -1]}

    def advance(self, state, action, generator=None):
        return {"at": (state["at"] + 2 * action.argmax(-1) - 1).clamp(0, 9)}

    def features(self, state):
        return F.one_hot(state["at"], 10).float()

    def reward(self, features):
        return features[..., 0]

    continuation = reward


class Rows(dict):
    """A batch."""

    def torch(self):
        return Rows({name: torch.from_numpy(column) for name, column in self.items()})

    def map(self, function):
        return Rows({name: function(column) for name, column in self.items()})

    @property
    def action(self):
        return self["action"]


class Told(ProbeHeads):
    """Knows where each feature is."""

    def forward(self, features):
        return {"room": features.argmax(-1) // 5, "x": features.argmax(-1) % 5}


def drift(measure=probe_drift) -> pd.DataFrame:
    """Of a model that knows everything."""
    random = np.random.default_rng(0)
    action, at = random.integers(2, size=400), np.zeros(400, int)
    for i in range(400):
        at[i] = 4 if i % 40 == 0 else np.clip(at[i - 1] + 2 * action[i] - 1, 0, 9)
    episode, step = np.divmod(np.arange(400), 40)
    table = np.rec.fromarrays([episode, step, at // 5, at % 5], names="episode,step,probes/room,probes/x")
    gather = lambda places: Rows({n: np.stack([c[a:b] for ((a, b),) in places]) for n, c in (("at", at), ("action", action))})  # noqa: E731
    source = SimpleNamespace(table=table, gather=gather)
    heads = Told(10, {"room": Probe("place", (0.0, 1.0)), "x": Probe("position")})
    return measure(Walker(), source, source, heads, "room", ["x"], context=4, ahead=(1, 5, 15), every=3)


def test_a_dream_that_knows_everything_does_not_drift():
    found = drift().groupby(["what", "ahead"])[["tiles", "wrong"]].mean()
    assert found.loc[["dream", "read"]].eq(0).all(axis=None) and (found.loc[["stays", "other actions"], "tiles"] > 0.5).all()
    rows = drift()
    assert rows["tiles"].isna().any() and (rows.loc[rows["what"].eq("stays") & rows["wrong"].eq(1), "tiles"].isna()).all()
    shifted = drift(mutant(probe_drift, "[:, context:]\n", "[:, context - 1 : -1]\n"))
    off = shifted.groupby(["what", "ahead"])["tiles"].mean()
    assert off["dream"].gt(0).all(), "planted: actions of the row before"


# On the page


def watched(steps: int = 6, loops=None) -> Watching:
    """A dual agent that was watched for some steps, with a planner that is never heard."""
    game = make_game("bonk", **SETTINGS)
    watching = Watching(dual(loops or graph(10**6)), game)
    asyncio.run(play(game, watching, steps=steps, seed=0, speed=1000))
    game.close()
    return watching


def test_a_goal_that_is_typed_is_pursued_and_shown():
    watching = watched()
    assert watching.screen.sent == 6 and (watching.goal.value, watching.reason.value) == ("goal: none", "")
    words = "go <b>home</b>"
    for typed, told in (("cellar", BONK.place("cellar")), ("key", BONK.milestone("key")), (words, Goal(text=words))):
        watching.words.value = f" {typed} "
        assert watching.dual.loops[0].goal == told and watching.words.value == ""
        assert (watching.dual.code(0) == VOCABULARY.code(told)).all()
        assert watching.goal.value.endswith(typed) and watching.reason.value == "because: asked by person"
    assert all(type(line) is Label for line in (watching.goal, watching.reason)), "words of others are text, not HTML"
    watching.dual.close()


def test_what_the_planner_wants_and_why_is_shown():
    watching = watched(8, graph(2))
    loop = watching.dual.loops[0]
    assert loop.goal and watching.goal.value == f"goal: {asked_for(loop.goal)}" and loop.rationale in watching.reason.value
    watching.dual.close()


def test_a_goal_that_cannot_be_set_is_told_on_the_page():
    watching = watched(0)
    watching.words.value = "cellar"
    assert "nothing is played yet" in watching.reason.value and watching.words.value == ""
    with pytest.raises(UsageError, match="this agent learned 'bonk', not 'gameboy:course'"):
        Watching(dual(), make_game(f"gameboy:{ROM}", profile="course"))
