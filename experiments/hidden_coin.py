"""Does the world model know where the hidden coin is? The models of `hearing.py`, asked by a straight line.

`python experiments/hidden_coin.py --runs 5` writes one row a training run to experiments/results/hidden_coin.csv and
prints the table; `--table` prints it alone.

In a dark screen the coin is not in the picture; it hums, the louder the nearer, from its side. World models of three arms
learn from the same recordings as there, no policy is trained. Then a ridge regression from the features of rows, which is
all that a policy is given, to the way from hero to coin is fitted on two thirds of the episodes and judged on the others:
the share of rows in which it names the right side, where the coin is more than 12 pixels away on that axis. Control:
sound shuffled in time. The sound's tokens of the row alone, without a world model, are there for comparison.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import begin, prepare
from hearing import SIZES as HEARING
from hearing import WORLD, ShuffledCache, settings, world_model

from metabonk.measure.statistics import mean_interval
from metabonk.record.cache import Cache
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenCache

ARMS = ("both senses", "pictures only", "sound shuffled in time")
NAMES = ("steps", "sound_tokens", "ticks", "episode_steps", "picture_steps", "sound_steps", "model_steps", "reward_scale",
         "hp", "opponents", "charger_gap")  # fmt: skip
SIZES = {name: HEARING[name] for name in NAMES}
FAR, PENALTY, BURN_IN = 12, 30.0, 8  # pixels; of the regression; rows in which the model finds out where it is


@torch.no_grad()
def facts(arm: str, model: Any, store: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of all rows with a hidden coin: features, the sound's tokens as zeros and ones, the way to the coin, the episode."""
    tokens, table = TokenCache(store.with_suffix(".tokens")), Cache.build(Store.open(store)).table
    heard = ShuffledCache(tokens) if "shuffled" in arm else tokens
    places, codes = model.tokenizers.sizes["audio"]
    found = []
    for rows, number, place in tokens.segments[["rows", "episode", "place"]].tolist():
        batch, part = heard.gather([[(place, place + rows)]]).torch(), table[place : place + rows]
        way = np.stack([part[f"probes/coin_{axis}"].astype(float) - part[f"probes/{axis}"] for axis in "xy"], 1)
        hidden = (part["probes/coin_x"] > 0) & (np.arange(rows) >= BURN_IN)
        features = model.features(model.observe(batch, every=True)).numpy()
        sound = np.eye(codes, dtype=np.float32)[batch.audio[0].numpy()].reshape(rows, places * codes)
        found.append((features[hidden], sound[hidden], way[hidden], np.full(hidden.sum(), number)))
    features, sound, way, episode = map(np.concatenate, zip(*found, strict=True))
    return features, sound, way, episode


def sides(x: np.ndarray, way: np.ndarray, episode: np.ndarray) -> list[float]:
    """Share of rows in which a straight line from x names the right side: left or right, up or down."""
    numbers = np.unique(episode)
    judged = np.isin(episode, numbers[::3])
    centre, usual = x[~judged].mean(0), way[~judged].mean(0)
    inputs = (x[~judged] - centre).astype(np.float64)
    weights = np.linalg.solve(inputs.T @ inputs + PENALTY * np.eye(x.shape[1]), inputs.T @ (way[~judged] - usual))
    told, true = (x[judged] - centre) @ weights + usual, way[judged]
    return [float((np.sign(told) == np.sign(true))[np.abs(true[:, i]) > FAR, i].mean()) for i in (0, 1)]


def train(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One world model, and what its features tell."""
    begun, base = time.monotonic(), options.folder / f"seed-{seed}"
    tokenizers = prepare(base, WORLD, settings(options), seed, options, sound_tokens=options.sound_tokens)
    folder = base / f"model-{arm.replace(' ', '-')}"
    model = world_model(arm, seed, tokenizers, base / "store", folder, options.model_steps, options.reward_scale).eval()
    features, sound, way, episode = facts(arm, model, base / "store")
    (across, up), (tokens_across, tokens_up) = sides(features, way, episode), sides(sound, way, episode)
    return {"arm": arm, "seed": seed, "left or right": across, "up or down": up, "by tokens alone, left or right": tokens_across,
            "by tokens alone, up or down": tokens_up, "minutes": round((time.monotonic() - begun) / 60, 1)}  # fmt: skip


def show(rows: pd.DataFrame) -> None:
    """Means over training runs with Student intervals."""
    table = {}
    for arm, group in rows.groupby("arm", sort=False):
        numbers = group.drop(columns=["sizes", "arm", "seed", "minutes"])
        told = {name: mean_interval(numbers[name].to_numpy(), method="t") if len(group) > 1 else numbers[name].iloc[0]
                for name in numbers}  # fmt: skip
        table[arm] = {**{name: str(value) for name, value in told.items()}, "runs": len(group)}
    print(pd.DataFrame(table).T.to_string())


def main() -> None:
    """All runs that are not in the results yet."""
    options, rows = begin("hidden_coin", __doc__, SIZES)
    for seed in options.seeds:
        for arm in ARMS:
            if not rows.has(arm=arm, seed=seed):
                rows.add(train(arm, seed, options))
    show(rows.table())


if __name__ == "__main__":
    main()
