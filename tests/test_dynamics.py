"""The dynamics: actions of every kind, what is learned from what, dreams as they were learned, and what it says to bad input."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mutants import mutant
from torch.utils._python_dispatch import TorchDispatchMode

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.act.curiosity import Curiosity, CuriosityConfig, Explorer, ExplorerLearner, Plan2Explore
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.finetune import FineTune, FineTuneConfig, ShortUpdates
from metabonk.act.objectives import PMPO
from metabonk.core.actions import ActionSpec
from metabonk.core.capture import leaves
from metabonk.core.errors import FolderError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream import dynamics
from metabonk.dream.causal_tokenizer import (
    CausalTokenizer,
    CausalTokenizerConfig,
    CausalTokenizerLearner,
    bouncing_ball,
)
from metabonk.dream.clips import Clip, ClipCache, ClipData, ClipObservationEncoder
from metabonk.dream.codes import CodeData
from metabonk.dream.dynamics import (
    ActionEmbedding,
    Dynamics,
    DynamicsConfig,
    DynamicsLearner,
    ShortcutModel,
    batch_length,
    cut_clip,
)
from metabonk.dream.interface import DreamEnv, imagine, open_loop_rollout, pick_states
from metabonk.dream.shortcut import ShortcutConfig, ramp
from metabonk.dream.transformer import Transformer
from metabonk.measure.dreams import free_dream_video
from metabonk.measure.reality import dreamed_rows
from metabonk.nn.distributions import Categorical
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig

THREE = ActionSpec(categorical=(3,))


def quiet(monkeypatch):
    "No chance in what is remembered and dreamed"
    monkeypatch.setattr(dynamics, "gaussian", lambda shape, like, generator: like.new_zeros(shape))


def build(spec: ActionSpec = THREE, decoder_time: bool = False, finest: int = 8, **changes) -> ShortcutModel:
    torch.manual_seed(0)
    both = {"width": 16, "layers": 2, "heads": 2, "time_every": 2, "context": changes.get("context", 3)}
    code = CausalTokenizerConfig(size=(8, 8), patch=4, latents=2, bottleneck=3, decoder_time=decoder_time, **both)
    config = DynamicsConfig(**{**both, "kv_heads": 1, "registers": 1, "units": 8, **changes})
    return ShortcutModel(CausalTokenizer(code), spec, config, ShortcutConfig(finest=finest)).eval()


def alternative(image_ratio: float = 0.3, **chosen) -> ShortcutModel:
    """With other constants than the published ones."""
    model = build(image_ratio=image_ratio)
    other = ShortcutModel(model.tokenizer, THREE, model.config, ShortcutConfig(finest=8, **chosen)).eval()
    other.load_state_dict(model.state_dict())
    return other


def codes(batch: int = 3, time: int = 6, seed: int = 0) -> Clip:
    """Clips of random codes, all episodes from their beginning."""
    torch.manual_seed(seed)
    no = torch.zeros(batch, time, dtype=torch.bool)
    first = no.clone()
    first[:, 0] = True
    latent, action = torch.rand(batch, time, 2, 3) * 2 - 1, torch.randint(3, (batch, time))
    return Clip(latent=latent, action=action, reward=torch.rand(batch, time), terminated=no, truncated=no, first=first)


def test_actions_of_every_kind_become_vectors():
    spec = ActionSpec(binary=2, categorical=(3, 2), continuous=1)
    vector = spec.vectors(torch.tensor([[[1.0, 0.0, 2.0, 1.0, -0.5]]]))
    assert vector.tolist() == [[[1, 0, 0, 0, 1, 0, 1, -0.5]]] and spec.size == 8 and not spec.discrete
    assert THREE.discrete and THREE.vectors(torch.tensor([[2, 0]])).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    assert ActionSpec(continuous=16).vectors(torch.randn(2, 3, 16)).shape == (2, 3, 16)


@pytest.mark.parametrize(("spec", "action"), [
    (THREE, torch.tensor([[3]])), (THREE, torch.tensor([[-1]])), (THREE, torch.tensor([[0.5]])), (THREE, torch.zeros(1, 1, 2)),
    (ActionSpec(binary=2), torch.tensor([[[0, 2]]])), (ActionSpec(continuous=1), torch.tensor([[[torch.nan]]])),
])  # fmt: skip
def test_actions_out_of_range_or_of_the_wrong_kind_say_so(spec, action):
    with pytest.raises(UsageError):
        spec.vectors(action)


SPECS = [THREE, ActionSpec(binary=23, categorical=(121,)), ActionSpec(continuous=16), ActionSpec(binary=3)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_component_is_added_and_an_unknown_action_is_one_embedding(spec):
    torch.manual_seed(0)
    embedding, known = ActionEmbedding(spec, 2, 8), torch.tensor([[False, True, True]])
    action = torch.rand(1, 3, spec.size).round()
    tokens = embedding(action, known)
    assert tokens.shape == (1, 3, 2, 8) and tokens[0, 0].equal(embedding.unknown)
    assert embedding(None, known).equal(embedding.unknown.expand(1, 3, -1, -1))
    for i in range(spec.size):
        other = action.clone()
        other[:, 1, i] = 1 - other[:, 1, i]
        moved = (embedding(other, known) != tokens).flatten(2).any(2)[0].tolist()
        assert moved == [False, True, False]


def embedded_by_both(spec: ActionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Action tokens by the library, and each component's own vector added up in NumPy; a released key has one, too."""
    torch.manual_seed(0)
    embedding, action = ActionEmbedding(spec, 2, 8), torch.rand(2, 3, spec.size).round()
    unknown, up, table = (p.detach().double().numpy() for p in (embedding.unknown, embedding.up, embedding.table))
    wanted = np.tile(unknown.reshape(1, 1, 16), (2, 3, 1))
    for b, t, i in np.ndindex(2, 3, spec.size):
        if action[b, t, i]:
            wanted[b, t] += table[i]
        elif i < spec.binary:
            wanted[b, t] += up[i]
    mine = embedding(action, torch.ones(2, 3, dtype=torch.bool)).detach().double().numpy()
    return mine.reshape(2, 3, 16), wanted


def test_keys_add_what_they_are_pressed_or_not(monkeypatch):
    "Negative control: a released key that adds nothing."
    spec = ActionSpec(binary=5, categorical=(3,))
    np.testing.assert_allclose(*embedded_by_both(spec), atol=1e-5)
    wrong = mutant(ActionEmbedding.forward, " + (1 - action[..., : self.spec.binary]) @ self.up", "")
    monkeypatch.setattr(ActionEmbedding, "forward", wrong)
    mine, wanted = embedded_by_both(spec)
    assert np.abs(mine - wanted).max() > 0.1


def test_losses_have_one_entry_a_row_and_the_tokenizer_is_never_trained():
    model, rows = build().train(), codes()
    losses = model.losses(rows)
    assert losses.keys() == model.scales.keys() and all(loss.shape == (3, 6) for loss in losses.values())
    sum(loss.mean() for loss in losses.values()).backward()
    assert not model.tokenizer.training and not any(p.requires_grad for p in model.tokenizer.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None) < 1e3


