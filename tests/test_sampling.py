"""Sequences from the training cache: never across an end, never twice different"""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from mutants import mutant

import metabonk
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import DamagedChunk, DiskFull, FolderLocked, StoreError, StoreVersion, UsageError
from metabonk.record.cache import Cache
from metabonk.record.chunks import ChunkBuilder
from metabonk.record.experience import Batch, Schema, Step, Steps
from metabonk.record.sampling import (
    ExperienceData,
    RowSource,
    SequenceConfig,
    SequenceLoader,
    Sequences,
    draw,
    held_out,
    held_out_segments,
)
from metabonk.record.segments import SEGMENT, Spans, gather
from metabonk.record.store import Store, Writer

SCHEMA = Schema(
    game="test",
    image_shape=(4, 4, 3),
    channels=2,
    sample_rate=1000,
    clock_rate=60.0,
    actions=ActionSpec(categorical=(5,)),
    probes={"x": "int64", "alive": "bool"},
    terms={"game": "float64"},
)


def play(lengths: list[int], seed: int = 0) -> list[Step]:
    rng, rows = np.random.default_rng(seed), []
    for length in lengths:
        for t in range(length):
            audio = rng.integers(-(2**15), 2**15, (2, int(rng.integers(0, 7))), np.int16)
            probes = {"x": int(rng.integers(2**60)), "alive": bool(t % 2)}
            image, reward = rng.integers(0, 256, (4, 4, 3), np.uint8), float(rng.normal())
            done = t == length - 1
            rows.append(Step(image, audio, np.array(t % 5), reward, done, False, t == 0, t, t, probes, {"game": reward}))
    return rows


def record(path: Path, streams: list[list[Step]], chunk_steps: int) -> Store:
    store = Store.create(path, SCHEMA, exist_ok=True)
    with store.writer(chunk_steps) as writer:
        add(writer, streams)
    return store


def add(writer: Writer, streams: list[list[Step]]) -> None:
    for side_by_side in itertools.zip_longest(*streams):
        for number, row in enumerate(side_by_side):
            if row is not None:
                writer.add(row, number)


def assert_is(batch: Batch, b: int, rows: list[Step]) -> None:
    """Sequence `b` of the batch holds exactly these rows"""
    steps = Steps.stack(SCHEMA, rows)
    for name in ("image", "action", "terminated", "truncated", "first", "tick", "sample", "audio_length"):
        mine = getattr(batch, name)[b]
        assert (mine == getattr(steps, name)).all() and mine.dtype == getattr(steps, name).dtype, name
    assert (batch.probes["x"][b] == steps.probes["x"]).all() and batch.probes["alive"].dtype == bool
    assert (batch.reward[b] == steps.reward.astype(np.float32)).all() and batch.reward.dtype == np.float32
    size = steps.audio.shape[1]
    assert (batch.audio[b, :, :size] == steps.audio).all() and not batch.audio[b, :, size:].any()
    cut, length = batch.step_audio()
    for t, row in enumerate(rows):
        assert (cut[b, t, :, : length[b, t]] == row.audio).all() and not cut[b, t, :, length[b, t] :].any()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return record(tmp_path / "store", [play([30, 41, 25], 1), play([50, 20], 2)], chunk_steps=16)


@pytest.fixture
def cache(store: Store) -> Cache:
    return Cache.build(store)


