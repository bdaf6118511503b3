"""Policies that learn in dreams, agents that play with them, and rounds of both."""

import json
import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, RawSenses, play_episodes
from metabonk.act.dreaming import DreamConfig, DreamLearner, check_learnable, last_rows, replay_returns
from metabonk.act.finetune import FineTune, FineTuneConfig, ShortUpdates
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, MetaBonkError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream.interface import WorldModel
from metabonk.nn.noise import uniform
from metabonk.play.game import make_game
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import ExperienceData, SequenceConfig
from metabonk.record.store import Store

ACTIONS = 11  # of Bonk
SETTINGS = {"max_steps": 24}


# Dreams in a corridor


@dataclass
class Walk:
    """What was recorded in a corridor of nine places."""

    place: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    first: Any

    def to(self, device, non_blocking=False):
        return self


class Corridor(WorldModel):
    """A coin for every step at the right end, a pit at the left; with a weight and a dropout that must not matter."""

    feature_size, actions, game = 9, ActionSpec(categorical=(2,)), "corridor"

    def __init__(self):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def observe(self, context, state=None, every=False, generator=None):
        return {"place": (context.place if every else context.place[:, -1]).flatten()}

    def advance(self, state, action, generator=None):
        return {"place": (state["place"] + 2 * action.argmax(-1) - 1).clamp(0, 8)}

    def features(self, state):
        return self.drop(self.scale * F.one_hot(state["place"], 9).float())

    def reward(self, features):
        return features[..., 8]

    def continuation(self, features):
        return 1 - features[..., 0]


def walk(seed, batch=4, time=12):
    action = torch.randint(2, (batch, time), generator=torch.Generator().manual_seed(seed))
    place = torch.cat([torch.full((batch, 1), 4), 4 + (2 * action - 1)[:, 1:].cumsum(1).clamp(-3, 4)], 1)
    no = torch.zeros(batch, time, dtype=torch.bool)
    return Walk(place, action, (place == 8).float(), no, no.clone(), torch.arange(time).expand(batch, -1) == 0)


def dreamer(seed=0, **config):
    torch.manual_seed(seed)
    agent = ActorCritic(ActorCriticConfig(layers=1, units=16), 9, ActionSpec(categorical=(2,)))
    return DreamLearner(Corridor(), agent, DreamConfig(**{"horizon": 6, "discount": 0.9, **config}))


def test_the_discount_is_applied_to_returns_and_not_to_dreams():
    far, near = (dreamer(discount=discount).dream(walk(0))[0] for discount in (0.99, 0.5))
    assert torch.equal(far.features, near.features)  # the same dreams
    for futures in (far, near):
        assert torch.equal(futures.continuation, Corridor().eval().continuation(futures.features))
    told = {}
    for discount in (0.99, 0.5):
        learner = dreamer(discount=discount)
        learner.actor_critic.critic[-1].weight.data.normal_()  # a critic without an opinion loses the same on any return
        told[discount] = learner.losses(walk(0))
    for name in ("actor", "critic", "replay"):
        assert not torch.allclose(told[0.99][name], told[0.5][name]), name


def test_dreams_start_from_every_row_or_from_some():
    batch = walk(0)
    dreams, states, chosen = dreamer().dream(batch)
    assert torch.equal(dreams.features[:, 0].argmax(-1), batch.place.flatten()) and chosen is None
    some, states, chosen = dreamer(starts=7).dream(batch)
    assert len(set(chosen.tolist())) == 7 and torch.equal(some.features[:, 0].argmax(-1), states["place"][chosen])
    losses = dreamer(starts=7).losses(batch)
    assert {name: tuple(loss.shape) for name, loss in losses.items()} == {"actor": (7, 6), "critic": (7, 6), "replay": (4, 11)}
    assert dreamer(starts=1000).losses(batch)["actor"].shape == (48, 6)
    assert "replay" not in dreamer(replay=0.0).losses(batch)


