"""What a planner's goals and dreams are worth on Bonk's whole map: a policy cloned, then trained by PPO or GRPO in dreams.

`python experiments/dual.py --runs 5` makes for each seed one recording, its tokenizers, world model, heads and cloned policy,
by the stages of pipelines/dual.yaml; then two policies go on from the clone in dreams, one by PPO and one by GRPO, with as many
dreams. All three play the real game under the same seeds and budgets, with each of these planners (`PLANNERS`):
none; the graph of milestones; legal goals by chance; and the graph's goals, told so many steps late (`--delay`).
Beside them play planners without a policy: the player that was cloned, without its noise, asked as often and answering as late
as a planner, whose button is held until the next answer (*buttons*), and the same player in every step (*every step*).
Before any dreams, is the goal used? The divergence of the cloned policy over goals in one state, and the share of the
graph's plans that it fulfils, minus the same when the policy is told another goal in place of each (*shuffled*).

Milestones reached within the budget are compared by Kaplan-Meier's estimate and the log-rank test, over the episodes of all
runs; everything else by Student's intervals over training runs, differences run by run. How far dreams drift is
measured on held-out play by chance, beside the heads' own error, who stays where he is, and dreams under other actions.
Rows go to dual.csv, dual_episodes.csv and dual_drift.csv in experiments/results. `--table` prints the tables alone; `--tiny`
runs all of it in its smallest sizes. What is interrupted goes on with the stage, training or row that is not there yet.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import Results, begin, run_stages
from torch import Tensor

from metabonk.act.agent import Agent, Player, play_episodes
from metabonk.act.dreaming import DreamConfig
from metabonk.act.dual import DualAgent, goals_of, make_planner
from metabonk.act.goal_codes import GoalRows
from metabonk.act.goal_rewards import GoalReward
from metabonk.act.goal_rounds import AskedRows
from metabonk.act.goals import Goals
from metabonk.act.objectives import GRPO, PPO, GRPOConfig
from metabonk.act.planner import count_rooms, read_journal
from metabonk.act.planner_loop import LoopConfig, PlannerLoop
from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything, spawn_seeds
from metabonk.core.training import fit
from metabonk.dream.probes import Heads
from metabonk.dream.token_model import TokenModel
from metabonk.measure.drift import probe_drift
from metabonk.measure.milestones import compare_milestones
from metabonk.measure.statistics import difference_interval, mean_interval
from metabonk.play.policies import PlayerPolicy
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenCache, TokenData

SIZES = {"steps": 20_000, "wander_steps": 20_000, "chance_steps": 10_000, "episode_steps": 1500, "picture_steps": 300,
         "sound_steps": 300, "model_steps": 4000, "probe_steps": 500, "clone_steps": 2000, "dream_steps": 300, "starts": 128,
         "horizon": 15, "episodes": 10, "latency": 15, "delay": 100, "expiry": 300, "held_steps": 3000}  # fmt: skip
TINY = {"steps": 180, "wander_steps": 90, "chance_steps": 90, "episode_steps": 90, "picture_steps": 2, "sound_steps": 2,
        "model_steps": 2, "probe_steps": 2, "clone_steps": 2, "dream_steps": 2, "starts": 16, "horizon": 3, "episodes": 2,
        "latency": 5, "delay": 10, "expiry": 20, "held_steps": 120}  # fmt: skip
ARMS, PLANNERS = ("cloned", "ppo", "grpo"), ("none", "graph", "random", "delayed")
ALONE = ("buttons", "every step")  # planners without a policy
SCORES = ("milestones", "badges", "return", "fulfilled")


class Delayed(DualAgent):
    """Is told in each step the goal that stood `steps` before."""

    steps = 100

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.past: dict[int, deque[np.ndarray]] = {}

    def tell(self, game: int, observation: Mapping[str, np.ndarray], info: Mapping[str, Any], first: bool) -> None:
        super().tell(game, observation, info, first)
        if first:
            self.past[game] = deque(maxlen=self.steps + 1)
        self.past[game].append(super().code(game))

    def code(self, game: int = 0) -> np.ndarray:
        past = self.past[game]
        return past[0] if len(past) > self.steps else self.vocabulary.code(None)


class Shuffled(DualAgent):
    """Is told another goal in place of each, always the same one."""

    def code(self, game: int = 0) -> np.ndarray:
        table = self.vocabulary.table(self.goals)[1:]
        at = (table == super().code(game)).all(1).nonzero()[0]
        return table[(at[0] + len(table) // 2) % len(table)] if len(at) else self.vocabulary.code(None)


KINDS: dict[str, type[DualAgent]] = {"delayed": Delayed, "shuffled": Shuffled}


class Pressing(Player):
    """A planner that presses buttons itself: the game's own player, asked once in `latency` steps and answering as late."""

    name = "pressing"

    def __init__(self, model: TokenModel, latency: int, seed: int) -> None:
        self.latency, self.seed = latency, seed
        super().__init__(model)

    def join(self, games: Sequence[Any]) -> None:
        super().join(games)
        self.planners = [PlayerPolicy(game) for game in games]
        self.steps, self.held, self.answers = ([0] * len(games) for _ in range(3))

    def tell(self, game: int, observation: Mapping[str, np.ndarray], info: Mapping[str, Any], first: bool) -> None:
        if first:
            self.planners[game].reset(self.seed)
            self.steps[game], self.held[game], self.answers[game] = 0, 0, 0  # nothing is pressed before the first answer
        if self.steps[game] % max(1, self.latency) == 0:
            self.held[game] = self.answers[game]
            self.answers[game] = self.planners[game](observation, info)
        self.steps[game] += 1

    def decide(self, *observed: Any) -> tuple[Any, Tensor]:
        pressed = torch.tensor(self.held if self.latency else self.answers)
        return True, self.model.actions.vectors(pressed[:, None])[:, 0]


