"""Does curiosity record more of a game than random play does, and does noise hold it?

    python experiments/exploration.py --runs 5
    python experiments/exploration.py --runs 5 --games television --arms error disagreement

Each arm records the same number of steps in rounds (`metabonk.act.exploration`). The first round is random play, the
same in all arms of a run; before each further one, all but the first two arms train a world model of tokens on what they
have recorded, and an explorer in its dreams:

- `sticky random`  a random action, held for eight steps on average, in all rounds
- `random`         a new random action in every step
- `both`           paid for the ensemble's disagreement about the next latent, and for the error about the next sound
- `latent`         paid for the first alone
- `sound`          paid for the second alone
- `disagreement`   paid for the ensemble's disagreement about the next latent and about the next sound
- `error`          paid for the error about both: the draft that a television should catch

Games:

- `map`         Bonk's whole map with its doors and its key
- `rooms`       one home with its furniture, in first person
- `seaquest`    MinAtar's, in which most of the sea is never seen by random play
- `television`  Bonk's map with a television that is on as long as button b is held: noise over the lower half of the
                picture, and random notes

What is measured at the end, over all rounds: `places`, `pictures`, `sounds` (`metabonk.measure.coverage`), `screens` where
a game has them, and the share of the last round's steps in which b was `held`. A row a run; a run that is in the table is
not made again.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
from curiosity import Remote

from metabonk.act.actor_critic import ActorCriticConfig
from metabonk.act.curiosity import CuriosityConfig
from metabonk.act.dreaming import DreamConfig
from metabonk.act.exploration import CuriousUpdates, Exploration, ExplorationConfig, make_explorer
from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything, spawn_seeds
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.coverage import covered
from metabonk.measure.statistics import difference_interval, mean_interval
from metabonk.play.game import make_game
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.shares import share_out
from metabonk.record.store import Store
from metabonk.sense.picture import PictureConfig
from metabonk.sense.tokenizers import train_tokenizers
from metabonk.sense.tokens import TokenCache, TokenData

PAID: dict[str, dict[str, str]] = {
    "sticky random": {},
    "random": {},
    "both": {"latent": "disagreement", "sound": "error"},
    "latent": {"latent": "disagreement"},
    "sound": {"sound": "error"},
    "disagreement": {"latent": "disagreement", "sound": "disagreement"},
    "error": {"latent": "error", "sound": "error"},
}
BONK = {"ticks_per_step": 12, "max_steps": 300, "image_size": (32, 32)}
GAMES: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {  # name, settings, places
    "map": ("bonk", BONK, {"screen": 1, "x": 16, "y": 16}),
    "rooms": ("rooms", {"scenes": (3,), "max_steps": 300, "image_size": (32, 32)}, {"x": 0.5, "y": 0.5}),
    "seaquest": ("minatar:seaquest", {"max_steps": 300, "image_size": (40, 40)}, {}),
    "television": ("bonk", BONK, {"screen": 1, "x": 16, "y": 16}),
}
MEASURES = ("places", "screens", "pictures", "sounds", "held")

SIZES = {
    "steps": 3_000, "rounds": 3, "random": 0.3, "tokenizer_steps": 80, "first": 150, "model_steps": 100, "explorer_steps": 120,
    "batch": 8, "length": 16, "starts": 64, "entropy": 3e-3,
}  # fmt: skip


class Television(Remote):
    "Notes on the speakers and noise over the lower half of the picture, while one action is held"

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        if action == self.action:
            picture = observation["image"].copy()
            height, width = picture.shape[0] // 2, picture.shape[1]
            dots = self.generator.integers(2, size=(height // 4, width // 4, 1)).repeat(4, 0).repeat(4, 1)
            picture[-len(dots) :] = 255 * dots
            observation["image"] = picture
        return observation, *rest


def updates_of(arm: str, options: Any, work: Path) -> CuriousUpdates:
    "What an arm learns between rounds"
    places = {"path": work / "tokens", "cache": work / "cache"}
    sequences = SequenceConfig(length=options.length, batch_size=options.batch)

    def begin(store: Path, place: Path, seed: int) -> TokenModel:
        schema, short = Store.open(store).schema, TrainConfig(steps=options.tokenizer_steps, lr=2e-3, warmup=20)
        eyes = PictureConfig.preset("tiny", size=tuple(schema.image_shape[:2]), codes=64)
        tokenizers = train_tokenizers(store, place / "tokenizers", eyes, training=short, seed=seed, cache=places["cache"])
        seed_everything(seed)
        model = TokenModel(TokenModelConfig.preset("tiny"), tokenizers, schema.actions, game=schema.game)
        model.start_from(TokenCache.build(store, tokenizers, **places), seed=seed)
        return model

    def explorer(model: Any) -> Any:
        return make_explorer(model, model.rssm.latents.size, model.tokenizers, CuriosityConfig(members=5), PAID[arm])

    training = {"lr": 3e-3, "warmup": 30}
    return CuriousUpdates(
        begin=begin, load=TokenModel.load, data=lambda model, store: TokenData(store, model.tokenizers, sequences, **places),
        learner=WorldModelLearner, explorer=explorer, first=TrainConfig(steps=options.first, **training),
        model=TrainConfig(steps=options.model_steps, **training),
        policy=TrainConfig(steps=options.explorer_steps, lr=1e-3, warmup=10),
        dreams=DreamConfig.preset("tiny", replay=0.0, starts=options.starts),
        actor=ActorCriticConfig.preset("tiny", entropy=options.entropy),
    )  # fmt: skip


def explore(game: str, arm: str, seed: int, options: Any, work: Path) -> None:
    "Record a run of an arm in `work/store`"
    name, settings, _ = GAMES[game]
    made = make_game(name, **settings)
    if game == "television":
        made = Television(made, made.unwrapped.action_names.index("b"))
    plan = ExplorationConfig(rounds=options.rounds, steps=options.steps, random=options.random, seed=seed)
    try:
        if PAID[arm]:
            Exploration(made, work / "store", work / "explorer", updates_of(arm, options, work), plan).run()
        else:  # the same first round as all others have
            policies = ["sticky_random", *[arm.replace(" ", "_")] * (plan.rounds - 1)]
            shares = zip(policies, share_out(plan.steps, plan.rounds), spawn_seeds(seed, 2 * plan.rounds), strict=False)
            for number, (policy, steps, drawn) in enumerate(shares):
                record(made, work / "store", policy, steps, seed=drawn >> 1, about={"exploration": number})
    finally:
        made.close()


def measure(game: str, work: Path, rounds: int) -> dict[str, float]:
    "What the recording covers"
    table, places = Cache.build(Store.open(work / "store"), work / "cache").table, GAMES[game][2]
    found: dict[str, float] = covered(work / "store", places, work / "cache").iloc[-1].to_dict()
    if "screen" in places:
        found["screens"] = len(np.unique(table["probes/screen"]))
    last = [e.number for e in Store.open(work / "store").episodes if e.about["exploration"] == rounds - 1]
    played = table[np.isin(table["episode"], last) & ~table["first"]]
    if game in ("map", "television"):
        found["held"] = float((played["action"] == Store.open(work / "store").schema.action_names.index("b")).mean())
    return found


def show(table: pd.DataFrame) -> None:
    "Means of all arms, and what each covers more than sticky random play, run by run"
    for game, rows in table.groupby("game", sort=False):
        rows = rows.dropna(axis=1, how="all")
        names = [name for name in MEASURES if name in rows]
        base = rows[rows["arm"] == "sticky random"].set_index("seed")
        lines = []
        for arm, part in rows.groupby("arm", sort=False):
            part = part.set_index("seed")
            both = part.index.intersection(base.index)
            line: dict[str, Any] = {"arm": arm, "runs": len(part)}
            for name in names:
                line[name] = mean_interval(part[name]) if len(part) > 1 else part[name].iloc[0]
                if arm != "sticky random" and len(both) > 1 and name != "held":
                    line[f"{name} more"] = difference_interval(part.loc[both, name], base.loc[both, name], paired=True)
            lines.append(line)
        print(f"\n{game}\n{pd.DataFrame(lines).fillna('').to_string(index=False)}")


def main() -> None:
    several = {"nargs": "+", "choices": list(GAMES), "default": list(GAMES)}
    arms = {"nargs": "+", "choices": list(PAID), "default": ["sticky random", "random", "both"]}
    options, rows = common.begin("exploration", __doc__ or "", SIZES, games=several, arms=arms)
    for seed in options.seeds:
        for game in options.games:
            for arm in options.arms:
                if rows.has(game=game, arm=arm, seed=seed):
                    continue
                work, begun = options.folder / f"{game}-{arm.replace(' ', '-')}-{seed}", time.process_time()
                work.mkdir(parents=True, exist_ok=True)
                explore(game, arm, seed, options, work)
                found = measure(game, work, options.rounds)
                row = {"game": game, "arm": arm, "seed": seed, **{name: found.get(name, "") for name in MEASURES}}
                rows.add({**row, "cpu_seconds": round(time.process_time() - begun)})
                shutil.rmtree(work)
    show(rows.table())


if __name__ == "__main__":
    main()
