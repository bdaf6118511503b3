"""The navigation agent: what it hears, what it remembers, rows of rollouts, advantages, learning, and its scores."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import mutant

from metabonk.act import navigation
from metabonk.act.agent import play_episodes
from metabonk.act.lookahead import LookAheadAgent, LookAheadConfig, SimulatorModel
from metabonk.act.navigation import NavigationAgent, NavigationConfig, NavigationNet, spectrogram
from metabonk.act.navigation_training import (
    NavigationLearner,
    NavigationTraining,
    Rollout,
    Rollouts,
    advantages,
    train_navigation,
)
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.dream.interface import WorldModel
from metabonk.measure.navigation_scores import evaluate_navigation, follower_actions
from metabonk.nn.distributions import Categorical
from metabonk.play.game import make_game
from metabonk.play.vector import GameVector, make_vector
from metabonk.play.walks import Walk
from metabonk.record.store import Store

FOUR = ActionSpec(categorical=(4,))
EASY = {"empty": True, "order": 1, "tail": False, "scenes": 3}  # one small room
SMALL = NavigationConfig(sight=(4, 4, 4), hearing=(4, 4, 4), embedding=16, memory=16)


def small_net(seed=0) -> NavigationNet:
    torch.manual_seed(seed)
    net = NavigationNet(SMALL, FOUR)
    torch.nn.init.normal_(net.actor.weight, std=0.3)  # so that it matters what is remembered
    return net


# What it hears


def test_the_spectrogram_is_that_of_its_equation():
    sound = np.random.default_rng(0).integers(-(2**13), 2**13, (1, 2, 2400), np.int16)
    wave = np.pad(sound[0] / 2**15, ((0, 0), (256, 256)), mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([wave[:, t : t + 512] * window for t in range(0, wave.shape[1] - 511, 160)], 1)  # (2, 16, 512)
    levels = np.log1p(100 * np.abs(np.fft.rfft(frames)))  # (2, 16, 257)
    pooled = levels[..., :256].reshape(2, 4, 4, 64, 4).mean((2, 4)).transpose(0, 2, 1)  # (2, 64, 4)
    heard = spectrogram(torch.from_numpy(sound))
    assert heard.shape == (1, 2, 65, 4)
    np.testing.assert_allclose(heard[0, :, :64], pooled, atol=1e-4)
    swapped = spectrogram(torch.from_numpy(sound[:, ::-1].copy()))
    assert torch.equal(swapped.flip(1), heard) and not torch.allclose(swapped, heard)  # ears are told apart


def test_presets_are_built_with_their_sizes():
    counted = {name: sum(p.numel() for p in NavigationNet(NavigationConfig.preset(name), FOUR).parameters())
               for name in ("tiny", "small", "paper")}  # fmt: skip
    assert counted["tiny"] < 400_000 < counted["small"] < counted["paper"] < 12_000_000
    paper = NavigationNet(NavigationConfig.preset("paper"), FOUR)
    assert paper.memory.hidden_size == 512 and paper.picture_size == (128, 128)
    with pytest.raises(UsageError, match="one choice a step"):
        NavigationNet(SMALL, ActionSpec(binary=3))
    with pytest.raises(UsageError, match="36 x 36"):
        NavigationNet(SMALL.change(image_size=(32, 64)), FOUR)


# What it remembers


def check_memory(unroll):
    net = small_net()
    embedded, first = torch.randn(2, 6, 32), torch.zeros(2, 6, dtype=torch.bool)
    first[0, 3] = True
    hidden = torch.randn(2, 16)
    whole = unroll(net, embedded, hidden, first)
    again = unroll(net, embedded[:1, 3:], torch.randn(1, 16), first[:1, 3:])  # nothing before an episode's start matters
    torch.testing.assert_close(whole[:1, 3:], again)
    second = unroll(net, embedded[1:, 4:], whole[1:, 3], first[1:, 4:])  # and everything after it does
    torch.testing.assert_close(whole[1:, 4:], second)
    assert not torch.allclose(whole[1:, 5], unroll(net, embedded[1:, 4:], torch.zeros(1, 16), first[1:, 4:])[:, 1])


def test_memory_begins_anew_with_an_episode():
    check_memory(NavigationNet.unroll)


@pytest.mark.parametrize(("old", "new"), [
    ("torch.where(first[:, t, None], torch.zeros_like(hidden), hidden)", "hidden"),
    ("first[:, t, None]", "first[:, t - 1, None]"), ("hidden = self.memory(", "self.memory("),
], ids=["never", "a row late", "forgets all"])  # fmt: skip
def test_memory_that_leaks_is_caught(old, new):
    "Negative controls."
    new = new if new != "self.memory(" else "hidden, after[len(after):] = hidden, []; _ = self.memory("
    with pytest.raises(AssertionError):
        check_memory(mutant(NavigationNet.unroll, old, new))


# Rollouts


class Line(GameVector):
    """A vector of games on a line of pictures; the reward tells the action, episodes end after three or four steps."""

    num_envs, action_names = 2, ["forward", "left", "right", "stop"]

    def __init__(self):
        self.single_action_space, self.step_number = None, np.zeros(2, int)
        self.ended = np.zeros(2, bool)

    def _seen(self):
        image = np.full((2, 64, 64, 3), 20, np.uint8) + (10 * self.step_number[:, None, None, None]).astype(np.uint8)
        audio = tuple(np.full((2, 2400), 500 * n + 100, np.int16) for n in self.step_number)
        return {"image": image, "audio": audio}

    def _infos(self):
        return [{"probes": {"success": 1}}] * 2

    def reset(self, *, seed=None, options=None):
        self.step_number[:], self.ended[:] = 0, False
        return self._seen(), {"games": self._infos(), "first": np.ones(2, bool)}

    def step(self, actions):
        begins = self.ended.copy()
        self.step_number = np.where(begins, 0, self.step_number + 1)
        rewards = np.where(begins, 0.0, np.asarray(actions) + 1.0)
        terminated = (self.step_number == 3) & [True, False]
        truncated = (self.step_number == 4) & [False, True]
        self.ended = terminated | truncated
        return self._seen(), rewards, terminated, truncated, {"games": self._infos(), "first": begins}


def test_a_rollout_has_every_row_once_and_goes_on_in_the_next():
    rollouts = Rollouts(small_net(), Line(), 0)
    one, two = rollouts.collect(5), rollouts.collect(4)
    assert one.image.shape[:2] == (2, 6) and two.image.shape[:2] == (2, 5)
    for name in ("image", "action", "reward", "first", "last", "terminated", "log_prob"):
        assert torch.equal(getattr(one, name)[:, -1], getattr(two, name)[:, 0]), name
    rows = {name: torch.cat([getattr(one, name), getattr(two, name)[:, 1:]], 1)
            for name in ("action", "reward", "first", "last", "terminated")}  # fmt: skip
    assert rows["first"][0].tolist() == [t % 4 == 0 for t in range(10)]
    assert rows["terminated"][0].tolist() == [t % 4 == 3 for t in range(10)] and not rows["terminated"][1].any()
    assert rows["last"][1].tolist() == [t % 5 == 4 for t in range(10)]
    earned = torch.where(rows["first"], 0, rows["action"] + 1.0)  # a reward belongs to the action of its own row
    assert torch.equal(rows["reward"], earned)
    assert [episode["length"] for episode in rollouts.finished] == [3, 4, 3, 4]


def learner_of(net, **config) -> NavigationLearner:
    learner = NavigationLearner(net, NavigationTraining(games=2, steps=9, epochs=1, batches=1, **config))
    learner._rollouts = Rollouts(net, Line(), 3)
    return learner


def check_ratio():
    """What is learned from a rollout at first is exactly what was played."""
    learner = learner_of(small_net())
    seen = []
    learner.objective.forward = lambda *given: seen.append(given) or 0 * given[2]
    learner._rollouts.collect(2)  # so that memory is not empty
    learner.play()
    learner.play = lambda: None
    rollout = learner._ready[0][0]
    learner.losses(None)
    (policy, dream, _, weight), decided = seen[0], ~rollout.last[:, :-1]
    was, now = dream.log_prob[:, 1:], policy.log_prob(dream.action[:, 1:])
    assert torch.allclose(was[decided], now[decided], atol=1e-5) and weight[~decided].eq(0).all()
    assert weight.mean() == pytest.approx(1) and not decided.all()
    return rollout


def test_at_first_the_policy_is_the_one_that_played():
    check_ratio()


@pytest.mark.parametrize(("where", "old", "new"), [
    ("losses", "rows.hidden, rows.first)", "rows.hidden, rows.first.roll(1, 1))"),
    ("losses", "rows.image.flatten", "rows.image.roll(1, 1).flatten"),
    ("losses", "rows.sound.flatten", "rows.sound.roll(1, 1).flatten"),
    ("losses", "rows.hidden, rows.first)", "0 * rows.hidden + 1, rows.first)"),
    ("losses", "weight = chosen / chosen.float().mean()", "weight = chosen * 0 + 1.0"),
], ids=["starts a row late", "pictures a row late", "sounds a row late", "other memory", "decisions that were none"])  # fmt: skip
def test_rows_that_slip_are_caught(where, old, new, monkeypatch):
    "Negative controls."
    monkeypatch.setattr(NavigationLearner, where, mutant(getattr(NavigationLearner, where), old, new))
    with pytest.raises(AssertionError):
        check_ratio()


def check_advantages(compute):
    generator, config = torch.Generator().manual_seed(0), NavigationTraining(discount=0.9, lambda_=0.8)
    reward, value = torch.randn(2, 8, generator=generator), torch.randn(2, 8, generator=generator)
    none = torch.zeros(2, 8, dtype=torch.bool)
    terminated, last, first = none.clone(), none.clone(), none.clone()
    terminated[0, 3] = last[0, 3] = last[1, 5] = first[0, 4] = first[1, 6] = True  # one ends, one is cut off
    image, sound, action = torch.zeros(2, 8, 1, 1, 3, dtype=torch.uint8), torch.zeros(2, 8, 2, 1, 1), torch.zeros(2, 8).long()
    rollout = Rollout(image, sound, action, value, reward, terminated, last, first, value, action, torch.zeros(2, 1))
    gained, returns, chosen = compute(rollout, config)
    for game in range(2):
        for t in range(7):
            if last[game, t]:
                assert not chosen[game, t]
                continue
            total, weight, s = 0.0, 1.0, t  # GAE, forwards: equation 11 of Schulman and others (2015)
            while s < 7:
                after = 0.0 if terminated[game, s + 1] else float(value[game, s + 1])
                total += weight * (float(reward[game, s + 1]) + 0.9 * after - float(value[game, s]))
                weight *= 0.9 * 0.8
                if last[game, s + 1]:
                    break
                s += 1
            assert float(gained[game, t]) == pytest.approx(total, abs=1e-5) and chosen[game, t]
    torch.testing.assert_close(returns, gained + value[:, :-1])


def test_advantages_are_those_of_gae():
    check_advantages(advantages)


@pytest.mark.parametrize(("old", "new"), [
    ("rollout.terminated, rollout.last", "rollout.last, rollout.last"),
    ("rollout.terminated, rollout.last", "rollout.terminated, rollout.terminated"),
    ("~rollout.last[:, :-1]", "~rollout.first[:, :-1]"), ("rollout.value[:, :-1]", "rollout.value[:, 1:]"),
], ids=["a time limit is an end", "episodes run together", "wrong rows chosen", "value of the next row"])  # fmt: skip
def test_wrong_advantages_are_caught(old, new):
    "Negative controls."
    with pytest.raises(AssertionError):
        check_advantages(mutant(advantages, old, new))


# Learning


def learned(clone: int, updates: int = 100) -> torch.Tensor:
    """Probabilities of the four actions after some updates in the line."""
    net = small_net()
    learner = learner_of(net, clone=clone, entropy=0.0, discount=0.5)
    learner._rollouts.teachers = [Always(1), Always(1)] if clone else []
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for update in range(updates):
        learner.steps_done = update
        losses = learner.losses(None)
        optimizer.zero_grad()
        (losses["actor"].mean() + losses["critic"].mean()).backward()
        optimizer.step()
    rollout = learner._rollouts.collect(8)
    hidden = net.unroll(net.encode(rollout.image.flatten(0, 1), rollout.sound.flatten(0, 1)).unflatten(0, (2, 9)),
                        rollout.hidden, rollout.first)  # fmt: skip
    return Categorical(net.actor(hidden), unimix=0.0).probabilities.flatten(0, 1).mean(0).detach()


class Always:
    def __init__(self, action):
        self.action = action

    def reset(self, seed):
        pass

    def __call__(self, observation, info):
        return self.action


def test_it_learns_by_its_rewards_and_by_its_teacher():
    before = learned(0, 0)
    assert learned(0)[2:].sum() > before[2:].sum() + 0.3  # actions 2 and 3 earn most
    assert learned(10_000)[1] > before[1] + 0.5  # the teacher always says 1


def test_a_stop_counts_more_while_it_is_imitated():
    losses = {}
    for stops, told in ((1.0, 3), (10.0, 3), (10.0, 1)):
        learner = learner_of(small_net(), clone=5, stops=stops)
        learner._rollouts.teachers = [Always(told)] * 2
        losses[stops, told] = learner.losses(None)["actor"]
    assert torch.allclose(losses[10.0, 3], 10 * losses[1.0, 3])
    assert losses[10.0, 1].mean() < 0.5 * losses[10.0, 3].mean()  # others count 1


def test_a_short_training_in_rooms_leaves_a_log_and_an_agent(tmp_path):
    net, config = small_net(), NavigationTraining(games=2, steps=8, epochs=1, batches=2, clone=2)
    agent = train_navigation(net, tmp_path / "run", config, TrainConfig.preset("tiny", steps=4, log_every=1), EASY)
    log = read_log(tmp_path / "run")
    assert log["step"].tolist() == [1, 2, 3, 4] and log["watch/as_taught"].notna().tolist() == [True, True, False, False]
    folder = agent.save(tmp_path / "agent")
    again = NavigationAgent.load(folder, greedy=True)
    assert again.greedy and all(torch.equal(a, b) for a, b in zip(net.parameters(), again.model.parameters(), strict=True))
    assert Store.exists(tmp_path / "store") is False
    play_episodes(again, "rooms", 1, games=1, settings={**EASY, "max_steps": 3}, store=tmp_path / "store")
    assert Store.open(tmp_path / "store").episodes[0].about["policy"] == "NavigationAgent"


def test_a_folder_without_an_agent_says_so(tmp_path):
    with pytest.raises(FolderError, match="no navigation agent"):
        NavigationAgent.load(tmp_path)
    folder = NavigationAgent(small_net()).save(tmp_path / "agent")
    (folder / "navigation.safetensors").write_bytes(b"broken")
    with pytest.raises(FolderError, match="save the agent anew"):
        NavigationAgent.load(folder)
    about = json.loads((folder / "navigation.json").read_text())
    (folder / "navigation.json").write_text(json.dumps({**about, "format": "other"}))
    with pytest.raises(FolderError, match="no navigation agent"):
        NavigationAgent.load(folder)


@pytest.mark.parametrize(("wrong", "told"), [({"games": 0}, "games"), ({"batches": 9}, "dealt out"), ({"clone": -1}, "clone"),
                                           ({"trust": 2.0}, "trust"), ({"stops": 0.0}, "stops")])  # fmt: skip
def test_a_training_that_can_not_be_is_refused(wrong, told):
    with pytest.raises(UsageError, match=told):
        NavigationTraining(**wrong)


def test_teachers_need_the_games_in_this_process():
    vector = make_vector("rooms", 2, "processes", 1, **EASY)
    with pytest.raises(UsageError, match="how='threads'"):
        vector.games  # noqa: B018
    vector.close()
    large = NavigationNet(SMALL.change(image_size=(48, 48)), FOUR)
    large = NavigationLearner(large, NavigationTraining(games=1, batches=1), EASY)
    with pytest.raises(UsageError, match="set image_size"):
        large.losses(None)
    large.close()


# At the game


def test_it_plays_alone_as_it_plays_beside_others_and_as_it_would_read_a_recording():
    agent, settings = NavigationAgent(small_net()), {**EASY, "max_steps": 6}
    together = play_episodes(agent, "rooms", 3, seed=2, games=3, settings=settings)
    assert together.equals(play_episodes(agent, "rooms", 3, seed=2, games=1, settings=settings))
    game = make_game("rooms", **settings)
    observation, info = game.reset(seed=1)
    agent.reset(0)
    images, sounds = [], []
    for _ in range(5):
        images.append(observation["image"])
        sounds.append(observation["audio"])
        agent(observation, info)
        observation, *_, info = game.step(1)
    net = agent.model
    embedded = net.encode(torch.from_numpy(np.stack(images)), spectrogram(torch.from_numpy(np.stack(sounds))))[None]
    first = torch.tensor([[True, False, False, False, False]])
    torch.testing.assert_close(agent.state["hidden"], net.unroll(embedded, torch.ones(1, 16), first)[:, -1])
    memory = net.start(1)
    for image, sound in zip(images, sounds, strict=True):  # as a planner asks it
        seen = {"image": torch.from_numpy(image)[None], "audio": torch.from_numpy(sound)[None]}
        logits, value, memory = net.step(memory, WorldModel(), {}, seen)
    torch.testing.assert_close(memory["hidden"], agent.state["hidden"])
    assert torch.allclose(logits, net.actor(memory["hidden"])) and value.shape == (1,)
    game.close()


class Walker(LookAheadAgent):
    """The walker as a player."""

    def __init__(self):
        super().__init__(SimulatorModel(make_game("rooms", **EASY)), small_net())

    def join(self, games):
        self.walks = [Walk(game, 0.0) for game in games]

    def decide(self, senses, observations, actions, first, state=None, generator=None):
        for walk, begins in zip(self.walks, first, strict=True):
            if begins:
                walk.reset(0)
        chosen = [walk(None, {"probes": walk.machine.probes()}) for walk in self.walks]
        return {"nothing": torch.zeros(1)}, F.one_hot(torch.tensor(chosen), 4).float()


def test_scores_come_from_what_was_walked():
    table = evaluate_navigation(Walker(), 3, seed=1, games=2, settings=EASY)
    n, best = table["actions"], table["shortest_actions"]
    assert table["success"].eq(1).all() and table["stopped"].eq(1).all() and table["scene"].eq(3).all()
    assert (n >= best).all() and (n <= best + 4).all()
    assert (table["path_length"] > table["geodesic_start"] - 1).all() and (table["geodesic_end"] < 1).all()
    assert follower_actions(int(table["seed"][0]), {"pattern": "to_source", **EASY}) == table["shortest_actions"][0]
    by_chance = evaluate_navigation(NavigationAgent(small_net()), 3, seed=1, games=3, settings={**EASY, "max_steps": 5})
    assert by_chance["seed"].tolist() == table["seed"].tolist() and by_chance["geodesic_start"].equals(table["geodesic_start"])
    assert by_chance["actions"].max() <= 5
    with pytest.raises(UsageError, match="don't lead to the source"):
        follower_actions(int(table["seed"][0]), {"pattern": "to_source", **EASY}, most=3)


def test_with_the_game_as_its_model_it_finds_more():
    """A policy that never learned, and values nothing: looking ahead it walks towards the telephone."""
    net = small_net()
    torch.nn.init.constant_(net.critic.weight, 0.0)
    net.actor.weight.data.zero_()
    net.actor.bias.data = torch.tensor([0.0, 0.0, 0.0, -50.0])  # it never stops
    settings = {**EASY, "pattern": "to_source", "max_steps": 12}
    simulator = make_game("rooms", **settings)
    looks = LookAheadConfig(candidates=3, beams=9, depth=3, draw="distinct")
    ahead = LookAheadAgent(SimulatorModel(simulator), net, looks, stop=3)
    alone = NavigationAgent(net)
    walked = {name: evaluate_navigation(player, 2, seed=5, games=2, settings=settings)
              for name, player in (("ahead", ahead), ("alone", alone))}  # fmt: skip
    nearer = {name: (table["geodesic_start"] - table["geodesic_end"]).mean() for name, table in walked.items()}
    assert nearer["ahead"] > nearer["alone"] + 0.2, nearer
    assert walked["ahead"]["stopped"].eq(0).all()
    simulator.close()


def test_other_games_are_refused():
    agent = NavigationAgent(small_net())
    space = SimpleNamespace(shape=(64, 64, 3))
    other = SimpleNamespace(unwrapped=SimpleNamespace(name="bonk"), action_space=None, observation_space={"image": space})
    with pytest.raises(UsageError, match="learned 'rooms', not 'bonk'"):
        agent.check(other)
    assert navigation.FFT == 512
