"""Tokens: the same live as recorded, without a seam, and never those of other tokenizers"""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import metabonk.record.encoded as encoded_module
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import StoreError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.play.game import make_game
from metabonk.record.cache import Cache
from metabonk.record.experience import Schema, Step
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig, Sequences
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMel, LogMelConfig
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokenizers import RowData, train_tokenizers
from metabonk.sense.tokens import Hearing, ObservationEncoder, TokenCache, TokenData, Tokenizers, hear_each, token_type

SCHEMA = Schema(game="test", image_shape=(16, 16, 3), channels=2, sample_rate=2000, clock_rate=60.0,
                actions=ActionSpec(categorical=(5,)))
SILENT = SCHEMA.change(channels=0, sample_rate=0)
LOGMEL = LogMelConfig(sample_rate=2000, n_fft=64, bands=8, frames_per_step=2, f_min=20.0)


def play(lengths: list[int], seed: int = 0, schema: Schema = SCHEMA) -> list[Step]:
    """Episodes of noise, some of whose steps have no sound at all"""
    rng, rows = np.random.default_rng(seed), []
    for length in lengths:
        for t in range(length):
            image = rng.integers(0, 256, schema.image_shape, np.uint8)
            samples = int(rng.integers(0, 40)) if schema.channels else 0
            audio = (rng.normal(size=(schema.channels, samples)) * 9000).astype(np.int16)
            rows.append(Step(image, audio, np.array(t % 5), float(t), t == length - 1, False, t == 0, t, 0))
    return rows


def store_of(path: Path, rows: list[Step], chunk_steps: int = 7, schema: Schema = SCHEMA) -> Store:
    store = Store.create(path, schema, exist_ok=True)
    with store.writer(chunk_steps) as writer:
        for row in rows:
            writer.add(row)
    return store


def tokenizers_of(seed: int = 0, codes: int = 50, picture: bool = True, sound: bool = True, **logmel: Any) -> Tokenizers:
    """Untrained: what matters here is that they tell different things apart"""
    torch.manual_seed(seed)
    eyes = PictureTokenizer(PictureConfig(size=(16, 16), grid=(2, 2), codes=codes, width=16, narrow=8, code_size=4))
    ears = SoundTokenizer(SoundConfig(channels=2, frames=2, bands=8, tokens=2, codes=20, width=16, blocks=1, code_size=4))
    config = LOGMEL.change(**logmel)
    return Tokenizers(eyes if picture else None, ears if sound else None, config if sound else None, "test")