def test_replay_returns_by_hand():
    reward, worth = torch.tensor([[9.0, 1, 2, 3]]), torch.tensor([[9.0, 10, 20, 30]])
    no = torch.zeros(1, 4, dtype=torch.bool)
    # R2 = 3 + .5 * 30 = 18, R1 = 2 + .5 (.5 * 20 + .5 * 18) = 11.5, R0 = 1 + .5 (.5 * 10 + .5 * 11.5) = 6.375
    assert replay_returns(reward, worth, no, no, 0.5, 0.5).tolist() == [[6.375, 11.5, 18]]
    end = torch.tensor([[False, False, True, False]])
    over, cut_off = replay_returns(reward, worth, end, end, 0.5, 0.5), replay_returns(reward, worth, no, end, 0.5, 0.5)
    assert over[0, :2].tolist() == [1 + 0.5 * (0.5 * 10 + 0.5 * 2), 2]
    assert cut_off[0, :2].tolist() == [1 + 0.5 * (0.5 * 10 + 0.5 * 12), 12]


def test_nothing_is_learned_across_the_seam_of_two_episodes():
    batch, other = walk(0), walk(0)
    for each in (batch, other):
        each.first[:, 6] = True  # and nobody marked row 5 as the last
    other.reward[:, 6:] = 1000.0
    assert last_rows(batch).nonzero()[:, 1].tolist() == [5] * 4
    learner = dreamer()
    nn.init.normal_(learner.actor_critic.critic[-1].weight)
    loss, changed = ((torch.manual_seed(0), learner.losses(each)["replay"])[1] for each in (batch, other))
    assert torch.equal(loss[:, :6], changed[:, :6]) and loss[:, 5].eq(0).all()
    assert loss[:, 6:].ne(changed[:, 6:]).all()


def test_only_actor_and_critic_learn_and_the_slow_critic_follows(tmp_path):
    learner, control = dreamer(), dreamer()
    learner.model.train()
    before = {name: tensor.clone() for name, tensor in learner.actor_critic.state_dict().items()}
    fit(learner, [walk(0)], tmp_path, TrainConfig.preset("tiny", steps=3, log_every=1))
    after = learner.actor_critic.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"actor", "critic", "slow_critic", "scale"}
    assert not learner.model.training and learner.model.scale == 1 and learner.model.scale.requires_grad
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert kept and not any("drop" in name or name.startswith("model") for name in kept)
    logged = {"loss/actor", "loss/critic", "loss/replay", "watch/return", "watch/imagined_steps_per_second"}
    assert logged <= set(read_log(tmp_path))
    with pytest.raises(FolderError, match="other|another"):
        control.identity = {"game": "ball", "actions": "2"}
        fit(control, [walk(0)], tmp_path, TrainConfig.preset("tiny", steps=4))


def test_interrupted_dreaming_goes_on_with_the_same_numbers(tmp_path):
    data, config = [walk(seed) for seed in range(3)], TrainConfig.preset("tiny", steps=6, checkpoint_every=3)
    whole = fit(dreamer(), data, tmp_path / "whole", config)
    fit(dreamer(), data, tmp_path / "parts", config.change(steps=3))
    parts = fit(dreamer(seed=5), data, tmp_path / "parts", config)
    for name, tensor in whole.actor_critic.state_dict().items():
        assert torch.equal(tensor, parts.actor_critic.state_dict()[name]), name


def test_a_policy_learns_in_dreams_and_not_from_dreams_without_reward(tmp_path):
    def right(change):
        learner = dreamer(replay=0.0)
        learner.reward_fn = change
        fit(learner, [walk(seed) for seed in range(10)], tmp_path / str(change), TrainConfig.preset("tiny", steps=40, lr=1e-2))
        return float(learner.actor_critic.policy(torch.eye(9)[1:8]).parts[0].probabilities[:, 1].mean())

    def unpaid(dream):
        dream.reward.zero_()
        return dream

    assert right(None) > 0.8 > right(unpaid)


def test_what_dreams_refuse():
    with pytest.raises(UsageError, match="replay=0"):
        DreamLearner(Corridor(), dreamer().actor_critic, DreamConfig(), lambda dream: dream)
    with pytest.raises(UsageError, match="1 row"):
        dreamer().losses(walk(0, time=1))
    with pytest.raises(UsageError, match="horizon"):
        DreamConfig(horizon=0)


# An agent at Bonk


