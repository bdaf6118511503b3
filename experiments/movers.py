"""Is the hero in what the world model reads and dreams, and what brings him back?

`python experiments/movers.py --runs 1` records random play in Bonk's dark rooms, trains eyes and ears on it, and then trains
one world model an arm of `ARMS`, all on the same rows and tokens: one change each. Of every model it measures, on episodes
that nothing has learned from, how often the hero is there in the frame that was just read and 1, 5, 15 and 50 steps into a
dream, and how far he is from his place (`metabonk.measure.movers`), with the controls: a hero who stays, and other actions.

`--frames` asks the simpler question first: can encoder, latent and head of the model hold the hero of single frames, without
any dynamics? After each quarter of `frame_steps` it writes down, of held-out frames, the cross-entropy in nats of the tokens
that the hero touches and of all others, and how often he is near his place in the picture of the likeliest tokens.

Rows are written to experiments/results/movers.csv; `--table` prints them alone.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import Results, begin, prepare
from torch import Tensor, nn

from metabonk.core.learner import TrainConfig
from metabonk.core.optimizer import LaProp
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.fusion import TokenEncoder
from metabonk.dream.latents import CategoricalLatents, GaussianLatents, GumbelLatents, Latents
from metabonk.dream.token_heads import TokenHead
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.movers import Finder, check_movers, learn_probe, movers_of, places_of
from metabonk.nn.layers import MLP
from metabonk.record.cache import Cache
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenCache, TokenData, Tokenizers

GAME = {"ticks_per_step": 12, "image_size": (64, 64), "max_steps": 300}
SIZES = {"steps": 60_000, "held_out": 3_000, "picture_steps": 300, "sound_steps": 500, "model_steps": 2_000, "frame_steps": 500}
NUMBERS = {"latents": "gaussian", "latent_size": 64}
LATE = {"lr": 1e-2, "cooldown": 0.5, "single_rows": 0.1, "prior_loss_after": 0.3}
ARMS: dict[str, dict[str, Any]] = {  # what differs from the stage `model`, by its parameters
    "as it is": {},
    "learning rate, cooldown": {"lr": 1e-2, "cooldown": 0.5},
    "late prior loss": LATE,
    "numbers": {**NUMBERS, "lr": 1e-2, "cooldown": 0.5},
    "numbers, late prior loss": {**NUMBERS, **LATE},
    "numbers, late prior loss, no single rows": {**NUMBERS, **LATE, "single_rows": 0.0},
}
FRAMES: dict[str, dict[str, Any]] = {  # what differs in the model of single frames
    "categorical": {},
    "categorical, slow": {"lr": 3e-3},
    "categorical, 32 of 32": {"latents": CategoricalLatents(32, 32)},
    "gumbel": {"latents": GumbelLatents(16, 16)},
    "gaussian": {"latents": GaussianLatents(64)},
    "wider head": {"units": 256},
    "unusual tokens count five times": {"unusual": 5.0},
}


class Recording:
    """A recording, its tokens, and the hero in it."""

    def __init__(self, folder: Path, tokenizers: Tokenizers):
        self.store = Store.open(folder)
        self.cache, self.tokens = Cache.build(self.store), TokenCache.build(self.store, tokenizers)
        self.mover = movers_of(self.store.schema)["hero"]
        self.place, self.room = places_of(self.cache, self.mover)


def touched(place: Tensor, within: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Which cells of the grid the sprite touches, (N, rows * columns)."""
    cells = []
    for axis, count in ((1, grid[0]), (0, grid[1])):
        cell, half = within[axis] / count, size[axis] / 2
        edges = torch.arange(count) * cell
        cells.append((edges < place[:, axis, None] + half) & (edges + cell > place[:, axis, None] - half))
    return (cells[0][:, :, None] & cells[1][:, None, :]).flatten(1)


