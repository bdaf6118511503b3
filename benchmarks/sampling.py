"""Random sequences of 64 steps: the training cache beside a bare memory map and beside compressed formats; and memory.

python benchmarks/sampling.py
python benchmarks/sampling.py --memory      # also writes, unpacks and samples 10 thousand and 1 million small steps

All formats hold the same rows of Bonk and give back the same sequences; they take turns, and the medians of their
rates are compared. Everything is in the page cache, one thread. "raw" copies the bytes out of `numpy.memmap`s into an
array and does nothing else. The compressed formats hold blocks of 64 steps: as rows of a `datasets.Dataset`, and as
LZ4 blocks in one file with an index (what a key-value store does at best).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from metabonk.core.actions import ActionSpec
from metabonk.play.game import make_game
from metabonk.record.cache import Cache
from metabonk.record.experience import Schema, Step, to_step
from metabonk.record.sampling import SequenceConfig, Sequences, draw
from metabonk.record.store import Store

T = 64


def record(folder: Path, steps: int, copies: int) -> Store:
    """A store of Bonk, several times over."""
    game = make_game("bonk")
    random = np.random.default_rng(0)
    observation, info = game.reset(seed=0)
    store = Store.create(folder / "store", Schema.of(game, info))
    rows = [to_step(store.schema, observation, info)]
    while len(rows) < steps:
        action = int(random.integers(game.action_space.n))
        observation, reward, terminated, truncated, info = game.step(action)
        rows.append(to_step(store.schema, observation, info, action, float(reward), terminated, truncated))
        if terminated or truncated:
            observation, info = game.reset()
            rows.append(to_step(store.schema, observation, info))
    game.close()
    with store.writer() as writer:
        for stream in range(copies):
            for row in rows:
                writer.add(row, stream)
    return store


def formats(cache: Cache, folder: Path) -> dict[str, Callable[[list[list[tuple[int, int]]]], object]]:
    """For each format, a function that fetches sequences."""
    rows, image_shape = len(cache), cache.schema.image_shape
    image = np.memmap(cache.path / "image.bin", np.uint8, "r", shape=(rows, *image_shape))
    table = np.memmap(cache.path / "table.bin", cache.table.dtype, "r", shape=(rows,))
    sound = [np.memmap(cache.path / f"sound{c}.bin", np.int16, "r") for c in range(cache.schema.channels)]
    edges = np.append(cache.table["sound"], len(sound[0]))

    def raw(places: list[list[tuple[int, int]]]) -> object:
        lengths = [edges[b] - edges[a] for ((a, b),) in places]
        images = np.empty((len(places), T, *image_shape), np.uint8)
        sounds = np.empty((len(places), len(sound), max(lengths)), np.int16)
        tables = np.empty((len(places), T), table.dtype)
        for i, ((a, b),) in enumerate(places):
            images[i], tables[i] = image[a:b], table[a:b]
            for c, channel in enumerate(sound):
                sounds[i, c, : lengths[i]] = channel[edges[a] : edges[b]]
        return images, sounds, tables

    codec = pa.Codec("lz4_raw")
    blocks = []
    for a in range(0, rows, T):
        b = min(a + T, rows)
        channels = [channel[edges[a] : edges[b]].tobytes() for channel in sound]
        parts = [image[a:b].tobytes(), table[a:b].tobytes(), *channels]
        blocks.append((codec.compress(b"".join(parts), asbytes=True), [len(part) for part in parts]))
    with open(folder / "blocks", "wb") as file:
        file.write(b"".join(block for block, _ in blocks))
    offsets = np.concatenate([[0], np.cumsum([len(block) for block, _ in blocks])])
    file_map = np.memmap(folder / "blocks", np.uint8, "r")
    sizes = [size for _, size in blocks]

    def unpack(number: int, packed: object) -> list[np.ndarray]:
        flat = np.frombuffer(codec.decompress(packed, sum(sizes[number])), np.uint8)
        parts = np.split(flat, np.cumsum(sizes[number])[:-1])
        return [parts[0].reshape(-1, *image_shape), parts[1].view(table.dtype), *(part.view(np.int16) for part in parts[2:])]

    def fetch(places: list[list[tuple[int, int]]], block: Callable[[int], list[np.ndarray]]) -> object:
        lengths = [edges[b] - edges[a] for ((a, b),) in places]
        images = np.empty((len(places), T, *image_shape), np.uint8)
        sounds = np.empty((len(places), len(sound), max(lengths)), np.int16)
        tables = np.empty((len(places), T), table.dtype)
        for i, ((a, b),) in enumerate(places):
            for number in range(a // T, (b - 1) // T + 1):
                pictures, entries, *channels = block(number)
                begin, end = max(a, number * T), min(b, number * T + T)
                inside = slice(begin - number * T, end - number * T)
                images[i, begin - a : end - a], tables[i, begin - a : end - a] = pictures[inside], entries[inside]
                for c, channel in enumerate(channels):
                    first = edges[begin] - edges[number * T]
                    length = edges[end] - edges[begin]
                    sounds[i, c, edges[begin] - edges[a] : edges[end] - edges[a]] = channel[first : first + length]
        return images, sounds, tables

    from datasets import Dataset, Features, Value

    features = Features({"block": Value("binary")})
    dataset = Dataset.from_dict({"block": [block for block, _ in blocks]}, features=features)
    dataset.save_to_disk(str(folder / "dataset"))
    dataset = Dataset.load_from_disk(str(folder / "dataset"))
    return {
        "raw memmap": raw,
        "training cache": cache.gather,
        "LZ4 blocks in a file": lambda p: fetch(p, lambda n: unpack(n, pa.py_buffer(file_map[offsets[n] : offsets[n + 1]]))),
        "datasets, LZ4 blocks": lambda p: fetch(p, lambda n: unpack(n, dataset[n]["block"])),
    }  # fmt: skip


def equal(one: object, other: object) -> bool:
    """Whether the tuple of a bare format holds what a batch holds."""
    images, sounds, tables = other
    return (one.image == images).all() and (one.step == tables["step"]).all() and all(
        (one.audio[i, :, : int(n)] == sounds[i, :, : int(n)]).all() for i, n in enumerate(one.audio_length.sum(1))
    )


def speed(steps: int, copies: int, rounds: int) -> None:
    """The formats in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = Cache.build(record(folder, steps, copies))
        sequences, config = Sequences(cache, T), SequenceConfig(batch_size=16)
        contestants = formats(cache, folder)
        batches = [sequences.spans(draw(len(sequences), config, k)) for k in range(8)]
        for label, fetch in contestants.items():
            assert label == "training cache" or equal(cache.gather(batches[0]), fetch(batches[0])), label
        rates: dict[str, list[float]] = {label: [] for label in contestants}
        for _ in range(rounds):
            for label, fetch in contestants.items():
                start = time.perf_counter()
                for places in batches:
                    fetch(places)
                rates[label].append(len(batches) * config.batch_size / (time.perf_counter() - start))
        median = {label: statistics.median(values) for label, values in rates.items()}
        for label, rate in median.items():
            print(f"{label:22} {rate:8.0f} sequences/s   {rate / median['raw memmap']:5.2f} of raw")
        ours = median["training cache"]
        best = max(rate for label, rate in median.items() if "LZ4" in label)
        print(f"cache / raw memmap: {ours / median['raw memmap']:.2f} (wanted: 0.70)")
        print(f"cache / best compressed: {ours / best:.1f} (wanted: 2)")