class Trained:
    """What one training run came to: stages in a run folder, and policies that went on from its clone."""

    def __init__(self, seed: int, options: argparse.Namespace) -> None:
        self.seed, self.options, self.folder = seed, options, options.folder / f"run-{seed}"
        self.stages = self.folder / "pipeline/stages"
        if not (self.folder / "cloned").exists():
            self.prepare()
        self.store = Store.open(self.stages / "record/store")
        self.goals: Goals = goals_of(self.store.schema, expiry=options.expiry)
        self.model = TokenModel.load(self.stages / "model/model")
        self.heads = Heads.load(self.stages / "probes/heads")
        self.settings = dict(self.store.schema.config) | {"max_steps": options.episode_steps}
        rows = GoalRows.of(Cache(self.stages / "tokenise/cache"), self.goals)
        self.rooms = count_rooms(rows, self.goals)

    def prepare(self) -> None:
        """The stages of the pipeline up to the clone."""
        o = self.options
        sizes = {"record.steps": o.steps, "record.episode_steps": o.episode_steps,
                 "record.beside": {"wanderer:0.1": o.wander_steps, "random": o.chance_steps},
                 "tokenise.picture_steps": o.picture_steps, "tokenise.sound_steps": o.sound_steps, "seed": self.seed,
                 **{f"{name}.steps": getattr(o, f"{kind}_steps") for name, kind in
                    (("model", "model"), ("probes", "probe"), ("clone", "clone"))}}  # fmt: skip
        stages = ["record", "tokenise", "model", "probes", "clone"]
        run_stages("dual", stages, self.folder / "pipeline", sizes)
        (self.folder / "cloned").symlink_to("pipeline/stages/clone/agent", target_is_directory=True)

    def agent(self, arm: str) -> DualAgent:
        """The policy of an arm, trained now if it is not there."""
        if not (self.folder / arm).exists():
            self.dream(arm)
        return DualAgent.load(self.folder / arm, self.model, self.goals)

    def dream(self, arm: str) -> None:
        """Go on from the clone in dreams."""
        o, dual = self.options, self.agent("cloned")
        policy, length = dual.agent.actor_critic, min(16, o.episode_steps)
        told = AskedRows.of(Cache(self.stages / "tokenise/cache"), self.goals, seed=self.seed)
        places = {"path": self.stages / "tokenise/tokens", "cache": self.stages / "tokenise/cache"}
        sequences = SequenceConfig(length=length, batch_size=16, marked=0.25, seed=self.seed + 6)
        archive = told.archive(self.folder / "archive.csv")
        data = TokenData(self.store.path, self.model.tokenizers, sequences, marks=archive, **places)
        seed_everything(self.seed)
        goes_by = PPO(reference=policy, kl=0.04) if arm == "ppo" else GRPO(policy, GRPOConfig(kl=0.04))
        config = DreamConfig(horizon=o.horizon, starts=o.starts, replay=0.0, discount=0.99, reuse=3, objective=arm)
        learner = told.dreamer(dual, GoalReward(self.heads.goals, 1.0, 0.1), config, goes_by, often=length)
        fit(learner, data, self.folder / f"{arm}-training", TrainConfig(steps=o.dream_steps, lr=3e-4, warmup=20, seed=self.seed))
        dual.save(self.folder / arm)

    def play(self, arm: str, planner: str) -> pd.DataFrame:
        """Episodes of an arm with a planner; the same for all arms and planners of a seed."""
        o, journals = self.options, self.folder / "journals" / f"{arm}-{planner}"
        judged, games = spawn_seeds(self.seed, 5)[4] >> 1, min(10, self.options.episodes)
        if planner in ALONE:
            pressing = Pressing(self.model, o.latency if planner == "buttons" else 0, self.seed)
            return play_episodes(pressing, "bonk", o.episodes, judged, games, self.settings)
        for old in journals.glob("*.jsonl"):  # of an attempt that was interrupted
            old.unlink()
        config = LoopConfig(latency_steps=o.latency)
        kind = "random" if planner == "random" else "graph"

        def loop(game: int) -> PlannerLoop:
            made = make_planner(kind, self.goals, self.rooms, self.seed + game)
            return PlannerLoop(made, self.goals, config, journals / f"{game}.jsonl")

        agent: Agent = self.agent(arm).agent
        Delayed.steps = o.delay
        make = KINDS.get(planner, DualAgent)
        with make(agent, self.agent("cloned").vocabulary, self.goals, None if planner == "none" else loop) as dual:
            return play_episodes(dual, "bonk", o.episodes, judged, games, self.settings)

    def fulfilled(self, arm: str, planner: str) -> float:
        """The share of the plans that were kept whose goal was reached; nan without goals."""
        lines = [line for path in (self.folder / "journals" / f"{arm}-{planner}").glob("*.jsonl") for line in read_journal(path)]
        kept = sum(line["event"] == "call" and line["verdict"] == "kept" for line in lines)
        return sum(line["event"] == "end" and line["how"] == "reached" for line in lines) / kept if kept else float("nan")

    def drift(self) -> pd.DataFrame:
        """How far dreams of play by chance drift from it: means over episodes."""
        held, ahead = self.folder / "held", (1, 5, 15, 50)
        record("bonk", held, "sticky_random", self.options.held_steps, seed=spawn_seeds(self.seed, 3)[2],
               settings=self.settings, resume=True)  # fmt: skip
        store = Store.open(held)
        tokens = TokenCache.build(store, self.model.tokenizers)
        place = self.goals.planning.place
        rows = probe_drift(self.model.eval(), tokens, Cache.build(store), self.heads.probes, place, tile=16.0, ahead=ahead,
                           seed=self.seed)  # fmt: skip
        means = rows.groupby(["what", "ahead", "episode"], sort=False)[["tiles", "wrong"]].mean()
        return means.groupby(["what", "ahead"], sort=False).mean().reset_index()


