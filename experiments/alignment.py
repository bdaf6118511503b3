"""Do eyes and ears find each other, and do events stand out from music? Alignment on Bonk, several whole trainings.

`python experiments/alignment.py --runs 5` records random play, trains and measures, each time anew, and writes one row a
training run to experiments/results/alignment.csv; `--table` prints the table alone. Controls: the same networks before
any training, and the log-mel that they hear. What is measured is explained on the page of alignment.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from common import begin

from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.measure.statistics import mean_interval
from metabonk.record.recorder import record
from metabonk.sense.alignment import Alignment, AlignmentConfig, AlignmentData, event_scores, retrieval, separation
from metabonk.sense.logmel import LogMelConfig

SIZES = {"steps": 8_000, "updates": 1_000}


def train(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One recording, one training, all measures on episodes held out."""
    shutil.rmtree(folder, ignore_errors=True)
    record("bonk", folder / "store", steps=options.steps, seed=seed, settings={"image_size": (64, 64), "max_steps": 300})
    data = AlignmentData(folder / "store", AlignmentConfig.preset("tiny"), LogMelConfig.preset("tiny", sample_rate=32_768))
    seed_everything(seed)
    training = TrainConfig.preset("tiny", steps=options.updates, seed=seed)
    alignment = fit(Alignment(data.alignment), data, folder / "training", training)
    found = retrieval(alignment, data, seed=seed).set_index(["network", "candidates"])["top1"]
    told = separation(event_scores(alignment, data, seed=seed)).set_index("network")
    shutil.rmtree(folder)
    first = {f"{who}, {kind}": found[who, kind] for who in ("aligned", "untrained") for kind in found.index.levels[1]}
    apart = {f"{measure} {who}": told.loc[who, measure] for measure in ("d_prime", "auc") for who in told.index}
    return {"seed": seed, **first, **apart}


def show(rows: pd.DataFrame) -> None:
    """Means over training runs with Student intervals, and what alignment gains run by run."""
    numbers = rows.drop(columns=["sizes", "seed"])
    for measure in ("d_prime", "auc"):
        numbers[f"{measure}, gain over log-mel"] = numbers[f"{measure} aligned"] - numbers[f"{measure} log-mel"]
    for name, values in numbers.items():
        print(f"{name:32}", mean_interval(values.to_numpy(), method="t") if len(values) > 1 else values.iloc[0])


def main() -> None:
    """All runs that are not in the results yet."""
    options, rows = begin("alignment", __doc__, SIZES)
    for seed in options.seeds:
        if not rows.has(seed=seed):
            rows.add(train(seed, options.folder / f"seed-{seed}", options))
    show(rows.table())


if __name__ == "__main__":
    main()
