"""What hearing and seeing together is worth to a world model of rooms: held-out denoising losses, and frames beside copies.

`python experiments/av_worlds.py --runs 5` trains every arm that many times and writes one row a training run to
experiments/results/av_worlds.csv; rows that are there already are not made again. `--table` prints the tables alone. Two
processes with other `--seeds` share two cores; start the second when the first has trained its first run. All 50 runs of the
sizes below take about 4.5 hours of one core, and what is left is printed after each.

Two conditions. `homes`: generated homes with doors and furniture, a telephone that can be seen, and commanded actions, which a
wall may stop; judged in scenes that were not learned from. `one room`: one empty room, and the motion that was really made, so
that neither sense tells the other anything that motion does not say: no gap is expected there.

The arms are held against AV-CDiT twice, at equal weights and at equal operations: a network for each sense (factorised), one
feed-forward network for both senses (shared), and all parts trained from the first step (at once). The networks of one seed
see the same batches, and are judged on the same rows, noise and levels of noise. Rows of AV-CDiT's frames, 1 to 16 steps
ahead, beside copies of the last frame go to experiments/results/av_worlds_steps.csv.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import Results, begin

from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.av_learner import AVLearnerConfig, denoising_loss
from metabonk.dream.av_world import AVWorld, fitted
from metabonk.dream.avcdit import AVCDiTConfig, count_operations, count_parameters, matched
from metabonk.dream.diffusion import DiffusionConfig
from metabonk.measure.av_worlds import paired_table, predict_steps
from metabonk.measure.statistics import difference_interval, mean_interval
from metabonk.record.cache import Cache
from metabonk.record.experience import Batch
from metabonk.record.recorder import record
from metabonk.record.sampling import Sequences
from metabonk.record.store import Store
from metabonk.sense.autoencoder import Autoencoder
from metabonk.sense.autoencoder_training import train_autoencoder
from metabonk.sense.codec import SoundCodec, load_codec
from metabonk.sense.codec_training import fit_pca
from metabonk.sense.latents import LatentData, LatentStore, LatentWindows, WindowConfig, encode_latents

BASE = "AV-CDiT"
ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "factorised, weights": {"factorised": True, "equal": "weights"},
    "factorised, operations": {"factorised": True, "equal": "operations"},
    "shared, weights": {"experts": False, "equal": "weights"},
    "shared, operations": {"experts": False, "equal": "operations"},
    "at once, steps": {"at_once": True},
    "at once, operations": {"at_once": True, "equal": "operations"},
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "homes": {"train": {"scenes": "train"}, "held": {"scenes": "valid"}, "motion": "commanded", "arms": list(ARMS)},
    "one room": {"train": {"scenes": 0, "empty": True}, "held": {"scenes": 0, "empty": True}, "motion": "realised",
                 "arms": [arm for arm in ARMS if arm.startswith((BASE, "factorised"))]},
}  # fmt: skip
LOSSES, SEEN = ["vision", "audio", "reward"], ["psnr", "ild_error", "lsd"]
SIZES = {"rows": 20_000, "held_rows": 4_000, "picture_steps": 1_500, "width": 96, "layers": 3, "steps": 2_000, "batch": 32,
         "lr": 1e-3, "held_batches": 8, "judged": 24, "horizon": 16, "sample_steps": 4}  # fmt: skip


def prepare(condition: str, options: argparse.Namespace) -> Path:
    """Recordings of walks to learn from and to judge by, encoders, and the latents of both."""
    folder, about = options.folder / condition.replace(" ", "-"), CONDITIONS[condition]
    if not (folder / "ready").exists():
        for seed, (part, rows) in enumerate((("train", options.rows), ("held", options.held_rows))):
            there = len(Store.open(folder / part)) if (folder / part).exists() else 0
            if there < rows:
                record("rooms", folder / part, "walks", rows - there, seed=seed + there, settings=about[part])
        training = TrainConfig(steps=options.picture_steps, lr=2e-3, warmup=50, checkpoint_every=500)
        train_autoencoder(folder / "train", folder / "autoencoder", training=training)
        fit_pca(folder / "train").save(folder / "codec")
        for part in ("train", "held"):
            encode_latents(folder / part, *encoders(folder))
        (folder / "ready").touch()
    return folder


def encoders(folder: Path) -> tuple[Autoencoder, SoundCodec]:
    """Of pictures and of sound."""
    return Autoencoder.load(folder / "autoencoder"), load_codec(folder / "codec")


def operations(config: AVCDiTConfig, factorised: bool = False, senses: str = "both") -> int:
    """Of denoising four goals of a context once, asked for one sense or both."""
    if factorised and senses == "both":
        return sum(operations(config, senses=sense) for sense in ("vision", "audio"))
    return count_operations(config.change(senses=senses), targets=4)


def plan(steps: int, at_once: bool = False) -> dict[str, int]:
    """The steps of each stage."""
    if at_once:
        return {"joint": steps}
    vision, audio = round(0.4 * steps), round(0.2 * steps)
    return {"vision": vision, "audio": audio, "joint": steps - vision - audio}


def work(config: AVCDiTConfig, stages: dict[str, int]) -> int:
    """Operations of AV-CDiT's training in stages, for one context a step."""
    senses = {name: "both" if name == "joint" else name for name in stages}
    return sum(steps * operations(config, senses=senses[name]) for name, steps in stages.items())


