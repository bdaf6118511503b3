"""The pipeline of Dreamer 4 from nothing to its scores, at the smallest size, as a user starts it."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from metabonk.act.agent import Agent
from metabonk.core.logs import read_log
from metabonk.core.run import Run
from metabonk.dream.dynamics import ShortcutModel
from metabonk.pipeline.runner import TINY_RUNS
from metabonk.record.tasks import TaskSet

ROOT = Path(__file__).parents[1]
SMALL = {**TINY_RUNS["dreamer4"], "imagine.episodes": 2}


GAMES = {
    "bonk": {"tasks": "bonk", "imagine.task": "bonk", "imagine.replay": 0.0},
    "minatar:breakout": {"record.image_size": 10, "encode.plain": "true", "encode.sizes": "{patch: 5}", "imagine.starts": 4,
                         "dynamics.sizes": "{pack: 4, time_every: 2}", "dynamics.lr": 2e-3, "dynamics.muon": 0.02,
                         "imagine.lr": 1e-3},
    "gym:Pendulum-v1": {"record.ticks_per_step": 1, "dynamics.tasks": "pendulum",  # controls in place of buttons, no sound
                        "imagine.objective": "ppo", "imagine.replay": 0.0},
    "doom:basic": {"record.settings": "{mouse: 20, sample_rate: 0}"},  # keys and a camera at once
}  # fmt: skip


def test_by_default_the_pipeline_plays_as_it_was_measured():
    """The numbers on the results page belong to these settings: whoever changes them makes the rows anew."""
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        imagination = importlib.import_module("imagination")
        rows = {game: imagination.Results("imagination", imagination.sizes_of(game)).table() for game in imagination.GAMES}
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    for game, table in rows.items():
        assert sorted(table["seed"]) == [0, 1, 2, 3, 4], game
        assert (table["imagination"] > table["cloned"]).all(), game


def started(pipeline: str, folder: Path, given: dict[str, object], *more: str) -> Path:
    """The stages of a finished run."""
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "metabonk.cli", "run", str(ROOT / "pipelines" / pipeline), "--run", str(folder)]
    done = subprocess.run([*command, *more, *words], cwd=ROOT, capture_output=True, text=True, timeout=7000)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "stages"


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_an_agent_is_asked_for_one_task_after_the_other_from_nothing(tmp_path):
    stages = started("tasks.yaml", tmp_path / "run", {**TINY_RUNS["tasks"], "evaluate.episodes": 2})
    names = list(TaskSet.load("bonk_first").tasks)
    led = pd.read_csv(stages / "evaluate/led.csv")
    reached = pd.read_csv(stages / "evaluate/milestones.csv", index_col=[0, 1], header=[0, 1])
    players = ["imagination", "cloned, with a world model", "cloned without one", "recorded player"]
    assert list(led["who"].unique()) == players and set(reached.index.get_level_values(0)) == set(players)
    asked = pd.read_csv(stages / "evaluate/asked_table.csv", index_col=0)
    gains = pd.read_csv(stages / "evaluate/gains.csv", index_col=0)
    assert list(asked.index) == list(gains.index) == names
    np.testing.assert_allclose(gains["asked for it"], np.diag(asked), atol=1e-9)
    assert not (stages / "alone/world").exists() and not (stages / "alone/drift.csv").exists()
    step = torch.load(stages / "alone/agent/checkpoints/last.ckpt")["global_step"]
    assert step == 7, "as many updates as world and agent take together"
    agent = Agent.load(stages / "imagine/agent", ShortcutModel.load)
    assert agent.model.tasks == 3 and agent.model.task == 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_by_default_the_policy_makes_up_its_mind(tmp_path):
    """One whole default run, a quarter of an hour and more: it beats random play, and its entropy is well below uniform."""
    stages = started("dreamer4.yaml", tmp_path / "run", {})
    scores = pd.read_csv(stages / "imagine/scores.csv", index_col=0, header=[0, 1])["mean"]["estimate"]
    assert scores["imagination"] > scores["random"]
    entropy = read_log(stages / "imagine/training")["watch/entropy"].dropna()
    uniform = np.log(ShortcutModel.load(stages / "dynamics/model").actions.categorical[0])
    assert entropy.iloc[-1] < 0.85 * uniform


IN_DEFAULT = "minatar:breakout"  # the one whole pipeline of the default run, and the quickest


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("game", [pytest.param(name, marks=[pytest.mark.whole] * (name != IN_DEFAULT)) for name in GAMES])
def test_the_pipeline_of_dreamer_4_from_nothing_to_its_scores(tmp_path, game):
    if game.startswith("gym"):
        pytest.importorskip("pygame", reason="Gymnasium draws its pendulum with pygame")
    stages = started("dreamer4.yaml", tmp_path / "run", {**SMALL, **GAMES[game]}, "--game", game)
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
