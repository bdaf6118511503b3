"""Two places where the recurrent model starts otherwise than DreamerV3's: its block-linear layers, and its sequences.

`python experiments/departures.py --runs 5` trains every arm that many times and writes one row a training run to
experiments/results/departures.csv; rows that are there already are not made again. `--table` prints the table alone.

All runs share a recording of random play in `bonk:dark` as the main pipeline makes it, its tokenizers and a second recording
that nothing learns from. Each run trains a world model, lets a policy dream in it, and plays. Losses are in nats a row, the
scaled sum that training lowers: over the last tenth of training; on the second recording in sequences as long as training's,
begun in the zero state; and on its whole episodes from their first row, as in play.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import begin, prepare

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.seed import seed_everything, spawn_seeds
from metabonk.core.training import fit
from metabonk.dream.token_model import KeptStates, TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.statistics import difference_interval, mean_interval
from metabonk.record.sampling import SequenceConfig, Sequences
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenBatch, TokenCache, TokenData, Tokenizers

WORLD, SETTINGS = "bonk:dark", {"max_steps": 300, "ticks_per_step": 12}
BASE = "as it is"
ARMS: dict[str, dict[str, Any]] = {BASE: {}, "authors' first weights": {"fan": "layer"}, "authors' kept states": {"kept": True}}
MEASURES = ("training loss", "held-out loss", "held-out loss of whole episodes", "score")
SIZES = {"steps": 20_000, "held_out": 3_000, "sound_tokens": 16, "picture_steps": 300, "sound_steps": 400, "model_steps": 1_000,
         "dream_steps": 150, "episodes": 30}  # fmt: skip


def held_rows(folder: Path, length: int) -> TokenBatch:
    """The held-out recording in sequences that overlap nowhere."""
    cache = TokenCache(folder / "held.tokens")
    sequences = Sequences(cache, length)
    batch = cache.gather(sequences.spans(np.arange(len(sequences)))).torch()
    keep = batch.step[:, 0] % length == 0
    return batch.map(lambda x: x[keep])


def held_loss(model: TokenModel, folder: Path, length: int) -> float:
    """What the held-out recording costs, nats a row."""
    seed_everything(0)
    with torch.no_grad():
        return float(model.total(model.losses(held_rows(folder, length))[0]))


def train(arm: str, seed: int, tokenizers: Tokenizers, options: argparse.Namespace) -> dict[str, Any]:
    """One training run: model, policy, score."""
    begun, store, cache = time.process_time(), options.folder / "store", TokenCache(options.folder / "store.tokens")
    folder = options.folder / f"{arm.replace(' ', '-')}-{seed}"
    change = dict(ARMS[arm])
    kept = change.pop("kept", False)
    seed_everything(seed)
    schema = Store.open(store).schema
    model = TokenModel(TokenModelConfig.preset("tiny", reward_scale=10.0, **change), tokenizers, schema.actions)
    model.start_from(cache, seed=seed)
    states = KeptStates.of(model, cache) if kept else None
    sequences = SequenceConfig(length=16, batch_size=16, seed=seed)
    training = TrainConfig(steps=options.model_steps, lr=3e-3, warmup=100, checkpoint_every=10**6, seed=seed)
    fit(WorldModelLearner(model, states), TokenData(store, tokenizers, sequences), folder / "model", training)
    actor_critic = ActorCritic(ActorCriticConfig(units=64, entropy=3e-3), model.feature_size, model.actions)
    learner = DreamLearner(model, actor_critic, DreamConfig.preset("tiny"), before=states.before if states else None)
    policy = TrainConfig(steps=options.dream_steps, lr=1e-3, warmup=50, checkpoint_every=10**6, seed=seed)
    fit(learner, TokenData(store, tokenizers, sequences.change(seed=seed + 1)), folder / "dream", policy)
    played = play_episodes(Agent(model, actor_critic), WORLD, options.episodes, spawn_seeds(1_000 + seed, 1)[0], 10, SETTINGS)
    model.eval()
    log = read_log(folder / "model")["loss"].dropna()
    found = (log.iloc[-max(1, len(log) // 10) :].mean(), held_loss(model, options.folder, 16),
             held_loss(model, options.folder, 300), played["return"].mean())  # fmt: skip
    return {"arm": arm, "seed": seed, **{name: round(float(x), 4) for name, x in zip(MEASURES, found, strict=True)},
            "core minutes": round((time.process_time() - begun) / 60, 1)}  # fmt: skip


def show(rows: pd.DataFrame) -> None:
    """Means over training runs, and how each arm stands to the model as it is, with bootstrap intervals."""
    for measure in MEASURES:
        values = {arm: group[measure].to_numpy() for arm, group in rows.groupby("arm", sort=False) if len(group) > 1}
        print(measure)
        for arm, numbers in values.items():
            less = "" if arm == BASE or BASE not in values else f"  less {BASE}: {difference_interval(numbers, values[BASE])}"
            print(f"  {arm:24} {mean_interval(numbers)} of {len(numbers)} runs{less}")


def main() -> None:
    """All runs that are not in the results yet."""
    arms = {"nargs": "*", "default": list(ARMS), "choices": list(ARMS)}
    options, rows = begin("departures", __doc__, SIZES, arms=arms)
    for seed in options.seeds:
        for arm in options.arms:
            if not rows.has(arm=arm, seed=seed):
                tokenizers = prepare(options.folder, WORLD, SETTINGS, 0, options, options.held_out, options.sound_tokens)
                rows.add(train(arm, seed, tokenizers, options))
    show(rows.table())


if __name__ == "__main__":
    main()
