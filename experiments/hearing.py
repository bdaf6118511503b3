"""Does hearing help? On Bonk with chargers in every screen and all screens dark: both senses, one of them, or shuffled sound.

`python experiments/hearing.py --runs 5` trains every arm that many times from nothing and writes one row a training run
to experiments/results/hearing.csv; rows that are there already are not made again. `--table` prints the table alone.
Runs of the same seed share the recording of random play and the tokenizers; everything else is learned anew.
One arm more has the reality check act: in the rounds, rows around rewards and reward sounds that the model got wrong are
drawn more often (`--arms "both senses" "both senses, mistakes more often"`).
"""

import argparse
import dataclasses
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import begin, prepare

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.finetune import FineTune, FineTuneConfig, ShortUpdates
from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything, spawn_seeds
from metabonk.core.training import fit
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.evaluation import evaluate
from metabonk.measure.reality import RoundCheck
from metabonk.measure.statistics import ratio_interval, score_table
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.tokens import ObservationEncoder, TokenBatch, TokenCache, TokenData, Tokenizers

MISTAKES = "both senses, mistakes more often"  # rows around rewards and reward sounds that the model got wrong
ARMS = {"both senses": "both", "pictures only": "picture", "sound only": "sound", "sound shuffled in time": "both",
        MISTAKES: "both"}  # fmt: skip
WORLD = "bonk:danger"
SIZES = {"steps": 20_000, "sound_tokens": 16, "ticks": 12, "episode_steps": 300, "picture_steps": 300, "sound_steps": 500,
         "model_steps": 1_600, "dream_steps": 200, "rounds": 20, "round_episodes": 10, "round_model_steps": 150,
         "round_dream_steps": 100, "episodes": 20, "reward_scale": 10.0, "entropy": 3e-3, "hp": 9, "opponents": 0,
         "charger_gap": 32}  # fmt: skip


class ShuffledCache:
    """A token cache whose sound is that of other rows: as rich as before, and about nothing that happens now."""

    def __init__(self, cache: TokenCache):
        self.cache, self.path, self.segments = cache, cache.path, cache.segments
        self.sounds, self.generator = cache.table["audio"], np.random.default_rng(0)

    def gather(self, places: Any) -> TokenBatch:
        batch = self.cache.gather(places)
        other = self.generator.integers(len(self.sounds), size=batch.first.shape)
        return dataclasses.replace(batch, audio=self.sounds[other].astype(np.int64))


class ShuffledData(TokenData):
    """Batches with shuffled sound."""

    def open(self) -> Any:
        return ShuffledCache(super().open())


