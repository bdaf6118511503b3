"""A training that was stopped by SIGTERM, in every stage that trains: the same command goes on to the same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from metabonk.core.files import file_hash
from metabonk.core.logs import read_log

ROOT = Path(__file__).parents[1]
TOY = {
    "metabonk": {
        "record.steps": 500, "record.episode_steps": 90, "record.ticks_per_step": 4, "game": "bonk",
        "tokenise.picture_steps": 90, "tokenise.sound_steps": 90, "model.steps": 90, "dream.steps": 90, "dream.horizon": 3,
        "dream.pessimism": 5.0, "model.single_rows": 0.2, "model.prior_loss_after": 0.3,
        "play.rounds": 1, "play.round_episodes": 2, "play.episodes": 2, "play.model_steps": 90, "play.policy_steps": 90,
    },
    "dreamer4": {
        "record.steps": 300, "record.episode_steps": 60, "record.ticks_per_step": 4, "encode.steps": 90, "dynamics.steps": 60,
        "dynamics.agent_steps": 60, "imagine.steps": 60, "imagine.horizon": 3, "imagine.episodes": 2, "imagine.starts": 32,
    },
    "avcdit": {
        "record.steps": 2400, "latents.steps": 90, "vision.steps": 60, "audio.steps": 60, "joint.steps": 60,
        "navigate.steps": 30, "navigate.clone": 10, "navigate.episodes": 2, "navigate.beams": "[2]", "navigate.depths": "[1]",
    },
    "dual": {
        "record.steps": 400, "record.beside": "{random: 200}", "record.episode_steps": 90, "tokenise.picture_steps": 10,
        "tokenise.sound_steps": 10, "model.steps": 10, "probes.steps": 90, "clone.steps": 90, "imagine.steps": 90,
        "imagine.starts": 16, "imagine.horizon": 3, "rounds.rounds": 1, "rounds.real_steps": 180, "rounds.model_steps": 90,
        "rounds.probe_steps": 5, "rounds.policy_steps": 5, "rounds.starts": 16, "rounds.horizon": 3,
    },
}  # fmt: skip
# stage: the folder of the training in whose middle the signal comes
TRAININGS = {
    ("metabonk", "tokenise"): "tokenizers/picture", ("metabonk", "model"): "training", ("metabonk", "dream"): "training",
    ("metabonk", "play"): "rounds/round-001/model", ("dreamer4", "encode"): "training", ("dreamer4", "dynamics"): "world",
    ("dreamer4", "imagine"): "training", ("avcdit", "latents"): "autoencoder", ("avcdit", "vision"): "training",
    ("avcdit", "audio"): "training", ("avcdit", "joint"): "training", ("avcdit", "navigate"): "training",
    ("dual", "probes"): "training", ("dual", "clone"): "training", ("dual", "imagine"): "training",
    ("dual", "rounds"): "rounds/round-001/model",
}  # fmt: skip
CASES = [pytest.param(*case, id="-".join(case), marks=pytest.mark.whole if case == ("metabonk", "tokenise") else pytest.mark.slow)
         for case in TRAININGS]  # fmt: skip


def stages_of(pipeline: str) -> list[dict[str, object]]:
    return yaml.safe_load((ROOT / f"pipelines/{pipeline}.yaml").read_text())["stages"]


def name_of(stage: dict[str, object]) -> str:
    return str(stage.get("name", stage["notebook"]))


def up_to(pipeline: str, stage: str, folder: Path) -> list[str]:
    """The command that runs a pipeline up to a stage, as a user types it; nothing that only looks or judges."""
    whole = yaml.safe_load((ROOT / f"pipelines/{pipeline}.yaml").read_text())
    kept = {"record", "tokenise", "model", *(name for of, name in TRAININGS if of == pipeline)}
    names = [name_of(entry) for entry in whole["stages"]]
    whole["stages"] = [entry for entry in whole["stages"][: names.index(stage) + 1] if name_of(entry) in kept]
    whole["notebooks"] = str(ROOT / "nbs/stages")
    path = folder / f"{pipeline}-{stage}.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    there = {name_of(entry) for entry in whole["stages"]} | {"game"}
    given = [f"{name}={value}" for name, value in TOY[pipeline].items() if name.split(".")[0] in there]
    return [sys.executable, "-m", "metabonk.cli", "run", str(path), *(word for each in given for word in ("--set", each))]


def finished(command: list[str], run: Path) -> dict[str, str]:
    """Run it to its end: the hashes of all weights that were saved for others."""
    done = subprocess.run([*command, "--run", str(run)], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return {str(file.relative_to(run)): file_hash(file) for file in sorted((run / "stages").rglob("*.safetensors"))}


def stopped(command: list[str], run: Path, training: Path) -> None:
    """Run it until its training has logged some steps, then ask it to end."""
    process = subprocess.Popen([*command, "--run", str(run)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 1800
        while not (training / "logs/log.csv").exists() or len(read_log(training)) < 2:
            assert process.poll() is None and time.monotonic() < until, process.communicate()[1][-3000:]
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        told = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == 143 and "run the same command again, it goes on at this stage" in told, told


@pytest.mark.parametrize(("pipeline", "stage"), CASES)
@pytest.mark.timeout(7200)
def test_a_stage_that_was_stopped_ends_at_the_weights_of_one_that_was_not(tmp_path: Path, pipeline: str, stage: str) -> None:
    command = up_to(pipeline, stage, tmp_path)
    whole = finished(command, tmp_path / "whole")
    run = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", run)
    training = run / "stages" / stage / TRAININGS[pipeline, stage]
    shutil.rmtree(run / "stages" / stage)
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["stages"][stage]
    (run / "manifest.json").write_text(json.dumps(manifest))
    stopped(command, run, training)
    before = read_log(training)
    assert (training / "checkpoints/last.ckpt").exists()
    again = finished(command, run)
    after = read_log(training) if training.exists() else before
    rows = after.iloc[: len(before)][list(before.columns)]  # columns of held-out batches may have come since
    assert before.equals(rows), "it went on, and did not begin anew"
    assert len(after) > len(before), "it was stopped in the middle"
    assert again == whole and any(name.startswith(f"stages/{stage}/") for name in whole)


@pytest.mark.parametrize("pipeline", TOY)
def test_every_stage_that_trains_says_that_it_goes_on(pipeline: str) -> None:
    asked = {name_of(stage) for stage in stages_of(pipeline) if stage.get("resume")}
    assert asked >= {"record", *(name for of, name in TRAININGS if of == pipeline)}
    for stage in stages_of(pipeline):  # no other stage trains: the words with which a notebook does
        code = (ROOT / f"nbs/stages/{stage['notebook']}.ipynb").read_text()
        trains = any(word in code for word in (" fit(", "\"fit(", "= train_", "FineTune(", "GoalRounds("))
        assert not trains or name_of(stage) in asked, name_of(stage)
