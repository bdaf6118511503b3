"""Recordings go out and come back exactly; films are lossy but in time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import Any

import av
import gymnasium as gym
import numpy as np
import pytest

from metabonk.core.actions import ActionBox, ActionSpec, FlatActions
from metabonk.core.errors import DamagedChunk, FolderError, StoreError, UsageError
from metabonk.core.run import Run
from metabonk.play.bonk import ROM
from metabonk.record.chunks import to_arrow
from metabonk.record.exchange import (
    copy_store,
    export_media,
    from_dataset,
    picture_times,
    read_wav,
    to_dataset,
    write_media,
    write_wav,
)
from metabonk.record.experience import Schema, Step
from metabonk.record.minari import export_minari, import_minari
from metabonk.record.recorder import record
from metabonk.record.store import Store

ROOT = Path(__file__).parent.parent
RATE, CLOCK, TICKS = 43_900, 4_194_304, 4 * 70_224


def make_store(path: Path, channels: int = 2, box: bool = False, episodes: int = 3, open_end: bool = True) -> Store:
    """Random episodes with every type of column, ragged sound, and a last episode without an end."""
    rng = np.random.default_rng(0)
    action = {"actions": ActionSpec(continuous=2) if box else ActionSpec(categorical=(5,))}
    schema = Schema(
        game="toy", image_shape=(6, 5, 3), channels=channels, sample_rate=RATE * bool(channels), clock_rate=float(CLOCK),
        probes={"x": "int64", "alive": "bool", "speed": "float64"}, terms={"coin": "float64", "hurt": "float64"}, **action,
    )  # fmt: skip
    store = Store.create(path, schema)
    with store.writer(chunk_steps=16) as writer:
        for number in range(episodes):
            sample, length = 0, 10 + 7 * number
            for t in range(length):
                heard = int(rng.integers(0, 40)) * bool(channels)
                sample += heard
                last = t == length - 1 and not (open_end and number == episodes - 1)
                values = rng.normal(size=2).astype(np.float32) if box else np.array(rng.integers(5))
                row = Step(
                    rng.integers(0, 256, (6, 5, 3)).astype(np.uint8),
                    rng.integers(-32_768, 32_768, (channels, heard)).astype(np.int16),
                    values * (t > 0) if box else np.array(values * (t > 0)), float(rng.normal()) if t else 0.0,
                    last and number % 2 == 0, last and number % 2 == 1, t == 0, (t + 1) * TICKS, sample,
                    {"x": int(rng.integers(-(2**60), 2**60)), "alive": bool(rng.integers(2)), "speed": float(rng.normal())},
                    {"coin": float(rng.normal()), "hurt": 5e-324 if t == 3 else -0.0},
                )  # fmt: skip
                writer.add(row, number % 2, {"seed": 2**40 + number, "policy": "toy", "settings": {"a": [1, None]}})
    return Store.open(path)


def same(left: Store, right: Store) -> None:
    """Both hold the same episodes: values, types, ends, what is told of them."""
    assert left.schema.to_dict() == right.schema.to_dict()
    assert len(left.episodes) == len(right.episodes) and len(left) == len(right)
    for one, other in zip(left.episodes, right.episodes, strict=True):
        assert one.about == other.about and one.end == other.end and np.isclose(one.reward, other.reward)
        a, b = to_arrow(left.schema, left.read(one)), to_arrow(right.schema, right.read(other))
        assert a.schema == b.schema
        for name in a.schema.names:
            assert a.column(name).equals(b.column(name)), name
        x, y = left.read(one), right.read(other)
        assert x.terms["hurt"].tobytes() == y.terms["hurt"].tobytes()  # the sign of a zero, too
        assert (x.image == y.image).all() and (x.audio == y.audio).all() and x.audio.dtype == np.int16


KINDS = [{}, {"channels": 1}, {"channels": 0}, {"box": True}, {"open_end": False}]


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_round_trip(tmp_path: Path, kind: dict[str, int]) -> None:
    """Store to `datasets` to disk and back to a store."""
    import datasets

    store = make_store(tmp_path / "s", **kind)
    to_dataset(store, cache=tmp_path / "cache").save_to_disk(str(tmp_path / "saved"))
    same(store, from_dataset(datasets.load_from_disk(str(tmp_path / "saved")), tmp_path / "back"))


def test_datasets_of_some_episodes(tmp_path: Path) -> None:
    """Chosen episodes only, with what is known of them."""
    store = make_store(tmp_path / "s", episodes=5)
    wanted = [store.episodes[n].number for n in (1, 3)]
    back = from_dataset(to_dataset(store, wanted, cache=tmp_path / "cache"), tmp_path / "back")
    assert [episode.about["seed"] for episode in back.episodes] == [store.episodes[n].about["seed"] for n in (1, 3)]
    assert [episode.rows for episode in back.episodes] == [store.episodes[n].rows for n in (1, 3)]
    with pytest.raises(StoreError, match="no episode 77"):
        to_dataset(store, [77], cache=tmp_path / "cache")


def ticks(rows: object) -> list[int]:
    return rows["sample"][:]  # type: ignore[index]


def test_datasets_are_what_lies_there(tmp_path: Path) -> None:
    """Three recordings into one store, then another store of the same name, all through one cache."""
    written: list[int] = []
    for episodes in (1, 2, 3):
        more = make_store(tmp_path / "more" / str(episodes), episodes=episodes)
        written += [row.sample for episode in more.episodes for row in more.read(episode)]
        store = from_dataset(to_dataset(more, cache=tmp_path / "cache"), tmp_path / "a" / "store")
        assert sorted(ticks(to_dataset(store, cache=tmp_path / "cache"))) == sorted(written)
    other = make_store(tmp_path / "b" / "store", episodes=2)
    assert len(to_dataset(other.path, cache=tmp_path / "cache")) == len(other)
    moved = (tmp_path / "a" / "store").rename(tmp_path / "[c] d: 'e'\nf")
    assert sorted(ticks(to_dataset(moved, cache=tmp_path / "cache"))) == sorted(written)
    with pytest.raises(StoreError, match="empty"):
        to_dataset(Store.create(tmp_path / "empty", other.schema), cache=tmp_path / "cache")


def test_datasets_of_damaged_chunks(tmp_path: Path) -> None:
    """A flipped bit is one clear error, whether the rows were loaded before or not."""
    store = make_store(tmp_path / "s")
    to_dataset(store, cache=tmp_path / "cache")
    path = store.path / store.chunks[1].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    for cache in ("cache", "fresh"):
        with pytest.raises(DamagedChunk, match=r"000000-0000.*set_aside"):
            to_dataset(store, cache=tmp_path / cache)
    store.set_aside()
    assert len(to_dataset(store, cache=tmp_path / "cache")) == len(store)


def test_the_line_of_the_card(tmp_path: Path) -> None:
    """What the card tells people to write loads the folder, and refuses a damaged one."""
    store = make_store(tmp_path / "[s]")
    line = (store.path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    line = line.replace("PATH/OF/THIS/FOLDER", str(store.path)).replace('")', f'", cache={str(tmp_path / "cache")!r})')
    found: dict[str, Any] = {}
    exec(line, found)
    assert len(found["rows"]) == len(store)
    (store.path / store.chunks[0].file).write_bytes(b"")
    with pytest.raises(DamagedChunk):
        exec(line, found)


def test_a_cartridge_and_a_run_folder_of_odd_names(tmp_path: Path) -> None:
    """A colon in the cartridge's name, brackets and quotes in the folder's."""
    from datasets import load_dataset

    cartridge = tmp_path / "Kirby: Dream Land's #1.gb"
    cartridge.write_bytes(ROM.read_bytes())
    for name in ("plain", "[exp 1] bonk's {run}"):
        folder = Run.open(tmp_path / name).stage_folder("record")
        settings = {"image_size": (16, 16), "max_steps": 20, "profile": "none"}
        record(f"gameboy:{cartridge}", folder / "store", steps=30, settings=settings)
        assert len(to_dataset(folder / "store", cache=folder / "cache")) == len(Store.open(folder / "store"))
    plain = Store.open(tmp_path / "plain/stages/record/store")
    assert plain.schema.game == f"gameboy:{cartridge.stem}"
    assert len(load_dataset(str(plain.path), split="train", cache_dir=str(tmp_path / "cache"))) == len(plain)


def test_a_cache_that_datasets_would_write_elsewhere(tmp_path: Path) -> None:
    """`datasets` takes "::" for the end of an address: the rows of every store would go to one place."""
    store = make_store(tmp_path / "a::b")
    assert len(to_dataset(store, cache=tmp_path / "cache")) == len(store)
    with pytest.raises(UsageError, match="::"):
        to_dataset(store, cache=tmp_path / "c::d")


def test_datasets_without_a_schema(tmp_path: Path) -> None:
    """A dataset that does not tell its schema needs it; one that is no recording is refused."""
    import datasets

    store = make_store(tmp_path / "s")
    rows = to_dataset(store, cache=tmp_path / "cache")
    rows.info.description = ""
    with pytest.raises(UsageError, match="schema="):
        from_dataset(rows, tmp_path / "back")
    told = {episode.number: episode.about for episode in store.episodes}
    same(store, from_dataset(rows, tmp_path / "back", store.schema, told))
    with pytest.raises(StoreError, match="no column image"):
        from_dataset(datasets.Dataset.from_dict({"x": [1]}), tmp_path / "other", store.schema)


@pytest.mark.parametrize("kind", KINDS)
def test_minari_round_trip(tmp_path: Path, kind: dict[str, int]) -> None:
    """Store to Minari and back."""
    store = make_store(tmp_path / "s", **kind)
    export_minari(store, tmp_path / "m")
    same(store, import_minari(tmp_path / "m", tmp_path / "back"))


@pytest.mark.parametrize("kind", KINDS)
def test_minari_itself_reads_it(tmp_path: Path, kind: dict[str, int]) -> None:
    """The library opens the folder, and its episodes are ours under its convention."""
    minari = pytest.importorskip("minari")
    store = make_store(tmp_path / "s", **kind)
    dataset = minari.MinariDataset(export_minari(store, tmp_path / "m"))
    assert dataset.total_episodes == 3 and dataset.total_steps == len(store) - 3
    for number, (theirs, episode) in enumerate(zip(dataset.iterate_episodes(), store.episodes, strict=True)):
        steps = store.read(episode)
        assert theirs.id == number and len(theirs) == len(steps) - 1
        assert (theirs.observations["image"] == steps.image).all() and theirs.observations["image"].dtype == np.uint8
        assert (theirs.actions == steps.action[1:]).all() and theirs.actions.dtype == steps.action.dtype
        assert (theirs.rewards == steps.reward[1:]).all()
        assert (theirs.terminations == steps.terminated[1:]).all()
        assert theirs.truncations[-1] == (episode.end != "terminated") and not theirs.truncations[:-1].any()
        assert (theirs.infos["tick"] == steps.tick).all() and (theirs.infos["probes/x"] == steps.probes["x"]).all()
        if store.schema.channels:
            sound, length = theirs.observations["audio"], theirs.observations["audio_length"]
            assert sound.dtype == np.int16 and (length == steps.audio_length).all()
            assert (
                np.concatenate([row[:, :n] for row, n in zip(sound, length, strict=True)], axis=1) == steps.audio
            ).all()
    assert dataset.action_space.contains(theirs.actions[0]) and "image" in dataset.observation_space.spaces


@pytest.mark.parametrize("spec", [
    ActionSpec(categorical=(5,)), ActionSpec(categorical=(2, 3)), ActionSpec(binary=4), ActionSpec(continuous=2),
    ActionSpec(continuous=3, unbounded=1), ActionSpec(2, (3, 4), 2), ActionSpec(23, (121,)),
], ids=str)  # fmt: skip
def test_minari_is_told_the_space_that_was_played(tmp_path: Path, spec: ActionSpec) -> None:
    """Its own reader builds that space, and every action is in it."""
    minari = pytest.importorskip("minari")
    schema = Schema(game="toy", image_shape=(1, 1, 3), channels=0, clock_rate=60.0, actions=spec)
    space = spec.space()
    space.seed(0)
    done = [np.zeros(schema.action_shape, schema.action_dtype), *(np.asarray(space.sample()) for _ in range(9))]
    store = Store.create(tmp_path / "s", schema)
    with store.writer() as writer:
        for t, action in enumerate(done):
            writer.add(Step(np.zeros((1, 1, 3), np.uint8), np.zeros((0, 0), np.int16), action, 0.0, False, t == 9, t == 0, t, 0))
    dataset = minari.MinariDataset(export_minari(store, tmp_path / "m"))
    told, played = dataset.action_space, next(iter(dataset.iterate_episodes())).actions
    assert all(told.contains(action) for action in played) and np.array_equal(played, done[1:])
    same_kind = told == space
    if isinstance(space, ActionBox):  # Minari has no word for whole numbers in a box
        same_kind = type(told) is gym.spaces.Box and np.array_equal([told.low, told.high], [space.low, space.high])
    assert same_kind, (told, space)
    back = import_minari(tmp_path / "m", tmp_path / "back")
    assert back.schema == schema and np.array_equal(back.read(back.episodes[0]).action, done)


def test_minari_bad_folders(tmp_path: Path) -> None:
    """A folder in use, one that is not there, somebody else's dataset, a damaged file."""
    store = make_store(tmp_path / "s")
    folder = export_minari(store, tmp_path / "m")
    with pytest.raises(FolderError, match="holds other things"):
        export_minari(store, folder)
    with pytest.raises(FolderError, match="no Minari dataset"):
        import_minari(tmp_path / "nowhere", tmp_path / "back")
    part = folder / "1" / "part-0.arrow"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged"):
        import_minari(folder, tmp_path / "back")
    for text, said in (
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"total_episodes": 1}), "spaces"),
        ('{"metabonk": 1}', "schema"),
    ):
        (folder / "metadata.json").write_text(text)
        with pytest.raises(StoreError, match=said):
            import_minari(folder, tmp_path / "back2")
    assert not (tmp_path / "back2").exists()


