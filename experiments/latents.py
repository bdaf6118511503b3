"""How much of a room is left in its latents? Codecs and autoencoders on homes that they never saw.

`python experiments/latents.py` writes one row an encoder and training run to experiments/results/latents.csv and prints
the table; `--table` prints it alone.

Every run records walks through homes of the training split and of the test split, fits linear codecs of several sizes,
trains a codec and an autoencoder, and measures all of them on the test walks: noise,
distance of spectra, error of the level difference of the ears and seams of sound; PSNR of pictures. What is trained
begins as the linear encoder beside it, so its gain is what the layers learned.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import begin

from metabonk.core.learner import TrainConfig
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig
from metabonk.sense.autoencoder_training import spread_rows, train_autoencoder
from metabonk.sense.codec import CodecConfig, SoundCodec, codec_errors
from metabonk.sense.codec_training import CropCache, fit_pca, train_codec

SIZES = {"steps": 3000, "codec_steps": 150, "picture_steps": 200}  # rows of the training walks; changes of the weights
LATENTS = (32, 64, 128)  # numbers in a token of the linear codecs


def walks(folder: Path, scenes: str, steps: int, seed: int) -> Store:
    """A recording of walks through the homes of a split, found if it is there."""
    path = folder / scenes
    if not (path / "store.json").exists():
        record("rooms", path, "walks", steps=steps, seed=seed, settings={"image_size": (64, 64), "scenes": scenes})
    return Store.open(path)


def hear(codec: SoundCodec, cache: Cache, episodes: int = 5) -> dict[str, float]:
    """Errors of sound, mean over the first episodes."""
    crops, edges = CropCache(cache, codec.config.samples), [*np.flatnonzero(cache.table["first"]).tolist(), len(cache)]
    found = []
    for a, b in list(zip(edges, edges[1:], strict=False))[:episodes]:
        found.append(codec_errors(codec, torch.from_numpy(np.stack([crops.until(row) for row in range(a, b)]))))
    return {name: round(float(np.mean([one[name] for one in found])), 3) for name in found[0]}


def see(autoencoder: Autoencoder, cache: Cache) -> dict[str, float]:
    """PSNR in dB, mean over pictures."""
    x = torch.from_numpy(cache.image[spread_rows(cache, 400)])
    error = (autoencoder.decode(autoencoder.encode(x)).float() - x).square().mean((1, 2, 3))
    return {"psnr": round(float((10 * torch.log10(255**2 / error)).mean()), 2)}


def encoders(folder: Path, train: Store, options: argparse.Namespace, seed: int) -> Iterator[tuple[str, object]]:
    """All that are compared, the linear ones first."""
    for latents in LATENTS:
        yield f"PCA codec, 15 x {latents}", fit_pca(train, CodecConfig(latents=latents))
    training = TrainConfig(steps=options.codec_steps, lr=1e-3, warmup=20, cooldown=0.5, seed=seed)
    yield "learned codec, 15 x 64", train_codec(train, folder / "codec", training=training, seed=seed)
    images = Cache.build(train).image
    torch.manual_seed(seed)
    start = Autoencoder(AutoencoderConfig.preset("tiny")).start_from(torch.from_numpy(np.array(images[::2]))).eval()
    yield "linear autoencoder, 8 x 8 x 4", start
    training = training.change(steps=options.picture_steps, lr=2e-3)
    yield "autoencoder, 8 x 8 x 4", train_autoencoder(train, folder / "autoencoder", training=training, seed=seed)


def main() -> None:
    """All runs that are asked for and not there yet."""
    options, rows = begin("latents", __doc__ or "", SIZES)
    for seed in options.seeds if not options.table else []:
        folder = options.folder / str(seed)
        train, test = walks(folder, "train", options.steps, 2 * seed), walks(folder, "test", 800, 2 * seed + 1)
        cache, began = Cache.build(test), time.time()
        for name, encoder in encoders(folder, train, options, seed):
            found = {"snr": "", "spectrum": "", "level": "", "seam": "", "psnr": ""}
            found |= see(encoder, cache) if isinstance(encoder, Autoencoder) else hear(encoder, cache)
            if not rows.has(encoder=name, seed=seed):
                rows.add({"encoder": name, "seed": seed, **found, "seconds": round(time.time() - began)})
    table = rows.table()
    columns = ["snr", "spectrum", "level", "seam", "psnr"]
    print(table.groupby("encoder", sort=False)[columns].mean().round(2) if len(table) else table)


if __name__ == "__main__":
    main()
