"""Latents: motion as a group, rows where they belong, windows that never leave their episode, rewards and motion of the way"""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import mutant

import metabonk.sense.latents as module
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import StoreError, UsageError
from metabonk.core.learner import Learner, TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.motion import compose, inverse, relative, walk_path, wrap
from metabonk.core.training import fit
from metabonk.record.cache import Cache
from metabonk.record.experience import Schema, Step
from metabonk.record.store import Store
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig
from metabonk.sense.codec import Codec, CodecConfig, PCACodec, encode_steps
from metabonk.sense.codec_training import fit_pca
from metabonk.sense.latents import (
    LatentBatch,
    LatentData,
    LatentEncoders,
    LatentStore,
    LatentWindows,
    WindowConfig,
    encode_latents,
)

KINDS = {f"{kind}_{axis}": "float64" for kind in ("commanded", "realised") for axis in ("x", "y", "turn")}
SCHEMA = Schema(game="rooms", image_shape=(16, 16, 3), channels=2, sample_rate=1600, clock_rate=1 / 0.15,
                actions=ActionSpec(categorical=(4,)), probes={**KINDS, "scene": "int64"})  # fmt: skip
SAMPLES = 80


def play(lengths: list[int], seed: int = 0, schema: Schema = SCHEMA, scenes: int = 3, ragged: bool = False) -> list[Step]:
    """Walks in noise; walls cut every third step short"""
    random, rows = np.random.default_rng(seed), []
    for episode, length in enumerate(lengths):
        for t in range(length):
            action = int(random.integers(4)) if t else 0
            ahead, turn = (0.15, 0.0) if action == 0 else (0.0, math.radians((0, 10, -10, 0)[action]))
            command = (ahead, 0.0, turn) if t else (0.0, 0.0, 0.0)
            made = (command[0] * (0.2 if t % 3 == 0 else 1.0), 0.02 * (t % 3 == 0) * (t > 0), command[2])
            numbers = dict(zip(KINDS, (*command, *made), strict=True)) | {"scene": 10 + episode % scenes}
            count = SAMPLES - int(ragged and t % 2)
            audio = (random.normal(size=(schema.channels, count)) * 3000).astype(np.int16)
            image = random.integers(0, 256, schema.image_shape, np.uint8)
            reward, end = float(random.normal()) if t else 0.0, t == length - 1
            probes = {name: numbers[name] for name in schema.probes}
            rows.append(Step(image, audio, np.array(action), reward, end, False, t == 0, t, 0, probes))
    return rows


def store_of(path: Path, rows: list[Step], schema: Schema = SCHEMA, chunk_steps: int = 7, streams: int = 1) -> Store:
    """Several games side by side, if asked for: their chunks lie between one another"""
    store = Store.create(path, schema, exist_ok=True)
    parts: list[list[Step]] = [[] for _ in range(streams)]
    number = -1
    for row in rows:
        number += row.first
        parts[number % streams].append(row)
    with store.writer(chunk_steps) as writer:
        while any(parts):
            for stream, part in enumerate(parts):
                for row in part[:5]:
                    writer.add(row, stream)
                del part[:5]
    return store


def encoders(store: Store, seed: int = 0) -> tuple[Autoencoder, PCACodec]:
    torch.manual_seed(seed)
    sizes = {"size": (16, 16), "patch": 4, "widths": (8, 8), "blocks": 1, "groups": 4, "attention": False}
    codec = CodecConfig(samples=SAMPLES, sample_rate=1600, strides=(4, 5), latents=6)
    return Autoencoder(AutoencoderConfig(**sizes)).requires_grad_(False).eval(), fit_pca(store, codec)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Cache, LatentStore, tuple[Autoencoder, PCACodec]]:
    """Episodes of several lengths, one of a single row, in chunks that lie between one another"""
    folder = tmp_path_factory.mktemp("latents")
    store = store_of(folder / "store", play([90, 1, 20, 2, 150, 33, 8]), streams=2)
    both = encoders(store)
    latents = encode_latents(store, *both)
    return store, Cache.build(store), latents, both


# ---- motion


motions = st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=30).map(np.array)


