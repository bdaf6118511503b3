"""The dream of every model is a game like any other: Gymnasium's own checks, a seed that fixes it, a person who plays it."""

import asyncio
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from test_token_model import build as token_model
from test_token_model import rows

from metabonk.core.actions import ActionSpec, FlatActions
from metabonk.core.errors import UsageError
from metabonk.dream.av_world import AVWorld
from metabonk.dream.avcdit import AVCDiT, AVCDiTConfig
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.dynamics import DynamicsConfig, ShortcutModel
from metabonk.dream.interface import DreamEnv, State, WorldModel
from metabonk.play.keyboard import Keyboard, play
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig
from metabonk.sense.codec import CodecConfig, PCACodec
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import Tokenizers

pytestmark = pytest.mark.xdist_group("dream games")  # its models are built in one worker
NAMES = ["noop", "left", "right_a"]


def awake(model: WorldModel) -> WorldModel:
    """Weights that start at zero would make every dream the same; tokenizers and encoders, which are frozen, stay."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    return model.eval()


LOGMEL = LogMelConfig(sample_rate=8_000, n_fft=256, bands=4, frames_per_step=2)  # few bands are quickly a sound again


def rssm(latents: str) -> tuple[WorldModel, State]:
    """Tokens of two senses, one kind of random state."""
    eyes = PictureTokenizer(PictureConfig(size=(8, 8), grid=(2, 2), codes=4))
    ears = SoundTokenizer(SoundConfig(channels=1, frames=2, bands=4, tokens=2, codes=4))
    model = awake(token_model(Tokenizers(eyes, ears, LOGMEL, "light"), ActionSpec(categorical=(3,)), latents=latents))
    return model, model.observe(rows())


def shortcut() -> tuple[WorldModel, State]:
    """The transformer of Dreamer 4, with sound."""
    sound: dict[str, Any] = {"channels": 1, "frames": 2, "bands": 4, "sound_patch": (2, 2)}
    code = CausalTokenizerConfig(size=(8, 8), patch=4, latents=2, bottleneck=3, width=16, layers=1, heads=2, **sound)
    config = DynamicsConfig(width=16, heads=2, kv_heads=1, layers=2, context=3, units=8)
    model = ShortcutModel(CausalTokenizer(code), ActionSpec(categorical=(3,)), config, logmel=LOGMEL, step_samples=400.0)
    awake(model)
    return model, model.start(4)


def diffusion() -> tuple[WorldModel, State]:
    """Diffusion over latents of picture and sound."""
    eyes = Autoencoder(AutoencoderConfig.preset("tiny", size=(32, 32), widths=(8, 16), groups=4))
    ears = PCACodec(CodecConfig(samples=640, latents=8))
    config = AVCDiTConfig(width=16, layers=1, heads=2, vision=tuple(eyes.shape), audio=tuple(ears.shape))
    model = awake(AVWorld(AVCDiT(config), ActionSpec(categorical=(3,)), autoencoder=eyes, codec=ears))
    return model, model.start(4)


MODELS = {**{kind: lambda kind=kind: rssm(kind) for kind in ("categorical", "gumbel", "gaussian")},
          "shortcut": shortcut, "diffusion": diffusion}  # fmt: skip


@pytest.fixture(params=MODELS, scope="module")
def dream(request: pytest.FixtureRequest) -> DreamEnv:
    torch.manual_seed(0)
    return DreamEnv(*MODELS[request.param](), max_steps=20, action_names=NAMES)


def told(game: gym.Env, seed: int, steps: int = 4) -> list[np.ndarray]:
    """All that a dream gives."""
    found = [game.reset(seed=seed)]
    found += [game.step(action % 3) for action in range(steps)]
    return [np.asarray(x) for row in found for part in row for x in (part.values() if isinstance(part, dict) else [part])
            if not isinstance(x, dict)]  # fmt: skip


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_gymnasium_finds_nothing_wrong(dream: DreamEnv) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(infinity|not recommended|render|symmetric).*")
        check_env(dream)


def test_a_seed_fixes_the_dream(dream: DreamEnv) -> None:
    dream.model.train()
    before = told(dream, 7)
    torch.rand(3), np.random.rand(3)  # what others draw does not matter
    assert same(told(dream, 7), before)
    assert not same(told(dream, 8), before)
    dream.model.eval()


def test_a_dream_that_draws_from_the_global_generator_is_caught(dream: DreamEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    "Negative control."
    monkeypatch.setattr(dream.dream, "generators", None)
    monkeypatch.setattr(DreamEnv, "reset", lambda self, seed: self._begun())
    monkeypatch.setattr(DreamEnv, "_begun", lambda self: (self.dream._begin([0], 0), ({}, {}))[1], raising=False)
    assert not same(told(dream, 7), told(dream, 7))


def test_a_person_plays_a_dream(dream: DreamEnv) -> None:
    keyboard, shown = Keyboard(dream), []
    keyboard.screen.show = lambda image, audio, expected=None: shown.append((image.shape, audio.dtype))  # type: ignore[method-assign]
    assert keyboard.actions == [(), ("left",), ("right", "a")]
    steps = asyncio.run(play(dream, keyboard, steps=3, seed=1, speed=1_000, wait=False))
    assert steps == 3 and shown == [(dream.observation_space["image"].shape, np.int16)] * 3
    assert len(dream.render().shape) == 3


def test_a_person_hears_a_dream_at_its_own_pace() -> None:
    torch.manual_seed(0)
    model, starts = shortcut()
    game = DreamEnv(model, starts)
    assert game.sample_rate == 8_000 and game.metadata["render_fps"] == 20  # 400 samples a step
    assert Keyboard(game).actions == [("0",), ("1",), ("2",)]  # digit keys where actions have no names
    game.reset(seed=0)
    assert [game.step(0)[4]["clock"]["ticks"] for _ in range(3)] == [50, 100, 150] and game.clock_rate == 1_000


def test_limits_of_controls_come_from_the_game() -> None:
    class Pedal(WorldModel):
        feature_size, actions = 1, ActionSpec(continuous=1, unbounded=1)

        def features(self, state: State) -> torch.Tensor:
            return state["speed"][:, None]

        def reward(self, features: torch.Tensor) -> torch.Tensor:
            return features[..., 0]

        def continuation(self, features: torch.Tensor) -> torch.Tensor:
            return torch.ones(features.shape[:-1])

        def advance(self, state: State, action: torch.Tensor, generator: Any = None) -> State:
            return {"speed": state["speed"] + action[:, 0]}

        def decode(self, state: State) -> dict[str, torch.Tensor]:
            return {"image": torch.zeros(len(state["speed"]), 4, 4, 3, dtype=torch.uint8)}

    starts, pedal = {"speed": torch.zeros(1)}, FlatActions(gym.spaces.Box(0, np.inf, (1,))).space
    game = DreamEnv(Pedal(), starts, action_space=pedal)
    game.reset(seed=0)
    assert game.step(np.float32([2.0]))[1] == 2
    with pytest.raises(UsageError, match="is not in Box"):
        game.step(np.float32([-1.0]))
    assert DreamEnv(Pedal(), starts).action_space.contains(np.float32([-1.0]))  # the model alone knows no such limit
    with pytest.raises(UsageError, match="not those of the model"):
        DreamEnv(Pedal(), starts, action_space=gym.spaces.Discrete(2))
    with pytest.raises(UsageError, match="2 names for 0 actions"):
        DreamEnv(Pedal(), starts, action_names=["brake", "go"])
    keyboard_needs = pytest.raises(UsageError, match="no named actions")
    with keyboard_needs:
        Keyboard(game)
