"""A dream of Bonk that can be played: 256 generated frames under keys that were pressed in the game, and how far it drifts.

`python experiments/playable.py --runs 5` records sticky random play on Bonk's lower right screens, all lit; trains
tokenizer and dynamics on it, each frame beside a finished past; then lets the model go on from the first sixteen frames of
a game that was played by hand (`KEYS`), under the same keys. It writes one row a training run to
experiments/results/playable.csv, and beside the run's models dream.webm: game and dream side by side, with the dream's
sound; that of seed 0 is put beside the rows, for the page of results. `--table` prints the table alone; `--tiny` runs everything
at the smallest sizes.

`--self-forcing 0.25` is another arm, with rows of its own in playable_self_forcing.csv: the same recording and tokenizer, but
a quarter of the sequences that the dynamics learn from have a past that the model made itself.

Where the hero is in a generated frame, and whether more than half of him is to be seen, is read off by a small network that
has learned it from frames of the recording, as they were, as the tokenizer restores them, and with the hero painted over more
or less; its own error is in the table. Distances are pixels of the game over the whole map, so a dream in the wrong screen is
far off, and are means over frames in which he is there. Drift after ten and fifty steps is over dreams from every fourth row
of the game. Controls: a hero that stays where he was last seen, and the same dreams under the keys of another moment.
"""

import argparse
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Results, begin, show_means
from torch import Tensor, nn

from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig, CausalTokenizerLearner
from metabonk.dream.clips import ClipCache, ClipData
from metabonk.dream.codes import CodeCache, CodeData
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.interface import open_loop_rollout
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.measure.clips import log_spectral_distance, psnr, restored
from metabonk.measure.dreams import Film, dream_films
from metabonk.measure.movers import empty_rooms, places_of
from metabonk.play.game import make_game
from metabonk.play.policies import ScriptedPolicy
from metabonk.play.profile import load_profile
from metabonk.record.cache import Cache
from metabonk.record.exchange import picture_times, write_media
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig

KEYS = """noop 2, right 6, down 4, right 5, down 3, noop 2, left 8, down 2, left 4, up 6, left 7, noop 3, down 6, left 5, down 4,
left 3, up 4, left 10, down 5, left 5, noop 2, up 8, right 5, up 4, left 14, noop 2, down 10, noop 3, right 8, down 4, right 4,
up 7, noop 2, left 9, up 8, right 7, noop 3, down 6, right 6, up 5, left_a 4, noop 4, a 3, down 7, left 4, down 3, left 14,
noop 3, up 8, left 6, up 4, noop 2, right 8"""  # held for so many tenths of a second
BONK = {"darkness": 0, "chargers": 0, "opponents": 0, "start_screen": 8}
SCREEN = torch.tensor([160.0, 144.0])  # pixels of the game in a picture
GAME_SEED, CONTEXT, FRAMES, DRIFT = 7, 16, 256, (10, 50)
SIZES = {"image_size": 32, "steps": 40_000, "ticks": 3, "episode_steps": 800, "patch": 8, "bottleneck": 12,
         "tokenizer_steps": 2_000, "tokenizer_lr": 4e-3, "dynamics_steps": 28_000, "dynamics_lr": 6e-3, "batch": 8, "length": 16,
         "reader_steps": 1_500, "cooldown": 0.5, "width": 96, "layers": 3, "kv_heads": 4, "pack": 4, "registers": 0,
         "ramp": 0, "muon": 0.03, "bootstrap": 0.125, "views": 1, "context_noise": 0.06}  # fmt: skip
TINY = {**SIZES, "steps": 600, "episode_steps": 200, "tokenizer_steps": 3, "dynamics_steps": 3, "reader_steps": 3, "width": 32}


