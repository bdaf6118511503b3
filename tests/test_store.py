"""The store under the faults that disks, people and `kill -9` bring about"""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import (
    DamagedChunk,
    DiskFull,
    FolderError,
    FolderLocked,
    MetaBonkError,
    StoreError,
    StoreVersion,
    UsageError,
)
from metabonk.core.files import temporary
from metabonk.record.card import dataset_card
from metabonk.record.chunks import (
    Chunk,
    ChunkBuilder,
    about_store,
    arrow_schema,
    describe_chunk,
    episode_number,
    from_arrow,
    seal_json,
    to_arrow,
    unseal_json,
)
from metabonk.record.experience import Schema, Step, Steps, kind_of, to_step
from metabonk.record.store import Store

SCHEMA = Schema(
    game="test",
    image_shape=(8, 6, 3),
    channels=2,
    sample_rate=1000,
    clock_rate=60.0,
    actions=ActionSpec(categorical=(5,)),
    probes={"x": "int64", "alive": "bool", "heat": "float64"},
    terms={"game": "float64"},
)


def play(episodes: int, steps: int, seed: int = 0, schema: Schema = SCHEMA, end: bool = True) -> Iterator[Step]:
    """Rows of noise, which no codec can shrink and nobody can confuse"""
    rng = np.random.default_rng(seed)
    for _ in range(episodes):
        sample = 0
        for t in range(steps + 1):
            image = rng.integers(0, 256, schema.image_shape, np.uint8)
            audio = rng.integers(
                -(2**15), 2**15, (schema.channels, int(rng.integers(0, 9)) if schema.channels else 0), np.int16
            )
            sample += audio.shape[1]
            action = np.zeros(schema.action_shape, schema.action_dtype)
            if t:
                action = np.asarray(rng.integers(0, 5, schema.action_shape)).astype(schema.action_dtype)
            probes = {"x": int(rng.integers(-(2**62), 2**62)), "alive": bool(t % 2), "heat": float(rng.normal())}
            terms = {"game": float(rng.normal()) if t else 0.0}
            done = end and t == steps
            yield Step(image, audio, action, sum(terms.values()), done, False, t == 0, 4 * t, sample, probes, terms)


def same(read: Steps, written: list[Step], schema: Schema = SCHEMA) -> bool:
    other = Steps.stack(schema, written)
    pairs = [(getattr(read, name), getattr(other, name)) for name in vars(other) if name not in ("probes", "terms", "vector")]
    pairs += [
        (getattr(read, group)[n], getattr(other, group)[n])
        for group in ("probes", "terms")
        for n in getattr(other, group)
    ]
    return all(a.dtype == b.dtype and a.shape == b.shape and (a == b).all() for a, b in pairs)


def record(path: Path, rows: list[Step], chunk_steps: int = 10, schema: Schema = SCHEMA, **options) -> Store:
    store = Store.create(path, schema, exist_ok=True)
    with store.writer(chunk_steps, **options) as writer:
        for row in rows:
            writer.add(row, about={"seed": 7})
    return store


@pytest.fixture
def rows() -> list[Step]:
    return list(play(3, 19))


@pytest.fixture
def store(tmp_path: Path, rows: list[Step]) -> Store:
    return record(tmp_path / "store", rows)


# --- values and types


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"channels": 1},
        {"channels": 0},
        {"image_shape": (5, 9, 1)},
        {"actions": ActionSpec(continuous=3), "action_dtype": "float32", "action_shape": (3,)},
        {"actions": ActionSpec(binary=4), "action_dtype": "int8", "action_shape": (2, 2)},
    ],
    ids=str,
)
def test_every_value_and_type_survives(tmp_path: Path, codec: str, change: dict) -> None:
    schema = SCHEMA.change(**change)
    rows = list(play(3, 19, schema=schema))
    store = record(tmp_path / "store", rows, chunk_steps=17, schema=schema, codec=codec)
    assert [chunk.rows for chunk in store.chunks] == [17, 17, 17, 9]
    for number, episode in enumerate(Store.open(store.path).episodes):
        written = rows[20 * number : 20 * number + 20]
        assert same(store.read(episode), written, schema)
        assert same(store.read(episode, 3, 18), written[3:18], schema)
        assert episode.end == "terminated" and episode.about == {"seed": 7}
        assert episode.reward == pytest.approx(sum(row.reward for row in written))