class Watcher(WorldModel):
    """Its memory is a fading trace of everything it was told: what differs, shows."""

    game = "bonk"

    def __init__(self, actions=ACTIONS, noise=0.0):
        super().__init__()
        self.actions, self.feature_size, self.noise = ActionSpec(categorical=(actions,)), 64 + 1 + actions, noise
        self.weight = nn.Parameter(torch.ones(()))

    def observe(self, context, state=None, every=False, generator=None):
        picture = context.image.float().mean(-1).unflatten(2, (8, 8)).unflatten(4, (8, 8)).mean((3, 5)).flatten(2) / 255
        loudness = context.step_audio()[0].float().abs().sum((2, 3))[..., None] / 1e6
        keep = ~context.first[..., None]
        told = torch.cat([picture, loudness, keep * self.actions.vectors(context.action)], -1)
        memory = torch.zeros(len(told), self.feature_size) if state is None else state["memory"]
        rows = []
        for t in range(told.shape[1]):
            memory = 0.8 * keep[:, t] * memory + told[:, t] + self.noise * uniform(memory.shape, memory, generator)
            rows.append(memory)
        return {"memory": torch.stack(rows, 1).flatten(0, 1) if every else memory}

    def advance(self, state, action, generator=None):
        trace = F.pad(action, (65, 0))
        return {"memory": 0.8 * state["memory"] + trace + self.noise * uniform(trace.shape, trace, generator)}

    def features(self, state):
        return self.weight * state["memory"]

    def reward(self, features):
        return features[..., 64]

    def continuation(self, features):
        return features[..., 0].sigmoid()

    def save(self, folder):
        folder.mkdir()
        (folder / "watcher.json").write_text(json.dumps([self.actions.size, self.noise, self.weight.item()]))

    @classmethod
    def load(cls, folder):
        actions, noise, weight = json.loads((folder / "watcher.json").read_text())
        model = cls(actions, noise)
        model.weight.data.fill_(weight)
        return model


def player(noise=0.0, greedy=False, seed=0):
    torch.manual_seed(seed)
    model = Watcher(noise=noise)
    actor_critic = ActorCritic(ActorCriticConfig(layers=1, units=16), model.feature_size, model.actions)
    nn.init.normal_(actor_critic.actor[-1].weight)  # opinions, for the first weights of an actor have none
    return Agent(model, actor_critic, greedy=greedy)


def play(agent, game, seed, steps=20):
    observation, info = game.reset(seed=1)
    agent.reset(seed)
    actions = []
    for _ in range(steps):
        actions.append(agent(observation, info))
        observation, _, _, _, info = game.step(actions[-1])
    return actions


@pytest.fixture(scope="module")
def bonk():
    game = make_game("bonk")
    yield game
    game.close()


def test_what_an_agent_does_follows_from_the_seed_of_its_episode_alone(bonk):
    agent = player(noise=0.5)
    actions = play(agent, bonk, 3)
    torch.rand(7)
    assert play(agent, bonk, 3) == actions != play(agent, bonk, 4)
    assert play(pickle.loads(pickle.dumps(agent)), bonk, 3) == actions
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    play(agent, bonk, 3, steps=2)
    assert torch.equal(torch.rand(3), expected), "playing moved the global random generator"


def test_it_is_as_undecided_as_its_policy_unless_greedy(bonk):
    agent = player(greedy=True)
    assert play(agent, bonk, 3) == play(agent, bonk, 4)
    state = agent.state
    expected = agent.actor_critic.policy(agent.model.features(state)).parts[0].probabilities.argmax(-1)
    assert agent.action == int(expected)


@pytest.mark.parametrize("sticky", [0.0, 0.5])
def test_at_the_game_it_remembers_what_it_would_read_in_the_recording(tmp_path, sticky):
    agent = player()
    record("bonk", tmp_path / "store", agent, episodes=2, settings={**SETTINGS, "sticky_actions": sticky})
    cache = Cache.build(Store.open(tmp_path / "store"))
    assert len(cache) == 50 and Store.open(tmp_path / "store").episodes[0].about["policy"] == "agent"
    rows = cache.gather([[(25, 49)]]).torch()  # all rows of the second episode after which it decided
    read = agent.model.observe(rows)["memory"]
    torch.testing.assert_close(agent.state["memory"], read)
    assert agent.action == int(cache.table["action"][49])


