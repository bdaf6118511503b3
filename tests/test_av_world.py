"""The audio-visual world: what it reads, rollouts from clean frames, motions that turn, jumps, and what it says to bad input."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.lookahead import FeaturesPolicy, LookAheadConfig, look_ahead
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.motion import compose
from metabonk.core.training import fit
from metabonk.dream import av_world
from metabonk.dream.av_learner import AVLearnerConfig
from metabonk.dream.av_world import (
    AVWorld,
    Ending,
    LatentWorld,
    action_moves,
    context_windows,
    fitted,
    heard_windows,
)
from metabonk.dream.avcdit import AVCDiT, AVCDiTConfig, Condition, Factorised
from metabonk.dream.diffusion import DiffusionConfig, sample
from metabonk.dream.interface import DreamEnv, SkipStepPredictor, imagine, open_loop_rollout, pick_states
from metabonk.nn.noise import make_generators
from metabonk.record.recorder import record
from metabonk.record.sampling import ExperienceData, SequenceConfig
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig
from metabonk.sense.codec import CodecConfig, PCACodec
from metabonk.sense.codec_training import fit_pca
from metabonk.sense.latents import LatentWindows, WindowConfig, encode_latents

TURN = math.radians(10)
MOVES = np.array([[0.15, 0, 0], [0, 0, TURN], [0, 0, -TURN], [0, 0, 0]])  # forward, left, right, stop
ROOMS = ActionSpec(categorical=(4,))
SMALL = AVCDiTConfig(width=16, layers=2, heads=2, vision=(2, 4, 4), audio=(3, 5))
FORWARD, LEFT, STOP = 0, 1, 3


class Known(AVCDiT):
    """A network that knows: every goal is the context's last row, plus as much as it is rows away; it notes what it is asked."""

    def __init__(self, config: AVCDiTConfig = SMALL) -> None:
        super().__init__(config)
        self.asked, self.reads = [], 0

    def read_context(self, context):
        """The last row itself."""
        self.reads += 1
        return {name: x[:, -1:] for name, x in context.items()}

    def forward(self, noisy, step, motion, offset, memory):
        """The straight way from that to what is there."""
        self.asked.append((motion, offset))
        clean = {name: memory.get(name, torch.zeros_like(z)) + offset[..., None, None] for name, z in noisy.items()}
        return {name: (z - clean[name]) / (step[..., None, None] / 1000) for name, z in noisy.items()}


def world_of(net: Any = None, **changes: Any) -> LatentWorld:
    torch.manual_seed(0)
    return LatentWorld(net or Known(), ROOMS, moves=MOVES, **changes).eval()


