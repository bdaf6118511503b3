"""The main pipeline from nothing to its report, at the smallest size, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from metabonk.act.agent import Agent
from metabonk.dream.token_model import TokenModel
from metabonk.record.store import Store

ROOT = Path(__file__).parents[1]
SMALL = {
    "record.steps": 500, "record.episode_steps": 90, "tokenise.picture_steps": 10, "tokenise.sound_steps": 10,
    "model.steps": 5, "dream.steps": 3, "play.rounds": 1, "play.round_steps": 100, "play.episodes": 2, "report.dream_steps": 15,
}  # fmt: skip


def metabonk(*arguments: str, **sets: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, one thread a process."""
    given = [part for name, value in {**SMALL, **sets}.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "metabonk.cli", "run", str(ROOT / "pipelines/metabonk.yaml"), *arguments, *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    folder = tmp_path_factory.mktemp("main") / "run"
    done = metabonk("--run", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.timeout(1200)
def test_every_stage_leaves_what_the_next_one_needs(run):
    stages = run / "stages"
    scores = pd.read_csv(stages / "play/scores.csv", index_col=0, header=[0, 1])
    assert list(scores.index) == ["best agent", "before real play", "sticky random", "random"]
    assert len(pd.read_csv(stages / "play/episodes.csv")) == 8
    assert len(pd.read_csv(stages / "play/rounds.csv")) == 2
    agent = Agent.load(stages / "play/agent", TokenModel.load)
    assert agent.game == "bonk" and agent.model.action_size == 11
    # Nothing that was recorded is lost, and real play joined it.
    before, after = Store.open(stages / "record/store"), Store.open(stages / "play/store")
    assert len(after) >= len(before) + 100 and not after.verify()
    played = [episode for episode in after.episodes if "round" in episode.about]
    assert {episode.about["round"] for episode in played} == {1}


@pytest.mark.timeout(1200)
def test_the_report_shows_score_curves_and_a_film_with_sound(run):
    page = (run / "report.html").read_text()
    assert "<video" in page and "<audio" in page
    for words in ("sticky random", "before real play", "loss/audio", "Dream"):
        assert words in page, words
    assert json.loads((run / "manifest.json").read_text())["status"] == "done"


@pytest.mark.timeout(1200)
def test_started_again_there_is_nothing_to_do_and_a_change_reruns_only_what_follows(run):
    done = metabonk("--run", str(run), "--dry-run")
    assert done.returncode == 0 and "run  " not in done.stdout, done.stdout
    changed = metabonk("--run", str(run), "--dry-run", **{"dream.steps": 4}).stdout
    words = [line.split() for line in changed.splitlines() if line.startswith(("run ", "keep "))]
    does = {stage: what for what, stage, *_ in words}
    assert does["dream"] == does["play"] == does["report"] == "run" and does.get("model") != "run"
