"""The pipeline of Dreamer 4 from nothing to its scores, at the smallest size, as a user starts it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from metabonk.act.agent import Agent
from metabonk.core.run import Run
from metabonk.dream.dynamics import ShortcutModel

ROOT = Path(__file__).parents[1]
SMALL = {
    "record.steps": 300, "record.episode_steps": 60, "record.ticks_per_step": 4, "encode.steps": 3, "dynamics.steps": 3,
    "dynamics.agent_steps": 3, "imagine.steps": 2, "imagine.horizon": 3, "imagine.episodes": 2,
}  # fmt: skip


GAMES = {
    "bonk": {"tasks": "bonk", "imagine.task": "bonk"},
    "minatar:breakout": {"record.image_size": 10, "encode.plain": "true", "encode.sizes": "{patch: 5}", "imagine.starts": 4,
                         "dynamics.sizes": "{pack: 4, time_every: 2}", "dynamics.lr": 2e-3, "dynamics.muon": 0.02,
                         "imagine.lr": 1e-3},
    "gym:Pendulum-v1": {"record.ticks_per_step": 1, "dynamics.tasks": "pendulum",  # controls in place of buttons, no sound
                        "imagine.objective": "ppo"},
}  # fmt: skip


@pytest.mark.whole
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("game", GAMES)
def test_the_pipeline_of_dreamer_4_from_nothing_to_its_scores(tmp_path, game):
    if game.startswith("gym"):
        pytest.importorskip("pygame", reason="Gymnasium draws its pendulum with pygame")
    given = [part for name, value in {**SMALL, **GAMES[game]}.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "metabonk.cli", "run", str(ROOT / "pipelines/dreamer4.yaml"), "--game", game]
    command += ["--run", str(tmp_path / "run"), *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = tmp_path / "run" / "stages"
    scores = pd.read_csv(stages / "imagine/scores.csv", index_col=0, header=[0, 1])
    assert list(scores.index) == ["imagination", "cloned", "sticky random", "random"]
    assert len(pd.read_csv(stages / "imagine/episodes.csv")) == 8
    quality, drift = pd.read_csv(stages / "encode/quality.csv", index_col=0), pd.read_csv(stages / "dynamics/drift.csv")
    assert np.isfinite(quality.to_numpy()).all() and set(drift["who"]) == {"model", "repeat last"}
    agent = Agent.load(stages / "imagine/agent", ShortcutModel.load)
    cloned = Agent.load(stages / "imagine/cloned", ShortcutModel.load)
    assert agent.game == game and ("lsd" in quality) == (game == "bonk")
    model = ShortcutModel.load(stages / "dynamics/model")
    assert (model.config.tasks, agent.model.task, model.task) == ((8, 1, 0) if game == "bonk" else (1, 0, 0))
    code = model.tokenizer.config
    assert (model.config.pack, code.plain) == (4, game.startswith("minatar")) and code.local != code.plain
    for part, muon in (("world", 0.02), ("agent", 0.01)):  # by default there is one group of weights, without a momentum
        groups = torch.load(stages / f"dynamics/{part}/checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
        assert [(group["lr"], group["momentum"]) for group in groups if "momentum" in group] == [(muon, 0.95)] * code.plain
    left = torch.load(stages / "imagine/training/checkpoints/last.ckpt")["futures"]["times"]
    assert left == (2 if game.startswith("gym") else 0), "PPO learns four times from the same dreams"
    coded = np.load(stages / "encode/codes/codes.npy")
    assert 0.5 < coded.std() < 2, "codes are counted in their spread"
    heads = model.heads.actor()
    assert all(value.equal(heads[name]) for name, value in cloned.actor_critic.actor.state_dict().items())
    assert not all(value.equal(heads[name]) for name, value in agent.actor_critic.actor.state_dict().items())
    assert Run.open(tmp_path / "run")
