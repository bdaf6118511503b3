"""Where should the senses meet? The four fusions of the token model on one recording, held-out rows, several trainings each.

`python experiments/fusion.py --runs 5` writes one row a training run to experiments/results/fusion.csv and prints the
table; `--table` prints it alone.

All runs share a recording of random play in `bonk:dark`, its tokenizers and a second recording that nothing learns from.
On the second one: what is left unexplained of picture and sound after looking and listening (cross-entropy of all tokens
of a row, in nats), and the share of the tokens that changed which are right one and five steps ahead, eyes and ears shut.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import begin, prepare

from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.reality import reality_check
from metabonk.measure.statistics import mean_interval
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenCache, TokenData, Tokenizers

WORLD, SETTINGS = "bonk:dark", {"max_steps": 300, "ticks_per_step": 12}
FUSIONS = ("early", "late", "concat", "cross")
SIZES = {"steps": 8_000, "held_out": 3_000, "picture_steps": 250, "sound_steps": 400, "model_steps": 700}


def data(folder: Path, tokenizers: Tokenizers, length: int, batch: int, seed: int) -> TokenData:
    """Sequences of a store."""
    sequences = SequenceConfig(length=length, batch_size=batch, seed=seed)
    return TokenData(folder, tokenizers, sequences)


def train(fusion: str, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training run, and what the model then knows of the recording that it has not seen."""
    tokenizers = prepare(folder, WORLD, SETTINGS, 0, options, options.held_out)
    seed_everything(seed)
    schema = Store.open(folder / "store").schema
    config = TokenModelConfig.preset("tiny", fusion=fusion, reward_scale=10.0)
    model = TokenModel(config, tokenizers, schema.actions, game=schema.game)
    model.start_from(TokenCache(folder / "store.tokens"), seed=seed)
    begun = time.monotonic()
    training = TrainConfig(steps=options.model_steps, lr=3e-3, warmup=100, checkpoint_every=10**6, seed=seed)
    fit(WorldModelLearner(model), data(folder / "store", tokenizers, 16, 16, seed), folder / f"{fusion}-{seed}", training)
    seconds = time.monotonic() - begun
    held = data(folder / "held", tokenizers, 24, 64, 0)  # the same rows for all
    held.prepare_data()
    held.setup()
    model.eval()
    batches = [batch for _, batch in zip(range(3), held.train_dataloader(), strict=False)]
    with torch.no_grad():
        losses = [model.losses(batch)[0] for batch in batches]
    nats = {name: float(torch.stack([part[name][:, 8:].mean() for part in losses]).mean()) for name in ("image", "audio")}
    ahead = reality_check(model, batches, 8, 15).query("who == 'model'").set_index("ahead")
    right = {f"{sense} {n} ahead": ahead.loc[n, f"{sense}_changed"] for n in (1, 5) for sense in ("image", "audio")}
    size = sum(p.numel() for p in model.encoder.parameters())
    return {"fusion": fusion, "seed": seed, **nats, **right, "encoder weights": size,
            "ms a step": round(1e3 * seconds / options.model_steps, 1)}  # fmt: skip


def show(rows: pd.DataFrame) -> None:
    """Means over training runs with Student intervals."""
    table = {}
    for fusion, group in rows.groupby("fusion", sort=False):
        numbers = group.drop(columns=["sizes", "fusion", "seed"])
        table[fusion] = {name: str(mean_interval(numbers[name].to_numpy(), method="t")) if len(group) > 1 and
                         numbers[name].nunique() > 1 else f"{numbers[name].mean():.4g}" for name in numbers}  # fmt: skip
        table[fusion]["runs"] = len(group)
    print(pd.DataFrame(table).T.to_string())


def main() -> None:
    """All runs that are not in the results yet."""
    options, rows = begin("fusion", __doc__, SIZES)
    for seed in options.seeds:
        for fusion in FUSIONS:
            if not rows.has(fusion=fusion, seed=seed):
                rows.add(train(fusion, seed, options.folder, options))
    show(rows.table())


if __name__ == "__main__":
    main()
