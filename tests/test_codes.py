"""Recordings as codes, and batches of which half is on the way to a task."""

import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import StoreError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream import codes
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.clips import ClipCache
from metabonk.dream.codes import CodeCache, CodeData, TaskSequences
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig, Sequences, draw
from metabonk.record.store import Store
from metabonk.record.tasks import TaskSet
from metabonk.sense.logmel import LogMelConfig

HEARD = LogMelConfig(sample_rate=32_768, n_fft=512, bands=16, frames_per_step=2)
SEEN = {"max_steps": 30, "image_size": (16, 16), "ticks_per_step": 4}


def tokenizer(seed=0, context=4):
    torch.manual_seed(seed)
    sizes = {"width": 16, "layers": 2, "heads": 2, "latents": 4, "bottleneck": 4, "time_every": 2, "context": context}
    ears = {"channels": 2, "frames": 2, "bands": 16, "sound_patch": (2, 16)}
    return CausalTokenizer(CausalTokenizerConfig(size=(16, 16), **ears, **sizes)).eval()


@pytest.fixture
def store(tmp_path):
    record("bonk", tmp_path / "store", "random", episodes=4, games=2, settings=SEEN, chunk_steps=20)
    return Store.open(tmp_path / "store")


def test_codes_are_those_of_each_episode_read_from_its_start(store, tmp_path):
    cache, code = Cache.build(store), tokenizer()
    coded = CodeCache.build(cache, code, tmp_path / "codes", HEARD, block=7)
    for number in np.unique(cache.table["episode"]):
        rows = np.flatnonzero(cache.table["episode"] == number)
        rows = rows[np.argsort(cache.table["step"][rows])]
        clip = ClipCache(cache, HEARD).gather([[(row, row + 1) for row in rows.tolist()]]).torch()
        with torch.no_grad():
            whole = code.encode(clip)[0].numpy()
        np.testing.assert_allclose(coded.codes[rows], whole, atol=1e-5)
        assert np.abs(coded.codes[rows[1:]] - whole[:-1]).max() > 1e-3


def episodes_that_differ(store, folder) -> list[int]:
    """Episodes whose codes are not those of their rows alone, whatever was encoded before."""
    cache, code = Cache.build(store), tokenizer()
    coded, wrong = CodeCache.build(cache, code, folder, HEARD, block=7), []
    for number in np.unique(cache.table["episode"]).tolist():
        rows = np.flatnonzero(cache.table["episode"] == number)
        rows = rows[np.argsort(cache.table["step"][rows])]
        clip = ClipCache(cache, HEARD).gather([[(row, row + 1) for row in rows.tolist()]]).torch()
        with torch.no_grad():
            if np.abs(coded.codes[rows] - code.encode(clip)[0].numpy()).max() > 1e-5:
                wrong.append(number)
    return wrong


def test_an_episode_whose_beginning_was_lost_does_not_go_on_from_another(store, tmp_path, monkeypatch):
    "Its first row that is left bears no mark. Negative control: one past over all episodes."
    path = store.path / store.chunks[2].file
    path.write_bytes(path.read_bytes()[:3000])
    cache = Cache.build(store)
    begins = [cache.table["step"][cache.table["episode"] == number].min() for number in np.unique(cache.table["episode"])]
    assert max(begins[1:]) > 0
    assert not episodes_that_differ(store, tmp_path / "codes")
    fresh = "past = tokenizer.encoder.new_cache(1)"
    one = "past = past if rows[0] != order[0] else tokenizer.encoder.new_cache(1)"
    monkeypatch.setattr(codes, "_encode", mutant(codes._encode, fresh, one))
    assert episodes_that_differ(store, tmp_path / "other")