def test_reading_a_part_agrees_with_slicing_the_whole(store: Store, rows: list[Step]) -> None:
    whole = store.read(1_000_000 * 0 + 1)
    for start, stop in [(0, 20), (0, 0), (5, 5), (19, 20), (-3, None), (4, 100), (30, 40)]:
        part, sliced = store.read(1, start, stop), whole[start:stop]
        assert isinstance(sliced, Steps)
        assert (part.image == sliced.image).all() and (part.audio == sliced.audio).all()
        assert len(part) == len(rows[20:40][start:stop])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6), chunk=st.integers(1, 40), cut=st.booleans())
def test_any_episodes_in_any_chunks(tmp_path: Path, lengths: list[int], chunk: int, cut: bool) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    episodes = [list(play(1, length, seed=length, end=not cut)) for length in lengths]
    store = record(folder, [row for episode in episodes for row in episode], chunk)
    assert len(store) == sum(map(len, episodes)) and len(store.episodes) == len(episodes)
    assert all(same(store.read(found), rows) for found, rows in zip(store.episodes, episodes, strict=True))
    assert not store.verify()


def test_a_batch_longer_than_one_record_batch(tmp_path: Path) -> None:
    rows = list(play(1, 599))
    store = record(tmp_path / "store", rows, chunk_steps=1000)
    assert len(store.chunks) == 1 and len(store.chunks[0].crc) == 2
    assert same(store.read(0), rows) and same(store.read(0, 500, 520), rows[500:520])


