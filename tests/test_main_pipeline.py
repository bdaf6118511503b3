"""The main pipeline from nothing to its report, at the smallest size, as a user starts it."""

import json
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
    "record.steps": 500, "record.episode_steps": 90, "record.ticks_per_step": 4,
    "tokenise.picture_steps": 10, "tokenise.sound_steps": 10, "model.steps": 5,
    "dream.steps": 3, "play.rounds": 1, "play.round_episodes": 2, "play.episodes": 2,
    "listen.moments_each": 6, "listen.decoy_steps": 400, "listen.decoys": 64, "listen.after": 1, "report.dream_steps": 15,
}  # fmt: skip


def metabonk(*arguments: str, **sets: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, one thread a process."""
    given = [part for name, value in {**SMALL, **sets}.items() for part in ("--set", f"{name}={value}")]
    pipeline = (str(ROOT / "pipelines/metabonk.yaml"), "--game", "bonk")  # in the light there is music without a hum, too
    command = [sys.executable, "-m", "metabonk.cli", "run", *pipeline, *arguments, *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def what_is_left(run: Path) -> None:
    """Every stage left what the next one needs; nothing that was recorded is lost, and real play joined it."""
    stages = run / "stages"
    scores = pd.read_csv(stages / "play/scores.csv", index_col=0, header=[0, 1])
    assert list(scores.index) == ["best agent", "before real play", "sticky random", "random"]
    assert len(pd.read_csv(stages / "play/episodes.csv")) == 8
    assert len(pd.read_csv(stages / "play/rounds.csv")) == 2
    agent = Agent.load(stages / "play/agent", TokenModel.load)
    assert agent.game == "bonk" and agent.model.action_size == 11
    before, after = Store.open(stages / "record/store"), Store.open(stages / "play/store")
    assert len(after) >= len(before) + 100 and not after.verify()
    assert {episode.about["round"] for episode in after.episodes if "round" in episode.about} == {0, 1}


def what_is_shown(run: Path) -> None:
    """The report has the score, the curves, and films and sounds that can be played."""
    page = (run / "report.html").read_text()
    for words in ("<video", "<audio", "sticky random", "before real play", "loss/audio"):
        assert words in page, words
    assert json.loads((run / "manifest.json").read_text())["status"] == "done"


def what_runs_again(run: Path) -> None:
    """Started again there is nothing to do; a change reruns what follows from it, and nothing before."""
    done = metabonk("--run", str(run), "--dry-run")
    assert done.returncode == 0 and not [line for line in done.stdout.splitlines() if line.startswith("run  ")], done.stdout
    changed = metabonk("--run", str(run), "--dry-run", **{"dream.steps": 4}).stdout
    again = [line.split()[1] for line in changed.splitlines() if line.startswith("run  ")]
    assert again[0] == "dream" and {"dream", "play", "report"} <= set(again), changed
    assert set(again).isdisjoint({"record", "look", "tokenise", "model"}), changed


def what_is_heard(run: Path) -> None:
    """The listen stage measures every part on Bonk, even where the model has learned next to nothing."""
    found = pd.read_csv(run / "stages/listen/listening.csv", index_col="part")["what was found"]
    assert list(found.index) == ["attribution", "exchange", "codes", "decoys"]
    assert not found.str.startswith("left out").any(), found.to_dict()
    exchanged = pd.read_csv(run / "stages/listen/exchange.csv", index_col=["kind", "sound"])
    assert exchanged.loc[("ding", "its own"), "change"] == 0 and ("music", "from ding") in exchanged.index
    assert len(pd.read_csv(run / "stages/listen/decoys.csv")) == 2


@pytest.mark.timeout(1200)
def test_the_main_pipeline_from_nothing_to_its_report(tmp_path):
    done = metabonk("--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    for check in (what_is_left, what_is_shown, what_runs_again, what_is_heard):
        check(tmp_path / "run")