def awake(config: AVCDiTConfig = SMALL) -> AVCDiT:
    torch.manual_seed(0)
    net = AVCDiT(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def begun(world: LatentWorld, batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    vision, audio = (torch.randn(batch, 4, *size, generator=generator) for size in (SMALL.vision, SMALL.audio))
    return world.begin(vision, audio)


def build() -> AVWorld:
    """A small world without a recording."""
    torch.manual_seed(0)
    eyes = Autoencoder(AutoencoderConfig.preset("tiny", size=(16, 16), channels=2, widths=(8,), groups=4))
    ears = PCACodec(CodecConfig(samples=480, latents=5))
    return AVWorld(awake(), ROOMS, None, eyes, ears, moves=MOVES, game="rooms").eval()


def vectors(*actions: int, batch: int = 2) -> torch.Tensor:
    """The same actions in each row."""
    return torch.eye(4)[list(actions)].expand(batch, -1, -1)


# Rollouts and jumps


def rolled(world: LatentWorld, steps: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the last row is from where the network wanted it."""
    state = start = begun(world)
    for _ in range(steps):
        state = world.advance(state, vectors(FORWARD)[:, 0])
    return tuple((state[name][:, -1] - start[name][:, -1] - steps).abs().max() for name in ("vision", "audio"))


def test_a_rollout_goes_on_from_the_denoised_frame():
    assert max(rolled(world_of())) < 1e-4


def test_a_rollout_from_a_noisy_frame_is_caught(monkeypatch):
    "Negative control: sampling ends a step too soon."
    noisy = mutant(sample, "zip(places[:-1], places[1:], strict=True)", "zip(places[:-2], places[1:-1], strict=True)")
    monkeypatch.setattr(av_world, "sample", noisy)
    assert min(rolled(world_of())) > 0.1


def test_the_context_moves_by_one_row():
    world = world_of()
    state = begun(world)
    after = world.advance(state, vectors(LEFT)[:, 0])
    for name in ("vision", "audio"):
        assert torch.equal(after[name][:, :-1], state[name][:, 1:])
    assert torch.equal(after["action"], vectors(LEFT)[:, 0])
    torch.testing.assert_close(after["reward"], torch.ones(2))


def test_a_jump_is_one_pass_that_reads_the_context_once():
    net = Known()
    world = world_of(net, diffusion=DiffusionConfig(sample_steps=4))
    state = begun(world)
    after = world.jump(state, vectors(*[FORWARD] * 16), range(1, 17))
    assert net.reads == 1 and len(net.asked) == 4
    for name in ("vision", "audio"):
        rows = after[name][:, -1].unflatten(0, (2, 16))
        wanted = state[name][:, None, -1] + torch.arange(1.0, 17).view(1, 16, *[1] * (rows.ndim - 2))
        torch.testing.assert_close(rows, wanted, atol=1e-4, rtol=0)
    assert isinstance(world, SkipStepPredictor) and world.reach == 64


def jumped(world: LatentWorld, *actions: int) -> torch.Tensor:
    world.net.asked.clear()
    world.jump(begun(world), vectors(*actions))
    return world.net.asked[0][0][0, 0]


def test_motions_of_a_jump_are_turned_into_each_heading():
    world = world_of()
    path = [FORWARD, *[LEFT] * 9, FORWARD, FORWARD]  # ahead, a quarter turn to the left, then twice to the left
    torch.testing.assert_close(jumped(world, *path), torch.tensor([0.15, 0.3, math.pi / 2]), atol=1e-5, rtol=0)
    pose = np.zeros(3)
    for action in path:
        pose = compose(pose, MOVES[action])
    torch.testing.assert_close(jumped(world, *path).double(), torch.from_numpy(pose), atol=1e-5, rtol=0)


def test_motions_that_are_added_without_turning_are_caught(monkeypatch):
    "Negative control."
    monkeypatch.setattr(av_world, "compose", lambda first, then: first + then)
    assert jumped(world_of(), FORWARD, *[LEFT] * 9, FORWARD, FORWARD)[1].abs() < 0.01


def test_each_step_of_a_rollout_is_told_its_own_motion_alone():
    """Whatever heading the walk has by then, and with nothing added: standing still is a motion of zeros."""
    world = world_of()
    state = begun(world)
    for action in (FORWARD, LEFT, LEFT, FORWARD, STOP):
        world.net.asked.clear()
        state = world.advance(state, vectors(action)[:, 0])
        for motion, offset in world.net.asked:
            assert torch.equal(motion[:, 0].double(), torch.from_numpy(MOVES[action]).float().double().expand(2, -1))
            assert torch.equal(offset, torch.ones(2, 1))


def what_is_embedded(forward=Condition.forward) -> tuple[torch.Tensor, ...]:
    """Of no motion, of a step, and of two."""
    condition, got = Condition(SMALL), []
    condition.motion.register_forward_pre_hook(lambda module, given: got.append(given[0]))
    step = torch.tensor([0.15, 0.03, TURN])
    for motion in (0 * step, step, 2 * step):
        forward(condition, torch.ones(()), motion, torch.ones(()))
    return tuple(got)


def test_motions_have_factors_and_no_offset():
    none, once, twice = what_is_embedded()
    assert none.abs().max() == 0
    torch.testing.assert_close(2 * once, twice)
    torch.testing.assert_close(once, torch.tensor([1.0, 0.2, 1.0]))
    none, once, twice = what_is_embedded(
        mutant(Condition.forward, "motion * self.factors", "motion * self.factors - 0.1")
    )
    assert none.abs().max() > 0.05 and (2 * once - twice).abs().max() > 0.05, "negative control: a normaliser's offset"


def test_without_motion_actions_are_counted():
    spec = ActionSpec(binary=2, categorical=(3,))
    config = SMALL.change(motion=(64.0,) * 5)
    world = LatentWorld(Known(config), spec).eval()
    state = world.begin(torch.zeros(1, 4, *SMALL.vision), torch.zeros(1, 4, *SMALL.audio))
    pressed = torch.tensor([[[1.0, 0, 1, 0, 0], [1, 1, 0, 0, 1], [0, 1, 0, 0, 1]]])
    world.jump(state, pressed)
    motion, offset = world.net.asked[0]
    torch.testing.assert_close(motion[0, 0], torch.tensor([2.0, 2, 1, 0, 2]) / 64)
    assert offset.tolist() == [[3]]


def test_chance_is_each_rows_own():
    world = world_of(awake())
    state, seeds = begun(world, 3), (5, 6, 7)
    cpu = torch.device("cpu")
    both = world.advance(state, vectors(FORWARD, batch=3)[:, 0], make_generators(seeds, cpu))
    alone = world.advance(pick_states(state, [1]), vectors(FORWARD, batch=1)[:, 0], make_generators(seeds[1:2], cpu))
    for name in alone:
        torch.testing.assert_close(alone[name][0], both[name][1], atol=1e-4, rtol=1e-4)


def test_features_hold_two_rows_the_action_and_the_reward():
    world = world_of(Known(SMALL.change(reward_scale=4.0)))
    state = world.advance(begun(world), vectors(LEFT)[:, 0])
    features = world.features(state)
    assert features.shape == (2, world.feature_size) == (2, 2 * (32 + 15) + 4 + 1)
    assert torch.equal(features[:, 47:79].view(2, 2, 4, 4), state["vision"][:, -1])
    assert torch.equal(features[:, 32:47].view(2, 3, 5), state["audio"][:, -2])
    torch.testing.assert_close(world.reward(features), torch.full((2,), 4.0)), "of 1, scaled"
    goes_on = world.continuation(features)
    assert goes_on.shape == (2,) and (goes_on > 0).all() and (goes_on <= 1).all()
    assert torch.equal(world.continuation(torch.stack([features] * 3)), torch.stack([goes_on] * 3))


def test_a_model_of_one_sense_knows_that_one_alone():
    for sense, missing in (("vision", "audio"), ("audio", "vision")):
        config = SMALL.change(senses=sense)
        world = LatentWorld(awake(config), ROOMS, moves=MOVES)
        start = world.begin(torch.zeros(2, 4, *SMALL.vision), torch.zeros(2, 4, *SMALL.audio))
        after = world.advance(start, vectors(FORWARD)[:, 0])
        assert missing not in after and world.features(after).shape == (2, world.feature_size)
        assert bool(after["reward"].any()) == (sense == "audio")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w, s: w.advance(s, torch.zeros(2, 5)), "vectors of 5 numbers, this model knows 4"),
        (lambda w, s: w.advance(s, torch.full((2, 4), math.nan)), "not finite"),
        (lambda w, s: w.jump(s, vectors(0, 1), [3]), "states after .3. of 2 actions"),
        (lambda w, s: w.jump(s, vectors(0, 1), [0]), "1 to 64 steps"),
        (lambda w, s: w.jump(s, vectors(*[0] * 65)), "1 to 64 steps"),
        (lambda w, s: LatentWorld(Known(), ROOMS), "motions of 3 numbers, and there are 4 actions"),
        (lambda w, s: LatentWorld(Known(), ROOMS, moves=MOVES[:3]), "3 motions for a choice of 4"),
    ],
)
def test_bad_questions_are_refused(call, said):
    world = world_of()
    with pytest.raises(UsageError, match=said):
        call(world, begun(world))


# What is read


def test_contexts_repeat_the_first_row_of_an_episode():
    before, rows = -torch.ones(1, 3, 1), torch.arange(5.0).view(1, 5, 1)
    first = torch.tensor([[False, False, True, False, False]])
    got = context_windows(before, rows, first)[0, ..., 0].tolist()
    assert got == [[-1, -1, 0], [-1, 0, 1], [2, 2, 2], [2, 2, 3], [2, 3, 4]]


def test_ears_hold_the_samples_before_a_rows_end_and_silence_before_an_episode():
    heard = torch.tensor([[[1, 2, 3, 4]]], dtype=torch.int16)
    audio = torch.arange(5, 15, dtype=torch.int16).view(1, 1, 10)
    length, first = torch.tensor([[2, 3, 2, 3]]), torch.tensor([[False, False, True, False]])
    got = heard_windows(heard, audio, length, first)[0, :, 0].tolist()
    assert got == [[3, 4, 5, 6], [6, 7, 8, 9], [0, 0, 10, 11], [11, 12, 13, 14]]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> SimpleNamespace:
    """A recording of Bonk's stand-in, encoders for it, its latents, and a world that was made for them."""
    folder = tmp_path_factory.mktemp("played")
    settings = {"image_size": (32, 32), "sample_rate": 16000, "max_steps": 20}
    record("bonk", folder / "store", "random", episodes=4, settings=settings)
    torch.manual_seed(0)
    eyes = Autoencoder(AutoencoderConfig.preset("tiny", size=(32, 32), widths=(8, 16), groups=4))
    ears = fit_pca(folder / "store", CodecConfig(samples=1120, latents=8))
    windows = LatentWindows(encode_latents(folder / "store", eyes, ears), WindowConfig())
    world = AVWorld.of(windows, eyes, ears, AVCDiTConfig(width=16, layers=1, heads=2))
    with torch.no_grad():
        for p in world.net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return SimpleNamespace(folder=folder, eyes=eyes, ears=ears, windows=windows, world=world.eval())


def rows_of(played, length: int = 6, batch: int = 3):
    config = SequenceConfig(length=length, batch_size=batch, cross_episodes=True)
    data = ExperienceData(played.folder / "store", config)
    data.prepare_data()
    data.setup()
    return next(iter(data.train_dataloader())).torch()


def row_of(rows, t: int):
    """One row of a batch, as a player sees it."""
    ends, length = rows.audio_length.cumsum(1), rows.audio_length[:, t : t + 1]
    audio = torch.zeros(len(rows), rows.audio.shape[1], int(length.max()), dtype=torch.int16)
    for i, sound in enumerate(audio):
        sound[:, : length[i]] = rows.audio[i, :, ends[i, t] - length[i, 0] : ends[i, t]]
    names = ("image", "action", "reward", "first")
    one = {name: getattr(rows, name)[:, t : t + 1] for name in names}
    return dataclasses.replace(rows, audio=audio, audio_length=length, **one)


def test_rows_one_by_one_leave_the_state_of_all_rows_at_once(played):
    rows, world = rows_of(played, 12, 4), played.world
    assert rows.first[:, 1:].any(), "an episode begins in the middle"
    every = world.observe(rows, every=True)
    state = None
    for t in range(12):
        state = world.observe(row_of(rows, t), state)
        for name, column in state.items():
            torch.testing.assert_close(column, every[name].unflatten(0, (4, 12))[:, t], atol=1e-5, rtol=1e-5)
    last = world.observe(rows)
    assert all(torch.equal(last[name], every[name].unflatten(0, (4, 12))[:, -1]) for name in last)


def test_a_recording_is_read_as_the_latent_store_has_it(played):
    """What a world learns from and what it reads in play are the same latents, the same context and the same motion."""
    windows, world = played.windows, played.world
    place = np.array([30, 8])
    batch = windows.gather(place, np.array([[3], [5]])).torch()
    table = windows.store.table
    for number, row in enumerate(windows.rows[place]):
        begin = row - int(table["step"][row])
        rows = ExperienceData(played.folder / "store").training_cache().gather([[(int(begin), int(row) + 1)]]).torch()
        state = world.observe(rows)
        for name, wanted in (("vision", batch.image[number]), ("audio", batch.audio[number])):
            torch.testing.assert_close(state[name][0], wanted, atol=5e-3, rtol=5e-3)
        done = torch.from_numpy(table["action"][row + 1 : row + 1 + int(batch.offset[number, 0])].copy())
        moved = world.motion(world.actions.vectors(done[None]))[:, -1]
        torch.testing.assert_close(moved[0], batch.motion[number, 0], atol=1e-6, rtol=0)


def test_it_is_a_world_model_like_every_other(played):
    world = played.world
    start = world.observe(rows_of(played))
    seen = world.decode(world.advance(start, torch.eye(11)[:3]))
    assert seen["image"].shape == (3, 32, 32, 3) and seen["image"].dtype == torch.uint8
    assert seen["audio"].shape == (3, 2, 1120) and seen["audio"].dtype == torch.int16
    policy = ActorCritic(ActorCriticConfig.preset("tiny"), world.feature_size, world.actions)
    dreamed = imagine(world, policy.policy, start, 3)
    assert dreamed.features.shape == (3, 4, world.feature_size) and dreamed.reward.isfinite().all()
    assert len(open_loop_rollout(world, start, torch.eye(11)[:3, None].expand(-1, 2, -1)).states) == 1
    game = DreamEnv(world, start)
    game.reset(seed=0)
    first = game.step(4)
    game.reset(seed=0)
    again = game.step(4)
    assert np.array_equal(first[0]["image"], again[0]["image"]) and first[1] == again[1]
    assert game.observation_space.contains(first[0])
    logits = torch.zeros(3, 11)
    plan = look_ahead(world, FeaturesPolicy(policy), start, {}, logits, LookAheadConfig(depth=2))
    assert plan.actions.shape == (3, 3, 2)


def test_it_learns_from_the_store_endings_included(played, tmp_path):
    torch.manual_seed(0)
    world = AVWorld.of(played.windows, played.eyes, played.ears, AVCDiTConfig(width=16, layers=1, heads=2))
    generator = np.random.default_rng(0)
    batches = [played.windows.sample(8, generator).torch() for _ in range(4)]
    for batch in batches:
        batch.goal_terminated = batch.goal_action[..., :5].any(-1)
    learner = world.learner(AVLearnerConfig.preset("joint"))

    @torch.no_grad()
    def wrong() -> float:
        return float(torch.stack([world.ending.loss(batch).mean() for batch in batches]).mean())

    before = wrong()
    frozen = {name: x.clone() for name, x in world.state_dict().items() if name.startswith(("autoencoder.", "codec."))}
    fit(learner, batches, tmp_path, TrainConfig(steps=12, lr=1e-2, warmup=0))
    learner.finish()
    assert wrong() < before and frozen and all(torch.equal(x, world.state_dict()[name]) for name, x in frozen.items())


def test_a_world_of_one_sense_learns_from_a_store_of_both(played, tmp_path):
    for sense in ("vision", "audio"):
        config = AVCDiTConfig(width=16, layers=1, heads=2, senses=sense)
        world = AVWorld.of(played.windows, played.eyes, played.ears, config)
        batch = played.windows.sample(4, np.random.default_rng(0)).torch()
        losses = world.learner(AVLearnerConfig.preset("joint")).losses(batch)
        assert {*losses} == {"ending", *config.parts}
        world.eval()
        after = world.advance(world.observe(rows_of(played)), torch.eye(11)[:3])
        assert [*world.decode(after)] == [{"vision": "image"}.get(sense, sense)]


def test_endings_need_the_row_that_ended():
    ending = Ending(SMALL, 4)
    assert ending.latents == 47 and ending(torch.zeros(2, 3, 51)).shape == (2, 3)


# Saved, loaded, built


@pytest.mark.parametrize("factorised", [False, True])
def test_a_saved_world_is_the_same_world(played, factorised, tmp_path):
    config = AVCDiTConfig(width=16, layers=1, heads=2)
    world = AVWorld.of(played.windows, played.eyes, played.ears, config, factorised=factorised).eval()
    assert isinstance(world.net, Factorised) == factorised
    again = AVWorld.load(world.save(tmp_path / "world"))
    start = world.observe(rows_of(played))
    one, other = (w.advance(start, torch.eye(11)[:3], torch.Generator().manual_seed(0)) for w in (world, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(world.decode(one)["audio"], again.decode(one)["audio"])
    assert again.game == "bonk" and not again.training


def test_encoders_of_another_make_are_refused(played, tmp_path):
    folder = played.world.save(tmp_path / "world")
    other = Autoencoder(AutoencoderConfig.preset("tiny", size=(32, 32), widths=(8, 16), groups=4))
    with pytest.raises(UsageError, match="autoencoder has other weights"):
        AVWorld.load(folder, autoencoder=other)
    net, spec = played.world.net, played.world.actions
    small = PCACodec(CodecConfig(samples=1120, latents=4))
    with pytest.raises(UsageError, match="codec makes latents of .7, 4., the network takes .7, 8."):
        AVWorld(net, spec, None, played.eyes, small)
    with pytest.raises(UsageError, match="senses='both': give it a codec"):
        AVWorld(net, spec, None, played.eyes, None)


def test_folders_that_hold_no_world_are_refused(played, tmp_path):
    with pytest.raises(FolderError, match="holds no audio-visual world"):
        AVWorld.load(tmp_path)
    folder = played.world.save(tmp_path / "world")
    for file, what in (("model.json", "world"), ("autoencoder/autoencoder.json", "autoencoder"), ("codec/codec.json", "codec")):
        text = (folder / file).read_text()
        (folder / file).write_text(json.dumps({**json.loads(text), "version": 2}))
        with pytest.raises(UsageError, match=f"the .*{what} in .* has format 2, this version reads 1: train it again"):
            AVWorld.load(folder)
        (folder / file).write_text(text)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FolderError, match="damaged"):
        AVWorld.load(folder)


def store_of(action: list[int], commanded: list[float], spec: ActionSpec = ROOMS) -> Any:
    dtype = [("action", "int64"), ("commanded", "float64", (3,)), ("first", "bool")]
    table = np.zeros(len(action), dtype)
    table["action"], table["commanded"][:, 0], table["first"][0] = action, commanded, True
    return SimpleNamespace(schema=SimpleNamespace(actions=spec, game="rooms"), table=table, path=Path("store"))


def test_motions_of_actions_are_those_of_the_recording():
    moves = inspect_moves(store_of([0, 1, 0, 2, 0], [9.0, 0.5, 0.15, 0.0, 0.15]))
    assert moves[:, 0].tolist() == [0.15, 0.5, 0, 0]
    with pytest.raises(UsageError, match="action 0 was recorded with more than one"):
        inspect_moves(store_of([0, 0, 0], [0, 0.15, 0.2]))
    with pytest.raises(UsageError, match="only where there is one choice"):
        inspect_moves(store_of([0, 0, 0], [0, 0.15, 0.2], ActionSpec(binary=2)))


def inspect_moves(store: Any) -> np.ndarray:
    """Without the check of types: the store is a stand-in."""
    return getattr(action_moves, "__wrapped__", action_moves)(store)


def test_a_network_is_fitted_to_what_it_learns_from(played):
    config = fitted(AVCDiTConfig(width=32), played.windows)
    assert (config.width, config.senses, config.vision, config.audio) == (32, "both", (4, 4, 4), (7, 8))
    assert config.motion == (64.0,) * 11 and config.reward_scale == pytest.approx(played.windows.reward_scale())


def check_branches(world: AVWorld, monkeypatch) -> None:
    """What follows each of three actions is what follows each alone."""
    monkeypatch.setattr("metabonk.dream.av_world.gaussian", lambda shape, like, generator: torch.full(tuple(shape), 0.5))
    reads, read = [], world.net.read_context

    def counted(context):
        reads.append(len(context["vision"]))
        return read(context)

    monkeypatch.setattr(world.net, "read_context", counted)
    state = {**begun(world), "heard": torch.ones(2, 2, 960, dtype=torch.int16)}
    actions = torch.eye(4)[torch.tensor([[0, 1, 2], [2, 0, 1]])]  # (2, 3, 4)
    together = world.branch(state, actions)
    assert reads == [2]  # once for each context, not for each action
    for k in range(3):
        alone = world.advance(state, actions[:, k])
        for name, column in alone.items():
            torch.testing.assert_close(together[name][k::3], column, atol=1e-5, rtol=1e-4)
    assert not together["heard"].any()


def test_several_actions_are_tried_with_the_context_read_once(monkeypatch):
    check_branches(build(), monkeypatch)


@pytest.mark.parametrize(("old", "new"), [
    ("self.motion(given[:, None]).view(*actions.shape[:2], -1)", "self.motion(given[:, None]).view(3, 2, -1).transpose(0, 1)"),
    ("motion.new_ones(actions.shape[:2])", "2 * motion.new_ones(actions.shape[:2])"),
    ("drawn, given)", "drawn, given.flip(0))"),
], ids=["motions of others", "two steps", "actions of others"])  # fmt: skip
def test_branches_that_are_mixed_up_are_caught(old, new, monkeypatch):
    "Negative controls."
    monkeypatch.setattr(LatentWorld, "branch", mutant(LatentWorld.branch, old, new))
    with pytest.raises(AssertionError):
        check_branches(build(), monkeypatch)


# On a recording of rooms


@pytest.fixture(scope="module")
def lived(tmp_path_factory) -> SimpleNamespace:
    """A home that was walked through, its latents, and a world that was made for them: it has learned a little."""
    folder = tmp_path_factory.mktemp("lived")
    settings = {"image_size": (32, 32), "scenes": 3, "empty": True}
    record("rooms", folder / "store", "walks", steps=150, seed=3, settings=settings)
    torch.manual_seed(0)
    eyes = Autoencoder(AutoencoderConfig.preset("tiny", size=(32, 32), widths=(8, 16), groups=4))
    ears = fit_pca(folder / "store", CodecConfig(samples=2400, latents=8))
    windows = LatentWindows(encode_latents(folder / "store", eyes, ears), WindowConfig(reach=8))
    world = AVWorld.of(windows, eyes, ears, AVCDiTConfig(width=16, layers=1, heads=2))
    generator = np.random.default_rng(0)
    learner = world.learner(AVLearnerConfig.preset("joint"))
    rows = [windows.sample(4, generator).torch() for _ in range(4)]
    fit(learner, rows, folder / "fit", TrainConfig(steps=6, lr=1e-2, warmup=0))
    learner.finish()
    return SimpleNamespace(folder=folder, world=world.eval())


def test_a_world_of_rooms_does_all_that_a_world_model_does(lived):
    world, rows = lived.world, rows_of(lived)
    assert world.game == "rooms" and torch.allclose(world.moves.double(), torch.from_numpy(MOVES), atol=1e-6)
    start = world.observe(rows)
    every = world.observe(rows, every=True)
    assert all(torch.equal(every[name].unflatten(0, (3, 6))[:, -1], x) for name, x in start.items())
    generator = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    ahead, left = (world.advance(start, vectors(action, batch=3)[:, 0], generator()) for action in (FORWARD, LEFT))
    assert not torch.equal(ahead["vision"][:, -1], left["vision"][:, -1]), "what is seen depends on what is done"
    both = world.branch(start, vectors(FORWARD, LEFT, batch=3), generator())
    assert both["vision"].shape[0] == 6 and torch.equal(both["action"][0::2], ahead["action"])
    jumped = world.jump(start, vectors(FORWARD, LEFT, FORWARD, batch=3), [1, 3], generator())
    assert jumped["audio"].shape[0] == 6 and world.reach == 8
    for state in (start, ahead, both, jumped):
        features = world.features(state)
        reward, goes_on = world.reward(features), world.continuation(features)
        assert features.shape == (len(state["vision"]), world.feature_size) and features.isfinite().all()
        assert reward.isfinite().all() and ((goes_on >= 0) & (goes_on <= 1)).all()
        seen = world.decode(state)
        assert seen["image"].shape[1:] == (32, 32, 3) and seen["image"].dtype == torch.uint8
        assert seen["audio"].shape[1:] == (2, 2400) and seen["audio"].dtype == torch.int16
    heard = world.decode(start)["audio"].float()
    assert (heard[:, 0] - heard[:, 1]).abs().max() > 1, "two ears, not one twice"


def test_a_world_of_rooms_is_walked_through(lived):
    world = lived.world
    game = DreamEnv(world, world.observe(rows_of(lived)), max_steps=3, ends_below=0.0)
    first, _ = game.reset(seed=4)
    walk = [game.step(action) for action in (FORWARD, LEFT, FORWARD)]
    game.reset(seed=4)
    again = [game.step(action) for action in (FORWARD, LEFT, FORWARD)]
    for (seen, reward, *_), (once_more, same, *_) in zip(walk, again, strict=True):
        assert game.observation_space.contains(seen) and reward == same
        assert all(np.array_equal(seen[name], once_more[name]) for name in seen)
    assert first["audio"].shape == (2, 2400) and walk[-1][3], "cut off after three steps"