@pytest.mark.parametrize("width", [0, 1, 3, 5, None])
def test_sound_that_is_cut_keeps_its_newest_samples(store: Store, monkeypatch: pytest.MonkeyPatch, width: int | None) -> None:
    """Rows have 0 to 6 samples. Negative control: the first ones of each row."""
    games = [play([30, 41, 25], 1), play([50, 20], 2)]
    cache = Cache.build(store)
    sequences = Sequences(cache, 12)
    batch = cache.gather(sequences.spans(np.arange(len(sequences))))

    def right(batch: Batch) -> bool:
        cut, length = batch.step_audio(width)
        rows = {(game, row.tick, row.audio.tobytes()): row for game in (0, 1) for row in games[game]}
        found = []
        for b, t in np.ndindex(len(batch), 12):
            begin = int(batch.audio_length[b, :t].sum())
            whole = batch.audio[b, :, begin : begin + int(batch.audio_length[b, t])]
            row = rows[int(batch.episode[b, t]) // 1_000_000, int(batch.tick[b, t]), whole.tobytes()]
            kept = row.audio if width is None else row.audio[:, max(0, row.audio.shape[1] - width) :]
            filled = np.zeros(cut.shape[2:], np.int16)
            filled[:, : kept.shape[1]] = kept
            found.append(np.array_equal(cut[b, t], filled) and length[b, t] == kept.shape[1])
        return all(found)

    assert right(batch)
    monkeypatch.setattr(Batch, "step_audio", mutant(Batch.step_audio, "(stop - kept)[", "(stop - length)["))
    assert right(batch) is (width in (0, None))


# --- which sequences there are


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    streams=st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=4), min_size=1, max_size=3),
    later=st.lists(st.integers(1, 25), max_size=2),
    chunk=st.integers(1, 30),
    length=st.integers(1, 12),
    cross=st.booleans(),
)
def test_exactly_the_sequences_that_exist(
    tmp_path: Path, streams: list[list[int]], later: list[int], chunk: int, length: int, cross: bool
) -> None:
    for folder in ("any", "any.cache"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    games = [play(lengths, seed) for seed, lengths in enumerate(streams)]
    store = record(tmp_path / "any", games, chunk)
    Cache.build(store)
    if later:
        games.append(play(later, 99))
        record(tmp_path / "any", games[-1:], chunk)
    cache = Cache.build(store.refresh())
    wanted = []
    for game in games:
        for start in range(len(game) - length + 1):
            rows = game[start : start + length]
            if cross or not any(row.first for row in rows[1:]):
                wanted.append(rows)
    if not wanted:
        with pytest.raises(StoreError, match="follow one another"):
            Sequences(cache, length, cross)
        return
    sequences = Sequences(cache, length, cross)
    assert len(sequences) == len(wanted)
    batch = cache.gather(sequences.spans(np.arange(len(sequences))))
    found = sorted((batch.reward[b].tobytes(), b) for b in range(len(batch)))
    expected = sorted((np.array([row.reward for row in rows], np.float32).tobytes(), i) for i, rows in enumerate(wanted))
    for (mine, b), (theirs, i) in zip(found, expected, strict=True):
        assert mine == theirs
        if b % 7 == 0:
            assert_is(batch, b, wanted[i])
        assert cross or len(set(batch.episode[b])) == 1


def test_a_game_that_went_on_after_the_cache_was_made(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", SCHEMA)
    games = [play([60], 1), play([60], 2)]
    with store.writer(chunk_steps=10) as writer:
        add(writer, [game[:30] for game in games])
        assert len(Cache.build(store.refresh())) == 60
        add(writer, [game[30:] for game in games])
    cache = Cache.build(store)
    sequences = Sequences(cache, 20)
    places = sequences.spans(np.arange(len(sequences)))
    assert len(places) == 2 * 41 and {len(runs) for runs in places} == {1, 2}
    batch = cache.gather(places)
    for b in range(len(batch)):
        start = int(batch.step[b, 0])
        assert_is(batch, b, games[int(batch.episode[b, 0]) // 1_000_000][start : start + 20])


def test_newest_last(store: Store, cache: Cache) -> None:
    record(store.path, [play([40], 3)], 16)
    longer = Cache.build(store.refresh())
    sequences = Sequences(longer, 8)
    newest = longer.gather(sequences.spans(np.arange(len(sequences) - 33, len(sequences))))
    assert set(newest.episode.flatten()) == {2_000_000}
    assert (np.diff(newest.step[:, 0]) == 1).all()


def test_around_a_damaged_chunk(tmp_path: Path) -> None:
    rows = play([48], 1)
    store = record(tmp_path / "store", [rows], 16)
    path = store.path / store.chunks[1].file
    path.write_bytes(path.read_bytes()[:3000])
    (error,) = store.verify()
    assert isinstance(error, DamagedChunk)
    cache = Cache.build(store)
    sequences = Sequences(cache, 10)
    batch = cache.gather(sequences.spans(np.arange(len(sequences))))
    assert sorted(batch.step[:, 0]) == [*range(7), *range(32, 39)]
    with pytest.raises(StoreError, match="16 at most"):
        Sequences(cache, 17, cross_episodes=True)


def test_sequences_of_a_recording_of_short_episodes_can_be_cut_into_equal_pieces(tmp_path: Path) -> None:
    cache = Cache.build(record(tmp_path / "store", [play([6, 5] * 8, 1), play([30], 2)], chunk_steps=16))  # 88 rows and 30
    inside, across = Sequences(cache, 1), Sequences(cache, 1, cross_episodes=True)
    assert (inside.longest, across.longest) == (30, 88)
    wanted = SequenceConfig(length=101, cross_episodes=True)
    for pieces, length in ((1, 88), (4, 88), (3, 87), (16, 80)):
        fitting = wanted.fitting(across.longest, pieces)
        assert fitting == wanted.change(length=length) and len(Sequences(cache, fitting.length, fitting.cross_episodes))
    assert [SequenceConfig(length=16).fitting(rows).length for rows in (15, 16, 17, 500)] == [15, 16, 16, 16]
    assert SequenceConfig(length=256).fitting(10_000, 4).length == 256
    few = SequenceConfig(length=64, cross_episodes=True).fitting(3, 4)
    with pytest.raises(StoreError, match="no 100 rows follow one another.* 88 at most"):
        Sequences(cache, few.length * 25, cross_episodes=True)


# --- how they are drawn


def test_uniform_and_recent_first() -> None:
    uniform = draw(50, SequenceConfig(batch_size=50_000), 0)
    assert uniform.min() == 0 and uniform.max() == 49
    assert np.abs(np.bincount(uniform, minlength=50) / 1000 - 1).max() < 0.2
    recent = draw(50, SequenceConfig(batch_size=200_000, recent=1.0, half_life=10.0), 0)
    counts = np.bincount(recent, minlength=50)
    assert np.abs(counts[10:][::10] / counts[:-10][::10] - 2).max() < 0.3  # ten places younger, twice as likely
    assert draw(1, SequenceConfig(recent=1.0, half_life=0.001), 5).tolist() == [0] * 16
    assert draw(10**9, SequenceConfig(recent=1.0, half_life=10.0), 5).min() > 10**9 - 1000


def test_batches_depend_on_seed_and_number_alone() -> None:
    config = SequenceConfig(seed=3)
    drawn = [draw(1000, config, number).tolist() for number in range(20)]
    assert drawn == [draw(1000, config, number).tolist() for number in range(20)]
    assert len({tuple(batch) for batch in drawn}) == 20
    assert draw(1000, config.change(seed=4), 0).tolist() != drawn[0]
    # known numbers: a change of the generator would silently change every experiment
    assert drawn[0][:4] == GOLDEN


GOLDEN = [862, 934, 270, 79]


def test_held_out_episodes_stay_held_out() -> None:
    numbers = np.arange(20_000)
    out = held_out(numbers, 0.1)
    assert abs(out.mean() - 0.1) < 0.01
    assert (held_out(numbers[:50], 0.1) == out[:50]).all()
    assert not held_out(numbers, 0.0).any() and held_out(numbers, 1.0).all()
    assert (held_out(numbers, 0.2) >= out).all()


@pytest.mark.parametrize("spans", [[[(0, 4)], [(5, 8)]], [[(0, 3)], [(5, 9)]]], ids=["shorter", "longer"])
def test_sequences_of_unequal_length_are_refused_not_filled_up(cache: Cache, spans: Spans) -> None:
    for gather_from in (cache.gather, partial(gather, cache.table)):
        with pytest.raises(UsageError, match="sequences of 3 and of 4 rows"):
            gather_from(spans)


def segments_of(lengths: list[int], chunk: int = 20) -> np.ndarray:
    """Segments of episodes of these lengths, cut where chunks end."""
    rows = [(episode, at, min(chunk, length - at)) for episode, length in enumerate(lengths) for at in range(0, length, chunk)]
    place = np.cumsum([0] + [size for *_, size in rows])
    return np.array([(0, 0, p, size, episode, at, p) for p, (episode, at, size) in zip(place, rows, strict=False)], SEGMENT)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_at_least_one_whole_episode_is_held_out_and_the_longest_never(seed: int) -> None:
    many = np.random.default_rng(seed).integers(1, 90, 200).tolist()
    for lengths in ([50] * 2, [30, 90, 60], [5, 5, 5, 70, 40], many):
        segments = segments_of(lengths)
        for fraction in (0.1, 0.5):
            out = held_out_segments(segments, fraction, seed)
            held, kept = set(segments["episode"][out]), set(segments["episode"][~out])
            assert held and not held & kept, "whole episodes"
            assert int(np.argmax(lengths)) in kept
        assert not held_out_segments(segments, 0.0, seed).any() and held_out_segments(segments, 1.0, seed).all()
    uneven = segments_of([5, 5, 5, 70, 40])
    assert set(uneven["episode"][held_out_segments(uneven, 0.001)]) == {4}, "none of the short ones"
    assert not held_out_segments(segments_of([50]), 0.5, seed).any(), "one episode alone is learned from"
    equal = segments_of([10] * 500)
    other = held_out_segments(equal, 0.1, seed + 1)
    assert 20 < other.sum() < 90 and (other != held_out_segments(equal, 0.1, seed)).any()


def test_one_split_for_sequences_of_every_length(tmp_path: Path) -> None:
    """Loaders of other lengths and seeds agree; a sequence longer than what is held out, or one episode alone, is no error."""
    path = record(tmp_path / "store", [play([30, 41, 25, 38], 1)], 16).path
    held = set()
    for length, seed in ((1, 0), (8, 5), (24, 9)):
        data = ExperienceData(path, SequenceConfig(length=length, batch_size=4, batches_per_epoch=9, seed=seed, validation=0.1))
        data.prepare_data()
        data.setup()
        held.add(frozenset(int(e) for batch in data.val_dataloader() for e in batch.episode.flatten()))
        assert not {int(e) for batch in data.train_dataloader() for e in batch.episode.flatten()} & set().union(*held)
    assert len(held) == 1 and len(*held) == 1
    data = ExperienceData(path, SequenceConfig(length=41, batch_size=2, validation=0.1))
    data.setup()
    assert data.val_dataloader() == []
    record(tmp_path / "alone", [play([30], 1)], 16)
    alone = ExperienceData(tmp_path / "alone", SequenceConfig(length=8, batch_size=2, validation=0.5))
    alone.prepare_data()
    alone.setup()
    assert alone.val_dataloader() == [] and len(alone.train_dataloader().sequences) == 23


def fingerprints(loader: SequenceLoader | list[Batch]) -> list[tuple[float, ...]]:
    return [tuple(batch.reward.flatten().tolist()) + (float(batch.audio.long().sum()),) for batch in loader]


def test_the_same_batches_from_any_number_of_workers(cache: Cache) -> None:
    sequences, config = Sequences(cache, 10), SequenceConfig(length=10, batch_size=5, batches_per_epoch=7)
    alone = fingerprints(SequenceLoader(sequences, config))
    assert len(alone) == 7
    for workers in (1, 2):
        assert fingerprints(SequenceLoader(sequences, config.change(workers=workers))) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_within_an_epoch(cache: Cache, workers: int) -> None:
    sequences = Sequences(cache, 10)
    config = SequenceConfig(length=10, batch_size=5, batches_per_epoch=6, workers=workers)
    whole = SequenceLoader(sequences, config)
    undisturbed = fingerprints(whole) + fingerprints(whole)
    assert undisturbed[:6] != undisturbed[6:]
    stopped = SequenceLoader(sequences, config)
    seen = fingerprints(list(itertools.islice(stopped, 4)))
    state = stopped.state_dict()
    again = SequenceLoader(sequences, config)
    again.load_state_dict(state)
    assert seen + fingerprints(again) + fingerprints(again) == undisturbed
    for change in ({"seed": 1}, {"batch_size": 4}, {"recent": 0.5}, {"batches_per_epoch": 5}):
        with pytest.raises(UsageError, match="can't go on: .*SequenceConfig"):
            SequenceLoader(sequences, config.change(**change)).load_state_dict(state)
    fetched_otherwise = SequenceLoader(sequences, config.change(workers=1 - workers // 2))
    fetched_otherwise.load_state_dict(state)
    assert fetched_otherwise.position == 4
    with pytest.raises(StoreError, match="can't go on: .* sequences"):
        SequenceLoader(Sequences(cache, 9), config).load_state_dict(state)


def test_processes_that_train_together_share_the_batches(cache: Cache) -> None:
    sequences, config = Sequences(cache, 10), SequenceConfig(length=10, batch_size=5, batches_per_epoch=3)
    both = [fingerprints(SequenceLoader(sequences, config, rank, 2)) for rank in (0, 1)]
    alone = fingerprints(SequenceLoader(sequences, config.change(batches_per_epoch=6)))
    assert [batch for pair in zip(*both, strict=True) for batch in pair] == alone


def test_a_data_module_knows_its_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that train together draw other batches, between them those of one."""

    def drawn(rank: int, world: int, count: int) -> list[tuple[float, ...]]:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: world > 1)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
        data = ExperienceData(store.path, SequenceConfig(length=10, batch_size=5, batches_per_epoch=count))
        data.prepare_data()
        data.setup("fit")
        return fingerprints(data.train_dataloader())

    both = [drawn(rank, 2, 3) for rank in (0, 1)]
    assert [batch for pair in zip(*both, strict=True) for batch in pair] == drawn(0, 1, 6)


# --- whatever arrived first


def interleaved(path: Path, arrival: list[int]) -> Store:
    """Two games side by side, three chunks each, which arrive in this order of streams; then one game more"""
    store = Store.create(path, SCHEMA)
    games = {0: play([30, 18], 1), 1: play([25, 23], 2)}
    with store.writer() as writer:
        waiting = {}
        for stream, rows in games.items():
            builder = ChunkBuilder(SCHEMA, writer.new_stream(), 16, session=writer.session)
            waiting[stream] = [done[1] for row in rows if (done := builder.add(row))]
        for stream in arrival:
            writer.add_chunk(waiting[stream].pop(0))
    return record(path, [play([20], 3)], 16)


@pytest.mark.parametrize("arrival", [[0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("cross", [False, True])
def test_the_order_in_which_chunks_arrive_changes_nothing(tmp_path: Path, arrival: list[int], cross: bool) -> None:
    found = []
    for name, order in (("a", [0, 0, 0, 1, 1, 1]), ("b", arrival)):
        store = interleaved(tmp_path / name, order)
        assert [chunk.stream for chunk in store.chunks][:6] == order
        cache = Cache.build(store)
        sequences = Sequences(cache, 8, cross)
        batch = cache.gather(sequences.spans(np.arange(len(sequences))))
        found.append((cache.segments, cache.table, batch))
    (segments, table, one), (others, other_table, other) = found
    assert np.array_equal(segments, others) and np.array_equal(table, other_table)
    assert np.array_equal(one.image, other.image) and np.array_equal(one.audio, other.audio)
    assert np.array_equal(one.episode, other.episode) and np.array_equal(one.step, other.step)


def test_the_newest_are_those_of_all_games_and_of_the_last_recording(tmp_path: Path) -> None:
    cache = Cache.build(interleaved(tmp_path / "store", [1, 1, 1, 0, 0, 0]))
    sequences = Sequences(cache, 8)
    batch = cache.gather(sequences.spans(np.arange(len(sequences))))
    stream = batch.episode[:, 0] // 1_000_000
    assert (stream[-13:] == 2).all() and (stream[:-13] < 2).all()  # 20 rows: 13 sequences, recorded last
    before = stream[:-13]
    assert set(before[-16:]) == {0, 1} and set(before[:20]) == {0, 1}, "games side by side are equally old"


def test_a_store_that_does_not_tell_its_recordings_is_read_stream_by_stream(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", SCHEMA)
    with store.writer() as writer:
        for seed in (1, 2):
            builder = ChunkBuilder(SCHEMA, writer.new_stream(), 16)
            for row in play([32], seed):
                if done := builder.add(row):
                    writer.add_chunk(done[1])
    cache = Cache.build(store)
    assert cache.segments["order"].tolist() == [0, 0, 1, 1]
    old = cache.segments.copy()
    old["order"] = [0, 2, 1, 3]  # the order of arrival, as caches were made before
    (cache.path / "pieces.bin").write_bytes(old.tobytes())
    assert Cache.build(store).segments["order"].tolist() == [0, 0, 1, 1]


# --- through something that was made from the cache


class Numbers:
    """A batch of the least kind."""

    def __init__(self, reward: torch.Tensor):
        self.reward = reward

    def torch(self) -> "Numbers":
        return self


class Rewards:
    """Of each row of a cache, the reward alone; only the first segments are made yet."""

    def __init__(self, cache: Cache, segments: int | None = None):
        self.path, self.segments, self.reward = cache.path, cache.segments[:segments], np.array(cache.table["reward"])

    def gather(self, places: Sequence[Sequence[tuple[int, int]]]) -> Numbers:
        return Numbers(torch.from_numpy(np.stack([np.concatenate([self.reward[a:b] for a, b in runs]) for runs in places])))


class RewardData(ExperienceData):
    def open(self) -> Rewards:
        return Rewards(self.training_cache())


def test_other_rows_come_in_the_same_sequences(store: Store) -> None:
    config = SequenceConfig(length=8, batch_size=4, batches_per_epoch=5, validation=0.4, validation_batches=2)
    both = [kind(store.path, config) for kind in (ExperienceData, RewardData)]
    for data in both:
        data.prepare_data()
        data.setup()
    for loaders in ([data.train_dataloader() for data in both], [data.val_dataloader() for data in both]):
        whole, part = ([batch.reward.float() for batch in loader] for loader in loaders)
        assert len(whole) and all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))


def test_only_what_is_made_is_drawn(cache: Cache) -> None:
    half = Rewards(cache, len(cache.segments) // 2)
    assert isinstance(half, RowSource) and not isinstance(object(), RowSource)
    sequences = Sequences(half, 8)
    last = int((half.segments["place"] + half.segments["rows"]).max())
    assert 0 < len(sequences) < len(Sequences(cache, 8))
    assert max(end for runs in sequences.spans(np.arange(len(sequences))) for _, end in runs) <= last


# --- with Lightning


class Watcher(L.LightningModule):
    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[float] = []
        self.validated: list[float] = []
        self.fail_at = fail_at

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert isinstance(batch, Batch) and batch.image.dtype == torch.uint8
        if len(self.seen) == self.fail_at:
            raise KeyError("a crash")
        self.seen.append(float(batch.reward.sum()))
        return self.layer(batch.reward.mean().reshape(1)).sum()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated.append(float(batch.reward.sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(folder: Path, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = "callbacks" in options
    return L.Trainer(default_root_dir=folder, accelerator="cpu", devices=1, num_sanity_val_steps=0, **quiet, **options)


def test_lightning_resumes_exactly(tmp_path: Path, store: Store) -> None:
    config = SequenceConfig(length=8, batch_size=4, batches_per_epoch=5, validation=0.4, validation_batches=2)
    whole = Watcher()
    trainer(tmp_path, max_epochs=3).fit(whole, datamodule=ExperienceData(store.path, config))
    assert len(whole.seen) == 15 and len(set(whole.seen)) > 12
    assert whole.validated[:2] == whole.validated[2:4] == whole.validated[4:]

    first = Watcher(fail_at=9)  # two batches into the second epoch a checkpoint is made, two batches later it breaks off
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=7)
    with pytest.raises(KeyError):
        trainer(tmp_path, max_epochs=3, callbacks=[saver]).fit(first, datamodule=ExperienceData(store.path, config))
    second, data = Watcher(), ExperienceData(store.path, config)
    trainer(tmp_path, max_epochs=3).fit(second, datamodule=data, ckpt_path=tmp_path / "stopped.ckpt", weights_only=False)
    assert first.seen[:7] + second.seen == whole.seen


# --- the cache itself


def test_made_once_and_extended(store: Store, cache: Cache) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in cache.path.glob("*.*")}
    assert Cache.build(store).chunks == cache.chunks
    assert {file.name: file.stat().st_mtime_ns for file in cache.path.glob("*.*")} == before
    record(store.path, [play([12], 5)], 16)
    assert len(Cache.build(store.refresh())) == len(cache) + 12


def test_a_build_that_was_interrupted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Cache.build(store, store.path.with_name("whole"))
    read, calls = Store.read_chunk, itertools.count()

    def fail(self, *args, **kwargs):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Store, "read_chunk", fail)
    with pytest.raises(KeyboardInterrupt):
        Cache.build(store)
    monkeypatch.undo()
    cache = Cache.build(store)
    assert (cache.segments == whole.segments).all() and (cache.image == whole.image).all()
    assert (cache.table == whole.table).all() and all((a == b).all() for a, b in zip(cache.sound, whole.sound, strict=True))


def test_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import metabonk.record.cache as module

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module._Files, "append", full)
    with pytest.raises(DiskFull):
        Cache.build(store)
    monkeypatch.undo()
    assert len(Cache.build(store)) == len(store)


def test_wrong_paths_versions_and_stores(tmp_path: Path, store: Store, cache: Cache) -> None:
    with pytest.raises(StoreError, match="not a training cache"):
        Cache(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="empty"):
        Cache.build(Store.create(tmp_path / "empty", SCHEMA))
    other = record(tmp_path / "other", [play([30], 9), play([20], 8)], 16)
    with pytest.raises(StoreError, match="another store"):
        Cache.build(other, cache.path)
    (cache.path / "sound1.bin").write_bytes(b"")
    with pytest.raises(StoreError, match="damaged"):
        Cache(cache.path)
    about = (cache.path / "cache.json").read_text()
    (cache.path / "cache.json").write_text(about.replace('"version": 1', '"version": 7'))
    with pytest.raises(StoreVersion, match="7"):
        Cache(cache.path)


def test_two_builders(store: Store) -> None:
    from metabonk.core.files import folder_lock

    with folder_lock(store.path.with_name("store.cache"), "cache"), pytest.raises(FolderLocked):
        Cache.build(store)


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"recent": 1.5}, {"half_life": 0.0}, {"batch_size": 0}, {"lenght": 3}, {"workers": -1}], ids=str
)
def test_configurations_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(UsageError):
        SequenceConfig.from_dict(wrong)


# Marked rows


def test_marked_rows_are_drawn_as_often_as_was_asked_for(cache: Cache) -> None:
    "Every sequence that holds a marked row may come, the more often the more it holds; without marks nothing changes"
    sequences, plain = Sequences(cache, 4), Sequences(cache, 4)
    every = cache.gather(sequences.spans(np.arange(len(sequences))))
    episode, step = int(every.episode[-1, 0]), int(every.step[-1, -1])  # the last row there is
    marks = np.array([[episode, step], [int(every.episode[0, 0]), int(every.step[0, 1])], [10**9, 0]])
    held = sum(((every.episode == e) & (every.step == s)).sum(1) for e, s in marks)
    assert 0 < held.sum() < len(held)
    np.testing.assert_array_equal(np.diff(sequences.mark(marks).chances, prepend=0), held)
    config = SequenceConfig(length=4, batch_size=4_000, marked=0.3, seed=5)
    drawn, usual = draw(len(sequences), config, 1, sequences.chances), draw(len(plain), config, 1)
    chosen = drawn != usual
    assert 0.2 < chosen.mean() <= 0.33 and (held[drawn[chosen]] > 0).all()
    shares = np.bincount(drawn[chosen], minlength=len(held))[held > 0] / chosen.sum()
    np.testing.assert_allclose(shares, held[held > 0] / held.sum(), atol=0.05)
    assert (draw(len(plain), config.change(marked=0.0), 1, sequences.chances) == usual).all()
    nothing = plain.mark(np.zeros((0, 2), np.int64))
    assert (draw(len(plain), config, 1, nothing.chances) == usual).all()


def test_marks_come_from_a_file_that_may_not_be_there_yet(store: Store, tmp_path: Path) -> None:
    config = SequenceConfig(length=4, batch_size=64, marked=1.0)
    rows = []
    for written in (False, True):
        data = ExperienceData(store.path, config, marks=tmp_path / "marks.csv")
        data.prepare_data()
        data.setup()
        batch = next(iter(data.train_dataloader()))
        rows.append(((batch.episode == store.episodes[0].number) & (batch.step == 3)).any(1).float().mean())
        if not written:
            (tmp_path / "marks.csv").write_text(f"episode,step,round\n{store.episodes[0].number},3,1\n")
    assert rows[0] < 0.5 and rows[1] == 1


def test_recent_and_marked_share_a_batch() -> None:
    with pytest.raises(UsageError, match="too much"):
        SequenceConfig(recent=0.7, marked=0.5)


@pytest.mark.parametrize("content", [b"episode,step\nx,3\n", b"episode,step\n\xff\xfe\x00", b"episode,step\n1\n"])
def test_a_damaged_file_of_marks_is_told(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "marks.csv").write_bytes(content)
    data = ExperienceData(store.path, SequenceConfig(length=4, marked=0.5), marks=tmp_path / "marks.csv")
    data.prepare_data()
    with pytest.raises(StoreError, match="no list of rows"):
        data.setup()


# ---- in plain PyTorch


def test_every_row_and_its_sound_come_out_of_a_plain_data_set(store: Store) -> None:
    rows = metabonk.load(store.path)
    assert len(rows) == len(store)
    seen = {(int(row["episode"]), int(row["step"])): row for row in rows}
    longest = 0
    for episode in store.episodes:
        steps = store.read(episode)
        for t, step in enumerate(steps):
            row, width = seen.pop((episode.number, t)), step.audio.shape[1]
            longest = max(longest, width)
            assert np.array_equal(row["audio"][:, :width], step.audio) and not row["audio"][:, width:].any()
            assert int(row["audio_length"]) == width and row["audio"].dtype == torch.int16
            assert np.array_equal(row["image"], step.image) and int(row["action"]) == int(step.action)
            assert row["reward"].item() == np.float32(step.reward) and bool(row["first"]) == step.first
            assert int(row["probes"]["x"]) == step.probes["x"]
    assert not seen and {row["audio"].shape[1] for row in rows} == {longest}


def test_sequences_of_a_plain_data_set_are_all_there_are_and_can_be_batched_in_processes(store: Store) -> None:
    data = metabonk.load(store.path, length=4)
    assert len(data) == sum(max(episode.rows - 3, 0) for episode in store.episodes)
    batches = list(torch.utils.data.DataLoader(data, batch_size=5, num_workers=1))
    assert sum(len(batch["reward"]) for batch in batches) == len(data)
    for batch in batches:
        assert batch["audio"].shape[1:] == (4, 2, data.width) and batch["probes"]["alive"].shape[1:] == (4,)
        assert (batch["step"].diff(dim=1) == 1).all() and (batch["episode"].diff(dim=1) == 0).all()
    assert torch.equal(data[-1]["step"], batches[-1]["step"][-1])
    with pytest.raises(IndexError):
        data[len(data)]
    with pytest.raises(StoreError, match="no 999 rows follow one another"):
        metabonk.load(store.path, length=999)


def test_the_top_level_stays_light() -> None:
    code = "import sys, metabonk; metabonk.load; print(sorted({'torch', 'numpy', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