def arm_of(arm: str, base: AVCDiTConfig, steps: int) -> tuple[AVCDiTConfig, bool, dict[str, int]]:
    """The network of an arm, whether it is factorised, and the steps of its stages."""
    about = ARMS[arm]
    config, factorised, stages = base.change(experts=about.get("experts", True)), about.get("factorised", False), plan(steps)
    if about.get("at_once"):
        same = round(work(base, stages) / operations(base))
        stages = plan(same if about.get("equal") == "operations" else steps, at_once=True)
    elif about.get("equal") == "weights":
        config = matched(config, count_parameters(base), factorised)
    elif about.get("equal") == "operations":
        widths = [config.change(width=config.heads * each) for each in range(4, 2 * base.width // base.heads + 1, 2)]
        config = min(widths, key=lambda c: abs(operations(c, factorised) - operations(base)))
    return config, factorised, stages


def train(arm: str, condition: str, seed: int, options: argparse.Namespace) -> tuple[AVWorld, dict[str, Any]]:
    """One training run, and its held-out losses."""
    folder, motion = prepare(condition, options), CONDITIONS[condition]["motion"]
    begun, (autoencoder, codec) = time.process_time(), encoders(folder)
    window = WindowConfig(batch_size=options.batch, batches_per_epoch=10_000, motion=motion, seed=seed)
    windows = LatentWindows(LatentStore(folder / "train.latents"), window)
    base = fitted(AVCDiTConfig(width=options.width, layers=options.layers), windows)
    config, factorised, stages = arm_of(arm, base, options.steps)
    steps = sum(stages.values())
    seed_everything(seed)
    draws = DiffusionConfig(sample_steps=options.sample_steps)
    world = AVWorld.of(windows, autoencoder, codec, config, draws, factorised)
    data = LatentData(folder / "train", autoencoder, codec, window)
    training = TrainConfig(steps=steps, lr=options.lr, warmup=steps // 20, cooldown=0.2, checkpoint_every=10**6, seed=seed)
    learner = world.learner(AVLearnerConfig(stages=stages))
    fit(learner, data, folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}", training)
    learner.finish()
    losses = denoising_loss(world.net, world.diffusion, held_windows(folder, motion, options))
    about = {"weights": count_parameters(config, factorised), "operations": operations(config, factorised), "steps": steps}
    found = {name: round(float(losses[name].mean()), 5) for name in LOSSES}
    return world, {**found, **about, "core minutes": round((time.process_time() - begun) / 60, 2)}


def held_windows(folder: Path, motion: str, options: argparse.Namespace) -> list[Any]:
    """The same contexts and goals for all runs."""
    windows = LatentWindows(LatentStore(folder / "held.latents"), WindowConfig(motion=motion))
    generator = np.random.default_rng(0)
    return [windows.sample(options.batch, generator).torch() for _ in range(options.held_batches)]


def judged_rows(folder: Path, options: argparse.Namespace) -> Batch:
    """Held-out sequences, evenly spaced over the recording."""
    cache = Cache.build(Store.open(folder / "held"))
    sequences = Sequences(cache, 4 + options.horizon)
    places = np.linspace(0, len(sequences) - 1, min(options.judged, len(sequences))).round().astype(int)
    return cache.gather(sequences.spans(places)).torch()


def frames(world: AVWorld, condition: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A model's frames beside copies, one row each way to ask, who, and offset."""
    folder = prepare(condition, options)
    store = Store.open(folder / "held")
    found = predict_steps(world, [judged_rows(folder, options)], store.schema.sample_rate, 4, options.horizon, seed=seed)
    means = found.groupby(["mode", "who", "offset"])[SEEN].mean().round(3).reset_index()
    return [{"condition": condition, "seed": seed, **row} for row in means.to_dict("records")]


def show(rows: pd.DataFrame, steps: pd.DataFrame) -> None:
    """Losses of the arms, and by how much they differ from AV-CDiT's; then its frames beside copies."""
    for condition, part in rows.groupby("condition", sort=False):
        print(f"\n{condition}: denoising losses on held-out rows, mean squared error; difference from {BASE}, pairs of seeds")
        print(paired_table(part.rename(columns={"arm": "variant"}), LOSSES, BASE).round(4).to_string())
    for (condition, mode), part in steps.groupby(["condition", "mode"], sort=False) if len(steps) else ():
        print(f"\n{condition}, {mode}: means over seeds")
        print(part.groupby(["who", "offset"])[SEEN].mean().unstack("who").round(2).to_string())
        values = part.pivot_table(index="seed", columns="who", values=SEEN)
        for measure in SEEN if len(values) > 1 else ():
            apart = difference_interval(values[measure]["model"], values[measure]["copy last"], paired=True, method="t")
            print(f"  {measure}: {mean_interval(values[measure]['model'], method='t')}, less that of copies {apart}")


def main() -> None:
    """All runs that are not in the results yet."""
    arms = {"nargs": "*", "default": list(ARMS), "choices": list(ARMS)}
    conditions = {"nargs": "*", "default": list(CONDITIONS), "choices": list(CONDITIONS)}
    options, rows = begin("av_worlds", __doc__, SIZES, arms=arms, conditions=conditions)
    steps = Results("av_worlds_steps", {name: getattr(options, name) for name in SIZES})
    wanted = [
        {"condition": condition, "arm": arm, "seed": seed} for seed in options.seeds for condition in options.conditions
        for arm in CONDITIONS[condition]["arms"] if arm in options.arms
    ]  # fmt: skip
    left, begun = [which for which in wanted if not rows.has(**which)], 0.0
    for number, which in enumerate(left):
        prepare(which["condition"], options)
        begun = begun or time.monotonic()  # recordings and encoders are made once
        world, found = train(which["arm"], which["condition"], which["seed"], options)
        if which["arm"] == BASE and not steps.has(condition=which["condition"], seed=which["seed"]):
            for row in frames(world, which["condition"], which["seed"], options):
                steps.add(row)
        rows.add({**which, **found})
        hours = (time.monotonic() - begun) / (number + 1) * (len(left) - number - 1) / 3600
        print(f"{number + 1} of {len(left)} runs made; the others take about {hours:.2f} hours more", flush=True)
    show(rows.table(), steps.table())


if __name__ == "__main__":
    main()