def test_codes_of_other_rows_or_another_tokenizer_are_made_anew(store, tmp_path):
    cache = Cache.build(store)
    first = np.array(CodeCache.build(cache, tokenizer(), tmp_path / "codes", HEARD).codes)
    stamp = (tmp_path / "codes" / "codes.npy").stat().st_mtime_ns
    CodeCache.build(cache, tokenizer(), tmp_path / "codes", HEARD)
    assert (tmp_path / "codes" / "codes.npy").stat().st_mtime_ns == stamp, "found, not made again"
    other = CodeCache.build(cache, tokenizer(1), tmp_path / "codes", HEARD)
    assert not np.allclose(first, other.codes)
    record("bonk", store.path, "random", episodes=1, seed=9, settings=SEEN)
    longer = Cache.build(Store.open(store.path))
    with pytest.raises(StoreError, match="makes them anew"):
        CodeCache(longer, tmp_path / "codes")
    assert len(CodeCache.build(longer, tokenizer(1), tmp_path / "codes", HEARD).codes) == len(longer.table)


def test_an_interrupted_build_leaves_no_codes(store, tmp_path, monkeypatch):
    cache, code, calls = Cache.build(store), tokenizer(), []
    encode = type(code).encode_next

    def broken(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*given)

    monkeypatch.setattr(type(code), "encode_next", broken)
    with pytest.raises(KeyboardInterrupt):
        CodeCache.build(cache, code, tmp_path / "codes", HEARD)
    with pytest.raises(StoreError, match="no codes"):
        CodeCache(cache, tmp_path / "codes")
    assert CodeCache.build(cache, code, tmp_path / "codes", HEARD).codes.any()


def sequences(store, tmp_path, relevant=None, length=5):
    cache = Cache.build(store)
    coded = CodeCache.build(cache, tokenizer(), tmp_path / "codes", HEARD)
    if relevant is None:
        relevant = np.zeros((len(cache.table), 3), bool)
        relevant[40:44, 0] = relevant[90, 2] = True
    return TaskSequences(coded, length, relevant), relevant


def test_one_half_comes_from_anywhere_the_other_from_the_way_to_a_task(store, tmp_path):
    drawn, relevant = sequences(store, tmp_path)
    config, plain = SequenceConfig(length=5, batch_size=8, seed=3), Sequences(drawn.cache, 5)
    assert drawn.known.tolist() == [0, 2], "task 1 was never done"
    asked = []
    for number in range(20):
        clip = drawn.batch(config, number)
        anywhere = drawn.cache.gather(plain.spans(draw(len(plain), config, number)))
        assert np.array_equal(clip.latent[4:], anywhere.latent[4:]) and not clip.clone_mask[4:].any()
        assert clip.clone_mask[:4].any(1).all() and (clip.task == clip.task[:, :1]).all()
        assert set(clip.task[:4, 0]) <= {0, 2}
        asked += clip.task[4:, 0].tolist()
        on_the_way = drawn.cache.codes[relevant[:, 0]]
        for row in range(4):
            if clip.task[row, 0] == 0:
                found = (clip.latent[row][clip.clone_mask[row]][:, None] == on_the_way[None]).all((2, 3)).any(1)
                assert found.all(), "a row is marked that is not on the way to the task it is asked for"
    assert set(asked) == {0, 1, 2}, "what is asked for in the second half tells nothing"


def test_batches_follow_from_seed_and_number(store, tmp_path):
    drawn, _ = sequences(store, tmp_path)
    config = SequenceConfig(length=5, batch_size=8, seed=3)
    one, again, next_, other = (drawn.batch(c, n) for c, n in ((config, 1), (config, 1), (config, 2), (config.change(seed=4), 1)))
    assert np.array_equal(one.latent, again.latent) and np.array_equal(one.task, again.task)
    assert not np.array_equal(one.latent[4:], next_.latent[4:]) and not np.array_equal(one.latent[4:], other.latent[4:])


def coded_data(store, tmp_path, tasks) -> CodeData:
    data = CodeData(store.path, tokenizer(), HEARD, SequenceConfig(length=5, batch_size=16), tasks, 8, path=tmp_path / "codes")
    data.prepare_data()
    data.setup()
    return data