class Reader(nn.Module):
    """Where the hero is and how much of him is to be seen, out of a map of the picture; and which screen it is."""

    def __init__(self, rooms: Tensor) -> None:
        super().__init__()
        self.rooms, size = rooms, rooms.shape[1]  # the screens without a hero
        first, second, third = nn.Conv2d(3, 16, 5, max(1, size // 32), 2), nn.Conv2d(16, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.body = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third, nn.SiLU())
        self.where, self.seen, self.which = nn.Conv2d(32, 1, 1), nn.Linear(32, 1), nn.Linear(32 * 64, 9)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, size, size, 3) pictures: (N, 2) places from 0 to 1, (N,) logits that he is there, (N, 9) logits of screens."""
        body = self.body(image.movedim(-1, 1).float() / 255 - 0.5)
        heatmap = self.where(body).flatten(1).softmax(-1).unflatten(1, body.shape[2:])
        steps = torch.linspace(0, 1, body.shape[2], device=image.device)
        place = torch.stack([(heatmap.sum(1) * steps).sum(-1), (heatmap.sum(2) * steps).sum(-1)], -1)
        there = self.seen((body * heatmap[:, None]).sum((2, 3)))[:, 0]
        return place, there, self.which(F.adaptive_avg_pool2d(body, 8).flatten(1))

    @torch.no_grad()
    def read(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, size, size, 3) pictures: (N, 2) pixels over the whole map, and (N,) whether more than half of him is there."""
        place, there, which = self(image)
        return on_map(which.argmax(-1), place * SCREEN), there > 0


def on_map(screen: Tensor, place: Tensor) -> Tensor:
    """Places over the map of three by three screens."""
    return place + torch.stack([screen % 3 * 160, screen // 3 * 128], -1)


def probes(cache: Cache) -> tuple[Tensor, Tensor]:
    """Screen (rows,) and place in it (rows, 2) of the hero, as the game has them."""
    place, screen = places_of(cache, load_profile("bonk").movers["hero"])
    return screen, place


def paled(image: Tensor, rooms: Tensor, screen: Tensor, place: Tensor, left: Tensor) -> Tensor:
    """Pictures (N, size, size, 3) in which `left` of the hero (N,) is to be seen before the room."""
    rows, columns = (torch.arange(n) / (n - 1) for n in image.shape[1:3])
    x, y = (place / SCREEN).T[:, :, None, None]
    near = ((columns - x).abs() * SCREEN[0] < 14) & ((rows[:, None] - y).abs() * SCREEN[1] < 14)  # (N, size, size)
    gone = (near * (1 - left[:, None, None]))[..., None]
    return (image * (1 - gone) + rooms[screen] * gone).to(image.dtype)


def train_reader(cache: Cache, tokenizer: CausalTokenizer, codes: Any, steps: int, seed: int) -> Reader:
    """A reader of frames as they were and as the tokenizer restores them, of half of them with a hero who is pale or gone."""
    torch.manual_seed(seed)
    screen, place = probes(cache)
    reader = Reader(empty_rooms(cache.image, screen, 9))
    optimizer = torch.optim.AdamW(reader.parameters(), 2e-3)
    for _ in range(steps):
        rows = torch.randint(len(screen), (64,)).sort().values
        image = torch.from_numpy(cache.image[rows.numpy()])
        with torch.no_grad():
            z = torch.from_numpy(codes[rows[::2].numpy()].astype(np.float32))[:, None]
            image[::2] = tokenizer.render(tokenizer.decode(z))["image"][:, 0]
        left = (torch.rand(len(rows)) * 4 - 1).clamp(0, 1)  # a quarter gone, a quarter pale
        said, there, which = reader(paled(image, reader.rooms, screen[rows], place[rows], left))
        off = (said - place[rows] / SCREEN).abs().mean(-1)
        loss = (off * left).mean() * 10 + F.cross_entropy(which, screen[rows]) + F.binary_cross_entropy_with_logits(there, left)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return reader.eval()


def settings(options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Of the game, with episodes of so many steps."""
    size = (options.image_size, options.image_size)
    return {"image_size": size, "max_steps": steps, "ticks_per_step": options.ticks, "settings": BONK}


def learn(folder: Path, seed: int, options: argparse.Namespace) -> tuple[ShortcutModel, Reader]:
    """A recording, and all that is learned from it."""
    if not (folder / "store.cache").exists():
        record("bonk", folder / "store", "sticky_random", options.steps, seed=seed,
               settings=settings(options, options.episode_steps))
    store = Store.open(folder / "store")
    cache, schema = Cache.build(store), store.schema
    logmel = LogMelConfig.preset("tiny", sample_rate=schema.sample_rate).covering(cache.samples / len(store))
    seed_everything(seed)
    config = CausalTokenizerConfig.preset(
        "tiny", size=schema.image_shape[:2], channels=schema.channels, frames=logmel.frames_per_step, bands=logmel.bands,
        floor=logmel.floor, patch=options.patch, sound_patch=(logmel.frames_per_step, 8), bottleneck=options.bottleneck,
        layers=2, mask_ratio=0.0, detail=1.0,
    )  # fmt: skip
    config = config.change(local=True, latents=config.patches)
    tokenizer, sequences = CausalTokenizer(config), SequenceConfig(length=1, batch_size=64, seed=seed)
    clips = first_batch(ClipData(store.path, logmel, sequences.change(batch_size=512)))
    tokenizer.start_from(clips)
    training = TrainConfig(steps=options.tokenizer_steps, lr=options.tokenizer_lr, warmup=100, cooldown=options.cooldown,
                           checkpoint_every=10**6, seed=seed)  # fmt: skip
    fit(CausalTokenizerLearner(tokenizer), ClipData(store.path, logmel, sequences), folder / "tokenizer", training)
    tokenizer.eval().normalise_latents(clips)
    codes = CodeCache.build(cache, tokenizer, folder / "codes", logmel)
    reader = train_reader(cache, tokenizer, codes.codes, options.reader_steps, seed)
    dynamics = DynamicsConfig(width=options.width, layers=options.layers, kv_heads=options.kv_heads, pack=options.pack,
                              registers=options.registers, image_ratio=0.1)  # fmt: skip
    shortcut = ShortcutConfig(ramp=bool(options.ramp), bootstrap=options.bootstrap, views=options.views,
                              context_noise=options.context_noise, self_forcing=options.self_forcing,
                              warmup=min(500, options.dynamics_steps // 4))  # fmt: skip
    if options.self_forcing:
        seed_everything(seed)  # whether the tokenizer was there or not
    model = ShortcutModel(tokenizer, schema.actions, dynamics, shortcut,
                          schema.game, logmel, cache.samples / len(store))  # fmt: skip
    sequences = SequenceConfig(length=options.length, batch_size=options.batch, cross_episodes=True, seed=seed)
    data = CodeData(store.path, tokenizer, logmel, sequences, path=folder / "codes")
    fit(DynamicsLearner(model, heads=False), data, folder / f"dynamics{arm_of(options)}",
        training.change(steps=options.dynamics_steps, lr=options.dynamics_lr, muon=options.muon))
    return model.eval(), reader


def arm_of(options: argparse.Namespace) -> str:
    """What the files of an arm end in; nothing for the first one."""
    return f"-self-forcing-{options.self_forcing:g}" if options.self_forcing else ""


def first_batch(data: ClipData) -> Any:
    """One batch."""
    data.prepare_data()
    data.setup()
    return next(iter(data.train_dataloader()))


def by_hand(folder: Path, options: argparse.Namespace) -> Store:
    """The game that was played by hand."""
    if not (folder / "played.cache").exists():
        keys = re.sub(r"\d+", lambda tenths: str(int(tenths[0]) * 6 // options.ticks), KEYS.replace("\n", " "))
        game = make_game("bonk", **settings(options, CONTEXT + FRAMES))
        record(game, folder / "played", ScriptedPolicy(keys, game.action_names), episodes=1, seed=GAME_SEED)
        game.close()
    return Store.open(folder / "played")


@torch.no_grad()
def measured(model: ShortcutModel, reader: Reader, played: Store, film: Path) -> dict[str, float]:
    """How the model's frames are apart from the game's; the dream of 256 frames goes to `film`."""
    cache = Cache.build(played)
    screen, place = probes(cache)
    real, row = on_map(screen, place), {}

    def read(name: str, image: Tensor, truth: Tensor) -> None:
        """Share of pictures with a hero, and his mean distance in those."""
        found, there = reader.read(image)
        row[f"there, {name}"] = float(there.float().mean())
        row[f"off, {name}"] = float((found - truth).norm(dim=-1)[there].mean())

    clips = ClipCache(cache, model.logmel)
    whole = clips.gather([[(0, CONTEXT + FRAMES)]]).torch()
    kept = restored(model.tokenizer, whole).loc["tokenizer"]
    row |= {"tokenizer, psnr": kept.psnr, "tokenizer, lsd": kept.lsd}
    read("game", whole.image[0], real[: CONTEXT + FRAMES])
    shown = model.tokenizer.render(model.tokenizer.decode(model.codes(whole), whole.first))
    read("restored", shown["image"][0], real[: CONTEXT + FRAMES])
    row["there, empty rooms"] = float(reader.read(reader.rooms[screen.unique()].round())[1].float().mean())

    # 256 frames on end.
    films, edges = dream_films(model, whole, cache.gather([[(0, CONTEXT + FRAMES)]]), CONTEXT, FRAMES)
    image, truth = torch.from_numpy(films["dream"].image[-FRAMES:]), real[CONTEXT : CONTEXT + FRAMES]
    for low, high in ((0, 16), (16, 64), (64, 256)):
        read(f"frames {low + 1} to {high}", image[low:high], truth[low:high])
    write_film(films, edges, played.schema.sample_rate, film)

    # Fifty frames from many starts.
    starts = range(0, FRAMES - max(DRIFT) + 1, 4)
    clip = clips.gather([[(s, s + CONTEXT + max(DRIFT))] for s in starts]).torch()
    truth = torch.stack([real[s : s + CONTEXT + max(DRIFT)] for s in starts])
    state = model.observe(clip.map(lambda x: x[:, :CONTEXT]))
    action = model.actions.vectors(clip.action)[:, CONTEXT:]
    for name, keys in (("after", action), ("other keys, after", action.roll(len(starts) // 2, 0))):
        states = open_loop_rollout(model, state, keys, keep_states=True).states
        for steps in DRIFT:
            dream, at = model.render(states[steps]), CONTEXT + steps - 1
            read(f"{name} {steps}", dream["image"], truth[:, at])
            row[f"psnr, {name} {steps}"] = float(psnr(dream["image"], clip.image[:, at]).mean())
            row[f"lsd, {name} {steps}"] = float(log_spectral_distance(dream["audio"], clip.audio[:, at]).mean())
    for steps in DRIFT:
        row[f"off, stays, after {steps}"] = float((truth[:, CONTEXT - 1] - truth[:, CONTEXT + steps - 1]).norm(dim=-1).mean())
    return row


def write_film(films: dict[str, Film], edges: np.ndarray, rate: int, path: Path) -> None:
    """Game and dream side by side, with the dream's sound."""
    pictures = np.concatenate([films["game"].image, films["dream"].image], 2)
    write_media(path, pictures, picture_times(edges[1:]), films["dream"].sound, rate, kind="webm")


def train(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training run from nothing, and its measures."""
    begun, folder = time.monotonic(), options.folder / f"seed-{seed}"
    model, reader = learn(folder, seed, options)
    film = folder / f"dream{arm_of(options)}.webm"
    row = measured(model, reader, by_hand(folder, options), film)
    if seed == 0 and not options.tiny and not options.self_forcing:
        shutil.copy(film, Path(__file__).parent / "results/playable.webm")
    return {"seed": seed, **row, "minutes": round((time.monotonic() - begun) / 60, 1)}


def main() -> None:
    """All rows of an arm that are not there yet, and their means."""
    sizes = TINY if "--tiny" in sys.argv else SIZES
    tiny = {"action": "store_true", "help": "the smallest sizes, to see it run to its end"}
    share = {"type": float, "default": 0.0, "help": "share of the sequences whose past the model made itself: an arm of its own"}
    options, rows = begin("playable", __doc__, sizes, tiny=tiny, **{"self-forcing": share})
    if options.self_forcing:
        given = {name: getattr(options, name) for name in sizes}
        rows = Results("playable_self_forcing", {**given, "self_forcing": options.self_forcing})
    for seed in options.seeds:
        if not rows.has(seed=seed):
            rows.add(train(seed, options))
    show_means(rows.table())


if __name__ == "__main__":
    main()