SMALL = Schema(game="small", image_shape=(8, 8, 3), channels=2, sample_rate=960, clock_rate=60.0,
               actions=ActionSpec(categorical=(4,)))


def anonymous() -> float:
    """MiB of memory that this process holds for itself; mapped files are not counted."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def memory_of(steps: int, folder: Path) -> dict[str, float]:
    """The most memory that writing, unpacking and sampling took."""
    pictures = [np.full((8, 8, 3), t % 251, np.uint8) for t in range(251)]
    silence, zero = np.zeros((2, 16), np.int16), np.array(0)
    peak = {"write": 0.0, "unpack": 0.0, "sample": 0.0}
    store = Store.create(folder / "store", SMALL)
    with store.writer() as writer:
        for t in range(steps):
            inside = t % 500
            writer.add(Step(pictures[t % 251], silence, zero, 0.0, inside == 499, False, inside == 0, inside, inside * 16))
            if t % 2000 == 0:
                peak["write"] = max(peak["write"], anonymous())
    cache = Cache.build(store)
    peak["unpack"] = anonymous()
    sequences, config = Sequences(cache, T), SequenceConfig(batch_size=16)
    for k in range(300):
        cache.gather(sequences.spans(draw(len(sequences), config, k)))
        peak["sample"] = max(peak["sample"], anonymous())
    return peak


def memory(few: int, many: int) -> None:
    """Each length in a process of its own."""
    found = {}
    for steps in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--memory-of", str(steps), folder]
            found[steps] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for stage in found[few]:
        a, b = found[few][stage], found[many][stage]
        print(f"memory to {stage:7} {few:>9,} steps {a:6.0f} MiB, {many:>9,} steps {b:6.0f} MiB: {b / a:.2f} times")


def main() -> None:
    """Speed, and memory if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory_of(int(options.memory_of[0]), Path(options.memory_of[1]))))
        return
    speed(options.steps, options.copies, options.rounds)
    if options.memory:
        memory(10_000, 1_000_000)


if __name__ == "__main__":
    main()
