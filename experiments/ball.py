"""A ball that bounces and bonks, pictures with sound: how much the causal tokenizer keeps, how well the dynamics dream.

`python experiments/ball.py --runs 5` trains tokenizer and dynamics that many times from nothing and writes one row a
training run to experiments/results/ball.csv; rows that are there already are not made again. Clips are generated, no two
alike; the dynamics learn from three thousand of them, each frame beside a finished past, and what is judged was never seen.
Dreams go on for sixteen frames with four denoising steps each, under pushes that the model is told of. Controls: what is
usual at each place, for the tokenizer; repeating the last frame, and a model that is not told the pushes, for the dynamics.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from common import run

from metabonk.core.actions import ActionSpec
from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import (
    CausalTokenizer,
    CausalTokenizerConfig,
    CausalTokenizerLearner,
    bouncing_ball,
)
from metabonk.dream.clips import Clip
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.measure.clips import drift, restored

SIZES = {"tokenizer_steps": 3_600, "dynamics_steps": 6_000, "batch": 16, "length": 16, "context": 8, "ahead": 16, "clips": 3_000,
         "patch": 8, "tokenizer_lr": 4e-3, "dynamics_lr": 2e-3, "mask_ratio": 0.0, "cooldown": 0.5, "pack": 8, "registers": 1,
         "time_every": 2, "muon": 0.02, "views": 1, "context_noise": 0.06}  # fmt: skip


class Balls:
    """Batches of clips without end, each different."""

    def __init__(self, seed: int, batch: int, length: int):
        self.seed, self.batch, self.length = seed, batch, length

    def __iter__(self) -> Iterator[Clip]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield bouncing_ball(self.batch, self.length, generator=generator)


class Codes:
    """Sequences out of clips twice as long, which a tokenizer has written down once."""

    def __init__(self, tokenizer: CausalTokenizer, seed: int, clips: int, batch: int, length: int):
        self.seed, self.batch, self.length, parts = seed, batch, length, []
        balls = iter(Balls(seed, 100, 2 * length))
        for _ in range(-(-clips // 100)):
            clip = next(balls)
            with torch.no_grad():
                clip.latent = tokenizer.encode(clip)
            clip.image = clip.audio = None
            parts.append(clip)
        names = [field.name for field in fields(Clip) if getattr(parts[0], field.name) is not None]
        self.clips = Clip(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def __iter__(self) -> Iterator[Clip]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            which = torch.randint(len(self.clips.first), (self.batch,), generator=generator)
            begin = int(torch.randint(self.length + 1, (), generator=generator))
            rows = self.clips.map(lambda x, which=which, begin=begin: x[which, begin : begin + self.length].clone())
            rows.first[:, 0] = True
            yield rows


def make_tokenizer(seed: int, folder: Path, options: argparse.Namespace) -> CausalTokenizer:
    """A tokenizer that has learned balls, in evaluation mode."""
    seed_everything(seed)
    balls = 10**6 * (seed + 1)
    config = CausalTokenizerConfig(size=(16, 16), patch=options.patch, channels=1, frames=2, bands=8, sound_patch=(2, 8),
                                   latents=8, bottleneck=8, mask_ratio=options.mask_ratio)  # fmt: skip
    tokenizer = CausalTokenizer(config)
    tokenizer.start_from(bouncing_ball(256, options.length, generator=torch.Generator().manual_seed(balls)))
    schedule = TrainConfig(steps=options.tokenizer_steps, lr=options.tokenizer_lr, warmup=100, cooldown=options.cooldown,
                           checkpoint_every=10**6, seed=seed)  # fmt: skip
    fit(CausalTokenizerLearner(tokenizer), Balls(balls + 1, options.batch, options.length), folder / "tokenizer", schedule)
    return tokenizer.eval()


def train(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training run of both, and their measures on balls that were never seen."""
    begun, folder = time.monotonic(), options.folder / f"seed-{seed}"
    balls, tokenizer = 10**6 * (seed + 1), make_tokenizer(seed, folder, options)
    unseen = bouncing_ball(64, options.context + options.ahead, generator=torch.Generator().manual_seed(balls + 3))
    kept = restored(tokenizer, unseen)
    tokenizer.normalise_latents(bouncing_ball(256, options.length, generator=torch.Generator().manual_seed(balls)))
    config = DynamicsConfig(image_ratio=0.1, pack=options.pack, registers=options.registers, time_every=options.time_every)
    shortcut = ShortcutConfig(views=options.views, context_noise=options.context_noise)
    model = ShortcutModel(tokenizer, ActionSpec(categorical=(3,)), config, shortcut)
    codes = Codes(tokenizer, balls + 2, options.clips, options.batch, options.length)
    schedule = TrainConfig(steps=options.dynamics_steps, lr=options.dynamics_lr, warmup=100, cooldown=options.cooldown,
                           checkpoint_every=10**6, seed=seed)  # fmt: skip
    fit(DynamicsLearner(model, heads=False), codes, folder / "dynamics", schedule.change(muon=options.muon))
    model.eval()
    table = drift(model, unseen, options.context).groupby("who")[["psnr", "lsd"]].mean()
    blind = unseen.map(lambda x: x)
    blind.action = torch.ones_like(unseen.action)  # told of no push at all
    untold = drift(model, blind, options.context).groupby("who")[["psnr", "lsd"]].mean()
    row = {"seed": seed, "tokenizer psnr": kept.psnr["tokenizer"], "usual psnr": kept.psnr["what is usual"],
           "tokenizer lsd": kept.lsd["tokenizer"], "usual lsd": kept.lsd["what is usual"]}  # fmt: skip
    for name, numbers in (("dream", table.loc["model"]), ("repeat", table.loc["repeat last"]), ("untold", untold.loc["model"])):
        row |= {f"{name} psnr": numbers.psnr, f"{name} lsd": numbers.lsd}
    return {**row, "minutes": round((time.monotonic() - begun) / 60, 1)}


if __name__ == "__main__":
    run("ball", __doc__, SIZES, train)
