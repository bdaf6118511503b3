"""Looking ahead: beam search against brute force, memory of each beam, who may stop, and the game itself as a model."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import mutant
from torch import nn

from metabonk.act import lookahead
from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import play_episodes
from metabonk.act.lookahead import (
    FeaturesPolicy,
    LookAheadAgent,
    LookAheadConfig,
    SimulatorModel,
    draw_candidates,
    look_ahead,
)
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.dynamics import DynamicsConfig, ShortcutModel
from metabonk.dream.interface import WorldModel, pick_states
from metabonk.dream.recurrent import RecurrentModel
from metabonk.dream.rssm import RSSMConfig
from metabonk.nn.noise import make_generators
from metabonk.play.game import make_game
from metabonk.record.recorder import record
from metabonk.record.store import Store

S, A = 7, 3


class Tabular(WorldModel):
    """A random Markov decision process: deterministic, with rewards, and chances that it goes on."""

    feature_size, actions = S, ActionSpec(categorical=(A,))

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.next = torch.randint(S, (S, A), generator=generator)
        self.pays, self.lasts = torch.randn(S, generator=generator).double(), torch.rand(S, generator=generator).double()

    def observe(self, context, state=None, every=False, generator=None):
        return {"place": torch.zeros(len(context), dtype=torch.long)}

    def advance(self, state, action, generator=None):
        return {"place": self.next[state["place"], action.argmax(-1)]}

    def features(self, state):
        return F.one_hot(state["place"], S).double()

    def reward(self, features):
        return features @ self.pays

    def continuation(self, features):
        return features @ self.lasts


class Remembers:
    """Logits and value depend on all that was visited, in order."""

    def __init__(self, seed=0, sharp=1.0):
        generator = torch.Generator().manual_seed(100 + seed)
        self.read = torch.randn(S, 5, generator=generator).double()
        self.turn = torch.randn(5, 5, generator=generator).double()
        self.logits = sharp * torch.randn(5, A, generator=generator).double()
        self.worth = torch.randn(5, generator=generator).double()

    def start(self, batch):
        return {"hidden": torch.zeros(batch, 5).double()}

    def step(self, memory, model, state, seen=None):
        hidden = torch.tanh(memory["hidden"] @ self.turn + self.read[state["place"]])
        return hidden @ self.logits, hidden @ self.worth, {"hidden": hidden}


def search(model, policy, places, config, stop=None, generator=None):
    state = {"place": torch.tensor(places)}
    logits, _, memory = policy.step(policy.start(len(places)), model, state)
    return lookahead.look_ahead(model, policy, state, memory, logits, config, stop, generator)


def brute_force(model, policy, place, config, stop=None):
    """Score of every sequence of actions, one by one."""
    scores = {}
    for actions in itertools.product([a for a in range(A) if a != stop], repeat=config.depth):
        state, total, reached = {"place": torch.tensor([place])}, 0.0, 1.0
        _, _, memory = policy.step(policy.start(1), model, state)
        for j, action in enumerate(actions, 1):
            state = {"place": model.next[state["place"], action]}
            _, value, memory = policy.step(memory, model, state)
            total += config.discount ** (j - 1) * reached * float(model.pays[state["place"]])
            reached *= float(model.lasts[state["place"]])
            if config.value == "each" or j == config.depth:
                total += config.discount**j * reached * float(value)
        scores[actions] = total
    return scores


def whole(depth=3, actions=A, **how):
    """Every sequence is kept."""
    return LookAheadConfig(candidates=actions, beams=actions**depth, depth=depth, discount=0.9, draw="distinct", **how)


def check_exhaustive(value="leaf", stop=None):
    for seed in range(4):
        model, policy, places = Tabular(seed), Remembers(seed), [seed, 3, 5]
        config = whole(actions=A - (stop is not None), value=value)
        plan = search(model, policy, places, config, stop)
        for row, place in enumerate(places):
            truth = brute_force(model, policy, place, config, stop)
            found = {tuple(a): float(s) for a, s in zip(plan.actions[row].tolist(), plan.score[row], strict=True)}
            assert found == pytest.approx(truth, abs=1e-9)
            assert plan.score[row, 0] == max(found.values()) and (plan.score[row].diff() <= 0).all()


@pytest.mark.parametrize("value", ["leaf", "each"])
@pytest.mark.parametrize("stop", [None, 1])
def test_a_search_that_keeps_everything_is_brute_force(value, stop):
    check_exhaustive(value, stop)


@pytest.mark.parametrize(("old", "new"), [
    ("pick_states(memory, rows)", "pick_states(memory, torch.zeros_like(rows))"),
    ("tried.flatten(0, 1), A", "tried.flip(2).flatten(0, 1), A"),
    ("repeat_states(memory, k), model", "{n: c.repeat(k, 1) for n, c in memory.items()}, model"),
    ("config.discount * counts * goes_on", "config.discount * counts"),
    ("config.discount * counts * goes_on", "counts * goes_on"),
    ("earned + counts * value", "earned + value"),
    ("counts * reward", "config.discount * counts * goes_on * reward"),
    ("kept + n * k * torch.arange(B, device=kept.device)[:, None]", "kept"),
    ("descending=True", "descending=False"),
    ("counts.repeat_interleave(k, 1)", "counts.repeat(1, k)"),
    ("taken.repeat_interleave(k, 1)", "taken.repeat(1, k, 1)"),
], ids=["one memory for all", "actions of others", "memories of other beams", "end not counted", "no discount",
        "value not discounted", "reward late", "games mixed up", "worst first", "chances mixed up",
        "actions mixed up"])  # fmt: skip
def test_errors_in_the_search_are_caught(old, new, monkeypatch):
    "Negative controls."
    monkeypatch.setattr(lookahead, "look_ahead", mutant(look_ahead, old, new))
    with pytest.raises(AssertionError):
        check_exhaustive()


def test_a_narrow_beam_keeps_the_best_so_far():
    model, policy = Tabular(2), Remembers(2)
    config = whole(2).change(beams=2)
    plan = search(model, policy, [1], config)
    first = brute_force(model, policy, 1, whole(1))
    kept = sorted(first, key=first.get)[-2:]
    truth = {a: s for a, s in brute_force(model, policy, 1, whole(2)).items() if a[:1] in kept}
    best = sorted(truth.values())[:-3:-1]
    assert plan.score[0].tolist() == pytest.approx(best) and plan.actions.shape == (1, 2, 2)


def returns_of(choose, model, policy, start, steps=12):
    """Discounted rewards of one episode in the process itself."""
    state, memory, total, reached = {"place": torch.tensor([start])}, policy.start(1), 0.0, 1.0
    for _ in range(steps):
        logits, _, memory = policy.step(memory, model, state)
        state = model.advance(state, F.one_hot(choose(state, memory, logits), A))
        total += reached * float(model.reward(model.features(state)))
        reached *= 0.9 * float(model.continuation(model.features(state)))
    return total


def test_with_a_true_model_a_noisy_policy_plays_better():
    generator, gains = torch.Generator().manual_seed(0), []
    for seed in range(6):
        model, policy = Tabular(seed), Remembers(seed, sharp=0.3)
        policy.worth = torch.zeros(5).double()
        alone = lambda state, memory, logits: logits.softmax(-1).multinomial(1, generator=generator)[:, 0]  # noqa: E731
        ahead = lambda state, memory, logits: look_ahead(  # noqa: E731
            model, policy, state, memory, logits, whole(4), generator=generator  # noqa: B023
        ).actions[:, 0, 0]
        by_chance = np.mean([returns_of(alone, model, policy, 0) for _ in range(20)])
        gains.append(returns_of(ahead, model, policy, 0) - by_chance)
    assert min(gains) > -1e-9 and np.mean(gains) > 0.3, gains


def test_what_is_drawn_follows_from_the_seed_and_games_do_not_disturb_each_other():
    model, policy, config = Tabular(1), Remembers(1), LookAheadConfig(candidates=2, beams=2, depth=3)
    draw = lambda places, seeds: search(  # noqa: E731
        model, policy, places, config, generator=make_generators(seeds, torch.device("cpu"))
    )
    together = draw([0, 3, 5], [7, 8, 9])
    for row, (place, seed) in enumerate(zip([0, 3, 5], [7, 8, 9], strict=True)):
        alone = draw([place], [seed])
        assert torch.equal(alone.actions[0], together.actions[row])
    found = {tuple(draw([0], [seed]).actions[0].flatten().tolist()) for seed in range(20)}
    assert len(found) > 1  # negative control: chance matters


def test_candidates_come_from_the_policy_and_never_stop():
    logits = torch.tensor([2.0, 0.0, 1.0, -100.0]).expand(3000, 1, 4)
    distinct, sampled = (
        draw_candidates(logits, 3, stop=2, draw=draw, generator=torch.Generator().manual_seed(0))[:, 0]
        for draw in ("distinct", "sample")
    )
    assert (distinct != 2).all() and all(len(set(row)) == 3 for row in distinct[:50].tolist())
    assert (sampled != 2).all() and (sampled != 3).all()  # what the policy never does is no candidate
    likely = float(torch.tensor([2.0, 0.0]).softmax(0)[0])
    for first in (distinct[:, 0], sampled[:, 0], sampled[:, 2]):
        assert (first == 0).float().mean() == pytest.approx(likely, abs=0.03)
    same = (sampled[:, 0] == sampled[:, 1]).float().mean()
    assert same == pytest.approx(likely**2 + (1 - likely) ** 2, abs=0.03)  # each is drawn on its own
    assert draw_candidates(logits, 2, draw="likeliest")[0, 0].tolist() == [0, 2]
    never = torch.tensor([[[-torch.inf, 0.0, -torch.inf]]])  # the one that stops is the only possible one
    assert sorted(draw_candidates(never, 2, stop=1, draw="distinct")[0, 0].tolist()) == [0, 2]
    assert (draw_candidates(never, 2, stop=1) != 1).all()


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"candidates": 0}, {"beams": 0}, {"candidates": 2, "depth": 2, "beams": 5},
                                   {"discount": 1.1}])  # fmt: skip
def test_what_no_planner_can_do_is_said(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)) if len(wrong) == 1 else "4 sequences, so 5 beams"):
        LookAheadConfig(**wrong)


def test_more_candidates_than_actions_are_refused():
    with pytest.raises(UsageError, match="4 different candidates can't be drawn from 3 actions: set"):
        search(Tabular(), Remembers(), [0], LookAheadConfig(candidates=4, draw="distinct"))
    with pytest.raises(UsageError, match="one of which stops"):
        search(Tabular(), Remembers(), [0], LookAheadConfig(candidates=3, draw="likeliest"), stop=2)
    model = Tabular()
    model.actions = ActionSpec(binary=2)
    with pytest.raises(UsageError, match="one choice a step"):
        LookAheadAgent(model, Remembers())


# Models


def models():
    torch.manual_seed(0)
    spec = ActionSpec(categorical=(3,))
    rssm = RecurrentModel(RSSMConfig(), nn.Identity(), 4, {}, spec).eval()
    yield rssm, {name: torch.randn(2, *x.shape[1:]) for name, x in rssm.rssm.initial(1).items()}
    code = CausalTokenizerConfig(size=(8, 8), patch=4, latents=2, bottleneck=3, width=16, layers=2, heads=2)
    config = DynamicsConfig(width=16, layers=2, heads=2, kv_heads=1, context=4, units=8)
    shortcut = ShortcutModel(CausalTokenizer(code), spec, config).eval()
    yield shortcut, shortcut.start(2)


@pytest.mark.parametrize("which", [0, 1], ids=["rssm", "shortcut"])
def test_it_looks_ahead_in_every_world_model(which):
    model, state = list(models())[which]
    policy = FeaturesPolicy(ActorCritic(ActorCriticConfig(units=8), model.feature_size, model.actions))
    logits, _, memory = policy.step(policy.start(2), model, state)
    seeds = lambda: make_generators([1, 2], torch.device("cpu"))  # noqa: E731
    plan, again = (look_ahead(model, policy, state, memory, logits, LookAheadConfig(), generator=seeds()) for _ in range(2))
    assert plan.actions.shape == (2, 3, 3) and plan.score.isfinite().all()
    assert torch.equal(plan.actions, again.actions) and torch.equal(plan.score, again.score)
    second = pick_states(state, slice(1, 2))
    alone = look_ahead(model, policy, second, {}, logits[1:], LookAheadConfig(), generator=seeds()[1:])
    assert torch.equal(alone.actions[0], plan.actions[1])


# The game itself as a model, and playing

SETTINGS = {"max_steps": 4, "ticks_per_step": 2, "image_size": (16, 16)}


class Fixed:
    """The same logits everywhere; it counts how often it was asked, and what it was shown."""

    def __init__(self, logits):
        self.logits, self.seen = torch.tensor(logits), []

    def start(self, batch):
        return {"steps": torch.zeros(batch)}

    def step(self, memory, model, state, seen=None):
        self.seen.append(seen)
        count = len(memory["steps"])
        return self.logits.expand(count, -1), torch.zeros(count), {"steps": memory["steps"] + 1}


@pytest.fixture(scope="module")
def bonk():
    games = [make_game("bonk", **SETTINGS) for _ in range(2)]
    yield games
    for game in games:
        game.close()


def test_a_simulator_knows_what_the_game_will_do_and_leaves_it_alone(bonk):
    (played, simulator), actions = bonk, [3, 8, 4, 3]
    model = SimulatorModel(simulator, lambda game: [float(game.machine.clock())], 1)
    model.follow([played])
    player = LookAheadAgent(model, Fixed([0.0] * 11))
    observation, _ = played.reset(seed=3)
    state = model.observe(player.read(player.senses, [observation], [None], [True]))
    assert torch.equal(model.decode(state)["image"][0], torch.from_numpy(observation["image"]))
    clock, expected = played.machine.clock(), []
    assert model.features(state).tolist() == [[0, 1, clock]]
    for action in actions:
        state = model.advance(state, F.one_hot(torch.tensor([action]), 11).float())
        expected.append((model.decode(state), model.features(state)[0]))
    assert played.machine.clock() == clock
    for action, (seen, features) in zip(actions, expected, strict=True):
        observation, reward, _, truncated, _ = played.step(action)
        assert np.array_equal(seen["image"][0], observation["image"]) and np.array_equal(seen["audio"][0], observation["audio"])
        assert features.tolist() == [reward, 1, played.machine.clock()]
    assert truncated and played.over
    after = model.advance(state, F.one_hot(torch.tensor([3]), 11).float())  # nothing happens after the time limit
    assert model.reward(model.features(after)) == 0 and model.continuation(model.features(after)) == 1
    assert torch.equal(model.decode(after)["audio"], model.decode(state)["audio"])


def test_a_simulator_says_what_it_can_not_do(bonk):
    played, simulator = bonk
    played.reset(seed=0)
    model = SimulatorModel(simulator, keep=2)
    player = LookAheadAgent(model, Fixed([0.0] * 11))
    rows = player.read(player.senses, [played.reset(seed=0)[0]], [None], [True])
    with pytest.raises(UsageError, match="call follow"):
        model.observe(rows)
    model.follow([played])
    state = model.observe(rows)
    for _ in range(2):
        model.observe(rows)
    with pytest.raises(UsageError, match="forgotten"):
        model.features(state)
    other = make_game("bonk", **{**SETTINGS, "max_steps": 5})
    with pytest.raises(UsageError, match="same settings"):
        model.follow([other])
    other.close()


def test_the_policy_alone_stops(bonk, monkeypatch):
    played, simulator = bonk
    calls = []
    searched = lookahead.look_ahead
    monkeypatch.setattr(lookahead, "look_ahead", lambda *args: (calls.append(len(args[4])), searched(*args))[1])
    model, config = SimulatorModel(simulator), LookAheadConfig(candidates=2, beams=2, depth=1)
    model.follow([played, played])
    observation, _ = played.reset(seed=0)
    for stops, policy in ((True, Fixed([0.0] * 10 + [50.0])), (False, Fixed([0.0] * 10 + [-50.0]))):
        calls.clear()
        player = LookAheadAgent(model, policy, config, stop=10)
        _, vectors = player.decide(player.make_senses(2), [observation] * 2, [None] * 2, [True] * 2)
        assert (vectors.argmax(-1) == 10).tolist() == [stops] * 2
        assert calls == ([] if stops else [2])
        assert policy.seen[0] is not None and all(seen is None for seen in policy.seen[1:])  # the real game, then the model
    likely = Fixed([0.0] * 10 + [2.0])  # stops often: what is searched never does
    player = LookAheadAgent(model, likely, config, stop=10)
    state, chosen = None, []
    generators = make_generators([1, 2], torch.device("cpu"))
    for _ in range(6):
        state, vectors = player.decide(player.make_senses(2), [observation] * 2, [0, 0], [state is None] * 2, state, generators)
        chosen += vectors.argmax(-1).tolist()
    assert state[1]["steps"].tolist() == [6, 6] and 2 <= chosen.count(10) <= 10
    assert _begun(player, observation, state, generators) == [1, 7]


def _begun(player, observation, state, generators):
    """Memory of two games, in the first of which an episode begins."""
    state, _ = player.decide(player.make_senses(2), [observation] * 2, [0, 0], [True, False], state, generators)
    return state[1]["steps"].tolist()


def test_it_plays_and_records_as_every_player(bonk, tmp_path):
    simulator = bonk[1]
    config = LookAheadConfig(candidates=2, beams=1, depth=1)
    player = LookAheadAgent(SimulatorModel(simulator), Fixed([0.0] * 11), config)
    seen = []
    table = play_episodes(player, "bonk", 2, games=2, settings=SETTINGS, store=tmp_path / "store",
                          watch=lambda episode, action, info: seen.append((episode, action, info["clock"]["ticks"])))  # fmt: skip
    alone = play_episodes(player, "bonk", 2, games=1, settings=SETTINGS)
    assert table.equals(alone) and len(Store.open(tmp_path / "store")) == 2 * 5
    told = sorted((episode, action is None) for episode, action, _ in seen)
    assert told == [(i, begins) for i in (0, 1) for begins in (*[False] * 4, True)]
    game = make_game("bonk", **SETTINGS)
    player.join([game])
    assert player.model.games == [game]
    game.close()
    with pytest.raises(UsageError, match="follow"):
        record("bonk", tmp_path / "two", LookAheadAgent(SimulatorModel(simulator), Fixed([0.0] * 11), config), episodes=1,
               settings=SETTINGS)  # fmt: skip
