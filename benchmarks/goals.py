"""The rate of imagination with goals, over the rate without

    python benchmarks/goals.py [--rounds 9] [--size 1M]

1024 dreams of 15 steps by the RSSM and an actor of the same size, with a goal of 64 numbers a dream, read by
concatenation and by FiLM, and without. All take turns; each is told by its fastest round, in the processor's time of
one thread, so that a busy computer does not matter. To hold: at least 0.8.
"""

import argparse
import time

import torch
from torch import nn
from turns import fastest

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.core.actions import ActionSpec
from metabonk.dream.interface import imagine
from metabonk.dream.recurrent import RecurrentModel
from metabonk.dream.rssm import RSSMConfig

STARTS, HORIZON, GOAL = 1024, 15, 64


def main() -> None:
    "Print a line a way to read goals"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", default="1M")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = RecurrentModel(RSSMConfig.preset(options.size), nn.Identity(), 256, {}, ActionSpec(categorical=(9,)))
    starts, goal, contenders = model.rssm.initial(STARTS), torch.randn(STARTS, GOAL), {}
    for name, size, reading in (("none", 0, "concatenation"), ("concatenation", GOAL, "concatenation"), ("film", GOAL, "film")):
        config = ActorCriticConfig.preset(options.size, goal_size=size, goal_reading=reading)
        agent = ActorCritic(config, model.feature_size, model.actions)
        asked = goal if size else None
        contenders[name] = lambda agent=agent, asked=asked: imagine(model, agent.policy, starts, HORIZON, goal=asked)
    times = fastest(contenders, options.rounds, time.process_time, 1)
    for name in ("concatenation", "film"):
        print(f"{options.size}, goals by {name}: {times['none'] / times[name]:.3f} of the rate without")


if __name__ == "__main__":
    main()
