"""A ball that bounces and bonks, pictures with sound: how much the causal tokenizer keeps, how well the dynamics dream.

`python experiments/ball.py --runs 5` trains tokenizer and dynamics that many times from nothing and writes one row a
training run to experiments/results/ball.csv; rows that are there already are not made again. Clips are generated: no two
batches are alike, and what is judged was never seen. Dreams go on for sixteen frames with four denoising steps each, under
pushes that the model is told of. Controls: what is usual at each place, for the tokenizer; repeating the last frame, and a
model that is not told the pushes, for the dynamics.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import run

from metabonk.core.seed import seed_everything
from metabonk.core.training import TrainConfig, fit
from metabonk.dream.actions import ActionSpec
from metabonk.dream.causal_tokenizer import (
    CausalTokenizer,
    CausalTokenizerConfig,
    CausalTokenizerLearner,
    Clip,
    bouncing_ball,
)
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.measure.clips import drift, restored

SIZES = {"tokenizer_steps": 3_000, "dynamics_steps": 4_000, "batch": 16, "length": 16, "context": 8, "ahead": 16,
         "tokenizer_lr": 2e-3, "dynamics_lr": 2e-3, "hidden_share": 0.5}  # fmt: skip


class Balls:
    """Batches of clips without end, each different; codes in place of frames once there is a tokenizer."""

    def __init__(self, seed: int, batch: int, length: int, batches: int, tokenizer: CausalTokenizer | None = None):
        self.seed, self.batch, self.length, self.batches, self.tokenizer = seed, batch, length, batches, tokenizer

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Clip]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.batches):
            clip = bouncing_ball(self.batch, self.length, generator=generator)
            if self.tokenizer is not None:
                with torch.no_grad():
                    clip = Clip(latent=self.tokenizer.encode(clip), action=clip.action, reward=clip.reward,
                                terminated=clip.terminated, truncated=clip.truncated, first=clip.first)  # fmt: skip
            yield clip


def make_tokenizer(seed: int, folder: Path, options: argparse.Namespace) -> CausalTokenizer:
    """A tokenizer that has learned balls, in evaluation mode."""
    seed_everything(seed)
    balls = 10**6 * (seed + 1)
    config = CausalTokenizerConfig(size=(16, 16), patch=4, channels=1, frames=2, bands=8, sound_patch=(2, 8), latents=8,
                                   bottleneck=8, hidden_share=options.hidden_share)  # fmt: skip
    tokenizer = CausalTokenizer(config)
    tokenizer.start_from(bouncing_ball(256, options.length, generator=torch.Generator().manual_seed(balls)))
    schedule = TrainConfig(steps=options.tokenizer_steps, lr=options.tokenizer_lr, warmup=100, checkpoint_every=10**6, seed=seed)
    fit(CausalTokenizerLearner(tokenizer), Balls(balls + 1, options.batch, options.length, options.tokenizer_steps),
        folder / "tokenizer", schedule)
    return tokenizer.eval()


def train(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training run of both, and their measures on balls that were never seen."""
    begun, folder = time.monotonic(), options.folder / f"seed-{seed}"
    balls, tokenizer = 10**6 * (seed + 1), make_tokenizer(seed, folder, options)
    unseen = bouncing_ball(64, options.context + options.ahead, generator=torch.Generator().manual_seed(balls + 3))
    kept = restored(tokenizer, unseen)
    model = ShortcutModel(tokenizer, ActionSpec(categorical=(3,)), DynamicsConfig(single=0.1), ShortcutConfig())
    codes = Balls(balls + 2, options.batch, options.length, options.dynamics_steps, tokenizer)
    schedule = TrainConfig(steps=options.dynamics_steps, lr=options.dynamics_lr, warmup=100, checkpoint_every=10**6, seed=seed)
    fit(DynamicsLearner(model), codes, folder / "dynamics", schedule)
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
