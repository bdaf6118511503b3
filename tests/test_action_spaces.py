"""Games with every kind of action space: recorded, learned, dreamt and played, by both world models"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.core.actions import ActionSpec, FlatActions
from metabonk.core.learner import TrainConfig
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.codes import CodeData
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.interface import DreamEnv
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.play.game import make_game
from metabonk.play.policies import make_policy
from metabonk.play.vector import make_vector
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.tokens import TokenData, Tokenizers

pytestmark = pytest.mark.filterwarnings("ignore")

SHORT = SequenceConfig(length=6, batch_size=2)
SPACES = {
    "counted from 1": gym.spaces.Discrete(3, start=1),
    "one number": gym.spaces.Box(0, 4, ()),
    "a matrix, half without limits": gym.spaces.Box(
        np.array([[0, -1], [0, 2]]), np.array([[1, 1], [np.inf, np.inf]]), dtype=np.float64
    ),
    "choices from anywhere": gym.spaces.MultiDiscrete([[2, 3]], start=[[-1, 5]]),
    "keys in rows": gym.spaces.MultiBinary((2, 2)),
    "all of them": gym.spaces.Dict(
        pad=gym.spaces.Tuple([gym.spaces.MultiBinary(2), gym.spaces.Discrete(3, start=1)]),
        steer=gym.spaces.Box(-3, 5, (1,), np.int8), throttle=gym.spaces.Box(0, np.inf, ()),
    ),
}  # fmt: skip
SPECS = {
    "counted from 1": ActionSpec(categorical=(3,)),
    "one number": ActionSpec(continuous=1),
    "a matrix, half without limits": ActionSpec(continuous=4, unbounded=2),
    "choices from anywhere": ActionSpec(categorical=(2, 3)),
    "keys in rows": ActionSpec(binary=4),
    "all of them": ActionSpec(binary=2, categorical=(3,), continuous=2, unbounded=1),
}


class Picky(gym.Env):
    """Takes its own space's actions and no others; its picture and reward tell what was done."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Box(-9, 9, (2,))

    def __init__(self, name, render_mode=None):
        self.action_space, self.render_mode, self.done = SPACES[name], render_mode, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.done = 0.0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action in self.action_space, f"{action!r} is not in {self.action_space}"
        self.done = float(np.abs(np.concatenate([np.ravel(part) for part in parts(action)])).sum())
        return np.zeros(2, np.float32), float(self.done > 2), False, False, {}

    def render(self):
        return np.full((16, 16, 3), int(min(self.done, 5) * 50), np.uint8)


def parts(action):
    if isinstance(action, dict | tuple):
        for part in action.values() if isinstance(action, dict) else action:
            yield from parts(part)
    else:
        yield action


@pytest.fixture(scope="module", autouse=True)
def registered():
    before = dict(gym.registry)
    gym.register("Test/Picky-v0", Picky, max_episode_steps=20)
    yield
    gym.registry.clear()
    gym.registry.update(before)


@pytest.fixture(scope="module", params=SPACES)
def recorded(request, tmp_path_factory) -> tuple[str, dict, Store]:
    """60 rows of a game with this space."""
    folder = tmp_path_factory.mktemp("picky") / "store"
    settings = {"image_size": (16, 16), "kwargs": {"name": request.param}}
    record("gym:Test/Picky-v0", folder, "random", episodes=3, seed=1, settings=settings)
    return request.param, settings, Store.open(folder)


def learn_and_play(model, learner, data, settings, folder: Path) -> None:
    """Two steps of the world, two of a policy in its dreams, ten in a dream, ten in the game."""
    short = TrainConfig(steps=2, warmup=0, accelerator="cpu")
    fit(learner, data, folder / "world", short)
    batch = next(iter(data.train_dataloader()))
    policy = ActorCritic(ActorCriticConfig(layers=1, units=8), model.feature_size, model.actions)
    fit(DreamLearner(model, policy, DreamConfig(horizon=2, starts=4)), data, folder / "policy", short)
    Agent(model.eval(), policy, game="gym:Test/Picky-v0").save(folder / "agent")
    agent = Agent.load(folder / "agent", type(model).load)
    assert agent.model.actions == model.actions
    played = play_episodes(agent, "gym:Test/Picky-v0", 1, 0, 1, {**settings, "max_steps": 10})
    assert played["length"].tolist() == [10]
    dream = DreamEnv(model, model.observe(batch), max_steps=10)
    dream.reset(seed=0)
    for _ in range(3):
        assert np.isfinite(dream.step(dream.action_space.sample())[1])


