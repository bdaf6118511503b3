"""Windows of latents: rows a second beside a bare memory map that copies the same records.

python benchmarks/latents.py

A window is a context of four rows and four goals. The bare map copies the records of the same eight rows and does nothing
else; `LatentWindows` also draws the goals, makes single precision of half, and composes motion and reward. Both take
turns, everything is in the page cache, one thread; the median of their rates is printed, and the ratio.
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from metabonk.core.actions import ActionSpec
from metabonk.record.experience import Schema, Step
from metabonk.record.store import Store
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig
from metabonk.sense.codec import CodecConfig, PCACodec
from metabonk.sense.latents import LatentStore, LatentWindows, encode_latents

PROBES = {f"{kind}_{axis}": "float64" for kind in ("commanded", "realised") for axis in ("x", "y", "turn")}


def store_of(folder: Path, rows: int) -> LatentStore:
    """Latents of noise, of the sizes that rooms have."""
    schema = Schema(game="noise", image_shape=(64, 64, 3), channels=2, sample_rate=16_000, actions=ActionSpec(categorical=(4,)),
                    probes={**PROBES, "scene": "int64"})  # fmt: skip
    random, store = np.random.default_rng(0), Store.create(folder / "store", schema)
    image, audio = random.integers(0, 256, (64, 64, 3), np.uint8), random.integers(-999, 999, (2, 2400)).astype(np.int16)
    with store.writer() as writer:
        for t in range(rows):
            probes = dict.fromkeys(PROBES, 0.15) | {"commanded_turn": math.radians(10), "scene": t // 400}
            writer.add(Step(image, audio, np.array(t % 4), 0.1, t % 400 == 399, False, t % 400 == 0, t % 400, 0, probes))
    autoencoder = Autoencoder(AutoencoderConfig.preset("tiny", widths=(8, 8))).requires_grad_(False).eval()
    return encode_latents(store, autoencoder, PCACodec(CodecConfig()))


def main() -> None:
    """Both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        latents = store_of(Path(folder), options.rows)
        windows, rates = LatentWindows(latents), {"memory map": [], "windows": []}
        raw = np.memmap(latents.path / "rows-0.bin", np.uint8, "r", shape=(len(latents), latents.dtype.itemsize))
        for number in range(options.rounds):
            random = np.random.default_rng(number)
            some = [random.integers(100, len(latents) - 100, (options.batch, 8)) for _ in range(20)]
            start = time.perf_counter()
            for rows in some:
                raw[rows]
            middle = time.perf_counter()
            for rows in some:
                windows.sample(len(rows), random)
            for name, seconds in (("memory map", middle - start), ("windows", time.perf_counter() - middle)):
                rates[name].append(len(some) * options.batch * 8 / seconds)
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in median.items():
        print(f"{name:12} {rate:10,.0f} rows/s")
    print(f"windows / memory map: {median['windows'] / median['memory map']:.2f}")


if __name__ == "__main__":
    main()
