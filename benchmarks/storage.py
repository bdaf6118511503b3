"""Bytes a step on Bonk, picture and sound apart, and what each codec takes to write them. Lossless, checked.

python benchmarks/storage.py
python benchmarks/storage.py --steps 8192 --rates 16384 32768

A sticky random player plays; the rows go into stores that differ in the codec alone. Every value is read back and
compared. The parts are the same columns compressed alone. Times are processor time of one thread, to be compared with
each other and with the row "game step".
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from metabonk.play.game import make_game
from metabonk.record.chunks import ChunkBuilder, arrow_schema, describe_chunk, to_arrow
from metabonk.record.experience import Schema, Step, Steps, to_step
from metabonk.record.store import Store

CODECS = [("zstd", 5), ("zstd", 3), ("zstd", 9), ("lz4", 1), ("lz4", 3), ("lz4", 9)]


def play(steps: int, sample_rate: int) -> tuple[Schema, list[Step], float]:
    """Rows of Bonk, and the seconds that the game itself took for each."""
    game = make_game("bonk", sample_rate=sample_rate, image_size=(64, 64))
    random = np.random.default_rng(0)
    observation, info = game.reset(seed=0)
    schema = Schema.of(game, info)
    rows, action, took = [to_step(schema, observation, info)], 0, 0.0
    while len(rows) < steps:
        action = int(random.integers(game.action_space.n)) if random.random() < 0.25 else action
        start = time.process_time()
        observation, reward, terminated, truncated, info = game.step(action)
        took += time.process_time() - start
        rows.append(to_step(schema, observation, info, action, float(reward), terminated, truncated))
        if terminated or truncated:
            observation, info = game.reset(seed=len(rows))
            rows.append(to_step(schema, observation, info))
    game.close()
    return schema, rows, took / len(rows)


def part(schema: Schema, rows: list[Step], columns: list[str], codec: str, level: int) -> float:
    """Bytes a step of some columns alone."""
    sink = pa.BufferOutputStream()
    batches = [to_arrow(schema, Steps.stack(schema, rows[i : i + 512])).select(columns) for i in range(0, len(rows), 512)]
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec(codec, level))
    with pa.ipc.new_file(sink, batches[0].schema, options=options) as file:
        for batch in batches:
            file.write_batch(batch)
    return sink.tell() / len(rows)


def same(store: Store, rows: list[Step]) -> bool:
    """Whether a store holds exactly these rows."""
    read = [row for episode in store.episodes for row in store.read(episode)]
    return len(read) == len(rows) and all(
        (a.image == b.image).all() and (a.audio == b.audio).all() and a.audio.dtype == b.audio.dtype
        and (a.action, a.reward, a.first, a.terminated, a.tick, a.sample, a.probes, a.terms)
        == (b.action, b.reward, b.first, b.terminated, b.tick, b.sample, b.probes, b.terms)
        for a, b in zip(read, rows, strict=True)
    )  # fmt: skip


def main() -> None:
    """Play once for each sample rate, then store with each codec."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--rates", type=int, nargs="+", default=[32_768, 16_384])
    options = parser.parse_args()
    for rate in options.rates:
        schema, rows, game_step = play(options.steps, rate)
        raw = sum(row.image.nbytes + row.audio.nbytes for row in rows) / len(rows)
        print(f"\n{len(rows)} steps at {rate} Hz, raw {raw:,.0f} bytes in picture and sound; game step {game_step * 1e6:.0f} us")
        print(f"{'codec':8} {'bytes/step':>10} {'picture':>8} {'sound':>8} {'rest':>8} {'write':>9} {'read':>9}")
        others = [name for name in arrow_schema(schema).names if name not in ("image", "audio")]
        for codec, level in CODECS:
            with tempfile.TemporaryDirectory() as folder:
                store = Store.create(Path(folder) / "store", schema)
                for timed in (False, True):
                    builder = ChunkBuilder(schema, int(timed), codec=codec, level=level)
                    start = time.process_time()
                    done = [found for row in rows if (found := builder.add(row))] + [builder.finish()]
                    write = (time.process_time() - start) / len(rows)
                with store.writer() as writer:
                    for found in filter(None, done):
                        assert describe_chunk(found[1]).rows == found[0].rows
                        writer.add_chunk(found[1])
                start = time.process_time()
                for episode in store.episodes:
                    store.read(episode)
                read = (time.process_time() - start) / len(rows)
                assert same(store, rows), "a value changed"
                size = store.nbytes / len(rows)
            picture, sound, rest = (part(schema, rows, names, codec, level) for names in (["image"], ["audio"], others))
            times = f"{write * 1e6:6.0f} us {read * 1e6:6.0f} us"
            told = "" if codec != "zstd" or level != 5 else f"   the default; at most 600: {'yes' if size <= 600 else 'NO'}"
            print(f"{codec} {level:<3} {size:10.0f} {picture:8.0f} {sound:8.0f} {rest:8.0f} {times}{told}", flush=True)


if __name__ == "__main__":
    main()