def test_a_recording_holds_what_was_done(recorded):
    name, settings, store = recorded
    assert store.schema.actions == SPECS[name] and len(store) == 63
    game = make_game("gym:Test/Picky-v0", **settings)
    for episode in store.episodes:
        steps = store.read(episode)
        game.reset(seed=0)
        for row in list(steps)[1:]:
            seen, reward, *_ = game.step(row.action)
            assert reward == row.reward and np.array_equal(seen["image"], row.image)
    game.close()


def test_tokens_learn_and_play(recorded, tmp_path):
    name, settings, store = recorded
    torch.manual_seed(0)
    eyes = PictureTokenizer(PictureConfig.preset("tiny", size=(16, 16), grid=(2, 2)))
    tokenizers = Tokenizers(eyes, None, None, store.schema.game)
    data = TokenData(store.path, tokenizers, SHORT, path=tmp_path / "tokens", cache=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    model = TokenModel(TokenModelConfig(size="tiny", embed=16, units=16), tokenizers, store.schema.actions)
    learn_and_play(model, WorldModelLearner(model), data, settings, tmp_path)


def test_shortcuts_learn_and_play(recorded, tmp_path):
    name, settings, store = recorded
    torch.manual_seed(0)
    both = {"width": 16, "layers": 2, "heads": 2, "time_every": 2, "context": 3}
    tokenizer = CausalTokenizer(CausalTokenizerConfig(size=(16, 16), patch=8, latents=2, bottleneck=3, **both))
    config = DynamicsConfig(**both, kv_heads=1, registers=1, units=8, distances=2)
    model = ShortcutModel(tokenizer, store.schema.actions, config, ShortcutConfig(finest=8), store.schema.game)
    data = CodeData(store.path, tokenizer, None, SHORT, path=tmp_path / "codes", cache=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    learn_and_play(model, DynamicsLearner(model), data, settings, tmp_path)


def shown() -> list[int]:
    """What the game does with each class that is counted from 0."""
    game = make_game("gym:Test/Picky-v0", kwargs={"name": "counted from 1"})
    game.reset(seed=0)
    seen = [int(game.step(action)[0]["image"][0, 0, 0]) // 50 for action in range(3)]
    game.close()
    return seen


def test_a_class_is_shifted_exactly_once(monkeypatch):
    assert shown() == [1, 2, 3]
    monkeypatch.setattr(FlatActions, "unflatten", mutant(FlatActions.unflatten, "+ self._middle", "+ 2 * self._middle"))
    assert shown() != [1, 2, 3]


@pytest.mark.parametrize("name", SPACES)
def test_everybody_plays_it(name):
    game = make_game("gym:Test/Picky-v0", kwargs={"name": name}, sticky_actions=0.5)
    for who in ("random", "sticky_random", "noop"):
        policy = make_policy(who, game)
        seen, info = game.reset(seed=0)
        for _ in range(5):
            seen, _, _, _, info = game.step(policy(seen, info))
            assert game.action_space.contains(np.asarray(info["executed"]))
    game.close()


@pytest.mark.parametrize("name", SPACES)
def test_many_are_played_side_by_side(name):
    games = make_vector("gym:Test/Picky-v0", 2, how="serial", kwargs={"name": name})
    games.reset(seed=0)
    games.action_space.seed(0)
    for _ in range(3):
        assert np.isfinite(games.step(games.action_space.sample())[1]).all()
    games.close()


def test_what_sticky_actions_did_is_recorded(tmp_path):
    settings = {"kwargs": {"name": "all of them"}, "sticky_actions": 0.5, "image_size": (16, 16)}
    record("gym:Test/Picky-v0", tmp_path, "random", episodes=1, seed=3, settings=settings)
    store = Store.open(tmp_path)
    steps = store.read(store.episodes[0])
    executed = np.stack([steps.probes[f"executed_{place}"] for place in range(5)], 1)
    same = (executed[1:] == steps.action[1:]).all(1)
    held = (executed[1:] == executed[:-1]).all(1)
    assert same.any() and not same.all() and (same | held).all()
