"""Where should the senses meet? The four fusions of the token model on one recording, held-out rows, several trainings each.

`python experiments/fusion.py --runs 5` writes one row a training run to experiments/results/fusion.csv and prints the
table; `--table` prints it alone.

All runs share a recording of random play in `bonk:dark`, its tokenizers and a second recording that nothing learns from.
On the second one: surprise at the next picture and sound tokens in nats a row, from the model's own reading
(reconstruction), and the share of tokens that changed and are right one and five steps ahead with eyes and ears shut.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rows import Rows, add_sizes, chosen

from metabonk.core.seed import seed_everything
from metabonk.core.training import TrainConfig, fit
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.reality import reality_check
from metabonk.measure.statistics import mean_interval
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.picture import PictureConfig
from metabonk.sense.sound import SoundConfig
from metabonk.sense.tokens import TokenCache, TokenData, Tokenizers, train_tokenizers

WORLD, SETTINGS = "bonk:dark", {"max_steps": 300, "ticks_per_step": 12}
FUSIONS = ("early", "late", "concat", "cross")
SIZES = {"steps": 8_000, "held_out": 3_000, "picture_steps": 250, "sound_steps": 400, "model_steps": 700}


def prepare(folder: Path, options: argparse.Namespace) -> Tokenizers:
    """What all runs share."""
    if not (folder / "tokenizers").exists():
        for name, steps, seed in (("store", options.steps, 0), ("held", options.held_out, 1)):
            if not (folder / name).exists():
                record(WORLD, folder / name, "random", steps, seed=seed, settings=SETTINGS)
        store = Store.open(folder / "store")
        logmel = LogMelConfig.preset("tiny", sample_rate=store.schema.sample_rate)
        logmel = logmel.covering(Cache.build(store).samples / len(store))
        ears = SoundConfig.preset("tiny", channels=store.schema.channels, tokens=8, codes=128)
        training = TrainConfig(steps=options.picture_steps, lr=2e-3, warmup=50)
        train_tokenizers(store, folder / "tokenizers", PictureConfig.preset("tiny", codes=64), ears, logmel, training,
                         training.change(steps=options.sound_steps))  # fmt: skip
    tokenizers = Tokenizers.load(folder / "tokenizers")
    for name in ("store", "held"):
        TokenCache.build(Store.open(folder / name), tokenizers)
    return tokenizers


def data(folder: Path, tokenizers: Tokenizers, length: int, batch: int, seed: int) -> TokenData:
    """Sequences of a store."""
    sequences = SequenceConfig(length=length, batch_size=batch, seed=seed)
    return TokenData(folder, tokenizers, sequences)


def train(fusion: str, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training run, and what the model then knows of the recording that it has not seen."""
    tokenizers = prepare(folder, options)
    seed_everything(seed)
    schema = Store.open(folder / "store").schema
    config = TokenModelConfig.preset("tiny", fusion=fusion, reward_scale=10.0)
    model = TokenModel(config, tokenizers, schema.action_count, game=schema.game)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of every fusion")
    parser.add_argument("--folder", type=Path, default=Path("runs/fusion"), help="recordings and training runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    add_sizes(parser, SIZES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = Rows("fusion", chosen(options, SIZES))
    for seed in range(0 if options.table else options.runs):
        for fusion in FUSIONS:
            if not rows.has(fusion=fusion, seed=seed):
                rows.add(train(fusion, seed, options.folder / rows.sizes, options))
    show(rows.table())


if __name__ == "__main__":
    main()