def test_it_says_what_it_expects_and_asking_changes_nothing(bonk):
    agent, quiet = player(noise=0.5), player(noise=0.5)
    with pytest.raises(UsageError, match="first observation"):
        agent.predict()
    observation, info = bonk.reset(seed=1)
    for each in (agent, quiet):
        each.reset(0)
        each(observation, info)
    expected = agent.predict()
    assert expected.reward == agent.predict().reward == float(expected.features[0, 64])
    observation, _, _, _, info = bonk.step(agent.action)
    assert agent(observation, info) == quiet(observation, info)


def test_it_is_kept_in_a_folder_and_comes_back(tmp_path, bonk):
    agent = player(noise=0.1, greedy=True)
    agent.model.weight.data.fill_(0.5)
    folder = agent.save(tmp_path / "agent")
    agent.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent"]
    loaded = Agent.load(folder, Watcher.load)
    assert loaded.greedy and loaded.game == "bonk" and loaded.model.weight == 0.5
    assert play(loaded, bonk, 3) == play(agent, bonk, 3)
    assert not Agent.load(folder, loaded.model, greedy=False).greedy
    with pytest.raises(UsageError, match="trained together"):
        Agent.load(folder, Watcher(actions=4))
    with pytest.raises(FolderError, match="holds no agent"):
        Agent.load(tmp_path, Watcher.load)
    (folder / "actor_critic.safetensors").write_bytes(b"0" * 40)
    with pytest.raises(FolderError, match="can't be read"):
        Agent.load(folder, Watcher.load)


def test_a_failed_save_leaves_the_old_agent(tmp_path):
    agent = player()
    folder = agent.save(tmp_path / "agent")

    def broken(folder):
        raise OSError(28, "No space left on device")

    agent.model.save = broken
    with pytest.raises(MetaBonkError, match="no space"):
        agent.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent"] and Agent.load(folder, Watcher.load)


def test_games_that_an_agent_can_not_play_are_refused(bonk, monkeypatch):
    agent = player()
    agent.check(bonk)
    monkeypatch.setattr(type(agent.model), "picture_size", (64, 64))
    for changes, match in (({"actions": ("a", "b")}, "a choice of 2"), ({"image_size": (32, 32)}, "shows")):
        game = make_game("bonk", **changes)
        with pytest.raises(UsageError, match=match):
            agent.check(game)
        game.close()
    agent.game = "pokemon_red"
    with pytest.raises(UsageError, match="pokemon_red"):
        play_episodes(agent, "bonk", 1, settings=SETTINGS)


def test_controls_stay_within_what_the_game_takes():
    class Pushed(Corridor):
        actions, feature_size, game = ActionSpec(continuous=2), 3, ""

    model = Pushed()
    agent = Agent(model, ActorCritic(ActorCriticConfig(), 3, model.actions))
    box = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))
    seen = gym.spaces.Dict({"image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)})
    wild = torch.tensor([[-3.0, 0.5], [1.0, -0.5]])
    assert agent.to_actions(wild)[0].tolist() == [-3, 0.5]
    agent.check(SimpleNamespace(action_space=box, observation_space=seen, unwrapped=SimpleNamespace(name="any")))
    assert [action.tolist() for action in agent.to_actions(wild)] == [[-2, 0.5], [1, 0]]


@pytest.mark.parametrize(("noise", "greedy"), [(0.0, True), (0.5, False)])
def test_several_games_at_once_are_the_games_one_by_one(noise, greedy):
    agent = player(noise, greedy)
    alone = play_episodes(agent, "bonk", 5, seed=2, games=1, settings=SETTINGS)
    together = play_episodes(agent, "bonk", 5, seed=2, games=3, settings=SETTINGS)
    assert alone.equals(together) and alone["seed"].nunique() == 5 and set(alone["length"]) == {24}
    terms = [name for name in alone if name.startswith("terms/")]
    np.testing.assert_allclose(alone[terms].sum(axis=1), alone["return"])


def test_what_is_played_can_be_recorded(tmp_path):
    agent = player(noise=0.5)
    plain = play_episodes(agent, "bonk", 3, seed=1, games=2, settings=SETTINGS)
    table = play_episodes(agent, "bonk", 3, 1, 2, SETTINGS, tmp_path / "store", {"round": 7})
    assert table.equals(plain), "recording changes nothing"
    store = Store.open(tmp_path / "store")
    kept = {episode.about["seed"]: store.read(episode) for episode in store.episodes}
    assert {episode.about["round"] for episode in store.episodes} == {7}
    assert {episode.about["policy"] for episode in store.episodes} == {"Agent"}
    for seed, length, earned in table[["seed", "length", "return"]].to_numpy():
        rows = kept[seed]
        assert len(rows) == length + 1 and rows.truncated[-1] and rows.reward.sum() == pytest.approx(earned)
    again = make_game("bonk", **SETTINGS)  # and what is recorded is what happened
    again.reset(seed=int(table["seed"][2]))
    rows = kept[table["seed"][2]]
    for action, image, reward in zip(rows.action[1:], rows.image[1:], rows.reward[1:], strict=True):
        observation, earned, *_ = again.step(int(action))
        assert np.array_equal(observation["image"], image) and earned == pytest.approx(float(reward))
    again.close()


def test_playing_several_games_follows_from_the_seed():
    agent = player(noise=0.5)
    tables = [play_episodes(agent, "bonk", 3, seed=seed, games=2, settings=SETTINGS) for seed in (1, 1, 2)]
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])
    with pytest.raises(UsageError, match="at least one"):
        play_episodes(agent, "bonk", 0)