def test_one_of_several_tasks_pays_where_it_is_done(store, tmp_path):
    cache = Cache.build(store)
    earned = np.array(cache.table["reward"])
    earned[::7] = 5.0  # what the game paid
    drawn, relevant = sequences(store, tmp_path)
    done = np.stack([earned > 0, earned == 0, np.arange(len(earned)) % 3 == 0], 1)
    paid = TaskSequences(drawn.cache, 5, relevant, done=done)
    config = SequenceConfig(length=5, batch_size=8, seed=3)
    number = {row.tobytes(): i for i, row in enumerate(drawn.cache.codes)}
    for batch in range(5):
        clip, plain = paid.batch(config, batch), drawn.batch(config, batch)
        rows = np.array([[number[row.tobytes()] for row in sequence] for sequence in clip.latent])
        assert np.array_equal(clip.reward, done[rows, clip.task]) and clip.reward.dtype == np.float32
        assert np.array_equal(plain.reward, cache.table["reward"][rows]), "without that, the game's own reward"
        assert np.array_equal(clip.latent, plain.latent) and np.array_equal(clip.task, plain.task), "the same rows are drawn"


@pytest.mark.parametrize(("tasks", "pays"), [(TaskSet.load("reward"), False), (TaskSet.load("bonk"), True)])
def test_a_single_task_leaves_rewards_as_they_are(store, tmp_path, tasks, pays):
    data = coded_data(store, tmp_path, tasks)
    drawn = data.sequences(data.open(), np.ones(len(data.open().segments), bool))
    assert (drawn.done is not None) is pays and (not pays or np.array_equal(drawn.done, tasks.done(data.training_cache())))


def test_tasks_that_were_never_done_are_refused(store, tmp_path):
    with pytest.raises(UsageError, match="none of the tasks was done"):
        sequences(store, tmp_path, np.zeros((len(Cache.build(store).table), 2), bool))


def test_dynamics_learn_from_codes_as_they_do_from_frames(store, tmp_path):
    code = tokenizer()
    data = CodeData(store.path, code, HEARD, SequenceConfig(length=4, batch_size=4), TaskSet.load("bonk"), within=8)
    sizes = DynamicsConfig(width=16, layers=2, heads=2, time_every=2, context=4, tasks=8, units=16, distances=2)
    model = ShortcutModel(code, ActionSpec(categorical=(11,)), sizes, logmel=HEARD)
    fit(DynamicsLearner(model), data, tmp_path / "training", TrainConfig(steps=3, warmup=0, log_every=1))
    log = read_log(tmp_path / "training")
    assert len(log) == 3 and np.isfinite(log[["loss/shortcut", "loss/policy", "loss/reward"]].to_numpy()).all()
    frames = data.open().gather([[(0, 4)]]).torch()
    seen = ClipCache(data.training_cache(), HEARD).gather([[(0, 4)]]).torch()
    if bool(frames.first[0, 0]):
        torch.testing.assert_close(model.codes(frames), model.codes(seen), atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="the model knows 0 to 0"):
        one = ShortcutModel(code, ActionSpec(categorical=(11,)), sizes.change(tasks=1), logmel=HEARD)
        fit(DynamicsLearner(one), data, tmp_path / "one", TrainConfig(steps=3, warmup=0))


def test_films_and_hidden_episodes_are_whole_and_the_same_each_time(store, tmp_path):
    data = CodeData(store.path, tokenizer(), HEARD, SequenceConfig(length=5, batch_size=16), labelled=0.5)
    recorded = {episode.number for episode in store.episodes}
    assert data.hidden() == data.hidden() < recorded and len(data.hidden()) == len(recorded) - round(0.5 * len(recorded))
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.known, ~torch.isin(batch.episode, torch.tensor(sorted(data.hidden()))))
    assert batch.known.any() and not batch.known.all()
    assert CodeData(store.path, tokenizer(), HEARD).hidden() == set()
    with pytest.raises(UsageError, match="share from 0 to 1"):
        CodeData(store.path, tokenizer(), labelled=1.5)
