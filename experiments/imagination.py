"""Does a policy that goes on learning in imagination beat the one it was cloned from? Whole runs of Dreamer 4's pipeline.

`python experiments/imagination.py --runs 5` runs pipelines/dreamer4.yaml that many times on Bonk and on MinAtar's space
invaders, each time from nothing: recording, tokenizer, dynamics, cloned policy, imagination. It writes one row a run to
experiments/results/imagination.csv and prints the table; `--table` prints it alone. Scores are means over a hundred
episodes of the real game, the same for both policies; random play is the control. Bonk is played as the pipeline has it; for
the other game, GAMES says what differs. An interrupted run goes on where it stopped.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from common import Results, begin

from metabonk.measure.statistics import difference_interval, mean_interval
from metabonk.pipeline.stages import Pipeline

PIPELINE = Path(__file__).parents[1] / "pipelines" / "dreamer4.yaml"
GAMES = {  # what differs from the pipeline's defaults
    "bonk:lit": {"imagine.episodes": 100},
    "minatar:space_invaders": {
        "record.image_size": 10, "record.ticks_per_step": 1, "record.episode_steps": 300, "encode.plain": "true",
        "encode.sizes": "{patch: 5}", "encode.steps": 3_000,
        "dynamics.sizes": "{pack: 4, kv_heads: 4, registers: 1, image_ratio: 0.1}", "dynamics.within": 32,
        "dynamics.steps": 8_000,
        "dynamics.agent_steps": 1_000, "imagine.starts": 64, "imagine.horizon": 12, "imagine.replay": 0.0, "imagine.beta": 0.3,
        "imagine.steps": 350, "imagine.episodes": 100,
    },
}  # fmt: skip


def sizes_of(game: str) -> dict[str, Any]:
    """All that is set in a run, by the pipeline and here."""
    stages = Pipeline.read(PIPELINE).stages
    given = {f"{stage.name}.{name}": value for stage in stages for name, value in stage.given.items()}
    return {**given, **GAMES[game], "game": game}


def train(game: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One whole run of the pipeline, and the real scores of its policies."""
    begun = time.monotonic()
    run = options.folder / f"{game.replace(':', '-')}-{seed}"
    sets = [word for name, value in GAMES[game].items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "metabonk.cli", "run", str(PIPELINE), "--game", game, "--seed", str(seed), "--run", str(run)]
    subprocess.run([*command, *sets], check=True)
    scores = pd.read_csv(run / "stages/imagine/episodes.csv").groupby("who")["return"].mean()
    return {"game": game, "seed": seed, **scores.round(3).to_dict(), "minutes": round((time.monotonic() - begun) / 60, 1)}


def show(rows: pd.DataFrame) -> None:
    """Means over training runs, and the gain run by run, with Student intervals."""
    for game, group in rows.groupby("game", sort=False):
        if len(group) < 2:
            print(f"{game}: one run, no interval can be given\n{group.to_string(index=False)}")
            continue
        print(f"{game}, {len(group)} runs")
        for who in ("imagination", "cloned", "sticky random", "random"):
            print(f"  {who:14} {mean_interval(group[who].to_numpy(), method='t')}")
        gain = difference_interval(group["imagination"].to_numpy(), group["cloned"].to_numpy(), paired=True, method="t")
        print(f"  imagination - cloned: {gain}")


def main() -> None:
    """All runs that are not in the results yet."""
    games = {"nargs": "*", "default": list(GAMES), "choices": list(GAMES)}
    options, _ = begin("imagination", __doc__, {}, games=games)
    rows = {game: Results("imagination", sizes_of(game)) for game in GAMES}
    for seed in options.seeds:
        for game in options.games:
            if not rows[game].has(game=game, seed=seed):
                rows[game].add(train(game, seed, options))
    show(pd.concat([found.table().query("game == @game") for game, found in rows.items()]))


if __name__ == "__main__":
    main()