@settings(max_examples=60, deadline=None)
@given(motions, st.integers(0, 29), st.integers(0, 29))
def test_motions_are_a_group_and_a_walk_is_their_product(steps: np.ndarray, i: int, j: int) -> None:
    def matrix(m: np.ndarray) -> np.ndarray:
        cos, sin = math.cos(m[2]), math.sin(m[2])
        return np.array([[cos, -sin, m[0]], [sin, cos, m[1]], [0, 0, 1]])

    poses, product = walk_path(steps), np.eye(3)
    for pose, step in zip(poses, steps, strict=True):
        product = product @ matrix(step)
        np.testing.assert_allclose(matrix(pose), product, atol=1e-9)
    a, b = poses[i % len(poses)], poses[j % len(poses)]
    np.testing.assert_allclose(matrix(relative(a, b)), np.linalg.inv(matrix(a)) @ matrix(b), atol=1e-9)
    np.testing.assert_allclose(matrix(inverse(a)), np.linalg.inv(matrix(a)), atol=1e-9)
    tensors = compose(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(tensors.numpy(), compose(a, b), atol=1e-12)
    assert np.abs(wrap(steps * 9)).max() <= math.pi


@pytest.mark.parametrize(("old", "new"), [("cos * ahead - sin * left", "ahead"), ("- sin * left", "+ sin * left"),
                                          ("wrap(turn + more)", "turn")])  # fmt: skip
def test_planted_errors_of_composition_are_caught(old: str, new: str) -> None:
    broken, step, pose = mutant(compose, old, new), np.array([1.0, 0.5, 0.4]), np.zeros(3)
    for _ in range(5):
        pose = broken(pose, step)
    assert not np.allclose(pose, walk_path(np.tile(step, (5, 1)))[-1])


# ---- the store


def test_rows_lie_where_the_cache_has_them(made: Any) -> None:
    store, cache, latents, (autoencoder, codec) = made
    assert len(latents) == len(cache) == 304 and (latents.table["step"] == cache.table["step"]).all()
    seen = autoencoder.encode(torch.from_numpy(np.array(cache.image))).numpy()
    np.testing.assert_allclose(latents.table["image"], seen, rtol=1e-3, atol=1e-3)
    for name, kind in (("commanded", "probes/commanded_turn"), ("realised", "probes/realised_turn")):
        assert (latents.table[name][:, 2] == cache.table[kind]).all()
    assert (latents.table["realised"][:, 1] == cache.table["probes/realised_y"]).all()
    assert (latents.table["scene"] == cache.table["probes/scene"]).all()
    assert (latents.table["action"] == cache.table["action"]).all()
    for number in store.episodes.columns()["number"].tolist():
        steps, of = store.read(number), latents.table[latents.table["episode"] == number]
        of = of[np.argsort(of["step"])]
        sound = torch.from_numpy(steps.audio).unflatten(1, (-1, SAMPLES)).transpose(0, 1).contiguous()
        np.testing.assert_allclose(of["audio"], encode_steps(codec, sound), rtol=1e-3, atol=1e-3)


def test_a_codec_hears_what_was_before_and_silence_at_a_start(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", play([20, 9]), streams=2)
    torch.manual_seed(0)
    codec = Codec(CodecConfig(samples=SAMPLES, sample_rate=1600, strides=(4, 5), latents=6, width=4, linear=False))
    latents = encode_latents(store, None, codec.requires_grad_(False).eval())
    assert latents.sizes == {"audio": (4, 6)}
    for number in store.episodes.columns()["number"].tolist():
        sound = torch.from_numpy(store.read(number).audio).unflatten(1, (-1, SAMPLES)).transpose(0, 1).contiguous()
        of = latents.table[latents.table["episode"] == number]
        of = of[np.argsort(of["step"])]["audio"]
        np.testing.assert_allclose(of, encode_steps(codec, sound), rtol=2e-3, atol=2e-3)
        assert not np.allclose(of[1:], codec.encode(sound[1:]), rtol=2e-3, atol=2e-3)


def test_a_step_is_the_sound_up_to_its_end(tmp_path: Path) -> None:
    """Steps of a game whose lengths differ by a sample"""
    store = store_of(tmp_path / "store", play([12], ragged=True), chunk_steps=5)
    codec = fit_pca(store, CodecConfig(samples=SAMPLES, sample_rate=1600, strides=(4, 5), latents=40))
    latents, steps = encode_latents(store, None, codec), store.read(0)
    end = int(steps.bounds[8])
    again = codec.decode(torch.from_numpy(latents.table["audio"][7:8].astype(np.float32)))[0].numpy()
    assert np.abs(again.astype(int) - steps.audio[:, end - SAMPLES : end]).max() < 40


def test_only_new_rows_are_encoded_and_other_encoders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "store", play([20]))
    autoencoder, codec = encoders(store)
    seen, encode = [], Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: (seen.append(len(x)), encode(self, x))[1])
    encode_latents(store, autoencoder, codec)
    store = store_of(tmp_path / "store", play([15, 4], 1))
    more = encode_latents(store, autoencoder, codec)
    assert sum(seen) == len(more) == 39
    others = encoders(store, 1)[0], codec
    for pair in (others, (autoencoder, None), (autoencoder, fit_pca(store, codec.config))):
        with pytest.raises(StoreError, match="was made by other encoders: `encode_latents"):
            more.check(*pair)
    assert pickle.loads(pickle.dumps(more.check(autoencoder, codec))).table["step"].tolist() == more.table["step"].tolist()
    anew = encode_latents(store, *others)
    assert sum(seen) == 78 and anew.check(*others) and (anew.table["image"] != more.table["image"]).any()