def in_columns(values: list[Any]) -> Any:
    """As Minari's buffers keep them: dictionaries of lists."""
    return (
        {name: in_columns([value[name] for value in values]) for name in values[0]}
        if isinstance(values[0], dict)
        else values
    )


def collected(path: Path, observations: gym.Space, actions: gym.Space, kind: str = "arrow", jpeg: bool = False) -> Path:
    """A dataset as Minari writes it: an episode that ends, and one that is cut off."""
    minari = pytest.importorskip("minari")
    buffers = []
    for number, length in enumerate((7, 4)):
        observations.seed(number), actions.seed(number)
        ends = np.arange(length) == length - 1
        infos = [
            {"lives": 3 - t // 4, "speed": np.float32(t / 3), "place": np.arange(3) + t, "name": "x"}
            for t in range(length + 1)
        ]
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                seed=number + 5,
                observations=in_columns([observations.sample() for _ in range(length + 1)]),
                actions=in_columns([actions.sample() for _ in range(length)]),
                rewards=np.random.default_rng(number).normal(size=length).tolist(),
                terminations=(ends & (number == 0)).tolist(),
                truncations=(ends & (number == 1)).tolist(),
                infos=in_columns(infos),
            )
        )
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    try:
        spaces = {"observation_space": observations, "action_space": actions}
        minari.create_dataset_from_buffers("test/shown-v0", buffers, **spaces, data_format=kind, jpeg_encoding=jpeg)
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
    return path / "test" / "shown-v0"


