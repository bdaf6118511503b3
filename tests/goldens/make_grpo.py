"""Writes grpo.npz: what torchrl 0.14.1 takes for the advantages of groups of trajectories

    pip install torchrl==0.14.1 tensordict==0.14.3 numpy && python tests/goldens/make_grpo.py
"""

from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.objectives.llm import MCAdvantage


def advantages(reward: torch.Tensor) -> torch.Tensor:
    """Of rewards (groups, size, steps), by group and trajectory."""
    groups, size, steps = reward.shape
    judge = MCAdvantage(size, prompt_key="group", rewards_key=("next", "reward"), advantage_key="advantage",
                        done_key=("next", "done"), trajectory_return="sum")  # fmt: skip
    done = (torch.arange(steps) == steps - 1)[:, None]
    told = []
    for number, group in enumerate(reward):
        for each in group:
            after = TensorDict({"reward": each[:, None], "done": done}, [steps])
            told.append(judge.inv(TensorDict({"group": torch.full((steps,), number), "next": after}, [steps])))
    found = torch.cat([rows["advantage"] for rows in told if rows is not None])
    return found.view(groups, size, steps)[..., 0]


if __name__ == "__main__":
    reward = torch.randn(6, 8, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.savez(Path(__file__).with_name("grpo.npz"), reward=reward.numpy(), advantage=advantages(reward).numpy())
