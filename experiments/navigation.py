"""Does looking ahead shorten the way to the telephone? Agents of several training seeds, each alone and with a planner.

`python experiments/navigation.py --runs 5` trains a navigation agent for each seed in the rooms of the training scenes
(first a walker is imitated, then PPO), and lets it play the same held-out episodes alone, with a planner whose model is the
game itself (an oracle), and, with `--world FOLDER`, with one whose model is a trained `AVWorld`. It writes a row for each
agent, planner, number of beams and depth to experiments/results/navigation.csv: SPL, SoftSPL, NA and SNA as in Table 8 of
arXiv 2512.00883. Then it prints means over training seeds with Student intervals, and for the planners the
difference from the same agent alone, seed by seed. `--table` prints that alone. An interrupted run goes on where it stopped:
training at its last checkpoint, evaluation with the next row.
"""

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import begin

from metabonk.act.lookahead import LookAheadAgent, LookAheadConfig, SimulatorModel
from metabonk.act.navigation import NavigationAgent, NavigationConfig, NavigationNet
from metabonk.act.navigation_training import NavigationTraining, train_navigation
from metabonk.core.actions import ActionSpec
from metabonk.core.learner import TrainConfig
from metabonk.dream.av_world import AVWorld
from metabonk.measure.navigation_scores import episode_scores, evaluate_navigation
from metabonk.measure.statistics import difference_interval, mean_interval
from metabonk.play.game import make_game

SIZES = {"updates": 1200, "clone": 900, "games": 16, "steps": 32, "epochs": 3, "lr": 1e-3, "train_length": 150,
         "preset": "tiny", "episodes": 20, "length": 300, "candidates": 3, "draw": "sample", "beams": "1 3", "depths": "1 3",
         "world_looks": "3x3", "value": "leaf"}  # fmt: skip
SCORES = ["success", "SPL", "SoftSPL", "NA", "SNA"]
FOUR = ActionSpec(categorical=(4,))


def trained(seed: int, options: argparse.Namespace) -> NavigationAgent:
    """The agent of a training seed: made now, or loaded."""
    folder = options.folder / f"agent-{seed}"
    if not (folder / "agent").exists():
        torch.manual_seed(seed)
        net = NavigationNet(NavigationConfig.preset(options.preset), FOUR)
        sizes = {name: getattr(options, name) for name in ("games", "steps", "epochs", "clone")}
        training = NavigationTraining(**sizes, seed=seed)
        train = TrainConfig.preset("tiny", steps=options.updates, lr=options.lr, cooldown=0.25, checkpoint_every=100, seed=seed)
        settings = {"scenes": "train", "pattern": "to_source", "max_steps": options.train_length}
        train_navigation(net, folder / "training", training, train, settings).save(folder / "agent")
    return NavigationAgent.load(folder / "agent")


def looks_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Who plays: the policy alone, and planners by model, beams and depth."""
    wide = [(int(beams), int(depth)) for beams in options.beams.split() for depth in options.depths.split()]
    with_world = [tuple(map(int, look.split("x"))) for look in options.world_looks.split()] if options.world else []
    players = [("oracle", *look) for look in wide] + [(world_name(options.world), *look) for look in with_world]
    return [{"model": "none", "beams": 0, "depth": 0},
            *({"model": name, "beams": beams, "depth": depth} for name, beams, depth in players)]  # fmt: skip


def world_name(folder: Path) -> str:
    """A trained world by its weights: those of others never mix with it."""
    return "world " + hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:8]


def score(agent: NavigationAgent, who: dict[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One agent, alone or with a planner, in the held-out episodes; these are the same for all."""
    begun, settings = time.monotonic(), {"scenes": "test", "pattern": "to_source", "max_steps": options.length}
    player: Any = agent
    if who["model"] != "none":
        model = SimulatorModel(make_game("rooms", **settings)) if who["model"] == "oracle" else AVWorld.load(options.world)
        look = LookAheadConfig(
            candidates=options.candidates, beams=who["beams"], depth=who["depth"], value=options.value, draw=options.draw
        )
        player = LookAheadAgent(model, agent.model, look, stop=3)
    played = evaluate_navigation(player, options.episodes, seed=0, games=4, settings=settings)
    name = "-".join(str(part) for part in who.values()).replace(" ", "-")
    (options.folder / "episodes").mkdir(parents=True, exist_ok=True)
    played.to_csv(options.folder / "episodes" / f"{seed}-{name}.csv", index=False)
    means = episode_scores(played)[SCORES].mean().round(4).to_dict()
    return {"seed": seed, **who, "episodes": len(played), **means, "minutes": round((time.monotonic() - begun) / 60, 2)}


def show(rows: pd.DataFrame) -> None:
    """Means over training seeds, and the difference from the same agents alone."""
    if not len(rows):
        return print("no training run of these sizes has been made yet")
    alone = rows[rows["model"] == "none"].set_index("seed")
    for who, group in rows.groupby(["model", "beams", "depth"], sort=False):
        own = group.set_index("seed").sort_index()
        print(f"model {who[0]}, beams {who[1]}, depth {who[2]}: {len(own)} training seeds")
        for name in SCORES:
            values, both = own[name].to_numpy(), own.index.intersection(alone.index)
            told = str(mean_interval(values, method="t")) if len(set(values)) > 1 else f"{values[0]:.3f}"
            if who[0] != "none" and len(both) > 1:
                pair = own.loc[both, name].to_numpy(), alone.loc[both, name].to_numpy()
                told += f"; difference from the policy alone {difference_interval(*pair, paired=True, method='t')}"
            print(f"  {name:8} {told}")


def main() -> None:
    """All rows that are not there yet."""
    world = {"type": Path, "help": "folder of a trained AVWorld; without it only the oracle is the planner's model"}
    options, rows = begin("navigation", __doc__, SIZES, world=world)
    for seed in options.seeds:
        wanted = [who for who in looks_of(options) if not rows.has(seed=seed, **who)]
        agent = trained(seed, options) if wanted else None
        for who in wanted:
            rows.add(score(agent, who, seed, options))
    show(rows.table())


if __name__ == "__main__":
    main()