def test_it_records_in_processes_and_in_threads(tmp_path):
    for parallel in ("threads", "processes"):
        record("bonk", tmp_path / parallel, player(noise=0.5), episodes=2, games=2, parallel=parallel, settings=SETTINGS)
    tables = [Cache.build(Store.open(tmp_path / parallel)).table for parallel in ("threads", "processes")]
    rows = [sorted(table[["step", "action", "tick"]].tolist()) for table in tables]
    assert rows[0] == rows[1] and len({action for _, action, _ in rows[0]}) > 3


def test_sound_of_different_lengths_is_filled_up():
    image = np.zeros((2, 8, 8, 3), np.uint8)
    rows = RawSenses(2)({"image": image, "audio": [np.ones((2, 3), np.int16), np.ones((2, 5), np.int16)]})
    assert rows.audio.shape == (2, 2, 5) and rows.audio.sum() == 16 and rows.audio_length.tolist() == [[3], [5]]


# Rounds of both


def raw_data(store):
    return ExperienceData(store, SequenceConfig(length=8, batch_size=2))


@pytest.fixture
def tuning(tmp_path):
    "Makes a fine-tuning on a store with one episode by chance"
    record("bonk", tmp_path / "store", "random", episodes=1, settings=SETTINGS)
    learn = ShortUpdates(raw_data, policy=TrainConfig.preset("tiny", steps=2), dreams=DreamConfig(horizon=3))

    def make(update=learn, **config):
        settings = FineTuneConfig(**{"rounds": 2, "episodes": 2, **config})
        rows = lambda agent, store: {"rows": float(len(Store.open(store)))}  # noqa: E731
        return FineTune(player(noise=0.1), "bonk", tmp_path / "store", tmp_path / "tuning", update, settings, SETTINGS, rows)

    return make


def rounds_recorded(store):
    return [episode.about.get("round") for episode in Store.open(store).episodes]


def test_rounds_learn_play_record_and_keep_the_best(tuning, tmp_path):
    tune = tuning()
    before = {name: tensor.clone() for name, tensor in tune.agent.actor_critic.state_dict().items()}
    table = tune.run()
    assert table["round"].tolist() == [0, 1, 2] and table["steps"].tolist() == [48, 96, 144]
    assert rounds_recorded(tune.store) == [None, 0, 0, 1, 1, 2, 2] and table["rows"].tolist() == [75, 125, 175]
    assert any(not torch.equal(before[name], tensor) for name, tensor in tune.agent.actor_critic.state_dict().items())
    store = Store.open(tune.store)
    for number, score in table[["round", "score"]].to_numpy():
        earned = [store.read(episode).reward.sum() for episode in store.episodes if episode.about.get("round") == number]
        assert np.mean(earned) == pytest.approx(score), "an agent is judged by what it recorded"
    assert table["score"][tune.best] == table["score"].max() and Agent.load(tune.best_agent, Watcher.load)
    assert not list((tmp_path / "tuning").glob("*/*/checkpoints"))