def expected(tokenizers: Tokenizers, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of every row, episode by episode, in the order of the episodes"""
    image, audio = [], []
    for episode in store.episodes:
        steps = store.read(episode)
        image.append(tokenizers.encode_image(steps.image))
        heard = tokenizers.ears(torch.from_numpy(steps.audio), torch.from_numpy(steps.audio_length))
        audio.append(tokenizers.encode_audio(heard))
    return torch.cat(image).numpy(), torch.cat(audio).numpy()


def in_order(cache: TokenCache) -> np.ndarray:
    return cache.table[np.lexsort((cache.table["step"], cache.table["episode"]))]


# ---- the same tokens


@pytest.mark.parametrize("chunk_steps", [2, 5, 1000])
def test_tokens_are_those_of_whole_episodes(tmp_path: Path, chunk_steps: int) -> None:
    store = store_of(tmp_path / "store", play([23, 1, 9]), chunk_steps)
    tokenizers = tokenizers_of()
    rows = in_order(TokenCache.build(store, tokenizers, block=4))
    image, audio = expected(tokenizers, store)
    np.testing.assert_array_equal(rows["image"], image)
    np.testing.assert_array_equal(rows["audio"], audio)
    np.testing.assert_array_equal(rows["reward"], [row.reward for row in play([23, 1, 9])])
    np.testing.assert_array_equal(rows["first"], [row.first for row in play([23, 1, 9])])


def test_a_seam_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "store", play([30]), 5)
    tokenizers = tokenizers_of()
    monkeypatch.setattr(Hearing, "past", lambda self, row: np.zeros((2, LOGMEL.n_fft), np.int16))
    assert (in_order(TokenCache.build(store, tokenizers))["audio"] != expected(tokenizers, store)[1]).any()


def test_single_rows_sound_as_in_their_episode(tmp_path: Path) -> None:
    store, ears = store_of(tmp_path / "store", play([20, 13]), 6), LogMel(LOGMEL)
    hearing = Hearing(Cache.build(store), ears)
    whole = torch.cat([
        ears(torch.from_numpy(steps.audio), torch.from_numpy(steps.audio_length)) for steps in map(store.read, store.episodes)
    ])  # fmt: skip
    rows = np.array([32, 0, 20, 5, 6, 19])
    torch.testing.assert_close(hearing.rows(rows), whole[rows], rtol=0, atol=1e-6)
    torch.testing.assert_close(hearing.stretch(3, 6), whole[3:6], rtol=0, atol=1e-6)
    clips = hearing.clips(np.array([20, 2, 17]), 5)  # the last runs on into the second episode
    torch.testing.assert_close(clips, torch.stack([whole[20:25], whole[2:7], whole[17:22]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(hearing.stretch(15, 33), whole[15:], rtol=0, atol=1e-6)


def test_live_tokens_are_those_of_the_recording(tmp_path: Path) -> None:
    settings = {"image_size": (64, 64), "max_steps": 150}
    record("bonk", tmp_path / "store", episodes=2, seed=3, settings=settings, chunk_steps=64)
    store = Store.open(tmp_path / "store")
    torch.manual_seed(0)
    logmel = LogMelConfig.preset("tiny", sample_rate=store.schema.sample_rate, n_fft=4096)  # looks back two steps
    ears = SoundTokenizer(SoundConfig(channels=2, frames=4, bands=logmel.bands, tokens=4))
    tokenizers = Tokenizers(PictureTokenizer(PictureConfig()), ears, logmel, "bonk")
    rows, senses, t = in_order(TokenCache.build(store, tokenizers)), ObservationEncoder(tokenizers), 0
    for episode in store.episodes:
        senses.reset()
        for step in store.read(episode):
            batch = senses({"image": step.image, "audio": step.audio})
            assert batch.shape == (1, 1)
            assert batch.image[0, 0].tolist() == rows["image"][t].tolist()
            assert batch.audio[0, 0].tolist() == rows["audio"][t].tolist()
            assert batch.first.item() == rows["first"][t] and batch.step.item() == rows["step"][t]
            t += 1
    assert t == len(rows) == 302
    assert len(np.unique(rows["image"])) > 5 and len(np.unique(rows["audio"])) > 5


def test_live_tokens_of_the_game_itself(tmp_path: Path) -> None:
    """What `reset` and `step` return goes in as it is"""
    torch.manual_seed(0)
    game = make_game("bonk", image_size=(64, 64))
    logmel = LogMelConfig.preset("tiny", sample_rate=game.sample_rate)
    ears = SoundTokenizer(SoundConfig(channels=game.channels, bands=logmel.bands))
    senses = ObservationEncoder(Tokenizers(PictureTokenizer(PictureConfig()), ears, logmel, "bonk"))
    first = senses(game.reset(seed=0)[0])
    second = senses(game.step(0)[0])
    game.close()
    assert first.first.item() and not second.first.item()
    assert first.image.dtype == first.audio.dtype == torch.int64
    assert not first.image.is_inference()  # an embedding of them may be trained


def test_several_games_are_heard_apart() -> None:
    tokenizers, streams = tokenizers_of(), [play([12], seed) for seed in (1, 2, 3)]
    together, alone = ObservationEncoder(tokenizers, 3), [ObservationEncoder(tokenizers) for _ in streams]
    for t in range(12):
        rows = [stream[t] for stream in streams]
        first = np.array([False, t == 7, False])
        if t == 7:
            alone[1].reset()
        batch = together({"image": np.stack([row.image for row in rows]), "audio": tuple(row.audio for row in rows)}, first)
        single = [senses({"image": row.image, "audio": row.audio}) for senses, row in zip(alone, rows, strict=True)]
        for name in ("image", "audio", "first", "step", "episode"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(one, name) for one in single])), name
        assert batch.shape == (3, 1)
    assert batch.step[:, 0].tolist() == [11, 4, 11] and batch.episode[:, 0].tolist() == [0, 1, 0]


def test_log_mel_of_unrelated_steps() -> None:
    ears, rng = LogMel(LOGMEL), np.random.default_rng(0)
    past = [rng.integers(-9000, 9000, (2, 64), np.int16) for _ in range(5)]
    sound = [rng.integers(-9000, 9000, (2, n), np.int16) for n in (0, 1, 33, 100, 64)]
    for frames, before, now in zip(hear_each(ears, past, sound), past, sound, strict=True):
        alone = ears(torch.from_numpy(now), torch.tensor([now.shape[1]]), torch.from_numpy(before))[0]
        torch.testing.assert_close(frames, alone, rtol=0, atol=1e-6)


# ---- the cache


def test_only_new_rows_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers, seen = tokenizers_of(), []
    see = Tokenizers.encode_image
    monkeypatch.setattr(Tokenizers, "encode_image", lambda self, images: (seen.append(len(images)), see(self, images))[1])
    store = store_of(tmp_path / "store", play([20]))
    TokenCache.build(store, tokenizers)
    assert sum(seen) == 20
    before = TokenCache.build(store, tokenizers)
    assert sum(seen) == 20
    store = store_of(tmp_path / "store", play([15, 4], 1))
    after = TokenCache.build(store, tokenizers)
    assert sum(seen) == 39 and len(before) == 20 and len(after) == 39
    np.testing.assert_array_equal(in_order(after)["audio"], expected(tokenizers, store)[1])
    np.testing.assert_array_equal(before.table, after.table[:20])


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_module, "_commit_rows", 10)
    tokenizers, store = tokenizers_of(), store_of(tmp_path / "store", play([50]))
    see, calls = Tokenizers.encode_image, []

    def cut(self: Tokenizers, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return see(self, images)

    monkeypatch.setattr(Tokenizers, "encode_image", cut)
    with pytest.raises(KeyboardInterrupt):
        TokenCache.build(store, tokenizers)
    part = TokenCache(tmp_path / "store.tokens")
    assert len(part) == 28  # two commits of two pieces of 7 rows
    calls += [0] * 10
    del calls[10:]
    whole = TokenCache.build(store, tokenizers)
    assert sum(calls[10:]) == 22
    image, audio = expected(tokenizers, store)
    np.testing.assert_array_equal(in_order(whole)["image"], image)
    np.testing.assert_array_equal(in_order(whole)["audio"], audio)
    np.testing.assert_array_equal(part.table, whole.table[:28])


def test_other_tokenizers_make_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, mine, other = store_of(tmp_path / "store", play([30])), tokenizers_of(0), tokenizers_of(1)
    old = TokenCache.build(store, mine)
    kept = old.table.copy()
    with pytest.raises(StoreError, match="other tokenizers"):
        old.check(other)
    see = Tokenizers.encode_image
    monkeypatch.setattr(Tokenizers, "encode_image", lambda self, images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TokenCache.build(store, other)
    assert len(TokenCache(old.path).check(mine)) == 30  # until the new one is there, the old one is whole
    monkeypatch.setattr(Tokenizers, "encode_image", see)
    new = TokenCache.build(store, other)
    np.testing.assert_array_equal(in_order(new)["image"], expected(other, store)[0])
    assert (new.table["image"] != kept["image"]).any()
    np.testing.assert_array_equal(old.table, kept)  # whoever still reads the old one reads what it was
    assert len(list(new.path.glob("*.bin"))) == 2
    new.check(other)


def test_a_chunk_that_comes_back_is_put_in_its_place(tmp_path: Path) -> None:
    store, tokenizers = store_of(tmp_path / "store", play([30]), 10), tokenizers_of()
    file = store.path / store.chunks[1].file
    content = file.read_bytes()
    file.write_bytes(content[:100])
    assert len(TokenCache.build(store, tokenizers)) == 20
    file.write_bytes(content)
    cache = TokenCache.build(Store.open(store.path), tokenizers)
    assert len(cache) == 30
    np.testing.assert_array_equal(in_order(cache)["audio"], expected(tokenizers, store)[1])


def test_a_training_cache_in_another_order(tmp_path: Path) -> None:
    tokenizers = tokenizers_of()
    rows = play([20], 1), play([20], 2)
    store = Store.create(tmp_path / "store", SCHEMA)
    with store.writer(5) as writer:
        for t in range(20):
            for stream in (0, 1):
                writer.add(rows[stream][t], stream)
            if t == 9:
                TokenCache.build(Store.open(store.path), tokenizers)
    store = Store.open(store.path)
    TokenCache.build(store, tokenizers)
    shutil.rmtree(tmp_path / "store.cache")
    cache = TokenCache.build(store, tokenizers)
    np.testing.assert_array_equal(cache.table["step"], Cache(tmp_path / "store.cache").table["step"])
    np.testing.assert_array_equal(in_order(cache)["audio"], expected(tokenizers, store)[1])


def test_bad_caches_are_told(tmp_path: Path) -> None:
    tokenizers = tokenizers_of()
    with pytest.raises(StoreError, match="not a token cache"):
        TokenCache(tmp_path)
    store = store_of(tmp_path / "store", play([10]))
    cache = TokenCache.build(store, tokenizers)
    other = store_of(tmp_path / "other", play([10], 1))
    with pytest.raises(StoreError, match="another store"):
        TokenCache.build(other, tokenizers, cache.path)
    (cache.path / "rows-0.bin").write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        TokenCache(cache.path)
    assert len(TokenCache.build(store, tokenizers)) == 10  # made anew
    with pytest.raises(StoreError, match="empty"):
        TokenCache.build(Store.create(tmp_path / "empty", SCHEMA), tokenizers)


def test_tokens_are_small_on_disk_and_int64_in_batches(tmp_path: Path) -> None:
    kind = token_type(SCHEMA, {"image": (64, 256), "audio": (4, 257)})
    assert kind["image"].base == np.uint8 and kind["audio"].base == np.uint16
    store = store_of(tmp_path / "store", play([20, 20]))
    cache = TokenCache.build(store, tokenizers_of())
    sequences = Sequences(Cache(tmp_path / "store.cache"), 8)
    batch = cache.gather(sequences.spans(np.array([0, 3, 25])))
    assert batch.shape == (3, 8) == batch.image.shape[:2] and batch.image.dtype == batch.audio.dtype == np.int64
    assert batch.reward.dtype == np.float32 and batch.action.dtype == np.int64
    np.testing.assert_array_equal(batch.image[1], cache.table["image"][3:11])
    again = pickle.loads(pickle.dumps(cache)).gather(sequences.spans(np.array([0, 3, 25])))
    np.testing.assert_array_equal(again.audio, batch.audio)
    moved = batch.torch().to("cpu").numpy()
    assert moved.step.tolist() == batch.step.tolist()


def test_one_sense_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", play([12]))
    eyes, ears = tokenizers_of(sound=False), tokenizers_of(picture=False)
    assert eyes.sizes == {"image": (4, 50)} and ears.sizes == {"audio": (2, 20)}
    blind = TokenCache.build(store, ears)
    batch = blind.gather([[(0, 12)]])
    assert batch.image is None and batch.audio.shape == (1, 12, 2)
    assert batch.torch().to("cpu").image is None
    live = ObservationEncoder(eyes)({"image": play([1])[0].image})
    assert live.audio is None and live.image.shape == (1, 1, 4)


def test_data_for_lightning(tmp_path: Path) -> None:
    store_of(tmp_path / "store", play([40, 40, 40, 40]))
    tokenizers, config = tokenizers_of(), SequenceConfig(length=6, batch_size=3, batches_per_epoch=4, seed=2, validation=0.5)
    data = TokenData(tmp_path / "store", tokenizers, config)
    data.prepare_data()
    data.setup()
    batches = list(data.train_dataloader())
    assert len(batches) == 4 and batches[0].image.shape == (3, 6, 4) and batches[0].image.dtype == torch.int64
    seen = {int(e) for batch in batches for e in batch.episode.flatten()}
    assert seen.isdisjoint(int(e) for batch in data.val_dataloader() for e in batch.episode.flatten())
    again = TokenData(tmp_path / "store", tokenizers, config)
    again.prepare_data()
    again.load_state_dict({**data.state_dict(), "position": 2})
    again.setup()
    assert torch.equal(next(iter(again.train_dataloader())).audio, batches[2].audio)
    with pytest.raises(StoreError, match="other tokenizers"):
        TokenData(tmp_path / "store", tokenizers_of(1), config).setup()


# ---- tokenizers


def test_saved_and_loaded(tmp_path: Path) -> None:
    tokenizers = tokenizers_of()
    loaded = Tokenizers.load(tokenizers.save(tmp_path / "t"))
    assert loaded.fingerprint() == tokenizers.fingerprint() != tokenizers_of(1).fingerprint()
    assert loaded.sizes == {"image": (4, 50), "audio": (2, 20)} and loaded.game == "test"
    images = np.stack([row.image for row in play([5])])
    assert torch.equal(loaded.encode_image(images), tokenizers.encode_image(images))
    about = json.loads((tmp_path / "t" / "tokenizers.json").read_text())
    assert about["facts"] == {"image_shape": [16, 16, 3], "channels": 2, "sample_rate": 2000}
    assert Tokenizers.load(tokenizers_of(sound=False).save(tmp_path / "blind")).sound is None


def test_frozen_for_good() -> None:
    tokenizers = tokenizers_of()
    nn.ModuleList([tokenizers]).train().requires_grad_(False)
    assert not any(module.training for module in tokenizers.modules())
    assert not any(p.requires_grad for p in tokenizers.parameters())
    before = tokenizers.fingerprint()
    tokenizers.encode_image(np.stack([row.image for row in play([5])]))
    assert tokenizers.fingerprint() == before


def test_files_that_do_not_fit_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no tokenizers"):
        Tokenizers.load(tmp_path)
    tokenizers_of().save(tmp_path / "a")
    tokenizers_of(codes=60).save(tmp_path / "b")
    tokenizers_of(1).save(tmp_path / "c")
    weights = tmp_path / "a" / "tokenizers.safetensors"
    shutil.copy(tmp_path / "b" / "tokenizers.safetensors", weights)
    with pytest.raises(UsageError, match="does not fit"):
        Tokenizers.load(tmp_path / "a")
    shutil.copy(tmp_path / "c" / "tokenizers.safetensors", weights)
    with pytest.raises(UsageError, match="not those that were saved"):
        Tokenizers.load(tmp_path / "a")
    weights.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="does not fit"):
        Tokenizers.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"channels": 0, "sample_rate": 0}, "recording of test has none"),
        ({"sample_rate": 0}, "recording of test has none"),
        ({"sample_rate": 4000}, "2000 Hz.* 4000"),
        ({"channels": 1}, "2 sound channels.* 1"),
        ({"image_shape": (32, 16, 3)}, "16 x 16.* 32 x 16"),
    ],
)
def test_recordings_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        tokenizers_of().check(SCHEMA.change(**change))


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="picture tokenizer, a sound tokenizer or both"):
        tokenizers_of(picture=False, sound=False)
    with pytest.raises(UsageError, match="go together"):
        Tokenizers(None, tokenizers_of().sound, None)
    with pytest.raises(UsageError, match="bands"):
        tokenizers_of(bands=16)


def test_observations_that_do_not_fit() -> None:
    row, senses = play([1])[0], ObservationEncoder(tokenizers_of())
    with pytest.raises(UsageError, match="32 x 32"):
        senses({"image": np.zeros((32, 32, 3), np.uint8), "audio": row.audio})
    with pytest.raises(UsageError, match="1 channels"):
        senses({"image": row.image, "audio": row.audio[:1]})
    with pytest.raises(UsageError, match="2 pictures"):
        senses({"image": np.stack([row.image] * 2), "audio": (row.audio, row.audio)})


# ---- training

EYES = PictureConfig(size=(16, 16), grid=(2, 2), codes=32, width=32, narrow=8, code_size=4)
EARS = SoundConfig(channels=2, frames=2, bands=8, tokens=2, codes=8, width=32, blocks=1, code_size=4)
TRAINING = TrainConfig(steps=60, lr=3e-3, warmup=5, checkpoint_every=20, log_every=10)


def patterns(schema: Schema = SCHEMA) -> list[Step]:
    """Four pictures and four tones, which a small vocabulary can name"""
    rng, rows = np.random.default_rng(0), []
    images = rng.integers(0, 2, (4, *schema.image_shape), np.uint8) * 200
    time = np.arange(40) / 2000
    for t in range(60):
        which = int(rng.integers(4))
        tone = np.sin(2 * np.pi * (100, 250, 500, 800)[which] * time) * 12_000
        audio = np.stack([tone, tone]).astype(np.int16) if schema.channels else np.zeros((0, 0), np.int16)
        rows.append(Step(images[which], audio, np.array(0), 0.0, t == 59, False, t == 0, t, 0))
    return rows


def train(store: Store, folder: Path, **more: Any) -> Tokenizers:
    arguments = {"picture": EYES, "sound": EARS, "logmel": LOGMEL, "training": TRAINING, "batch_size": 16} | more
    return train_tokenizers(store, folder, **arguments)


def test_training_both(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", patterns())
    trained = train(store, tmp_path / "t")
    assert Tokenizers.load(tmp_path / "t").fingerprint() == trained.fingerprint()
    for name in ("picture", "sound"):
        log = read_log(tmp_path / "t" / name)
        assert log["loss/reconstruction"].iloc[-1] < 0.95 * log["loss/reconstruction"].iloc[0], name
    steps = store.read(0)
    kinds = np.unique(steps.image.reshape(60, -1), axis=0, return_inverse=True)[1]
    tokens = [tuple(row) for row in trained.encode_image(steps.image).tolist()]
    assert len(set(tokens)) == 4 == len(set(zip(tokens, kinds.tolist(), strict=True)))
    assert not any(p.requires_grad for p in trained.parameters())


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", patterns())
    short = TRAINING.change(steps=20)
    whole = train(store, tmp_path / "whole", training=TRAINING.change(steps=40))
    train(store, tmp_path / "cut", training=short)
    went_on = train(store, tmp_path / "cut", training=TRAINING.change(steps=40))
    assert went_on.fingerprint() == whole.fingerprint()
    assert train(store, tmp_path / "other", training=short, seed=1).fingerprint() != whole.fingerprint()


def test_a_silent_game_has_eyes_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", patterns(SILENT), schema=SILENT)
    short = TRAINING.change(steps=2)
    trained = train(store, tmp_path / "t", sound=None, logmel=None, training=short)
    assert set(trained.sizes) == {"image"}
    assert TokenCache.build(store, trained).gather([[(0, 5)]]).audio is None
    with pytest.raises(UsageError, match="has no sound"):
        train(store, tmp_path / "u", senses="sound")
    with pytest.raises(UsageError, match="both"):
        train(store, tmp_path / "u", senses="smell")


def test_defaults_fit_the_store_and_misfits_are_told_at_once(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", patterns())
    short = TRAINING.change(steps=1)
    trained = train(store, tmp_path / "t", picture=None, sound=None, logmel=LOGMEL, training=short)
    assert trained.picture.config.size == (16, 16) and trained.sound.config.frames == 2
    with pytest.raises(UsageError, match="64 x 64"):
        train(store, tmp_path / "u", picture=PictureConfig())
    with pytest.raises(UsageError, match="24000 Hz"):
        train(store, tmp_path / "u", logmel=LOGMEL.change(sample_rate=24_000))
    assert not (tmp_path / "u").exists()
    assert train(store, tmp_path / "v", senses="picture", training=short).sound is None
    assert train(store, tmp_path / "w", senses="sound", training=short).picture is None


def test_rows_to_learn_from_are_those_of_the_store(tmp_path: Path) -> None:
    store_of(tmp_path / "store", play([30]))
    data = RowData(tmp_path / "store", batch_size=4, seed=1)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    known = {row.image.tobytes() for row in play([30])}
    assert batch.values.shape == (4, 16, 16, 3) and all(image.numpy().tobytes() in known for image in batch.values)
