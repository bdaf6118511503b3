"""What is the masked autoencoder worth, in pictures and in scores? Dreamer 4's pipeline with three tokenizers.

    python experiments/tokenizers.py --runs 5

Whole runs of `pipelines/dreamer4.yaml` on `bonk:lit`, each from nothing and with a seed of its own. They differ in stage
`encode` alone: `patch MLP` is the pipeline's default, one MLP over each patch that hides nothing; `masked transformer` is the
preset `mini`, a block-causal transformer whose patches are masked at a ratio drawn up to 0.9 for every frame, as published;
`transformer` is the same with nothing masked, which tells masking from attention. Both transformers take more training steps
than the MLP, each of which takes longer: `seconds` of stage `encode` stand in the row.

A row a tokenizer and run, in experiments/results/tokenizers.csv: `restored` is the PSNR in dB of frames that nothing was learned
from, as the tokenizer gives them back; `dream, 1`, `5` and `15` that of frames dreamed so many steps ahead under the actions
that were played, after eight that were read, and `repeat last` that of the last one read; then mean returns of a hundred
episodes of the real game: `imagination`, `cloned` and two kinds of random play. Runs and rows that are there are not made
again; `--tiny` runs all of it at the smallest sizes, `--table` prints the table alone.
"""

import argparse
import sys
import time
from typing import Any

import pandas as pd
import torch
from common import Rows, begin, show_means
from playable import first_batch

from metabonk.core.run import Run
from metabonk.dream.clips import ClipData
from metabonk.dream.dynamics import ShortcutModel
from metabonk.measure.clips import drift, restored
from metabonk.pipeline.runner import run_pipeline
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store

TOKENIZERS: dict[str, dict[str, Any]] = {  # what differs from the pipeline's defaults
    "patch MLP": {},
    "transformer": {"encode.preset": "mini", "encode.sizes": {"bottleneck": 16, "mask_ratio": 0.0}},
    "masked transformer": {"encode.preset": "mini", "encode.sizes": {"bottleneck": 16, "mask_ratio": 0.9}},
}
CONTEXT, AHEAD = 8, (1, 5, 15)  # rows that are read, steps that are dreamed
SIZES = {"rows": 50_000, "episode_steps": 100, "mlp_steps": 1_500, "transformer_steps": 6_000, "dynamics_steps": 4_000,
         "agent_steps": 2_500, "imagine_steps": 300, "starts": 128, "episodes": 100, "judged_rows": 5_000, "judged": 128}
TINY = {**SIZES, "rows": 300, "episode_steps": 60, "mlp_steps": 2, "transformer_steps": 2, "dynamics_steps": 2, "agent_steps": 2,
        "imagine_steps": 1, "starts": 16, "episodes": 2, "judged_rows": 120, "judged": 4}  # fmt: skip


@torch.no_grad()
def seen(run: Run, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Pictures as they are restored and dreamed, of a recording that nothing was learned from."""
    model = ShortcutModel.load(run.folder / "stages/dynamics/model")
    played = Store.open(run.folder / "stages/record/store").schema
    held = run.folder / "judged"
    if not (held / "store.json").exists():
        record(played.game, held, "random", options.judged_rows, seed=seed + 1_000, settings=dict(played.config))
    sequences = SequenceConfig(CONTEXT + max(AHEAD), options.judged, seed=seed)
    clip = first_batch(ClipData(held, model.logmel, sequences))
    torch.manual_seed(seed)
    table = drift(model, clip, CONTEXT).set_index(["who", "ahead"])["psnr"]
    row = {"restored": float(restored(model.tokenizer, clip)["psnr"]["tokenizer"])}
    for name, who in (("dream", "model"), ("repeat last", "repeat last")):
        row |= {f"{name}, {ahead}": float(table[who, ahead]) for ahead in AHEAD}
    return {name: round(value, 3) for name, value in row.items()}


def train(tokenizer: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One whole run, and all that is measured of it."""
    begun, folder = time.monotonic(), options.folder / f"{tokenizer.replace(' ', '-')}-{seed}"
    steps = options.mlp_steps if tokenizer == "patch MLP" else options.transformer_steps
    given = {
        "seed": seed, "record.steps": options.rows, "record.episode_steps": options.episode_steps, "encode.steps": steps,
        "dynamics.steps": options.dynamics_steps, "dynamics.agent_steps": options.agent_steps,
        "imagine.steps": options.imagine_steps, "imagine.starts": options.starts, "imagine.episodes": options.episodes,
    }  # fmt: skip
    run_pipeline("dreamer4", {**given, **TOKENIZERS[tokenizer]}, folder)
    run = Run.open(folder)
    scores = pd.read_csv(folder / "stages/imagine/episodes.csv").groupby("who")["return"].mean().round(3).to_dict()
    seconds = round(run.read()["stages"]["encode"]["seconds"])
    minutes = round((time.monotonic() - begun) / 60, 1)
    return {"tokenizer": tokenizer, "seed": seed, **seen(run, seed, options), **scores, "seconds": seconds, "minutes": minutes}


def main() -> None:
    """All rows that are not there yet, and the means of each tokenizer."""
    sizes = TINY if "--tiny" in sys.argv else SIZES
    tiny = {"action": "store_true", "help": "the smallest sizes, to see it run to its end"}
    which = {"nargs": "*", "default": list(TOKENIZERS), "choices": list(TOKENIZERS)}
    options, rows = begin("tokenizers", __doc__ or "", sizes, tiny=tiny, tokenizers=which)
    for seed in options.seeds:
        for tokenizer in options.tokenizers:
            if not rows.has(tokenizer=tokenizer, seed=seed):
                rows.add(train(tokenizer, seed, options))
    show(rows)


def show(rows: Rows) -> None:
    """Means over training runs with Student intervals, one tokenizer after the other."""
    table = rows.table()
    for tokenizer in TOKENIZERS if len(table) else ():
        print(tokenizer)
        show_means(table[table["tokenizer"] == tokenizer].drop(columns="tokenizer"))


if __name__ == "__main__":
    main()
