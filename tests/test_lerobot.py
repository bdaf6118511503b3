"""LeRobot's data sets, both layouts, as rows: each action beside what it led to, faults told."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metabonk.core.errors import FolderError, StoreError, UsageError
from metabonk.record import lerobot
from metabonk.record.exchange import picture_times, write_media
from metabonk.record.lerobot import LeRobotConfig, import_lerobot
from metabonk.record.store import Store

CAMERA, FPS, LENGTHS = "observation.images.top", 10, (12, 7, 20)
SMALL = LeRobotConfig(image_size=(32, 48))


def shade(number: int, t: int) -> int:
    """Brightness of picture t of an episode."""
    return 30 + 60 * number + 3 * t


def columns(number: int, length: int) -> dict[str, list]:
    """A table: action t is (t, -10 t), the state is (number, t), the reward of what action t leads to is t."""
    t = np.arange(length)
    return {
        "action": np.stack([t, -10.0 * t], -1).astype(np.float32).tolist(),
        "observation.state": np.stack([np.full(length, number), t], -1).astype(np.float32).tolist(),
        "next.reward": t.astype(np.float32).tolist(),
        "next.done": (t == length - 1).tolist(),
        "task_index": [number % 2] * length,
    }


def about(version: str, **more: Any) -> dict[str, Any]:
    """`meta/info.json`."""
    features = {
        CAMERA: {"dtype": "video", "shape": [32, 48, 3]},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["lift", "turn"]}},
        "observation.state": {"dtype": "float32", "shape": [2]},
    }
    told = {"codebase_version": version, "fps": FPS, "total_episodes": len(LENGTHS), "chunks_size": 2}
    return {**told, "features": features, **more}


def film(path: Path, shades: list[int]) -> None:
    """A film of plain pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [np.full((32, 48, 3), value, np.uint8) for value in shades]
    write_media(path, pictures, picture_times(np.arange(len(shades)) / FPS), None, 0, scale=1)


