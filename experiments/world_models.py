"""Three world models of one recording: an RSSM over tokens, a shortcut transformer, a diffusion transformer (AV-CDiT).

    python experiments/world_models.py --runs 5

Each run records `bonk:lit` once, by sticky random play. Every model of `MODELS` learns from these rows alone, by the stages of
its own pipeline, encoders included. Then all three are asked the same, on episodes that nothing has learned from:

- `psnr` (dB) and `ssim` of pictures and `lsd` (log10 of power) of sound, in the row that was read last (`0`) and 1, 5, 15
  and 50 steps into a dream under the actions that were played. Rows `repeat last` are the control: the last picture and sound
  again.
- where the hero is: the share of frames in which he is `there`, and his distance `off` in pixels of the machine, found by
  template (`metabonk.measure.movers`), beside a hero who stays and dreams under the actions of other sequences.
- `Hz`: steps of a dream a second, picture and sound decoded, for one player on `--threads` cores; `minutes` of training.
- `score`: return in the real game of a policy that learned in dreams of this model alone. All three policies learn by the same
  actor-critic from as many dreams; random play is the control.

A row a model and run in world_models.csv, a row a number of steps in world_models_steps.csv. `--tiny` runs all of it in its
smallest sizes. What is interrupted goes on at the stage, training or row that is not there yet.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import Results, begin, run_stages, show_means

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.core.learner import TrainConfig
from metabonk.core.run import Run
from metabonk.core.seed import seed_everything, spawn_seeds
from metabonk.core.training import fit
from metabonk.dream.av_world import AVWorld
from metabonk.dream.clips import ClipCache
from metabonk.dream.codes import CodeData
from metabonk.dream.dynamics import ShortcutModel
from metabonk.dream.interface import WorldModel, open_loop_rollout
from metabonk.dream.token_model import TokenModel
from metabonk.measure.audiovisual import lsd, ssim
from metabonk.measure.clips import psnr
from metabonk.measure.evaluation import evaluate
from metabonk.measure.movers import Finder, check_movers, movers_of, places_of, sequences_of
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import ExperienceData, SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenCache, TokenData

GAME, CONTEXT, AHEAD = "bonk:lit", 16, (1, 5, 15, 50)
SIZES = {"steps": 30_000, "held_steps": 3_000, "episode_steps": 100, "encoder_steps": 1_000, "model_steps": 4_000,
         "dream_steps": 300, "starts": 128, "horizon": 8, "episodes": 50}  # fmt: skip
TINY = {"steps": 280, "held_steps": 140, "episode_steps": 70, "encoder_steps": 2, "model_steps": 3, "dream_steps": 1,
        "starts": 4, "horizon": 2, "episodes": 2}  # fmt: skip


@dataclass
class Learned:
    """A trained model, how it reads recordings, and how long it took."""

    model: WorldModel
    data: Any  # batches from which dreams start
    held: Any  # held-out rows as the model reads them, with `gather`
    minutes: float  # of all stages


def plan(name: str, o: argparse.Namespace) -> tuple[str, list[str], dict[str, Any]]:
    """The pipeline of a model, the stages it needs, and their sizes."""
    half = max(1, o.model_steps // 2)
    dreamer = {"encode.steps": o.encoder_steps, "dynamics.steps": o.model_steps, "dynamics.agent_steps": 1}
    return {
        "RSSM": ("metabonk", ["record", "tokenise", "model"],
                 {"tokenise.picture_steps": o.encoder_steps, "tokenise.sound_steps": o.encoder_steps,
                  "model.steps": o.model_steps}),
        "shortcut": ("dreamer4", ["record", "encode", "dynamics"], dreamer),
        "AV-CDiT": ("avcdit", ["record", "latents", "vision", "audio", "joint"],
                    {"record.settings": {}, "latents.steps": o.encoder_steps, "vision.steps": half,
                     "audio.steps": max(1, half // 2), "joint.steps": max(1, half // 2)}),
    }[name]  # fmt: skip


MODELS = ("RSSM", "shortcut", "AV-CDiT")


def learn(name: str, folder: Path, seed: int, o: argparse.Namespace) -> Learned:
    """A model by the stages of its pipeline, on the recording of this run."""
    pipeline, stages, sizes = plan(name, o)
    shared = {"game": GAME, "seed": seed, "record.store": str(folder / "store")}
    run_stages(pipeline, stages, folder / pipeline, shared | sizes)
    run = Run.open(folder / pipeline)
    done, place = run.read()["stages"], folder / pipeline / "stages"
    minutes = sum(done[stage]["seconds"] for stage in stages[1:]) / 60
    store, held = place / "record/store", Store.open(folder / "held")
    draw = SequenceConfig(length=min(16, o.episode_steps), batch_size=16, seed=seed + 1)
    if name == "RSSM":
        tokens = TokenModel.load(place / "model/model")
        eyes = tokens.tokenizers
        data = TokenData(store, eyes, draw, path=place / "tokenise/tokens", cache=place / "tokenise/cache")
        return Learned(tokens, data, TokenCache.build(held, eyes), minutes)
    if name == "shortcut":
        shortcut = ShortcutModel.load(place / "dynamics/model")
        codes = {"path": place / "encode/codes", "cache": place / "encode/cache"}
        coded = CodeData(store, shortcut.tokenizer, shortcut.logmel, draw, **codes)
        return Learned(shortcut, coded, ClipCache(Cache.build(held), shortcut.logmel), minutes)
    world = AVWorld.load(place / "joint/model")
    return Learned(world, ExperienceData(store, draw, place / "latents/cache"), Cache.build(held), minutes)


def real_sound(cache: Cache, row: np.ndarray, samples: int) -> torch.Tensor:
    """The last samples that were heard in some rows, (n, channels, samples)."""
    end = cache.table["sound"][row] + cache.table["audio_length"][row]
    return torch.stack([torch.from_numpy(np.stack([ear[e - samples : e] for ear in cache.sound])) for e in end])


def compare_steps(learned: Learned, cache: Cache, seed: int) -> list[dict[str, Any]]:
    """Pictures and sounds that were dreamed beside those that came: a row for each of `AHEAD`, and each of model and control."""
    spans = sequences_of(cache, CONTEXT + max(AHEAD))
    last = np.array([begin for begin, _ in spans]) + CONTEXT - 1
    batch, model = learned.held.gather([[span] for span in spans]).torch(), learned.model
    action = model.actions.vectors(batch.action)[:, CONTEXT:]
    with torch.no_grad():
        state = model.observe(batch.map(lambda x: x[:, :CONTEXT]), generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        states = open_loop_rollout(model, state, action, keep_states=True, generator=generator).states
        shown = {ahead: model.decode(states[ahead]) for ahead in (0, *AHEAD)}
    samples = min(int(cache.table["audio_length"].min()), shown[0]["audio"].shape[-1])
    sounds = {ahead: real_sound(cache, last + ahead, samples) for ahead in shown}
    rows = []
    for ahead, seen in shown.items():
        came = torch.from_numpy(cache.image[last + ahead])
        pairs = {"model": (seen["image"].cpu(), seen["audio"][..., :samples].cpu()),
                 "repeat last": (torch.from_numpy(cache.image[last]), sounds[0])}  # fmt: skip
        for who, (image, sound) in pairs.items():
            apart = lsd(sound, sounds[ahead], cache.schema.sample_rate)
            rows.append({"who": who, "ahead": ahead, "psnr": float(psnr(image, came).mean()),
                         "ssim": float(ssim(image, came).mean()), "lsd": float(np.nanmean(apart))})  # fmt: skip
    return rows


def hero(learned: Learned, cache: Cache, finder: Finder, seed: int) -> dict[str, float]:
    """Means over sequences of how often he is there and how far he is off, in read frames, dreams and their controls."""
    check = check_movers(learned.model, learned.held, cache, finder, ahead=AHEAD, context=CONTEXT, seed=seed)
    means = check.rows.groupby(["what", "ahead"], sort=False)[["there", "off"]].mean()
    wanted = [key for key in means.index if key[0] in ("read", "dream", "other actions", "stays")]
    return {f"{column}, {what} {ahead}": round(float(means.loc[what, ahead][column]), 4)
            for what, ahead in wanted for column in means}  # fmt: skip


def speed(learned: Learned, cache: Cache, seconds: float = 5.0) -> float:
    """Steps of a dream a second, each seen and heard."""
    model, span = learned.model, sequences_of(cache, CONTEXT)[0]
    state = model.observe(learned.held.gather([[span]]).torch())
    action = model.actions.vectors(torch.zeros(1, 1, *model.actions.shape, dtype=torch.int64))[:, 0]
    count, begun = 0, time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - begun < seconds:
            state = model.advance(state, action)
            model.decode(state)
            count += 1
    return count / (time.perf_counter() - begun)


def score(learned: Learned, folder: Path, seed: int, o: argparse.Namespace, settings: dict[str, Any]) -> dict[str, float]:
    """What a policy that learned in dreams alone earns in the real game."""
    seed_everything(seed)
    model = learned.model
    policy = ActorCritic(ActorCriticConfig.preset("tiny", units=64, entropy=3e-3), model.feature_size, model.actions)
    dreams = DreamConfig(horizon=o.horizon, starts=o.starts, replay=1.0)
    training = TrainConfig(steps=o.dream_steps, lr=1e-3, warmup=50, seed=seed)
    begun = time.perf_counter()
    fit(DreamLearner(model, policy, dreams), learned.data, folder, training)
    minutes = (time.perf_counter() - begun) / 60
    judged = spawn_seeds(seed, 4)[3] >> 1
    played = play_episodes(Agent(model, policy), GAME, o.episodes, judged, min(10, o.episodes), settings)
    return {"score": round(float(played["return"].mean()), 4), "dreaming minutes": round(minutes, 2)}


def measure(seed: int, o: argparse.Namespace, rows: Results, steps: Results) -> None:
    """All rows of a seed that are not there yet."""
    todo = [name for name in o.models if not rows.has(model=name, seed=seed)]
    if not todo:
        return
    folder = o.folder / f"run-{seed}"
    settings = {"image_size": (32, 32), "ticks_per_step": 12, "max_steps": o.episode_steps}
    for name, count, first in (("store", o.steps, seed), ("held", o.held_steps, seed + 1_000)):
        record(GAME, folder / name, "sticky_random", count, seed=first, settings=settings, resume=True)
    cache, held = Cache.build(Store.open(folder / "store")), Cache.build(Store.open(folder / "held"))
    mover = movers_of(cache.schema)["hero"]
    finder = Finder.learn(cache.image, *places_of(cache, mover), mover)
    judged = spawn_seeds(seed, 4)[3] >> 1
    chance = evaluate(GAME, "random", o.episodes, judged, settings, games=2)["return"].mean()
    for name in todo:
        learned = learn(name, folder, seed, o)
        learned.model.eval()
        about = {"seed": seed, "model": name}
        for row in compare_steps(learned, held, seed):
            if not steps.has(**about, who=row["who"], ahead=row["ahead"]):
                steps.add({**about, **{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}})
        rows.add({**about, "minutes": round(learned.minutes, 2), "Hz": round(speed(learned, held), 2),
                  **score(learned, folder / f"{name}-policy", seed, o, settings), "random": round(float(chance), 4),
                  **hero(learned, held, finder, seed)})  # fmt: skip


def show(rows: pd.DataFrame, steps: pd.DataFrame) -> None:
    """Means with intervals, model by model."""
    for name, group in rows.groupby("model", sort=False):
        print(f"== {name}")
        show_means(group.drop(columns="model"))
    if len(steps):
        table = steps.groupby(["model", "who", "ahead"], sort=False)[["psnr", "ssim", "lsd"]].mean()
        print(table.round(3).to_string())


def main() -> None:
    """All rows that are not there yet, and the tables."""
    sizes = TINY if "--tiny" in sys.argv else SIZES
    tiny = {"action": "store_true", "help": "the smallest sizes, to see it run to its end"}
    models = {"nargs": "+", "choices": MODELS, "default": MODELS, "help": "those to train; all if not given"}
    options, rows = begin("world_models", __doc__ or "", sizes, tiny=tiny, models=models)
    steps = Results("world_models_steps", {name: getattr(options, name) for name in sizes})
    for seed in options.seeds:
        measure(seed, options, rows, steps)
    show(rows.table(), steps.table())


if __name__ == "__main__":
    main()