def test_bad_stores_are_told(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", play([20]))
    both = encoders(store)
    with pytest.raises(StoreError, match="not a latent store"):
        LatentStore(tmp_path)
    latents = encode_latents(store, *both)
    (latents.path / "rows-0.bin").write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        LatentStore(latents.path)
    (latents.path / "latents.json").write_text("[" * 9000)
    with pytest.raises(StoreError, match="not a latent store"):
        LatentStore(latents.path)


@pytest.mark.parametrize(("change", "told"), [
    ({"image_shape": (32, 32, 3)}, "pictures of 16 x 16, the recording of rooms has 32 x 32"), ({"channels": 1}, "mono sound"),
    ({"sample_rate": 8000}, "1600 Hz"),
])  # fmt: skip
def test_recordings_of_another_kind_are_refused(change: dict[str, Any], told: str, tmp_path: Path, made: Any) -> None:
    schema = SCHEMA.change(**change)
    store = store_of(tmp_path / "store", play([5], schema=schema), schema)
    with pytest.raises(UsageError, match=told):
        encode_latents(store, *made[3])


def test_steps_of_another_length_are_refused(tmp_path: Path, made: Any) -> None:
    store = store_of(tmp_path / "store", play([5]))
    for samples in (60, 100):
        codec = PCACodec(CodecConfig(samples=samples, sample_rate=1600, strides=(4, 5), latents=6))
        with pytest.raises(UsageError, match=f"steps of {samples} samples, those of .*store.* have up to 80"):
            encode_latents(store, None, codec)
    with pytest.raises(UsageError, match="an autoencoder, a codec or both"):
        LatentEncoders(None, None)


# ---- windows


def check(batch: LatentBatch, store: Store, cache: Cache, latents: LatentStore, config: WindowConfig, motion: str) -> None:
    """Everything in a batch by brute force, from the recording itself"""
    assert batch.image.dtype == batch.audio.dtype == batch.motion.dtype == batch.reward.dtype == np.float32
    where = {(int(e), int(s)): i for i, (e, s) in enumerate(zip(cache.table["episode"], cache.table["step"], strict=True))}
    for b, row in enumerate(batch.row):
        episode, step = int(cache.table["episode"][row]), int(cache.table["step"][row])
        steps = store.read(episode)
        for k in range(config.context):
            at = step - config.context + 1 + k
            assert batch.valid[b, k] == (at >= 0)
            other = latents.table[where[episode, max(at, 0)]]
            assert (batch.image[b, k] == other["image"]).all() and (batch.audio[b, k] == other["audio"]).all()
        for g, offset in enumerate(batch.offset[b].tolist()):
            there = step + offset
            assert offset != 0 and abs(offset) <= config.reach and 0 <= there < len(steps)
            assert (batch.goal_image[b, g] == latents.table["image"][where[episode, there]]).all()
            assert (batch.goal_audio[b, g] == latents.table["audio"][where[episode, there]]).all()
            low, high = sorted((step, there))
            sign = 1 if offset > 0 else -1
            way = range(low + 1, high + 1)
            np.testing.assert_allclose(batch.reward[b, g], sign * steps.reward[low + 1 : high + 1].sum(), rtol=1e-4, atol=1e-5)
            if motion == "actions":
                counts = np.bincount(steps.action[low + 1 : high + 1], minlength=4)
                np.testing.assert_allclose(batch.motion[b, g], sign * counts / 64, atol=1e-6)
            else:
                total = np.zeros(3)
                for t in way:
                    single = np.array([steps.probes[f"{motion}_{axis}"][t] for axis in ("x", "y", "turn")])
                    total = compose(total, single)
                np.testing.assert_allclose(batch.motion[b, g], total if sign > 0 else inverse(total), atol=1e-5)


@pytest.mark.parametrize("motion", ["commanded", "realised", "actions"])
@pytest.mark.parametrize("changes", [{}, {"context": 1, "goals": 7, "reach": 3}])
def test_windows_hold_what_the_recording_says(motion: str, changes: dict[str, int], made: Any) -> None:
    store, cache, latents, _ = made
    config = WindowConfig(motion=motion, **changes)
    windows = LatentWindows(latents, config)
    assert len(windows) == 303  # a row alone has no goals
    batch = windows.sample(40, np.random.default_rng(0))
    check(batch, store, cache, latents, config, motion)
    assert (~batch.valid).any() or config.context == 1


def test_plain_sums_of_motion_are_caught(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cache, latents, _ = made
    monkeypatch.setattr(module, "walk_path", lambda motions: np.cumsum(motions, 0))
    monkeypatch.setattr(module, "relative", lambda start, end: end - start)
    batch = LatentWindows(latents).sample(20, np.random.default_rng(0))
    with pytest.raises(AssertionError):
        check(batch, store, cache, latents, WindowConfig(), "commanded")


@pytest.mark.parametrize(("name", "old", "new"), [
    ("gather", "np.maximum(wanted, self.begin[place][:, None])", "np.maximum(wanted, 0)"),
    ("gather", "self.earned[there] - self.earned[place][:, None]", "self.earned[there] * 1.0"),
    ("offsets", "(number >= 0)", "0"),
])  # fmt: skip
def test_planted_errors_of_windows_are_caught(name: str, old: str, new: str, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cache, latents, _ = made
    monkeypatch.setattr(LatentWindows, name, mutant(getattr(LatentWindows, name), old, new))
    with pytest.raises(AssertionError):
        check(LatentWindows(latents).sample(60, np.random.default_rng(0)), store, cache, latents, WindowConfig(), "commanded")


def test_every_goal_within_reach_is_as_likely(made: Any) -> None:
    windows = LatentWindows(made[2], WindowConfig(reach=4, goals=4000))
    place = np.flatnonzero(windows.end - windows.begin == 20)[[0, 2, 10, 19]]
    offset = windows.offsets(place, np.random.default_rng(0))
    for found, wanted in zip(offset, ([1, 2, 3, 4], [-2, -1, 1, 2, 3, 4], [-4, -3, -2, -1, 1, 2, 3, 4], [-4, -3, -2, -1]),
                             strict=True):  # fmt: skip
        values, counts = np.unique(found, return_counts=True)
        assert values.tolist() == wanted and counts.min() > 0.8 * 4000 / len(wanted)
    with pytest.raises(UsageError, match="beyond its episode"):
        windows.gather(place[:1], np.array([[20]]))


def test_a_gap_in_an_episode_is_an_end(tmp_path: Path) -> None:
    """A chunk is damaged: no window reaches over what it held"""
    store = store_of(tmp_path / "store", play([40]), chunk_steps=10)
    (store.path / store.chunks[1].file).write_bytes(b"gone")
    store = Store.open(store.path)
    both = encoders(store)
    windows = LatentWindows(encode_latents(store, *both), WindowConfig(goals=30))
    batch = windows.gather(windows.current, windows.offsets(windows.current, np.random.default_rng(0)))
    step = windows.store.table["step"]
    a, b = step[batch.row][:, None], step[batch.row][:, None] + batch.offset
    assert sorted(set(step.tolist())) == [*range(10), *range(20, 40)]
    assert ((a < 10) == (b < 10)).all() and not ((b >= 10) & (b < 20)).any()
    assert not batch.valid[step[batch.row] == 20, :3].any()


def test_draws_follow_from_the_seed_and_scenes_keep_apart(made: Any) -> None:
    latents = made[2]
    windows = LatentWindows(latents, WindowConfig(), scenes=[10, 12])
    once, again = (windows.sample(16, np.random.default_rng(5)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(vars(once).values(), vars(again).values(), strict=True))
    assert (windows.sample(16, np.random.default_rng(6)).row != once.row).any()
    one, same, other = (windows.batch(WindowConfig(batch_size=9, seed=s), n) for s, n in ((0, 3), (0, 3), (0, 4)))
    assert (one.row == same.row).all() and (one.offset == same.offset).all() and (one.row != other.row).any()
    assert set(latents.table["scene"][once.row]) <= {10, 12} and 11 in latents.table["scene"]
    with pytest.raises(StoreError, match="no two rows"):
        LatentWindows(latents, WindowConfig(), scenes=[99])


def test_a_game_without_motion_or_scenes_has_counts_and_says_so(tmp_path: Path) -> None:
    schema = SCHEMA.change(game="bonk", probes={})
    store = store_of(tmp_path / "store", play([30, 20], schema=schema), schema)
    latents = encode_latents(store, *encoders(store))
    windows = LatentWindows(latents)
    batch = windows.sample(12, np.random.default_rng(0))
    assert windows.motion == "actions" and batch.motion.shape == (12, 4, 4)
    check(batch, store, Cache.build(store), latents, WindowConfig(), "actions")
    with pytest.raises(UsageError, match="recording of bonk has no realised motion"):
        LatentWindows(latents, WindowConfig(motion="realised"))
    with pytest.raises(UsageError, match="no probe 'scene'"):
        LatentWindows(latents, WindowConfig(), scenes=[1])


def test_rewards_have_one_scale_and_no_offset(made: Any) -> None:
    windows = LatentWindows(made[2])
    rewards = windows.sample(4000, np.random.default_rng(1)).reward / windows.reward_scale()
    assert abs(rewards.std() - 1) < 0.05


def test_sequences_of_latents(made: Any) -> None:
    clip = made[2].gather([[(0, 3), (10, 12)], [(3, 8)]])
    assert clip.image.shape == (2, 5, 4, 2, 2) and clip.image.dtype == np.float32 and clip.commanded.shape == (2, 5, 3)
    assert (clip.step == made[2].table["step"][[[0, 1, 2, 10, 11], [3, 4, 5, 6, 7]]]).all()


# ---- as Lightning takes it


class Nothing(Learner):
    """Learns the mean of what it is given"""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(()))

    def losses(self, batch: LatentBatch) -> dict[str, torch.Tensor]:
        self.watch("rows", batch.row.double())
        return {"mean": (batch.goal_image - self.mean).square()}


def test_training_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", play([60, 40]))
    both = encoders(store)

    def train(folder: str, steps: int) -> None:
        data = LatentData(store.path, *both, WindowConfig(batch_size=3, batches_per_epoch=4))
        fit(Nothing(), data, tmp_path / folder, TrainConfig(steps=steps, lr=0.1, warmup=1, checkpoint_every=5, log_every=1))

    train("a", 5)
    train("a", 11)
    train("b", 11)
    a, b = read_log(tmp_path / "a"), read_log(tmp_path / "b")
    assert a["watch/rows"].tolist() == b["watch/rows"].tolist() and a["loss"].tolist() == b["loss"].tolist()
    with pytest.raises(StoreError, match="other encoders"):
        other = LatentData(store.path, encoders(store, 1)[0], both[1])
        other.setup()


def test_scenes_or_episodes_are_held_out(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", play([30, 20, 25, 10]))
    both = encoders(store)
    data = LatentData(store.path, *both, WindowConfig(validation_batches=3, batches_per_epoch=5), [10], [12])
    data.prepare_data()
    data.setup()
    scene = data.open().table["scene"]
    for loader, wanted in ((data.train_dataloader(), {10}), (data.val_dataloader(), {12})):
        assert {int(scene[row]) for batch in loader for row in batch.row} == wanted
    with pytest.raises(UsageError, match="scene 10 is to be learned from and held out"):
        LatentData(store.path, *both, None, [10], [10, 11])
    split = LatentData(store.path, *both, WindowConfig(validation=0.5))
    split.setup()
    episode = split.open().table["episode"]
    rows = [{int(episode[row]) for batch in loader for row in batch.row} for loader in (split.train, split.validation)]
    assert rows[0] and rows[1] and not rows[0] & rows[1]


def test_the_page_of_json_is_plain(made: Any) -> None:
    about = json.loads((made[2].path / "latents.json").read_text())
    assert about["format"] == "metabonk latents" and about["sizes"] == {"image": [4, 2, 2], "audio": [4, 6]}
