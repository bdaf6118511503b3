"""How fast the dual agent plays, and what a planner's call adds to a step of it.

`python benchmarks/dual.py` plays Bonk with picture and sound: world model, policy with goals, planner's loop. Blocks of
three kinds take turns: without a planner, with a planner that is asked once and answers at once, and with a call in
flight, which is answered after `--answer` seconds. It prints steps a second of one game and percentiles of a step.
To hold: 200 steps a second at `tiny`, 60 at `paper` (50M), and less than 1 ms more with a call in flight (99 %).
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent
from metabonk.act.dual import DualAgent
from metabonk.act.goal_codes import GoalVocabulary
from metabonk.act.goals import Goals
from metabonk.act.planner import GraphPlanner, Plan, Situation
from metabonk.act.planner_loop import LoopConfig, PlannerLoop
from metabonk.dream.token_model import TokenModel, TokenModelConfig
from metabonk.play.game import make_game
from metabonk.play.profile import load_profile
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import Tokenizers


class Slow(GraphPlanner):
    """Thinks for a while."""

    seconds = 30.0

    def plan(self, situation: Situation) -> Plan:
        """The graph planner's, late."""
        time.sleep(self.seconds)
        return super().plan(situation)


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer", type=float, default=30.0, help="seconds until the planner answers")
    parser.add_argument("--rounds", type=int, default=2, help="blocks of each kind")
    parser.add_argument("--preset", default="tiny", help="of the model: tiny, small or paper")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; its own choice if not given")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    Slow.seconds = options.answer
    goals, settings = Goals(load_profile("bonk")), {"image_size": (64, 64), "hp": 9}
    with tempfile.TemporaryDirectory() as folder:
        record("bonk", Path(folder) / "store", "random", steps=2, settings=settings)
        schema = Store.open(Path(folder) / "store").schema
    ears = LogMelConfig.preset(options.preset, sample_rate=schema.sample_rate)
    heard = {"channels": schema.channels, "frames": ears.frames_per_step, "bands": ears.bands}
    eyes = PictureTokenizer(PictureConfig.preset(options.preset, size=(64, 64)))
    tokenizers = Tokenizers(eyes, SoundTokenizer(SoundConfig.preset(options.preset, **heard)), ears, "bonk").eval()
    model = TokenModel(TokenModelConfig.preset(options.preset), tokenizers, schema.actions, "bonk").eval()
    vocabulary = GoalVocabulary.of(goals)
    policy = ActorCritic(ActorCriticConfig.preset(options.preset, goal_size=vocabulary.size), model.feature_size, model.actions)
    game, taken = make_game("bonk", **settings), dict[str, list[float]]()

    def block(kind: str) -> None:
        planner, once = Slow(goals) if kind == "a call in flight" else GraphPlanner(goals), LoopConfig(gap_steps=10**9)
        loops = None if kind == "no planner" else lambda number: PlannerLoop(planner, goals, once)
        with DualAgent(Agent(model, policy), vocabulary, goals, loops) as agent:
            agent.check(game)
            agent.reset(0)
            observation, info = game.reset(seed=1)
            until = time.perf_counter() + 0.9 * options.answer  # before the slow one answers
            while time.perf_counter() < until:
                began = time.perf_counter()
                observation, _, ended, cut, info = game.step(agent(observation, info))
                taken.setdefault(kind, []).append(time.perf_counter() - began)
                if ended or cut:
                    observation, info = game.reset(seed=1)

    for _ in range(options.rounds):
        for kind in ("no planner", "a planner that has answered", "a call in flight"):
            block(kind)
    print("| | steps | Hz | median ms | 99 % |\n|---|---|---|---|---|")
    for kind, times in taken.items():
        middle, late = np.percentile(np.array(times) * 1e3, [50, 99])
        print(f"| {kind} | {len(times)} | {1e3 / middle:.0f} | {middle:.2f} | {late:.2f} |")
    game.close()


if __name__ == "__main__":
    main()