def goal_use(trained: Trained) -> float:
    """Divergence of the cloned policy between goals in one state, as the stage measured it."""
    return float(pd.read_csv(trained.stages / "clone/goal_use.csv", index_col="measure")["value"]["divergence"])


def measure(seed: int, options: argparse.Namespace, rows: Results, episodes: Results, drift: Results) -> None:
    """All rows of a seed that are not there yet."""
    wanted = [("cloned", "shuffled"), *((arm, planner) for arm in ARMS for planner in PLANNERS)]
    wanted += [("player", planner) for planner in ALONE]
    wanted = [who for who in wanted if not rows.has(seed=seed, arm=who[0], planner=who[1])]
    if not wanted and drift.has(seed=seed):
        return
    trained = Trained(seed, options)
    for arm, planner in wanted:
        begun, who = time.monotonic(), {"seed": seed, "arm": arm, "planner": planner}
        played = trained.play(arm, planner)
        milestones = played.filter(like="milestones/")
        for number, episode in played.iterrows():
            if not episodes.has(**who, episode=number):
                ended = {name: episode[name] for name in ("length", "terminated", *milestones)}
                episodes.add({**who, "episode": number, **ended})
        badges = milestones.filter(like="badge").notna().sum(axis=1).mean()
        rows.add({**who, "milestones": round(milestones.notna().sum(axis=1).mean(), 4), "badges": round(badges, 4),
                  "return": round(played["return"].mean(), 4), "fulfilled": round(trained.fulfilled(arm, planner), 4),
                  "divergence": round(goal_use(trained), 5) if (arm, planner) == ("cloned", "graph") else float("nan"),
                  "minutes": round((time.monotonic() - begun) / 60, 2)})  # fmt: skip
    if not drift.has(seed=seed):
        for line in trained.drift().round(4).to_dict("records"):
            drift.add({"seed": seed, **line})