def test_no_two_rounds_play_the_same_episodes(tuning):
    tune = tuning(update=lambda agent, store, folder: None)
    tune.run()
    store = Store.open(tune.store)
    seeds = [episode.about["seed"] for episode in store.episodes]
    assert len(set(seeds)) == len(seeds) == 7


def test_the_best_round_is_the_earliest_with_the_highest_real_score(tuning, tmp_path, monkeypatch):
    scores = iter([1.0, 5.0, 5.0, 2.0])
    frame = lambda *given: pd.DataFrame({"return": [next(scores)], "length": [1]})  # noqa: E731
    monkeypatch.setattr("metabonk.act.finetune.play_episodes", frame)
    tune = tuning(update=lambda agent, store, folder: None, rounds=3)
    tune.run()
    assert tune.best == 1 and tune.best_agent == tmp_path / "tuning" / "round-001" / "agent"
    assert sorted(path.parent.name for path in (tmp_path / "tuning").glob("*/agent")) == ["round-001", "round-003"]


def test_an_interrupted_round_is_taken_up_where_it_was(tuning):
    calls = []

    def update(agent, store, folder):
        calls.append((folder.name, float(agent.model.weight)))
        if len(calls) == 2:
            raise KeyboardInterrupt
        agent.model.weight.data += 1

    with pytest.raises(KeyboardInterrupt):
        tuning(update).run()
    tune = tuning(update)
    assert len(tune.run()) == 3
    assert calls == [("round-001", 1.0), ("round-002", 2.0), ("round-002", 2.0)], "round 2 begins with what round 1 learned"
    assert rounds_recorded(tune.store) == [None, 0, 0, 1, 1, 2, 2]
    assert tune.agent.model.weight == 3 and tuning(update).run().equals(tune.table) and len(calls) == 3
    assert len(tuning(update, rounds=3).run()) == 4


def test_interrupted_play_does_not_teach_the_agent_twice(tuning, monkeypatch):
    calls, play = [], play_episodes

    def update(agent, store, folder):
        calls.append(folder.name)
        agent.model.weight.data += 1

    def broken(agent, game, episodes, *given):
        played = play(agent, game, episodes, *given)
        if len(calls) == 1:
            raise KeyboardInterrupt  # everything is recorded, but the round is not noted as done
        return played

    monkeypatch.setattr("metabonk.act.finetune.play_episodes", broken)
    with pytest.raises(KeyboardInterrupt):
        tuning(update, rounds=1).run()
    monkeypatch.setattr("metabonk.act.finetune.play_episodes", play)
    tune = tuning(update, rounds=1)
    tune.run()
    assert calls == ["round-001"] and tune.agent.model.weight == 2
    episodes = [episode for episode in Store.open(tune.store).episodes if episode.about.get("round") == 1]
    assert len(episodes) == len({episode.about["seed"] for episode in episodes}) == 4, "it played others, and kept the first"


def test_a_folder_of_another_fine_tuning_is_refused(tuning, tmp_path):
    tuning(rounds=0).run()
    with pytest.raises(UsageError, match="episodes=2, not 3"):
        tuning(episodes=3).run()
    (tmp_path / "tuning" / "finetune.json").write_text("{")
    with pytest.raises(FolderError, match="can't be read"):
        tuning().run()
    with pytest.raises(UsageError, match="episodes"):
        tuning(episodes=0)


def test_a_recording_that_can_teach_nothing_is_refused():
    class Model(WorldModel):
        actions = ActionSpec(categorical=(2,))

    check_learnable(Model(), np.array([0.0, 0.0, -0.5]))  # a penalty alone is enough to learn from
    with pytest.raises(UsageError, match="no reward was earned in 3"):
        check_learnable(Model(), np.zeros(3))
    Model.actions = ActionSpec(categorical=(1,))
    with pytest.raises(UsageError, match="one action"):
        check_learnable(Model(), np.ones(3))