def write(path: Path, table: dict[str, Any]) -> None:
    """A Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)


def version_2(folder: Path, **more: Any) -> Path:
    """An episode a file, two files in a folder."""
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(about("v2.1", **more)))
    tasks = [{"task_index": 0, "task": "lift"}, {"task_index": 1, "task": "put down"}]
    (folder / "meta/tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    for number, length in enumerate(LENGTHS):
        chunk, name = f"chunk-{number // 2:03d}", f"episode_{number:06d}"
        write(folder / "data" / chunk / f"{name}.parquet", columns(number, length))
        film(folder / "videos" / chunk / CAMERA / f"{name}.mp4", [shade(number, t) for t in range(length)])
    return folder


def version_3(folder: Path) -> Path:
    """Two episodes share a table, the last two a film."""
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(about("v3.0")))
    write(folder / "meta/tasks.parquet", {"task_index": [0, 1], "task": ["lift", "put down"]})
    tables = [columns(number, length) for number, length in enumerate(LENGTHS)]
    write(folder / "data/chunk-000/file-000.parquet", {name: tables[0][name] + tables[1][name] for name in tables[0]})
    write(folder / "data/chunk-000/file-001.parquet", tables[2])
    shades = [[shade(number, t) for t in range(length)] for number, length in enumerate(LENGTHS)]
    film(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4", shades[0])
    film(folder / f"videos/{CAMERA}/chunk-001/file-000.mp4", shades[1] + shades[2])
    write(folder / "meta/episodes/chunk-000/file-000.parquet", {
        "episode_index": [0, 1, 2], "dataset_from_index": [0, 12, 19], "dataset_to_index": [12, 19, 39],
        "data/chunk_index": [0, 0, 0], "data/file_index": [0, 0, 1],
        f"videos/{CAMERA}/chunk_index": [0, 1, 1], f"videos/{CAMERA}/file_index": [0, 0, 0],
        f"videos/{CAMERA}/from_timestamp": [0.0, 0.0, 0.7],
    })  # fmt: skip
    return folder


def check(store: Store) -> None:
    """Every row is what it must be."""
    assert not store.verify() and store.schema.action_names == ("lift", "turn") and store.schema.vector == 2
    low, high = np.array(store.schema.config["low"]), np.array(store.schema.config["high"])
    assert low.tolist() == [0, -190] and high.tolist() == [19, 0]
    assert [episode.rows for episode in store.episodes] == list(LENGTHS)
    for number, episode in enumerate(store.episodes):
        rows, t = store.read(episode), np.arange(LENGTHS[number])
        assert episode.about == {"source": f"episode {number:06d}", "task": ["lift", "put down"][number % 2]}
        assert np.abs(rows.image.mean((1, 2, 3)) - [shade(number, k) for k in t]).max() < 1.6
        assert (rows.vector == np.stack([np.full(len(t), number), t], -1)).all()
        done = low + (rows.action[1:] + 1) / 2 * (high - low)
        assert np.abs(done - np.stack([t[:-1], -10 * t[:-1]], -1)).max() < 1e-4 and not rows.action[0].any()
        assert rows.reward.tolist() == [0, *t[:-1]] and rows.first.tolist() == [k == 0 for k in t]
        assert rows.truncated.tolist() == [k == len(t) - 1 for k in t] and not rows.terminated.any()


@pytest.mark.parametrize("make", [version_2, version_3])
def test_a_data_set_becomes_rows(tmp_path, make):
    store, faults = import_lerobot(make(tmp_path / "in"), tmp_path / "store", SMALL)
    assert not faults
    check(store)
    assert len(import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)[0]) == len(store), "an episode comes once"


def test_pictures_of_the_neighbour_are_caught(tmp_path, monkeypatch):
    "Negative control: a film that is read a picture late."
    read = lerobot.film_pictures
    monkeypatch.setattr(lerobot, "film_pictures", lambda path, size, wanted: read(path, size, wanted + 1 / FPS))
    store, _ = import_lerobot(version_3(tmp_path / "in"), tmp_path / "store", SMALL)
    with pytest.raises(AssertionError):
        check(store)


def test_an_episode_that_is_done_ends_there(tmp_path):
    version_2(tmp_path / "in")
    table = columns(0, 12)
    table["next.done"] = [t == 5 for t in range(12)]
    write(tmp_path / "in/data/chunk-000/episode_000000.parquet", table)
    store, _ = import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)
    rows = store.read(store.episodes[0])
    assert len(rows) == 7 and rows.terminated.tolist() == [False] * 6 + [True] and not rows.truncated.any()


def test_pictures_may_lie_in_the_table(tmp_path):
    features = about("v2.0")["features"] | {CAMERA: {"dtype": "image", "shape": [32, 48, 3]}}
    version_2(tmp_path / "in", features=features)
    for number, length in enumerate(LENGTHS):
        pictures = []
        for t in range(length):
            file = io.BytesIO()
            with av.open(file, "w", format="image2pipe") as out:
                stream = out.add_stream("png", rate=1)
                stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb24"
                frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), shade(number, t), np.uint8), format="rgb24")
                out.mux(stream.encode(frame))
                out.mux(stream.encode(None))
            pictures.append({"bytes": file.getvalue(), "path": "../../etc/passwd"})
        chunk = f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"
        write(tmp_path / "in" / chunk, columns(number, length) | {CAMERA: pictures})
    store, faults = import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)
    assert not faults
    check(store)


def test_faults_are_one_line_each_and_do_not_keep_the_others_back(tmp_path):
    version_2(tmp_path / "in")
    (tmp_path / f"in/videos/chunk-000/{CAMERA}/episode_000000.mp4").unlink()
    damaged = tmp_path / "in/data/chunk-000/episode_000001.parquet"
    film(tmp_path / f"in/videos/chunk-000/{CAMERA}/episode_000001.mp4", [shade(1, t) for t in range(3)])
    store, faults = import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)
    assert [episode.about["source"] for episode in store.episodes] == ["episode 000002"]
    assert "can't be read" in str(faults["episode 000000"]) and "ends before its episode" in str(faults["episode 000001"])
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(StoreError, match="missing or damaged"):
        import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)
    assert len(Store.open(tmp_path / "store").episodes) == 1


@pytest.mark.parametrize("old, new, error, words", [
    ('"v2.1"', '"v1.6"', StoreError, "version v1.6"),
    ('"fps": 10', '"fps": "x"', StoreError, "is damaged"),
    ('"fps": 10', '"fps": 0', StoreError, "known are"),
    ('"video"', '"float32"', UsageError, "has none"),
    ('"action"', '"deed"', StoreError, "tells no actions"),
    ('{"codebase', '{codebase', StoreError, "is damaged"),
])  # fmt: skip
def test_bad_descriptions_say_so(tmp_path, old, new, error, words):
    info = version_2(tmp_path / "in") / "meta/info.json"
    assert old in info.read_text()
    info.write_text(info.read_text().replace(old, new))
    with pytest.raises(error, match=words) as told:
        import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)
    assert "\n" not in str(told.value)


def test_other_bad_input(tmp_path):
    version_2(tmp_path / "in")
    with pytest.raises(UsageError, match="unknown camera 'left'"):
        import_lerobot(tmp_path / "in", tmp_path / "store", SMALL.change(camera="left"))
    with pytest.raises(FolderError, match="holds meta/"):
        import_lerobot(tmp_path, tmp_path / "store")
    with pytest.raises(UsageError, match="at least 1 pixel"):
        LeRobotConfig(image_size=(0, 4))
    table = columns(0, 12)
    table["action"][3] = [float("nan"), 0.0]
    write(tmp_path / "in/data/chunk-000/episode_000000.parquet", table)
    with pytest.raises(StoreError, match="not finite"):
        import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)
    shutil.rmtree(tmp_path / "in/meta/tasks.jsonl", ignore_errors=True)
    (tmp_path / "in/meta/tasks.jsonl").write_text("{")
    write(tmp_path / "in/data/chunk-000/episode_000000.parquet", columns(0, 12))
    with pytest.raises(StoreError, match="tasks.jsonl is damaged"):
        import_lerobot(tmp_path / "in", tmp_path / "store", SMALL)
