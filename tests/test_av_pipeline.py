"""The pipeline of audio-visual worlds from nothing to its report, at the smallest size, as a user starts it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metabonk.act.navigation import NavigationAgent
from metabonk.dream.av_world import AVWorld
from metabonk.pipeline.runner import TINY_RUNS
from metabonk.record.recorder import record
from metabonk.record.store import Store

ROOT = Path(__file__).parents[1]
SMALL = {**TINY_RUNS["avcdit"], "report.film_steps": 4}
ANSWER = r"untrained: \d+% found the telephone, SPL \d"
LEARNED = {"vision": ("shared", "vision"), "audio": ("audio",), "joint": ("shared", "vision", "audio")}


def run(pipeline: Path, folder: Path, **given: object) -> subprocess.CompletedProcess[str]:
    """`metabonk run`."""
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "metabonk.cli", "run", str(pipeline), "--run", str(folder), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100)


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_the_pipeline_of_rooms_from_nothing_to_its_report(tmp_path):
    done = run(ROOT / "pipelines/avcdit.yaml", tmp_path / "run", **SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = tmp_path / "run/stages"
    worlds = {name: dict(AVWorld.load(stages / name / "model").net.named_parameters()) for name in LEARNED}
    for before, after in (("vision", "audio"), ("audio", "joint")):
        for name, weight in worlds[after].items():
            words = set(name.split("."))
            mine = "audio" if words & {"audio", "reward"} else "vision" if "vision" in words else "shared"
            assert weight.equal(worlds[before][name]) or mine in LEARNED[after], f"{name} moved in stage {after}"
        assert not all(weight.equal(worlds[before][name]) for name, weight in worlds[after].items())
    table = pd.read_csv(stages / "judge/table.csv")
    assert set(table["who"]) == {"model", "copy last", "mean", "reconstruction"} and set(table["mode"]) == {"fixed", "rollout"}
    psnr = table[(table["measure"] == "psnr") & (table["offset"] == 1)].groupby("who")["value"].mean()
    assert psnr["reconstruction"] > psnr["model"], "three steps teach nothing"
    sync = pd.read_csv(stages / "judge/sync.csv").groupby("who")["sound_lag"].median()
    assert sync["real"] == 0, "the telephone's own ring is found"
    scores = pd.read_csv(stages / "navigate/scores.csv", index_col=["agent", "score"], keep_default_na=False, na_values=[""])
    assert {"policy alone", "untrained", "the game, 2 beams, 1 deep", "AV-CDiT, 2 beams, 1 deep"} == set(scores.index.levels[0])
    assert np.isfinite(scores["estimate"].unstack("score")[["SPL", "SoftSPL", "NA", "SNA"]].to_numpy()).all()
    assert len(Store.open(stages / "navigate/walks/policy-alone").episodes) == 2
    assert NavigationAgent.load(stages / "navigate/agent").game == "rooms"
    told = (tmp_path / "run/report.html").read_text()
    assert re.search(ANSWER, told) and "<video" in told and "sine of the bearing" in told


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_a_recording_of_another_game_made_elsewhere(tmp_path):
    """Bonk, by its buttons; nothing is recorded, and nobody navigates."""
    record("bonk", tmp_path / "own", steps=500, seed=1, settings={"max_steps": 60})
    store = {"record.store": tmp_path / "own", "record.beside": "{random: 90}"}  # others are for what would be recorded
    done = run(ROOT / "pipelines/avcdit.yaml", tmp_path / "run", **{**SMALL, "game": "bonk", **store})
    assert done.returncode == 0, done.stderr[-3000:]
    assert Store.open(tmp_path / "run/stages/record/store").fingerprint() == Store.open(tmp_path / "own").fingerprint()
    world = AVWorld.load(tmp_path / "run/stages/joint/model")
    assert world.game == "bonk" and world.moves is None and len(world.config.motion) == world.actions.size
    told = (tmp_path / "run/report.html").read_text()
    assert "1 step ahead, pictures reach" in told and "<video" in told and not re.search(ANSWER, told)
