"""The interface of world models is all that is used of them: declared attributes, small protocols, and nothing by name."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metabonk.act import curiosity
from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.finetune import FineTune, FineTuneConfig, ShortUpdates
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.training import TrainConfig
from metabonk.dream.dynamics import ShortcutModel
from metabonk.dream.interface import (
    DreamEnv,
    LogMelPredictor,
    Saveable,
    TokenPredictor,
    WorldModel,
    dream_along,
    imagine,
    pick_states,
)
from metabonk.dream.token_model import TokenModel
from metabonk.measure.dreams import dream_video, free_dream_video
from metabonk.measure.listening import Moments, predict
from metabonk.measure.reality import LiveReality, play_and_compare, reality_check
from metabonk.record.recorder import record
from metabonk.record.sampling import ExperienceData, SequenceConfig

PACKAGE = Path(__file__).parent.parent / "metabonk"
SETTINGS = {"image_size": (32, 32), "sample_rate": 24000, "max_steps": 12}
PROTOCOLS = ("token_logits", "look", "logmel", "step_samples", "save", "load")


def asked_by_name(source: str) -> list[str]:
    """Calls that fetch something from a model, or from a part of one, by its name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "vars") and node.args:
            thing = ast.unparse(node.args[0])
            if any(word in thing for word in ("model", "latents", "tokenizer", "encoder", "rssm")):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", sorted((*PACKAGE.glob("act/*.py"), *PACKAGE.glob("measure/*.py"))), ids=lambda p: p.stem)
def test_nothing_is_fetched_from_a_model_by_name(path):
    assert asked_by_name(path.read_text()) == []


def test_what_is_fetched_by_name_is_found():
    "Negative control."
    assert asked_by_name('getattr(self.model, "look", None)\nhasattr(model, "x")\ngetattr(batch, "episode")') == [
        "getattr(self.model, 'look', None)", "hasattr(model, 'x')",
    ]  # fmt: skip


class Strict(WorldModel):
    """Sees how bright a quarter of the picture is; notes whatever is asked of it and is not declared."""

    feature_size, actions, game = 4, ActionSpec(categorical=(11,)), "bonk"
    allowed = {*dir(WorldModel), *WorldModel.__annotations__, "training", "asked", "weight", "__dict__"}
    asked: set[str] = set()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def __getattribute__(self, name):
        if name not in Strict.allowed and not name.startswith("_"):
            if name not in PROTOCOLS:
                Strict.asked.add(name)
            raise AttributeError(name)
        return super().__getattribute__(name)

    def observe(self, context, state=None, every=False):
        seen = context.image.float().mean((-3, -2, -1))[..., None].expand(*context.first.shape, 4) / 255
        return {"seen": seen.flatten(0, 1) if every else seen[:, -1]}

    def advance(self, state, action):
        return {"seen": 0.9 * state["seen"] + 0.1 * action[:, :4]}

    def features(self, state):
        return self.weight * state["seen"]

    def reward(self, features):
        return features.mean(-1)

    def continuation(self, features):
        return features[..., 0].sigmoid()

    def decode(self, state):
        shade = (255 * state["seen"][:, :1, None, None]).clamp(0, 255).to(torch.uint8)
        return {"image": shade.expand(-1, 32, 32, 3), "audio": torch.zeros(len(shade), 2, 1600, dtype=torch.int16)}


class Kept(Strict):
    """The same, and it can be saved."""

    allowed = Strict.allowed

    def __getattribute__(self, name):
        return nn.Module.__getattribute__(self, name) if name in ("save", "load") else super().__getattribute__(name)

    def save(self, folder):
        folder.mkdir()

    @classmethod
    def load(cls, folder):
        return cls()


@pytest.fixture
def recorded(tmp_path):
    record("bonk", tmp_path / "store", "random", episodes=3, settings=SETTINGS)
    data = ExperienceData(tmp_path / "store", SequenceConfig(length=8, batch_size=4))
    data.prepare_data()
    data.setup("fit")
    return tmp_path / "store", next(iter(data.train_dataloader()))


def test_a_model_with_nothing_but_what_is_declared_serves_everyone(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(Strict, "asked", set())
    (store, batch), model = recorded, Strict()
    agent = ActorCritic(ActorCriticConfig(units=8), 4, model.actions)
    states = model.observe(batch, every=True)
    imagine(model, agent.policy, states, 2)
    dream_along(model, pick_states(states, slice(0, 4)), model.actions.vectors(batch.action[:, :2]))
    env = DreamEnv(model, states)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    free_dream_video(model, agent.policy, pick_states(states, slice(0, 1)), 2, sample_rate=24000)
    dream_video(model, batch, batch, 3, 2, sample_rate=24000)
    reality_check(model, batch, 3, 2)
    predict(model, Moments(batch, np.full(4, "random")), 1)
    play_and_compare(Agent(model, agent), "bonk", settings=SETTINGS, live=LiveReality(model))
    DreamLearner(model, agent, DreamConfig(horizon=2)).losses(batch)
    explorer = curiosity.Explorer({"bright": curiosity.Plan2Explore(curiosity.CuriosityConfig(units=8), 4, 11, 4, latent="")})
    curiosity.ExplorerLearner(model, explorer, agent, DreamConfig(horizon=2, replay=0.0)).losses(batch)
    short = ShortUpdates(lambda store: ExperienceData(store, SequenceConfig(length=8, batch_size=2)),
                         policy=TrainConfig.preset("tiny", steps=2), dreams=DreamConfig(horizon=2))  # fmt: skip
    tune = FineTune(Agent(Kept(), agent), "bonk", store, tmp_path / "tuning", short, FineTuneConfig(rounds=1, episodes=1),
                    SETTINGS)  # fmt: skip
    assert len(tune.run()) == 2
    assert not Strict.asked, f"used, but declared nowhere in the interface: {sorted(Strict.asked)}"


def test_what_is_not_declared_is_noticed(monkeypatch):
    "Negative control."
    monkeypatch.setattr(Strict, "asked", set())
    with pytest.raises(AttributeError):
        Strict().tokenizers  # noqa: B018
    assert Strict.asked == {"tokenizers"}


def test_a_model_that_cannot_be_saved_says_so(tmp_path):
    model = Strict()
    agent = Agent(model, ActorCritic(ActorCriticConfig(units=8), 4, model.actions))
    with pytest.raises(UsageError, match="save"):
        agent.save(tmp_path / "agent")
    with pytest.raises(UsageError, match="load"):
        FineTune(agent, "bonk", tmp_path / "store", tmp_path / "tuning", lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_the_models_have_what_their_protocols_say():
    for kind, has in ((TokenModel, (TokenPredictor, Saveable)), (ShortcutModel, (Saveable,)), (Strict, ())):
        assert [p for p in (TokenPredictor, Saveable) if issubclass(kind, p)] == list(has)
    assert {"look", "logmel"} <= set(dir(TokenModel)) and not isinstance(Strict(), LogMelPredictor)
