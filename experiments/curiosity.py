"""Does curiosity cover more of Bonk than random play, and does noise hold it?

    python experiments/curiosity.py --runs 5 --rounds 10 --steps 600

Each run records a first round of random play, trains tokenizers on it, and then lets every player record further rounds
of equal length. Before each of them a curious player trains the world model on all that it has recorded, and its policy
in that model's dreams; rounds are short, so that what the model got wrong is soon in the recording:

- `random`      every action equally likely, in all rounds
- `curious`     paid for disagreement about the next latent and about the next sound
- `eyes`, `ears`  the same for the latent alone, for the sound alone
- `error`       paid for the error that is to be expected in both: the draft that a television catches

Three kinds of noise stand against each other: `tune`, the game's own music; `noise`, random notes in its place, in every
screen and at all times; `remote`, no music, but random notes for as long as button b is held, which does nothing else
of use. Where noise is everywhere nobody can stay in front of it: what can be measured is whether it is what pays. So
every curious player is asked about a recording of random play that nobody learns from. Its rows are **noise** if
nothing happens in them but the music, in a place that round 0 has recorded three times or more; **new** if the player
has never recorded the place; **event** if a sound effect begins or another screen comes. For the disagreement and for
the error that was really made:

- `level`   mean bonus of noise rows, in units of the variance of what was to be predicted there, after the first round
            and after the last: goes to 0 as data grow, or stays
- `share`   share of all bonuses that noise rows earn, against their share of the rows (`rows_noise`)
- `new`     probability that a new row is paid more than a noise row; 0.5 by chance
- `event`   the same for an event

With the remote control it shows in what the player does: `held`, the share of steps in which b is held; 0.1 by chance.

Finished players are found again in the table: started anew with the same arguments, the experiment goes on.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent
from metabonk.act.curiosity import AudioCuriosity, CuriosityConfig, Explorer, ExplorerLearner, Plan2Explore
from metabonk.act.dreaming import DreamConfig
from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything, spawn_seeds
from metabonk.core.training import fit
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.statistics import difference_interval, mean_interval
from metabonk.play.game import make_game
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.tokenizers import train_tokenizers
from metabonk.sense.tokens import TokenCache, TokenData

MUSIC = {"tune": 1, "noise": 2, "remote": 0, "off": 0}
PLAYERS = {"random": (), "curious": ("latent", "sound"), "eyes": ("latent",), "ears": ("sound",), "error": ("latent", "sound")}
BONUSES = ("disagreement", "error")
COVERED = ("screens", "positions", "effects", "places_of_effects")
BURN_IN = 8  # rows in which the model finds out where it is


class Remote(gym.Wrapper):
    "A television with a remote control: random notes on both speakers while one action is held"

    def __init__(self, game: gym.Env, action: int) -> None:
        super().__init__(game)
        self.action, self.generator = action, np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.generator = np.random.default_rng(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        if action == self.action:
            audio = observation["audio"]
            pitch = 110 * 2 ** (self.generator.integers(36, size=(2, 1)) / 12)  # two notes, as the game's noise has them
            time = np.arange(audio.shape[1]) / self.env.unwrapped.sample_rate
            notes = np.sign(np.sin(2 * np.pi * pitch * time)).sum(0) * 3000
            observation["audio"] = np.clip(audio + notes, -(2**15), 2**15 - 1).astype(np.int16)
        return observation, *rest


def game_of(music: str) -> gym.Env:
    "Bonk with that kind of music"
    game = make_game("bonk", settings={"music": MUSIC[music]})
    return Remote(game, game.action_names.index("b")) if music == "remote" else game


def play(store: Path, music: str, policy: Any, steps: int, seed: int) -> None:
    "Record some steps"
    game = game_of(music)
    try:
        record(game, store, policy, steps=steps, seed=seed)
    finally:
        game.close()


def rows_of(store: Path) -> np.ndarray:
    "All rows of a store without picture and sound, in the order of its caches"
    return Cache.build(Store.open(store)).table


def places(table: np.ndarray) -> np.ndarray:
    "(rows,) a number for each place: screen, and 16 x 16 pixels in it"
    screen, x, y = (table[f"probes/{name}"].astype(np.int64) for name in ("screen", "x", "y"))
    return (screen * 16 + y // 16) * 16 + x // 16


def effects(table: np.ndarray) -> np.ndarray:
    "(rows,) a number for what sounds on the two channels of effects; 0 for nothing"
    return table["probes/sfx"].astype(np.int64) * 16 + table["probes/noise"]


def coverage(table: np.ndarray) -> dict[str, float]:
    "What a recording covers"
    sfx, noise = np.unique(table["probes/sfx"]), np.unique(table["probes/noise"])
    sounding = effects(table) > 0
    return {
        "screens": len(np.unique(table["probes/screen"])),
        "positions": len(np.unique(places(table))),
        "effects": int((sfx > 0).sum() + (noise > 0).sum()),
        "places_of_effects": len(np.unique(np.stack([table["probes/screen"], effects(table)], 1)[sounding], axis=0)),
    }


def make_explorer(player: str, model: TokenModel) -> Explorer:
    "The curiosities of a player"
    config = CuriosityConfig.preset("tiny", bonus="error" if player == "error" else "disagreement")
    F, A, kinds = model.feature_size, model.actions.size, {}
    if "latent" in PLAYERS[player]:
        kinds["latent"] = Plan2Explore(config, F, A, model.rssm.latents.size)
    if "sound" in PLAYERS[player]:
        book = model.tokenizers.sound.quantizer.codebook
        kinds["sound"] = AudioCuriosity(config, F, A, book.reshape(-1, book.shape[-1]), model.tokenizers.sizes["audio"][0])
    return Explorer(kinds)


def above(a: np.ndarray, b: np.ndarray) -> float:
    "Probability that one of `a` is greater than one of `b`"
    if not len(a) or not len(b):
        return float("nan")
    return float((rankdata(np.concatenate([a, b]))[: len(a)].sum() / len(a) - (len(a) + 1) / 2) / len(b))


@torch.no_grad()
def ask(model: TokenModel, explorer: Explorer, tokens: TokenCache) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    "What every row of a recording pays, NaN where there is nothing to be asked, and what was to be predicted of it"
    model.eval()
    pays = {f"{name}_{kind}": np.full(len(tokens), np.nan) for name in explorer.curiosities for kind in BONUSES}
    targets = {name: np.zeros((len(tokens), each.target_size)) for name, each in explorer.curiosities.items()}
    for rows, place in tokens.segments[["rows", "place"]].tolist():
        if rows <= BURN_IN:
            continue
        batch, asked = tokens.gather([[(place, place + rows)]]).torch(), slice(place + BURN_IN, place + rows)
        states = model.observe(batch, every=True)
        features = model.features(states)[None]  # (1, T, F)
        action = model.actions.vectors(batch.action)
        for name, curiosity in explorer.curiosities.items():
            said = curiosity.ensemble(torch.cat([features[:, :-1], action[:, 1:]], -1))  # (K, 1, T - 1, D)
            came = curiosity.target(batch, states, features)[:, 1:]
            answers = said.var(0).mean(-1), (said.mean(0) - came).square().mean(-1)
            for kind, answer in zip(BONUSES, answers, strict=True):
                pays[f"{name}_{kind}"][asked] = answer[0, BURN_IN - 1 :].numpy()
            targets[name][asked] = came[0, BURN_IN - 1 :].numpy()
    return pays, targets


def noise_check(model: TokenModel, explorer: Explorer, test: Path, first: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    "Whether noise is what pays, on a recording that nobody learned from; places of round 0, and of all rounds so far"
    tokens = TokenCache.build(Store.open(test), model.tokenizers)
    table = rows_of(test)
    early, ever = (np.bincount(visited, minlength=4096)[places(table)] for visited in (first, seen))
    effect, screen, follows = effects(table), table["probes/screen"], ~table["first"]
    begins = (effect > 0) & (np.diff(effect, prepend=0) != 0)
    moves = np.diff(screen.astype(int), prepend=screen[:1]) != 0
    noise = follows & (effect == 0) & (np.roll(effect, 1) == 0) & ~moves & (early >= 3)
    event, new = follows & (begins | moves), follows & (ever == 0)
    pays, targets = ask(model, explorer, tokens)
    found: dict[str, float] = {}
    for name, pay in pays.items():
        known = ~np.isnan(pay) & follows
        quiet = pay[noise & known]
        found |= {
            f"{name}_level": float(quiet.mean() / targets[name.split("_")[0]][noise & known].var(0).mean()),
            f"{name}_share": float(quiet.sum() / pay[known].sum()),
            f"{name}_new": above(pay[new & known], quiet),
            f"{name}_event": above(pay[event & known], quiet),
            "rows_noise": float(len(quiet) / known.sum()),
        }
    return found


def train_model(model: TokenModel, store: Path, folder: Path, steps: int, seed: int) -> None:
    "Some steps of the world model"
    data = TokenData(store, model.tokenizers, SequenceConfig(length=16, batch_size=16, seed=seed))
    fit(WorldModelLearner(model), data, folder, TrainConfig(steps=steps, lr=4e-3, warmup=min(100, steps), seed=seed))


def begin(folder: Path, music: str, seed: int, arguments: argparse.Namespace) -> None:
    "What all players of a run share: round 0, tokenizers, a world model of it, and the recording that nobody learns from"
    names = ("steps", "test_steps", "tokenizer_updates", "first_updates")
    about = json.dumps({"seed": seed, "music": music, **{name: getattr(arguments, name) for name in names}})
    if (folder / "about.json").exists() and (folder / "about.json").read_text() == about:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    first, held_out, eyes = spawn_seeds(seed, 3)
    play(folder / "store", music, "random", arguments.steps, first >> 1)
    play(folder / "test", music, "random", arguments.test_steps, held_out >> 1)
    training = TrainConfig(steps=arguments.tokenizer_updates, lr=2e-3, warmup=50, seed=seed)
    tokenizers = train_tokenizers(folder / "store", folder / "tokenizers", training=training, seed=eyes)
    schema = Store.open(folder / "store").schema
    seed_everything(seed)
    model = TokenModel(TokenModelConfig.preset("tiny"), tokenizers, schema.actions, game=schema.game)
    train_model(model, folder / "store", folder / "learning", arguments.first_updates, seed)
    model.save(folder / "model")
    (folder / "about.json").write_text(about)  # last: all of it is there


def explore(player: str, music: str, seed: int, base: Path, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    "All rounds of one player: a row of the table for each"
    folder.mkdir(parents=True)
    store = folder / "store"
    shutil.copytree(base / "store", store)
    result, curious = [], bool(PLAYERS[player])
    if curious:
        seed_everything(seed)
        model = TokenModel.load(base / "model")
        explorer = make_explorer(player, model)
        agent = ActorCritic(ActorCriticConfig.preset("tiny", entropy=arguments.entropy), model.feature_size, model.actions)
        learner = ExplorerLearner(model, explorer, agent, DreamConfig.preset("tiny", replay=0.0))
    for number, drawn in enumerate(spawn_seeds(seed + 1, arguments.rounds)):
        if number:
            play(store, music, Agent(model, agent) if curious else "random", arguments.steps, drawn >> 1)
        table, begun = rows_of(store), time.perf_counter()
        row = {"player": player, "music": music, "seed": seed, "round": number, "steps": arguments.steps * (number + 1)}
        row |= coverage(table)
        if number:  # of the round that was just played
            remote = Store.open(store).schema.action_names.index("b")
            row["held"] = float((table["action"][~table["first"]][-arguments.steps :] == remote).mean())
        if curious:
            if number:
                train_model(model, store, folder / f"model-{number}", arguments.model_updates, drawn)
            data = TokenData(store, model.tokenizers, SequenceConfig(length=16, batch_size=16, seed=drawn))
            updates = arguments.explorer_updates
            training = TrainConfig(steps=updates, lr=1e-3, warmup=min(20, updates), seed=drawn)
            fit(learner, data, folder / f"explorer-{number}", training)
            if number in (0, arguments.rounds - 1):
                row |= noise_check(model, explorer, base / "test", places(rows_of(base / "store")), places(table))
        row["seconds"] = round(time.perf_counter() - begun, 1)
        result.append(row)
    return result


def told(values: pd.Series, interval: Callable[..., Any] = mean_interval, *rest: Any, **options: Any) -> str:
    "A mean with its bootstrap interval, or alone where one run can't have any"
    if len(values) < 2 or values.isna().any():
        return f"{float(np.mean(values)):.4g}"
    return str(interval(values, *rest, **options))


def shown(title: str, lines: list[dict[str, Any]]) -> str:
    "A table with its title; nothing if it is empty"
    return f"\n{title}\n{pd.DataFrame(lines).to_string(index=False)}" if lines else ""


def summary(table: pd.DataFrame) -> str:
    "The tables to print"
    begun, ended = (table[table["round"] == at] for at in (table["round"].min(), table["round"].max()))
    parts = []
    for music, rows in ended.groupby("music", sort=False):
        cells = {name: part.set_index("seed")[[*COVERED, "held"]] for name, part in rows.groupby("player", sort=False)}
        lines = [{"player": name, "runs": len(part), **{key: told(part[key]) for key in part}} for name, part in cells.items()]
        parts.append(shown(f"Covered after {int(rows['steps'].max())} steps, music: {music}", lines))
        random_play, gains = cells.pop("random", None), []
        for name, part in cells.items():
            both = part.index.intersection(random_play.index) if random_play is not None else []
            if len(both) > 1:
                pairs = {key: (part.loc[both, key], difference_interval, random_play.loc[both, key]) for key in COVERED}
                gains.append({"player": name, **{key: told(*pair, paired=True) for key, pair in pairs.items()}})
        parts.append(shown(f"More than random play, run by run, music: {music}", gains))
    lines = []
    for (music, player), final in ended.groupby(["music", "player"], sort=False):
        first = begun[(begun["music"] == music) & (begun["player"] == player)]
        for name in (f"{what}_{kind}" for what in PLAYERS[player] for kind in BONUSES):
            levels = {"level": told(first[f"{name}_level"]), "last level": told(final[f"{name}_level"])}
            rest = {part: told(final[f"{name}_{part}"]) for part in ("share", "new", "event")}
            line = {"music": music, "player": player, "bonus": name.replace("_", " ")}
            lines.append({**line, **levels, **rest, "rows_noise": told(final["rows_noise"])})
    return "\n".join([*filter(None, parts), shown("Is it the noise that pays? After the last round", lines)])


def finished(table: pd.DataFrame, player: str, music: str, seed: int, arguments: argparse.Namespace) -> bool:
    "Whether the table has all rounds of a player already"
    if not len(table):
        return False
    rows = table[(table["player"] == player) & (table["music"] == music) & (table["seed"] == seed)]
    return set(rows["steps"]) == {arguments.steps * (number + 1) for number in range(arguments.rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="training runs, each with seeds of its own")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of recording, the random first one included")
    parser.add_argument("--steps", type=int, default=600, help="steps of a round")
    parser.add_argument("--test-steps", type=int, default=4000, help="steps of the recording that nobody learns from")
    parser.add_argument("--tokenizer-updates", type=int, default=800)
    parser.add_argument("--first-updates", type=int, default=500, help="of the model, on the first round")
    parser.add_argument("--model-updates", type=int, default=150, help="before each round")
    parser.add_argument("--explorer-updates", type=int, default=100, help="before each round")
    parser.add_argument("--entropy", type=float, default=3e-3, help="reward of a curious player for staying undecided")
    parser.add_argument("--players", nargs="+", choices=list(PLAYERS), default=["random", "curious", "error"])
    parser.add_argument("--music", nargs="+", choices=list(MUSIC), default=["tune", "noise", "remote"])
    parser.add_argument("--folder", type=Path, help="where recordings and models are kept; a temporary one if not given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "curiosity.csv")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = pd.read_csv(arguments.output) if arguments.output.exists() else pd.DataFrame()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.folder or Path(temporary)
        for seed in range(arguments.runs):
            for music in arguments.music:
                base = work / f"{music}-{seed}"
                for player in arguments.players:
                    if finished(table, player, music, seed, arguments):
                        continue
                    begin(base / "base", music, seed, arguments)
                    shutil.rmtree(base / player, ignore_errors=True)
                    rows = explore(player, music, seed, base / "base", base / player, arguments)
                    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
                    arguments.output.parent.mkdir(parents=True, exist_ok=True)
                    table.to_csv(arguments.output, index=False)
                    shutil.rmtree(base / player)
                    final = {name: rows[-1][name] for name in COVERED}
                    print(f"run {seed}, music {music}, {player}: {final}", flush=True)
                if arguments.folder is None:
                    shutil.rmtree(base, ignore_errors=True)
    print(summary(table))


if __name__ == "__main__":
    main()
