"""Trains the same dynamics as they are and compiled, outside pytest: the checks of shapes there can't be compiled.

`python compiled.py cpu aot_eager` prints how far the losses are apart at most, and what torch counted, as JSON.
"""

import json
import sys
import tempfile
from functools import partialmethod
from pathlib import Path

import torch

from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream.dynamics import DynamicsLearner


def main(device: str, backend: str, **changes) -> None:
    """Six steps of each."""
    from test_dynamics import build, codes

    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend=backend)
    config = TrainConfig(steps=6, lr=1e-3, warmup=2, log_every=1, accelerator=device)
    losses = []
    for compiled in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            learner = DynamicsLearner(build(**changes))
            fit(learner, [codes(seed=seed) for seed in range(4)], Path(folder), config.change(compile=compiled))
            losses.append(read_log(folder)["loss"])
    told = {name: dict(torch._dynamo.utils.counters[name]) for name in ("stats", "graph_break")}
    print(json.dumps({"apart": float((losses[0] / losses[1] - 1).abs().max()), **told}))


if __name__ == "__main__":
    main(*sys.argv[1:3], **{name: True for name in sys.argv[3:]})