PICTURE = gym.spaces.Box(0, 255, (40, 33, 3), np.uint8)
LOW, HIGH = np.float32([-2, 0]), np.float32([2, 10])
ACTIONS = [
    gym.spaces.Discrete(4), gym.spaces.Discrete(3, start=2), gym.spaces.Box(LOW, HIGH), gym.spaces.MultiDiscrete([3, 2]),
    gym.spaces.MultiBinary(4), gym.spaces.Dict({"a": gym.spaces.Discrete(2), "b": gym.spaces.Box(LOW, HIGH)}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["arrow", "hdf5"])
@pytest.mark.parametrize("actions", ACTIONS, ids=str)
def test_what_minari_writes(tmp_path: Path, kind: str, actions: gym.Space) -> None:
    """Each picture, action, reward and end of Minari's own datasets, each number of `infos`, and steps for a clock."""
    if kind == "hdf5":
        pytest.importorskip("h5py", reason="NOT TESTED: h5py, which Minari needs for hdf5, is not installed")
    minari = pytest.importorskip("minari")
    folder = collected(tmp_path / "sets", PICTURE, actions, kind)
    store = import_minari(folder, tmp_path / "store")
    theirs = list(minari.MinariDataset(folder / "data").iterate_episodes())
    flat = FlatActions(actions)
    assert [episode.rows for episode in store.episodes] == [8, 5] and not store.verify()
    assert [episode.about for episode in store.episodes] == [
        {"source": f"test/shown-v0/{n}", "seed": n + 5} for n in (0, 1)
    ]
    assert store.schema.probes == {"lives": "int64", "speed": "float64"} and store.schema.actions == flat.spec
    for episode, given in zip(store.episodes, theirs, strict=True):
        steps = store.read(episode)
        assert (steps.image == given.observations).all() and (steps.tick == np.arange(len(steps))).all()
        assert (
            (steps.reward[1:] == given.rewards).all()
            and steps.reward[0] == 0
            and steps.first.tolist() == [True] + [False] * len(given)
        )
        assert (steps.terminated[1:] == given.terminations).all() and (steps.truncated[1:] == given.truncations).all()
        assert (steps.probes["lives"] == given.infos["lives"]).all() and (
            steps.probes["speed"] == given.infos["speed"]
        ).all()
        for t in range(len(given)):
            own = flat.unflatten(steps.action[t + 1])
            played = part_of(given.actions, t)
            assert actions.contains(own) and np.allclose(flat.flatten(own), flat.flatten(played), atol=1e-5)
    assert import_minari(folder / "data", tmp_path / "some", infos=["lives"]).schema.probes == {"lives": "int64"}
    assert len(import_minari(folder, store.path)) == 13  # nothing twice


def part_of(values: Any, t: int) -> Any:
    return {name: part_of(part, t) for name, part in values.items()} if isinstance(values, dict) else values[t]


def test_other_pictures_of_minari(tmp_path: Path) -> None:
    """Grey ones, those of a dictionary with vectors and a class beside, and JPEG ones as Minari decodes them."""
    minari = pytest.importorskip("minari")
    grey = gym.spaces.Box(0, 255, (40, 33), np.uint8)
    both = gym.spaces.Dict(
        {
            "pixels": PICTURE,
            "fuel": gym.spaces.Box(0, 1, (1,)),
            "gear": gym.spaces.Discrete(5),
            "pose": gym.spaces.Box(-1, 1, (8,)),
        }
    )
    for number, space in enumerate((grey, both, PICTURE)):
        folder = collected(tmp_path / str(number), space, ACTIONS[0], jpeg=number == 2)
        store = import_minari(folder, tmp_path / f"store{number}")
        given = next(minari.MinariDataset(folder / "data").iterate_episodes()).observations
        steps, image = store.read(0), given["pixels"] if number == 1 else given
        assert (steps.image == (image[..., None] if number == 0 else image)).all() and steps.image.shape[1:] == (
            40,
            33,
            3,
        )
        if number == 1:
            assert (steps.probes["gear"] == given["gear"]).all() and store.schema.vector == 9
            assert (steps.vector == np.concatenate([given["fuel"], given["pose"]], 1)).all()


def test_what_a_recording_cannot_hold_of_minari(tmp_path: Path) -> None:
    """Vectors without a picture, stacks of frames, grids beside one: one line that names them, and no store."""
    vector = gym.spaces.Box(-1, 1, (8,))
    for number, space in enumerate(
        (
            vector,
            gym.spaces.Dict({"pixels": PICTURE, "pose": gym.spaces.Box(-1, 1, (4, 4))}),
            gym.spaces.Box(0, 255, (40, 33, 4), np.uint8),
        )
    ):
        folder = collected(tmp_path / str(number), space, ACTIONS[0])
        with pytest.raises(UsageError, match="'pose' is Box" if number == 1 else "the observation is Box"):
            import_minari(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_no_code_comes_with_a_minari_dataset(tmp_path: Path) -> None:
    """Metadata that name an environment in place of the spaces would have it imported and made."""
    folder = collected(tmp_path / "sets", PICTURE, ACTIONS[0])
    (tmp_path / "evil_minari_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    about = json.loads((folder / "data" / "metadata.json").read_text())
    about["env_spec"] = json.dumps(
        {"id": "evil-v0", "entry_point": "evil_minari_module:Evil", "kwargs": {}, "additional_wrappers": []}
    )
    for drop in ((), ("observation_space",), ("action_space",)):
        (folder / "data" / "metadata.json").write_text(json.dumps({k: v for k, v in about.items() if k not in drop}))
        code = "import sys; from metabonk.record.minari import import_minari; import_minari(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / f"store{drop}")]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        )
        assert not (tmp_path / "ran").exists() and (not drop or "StoreError" in done.stderr)


def test_damaged_datasets_of_minari(tmp_path: Path) -> None:
    """A cut file, rewards that are not numbers, an unknown version."""
    folder = collected(tmp_path / "sets", PICTURE, ACTIONS[0])
    (part,) = (folder / "data" / "1").glob("*.arrow")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"):
        import_minari(folder, tmp_path / "store")
    part.write_bytes(whole)
    store = import_minari(folder, tmp_path / "store")  # goes on with the one that was mended
    assert [episode.rows for episode in store.episodes] == [8, 5]
    about = json.loads((folder / "data" / "metadata.json").read_text())
    (folder / "data" / "metadata.json").write_text(json.dumps(about | {"minari_version": "99"}))
    with pytest.raises(StoreError, match="version"):
        import_minari(folder, tmp_path / "other")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 32_768, 43_900, 47_782])
def test_wav_is_exact(tmp_path: Path, channels: int, rate: int) -> None:
    """Every sample, every rate."""
    sound = np.random.default_rng(0).integers(-32_768, 32_768, (channels, 5_000)).astype(np.int16)
    sound[:, :2] = -32_768, 32_767
    back, found = read_wav(write_wav(tmp_path / "x.wav", sound, rate))
    assert found == rate and back.dtype == np.int16 and (back == sound).all()


def test_media_of_a_store(tmp_path: Path) -> None:
    """A film for each episode with a picture a row, and a wav with its very samples; a silent game has films only."""
    for channels, kinds in ((2, {".mp4", ".wav"}), (0, {".mp4"})):
        store = make_store(tmp_path / f"s{channels}", channels=channels)
        files = export_media(store, tmp_path / f"out{channels}")
        assert {path.suffix for path in files} == kinds and len(files) == 3 * len(kinds)
        for episode in store.episodes:
            name = tmp_path / f"out{channels}" / f"{episode.number:012d}"
            with av.open(str(name.with_suffix(".mp4"))) as film:
                assert sum(1 for _ in film.decode(video=0)) == episode.rows
            if channels:
                assert (read_wav(name.with_suffix(".wav"))[0] == store.read(episode).audio).all()
    with pytest.raises(UsageError, match="silent"):
        write_wav(tmp_path / "no.wav", np.zeros((0, 0), np.int16), 0)
    chosen = export_media(store, tmp_path / "one", [store.episodes[1].number])
    assert len(chosen) == 1


def flash_film(path: Path, kind: str, count: int = 120, jitter: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A film in which some steps flash and sound; returns when each step ended, and which steps do."""
    rng = np.random.default_rng(0)
    ticks = np.cumsum(rng.integers(TICKS // 2, 2 * TICKS, count)) if jitter else np.arange(1, count + 1) * TICKS
    ends = ticks / CLOCK
    lengths = np.diff(np.round(ends * RATE).astype(int), prepend=0)
    flash = np.arange(count) % 15 == 7
    tone = [12_000 * on * np.sin(np.arange(n) * 2 * np.pi * 1_000 / RATE) for on, n in zip(flash, lengths, strict=True)]
    sound = np.stack([np.concatenate(tone)] * 2).astype(np.int16)
    images = [np.full((63, 65, 3), (40, 220, 90) if on else (200, 30, 60), np.uint8) for on in flash]
    with path.open("wb") as file:
        write_media(file, iter(images), picture_times(ends), sound, RATE, kind=kind, scale=1)
    return ends, flash


@pytest.mark.parametrize(("kind", "tolerance"), [("mp4", 1e-4), ("webm", 6e-4)])
@pytest.mark.parametrize("jitter", [False, True])
def test_films_are_in_time(tmp_path: Path, kind: str, tolerance: float, jitter: bool) -> None:
    """Pictures carry the clock's times, tones start with their steps, colours are right, whatever the steps' lengths."""
    ends, flash = flash_film(tmp_path / "x", kind, jitter=jitter)
    with av.open(str(tmp_path / "x")) as film:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")[30, 30].astype(int)) for frame in film.decode(video=0)]
    times = np.array([time for time, _ in frames])
    assert len(times) == len(ends) and times[0] == 0 and np.allclose(times[1:], ends[1:], atol=tolerance)
    assert [colour[1] > 128 for _, colour in frames] == flash.tolist()
    with av.open(str(tmp_path / "x")) as film:
        pieces = [(frame.time, frame.to_ndarray()) for frame in film.decode(audio=0)]
    heard = np.concatenate([piece for _, piece in pieces], axis=1)
    start = pieces[0][0]
    begins = np.concatenate([[0], ends])[:-1][flash]
    for begin, end in zip(begins, ends[flash], strict=True):
        inside = np.abs(heard[0, round((begin + 0.005 - start) * 48_000) : round((end - 0.005 - start) * 48_000)])
        before = np.abs(heard[0, round((begin - 0.02 - start) * 48_000) : round((begin - 0.004 - start) * 48_000)])
        assert inside.max() > 0.2 and before.max() < 0.05
    assert abs(heard.shape[1] / 48_000 - ends[-1]) < 0.05


def test_pictures_with_one_time_stay_apart() -> None:
    """Stamps increase strictly, and only where they must be moved are they moved."""
    assert picture_times(np.array([0.5, 1.0, 1.0, 1.0, 2.0])).tolist() == [0, 90_000, 90_001, 90_002, 180_000]
    assert picture_times(np.array([])).tolist() == []


@pytest.mark.skipif(which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_agrees(tmp_path: Path) -> None:
    """Another program sees H.264 and AAC, the number of pictures, and streams of one length."""
    ends, _ = flash_film(tmp_path / "x.mp4", "mp4")
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(tmp_path / "x.mp4")]
    video, audio = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["streams"]
    assert (video["codec_name"], audio["codec_name"]) == ("h264", "aac")
    assert int(video["nb_read_frames"]) == len(ends) and (video["width"], video["height"]) == (66, 64)
    assert abs(float(video["duration"]) - float(audio["duration"])) < 0.15 and float(video["start_time"]) == 0


def test_a_film_takes_one_or_two_channels(tmp_path: Path) -> None:
    """Five channels are refused by name."""
    with pytest.raises(UsageError, match="one or two channels"):
        write_media(
            tmp_path / "x.mp4", [np.zeros((8, 8, 3), np.uint8)], picture_times(np.ones(1)), np.ones((5, 9), np.int16), 9
        )


def test_a_recording_made_elsewhere_is_brought_into_a_folder(tmp_path):
    """The same rows; what is recorded into the copy stays out of the original; damage and other recordings are refused."""
    record("bonk", tmp_path / "a", steps=60, seed=1, chunk_steps=16)
    original = Store.open(tmp_path / "a")
    mark = original.fingerprint()
    there = copy_store(tmp_path / "a", tmp_path / "b/store")
    assert there.fingerprint() == mark and len(there) == len(original) and there.episodes[0] == original.episodes[0]
    assert copy_store(original, tmp_path / "b/store").fingerprint() == mark  # again: nothing happens
    record("bonk", tmp_path / "b/store", steps=20, seed=2)
    assert Store.open(tmp_path / "a").check().fingerprint() == mark
    with pytest.raises(StoreError, match="another recording"):
        copy_store(original, tmp_path / "b/store")
    (tmp_path / "film").mkdir()
    (tmp_path / "film/mine.mp4").write_text("mine")
    with pytest.raises(FolderError, match="mine.mp4"):
        copy_store(original, tmp_path / "film")
    file = sorted((tmp_path / "a/data").glob("*.arrow"))[0]
    file.write_bytes(file.read_bytes()[:-9] + b"something")
    with pytest.raises(DamagedChunk):
        copy_store(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "c").exists() or not list((tmp_path / "c").iterdir())


def test_where_links_are_not_possible_files_are_copied(tmp_path, monkeypatch):
    """Across file systems."""
    record("bonk", tmp_path / "a", steps=30, seed=1)

    def across(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", across)
    there = copy_store(tmp_path / "a", tmp_path / "b")
    assert there.check().fingerprint() == Store.open(tmp_path / "a").fingerprint()
    assert all(file.stat().st_nlink == 1 for file in (tmp_path / "b/data").iterdir())
