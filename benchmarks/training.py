"""What `fit` costs in each step, beside the five lines of a bare loop and Lightning's `Trainer` with everything switched off.

`python benchmarks/training.py [--steps 2000] [--rounds 3]` trains a network so small that the loop around it is what counts.
The three take turns; each is told by its best round, in microseconds of processor time a step. `fit` also logs each tenth
step, writes a checkpoint each 500 steps, and can be stopped and resumed to the last bit; the others do nothing of it.
"""

import argparse
import logging
import tempfile
import time
import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metabonk.core.learner import Learner, TrainConfig
from metabonk.core.optimizer import LaProp
from metabonk.core.training import fit

Pairs = list[tuple[Tensor, Tensor]]


def pairs(count: int = 8) -> Pairs:
    """Batches of a small regression."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(count)]


class Line(Learner):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Squared errors."""
        return {"fit": (self.net(batch[0]) - batch[1]).square()}


class Plain(L.LightningModule):
    """The same for Lightning's own loop."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The loss."""
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The same."""
        return LaProp(self.parameters(), lr=1e-3)


def bare(steps: int) -> None:
    """Five lines."""
    net, batches = nn.Linear(4, 1), pairs()
    optimizer = LaProp(net.parameters(), lr=1e-3)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()


def ours(steps: int) -> None:
    """With a log and checkpoints."""
    config = TrainConfig(steps=steps, lr=1e-3, log_every=10, checkpoint_every=500, accelerator="cpu")
    with tempfile.TemporaryDirectory() as folder:
        fit(Line(), pairs(), folder, config)


def lightning(steps: int) -> None:
    """Without a log, checkpoints and a bar."""
    batches: Any = pairs()
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                           "enable_model_summary": False}  # fmt: skip
    L.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", **off).fit(Plain(), DataLoader(batches, batch_size=None))


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    best: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, run in (("bare loop", bare), ("fit", ours), ("Lightning's Trainer", lightning)):
            begun = time.process_time()
            run(options.steps)
            took = (time.process_time() - begun) / options.steps * 1e6
            best[name] = min(took, best.get(name, took))
    for name, took in best.items():
        print(f"{name:20} {took:7.0f} us a step, {took / best['bare loop']:5.2f} times the bare loop")


if __name__ == "__main__":
    main()