def ramped(model: ShortcutModel, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """By how much every frame's loss differs from ramp times error, where all errors are 1."""
    levels = []

    def ones(f, z1, z, tau, d, few):
        clean = f(z, tau, d, slice(0, len(z)))
        levels.append((tau, few))
        return torch.ones_like(tau), clean

    monkeypatch.setattr(dynamics, "shortcut_losses", ones)
    monkeypatch.setattr(model.rms, "forward", lambda name, loss: loss)
    found = model.train().losses(codes(8))["shortcut"]
    (tau, few), = levels
    assert 0 < few < 8
    return (found - ramp(tau)).abs()


def test_the_ramp_weighs_both_branches(monkeypatch):
    assert ramped(build(image_ratio=0.0), monkeypatch).max() < 1e-6


def test_a_ramp_on_one_branch_alone_is_caught(monkeypatch):
    "Negative control."
    one_branch = "torch.cat([ramp(tau[:-few]), torch.ones_like(tau[-few:])]) * error"
    wrong = mutant(ShortcutModel.losses, "ramp(tau) * error", one_branch)
    monkeypatch.setattr(ShortcutModel, "losses", wrong)
    off = ramped(build(image_ratio=0.0), monkeypatch)
    assert off.max() > 0.1 and off[0].max() < 1e-6


def noise_in_training(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What must have been mixed into the codes, if they are as noisy as the denoiser was told."""
    model, rows, seen = build(image_ratio=0.0).train(), codes(40, 6), []
    rows.latent = rows.latent * 0.1 + 3
    forward = model.dynamics.forward
    monkeypatch.setattr(model.dynamics, "forward", lambda z, tau, d, *rest: seen.append((z, tau)) or forward(z, tau, d, *rest))
    model.losses(rows)
    z, tau = seen[-1]
    t = tau[..., None, None]
    return (z - t * rows.latent) / (1 - t)


def noise_in_memory(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The same of the frames that a dream remembers."""
    model, rows, seen = build(), codes(20), []
    tokens = model.dynamics.tokens
    monkeypatch.setattr(model.dynamics, "tokens", lambda z, *rest: seen.append(z) or tokens(z, *rest))
    model.observe(rows)
    level = model.shortcut.context_level
    return (seen[0] - level * rows.latent) / (1 - level)


@pytest.mark.parametrize("noise", [noise_in_training, noise_in_memory])
def test_frames_are_as_noisy_as_the_denoiser_is_told(noise, monkeypatch):
    mixed = noise(monkeypatch)
    assert abs(mixed.mean()) < 0.2 and abs(mixed.std() - 1) < 0.2


@pytest.mark.parametrize(("noise", "name", "old", "new"), [
    (noise_in_training, "losses", "corrupt(z1, tau)", "z1"),
    (noise_in_memory, "_noisy", "corrupt(z, tau, gaussian(z.shape, z, generator))", "z"),
])  # fmt: skip
def test_a_context_left_clean_but_told_otherwise_is_caught(noise, name, old, new, monkeypatch):
    "Negative control, in training and in the cache."
    monkeypatch.setattr(ShortcutModel, name, mutant(getattr(ShortcutModel, name), old, new))
    mixed = noise(monkeypatch)
    assert abs(mixed.mean()) > 1 or abs(mixed.std() - 1) > 0.3


def test_larger_steps_wait_for_the_warm_up(monkeypatch):
    model, passes = build().train(), []
    forward = model.dynamics.forward
    monkeypatch.setattr(model.dynamics, "forward", lambda *given: passes.append(1) or forward(*given))
    model.losses(codes(8), updates=model.shortcut.warmup - 1)
    assert len(passes) == 1
    model.losses(codes(8), updates=model.shortcut.warmup)
    assert len(passes) == 4
    passes.clear()
    DynamicsLearner(model).losses(codes(8))
    assert len(passes) == 1
    DynamicsLearner(model, learned=model.shortcut.warmup).losses(codes(8))
    assert len(passes) == 4, "a second training goes on with larger steps"


@pytest.mark.parametrize("heads", [True, False])
def test_heads_learn_only_where_they_are_asked_to(heads):
    model = build().train()
    learner = DynamicsLearner(model, heads=heads)
    learner.total_loss(codes())[0].backward()
    assert model.dynamics.clean.weight.grad.abs().sum() > 0
    assert any(bool(x.grad is not None and x.grad.any()) for x in model.heads.parameters()) == heads


@pytest.mark.parametrize("world", [True, False])
def test_a_policy_is_cloned_without_a_world_model_where_that_is_asked(world):
    """What a frame looks like gets no gradient then; the policy does, through the same transformer."""
    model = build().train()
    DynamicsLearner(model, world=world).total_loss(codes())[0].backward()
    assert bool(model.dynamics.clean.weight.grad.any()) == world
    for part in (model.heads.policy_head, model.dynamics.transformer):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


def test_single_pictures_know_neither_past_nor_action(monkeypatch):
    model, seen = build(image_ratio=1.0).train(), []
    forward = model.dynamics.forward
    monkeypatch.setattr(model.dynamics, "forward", lambda *given: seen.append(given) or forward(*given))
    losses = model.losses(codes())
    *_, known, first, _, _ = seen[-1]
    assert first.all() and not known.any() and all(losses[name].eq(0).all() for name in ("policy", "reward", "continue"))


def test_a_video_without_actions_and_rewards_teaches_the_rest():
    model, rows = build().train(), codes()
    losses = model.losses(Clip(latent=rows.latent, first=rows.first))
    assert losses["shortcut"].mean() > 0 and losses["reward"].eq(0).all()


def with_films(known: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses of a batch in which nobody knows what was done in some of the sequences."""
    model, rows = build(image_ratio=0.0), codes()
    rows.known = known[:, None].expand(rows.first.shape)
    torch.manual_seed(3)
    return model.losses(rows)


def test_films_among_recordings_teach_the_world_and_nothing_else():
    told, half = with_films(torch.tensor([True, True, True])), with_films(torch.tensor([True, False, True]))
    for name in ("policy", "reward", "continue"):
        assert told[name][1].ne(0).any() and half[name][1].eq(0).all() and half[name][[0, 2]].ne(0).any()
    assert half["shortcut"][1].ne(told["shortcut"][1]).any(), "an unknown action is not the action that is written there"


def test_an_unknown_action_is_not_read(monkeypatch):
    "What stands in the column of a film must not matter; a model that reads it is caught."
    def differs() -> bool:
        losses = []
        for fill in (0, 2):
            model, rows = build(image_ratio=0.0), codes()
            rows.known = torch.zeros_like(rows.first)
            rows.action = torch.full_like(rows.action, fill)
            torch.manual_seed(3)
            losses.append(model.losses(rows)["shortcut"])
        return not torch.equal(*losses)

    assert not differs()
    reads = mutant(ShortcutModel._done, "known & ~clip.first", "~clip.first")
    monkeypatch.setattr(ShortcutModel, "_done", reads)
    assert differs()


def told_apart() -> torch.Tensor:
    """How far what the heads read after action 0 is from what they read after action 2."""
    model, rows, features = build(), codes(1), []
    for last in (0, 2):
        rows.action[0, -1] = last
        torch.manual_seed(5)
        features.append(model.features(model.observe(rows)))
    return (features[0] - features[1]).abs().max()


def test_the_reward_head_sees_the_action():
    assert told_apart() > 1e-4


def test_a_reward_head_that_does_not_see_the_action_is_caught(monkeypatch):
    "Negative control."
    monkeypatch.setattr(Dynamics, "tokens", mutant(Dynamics.tokens, "self.actions(action, known)", "self.actions(None, known)"))
    assert told_apart() == 0


def test_nothing_of_the_world_reads_the_agent():
    model, rows = build(), codes(1)
    tau, d = torch.full((1, 6), 0.5), torch.full((1, 6), 1 / 8)
    given = (rows.latent, tau, d, THREE.vectors(rows.action), ~rows.first)
    before, agent = model.dynamics(*given)
    with torch.no_grad():
        model.dynamics.learned["agent"].add_(1)
    after, other = model.dynamics(*given)
    assert before.equal(after) and not agent.equal(other)


def test_the_world_does_not_know_what_the_agent_is_asked_for(monkeypatch):
    quiet(monkeypatch)  # no chance in what is remembered and dreamed
    model, rows, states = build(tasks=3), codes(2), []
    for task in (0, 2):
        rows.task = torch.full((2, 6), task)
        states.append(model.advance(model.observe(rows), torch.eye(3)[:2]))
        assert states[-1]["task"].tolist() == [task, task]
    assert states[0]["latent"].equal(states[1]["latent"]) and not states[0]["agent"].equal(states[1]["agent"])
    rows.task = None
    assert model.advance(model.observe(rows), torch.eye(3)[:2])["agent"].equal(states[0]["agent"])
    for few, task in ((model, 3), (build(), 1)):
        rows.task = torch.full((2, 6), task)
        for call in (few.losses, few.observe):
            with pytest.raises(UsageError, match="the model knows 0 to"):
                call(rows)


def test_dreams_and_play_begin_with_the_task_that_is_asked_for(tmp_path):
    model, rows = build(tasks=3), codes(2)
    agent = ActorCritic(ActorCriticConfig(units=8), model.feature_size, model.actions)
    first = model.observe(rows)
    kept = Agent(model.ask(2), agent).save(tmp_path / "agent")
    again = Agent.load(kept, ShortcutModel.load).model
    assert again.advance(model.observe(rows), torch.eye(3)[:2])["mark"].equal(model.start(2)["mark"]), "states fit a model anew"
    for each in (model, again):
        dreams, *_ = DreamLearner(each, agent, DreamConfig(horizon=2, starts=3)).dream(rows)
        assert each.start(2)["task"].tolist() == [2, 2] and dreams.states[-1]["task"].tolist() == [2, 2, 2]
    assert not model.observe(rows)["agent"].allclose(first["agent"], atol=1e-3), "what is asked for is seen in the features"
    rows.task = torch.ones(2, 6, dtype=torch.long)
    assert again.observe(rows)["task"].tolist() == [1, 1], "rows that say another task are of that one"
    assert "task" not in json.loads((build(tasks=3).save(tmp_path / "plain") / "model.json").read_text())
    with pytest.raises(UsageError, match="knows 0 to 2"):
        model.ask(3)


def test_another_task_can_come_within_an_episode(monkeypatch):
    quiet(monkeypatch)  # no chance in what is remembered
    model, rows = build(tasks=3), codes(2)
    rows.task = torch.tensor([[0, 0, 1, 1, 2, 2], [2, 2, 2, 0, 0, 0]])
    every, state = model.observe(rows, every=True), None
    assert every["task"].equal(rows.task.flatten())
    for t in range(6):
        state = model.observe(rows.map(lambda x, t=t: x[:, t : t + 1]), state)
        torch.testing.assert_close(state["agent"], pick_states(every, [t, 6 + t])["agent"], atol=1e-5, rtol=0)
    dreamed = model.advance(state, torch.eye(3)[:2])
    assert dreamed["task"].tolist() == [2, 0]


def test_relevant_rows_teach_what_to_do_and_the_others_how_the_world_goes_on():
    model, rows = build(image_ratio=0.0).train(), codes(4)
    rows.clone_mask = torch.tensor([True, True, False, False])[:, None].expand(4, 6)
    losses = model.losses(rows)
    assert losses["shortcut"][:2].eq(0).all() and losses["shortcut"][2:].gt(0).all()
    assert losses["policy"][2:].eq(0).all() and losses["policy"][:2, :-1].gt(0).all() and losses["policy"][:, -1].eq(0).all()
    assert losses["reward"].gt(0).all()


def test_what_is_cloned_from_is_seen_as_in_play_and_larger_steps_are_learned_elsewhere(monkeypatch):
    model, rows, seen = build(image_ratio=0.0).train(), codes(6), []
    model.shortcut = model.shortcut.change(bootstrap=1.0)
    rows.clone_mask = torch.zeros(6, 6, dtype=torch.bool)
    rows.clone_mask[:3, 2:] = True
    tokens = model.dynamics.tokens
    monkeypatch.setattr(model.dynamics, "tokens", lambda *given: seen.append(given[1:3]) or tokens(*given))
    model.losses(rows)
    tau, d = seen[-1]  # the pass with a gradient
    finest, level = 1 / model.shortcut.finest, model.shortcut.context_level
    assert tau[:3, 2:].eq(level).all() and d[:3].eq(finest).all(), "frames to clone from are finished ones"
    assert d[3:].gt(finest).all() and not tau[3:].eq(level).all(), "all others learn larger steps"
    assert not tau[:3, :2].eq(level).all(), "rows of such a sequence that are not relevant have their own noise"


@pytest.mark.parametrize("decoder_time", [False, True])
def test_reading_row_by_row_is_reading_at_once(decoder_time, monkeypatch):
    quiet(monkeypatch)  # no chance in what is remembered
    model = build(decoder_time=decoder_time)
    rows = bouncing_ball(2, 7, size=8)
    rows.audio = None
    rows.first[1, 3] = True
    at_once, every = model.observe(rows), model.observe(rows, every=True)
    state = None
    for t in range(7):
        state = model.observe(rows.map(lambda x, t=t: x[:, t : t + 1]), state)
        mine = pick_states(every, [t, 7 + t])
        for name in ("latent", "agent", "frames", "start"):
            torch.testing.assert_close(mine[name], state[name], atol=1e-5, rtol=0)
        assert model.render(mine)["image"].sub(model.render(state)["image"]).abs().float().mean() < 1
    torch.testing.assert_close(at_once["agent"], state["agent"], atol=1e-5, rtol=0)
    assert state.keys() == at_once.keys() == every.keys()


def long_memory(frames: bool) -> tuple[ShortcutModel, Clip]:
    """A model that looks far back in all its parts, and rows as frames or as codes."""
    model, rows = build(decoder_time=True, context=100), bouncing_ball(2, 6, size=8) if frames else codes(2)
    rows.audio = None
    return model, rows


@pytest.mark.parametrize("frames", [True, False])
@pytest.mark.parametrize("starts", [0, 1, 5])
def test_dreams_start_from_the_states_that_reading_every_row_gives(frames, starts):
    (model, rows), policy = long_memory(frames), lambda features: Categorical(features[:, :3])
    agent = ActorCritic(ActorCriticConfig(units=8), model.feature_size, model.actions)
    agent.policy = policy
    torch.manual_seed(4)
    dreamed, seen, chosen = DreamLearner(model, agent, DreamConfig(horizon=2, starts=starts)).dream(rows)
    torch.manual_seed(4)
    states = model.observe(rows, every=True)
    index = torch.randperm(12)[:starts] if starts else slice(None)
    futures = imagine(model, policy, pick_states(states, index), 2)
    assert futures.features.equal(dreamed.features) and futures.action.equal(dreamed.action)
    assert chosen.equal(index) if starts else chosen is None
    assert all(column.equal(states[name]) for name, column in seen.items())


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in leaves(made))])
        return made


def most_made(observe) -> list[int]:
    """For ever more of 12 rows."""
    most = []
    for rows in (4, 8, 12):
        with Largest() as largest:
            observe(torch.arange(rows))
        most.append(largest.numbers)
    return most


@pytest.mark.parametrize("frames", [True, False])
def test_memory_follows_the_rows_that_are_gone_on_from(frames):
    model, clip = long_memory(frames)
    most = most_made(lambda rows: model.observe_rows(clip)[1](rows))
    assert most[0] < most[1] < most[2] and most[2] == 3 * most[0]
    whole = most_made(lambda rows: pick_states(model.observe(clip, every=True), rows))  # negative control
    assert whole == [most[2]] * 3


def test_a_dream_tells_levels_and_steps_of_every_pass(monkeypatch):
    model, seen = build(), []
    tokens = model.dynamics.tokens
    monkeypatch.setattr(model.dynamics, "tokens", lambda *given: seen.append(given) or tokens(*given))
    model.advance(model.observe(codes()), torch.eye(3))
    level, finest = model.shortcut.context_level, model.shortcut.finest
    (_, read, size, *_), (_, tau, d, *_) = seen  # reading a context, then all passes of a frame
    assert read.eq(level).all() and size.eq(1 / finest).all()
    assert tau.tolist() == [[0, 0.25, 0.5, 0.75, level]] * 3 and d.tolist() == [[*[0.25] * 4, 1 / finest]] * 3


def test_a_dream_is_what_the_whole_pass_would_give(monkeypatch):
    "Cached generation against a denoiser that sees all frames at once, step by step."
    quiet(monkeypatch)
    model, rows = build(), codes(2, 3)
    state, level, finest = model.observe(rows), model.shortcut.context_level, model.shortcut.finest
    past, action, known = rows.latent * level, THREE.vectors(rows.action), ~rows.first
    for step in range(6):  # beyond the context
        done = torch.eye(3)[[step % 3, 0]]
        state = model.advance(state, done)
        action, known = torch.cat([action, done[:, None]], 1), torch.cat([known, torch.ones(2, 1).bool()], 1)
        z, T = torch.zeros(2, 1, 2, 3), past.shape[1]
        for k in range(4):
            tau = torch.cat([torch.full((2, T), level), torch.full((2, 1), k / 4)], 1)
            d = torch.cat([torch.full((2, T), 1 / finest), torch.full((2, 1), 1 / 4)], 1)
            with torch.no_grad():
                clean = model.dynamics(torch.cat([past, z], 1), tau, d, action, known)[0][:, -1:]
            z = z + (clean - z) / 4 / (1 - k / 4)
        torch.testing.assert_close(state["latent"], z[:, 0], atol=1e-5, rtol=0)
        past = torch.cat([past, z * level], 1)


def test_it_is_a_world_model_like_every_other():
    model, rows = build(), codes()
    state = model.observe(rows)
    policy = lambda features: torch.distributions.OneHotCategorical(logits=torch.zeros(*features.shape[:-1], 3))  # noqa: E731
    dream = imagine(model, policy, state, 3, keep_states=True)
    assert dream.features.shape == (3, 4, model.feature_size) and dream.states[-1].keys() == state.keys()
    again = open_loop_rollout(model, state, dream.action[:, 1:])
    assert again.reward.shape == (3, 4) and ((again.continuation > 0) & (again.continuation < 1)).all()
    assert model.decode(state)["image"].shape == (3, 8, 8, 3)


def test_memory_stays_as_large_however_long_the_dream():
    model = build()
    state = model.observe(codes())
    sizes = set()
    for _ in range(6):
        state = model.advance(state, torch.eye(3))
        sizes.add(sum(t.nbytes for t in state.values()))
    assert len(sizes) == 1


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = build(decoder_time=True)
    again = ShortcutModel.load(model.save(tmp_path / "model"))
    states = []
    for one in (model, again):
        torch.manual_seed(3)
        states.append(one.advance(one.observe(codes()), torch.eye(3)))
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    with pytest.raises(FolderError, match="holds no shortcut model"):
        ShortcutModel.load(tmp_path)
    (tmp_path / "model/model.safetensors").write_bytes(b"no")
    with pytest.raises(FolderError, match="damaged"):
        ShortcutModel.load(tmp_path / "model")


def test_batches_are_long_now_and_then_and_at_the_end():
    lengths = [batch_length(update, 100) for update in range(100)]
    assert set(lengths[90:]) == {256} and lengths[:90].count(256) == 22 and lengths[0] == 64
    rows = codes(2, 6)
    short = cut_clip(rows, 3)
    assert short.shape == (4, 3) and short.latent[1].equal(rows.latent[0, 3:])
    with pytest.raises(UsageError, match="can't be cut"):
        cut_clip(rows, 4)


def test_the_learner_cuts_and_counts():
    learner = DynamicsLearner(build().train(), short=2)
    assert learner.losses(codes(2, 6))["shortcut"].shape == (6, 2)
    assert learner.scales.keys() == {"shortcut", "policy", "reward", "continue"}


def test_bad_input_says_so():
    model, rows = build(), codes()
    with pytest.raises(UsageError, match="encode anew"):
        model.observe(Clip(latent=rows.latent[..., :2], action=rows.action, first=rows.first))
    with pytest.raises(UsageError, match="another model"):
        model.advance(build(context=4).observe(rows), torch.eye(3))
    other = build()
    other.dynamics.transformer.layers[-1].attention.project.weight.data.mul_(0.5)
    with pytest.raises(UsageError, match="another model of the same sizes"):
        model.advance(other.observe(rows), torch.eye(3))
    with pytest.raises(UsageError, match="this model knows 3"):
        model.advance(model.observe(rows), torch.zeros(3, 4))
    rows.latent[0, 0] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        model.observe(rows)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_action_that_is_no_number_is_told_before_it_is_dreamed(wrong):
    model = build(ActionSpec(continuous=2))
    rows = codes()
    rows.action = torch.zeros(*rows.shape, 2)
    state, action = model.observe(rows), torch.zeros(rows.shape[0], 2)
    action[1, 1] = wrong
    with pytest.raises(UsageError, match="not finite: look at the policy"):
        model.advance(state, action)
    assert model.advance(state, action.nan_to_num(0.5, 0.5, 0.5))["latent"].isfinite().all()


KEYS_AND_CAMERA = ActionSpec(binary=3, categorical=(5,))


def test_keys_and_a_choice_are_learned_read_dreamt_and_played():
    model, rows, space = build(KEYS_AND_CAMERA), codes(), KEYS_AND_CAMERA.space()
    space.seed(0)
    rows.action = torch.from_numpy(np.stack([space.sample() for _ in range(18)])).view(3, 6, 4)
    losses = model.train().losses(rows)
    assert "policy" in losses and all(loss.isfinite().all() for loss in losses.values())
    model.eval()
    state, vectors = model.observe(rows), model.actions.vectors(rows.action)
    assert vectors.equal(KEYS_AND_CAMERA.vectors(rows.action)) and vectors.shape == (3, 6, 8)
    assert open_loop_rollout(model, state, vectors[:, :2]).features.isfinite().all()
    assert np.isfinite(dreamed_rows(model, rows, 3, 4).reward).all()
    curious = Curiosity(CuriosityConfig(units=8, resample=False), model.feature_size, model.actions.size, 6,
                        lambda batch, states, features: batch.latent.flatten(2))  # fmt: skip
    learned = Explorer({"code": curious}).losses(rows, model, model.observe(rows, every=True))
    assert all(loss.shape == (3, 5) and loss.isfinite().all() for loss in learned.values())
    game = DreamEnv(model, state, max_steps=4)
    game.reset(seed=0)
    game.action_space.seed(1)
    for _ in range(4):
        _, reward, *_ = game.step(game.action_space.sample())
        assert np.isfinite(reward)
    game.reset()
    game.step(np.array([1, 0, 1, 4]))
    for wrong in ([0.5, 0, 1, 4], [0, 0, 1, 5], [0, 0, 1]):
        with pytest.raises(UsageError, match="ActionBox"):
            game.step(wrong)


def test_playing_in_a_dream_needs_both_senses_or_says_what_is_missing():
    torch.manual_seed(0)
    sound = {"channels": 1, "frames": 2, "bands": 4, "sound_patch": (2, 2)}
    code = CausalTokenizerConfig(size=(8, 8), patch=4, latents=2, bottleneck=3, width=16, layers=1, heads=2, **sound)
    config = DynamicsConfig(width=16, heads=2, kv_heads=1, layers=2, context=3, units=8)
    model = ShortcutModel(CausalTokenizer(code), THREE, config).eval()
    with pytest.raises(UsageError, match="how long a step sounds"):
        model.decode(model.observe(codes()))
    model.logmel, model.step_samples = LogMelConfig(sample_rate=8_000, n_fft=256, bands=4, frames_per_step=2), 400.0
    game = DreamEnv(model, model.observe(codes()), max_steps=2)
    seen, info = game.reset(seed=0)
    assert seen["image"].shape == (8, 8, 3) and seen["audio"].shape == (1, 400)
    *_, cut, info = (game.step(1), game.step(2))[1]
    assert cut and 0 < info["continuation"] < 1


def test_published_sizes():
    with torch.device("meta"):
        tokenizer = CausalTokenizer(CausalTokenizerConfig.preset("paper"))
        model = ShortcutModel(tokenizer, ActionSpec(binary=23, categorical=(121,)), DynamicsConfig.preset("paper"),
                              ShortcutConfig.preset("paper"))  # fmt: skip
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in (("t", tokenizer), ("d", model.dynamics))}
    assert count == {"t": 407_869_712, "d": 1_586_807_960}
    layout = model.dynamics.transformer.layout
    assert layout.sizes == {"spatial": 256, "register": 8, "shortcut": 1, "action": 1, "agent": 1}
    assert tokenizer.encoder.layout.sizes == {"image": 960, "latent": 512}


@pytest.mark.whole
def test_published_depths_learn_when_they_are_narrow(tmp_path):
    """A step of both, as deep as published; the dynamics in two processes that share out the weights, as in two that do not."""
    torch.manual_seed(0)
    code = CausalTokenizerConfig.preset("paper", size=(30, 32), width=64, latents=8, bottleneck=4, context=3)
    tokenizer, film = CausalTokenizer(code), torch.randint(256, (2, 3, 30, 32, 3), dtype=torch.uint8)
    config = TrainConfig(steps=1, lr=1e-3, warmup=0, accelerator="cpu")
    start = {name: p.detach().clone() for name, p in tokenizer.named_parameters()}
    fit(CausalTokenizerLearner(tokenizer), [Clip(film)], tmp_path / "tokenizer", config)
    moved = [name for name, p in tokenizer.named_parameters() if not p.equal(start[name])]
    assert len(tokenizer.encoder.layers) == CausalTokenizerConfig.preset("paper").layers and len(moved) > 0.9 * len(start)
    learned, config = [], config.change(devices=2)
    for shard in (False, True):
        torch.manual_seed(0)
        sizes = DynamicsConfig.preset("paper", width=72, units=16, context=6)
        model = ShortcutModel(tokenizer, ActionSpec(binary=23, categorical=(121,)), sizes, ShortcutConfig.preset("paper"))
        keys = torch.cat([torch.randint(2, (2, 6, 23)), torch.randint(121, (2, 6, 1))], -1)
        batches = [Clip(latent=torch.randn(2, 6, 8, 4), action=keys, first=torch.zeros(2, 6, dtype=torch.bool))] * 2
        start = {name: p.detach().clone() for name, p in model.dynamics.named_parameters()}
        fit(DynamicsLearner(model, heads=False), batches, tmp_path / str(shard), config.change(shard=shard))
        learned.append(dict(model.dynamics.named_parameters()))
    assert len(model.dynamics.transformer.layers) == 28
    assert all(torch.allclose(learned[0][name], p, atol=1e-5) for name, p in learned[1].items())
    assert sum(not p.equal(start[name]) for name, p in learned[1].items()) > 0.9 * len(start)


def test_nothing_learns_to_look_back_further_than_it_is_shown(tmp_path):
    model, short, once = build(), codes(time=2), TrainConfig(steps=1, accelerator="cpu")
    with pytest.raises(UsageError, match="2 rows are too short .* looks back 3 frames.* build it with context=2"):
        fit(DynamicsLearner(model), [short], tmp_path / "dynamics", once)
    with pytest.raises(UsageError, match="2 rows are too short"):
        film = Clip(torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8))
        fit(CausalTokenizerLearner(model.tokenizer.requires_grad_()), [film], tmp_path / "tokenizer", once)
    fit(DynamicsLearner(build(context=2)), [short], tmp_path / "enough", once)


@pytest.fixture(scope="module")
def bonk_store(tmp_path_factory):
    """Two short episodes of Bonk, small and with sound."""
    folder = tmp_path_factory.mktemp("bonk") / "store"
    record("bonk", folder, steps=24, seed=2, settings=SMALL)
    return Store.open(folder)


SMALL = {"image_size": (16, 16), "max_steps": 12}
HEARD = LogMelConfig(sample_rate=32_768, n_fft=512, bands=16, frames_per_step=2)


def player(actions: int) -> Agent:
    """A policy in a small model of Bonk; neither has learned anything."""
    torch.manual_seed(0)
    both = {"width": 16, "layers": 2, "heads": 2, "time_every": 2, "context": 3}
    code = CausalTokenizerConfig(size=(16, 16), patch=8, channels=2, frames=2, bands=16, latents=2, bottleneck=3, **both)
    config = DynamicsConfig(**both, kv_heads=1, registers=1, units=8, distances=2)
    spec, shortcut = ActionSpec(categorical=(actions,)), ShortcutConfig(finest=8)
    model = ShortcutModel(CausalTokenizer(code), spec, config, shortcut, "bonk", HEARD, 550.0)
    return Agent(model, ActorCritic(ActorCriticConfig(layers=1, units=8), model.feature_size, model.actions))


def test_what_is_heard_live_is_what_clips_of_the_recording_hold(bonk_store):
    cache = ClipCache(Cache.build(bonk_store), HEARD)
    first = cache.cache.table["first"]
    senses = ClipObservationEncoder((16, 16), HEARD, 2)
    for begin, end in zip(np.flatnonzero(first), [*np.flatnonzero(first)[1:], len(first)], strict=True):
        clip = cache.gather([[(int(begin), int(end))]])
        rows = bonk_store.read(int(cache.cache.table["episode"][begin]))
        senses.reset(0)
        for t in range(end - begin):
            live = senses({"image": rows.image[t][None], "audio": [rows[t].audio]})
            torch.testing.assert_close(live.audio[0, 0], clip.audio[0, t], atol=1e-5, rtol=0)
            assert live.image[0, 0].numpy().tobytes() == clip.image[0, t].tobytes()


def test_an_agent_plays_a_real_game_in_such_a_model(bonk_store):
    agent = player(bonk_store.schema.actions.size)
    played, again = (play_episodes(agent, "bonk", 2, 0, 2, SMALL) for _ in range(2))
    assert played["length"].tolist() == [12, 12] and played.equals(again)
    deaf = ShortcutModel(agent.model.tokenizer, agent.model.actions, agent.model.config, agent.model.shortcut)
    one = {"image": np.zeros((1, 16, 16, 3), np.uint8), "audio": []}
    for games, said in ((2, "pictures"), (1, "sounds")):
        with pytest.raises(UsageError, match=said):
            agent.model.senses(games)(one)
    with pytest.raises(UsageError, match="how its sound"):
        deaf.senses(1)


def sounds(html: str) -> int:
    """Tracks of sound in the film of a page."""
    content = re.search('data:video/webm;base64,([^"]+)', html)[1]
    with av.open(io.BytesIO(base64.b64decode(content))) as film:
        return len(film.streams.audio)


def test_its_dreams_can_be_heard(bonk_store):
    agent = player(bonk_store.schema.actions.size)
    assert sounds(free_dream_video(agent.model, agent.actor_critic.policy, agent.model.start(1), 4).data) == 1
    eyes = CausalTokenizerConfig(size=(16, 16), latents=2, bottleneck=3, width=16, layers=2, heads=2, context=3)
    deaf = ShortcutModel(CausalTokenizer(eyes), agent.model.actions, agent.model.config, agent.model.shortcut)
    assert sounds(free_dream_video(deaf, agent.actor_critic.policy, deaf.start(1), 4).data) == 0


def test_it_learns_in_its_dreams_of_a_recording(bonk_store, tmp_path):
    "Every learning rule of the project works on it: here PMPO with the cloned policy as prior."
    agent = player(bonk_store.schema.actions.size)
    agent.actor_critic.actor.load_state_dict(agent.model.heads.actor())
    data = ClipData(bonk_store.path, HEARD, SequenceConfig(length=6, batch_size=2))
    policy, dreams = agent.actor_critic, DreamConfig(horizon=2, starts=4)
    learner = DreamLearner(agent.model, policy, dreams, objective=PMPO(policy))
    before = policy.actor[-1].weight.detach().clone()
    world = {name: p.detach().clone() for name, p in agent.model.named_parameters()}
    fit(learner, data, tmp_path, TrainConfig(steps=2, warmup=0))
    assert not policy.actor[-1].weight.equal(before)
    assert all(p.equal(world[name]) for name, p in agent.model.named_parameters())


# --- the steps of the publication's Table 2


def coded(store, model: ShortcutModel, folder: Path) -> CodeData:
    """A recording as the codes of this model."""
    places = {"path": folder / "codes", "cache": folder / "cache"}
    return CodeData(store, model.tokenizer, HEARD, SequenceConfig(length=6, batch_size=2), **places)


def test_a_curious_player_learns_in_it_from_codes(bonk_store, tmp_path):
    agent, sizes = player(bonk_store.schema.actions.size), CuriosityConfig(members=2, layers=1, units=8)
    model = agent.model
    given = sizes, model.feature_size, model.actions.size, 6  # 2 latents of 3 numbers
    explorer = Explorer({"latent": Plan2Explore(*given, latent=model.latent), "all": Plan2Explore(
        sizes, model.feature_size, model.actions.size, model.feature_size, latent="")})  # fmt: skip
    learner = ExplorerLearner(model, explorer, agent.actor_critic, DreamConfig(horizon=2, starts=4, replay=0.0))
    data = coded(bonk_store.path, model, tmp_path)
    fit(learner, data, tmp_path / "training", TrainConfig(steps=2, warmup=0, log_every=1))
    log = read_log(tmp_path / "training")
    assert (log[["loss/latent", "loss/latent_error", "loss/all"]] > 0).all(axis=None)
    batch = next(iter(data.train_dataloader()))
    states = model.observe(batch, every=True)
    seen = explorer.curiosities["latent"].target(batch, states, model.features(states).view(2, 6, -1))
    assert seen.equal(batch.latent.flatten(2)), "what is foretold is the code of each row"
    once = explorer.losses(batch, model, states)["latent"]
    batch.episode = None
    assert not once.equal(explorer.losses(batch, model, states)["latent"]), "each member has its own share of the rows"
    with pytest.raises(UsageError, match="latent=model.latent"):
        Explorer({"latent": Plan2Explore(*given)}).losses(batch, model, states)


def test_it_is_tuned_in_rounds_of_learning_and_playing(bonk_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(bonk_store.path, store)
    agent, short = player(bonk_store.schema.actions.size), TrainConfig(steps=1, warmup=0)
    learn = ShortUpdates(lambda store: coded(store, agent.model, tmp_path), DynamicsLearner, short, short,
                         DreamConfig(horizon=2, starts=4))  # fmt: skip
    before = {name: p.clone() for name, p in agent.model.state_dict().items()}
    tune = FineTune(agent, "bonk", store, tmp_path / "tuning", learn, FineTuneConfig(rounds=1, episodes=1), SMALL)
    assert tune.run()["steps"].tolist() == [12, 24]
    after = agent.model.state_dict()
    assert not after["dynamics.embed.weight"].equal(before["dynamics.embed.weight"]), "the world is learned on"
    assert all(p.equal(before[name]) for name, p in after.items() if name.startswith("tokenizer."))
    assert isinstance(Agent.load(tune.best_agent, ShortcutModel.load).model, ShortcutModel)


def test_a_velocity_is_the_same_error_in_other_units():
    """With (z1^ - z~) / (1 - tau) in place of z1^, and the error divided by (1 - tau)^2, nothing else changes."""
    clip = codes()

    def error(**chosen) -> torch.Tensor:
        torch.manual_seed(5)
        return alternative(bootstrap=0.0, **chosen).losses(clip)["shortcut"]

    flow, flat = error(), error(ramp=False)
    tau = ((flow / flat).clamp(0, 1) - 0.1) / 0.9
    torch.testing.assert_close((tau * 8).round() / 8, tau, atol=1e-4, rtol=0)  # the ramp tells the level, which is on the grid
    between = error(ramp=False, space="velocity")
    torch.testing.assert_close(between, flat / (1 - tau) ** 2, atol=1e-4, rtol=1e-3)


def test_a_network_that_says_velocities_is_led_along_them():
    """One that says nothing leaves noise as it is; the same words as clean codes make the frame empty."""
    silent = {}
    for predict in ("clean", "velocity"):
        model = alternative(predict=predict)
        with torch.no_grad():
            model.dynamics.clean.weight.zero_()
            model.dynamics.clean.bias.zero_()
        clip = codes()
        state = model.observe(clip)
        torch.manual_seed(7)
        noise = torch.randn_like(state["latent"])
        torch.manual_seed(7)
        silent[predict] = model.advance(state, torch.eye(3))["latent"]
    torch.testing.assert_close(silent["velocity"], noise)
    torch.testing.assert_close(silent["clean"], torch.zeros_like(noise))


def test_what_each_alternative_learns_differs():
    clip, found = codes(), {}
    for predict in ("clean", "velocity"):
        torch.manual_seed(3)
        found[predict] = alternative(predict=predict, bootstrap=0.0).losses(clip)["shortcut"]
    assert not torch.allclose(found["clean"], found["velocity"])


@pytest.mark.whole
def test_compiled_it_learns_the_same():
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, script, "cpu", "aot_eager"], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["apart"] < 1e-4
    assert told["stats"]["unique_graphs"] == 2 and not told["graph_break"]  # layers in space, and in time


def test_in_half_precision_it_learns_nearly_the_same(tmp_path):
    logs = []
    for precision in ("32-true", "bf16-mixed"):
        config = TrainConfig(steps=6, lr=1e-3, warmup=2, log_every=1, precision=precision)
        fit(DynamicsLearner(build()), [codes(seed=seed) for seed in range(4)], tmp_path / precision, config)
        logs.append(read_log(tmp_path / precision)["loss"].to_numpy())
    assert 0 < abs(logs[0] / logs[1] - 1).max() < 0.05


def test_it_dreams_in_half_precision():
    model, action = build(), torch.eye(3)
    dreams = []
    for half in (False, True):
        torch.manual_seed(5)
        model = model.bfloat16() if half else model
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            state = model.observe(codes())
            for _ in range(3):
                state = model.advance(state, action)
        dreams.append(state["latent"])
    assert state["keys"].dtype == torch.bfloat16 and dreams[1].dtype == torch.float32
    assert 0 < (dreams[0] - dreams[1]).abs().mean() < 0.05


@pytest.mark.parametrize("decoder_time", [False, True])
def test_a_dream_can_be_captured_since_it_never_looks_at_a_number(decoder_time):
    model, action = build(decoder_time=decoder_time).to("meta"), torch.empty(3, 3, device="meta")
    state = {name: x.to("meta") for name, x in build(decoder_time=decoder_time).start(3).items()}
    with torch.no_grad():
        assert model.advance(state, action)["latent"].shape == (3, 2, 3)
        with pytest.raises(RuntimeError, match="meta"):
            model.observe(codes().map(lambda x: x.to("meta")))  # reading a recording does look, and is caught


def test_a_memory_that_is_read_whole_and_masked_is_the_same_memory(monkeypatch):
    """As elsewhere than on a CPU."""
    model, action, dreams = build(), torch.eye(3), []
    for where in ("cpu", "cuda"):
        asked = mutant(Transformer._look_into, 'number.device.type == "cpu"', f'"{where}" == "cpu"')
        monkeypatch.setattr(Transformer, "_look_into", asked)
        torch.manual_seed(2)
        state = model.observe(codes(time=2))
        for _ in range(4):
            state = model.advance(state, action)
        dreams.append(state["latent"])
        monkeypatch.undo()
    torch.testing.assert_close(*dreams)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_view_beside_a_finished_past_is_what_generation_looks_at(seed):
    """In a training pass with two noisy views of each frame. Negative control: the frames of each view as its own past."""
    model, rows = build().eval(), codes(time=7, seed=seed)
    rows.first[1, 4] = True
    z1, (action, known), first = model.codes(rows), model._done(rows), rows.first
    finished = model._noisy(z1)
    tau, d = torch.full((3, 14), 0.5), torch.full((3, 14), 0.25)
    noisy = torch.randn(3, 14, 2, 3)
    frames = [torch.cat(parts, 1) for parts in zip(finished, (noisy, tau, d), strict=True)]
    thrice = [x.repeat(1, 3, *[1] * (x.ndim - 2)) for x in (action, known)]
    told, _ = model.dynamics(*frames, *thrice, first, views=2)
    alone, _ = model.dynamics(noisy[:, :7], tau[:, :7], d[:, :7], action, known, first)
    transformer, cache = model.dynamics.transformer, model.dynamics.transformer.new_cache(3)
    for t in range(7):
        for view in range(2):
            at = slice(view * 7 + t, view * 7 + t + 1)
            tokens = model.dynamics.tokens(noisy[:, at], tau[:, at], d[:, at], action[:, t : t + 1], known[:, t : t + 1])
            there = transformer.read(tokens, cache, first[:, t : t + 1])[0]
            expected = model.dynamics.predict_clean(there)[:, 0]
            torch.testing.assert_close(told[:, 7 + view * 7 + t], expected, atol=1e-5, rtol=0)
            assert view or t == 0 or not torch.allclose(alone[:, t], expected, atol=1e-3)
        past = model.dynamics.tokens(*(x[:, t : t + 1] for x in finished), action[:, t : t + 1], known[:, t : t + 1])
        y, cache = transformer.read(past, cache, first[:, t : t + 1])
        torch.testing.assert_close(told[:, t], model.dynamics.predict_clean(y)[:, 0], atol=1e-5, rtol=0)


def test_views_learn_in_their_own_rows_and_the_agent_from_the_finished_past(tmp_path):
    model = alternative(views=3)
    losses = model.losses(codes())
    assert {loss.shape for loss in losses.values()} == {(3, 6)}
    fit(DynamicsLearner(model), [codes()], tmp_path, TrainConfig(steps=2, warmup=0, log_every=1, accelerator="cpu"))
    assert read_log(tmp_path)["loss/shortcut"].gt(0).all()
    seen = []
    model.heads.losses = lambda agent, *rest: seen.append(agent) or {}
    model.scales = {"shortcut": 1.0}
    torch.manual_seed(0)
    model.losses(codes())
    model.dynamics.levels.weight.data[: model.shortcut.finest - 1] += 1.0  # levels that no finished frame has
    torch.manual_seed(0)
    model.losses(codes())
    assert seen[0].shape == (3, 6, 16) and seen[0].equal(seen[1])
    with pytest.raises(UsageError, match="views can't be below 0"):
        ShortcutConfig(views=-1)


def test_latents_that_do_not_fill_their_last_token_are_packed_all_the_same():
    "Two latents in a token of three, as a local tokenizer of pictures and numbers may give them"
    model = build(pack=3)
    assert model.dynamics.transformer.layout.sizes["spatial"] == 1
    rows = codes()
    assert all(loss.isfinite().all() for loss in model.losses(rows).values())
    state = model.observe(rows)
    assert model.advance(state, torch.eye(3))["latent"].shape == (3, 2, 3)
    before = model.dynamics.spatial(rows.latent)
    for latent in (0, 1):
        moved = rows.latent.clone()
        moved[:, :, latent] *= -1
        assert not torch.allclose(model.dynamics.spatial(moved), before)


def read_and_asked(model: ShortcutModel, rows: Clip, **given) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What the transformer is given in each pass of `losses`, and the losses."""
    seen, forward = [], model.dynamics.forward

    def spied(z, tau, d, *rest):
        seen.append({"z": z, "tau": tau, "d": d, "gradient": torch.is_grad_enabled()})
        return forward(z, tau, d, *rest)

    model.dynamics.forward = spied
    torch.manual_seed(3)
    losses = model.losses(rows, **given)
    del model.dynamics.forward
    return seen, losses


def forced(monkeypatch, share: float = 1.0, **given) -> tuple[list[dict], torch.Tensor, Clip]:
    """One pass without noise: what is read can be told from what was recorded. One episode ends."""
    rows = codes(batch=4, time=6)
    rows.first[1, 3] = True
    model = alternative(0.0, views=1, self_forcing=share, bootstrap=0.0, warmup=5, context_noise=0.0)
    monkeypatch.setattr(dynamics, "gaussian", lambda shape, like, generator=None: like.new_zeros(shape))
    seen, _ = read_and_asked(model, rows, **given)
    level = model.shortcut.context_level
    return seen, (seen[-1]["z"][:, :6] / level - rows.latent).abs().amax((2, 3)) > 1e-5, rows


def test_without_self_forcing_nothing_changes(monkeypatch):
    """Bit by bit, and in what is drawn afterwards."""
    told = []
    for share in (0.0, 0.0, 1.0):
        if told:
            monkeypatch.setattr(ShortcutModel, "_self_forced", lambda self, z1, share, first, *_: (z1, torch.zeros_like(first)))
        _, losses = read_and_asked(alternative(views=1, self_forcing=share), codes())
        told.append((losses, torch.rand(())))
    for losses, after in told[1:]:
        assert after.equal(told[0][1]) and all(loss.equal(told[0][0][name]) for name, loss in losses.items())


def test_under_self_forcing_a_sequence_goes_on_from_what_the_model_made(monkeypatch):
    """From some frame on, never in an episode's first; without a gradient, in K steps, and not before the warm-up is over."""
    seen, own, rows = forced(monkeypatch)
    assert [one["gradient"] for one in seen] == [False] * 4 + [True]
    assert [float(one["tau"][0, -1]) for one in seen[:-1]] == [0, 0.25, 0.5, 0.75]
    assert not seen[-1]["z"].requires_grad
    assert not own[rows.first].any() and own[:, -1].all() and not own[~rows.first].all()
    begun = torch.where(rows.first, True, own).int()
    assert (begun[:, 2:].diff(dim=1) >= 0).all(), "once it has begun it goes on"
    assert len(forced(monkeypatch, updates=4)[0]) == 1 and len(forced(monkeypatch, updates=5)[0]) == 5
    assert forced(monkeypatch, share=0.5)[1].any(1).sum() == 2
    for old, new in (("& ~first[rows]", ""), ("made[rows] = z\n", "made[rows] = z1[rows]\n"), ("> begin", "> -1")):
        with monkeypatch.context() as patch:
            patch.setattr(ShortcutModel, "_self_forced", mutant(ShortcutModel._self_forced, old, new))
            wrong = forced(patch)[1]
            assert wrong[rows.first].any() or not wrong[:, -1].all() or wrong[~rows.first].all(), old


def test_what_the_model_made_teaches_no_head_and_is_no_target(monkeypatch):
    model, rows = alternative(0.0, views=1, self_forcing=1.0, bootstrap=0.0), codes()
    own = torch.zeros_like(rows.first)
    own[:, 2:] = True
    monkeypatch.setattr(ShortcutModel, "_self_forced", lambda self, z1, *_: (torch.where(own[..., None, None], 9.0, z1), own))
    targets, compare = [], dynamics.shortcut_losses
    monkeypatch.setattr(dynamics, "shortcut_losses", lambda f, z1, *rest: targets.append(z1) or compare(f, z1, *rest))
    seen, losses = read_and_asked(model, rows)
    assert (seen[-1]["z"][:, 2:6].abs() > 5).all() and targets[0].equal(rows.latent)
    assert not any(loss[own].any() for name, loss in losses.items() if name != "shortcut")
    assert losses["shortcut"][own].all() and losses["reward"][:, 1].all()
    with pytest.raises(UsageError, match="set views=1"):
        ShortcutConfig(self_forcing=0.5)
    with pytest.raises(UsageError, match="a share from 0 to 1"):
        ShortcutConfig(views=1, self_forcing=1.5)


def test_between_tiny_and_small_there_are_eight_layers(tmp_path):
    """As large as the preset says it builds, and both parts take a step that moves all but what the loss does not reach."""
    sizes = {}
    for preset in ("tiny", "mini", "small"):
        with torch.device("meta"):
            code, config = CausalTokenizerConfig.preset(preset), DynamicsConfig.preset(preset)
            parts = CausalTokenizer(code), Dynamics(config, THREE, 16, 16)
        sizes[preset] = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert all(a < b < c for a, b, c in zip(*sizes.values(), strict=True)), sizes
    code = CausalTokenizerConfig.preset("mini", size=(16, 16), latents=2, bottleneck=4, context=2)
    assert code.mask_ratio == 0.9 and not code.local and not code.plain
    torch.manual_seed(0)
    tokenizer, config = CausalTokenizer(code), TrainConfig(steps=1, warmup=0, accelerator="cpu")
    model = ShortcutModel(tokenizer, THREE, DynamicsConfig.preset("mini", context=2), ShortcutConfig.preset("mini"))
    assert len(model.dynamics.transformer.layers) == 8 and model.dynamics.transformer.config.kinds.count("time") == 2
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    film = Clip(torch.randint(256, (2, 3, 16, 16, 3), dtype=torch.uint8))
    fit(CausalTokenizerLearner(tokenizer.requires_grad_(True)), [film], tmp_path / "tokenizer", config)
    rows = codes(2, 3)
    rows.latent = torch.randn(2, 3, 2, 4)
    fit(DynamicsLearner(model, heads=False), [rows], tmp_path / "dynamics", config)
    for part in ("tokenizer.", "dynamics."):
        moved = {name: not p.equal(start[name]) for name, p in model.named_parameters() if name.startswith(part)}
        assert sum(moved.values()) > 0.8 * len(moved), part
