"""How many of a recording's actions must be known for a world model to dream what actions do? The rest is film.

    python experiments/grounding.py --runs 5

One recording of `bonk:lit` by sticky random play and one tokenizer a run; then Dreamer 4's dynamics are trained several times
on all of its pictures, each time with the actions of another share of the episodes: none, 1, 4, 16 and 100 %. Which episodes
are told is nested: those of 4 % are among those of 16 %. Episodes that nobody learned from are read for eight rows and
dreamed on under the actions that were really played, and each dreamed picture is compared with the one that came, over
the first fifteen steps. A row a run: `psnr` in dB and `ssim` of each share; and the same relative to what is to be gained,
0 where no action is known and 1 where all are, which is the shape that Dreamer 4 reports for Minecraft (53 % of PSNR and
75 % of SSIM with 10 of 2,541 hours, 85 and 100 % with 100). Controls: the model that knows all actions under those of
another sequence (`swapped`), and the last picture that was read (`repeat last`).
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from playable import first_batch

from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig, CausalTokenizerLearner
from metabonk.dream.clips import Clip, ClipData
from metabonk.dream.codes import CodeData
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.interface import join_states, open_loop_rollout
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.measure.audiovisual import ssim
from metabonk.measure.clips import psnr
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store

SHARES = (0.0, 0.01, 0.04, 0.16, 1.0)
CONTEXT, AHEAD = 8, 15  # rows that are read, steps that are dreamed
SIZES = {"steps": 30_000, "episode_steps": 50, "tokenizer_steps": 1_500, "dynamics_steps": 4_000, "width": 96, "lr": 3e-3,
         "batch": 8, "judged_steps": 5_000, "judged": 256}  # fmt: skip


def dreamed(model: ShortcutModel, clip: Clip, swap: bool = False) -> dict[str, float]:
    """How near dreamed pictures are to those that came, under the actions that were played or under those of another sequence."""
    B = len(clip.first)
    action = model.actions.vectors(clip.action.roll(B // 2, 0) if swap else clip.action)[:, CONTEXT:]
    with torch.no_grad():
        torch.manual_seed(0)
        state = model.observe(clip.map(lambda x: x[:, :CONTEXT]))
        seen = model.render(join_states(open_loop_rollout(model, state, action, keep_states=True).states[1:]))["image"]
    seen = seen.unflatten(0, (AHEAD, B)).movedim(0, 1)
    return far(seen, clip.image[:, CONTEXT:])


def far(seen: torch.Tensor, came: torch.Tensor) -> dict[str, float]:
    """Means over all pictures (B, T, height, width, 3)."""
    return {"psnr": float(psnr(seen, came).mean()), "ssim": float(np.mean(ssim(seen, came)))}


def learn_to_see(folder: Path, seed: int, options: argparse.Namespace) -> CausalTokenizer:
    """The tokenizer of a run: an MLP over each patch, as in the pipeline's tiny preset."""
    config = CausalTokenizerConfig.preset("tiny", size=(32, 32), layers=2, mask_ratio=0.0, detail=1.0, bottleneck=16)
    eyes = CausalTokenizer(config.change(local=True, latents=config.patches))
    draw = SequenceConfig(length=1, batch_size=64, seed=seed)
    clips = first_batch(ClipData(folder / "store", None, draw.change(batch_size=512)))
    eyes.start_from(clips)
    training = TrainConfig(steps=options.tokenizer_steps, lr=4e-3, warmup=100, cooldown=0.5, seed=seed)
    fit(CausalTokenizerLearner(eyes), ClipData(folder / "store", None, draw), folder / "eyes", training)
    eyes.eval().normalise_latents(clips)
    return eyes


def learn_to_dream(
    folder: Path, share: float, seed: int, options: argparse.Namespace, eyes: CausalTokenizer
) -> ShortcutModel:
    """Dynamics that know the actions of a share of the episodes."""
    store = Store.open(folder / "store")
    draw = SequenceConfig(length=16, batch_size=options.batch, seed=seed, cross_episodes=True)
    data = CodeData(store.path, eyes, None, draw, path=folder / "codes", labelled=share)
    seed_everything(seed)
    sizes = {"pack": 4, "width": options.width, "kv_heads": 4, "registers": 1, "image_ratio": 0.1, "context": 16}
    config, shortcut = DynamicsConfig.preset("tiny", **sizes), ShortcutConfig.preset("tiny", ramp=False)
    model = ShortcutModel(eyes, store.schema.actions, config, shortcut, store.schema.game)
    training = TrainConfig(steps=options.dynamics_steps, lr=options.lr, warmup=100, seed=seed, checkpoint_every=500)
    fit(DynamicsLearner(model, heads=False), data, folder / f"share-{share}", training)
    return model.eval()


def train(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A recording, a tokenizer, and a model for each share."""
    folder = options.folder / f"run-{seed}"
    if not (folder / "recorded").exists():
        shutil.rmtree(folder, ignore_errors=True)
        settings = {"image_size": (32, 32), "ticks_per_step": 12, "max_steps": options.episode_steps}
        for name, steps, first in (("store", options.steps, seed), ("judged", options.judged_steps, seed + 1_000)):
            record("bonk:lit", folder / name, "sticky_random", steps, seed=first, settings=settings)
        (folder / "recorded").touch()
    eyes = learn_to_see(folder, seed, options)
    clip = first_batch(ClipData(folder / "judged", None, SequenceConfig(CONTEXT + AHEAD, options.judged, seed=seed)))
    models = {share: learn_to_dream(folder, share, seed, options, eyes) for share in SHARES}
    found = {f"{share:.0%}": dreamed(model, clip) for share, model in models.items()}
    found["swapped"] = dreamed(models[1.0], clip, swap=True)
    found["repeat last"] = far(clip.image[:, CONTEXT - 1 : CONTEXT].expand(-1, AHEAD, -1, -1, -1), clip.image[:, CONTEXT:])
    row: dict[str, Any] = {"seed": seed}
    for name in ("psnr", "ssim"):
        none, every = found["0%"][name], found["100%"][name]
        row |= {f"{name}, {what}": round(values[name], 4) for what, values in found.items()}
        between = {f"{share:.0%}": found[f"{share:.0%}"][name] for share in SHARES[1:-1]}
        row |= {f"{name}, {what}, relative": round((value - none) / (every - none), 4) for what, value in between.items()}
    return row


if __name__ == "__main__":
    common.run("grounding", __doc__ or "", SIZES, train)
