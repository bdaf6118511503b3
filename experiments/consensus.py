"""Do the eyes overrule the ears? A ding without a coin must earn less expected reward than a true one: why it does not.

`python experiments/consensus.py --runs 5` writes one row a training run and arm to experiments/results/consensus.csv and
prints the table; `--table` prints it alone. `--arms "as recorded"` makes one arm only, `--eyes` asks the eyes alone.

Recordings are those of `listening.py`: Bonk with all screens lit and false dings. First the eyes, with no world model in
between: a logistic regression tells true dings from false ones by what changed between the row before and the row of the
ding. From pixels of the score's line; from picture tokens, by which code turned into which, wherever in the picture. It is
fitted on one half of the episodes and judged on the other. Then the world model, in two arms: trained on sequences as they
were recorded, and with a share of them (`marked`) drawn around the rows that sound of reward, true or false.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import begin, prepare
from listening import SIZES as LISTENING
from listening import WORLD
from scipy.special import expit

from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.listening import cue_conflict, cue_conflict_claims, cue_conflict_table
from metabonk.measure.moments import RowKinds, every_row, find_moments
from metabonk.measure.reality import RewardSound
from metabonk.measure.statistics import mean_interval
from metabonk.record.cache import Cache
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.alignment import roc_auc
from metabonk.sense.tokens import TokenCache, TokenData, Tokenizers

ARMS = {"as recorded": 0.0, "around reward sounds": 1.0}
SIZES = {**LISTENING, "marked": 0.5}
SCORE = slice(57, 64)  # rows of the picture that show hit points and score


def told(x: np.ndarray, y: np.ndarray, half: np.ndarray) -> float:
    """Area under the ROC curve of a logistic regression, each half of the episodes judged by the other."""
    found = []
    for train in (half, ~half):
        weights, bias, inputs = np.zeros(x.shape[1]), 0.0, x[train].astype(float)
        for _ in range(400):
            off = expit(inputs @ weights + bias) - y[train]
            weights, bias = weights - inputs.T @ off / len(off) - 1e-3 * weights, bias - 0.5 * off.mean()
        found.append(roc_auc(x[~train] @ weights + bias, y[~train]))
    return float(np.mean(found))


def eyes(store: Path) -> dict[str, float]:
    """How well the picture tells true dings from false ones, before and after the tokenizer."""
    opened, table, image = Store.open(store), TokenCache(store.with_suffix(".tokens")), Cache.build(Store.open(store)).image
    kinds, codes = RowKinds(opened), table.sizes["image"][1]
    pixels, turned, true, episodes = [], [], [], []
    for rows, episode, place in table.segments[["rows", "episode", "place"]].tolist():
        batch = table.gather([[(place, place + rows)]])
        kind = kinds(batch)[0]
        for t in np.flatnonzero(np.isin(kind, ["ding", "decoy"]) & (np.arange(rows) > 0)):
            before, now = batch.image[0, t - 1 : t + 1]
            change = np.zeros((codes, codes), np.float32)
            np.add.at(change, (before, now), before != now)
            seen = image[place + t - 1 : place + t + 1, SCORE].astype(np.float32).mean(-1) / 255
            pixels.append(np.abs(seen[1] - seen[0]).ravel())
            turned.append(change.ravel())
            true.append(kind[t] == "ding")
            episodes.append(episode)
    half = np.isin(episodes, np.unique(episodes)[::2])
    return {f"told by {name}": told(np.array(x), np.array(true), half) for name, x in (("pixels", pixels), ("tokens", turned))}


def marks(store: Path, path: Path) -> Path:
    """The rows that sound of reward, whether they paid or not."""
    table = TokenCache(store.with_suffix(".tokens"))
    sound = np.array(table.table["audio"]).astype(np.int64)
    rows = RewardSound.of(sound, np.array(table.table["reward"]) > 0.5, table.sizes["audio"][1])(sound)
    found = []
    for count, episode, step, place in table.segments[["rows", "episode", "step", "place"]].tolist():
        found += [(episode, step + t) for t in np.flatnonzero(rows[place : place + count]).tolist()]
    pd.DataFrame(found, columns=["episode", "step"]).to_csv(path, index=False)
    return path


def recorded(seed: int, options: argparse.Namespace) -> tuple[Path, Tokenizers]:
    """The folder of a seed with its recordings, and its tokenizers."""
    folder = options.folder / f"seed-{seed}"
    bonk = {"darkness": 0, "chargers": 0, "opponents": 0, "start_screen": 8, "decoys": options.decoys}
    settings = {"max_steps": options.episode_steps, "ticks_per_step": options.ticks, "settings": bonk}
    return folder, prepare(folder, WORLD, settings, seed, options, options.held_out, options.sound_tokens)


def train(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One world model, and what it promises at true and false dings of rows that nothing learned from."""
    begun, (folder, tokenizers) = time.monotonic(), recorded(seed, options)
    seed_everything(seed)
    schema = Store.open(folder / "store").schema
    config = TokenModelConfig.preset("tiny", reward_scale=options.reward_scale)
    model = TokenModel(config, tokenizers, schema.actions, game=schema.game)
    model.start_from(TokenCache(folder / "store.tokens"), seed=seed)
    drawn = SequenceConfig(length=16, batch_size=16, seed=seed, marked=options.marked * ARMS[arm])
    data = TokenData(folder / "store", tokenizers, drawn, marks=marks(folder / "store", folder / "marks.csv"))
    training = TrainConfig(steps=options.model_steps, lr=3e-3, warmup=100, checkpoint_every=10**6, seed=seed)
    fit(WorldModelLearner(model), data, folder / arm.replace(" ", "-"), training)
    model.eval()
    tokens, label = TokenCache(folder / "held.tokens"), RowKinds(Store.open(folder / "held"))
    found = cue_conflict(model, find_moments(every_row(tokens), label, count=options.moments, seed=seed), seed=seed)
    table, claims = cue_conflict_table(found, seed=seed), cue_conflict_claims(found)
    promised = {f"{kind}, {senses}": table.loc[senses, kind] for senses in table.index for kind in ("ding", "decoy")}
    aucs = {f"ROC AUC, {senses}": table.loc[senses, "roc_auc"] for senses in table.index}
    return {"arm": arm, "seed": seed, **promised, **aucs, "consensus wins": float(claims["holds"].all()),
            **eyes(folder / "store"), "minutes": round((time.monotonic() - begun) / 60, 1)}  # fmt: skip


def show(rows: pd.DataFrame) -> None:
    """Means over training runs with Student intervals."""
    table = {}
    for arm, group in rows.groupby("arm", sort=False):
        numbers = group.drop(columns=["sizes", "arm", "seed", "minutes"])
        values = {name: numbers[name].to_numpy() for name in numbers}
        table[arm] = {name: str(mean_interval(x, method="t")) if len(set(x)) > 1 else f"{x[0]:.3f}" for name, x in values.items()}
        table[arm]["runs"] = len(group)
    print(pd.DataFrame(table).to_string())


def main() -> None:
    """All runs that are not in the results yet."""
    arms = {"nargs": "*", "default": list(ARMS), "choices": list(ARMS)}
    options, rows = begin("consensus", __doc__, SIZES, arms=arms, eyes={"action": "store_true", "help": "train nothing"})
    if options.eyes:
        asked = {seed: eyes(recorded(seed, options)[0] / "store") for seed in options.seeds}
        return print(pd.DataFrame(asked).rename_axis("seed", axis=1).T.round(3).to_string())
    for seed in options.seeds:
        for arm in options.arms:
            if not rows.has(arm=arm, seed=seed):
                rows.add(train(arm, seed, options))
    show(rows.table())


if __name__ == "__main__":
    main()