class ShuffledSenses(ObservationEncoder):
    """Live ears that hear something from another time."""

    def __init__(self, tokenizers: Tokenizers, games: int, sounds: np.ndarray):
        super().__init__(tokenizers, games)
        self.sounds, self.generator = sounds, np.random.default_rng(1)

    def __call__(self, observation: Any, first: Any = None) -> TokenBatch:
        rows = super().__call__(observation, first)
        other = self.generator.integers(len(self.sounds), size=(self.games, 1))
        return dataclasses.replace(rows, audio=torch.from_numpy(self.sounds[other].astype(np.int64)))


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of every game here."""
    bonk = {name: getattr(options, name) for name in ("hp", "opponents", "charger_gap")}
    return {"max_steps": options.episode_steps, "ticks_per_step": options.ticks, "settings": bonk}


def sequences(arm: str, tokenizers: Tokenizers, seed: int, store: Path, recent: float = 0.5) -> TokenData:
    """What world model and policy learn from."""
    marked, marks = (0.25, store.parent / "marks.csv") if arm == MISTAKES else (0.0, None)
    config = SequenceConfig(length=16, batch_size=16, recent=recent, half_life=3_000.0, marked=marked, seed=seed)
    return (ShuffledData if "shuffled" in arm else TokenData)(store, tokenizers, config, marks=marks)


def world_model(arm: str, seed: int, tokenizers: Tokenizers, store: Path, folder: Path, steps: int, scale: float) -> TokenModel:
    """The world model of an arm, trained on a recording."""
    seed_everything(seed)
    config = TokenModelConfig.preset("tiny", senses=ARMS[arm], reward_scale=scale)
    model = TokenModel(config, tokenizers, Store.open(store).schema.actions, game="bonk")
    model.start_from(TokenCache(store.with_suffix(".tokens")), seed=seed)
    training = TrainConfig(steps=steps, lr=3e-3, warmup=100, checkpoint_every=10**6, seed=seed)
    fit(WorldModelLearner(model), sequences(arm, tokenizers, seed, store, 0.0), folder, training)
    return model


def train(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training run, from a recording of random play to the score of the best agent on fresh episodes."""
    begun = time.monotonic()
    base = options.folder / f"seed-{seed}"
    tokenizers = prepare(base, WORLD, settings(options), seed, options, sound_tokens=options.sound_tokens)
    folder = options.folder / f"seed-{seed}-{arm.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("store", "store.cache", "store.tokens"):
        shutil.copytree(base / name, folder / name)
    shuffled = "shuffled" in arm
    sounds = np.array(TokenCache(folder / "store.tokens").table["audio"])
    data = partial(sequences, arm, tokenizers, seed)

    def senses(games: int) -> ObservationEncoder:
        return ShuffledSenses(tokenizers, games, sounds) if shuffled else ObservationEncoder(tokenizers, games)

    steps, scale = options.model_steps, options.reward_scale
    model = world_model(arm, seed, tokenizers, folder / "store", folder / "model", steps, scale)
    actor_critic = ActorCritic(ActorCriticConfig(units=64, entropy=options.entropy), model.feature_size, model.actions)
    dreams, policy = DreamConfig.preset("tiny"), TrainConfig(lr=1e-3, warmup=20, checkpoint_every=10**6, seed=seed)
    fit(DreamLearner(model, actor_critic, dreams), data(folder / "store", 0.0), folder / "dream",
        policy.change(steps=options.dream_steps))
    update = ShortUpdates(
        data, WorldModelLearner, TrainConfig(steps=options.round_model_steps, lr=2e-3, warmup=20, checkpoint_every=10**6),
        policy.change(steps=options.round_dream_steps), dreams,
    )
    tuning = FineTuneConfig(rounds=options.rounds, episodes=options.round_episodes, seed=seed)
    check = RoundCheck(folder, data, seed=seed) if arm == MISTAKES else None
    rounds = FineTune(Agent(model, actor_critic, senses), WORLD, folder / "store", folder / "rounds", update, tuning,
                      settings(options), check)
    played_rounds = rounds.run()
    best = Agent.load(rounds.best_agent, TokenModel.load, senses=senses)
    fresh = spawn_seeds(1_000 + seed, 1)[0]
    played = play_episodes(best, WORLD, options.episodes, fresh, 10, settings(options))
    random_play = evaluate(WORLD, "random", options.episodes, fresh, settings(options))
    if not options.keep:
        shutil.rmtree(folder)
    return {"arm": arm, "seed": seed, "score": played["return"].mean(), "random": random_play["return"].mean(),
            "best round": rounds.best, "steps": options.steps + int(played_rounds["steps"].iloc[-1]),
            "model steps": options.model_steps + options.rounds * options.round_model_steps,
            "minutes": round((time.monotonic() - begun) / 60, 1)}  # fmt: skip


def show(rows: pd.DataFrame) -> None:
    """The table: Student intervals over training runs, and how each arm stands to pictures only."""
    scores = {arm: group["score"].to_numpy() for arm, group in rows.groupby("arm", sort=False) if len(group) > 1}
    if not scores:
        return print("fewer than two training runs of every arm: no interval can be given")
    scores["random play"] = rows.groupby("seed")["random"].mean().to_numpy()
    control = "pictures only"
    print(score_table(scores, control if control in scores else "", method="t").round(2).to_string())
    if {"both senses", control} <= scores.keys():
        print("both senses / pictures only:", ratio_interval(scores["both senses"], scores[control], method="t"))


def main() -> None:
    """All runs that are not in the results yet."""
    arms = {"nargs": "*", "default": [arm for arm in ARMS if arm != MISTAKES], "choices": list(ARMS)}
    keep = {"action": "store_true", "help": "keep the folders of training runs"}
    options, rows = begin("hearing", __doc__, SIZES, arms=arms, keep=keep)
    for seed in options.seeds:
        for arm in options.arms:
            if not rows.has(arm=arm, seed=seed):
                rows.add(train(arm, seed, options))
    show(rows.table())


if __name__ == "__main__":
    main()
