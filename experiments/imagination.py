"""Does a policy that goes on learning in imagination beat the one it was cloned from? Whole runs of Dreamer 4's pipeline.

`python experiments/imagination.py --runs 5` runs pipelines/dreamer4.yaml that many times on Bonk and on MinAtar's space
invaders, each time from nothing: recording, tokenizer, dynamics, cloned policy, imagination. It writes one row a run to
experiments/results/imagination.csv and prints the table; `--table` prints it alone. Scores are means over a hundred
episodes of the real game, the same for both policies; random play is the control. What GAMES says of a game comes before the
options. An interrupted run goes on where it stopped.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from common import Rows, begin

from metabonk.measure.statistics import difference_interval, mean_interval

PIPELINE = Path(__file__).parents[1] / "pipelines" / "dreamer4.yaml"
GAMES = {
    "bonk": {
        "record.settings": "{settings: {darkness: 0, chargers: 0, opponents: 0, start_screen: 8}}", "record.episode_steps": 100,
        "record.image_size": 32, "record.steps": 50_000, "encode.steps": 1_500, "encode.sizes": "{bottleneck: 16}",
        "dynamics.sizes": "{pack: 4, width: 96, kv_heads: 4, registers: 1, single: 0.1}", "dynamics.shortcut": "{ramp: false}",
        "dynamics.batch": 8, "dynamics.lr": 3e-3, "dynamics.within": 4, "dynamics.steps": 4_000, "dynamics.agent_steps": 2_500,
        "imagine.starts": 128, "imagine.horizon": 4, "imagine.replay": 1.0, "imagine.beta": 0.05, "imagine.lr": 4e-3,
        "imagine.steps": 300, "imagine.episodes": 100,
    },
    "minatar:space_invaders": {
        "record.image_size": 10, "record.ticks_per_step": 1, "record.steps": 50_000, "encode.plain": "true",
        "encode.sizes": "{patch: 5}", "encode.steps": 3_000,
        "dynamics.sizes": "{pack: 4, kv_heads: 4, registers: 1, single: 0.1}", "dynamics.shortcut": "{ramp: false}",
        "dynamics.batch": 8, "dynamics.lr": 3e-3, "dynamics.steps": 8_000, "dynamics.agent_steps": 1_000, "imagine.starts": 64,
        "imagine.horizon": 12, "imagine.lr": 4e-3, "imagine.steps": 350, "imagine.episodes": 100,
    },
}  # fmt: skip
SIZES = {"record_steps": 20_000, "encode_steps": 1_500, "dynamics_steps": 1_500, "dynamics_agent_steps": 700,
         "imagine_steps": 200, "imagine_horizon": 15, "imagine_episodes": 20, "imagine_objective": "pmpo"}  # fmt: skip


def train(game: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One whole run of the pipeline, and the real scores of its policies."""
    begun = time.monotonic()
    run = options.folder / f"{game.replace(':', '-')}-{seed}"
    sizes = {name.replace("_", ".", 1): getattr(options, name) for name in SIZES}
    sets = [word for name, value in {**sizes, **GAMES[game]}.items() for word in ("--set", f"{name}={value}")]
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
    options, _ = begin("imagination", __doc__, SIZES, games=games)
    sizes = {name: getattr(options, name) for name in SIZES}
    rows = {game: Rows("imagination", {**sizes, **GAMES[game]}) for game in GAMES}
    for seed in options.seeds:
        for game in options.games:
            if not rows[game].has(game=game, seed=seed):
                rows[game].add(train(game, seed, options))
    show(pd.concat([found.table().query("game == @game") for game, found in rows.items()]))


if __name__ == "__main__":
    main()
