"""Table 2 of Dreamer 4 in small: each of its steps in turn, and what a dream loses and costs without it.

`python experiments/ablation.py --runs 5` trains ten dynamics models that many times on the bouncing ball of `ball.py`, all
runs of a seed on the codes of one tokenizer, and writes one row a training to experiments/results/ablation.csv; rows that
are there already are not made again. Each row adds one thing to the one before: from frames denoised in 64 steps by a
network that predicts velocities, to the model as it is. Judged are sixteen frames dreamed from a context that was never
seen, under pushes that the model is told of, and how many frames a second that is, not decoded.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ball import Codes, make_tokenizer
from common import begin

from metabonk.core.actions import ActionSpec
from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, bouncing_ball
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.interface import open_loop_rollout
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.measure.clips import drift
from metabonk.measure.statistics import difference_interval, mean_interval

BEGIN = {"finest": 64, "steps": 64, "bootstrap": 0.0, "predict": "velocity", "space": "velocity", "ramp": False,
         "time_every": 2, "kv_heads": 4, "registers": 0, "alternate": False}  # fmt: skip
STEPS: dict[str, dict[str, Any]] = {  # what is added, and what that changes
    "diffusion forcing, 64 steps": {},
    "4 steps": {"steps": 4},
    "+ shortcut": {"bootstrap": 0.25},
    "+ prediction of the clean code": {"predict": "clean"},
    "+ its error measured there": {"space": "clean"},
    "+ ramp": {"ramp": True},
    "+ short and long batches": {"alternate": True},
    "+ time in every 4th layer": {"time_every": 4},
    "+ shared keys and values": {"kv_heads": 2},
    "+ registers": {"registers": 4},
}
SIZES = {"tokenizer_steps": 1_300, "dynamics_steps": 1_500, "batch": 16, "length": 16, "context": 8, "ahead": 16, "judged": 32,
         "clips": 3_000, "patch": 8, "tokenizer_lr": 2e-3, "dynamics_lr": 2e-3, "mask_ratio": 0.0, "cooldown": 0.5, "pack": 8,
         "warmup": 250}  # fmt: skip


def built(tokenizer: CausalTokenizer, until: str, warmup: int, pack: int) -> tuple[ShortcutModel, bool]:
    """The model with everything that was added up to a step, and whether its batches are now short and now long."""
    chosen = dict(BEGIN)
    for name, change in STEPS.items():
        chosen |= change
        if name == until:
            break
    alternate, dynamics = chosen.pop("alternate"), ("time_every", "kv_heads", "registers")
    config = DynamicsConfig(image_ratio=0.1, pack=pack, **{name: chosen.pop(name) for name in dynamics})
    return ShortcutModel(tokenizer, ActionSpec(categorical=(3,)), config, ShortcutConfig(warmup=warmup, **chosen)), alternate


def train(
    name: str, seed: int, tokenizer: CausalTokenizer, codes: Codes, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """One training of the dynamics, and its measures on balls that were never seen."""
    seed_everything(seed)
    model, alternate = built(tokenizer, name, options.warmup, options.pack)
    balls, begun = 10**6 * (seed + 1), time.monotonic()
    training = TrainConfig(steps=options.dynamics_steps, lr=options.dynamics_lr, warmup=100, cooldown=options.cooldown,
                           checkpoint_every=10**6, seed=seed)  # fmt: skip
    fit(DynamicsLearner(model, options.length // 4 if alternate else 0), codes, folder / "dynamics", training, resume=False)
    seconds = time.monotonic() - begun
    model.eval()
    unseen = bouncing_ball(options.judged, options.context + options.ahead, generator=torch.Generator().manual_seed(balls + 3))
    found = drift(model, unseen, options.context).query("who == 'model'").set_index("ahead")
    one = unseen.map(lambda x: x[:1])
    state, action = model.observe(one.map(lambda x: x[:, : options.context])), model.actions.vectors(one.action)
    action = action[:, options.context :]
    open_loop_rollout(model, state, action)
    begun = time.perf_counter()
    open_loop_rollout(model, state, action)
    rate = action.shape[1] / (time.perf_counter() - begun)
    return {"with": name, "seed": seed, "psnr": found["psnr"].mean(), "psnr of the last": found["psnr"].iloc[-1],
            "lsd": found["lsd"].mean(), "frames a second": round(rate, 1),
            "ms a step": round(1e3 * seconds / options.dynamics_steps, 1)}  # fmt: skip


def show(rows: pd.DataFrame) -> None:
    """Means over training runs, and what each step adds to the one before, run by run, with Student intervals."""
    table, before = {}, None
    for name, group in rows.groupby("with", sort=False):
        numbers = group.drop(columns=["sizes", "with"]).set_index("seed")
        table[name] = {measure: str(mean_interval(numbers[measure].to_numpy(), method="t")) if len(group) > 1 else
                       f"{numbers[measure].iloc[0]:.4g}" for measure in numbers}  # fmt: skip
        if before is not None and len(both := numbers.index.intersection(before.index)) > 1:
            pair = (some.loc[both, "psnr"].to_numpy() for some in (numbers, before))
            table[name]["psnr more than before"] = str(difference_interval(*pair, paired=True, method="t"))
        before = numbers
    print(pd.DataFrame(table).T.fillna("").to_string())


def main() -> None:
    """All runs that are not in the results yet."""
    options, rows = begin("ablation", __doc__, SIZES)
    for seed in options.seeds:
        missing = [name for name in STEPS if not rows.has(**{"with": name, "seed": seed})]
        folder = options.folder / f"seed-{seed}"
        if missing:
            tokenizer = make_tokenizer(seed, folder, options)
            codes = Codes(tokenizer, 10**6 * (seed + 1) + 2, options.clips, options.batch, options.length)
        for name in missing:
            rows.add(train(name, seed, tokenizer, codes, folder, options))
    show(rows.table())


if __name__ == "__main__":
    main()
