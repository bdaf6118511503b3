"""Does the world model tell a reward's sound from music, and from a false one? Five trainings, each with controls.

`python experiments/listening.py --runs 5` writes one row a training run to experiments/results/listening.csv and prints
the table; `--table` prints it alone.

Every run records random play in Bonk with all screens lit, where coins can be seen and heard and now and then a ding
sounds without a coin, trains tokenizers and a world model, and asks the model about moments of a second recording that
nothing learned from: how much of the reward predicted at a ding is there because of the sound (integrated gradients),
what happens to it when the sound is swapped for that of music and back, whether codes tell effects from music, and
what false dings promise with the picture and without. Controls: the same model with its weights in random order, the
sound of another moment of the same kind, labels turned in time.
"""

import argparse
import time
from typing import Any

from common import prepare, run

from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.listening import (
    KEPT,
    attribute,
    audio_swap,
    audio_swap_table,
    code_rows,
    codes_tell,
    cue_conflict,
    cue_conflict_claims,
)
from metabonk.measure.moments import RowKinds, every_row, find_moments
from metabonk.measure.reality import shuffle_weights
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenCache, TokenData

WORLD = "bonk"
SIZES = {"steps": 12_000, "held_out": 4_000, "sound_tokens": 16, "ticks": 12, "episode_steps": 300, "decoys": 12,
         "picture_steps": 300, "sound_steps": 500, "model_steps": 1_600, "reward_scale": 10.0, "moments": 64}  # fmt: skip


def train(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training run from nothing, and what it then takes for reward."""
    begun, folder = time.monotonic(), options.folder / f"seed-{seed}"
    bonk = {"darkness": 0, "chargers": 0, "opponents": 0, "start_screen": 8, "decoys": options.decoys}
    settings = {"max_steps": options.episode_steps, "ticks_per_step": options.ticks, "settings": bonk}
    tokenizers = prepare(folder, WORLD, settings, seed, options, options.held_out, options.sound_tokens)
    seed_everything(seed)
    schema = Store.open(folder / "store").schema
    config = TokenModelConfig.preset("tiny", reward_scale=options.reward_scale)
    model = TokenModel(config, tokenizers, schema.actions, game=schema.game)
    model.start_from(TokenCache(folder / "store.tokens"), seed=seed)
    data = TokenData(folder / "store", tokenizers, SequenceConfig(length=16, batch_size=16, seed=seed))
    fit(WorldModelLearner(model), data, folder / "model",
        TrainConfig(steps=options.model_steps, lr=3e-3, warmup=100, checkpoint_every=10**6, seed=seed))
    model.eval()
    return {"seed": seed, **asked(model, folder, seed, options), "minutes": round((time.monotonic() - begun) / 60, 1)}


def asked(model: TokenModel, folder: Any, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """The numbers of one model, and those of its controls."""
    tokens, label = TokenCache(folder / "held.tokens"), RowKinds(Store.open(folder / "held"))
    moments = find_moments(every_row(tokens), label, count=options.moments, seed=seed)
    told: dict[str, float] = {}
    for name, one in (("", model), ("scrambled ", shuffle_weights(model, seed, KEPT))):
        parts, swapped = attribute(one, moments).by_kind(), audio_swap_table(audio_swap(one, moments, seed=seed))
        told |= {f"{name}predicted at a ding": parts.loc["ding", "predicted"]}
        told |= {f"{name}of it by sound, at {kind}": parts.loc[kind, "audio"] for kind in ("ding", "music")}
        for kind, sound in (("ding", "music"), ("ding", "another ding"), ("music", "ding"), ("music", "another music")):
            told[f"{name}{kind} with the sound of {sound}"] = swapped.loc[(kind, f"from {sound}"), "change"]
        promised = cue_conflict(one, moments, seed=seed)
        means = promised.groupby(["senses", "kind"])["predicted"].mean()
        told |= {f"{name}{kind}, {senses}": means[senses, kind] for senses, kind in means.index if kind != "music"}
        if one is model:
            told["consensus wins"] = float(cue_conflict_claims(promised)["holds"].all())
    tell = codes_tell(code_rows(every_row(tokens, overlap=0), label), tokens.sizes["audio"][1], seed=seed)
    return {**told, "codes tell effects": tell["roc_auc"], "labels turned": tell["turned"]}


if __name__ == "__main__":
    run("listening", __doc__, SIZES, train)