def test_streams_are_kept_apart(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", SCHEMA)
    games = [list(play(2, 14, seed=seed)) for seed in range(3)]
    with store.writer(chunk_steps=8) as writer:
        for side_by_side in zip(*games, strict=True):
            for stream, row in enumerate(side_by_side):
                writer.add(row, stream)
    for episode in store.episodes:
        start = 15 * (episode.number % 1_000_000)
        assert same(store.read(episode), games[episode.stream][start : start + 15])


def test_a_chunk_made_elsewhere(tmp_path: Path, rows: list[Step]) -> None:
    store = Store.create(tmp_path / "store", SCHEMA)
    with store.writer() as writer:
        builder = ChunkBuilder(SCHEMA, writer.new_stream(), chunk_steps=25)
        for row in rows:
            if done := builder.add(row):
                writer.add_chunk(done[1])
        if done := builder.finish():
            writer.add_chunk(done[1])
        foreign = ChunkBuilder(SCHEMA.change(channels=1), 9)
        for row in play(1, 2, schema=SCHEMA.change(channels=1)):
            foreign.add(row)
        other = foreign.finish()
        assert other is not None
        with pytest.raises(StoreError, match="columns"):
            writer.add_chunk(other[1])
        with pytest.raises(DamagedChunk):
            writer.add_chunk(other[1][:-40])
    assert [episode.rows for episode in store.episodes] == [20, 20, 20]
    assert same(store.read(2), rows[40:])


def test_what_is_told_about_an_episode(tmp_path: Path, rows: list[Step]) -> None:
    store = Store.create(tmp_path / "store", SCHEMA)
    with store.writer() as writer:
        writer.add(rows[0], about={"seed": np.int64(3), "settings": {"speed": np.array([1, 2])}, "policy": "random"})
        with pytest.raises(StoreError, match="object"):
            writer.add(rows[0], about={"seed": object()})
    assert store.episodes[0].about == {"seed": 3, "settings": {"speed": [1, 2]}, "policy": "random"}


def test_a_chunk_never_takes_the_place_of_another(store: Store, rows: list[Step]) -> None:
    builder = ChunkBuilder(SCHEMA, 0)
    for row in rows[:5]:
        builder.add(row)
    done = builder.finish()
    assert done is not None
    with store.writer() as writer, pytest.raises(StoreError, match="already"):
        writer.add_chunk(done[1])
    assert not store.verify() and same(store.read(0), rows[:20])


def test_chunks_with_other_batches(tmp_path: Path, rows: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metabonk.record.chunks._batch_steps", 7)
    builder = ChunkBuilder(SCHEMA, 0, chunk_steps=60)
    (done,) = [found for row in rows if (found := builder.add(row))]
    monkeypatch.undo()
    store = Store.create(tmp_path / "store", SCHEMA)
    with store.writer() as writer:
        writer.add_chunk(done[1])
    assert len(done[0].crc) == 9 and same(store.read(1, 3, 18), rows[23:38])


def test_what_does_not_fit_is_refused(tmp_path: Path, rows: list[Step]) -> None:
    observation = {"image": rows[0].image, "audio": rows[0].audio}
    info = {"clock": {"ticks": 0, "samples": 0}, "probes": rows[0].probes, "terms": rows[0].terms}
    to_step(SCHEMA, observation, info)
    for broken in (
        {"image": rows[0].image[:4]},
        {"image": rows[0].image.astype(np.int64)},
        {"audio": rows[0].audio[:1]},
        {"audio": rows[0].audio.astype(np.float32)},
    ):
        with pytest.raises(StoreError):
            to_step(SCHEMA, observation | broken, info)
    with pytest.raises(StoreError, match="heat"):
        to_step(SCHEMA, observation, info | {"probes": {"x": 1, "alive": True}})
    with pytest.raises(StoreError, match="action"):
        to_step(SCHEMA, observation, info, action=[1, 2])
    with pytest.raises(UsageError):
        kind_of("many")
    store = Store.create(tmp_path / "store", SCHEMA)
    with store.writer() as writer, pytest.raises(StoreError, match="without being the first"):
        writer.add(rows[1])
    with pytest.raises(UsageError, match="zstd"), store.writer(codec="zst") as writer:
        writer.add(rows[0])


# --- `datasets`, and any address


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_datasets_opens_the_folder_as_it_is(tmp_path: Path, rows: list[Step], codec: str) -> None:
    from datasets import load_dataset

    store = record(tmp_path / "store", rows, codec=codec)
    (store.path / "data" / "film.mp4.part").write_bytes(b"another program's")
    table = load_dataset(str(store.path), split="train", cache_dir=str(tmp_path / "hf"))
    assert same(from_arrow(SCHEMA, table.with_format("arrow")[:]), rows)
    assert same(from_arrow(SCHEMA, table.with_format("arrow")[13:27]), rows[13:27])
    streamed = list(load_dataset(str(store.path), split="train", streaming=True))
    assert [row["sample"] for row in streamed] == [row.sample for row in rows]
    assert (np.array(streamed[21]["audio"], np.int16).reshape(2, -1) == rows[21].audio).all()
    assert (np.array(streamed[21]["image"], np.uint8) == rows[21].image.transpose(2, 0, 1)).all()


def test_the_folder_is_loaded_as_it_is_now(tmp_path: Path) -> None:
    """Three recordings into one store, another store of the same name, and a row less: each is loaded as it lies there."""
    from datasets import load_dataset

    def loaded(path: Path) -> list[int]:
        return load_dataset(str(path), split="train", cache_dir=str(tmp_path / "hf"))["sample"][:]

    written: list[Step] = []
    for seed in range(3):
        more = list(play(2, 19, seed))
        written += more
        store = record(tmp_path / "a" / "store", more)
        assert loaded(store.path) == [row.sample for row in written]
    others = list(play(2, 19, seed=7))
    other = record(tmp_path / "b" / "store", others)
    assert loaded(other.path) == [row.sample for row in others]
    assert loaded(store.path) == [row.sample for row in written]
    flip(store.path / store.chunks[0].file, 3000)
    store.set_aside()
    assert loaded(store.path) == [row.sample for row in written[10:]]


def test_an_empty_store_is_not_loaded_as_something_else(tmp_path: Path) -> None:
    from datasets import load_dataset

    store = record(tmp_path / "store", list(play(1, 5)))
    load_dataset(str(store.path), split="train", cache_dir=str(tmp_path / "hf"))
    (store.path / store.chunks[0].file).write_bytes(b"")
    store.set_aside()
    with pytest.raises(FileNotFoundError, match="no-rows-yet"):
        load_dataset(str(store.path), split="train", cache_dir=str(tmp_path / "hf"))


def test_the_card_may_be_lost_damaged_or_edited(store: Store, rows: list[Step]) -> None:
    path = store.path / "README.md"
    card = path.read_bytes()
    path.unlink()
    assert not store.refresh().verify() and same(store.read(0), rows[:20])
    edited = card.replace(b"# Recordings", b"# My dear recordings")
    for content in (b"", edited, card[:200], card[:-3], b"\xff\x00"):
        path.write_bytes(content)
        with store.writer():
            pass
        assert path.read_bytes() == card
    kept = {file.read_bytes() for file in store.path.glob("README-*.md")}
    assert kept == {edited, card[:200], card[:-3], b"\xff\x00"}


def test_any_fsspec_address(tmp_path: Path, store: Store, rows: list[Step]) -> None:
    from datasets import load_dataset

    memory = fsspec.filesystem("memory")
    memory.put(str(store.path), "/a_store", recursive=True)
    shutil.make_archive(str(tmp_path / "packed"), "zip", store.path)
    for address in (
        "memory://a_store/data/*.arrow",
        f"file://{store.path}/data/*.arrow",
        f"zip://data/*.arrow::{tmp_path}/packed.zip",
    ):
        for streaming in (True, False):
            table = load_dataset(
                "arrow", data_files=address, split="train", streaming=streaming, cache_dir=str(tmp_path / "hf")
            )
            assert [row["tick"] for row in table.select_columns("tick")] == [row.tick for row in rows], address
    memory.rm("/a_store", recursive=True)


# --- damage


def flip(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 16
    path.write_bytes(content)


def readable(store: Store) -> list[bool]:
    result = []
    for chunk in store.chunks:
        try:
            store.read_chunk(chunk)
            result.append(True)
        except DamagedChunk as error:
            assert chunk.file in str(error)
            result.append(False)
    return result


@pytest.mark.parametrize("fault", ["cut short", "empty", "missing", "flipped"])
def test_a_damaged_chunk_is_named_and_the_rest_is_read(tmp_path: Path, rows: list[Step], fault: str) -> None:
    store = record(tmp_path / "store", rows, chunk_steps=20)
    chunk = store.chunks[1]
    path = store.path / chunk.file
    if fault == "missing":
        path.unlink()
    elif fault == "flipped":
        flip(path, (chunk.edges[0] + chunk.edges[1]) // 2)
    else:
        path.write_bytes(path.read_bytes()[: 2000 if fault == "cut short" else 0])
    again = Store.open(store.path)
    (error,) = again.verify()
    assert chunk.file in str(error)
    assert readable(again) == [True, False, True]
    assert same(again.read(0), rows[:20]) and same(again.read(2), rows[40:])
    with pytest.raises(DamagedChunk, match="000020"):
        again.read(1)
    again.set_aside()
    assert not again.verify() and len(again) == 40 and len(again.episodes) == 2
    with again.writer() as writer:
        for row in rows[:20]:
            writer.add(row)
    assert len(Store.open(store.path)) == 60 and same(again.read(again.episodes[-1]), rows[:20])


def test_every_single_flipped_bit_is_found(store: Store) -> None:
    path = store.path / store.chunks[2].file
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(60):
        flip(path, rng.randrange(len(whole)))
        assert [store.chunks[2].file in str(error) for error in store.verify()] == [True]
        path.write_bytes(whole)
    assert not store.verify()


def test_a_chunk_put_back_counts_again(store: Store, rows: list[Step]) -> None:
    path = store.path / store.chunks[0].file
    whole = path.read_bytes()
    flip(path, 3000)
    (moved,) = store.set_aside()
    assert not path.exists() and len(store) == 50
    moved.unlink()
    path.write_bytes(whole)
    assert len(store.refresh()) == 60 and same(store.read(0), rows[:20])


def test_a_file_that_is_no_chunk_is_named(store: Store) -> None:
    (store.path / "data" / "000077-000000000.arrow").write_bytes(b"ARROW1 this is no chunk")
    (error,) = store.refresh().verify()
    assert "000077" in str(error) and len(store) == 60
    store.set_aside()
    assert not store.verify()


@pytest.mark.parametrize("keep", [0, 1, 2.5, 3, 6])
def test_a_manifest_that_is_torn_or_gone(store: Store, rows: list[Step], keep: float) -> None:
    path = store.path / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    torn = b"".join(lines[: int(keep)]) + (lines[int(keep)][:99] if keep % 1 else b"")
    path.write_bytes(torn)
    again = Store.open(store.path)
    assert len(again) == 60 and not again.verify()
    assert all(same(again.read(number), rows[20 * number : 20 * number + 20]) for number in range(3))
    assert path.read_bytes() == torn  # readers write nothing
    with again.writer() as writer:
        writer.add(rows[0])
    assert len(Store.open(store.path)) == 61
    assert len(path.read_bytes().splitlines()) == 7 and path.read_bytes().endswith(b"\n")


def test_a_damaged_line_of_the_manifest_is_named_and_nothing_lost(store: Store, rows: list[Step]) -> None:
    path = store.path / "manifest.jsonl"
    flip(path, path.read_bytes().index(b'"rows"') + 8)
    again = Store.open(store.path)
    assert ["line 1" in str(error) for error in again.verify()] == [True]
    assert len(again) == 60 and same(again.read(0), rows[:20])


def bits(content: bytes, count: int) -> list[bytes]:
    """Copies with a single flipped bit, spread over the whole content."""
    rng = random.Random(0)
    copies = []
    for where in range(0, len(content), max(1, len(content) // count)):
        copy = bytearray(content)
        copy[where] ^= 1 << rng.randrange(8)
        copies.append(bytes(copy))
    return copies


def opened(path: Path) -> dict | None:
    """The schema that is told, or `None` for one clear error."""
    try:
        return Store.open(path).schema.to_dict()
    except MetaBonkError as error:
        assert str(path) in str(error)
        return None


def test_no_flip_opens_with_another_schema(store: Store) -> None:
    schema, told = SCHEMA.to_dict(), (store.path / "store.json").read_bytes()
    for copy in bits(told, 400):
        (store.path / "store.json").write_bytes(copy)
        assert opened(store.path) == schema
    assert any("store.json is damaged" in str(error) for error in Store.open(store.path).verify())
    (store.path / "store.json.copy").write_bytes(told[:40])
    for copy in bits(told, 100):
        (store.path / "store.json").write_bytes(copy)
        assert opened(store.path) == schema  # from the chunks
    shutil.rmtree(store.path / "data")
    for copy in bits(told, 400):
        (store.path / "store.json").write_bytes(copy)
        assert opened(store.path) in (schema, None)
    (store.path / "store.json").unlink()
    assert opened(store.path) is None


def test_a_lost_schema_is_told_by_the_chunks(store: Store, rows: list[Step]) -> None:
    for name in ("store.json", "store.json.copy", "README.md", "manifest.jsonl"):
        (store.path / name).unlink()
    flip(store.path / store.chunks[0].file, store.chunks[0].bytes - 3)  # the next one tells it
    again = Store.create(store.path, SCHEMA, exist_ok=True)
    assert again.schema == SCHEMA and same(again.read(1), rows[20:40])
    with again.writer() as writer:
        writer.add(rows[0])
    (problem,) = again.verify()
    assert again.chunks[0].file not in str(problem) and "000000-000000000" in str(problem)
    files = ["README.md", "data", "manifest.jsonl", "store.json", "store.json.copy"]
    assert sorted(name for name in os.listdir(store.path) if name[0] != ".") == files


def test_no_flip_makes_a_chunk_describe_something_else(rows: list[Step]) -> None:
    builder = ChunkBuilder(SCHEMA, 3, chunk_steps=20)
    (_, (chunk, content), _) = [found for row in rows if (found := builder.add(row, {"seed": 1}))]
    found = 0
    for copy in bits(content[chunk.edges[-1] :], 1500):
        try:
            other = describe_chunk(content[: chunk.edges[-1]] + copy)
        except DamagedChunk:
            found += 1
        else:
            assert dataclasses.replace(other, sha256=chunk.sha256) == chunk
    assert found > 500


def test_stores_of_format_1_still_open(tmp_path: Path, rows: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk without checksum and schema, a store without copy: read, appended to, and then as safe as a new one."""
    with monkeypatch.context() as old:
        old.setattr("metabonk.record.chunks.seal_json", lambda values, indent=None: json.dumps(values))
        builder = ChunkBuilder(SCHEMA, 0, chunk_steps=60)
        (done,) = [found for row in rows if (found := builder.add(row, {"seed": 7}))]
    path = tmp_path / "store"
    (path / "data").mkdir(parents=True)
    (path / done[0].file).write_bytes(done[1])
    (path / "store.json").write_text(json.dumps(about_store(SCHEMA) | {"version": 1}))
    (path / "README.md").write_text("---\nconfigs: []\n---\nold")
    store = Store.open(path)
    assert not store.verify() and same(store.read(2), rows[40:])
    record(path, rows[:20])
    (path / "store.json").unlink()
    store = Store.open(path)
    assert len(store) == 80 and same(store.read(2), rows[40:]) and same(store.read(store.episodes[-1]), rows[:20])


# --- what is not ours


def test_a_folder_of_others_is_refused_and_untouched(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("README.md", "data/film.mp4.part", "manifest.json", "store.json", "data/train.arrow")
    ):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(FolderError, match="holds other things"):
            Store.create(tmp_path / str(number), SCHEMA, exist_ok=True)
        assert path.read_text() == "mine" and [
            file for file in (tmp_path / str(number)).rglob("*") if file.is_file()
        ] == [path]
    with pytest.raises(FolderError, match="no path"):
        Store.create("", SCHEMA)


def test_only_names_of_our_own_are_deleted(store: Store, rows: list[Step]) -> None:
    others = [
        store.path / name
        for name in ("data/film.mp4.part", "data/x.arrow.part", "notes.part", ".metabonk-1.part", "data/.lock")
    ]
    for path in others:
        path.write_text("mine")
    ours = [temporary(store.path / "data"), temporary(store.path)]
    for path in ours:
        path.write_text("half")
    record(store.path, rows[:5])
    assert all(path.read_text() == "mine" for path in others) and not any(path.exists() for path in ours)


def test_what_was_put_aside_before_stays(store: Store) -> None:
    path = store.path / store.chunks[0].file
    whole = path.read_bytes()
    for where in (3000, 4000):
        path.write_bytes(whole)
        flip(path, where)
        store.refresh().set_aside()
    assert len(list((store.path / "damaged").iterdir())) == 2


# --- names

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60)
ODD = [
    "[exp 1] bonk",
    "Kirby: Dream Land.gb",
    'it\'s "so" *?',
    "a\nb\r\tc",
    "日本 ゼルダ",
    "- x: {y}",
    "#!&*|>%@`",
    " ",
    "{a,b}",
    "~",
    "null",
    "\u2028",
]


def with_odd(test):
    for name in ODD:
        test = example(name)(test)
    return test


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
@with_odd
def test_any_name_of_a_game_and_its_probes(name: str) -> None:
    """The card is YAML that says the name, and its table has one line a column."""
    schema, plain = SCHEMA.change(game=name, probes={name: "int64"}), SCHEMA.change(probes={"x": "int64"})
    card = dataset_card(schema, {}).decode()
    head, text = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["pretty_name"] == f"{name} with sound"
    table = [line for line in text.split("\n") if line.startswith("| `")]
    assert len(table) == len(arrow_schema(schema)) and len(text.split("\n")) == len(
        dataset_card(plain, {}).decode().split("\n---\n", 1)[1].split("\n")
    )
    assert all(len(re.split(r"(?<!\\)\|", line)) == 4 for line in table)


def test_the_card_names_the_actions() -> None:
    """What the numbers of `action` mean."""
    names = SCHEMA.change(actions=ActionSpec(categorical=(3,)), action_names=("noop", "up|a", "fire"))
    assert "\n`action` is a choice of 3: 0 `noop`, 1 `up\\|a`, 2 `fire`.\n" in dataset_card(names, {}).decode()
    controls = SCHEMA.change(actions=ActionSpec(continuous=2), action_shape=(2,), action_dtype="float32", action_names=())
    assert "\n`action` is 2 controls.\n" in dataset_card(controls, {}).decode()


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """File names may hold bytes that are no UTF-8; Python keeps them as surrogates."""
    schema = SCHEMA.change(game=os.fsdecode(b"caf\xe9.gb"))
    store = record(tmp_path / os.fsdecode(b"caf\xe9"), list(play(1, 3)), schema=schema)
    assert Store.open(store.path).schema == schema and not store.verify()
    head = (store.path / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head)["pretty_name"] == f"{schema.game} with sound"


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
@with_odd
def test_any_name_of_a_folder(tmp_path: Path, name: str) -> None:
    """Stores open again, are appended to and checked, whatever their folders are called; impossible names are one error."""
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    folder, rows = tmp_path / "any" / name / f"{name}", list(play(1, 3))
    schema = SCHEMA.change(game=name)
    try:
        record(folder, rows, schema=schema)
    except FolderError:
        assert len(name.encode()) > 255 or name in (".", "..")
        return
    store = record(folder, rows, schema=schema)
    assert same(Store.open(folder).read(0), rows, schema) and len(store) == 8 and not store.verify()
    flip(store.path / store.chunks[0].file, 3000)
    store.set_aside()
    assert len(Store.open(folder)) == 4


def test_names_that_no_disk_takes(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / ("x" * 300), loop, loop / "store", f"{tmp_path}/a\0b"):
        with pytest.raises(FolderError):
            Store.create(path, SCHEMA)
        with pytest.raises(FolderError):
            Store.open(path)
        assert not Store.exists(path)


def test_links_in_a_store(tmp_path: Path, rows: list[Step]) -> None:
    """The folder, its data, a chunk, and what lies beside them may live elsewhere; links stay links."""
    far = tmp_path / "far"
    far.mkdir()
    (tmp_path / "link").symlink_to(far)
    store = record(tmp_path / "link", rows[:20])
    (far / "data").rename(tmp_path / "disk")
    (far / "data").symlink_to(tmp_path / "disk")
    chunk = far / store.chunks[0].file
    chunk.resolve().rename(tmp_path / "annex")
    chunk.symlink_to(tmp_path / "annex")
    for name in ("store.json", "README.md"):
        (far / name).rename(tmp_path / name)
        (far / name).symlink_to(tmp_path / name)
    (tmp_path / "store.json").write_text("damaged")
    store = record(tmp_path / "link", rows[20:])
    assert same(store.read(0), rows[:20]) and same(store.read(store.episodes[-1]), rows[40:]) and not store.verify()
    assert all(path.is_symlink() for path in (far / "data", chunk, far / "store.json", far / "README.md"))
    assert "metabonk store" in (tmp_path / "store.json").read_text()


# --- versions, folders, writers


def test_other_versions_and_other_folders(tmp_path: Path, store: Store) -> None:
    about = unseal_json((store.path / "store.json").read_bytes())
    (store.path / "store.json").write_text(seal_json(about | {"version": 99}))
    with pytest.raises(StoreVersion, match="99"):
        Store.open(store.path)
    with pytest.raises(StoreError, match="not a store"):
        Store.open(tmp_path)
    with pytest.raises(FolderError, match="no folder"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FolderError):
        Store.create(tmp_path / "file", SCHEMA)


def test_another_schema_is_told_field_by_field(store: Store) -> None:
    with pytest.raises(StoreError, match="already"):
        Store.create(store.path, SCHEMA)
    assert len(Store.create(store.path, SCHEMA.change(code_version="99"), exist_ok=True)) == 60
    with pytest.raises(StoreError, match=r"sample_rate is 1000, not 8000") as told:
        Store.create(store.path, SCHEMA.change(sample_rate=8000), exist_ok=True)
    assert "channels" not in str(told.value)


def test_two_writers(store: Store) -> None:
    code = "import sys; from metabonk.record.store import Store; Store.open(sys.argv[1]).writer().__enter__()"
    with store.writer(), pytest.raises(FolderLocked), store.writer():
        pass
    with store.writer():
        result = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True)
    assert result.returncode and "FolderLocked" in result.stderr


def test_reading_while_another_writes(store: Store, rows: list[Step]) -> None:
    reader = Store.open(store.path)
    with store.writer(chunk_steps=10) as writer:
        for row in rows[:20]:
            writer.add(row)
        assert len(reader) == 60 and len(reader.refresh()) == 80
        assert same(reader.read(reader.episodes[-1]), rows[:20])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"NOT TESTED: a real full disk needs the right to mount one ({made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    rows = list(play(40, 19))
    store = Store.create(small_disk / "store", SCHEMA)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 100_000)
    with store.writer(chunk_steps=50) as writer:
        with pytest.raises(DiskFull, match="no space left"):
            for added, row in enumerate(rows):  # noqa: B007
                writer.add(row)
        there = Store.open(store.path)
        assert 0 < len(there) <= added and not there.verify()
        assert same(there.read(0), rows[:20])
        filler.unlink()
        writer.flush()  # what could not be written is still in memory
        for row in rows[added + 1 : added + 100]:
            writer.add(row)
    again = Store.open(store.path)
    assert len(again) == added + 100 and not again.verify()
    written = [row for episode in again.episodes for row in again.read(episode)]
    assert same(Steps.stack(SCHEMA, written), rows[: len(written)])
    assert not list((again.path / "data").glob(".*"))


def test_a_folder_that_cannot_be_written(tmp_path: Path, store: Store) -> None:
    bound = subprocess.run(["mount", "--bind", str(store.path), str(store.path)], capture_output=True, text=True)
    if bound.returncode:
        pytest.skip(f"NOT TESTED: a read-only folder needs the right to mount one ({bound.stderr.strip()})")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(store.path)], check=True)
        reader = Store.open(store.path)
        assert len(reader) == 60 and not reader.verify()
        with pytest.raises(FolderError, match="can't write"), reader.writer():
            pass
    finally:
        subprocess.run(["umount", "-l", str(store.path)], check=True)


# --- kill -9

WRITE_FOR_EVER = """
import sys, itertools
sys.path.insert(0, sys.argv[2])
from test_store import SCHEMA, play
from metabonk.record.store import Store
with Store.open(sys.argv[1]).writer(chunk_steps=8) as writer:
    for seed in itertools.count():
        for row in play(1, 12, seed):
            writer.add(row, about={"seed": seed})
        if seed == 0:
            print("ready", flush=True)
"""


def test_kill_at_any_moment(tmp_path: Path) -> None:
    from datasets import load_dataset

    store = Store.create(tmp_path / "store", SCHEMA)
    rng, written = random.Random(1), 0
    for attempt in range(6):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(store.path), str(Path(__file__).parent)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.05, 0.4))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        reader = Store.open(store.path)
        assert not reader.verify(), f"attempt {attempt}"
        assert len(reader) > written and len(reader) % 8 == 0
        written = len(reader)
    for episode in reader.episodes:
        rows = list(play(1, 12, episode.about["seed"]))
        assert same(reader.read(episode), rows[: episode.rows]), episode
    complete = [episode for episode in reader.episodes if episode.end]
    assert len(reader.episodes) - len(complete) <= 6  # at most the last one of each
    ticks = [row.tick for episode in reader.episodes for row in reader.read(episode)]
    table = load_dataset(str(store.path), split="train", cache_dir=str(tmp_path / "hf"))
    assert (
        ticks[: len(table)] == table["tick"][:] and len(table) >= 0.88 * written - 16
    )  # the card is written now and then
    with reader.writer():
        pass
    table = load_dataset(str(store.path), split="train", cache_dir=str(tmp_path / "hf"))
    assert table["tick"][:] == ticks


@pytest.mark.parametrize("moment", ["before the rename", "before the manifest", "within the manifest"])
def test_kill_at_the_worst_moments(tmp_path: Path, rows: list[Step], moment: str) -> None:
    store = record(tmp_path / "store", rows[:40], chunk_steps=20)
    path, manifest = store.path / store.chunks[1].file, store.path / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0] + (lines[1][:60] if moment == "within the manifest" else b""))
    if moment == "before the rename":
        part = temporary(path.parent)
        path.rename(part)
        part.write_bytes(part.read_bytes()[:999])
    reader = Store.open(store.path)
    assert len(reader) == (20 if moment == "before the rename" else 40) and not reader.verify()
    with reader.writer() as writer:
        for row in rows[40:]:
            writer.add(row)
    assert not list((store.path / "data").glob("*.part")) and not list((store.path / "data").glob(".*"))
    assert len({chunk.file for chunk in reader.chunks}) == len(reader.chunks)
    assert same(reader.read(reader.episodes[-1]), rows[40:]) and not Store.open(store.path).verify()


# --- small things that others rely on


def test_numbers_of_very_many_episodes(tmp_path: Path) -> None:
    """A stream may have more than a million episodes, without a number being given twice."""
    places = [
        (stream, episode) for stream in (0, 1, 2, 999_999) for episode in (0, 999_999, 1_000_000, 1_999_999, 2 * 10**9)
    ]
    assert len({episode_number(*place) for place in places}) == len(places)
    assert episode_number(3, 5) == 3_000_005 and episode_number(999_999, 9 * 10**9) < 2**63
    store = Store.create(tmp_path / "store", SCHEMA)
    rows = list(play(3, 4))
    with store.writer() as writer:
        for row in rows[:5]:
            writer.add(row, 0)
            writer.add(row, 1)
        writer.lanes[0].episode = 999_999
        for row in rows[5:]:
            writer.add(row, 0)
    numbers = store.episodes.columns()["number"].tolist()
    assert len(set(numbers)) == 4 and numbers[1:3] == [10**15, 10**15 + 1]
    assert same(store.read(10**15 + 1), rows[10:])


def test_streams_beyond_the_digits_of_a_file_name(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", SCHEMA)
    builder = ChunkBuilder(SCHEMA, 1_234_567)
    for row in play(1, 3):
        builder.add(row)
    done = builder.finish()
    with store.writer() as writer:
        writer.add_chunk(done[1])
    (store.path / store.chunks[0].file).write_bytes(b"")
    store.set_aside()
    with store.writer() as writer:
        assert writer.new_stream() == 1_234_568


def test_a_chunk_describes_itself(rows: list[Step]) -> None:
    builder = ChunkBuilder(SCHEMA, 3, chunk_steps=60)
    (done,) = [found for row in rows if (found := builder.add(row, {"seed": 1}))]
    chunk, content = done
    assert isinstance(chunk, Chunk) and describe_chunk(content) == chunk
    assert pa.ipc.open_file(pa.BufferReader(content)).schema.equals(arrow_schema(SCHEMA))
    assert [entry["episode"] for entry in chunk.episodes] == [3_000_000, 3_000_001, 3_000_002]


def test_arrow_slices(rows: list[Step]) -> None:
    table = to_arrow(SCHEMA, Steps.stack(SCHEMA, rows))
    assert same(from_arrow(SCHEMA, table.slice(7, 11)), rows[7:18])
    assert same(from_arrow(SCHEMA, pa.Table.from_batches([table.slice(0, 9), table.slice(9)])), rows)


def test_memory_of_the_index_does_not_hold_rows(tmp_path: Path) -> None:
    store = record(tmp_path / "store", list(play(2, 299)), chunk_steps=100)
    assert all(not chunk.episodes for chunk in store.chunks)
    assert len(store.episodes) == 2 and [chunk.rows for chunk in store.chunks] == [100] * 6
