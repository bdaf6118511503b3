"""What experiments share: their options, the recording and tokenizers that training runs begin with, and their results.

Results are one row a training run in a CSV file of experiments/results. Rows carry a fingerprint of the sizes they were
made with, so that runs of other sizes never mix, and an experiment that is started again goes on where it stopped.
"""

import argparse
import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from metabonk.core.config import RENAMED
from metabonk.core.learner import TrainConfig
from metabonk.measure.statistics import mean_interval
from metabonk.pipeline.runner import run_pipeline
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.picture import PictureConfig
from metabonk.sense.sound import SoundConfig
from metabonk.sense.tokenizers import train_tokenizers
from metabonk.sense.tokens import TokenCache, Tokenizers

ROOT = Path(__file__).parents[1]  # of the repository


def _earlier(value: Any) -> Any:
    """Sizes under the earlier names of configuration fields, by which rows that are there already are known."""
    if isinstance(value, dict):
        return {_earlier(key): _earlier(entry) for key, entry in value.items()}
    if isinstance(value, str):
        for earlier, now in RENAMED.items():
            value = re.sub(rf"\b{now}\b", earlier, value)
    return value


class Results:
    """The rows of one experiment with one choice of sizes."""

    def __init__(self, name: str, sizes: dict[str, Any]):
        self.path = Path(__file__).parent / "results" / f"{name}.csv"
        self.sizes = hashlib.sha256(json.dumps(_earlier(sizes), sort_keys=True).encode()).hexdigest()[:8]

    def table(self) -> pd.DataFrame:
        """All that are there."""
        if not self.path.exists():
            return pd.DataFrame({"sizes": []})
        rows = pd.read_csv(self.path, dtype={"sizes": str})  # 80744e72 is no number
        return rows[rows["sizes"] == self.sizes]

    def has(self, **which: Any) -> bool:
        """Whether there is a row with these entries."""
        rows = self.table()
        return bool(len(rows)) and bool((rows[list(which)] == pd.Series(which)).all(1).any())

    def add(self, row: dict[str, Any]) -> None:
        """Write one more."""
        row = {"sizes": self.sizes, **row}
        print(row, flush=True)
        self.path.parent.mkdir(exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def show_means(rows: pd.DataFrame) -> None:
    """Means over training runs of everything that was measured, with Student intervals."""
    if not len(rows):
        return print("no training run of these sizes has been made yet")
    for name in rows.columns.drop(["sizes", "seed"]):
        values = rows[name].dropna().to_numpy()  # not every run has everything that is measured
        few = f" ({len(values)} of {len(rows)} runs)" if len(values) < len(rows) else ""
        print(f"{name:50} {mean_interval(values, method='t') if len(set(values)) > 1 else values[:1].round(3)}{few}")


def begin(name: str, about: str, sizes: dict[str, Any], **more: dict[str, Any]) -> tuple[argparse.Namespace, Results]:
    """Options of an experiment as they were given, `seeds` of the runs to make among them; and its rows."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="whole training runs of everything that is compared")
    parser.add_argument("--seeds", type=int, nargs="*", help="of the runs to make; 0 to runs - 1 if not given")
    parser.add_argument("--folder", type=Path, default=Path("runs") / name, help="recordings and training runs")
    parser.add_argument("--threads", type=int, default=1, help="of a training run")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    for option, how in more.items():
        parser.add_argument(f"--{option}", **how)
    for option, value in sizes.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.seeds = [] if options.table else options.seeds or list(range(options.runs))
    rows = Results(name, {option: getattr(options, option) for option in sizes})
    options.folder = options.folder / rows.sizes
    return options, rows


def run(name: str, about: str, sizes: dict[str, Any], train: Callable[[int, argparse.Namespace], dict[str, Any]]) -> None:
    """An experiment with one training run a seed: `train` makes the rows that are not there yet, then their means are shown."""
    options, rows = begin(name, about, sizes)
    for seed in options.seeds:
        if not rows.has(seed=seed):
            rows.add(train(seed, options))
    show_means(rows.table())


def run_stages(pipeline: str, stages: list[str], folder: Path, parameters: dict[str, Any]) -> None:
    """Some stages of one of the repository's pipelines, in their order, into the run `folder`; what is done is not done again."""
    whole = yaml.safe_load((ROOT / f"pipelines/{pipeline}.yaml").read_text())
    kept = [stage for stage in whole["stages"] if stage.get("name", stage["notebook"]) in stages]
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_suffix(".yaml")
    part.write_text(yaml.safe_dump(whole | {"stages": kept, "notebooks": str(ROOT / "nbs/stages")}, sort_keys=False))
    run_pipeline(part, parameters, folder)


def prepare(
    folder: Path, world: str, settings: dict[str, Any], seed: int, options: argparse.Namespace, held_out: int = 0,
    sound_tokens: int = 8,
) -> Tokenizers:
    """A recording of random play in `store`, its tokenizers, and if asked for, rows that nothing learns from in `held`."""
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        record(world, folder / "store", "random", options.steps, seed=seed, settings=settings)
        store = Store.open(folder / "store")
        logmel = LogMelConfig.preset("tiny", sample_rate=store.schema.sample_rate)
        logmel = logmel.covering(Cache.build(store).samples / len(store))
        ears = SoundConfig.preset("tiny", channels=store.schema.channels, tokens=sound_tokens, codes=128)
        eyes = PictureConfig.preset("tiny", codes=64)
        training = TrainConfig(steps=options.picture_steps, lr=2e-3, warmup=50, seed=seed)
        sound = training.change(steps=options.sound_steps)
        tokenizers = train_tokenizers(store, folder / "tokenizers", eyes, ears, logmel, training, sound, seed=seed)
        TokenCache.build(store, tokenizers)
        if held_out:
            record(world, folder / "held", "random", held_out, seed=seed + 1, settings=settings)
            TokenCache.build(Store.open(folder / "held"), tokenizers)
        (folder / "ready").touch()
    return Tokenizers.load(folder / "tokenizers")