def told(values: pd.Series) -> str:
    """A mean over training runs with Student's interval."""
    values = values.dropna()
    return str(mean_interval(values.to_numpy(), method="t")) if values.nunique() > 1 else str(values.head(1).round(4).tolist())


def show(rows: pd.DataFrame, episodes: pd.DataFrame, drift: pd.DataFrame, budget: int) -> None:
    """The tables."""
    if not len(rows):
        return print("no training run of these sizes has been made yet")
    groups = {who: group.set_index("seed").sort_index() for who, group in rows.groupby(["arm", "planner"], sort=False)}
    for (arm, planner), group in groups.items():
        print(f"{arm}, planner {planner}: {len(group)} training runs")
        print(*(f"  {name:11} {told(group[name])}" for name in SCORES), sep="\n")
    pairs = [((arm, "graph"), (arm, other)) for arm in ARMS for other in ("none", "random", "delayed")]
    pairs += [((arm, "graph"), ("player", "buttons")) for arm in ARMS]
    pairs += [(("ppo", "graph"), ("cloned", "graph")), (("grpo", "graph"), ("cloned", "graph"))]
    pairs += [(("grpo", "graph"), ("ppo", "graph")), (("cloned", "graph"), ("cloned", "shuffled"))]
    for one, other in (pair for pair in pairs if set(pair) <= set(groups)):
        print(f"{', '.join(one)} minus {', '.join(other)}")
        for name in SCORES:
            both = pd.concat([groups[one][name], groups[other][name]], axis=1).dropna().to_numpy()
            if len(both) > 1:
                print(f"  {name:11} {difference_interval(both[:, 0], both[:, 1], paired=True, method='t')}")
    print(f"divergence of the cloned policy over goals: {told(rows['divergence'])} nats, of at most {np.log(2):.3f}")
    for title, column, fixed in (("planner", "arm", "graph"), ("arm", "planner", "ppo")):
        chosen = episodes[episodes["planner" if column == "arm" else "arm"] == fixed]
        players = {who: frame for who, frame in chosen.groupby(column, sort=False)}
        order = [who for who in (*ARMS[::-1], *PLANNERS[::-1]) if who in players]  # the last is the control
        print(f"milestones within {budget} steps, {title} {fixed}: share (Kaplan-Meier), log-rank test against {order[-1]}")
        print(compare_milestones({who: players[who] for who in order}, budget).round(3).to_string())
    for (what, ahead), group in drift.groupby(["what", "ahead"], sort=False):
        print(f"drift, {what}, {ahead} steps: {told(group['tiles'])} tiles, wrong place {told(group['wrong'])}")


def main() -> None:
    """All rows that are not there yet, and the tables."""
    sizes = TINY if "--tiny" in sys.argv else SIZES
    tiny = {"action": "store_true", "help": "the smallest sizes, to see it run to its end"}
    options, rows = begin("dual", __doc__, sizes, tiny=tiny)
    given = {name: getattr(options, name) for name in sizes}
    episodes, drift = Results("dual_episodes", given), Results("dual_drift", given)
    for seed in options.seeds:
        measure(seed, options, rows, episodes, drift)
    show(rows.table(), episodes.table(), drift.table(), options.episode_steps)


if __name__ == "__main__":
    main()