class FrameModel(nn.Module):
    """The parts of the world model through which a frame goes, without memory."""

    def __init__(
        self, sizes: tuple[int, int], embed: int = 128, width: int = 16, units: int = 128, latents: Latents | None = None
    ):
        super().__init__()
        self.encoder = TokenEncoder({"image": sizes}, embed, width=width)
        self.latents = latents or CategoricalLatents(16, 16)
        self.posterior = MLP(embed, self.latents.outputs, 1, 128)
        self.head = TokenHead("image", self.latents.size, *sizes, units, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P) tokens to (N, P, K) logits and the (N,) nats that the latent tells."""
        vectors = self.encoder.tables["image"](tokens) + self.encoder.places["image"]
        raw = self.posterior(self.encoder.fuse({"image": vectors}))
        z = self.latents.sample(raw, self.latents.noise((len(tokens),), raw))
        return self.head.logits(z), self.latents.kl(raw, torch.zeros_like(raw))


def hold_frames(seen: Recording, held: Recording, finder: Finder, tokenizers: Tokenizers, steps: int, lr: float = 1e-2,
                unusual: float = 1.0, **sizes: Any) -> dict[str, float]:  # fmt: skip
    """Train a model of single frames; what it holds after each quarter of the steps."""
    told: dict[str, float] = {}
    train, test = (torch.from_numpy(part.tokens.table["image"].astype("int64")) for part in (seen, held))
    grid, mover = tokenizers.picture.config.grid, finder.mover
    hero = touched(held.place, mover.within, mover.size, grid)[::4]
    model = FrameModel(tokenizers.sizes["image"], **sizes)
    model.head.start_from(train[::9])
    usual = model.head.bias.argmax(1)
    optimizer = LaProp(model.parameters(), lr=lr, clip=0.3, warmup=100)
    for step in range(1, steps + 1):
        tokens = train[torch.randint(len(train), (256,))]
        logits, nats = model(tokens)
        nll = F.cross_entropy(logits.mT, tokens, reduction="none") * torch.where(tokens == usual, 1.0, unusual)
        loss = nll.sum(1).mean() + 0.1 * nats.clamp(min=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (steps // 4) == 0:
            with torch.no_grad():
                logits = model(test[::4])[0]
                nats = F.cross_entropy(logits.mT, test[::4], reduction="none")
                found, there, room = finder.find(tokenizers.picture.decode(logits.argmax(-1)))
            near = (there > 0.5) & (room == held.room[::4]) & ((found - held.place[::4]).norm(dim=-1) <= 8)
            parts = {"hero nats": (nats * hero).sum(1), "other nats": (nats * ~hero).sum(1), "near": near.float()}
            told |= {f"{name}, step {step}": float(part.mean()) for name, part in parts.items()}
    return told


def train_model(folder: Path, seen: Recording, tokenizers: Tokenizers, seed: int, steps: int, lr: float = 3e-3,
                cooldown: float = 0.0, single_rows: float = 0.0, prior_loss_after: float = 0.0,
                **choices: Any) -> TokenModel:  # fmt: skip
    """The model of the stage `model`, with what an arm changes."""
    if not (folder / "model/model.json").exists():
        seed_everything(seed)
        config = TokenModelConfig.preset("tiny", reward_scale=10.0, **choices)
        model = TokenModel(config, tokenizers, seen.store.schema.actions, seen.store.schema.game)
        model.start_from(seen.tokens, seed=seed)
        training = TrainConfig(steps=steps, lr=lr, warmup=100, cooldown=cooldown, seed=seed)
        sequences = SequenceConfig(length=16, batch_size=16, seed=seed)
        if first := round(single_rows * steps):
            rows = TokenData(seen.store.path, tokenizers, sequences.change(length=1, batch_size=256, seed=seed + 2))
            alone = training.change(steps=first, cooldown=0.0)
            fit(WorldModelLearner(model, prior_loss_after=first), rows, folder / "rows", alone)
        learner = WorldModelLearner(model, prior_loss_after=round(prior_loss_after * steps))
        fit(learner, TokenData(seen.store.path, tokenizers, sequences), folder / "training", training)
        model.save(folder / "model")
    return TokenModel.load(folder / "model")


def measured(model: TokenModel, seen: Recording, held: Recording, finder: Finder) -> dict[str, float]:
    """Means over episodes of everything that `check_movers` tells."""
    eyes, probe = model.tokenizers.picture, learn_probe(model, seen.tokens, seen.cache, finder.mover)
    check = check_movers(model, held.tokens, held.cache, finder, probe, lambda image: eyes.decode(eyes.encode(image)))
    means = check.rows.groupby(["what", "ahead", "episode"], sort=False).mean().groupby(["what", "ahead"], sort=False).mean()
    return {f"{column}, {what} {ahead}": float(value) for (what, ahead), row in means.iterrows() for column, value in row.items()}


def main() -> None:
    """All arms of all seeds that are not there yet."""
    frames = {"action": "store_true", "help": "single frames alone: can the model hold the hero at all?"}
    chosen = {"nargs": "*", "help": "which arms; all if not given"}
    options, rows = begin("movers", __doc__ or "", SIZES, frames=frames, arms=chosen)
    if options.frames:
        rows.path = rows.path.with_name("movers_frames.csv")
    arms = {arm: how for arm, how in (FRAMES if options.frames else ARMS).items() if arm in (options.arms or [arm])}
    for seed in options.seeds:
        todo = {arm: settings for arm, settings in arms.items() if not rows.has(arm=arm, seed=seed)}
        if todo:
            run_arms(todo, seed, options, rows)
    print(rows.table().round(3).T.to_string())


def run_arms(todo: dict[str, dict[str, Any]], seed: int, options: argparse.Namespace, rows: Results) -> None:
    """One row an arm."""
    folder = options.folder / f"seed-{seed}"
    tokenizers = prepare(folder, "bonk:dark", GAME, seed, options, options.held_out, sound_tokens=16)
    seen, held = (Recording(folder / name, tokenizers) for name in ("store", "held"))
    finder = Finder.learn(seen.cache.image, seen.place, seen.room, seen.mover)
    for arm, settings in todo.items():
        if options.frames:
            seed_everything(seed)
            row = hold_frames(seen, held, finder, tokenizers, options.frame_steps, **settings)
        else:
            model = train_model(folder / arm, seen, tokenizers, seed, options.model_steps, **settings)
            row = measured(model, seen, held, finder)
        rows.add({"arm": arm, "seed": seed, **row})


if __name__ == "__main__":
    main()
