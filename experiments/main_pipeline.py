"""Does a policy that learned in dreams alone play better than chance, and what do rounds of real play add?

    python experiments/main_pipeline.py --runs 5

Whole runs of `pipelines/metabonk.yaml`, each from nothing and with a seed of its own: recording, tokenizers, world model,
a policy from dreams, rounds of real play. What is written down is what the stage `play` measured in episodes that nothing
was chosen by: mean return of `dreams only`, `fine-tuned`, `sticky random` and `random`, the first two as multiples of
random play, and the minutes of all stages up to that one. Other sizes make other rows: `--rows 20000 --model-steps 2000
--policy-steps 200` is the same pipeline with a third of the recording and of the training. A run that was interrupted goes
on where it stopped.
"""

import argparse
from typing import Any

import common
import pandas as pd

from metabonk.core.run import Run
from metabonk.pipeline.runner import run_pipeline

SIZES = {"game": "bonk:dark", "rows": 60_000, "model_steps": 6_000, "policy_steps": 600, "rounds": 4, "episodes": 100}


def train(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One whole run."""
    folder = options.folder / f"run-{seed}"
    given = {
        "game": options.game, "seed": seed, "record.steps": options.rows, "model.steps": options.model_steps,
        "dream.steps": options.policy_steps, "play.rounds": options.rounds, "play.episodes": options.episodes,
    }  # fmt: skip
    run_pipeline("metabonk", given, folder)
    run = Run.open(folder)
    mean = pd.read_csv(run.folder / "stages/play/scores.csv", index_col=0, header=[0, 1])["mean"]["estimate"]
    players = {name: round(float(mean[name]), 3) for name in ("dreams only", "fine-tuned", "sticky random", "random")}
    times = {f"{name}, times random": round(players[name] / players["random"], 3) for name in ("dreams only", "fine-tuned")}
    stages = [run.read()["stages"][name] for name in ("record", "look", "tokenise", "model", "dream", "play")]
    return {"seed": seed, **players, **times, "minutes": round(sum(stage["seconds"] for stage in stages) / 60, 1)}


if __name__ == "__main__":
    common.run("main_pipeline", __doc__ or "", SIZES, train)
