"""The main pipeline from nothing to its report, at the smallest size, as a user starts it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from metabonk.act.agent import Agent
from metabonk.core.learner import TrainConfig
from metabonk.core.seed import seed_everything
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig, CausalTokenizerLearner
from metabonk.dream.clips import ClipData
from metabonk.dream.token_model import TokenModel
from metabonk.pipeline.runner import TINY_RUNS
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig

ROOT = Path(__file__).parents[1]
SMALL = {**TINY_RUNS["metabonk"], "report.dream_steps": 15}


def metabonk(*arguments: str, **sets: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, one thread a process."""
    given = [part for name, value in {**SMALL, **sets}.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "metabonk.cli", "run", str(ROOT / "pipelines/metabonk.yaml"), *arguments, *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def what_is_left(run: Path) -> None:
    """Every stage left what the next one needs; nothing that was recorded is lost, and real play joined it."""
    stages = run / "stages"
    scores = pd.read_csv(stages / "play/scores.csv", index_col=0, header=[0, 1])
    assert list(scores.index) == ["fine-tuned", "dreams only", "sticky random", "random"]
    assert len(pd.read_csv(stages / "play/episodes.csv")) == 8
    parts = pd.read_csv(stages / "play/parts.csv", index_col="part")
    assert {"score", "by score", "coins", "screens", "bonks", "dreamed", "dreamed / score"} <= set(parts.index)
    assert (parts.filter(like="by ", axis=0).sum() - parts.loc["score"]).abs().max() < 1e-9
    assert list(parts.columns[parts.loc["dreamed"].notna()]) == ["fine-tuned", "dreams only"]
    assert len(pd.read_csv(stages / "play/rounds.csv")) == 2
    agent = Agent.load(stages / "play/agent", TokenModel.load)
    assert agent.game == "bonk" and agent.model.actions.size == 11
    before, after = Store.open(stages / "record/store"), Store.open(stages / "play/store")
    assert len(after) >= len(before) + 100 and not after.verify()
    assert {episode.about["round"] for episode in after.episodes if "round" in episode.about} == {0, 1}


def what_is_shown(run: Path) -> None:
    """The report has the score, the curves, and films and sounds that can be played."""
    page = (run / "report.html").read_text()
    scores = "sticky random", "dreams only", "fine-tuned", "dreamed / score"
    for words in ("<video", "<audio", *scores, "loss/audio", "hero there", "other actions"):
        assert words in page, words
    said = re.search(r"Fine-tuned -?[\d.]+, random -?[\d.]+ an episode: (better|worse|not shown to be better or worse)", page)
    assert said and said.start() < page.index("<video") < page.index("How it ran</h2>")
    assert "Warning: " in page and "from dreams alone is not shown to be better than chance" in page, "three steps teach nothing"
    films = [len(Store.open(run / f"stages/report/played/{who}").episodes) for who in ("random", "dreams-only", "fine-tuned")]
    assert films == [1, 1, 1]
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
    """The listen stage leaves no part out in the default world, even where the model has learned next to nothing."""
    assert Store.open(run / "stages/record/store").schema.config["settings"]["darkness"] == 2
    found = pd.read_csv(run / "stages/listen/listening.csv", index_col="part")["what was found"]
    assert list(found.index) == ["attribution", "exchange", "codes", "decoys"]
    assert not found.str.startswith("left out").any(), found.to_dict()
    exchanged = pd.read_csv(run / "stages/listen/exchange.csv", index_col=["kind", "sound"])
    assert exchanged.loc[("ding", "its own"), "change"] == 0 and ("music", "from ding") in exchanged.index
    assert len(pd.read_csv(run / "stages/listen/decoys.csv")) == 2
    own = pd.read_csv(run / "stages/listen/codes.csv")["used by"].value_counts()
    assert ("the vocabulary has words for them" in found["codes"]) <= (own.get("effects", 0) > 0), found["codes"]


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_the_main_pipeline_from_nothing_to_its_report(tmp_path):
    done = metabonk("--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    for check in (what_is_left, what_is_shown, what_runs_again, what_is_heard):
        check(tmp_path / "run")


# One seed, two games, and whichever of them finishes first

LATE = """
import metabonk.record.store as store

add, flush, waiting = store.Writer.add_chunk, store.Writer.flush, []

def add_chunk(self, content, chunk=None):
    waiting.append(content)

def in_turn(self):
    told = [(store.describe_chunk(content), content) for content in waiting]
    waiting.clear()
    for _, content in sorted(told, key=lambda item: (SIGN * item[0].stream, item[0].start)):
        add(self, content)
    flush(self)

store.Writer.add_chunk, store.Writer.flush = add_chunk, in_turn
"""  # chunks of the first game reach the store before those of the second, or behind them


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_runs_with_one_seed_end_in_equal_weights(tmp_path):
    stages = "".join(f"  - notebook: {name}\n" for name in ("record", "tokenise", "model", "dream", "play"))
    head = f"title: Learn\nnotebooks: {ROOT / 'nbs/stages'}\nparameters: {{game: bonk, seed: 3}}\nstages:\n"
    (tmp_path / "learn.yaml").write_text(head + stages)
    known = {name: value for name, value in SMALL.items() if name.partition(".")[0] in stages}
    given = [part for name, value in {**known, "record.steps": 300}.items() for part in ("--set", f"{name}={value}")]
    found, arrived = [], []
    for sign in (1, -1):
        (tmp_path / f"late{sign}").mkdir()
        (tmp_path / f"late{sign}/sitecustomize.py").write_text(LATE.replace("SIGN", str(sign)))
        run = tmp_path / f"run{sign}"
        command = [sys.executable, "-m", "metabonk.cli", "run", str(tmp_path / "learn.yaml"), "--run", str(run), *given]
        path = os.pathsep.join([str(tmp_path / f"late{sign}"), str(ROOT)])
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        weights = sorted((run / "stages").rglob("*.safetensors"))
        found.append({str(file.relative_to(run)): file.read_bytes() for file in weights})
        arrived.append([chunk.stream for chunk in Store.open(run / "stages/record/store").chunks])
    assert arrived == [[0, 1], [1, 0]]
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 4
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def learned(store: Path) -> dict[str, torch.Tensor]:
    """The weights of a tokenizer of picture and sound after three steps on this store."""
    ears = LogMelConfig.preset("tiny", sample_rate=Store.open(store).schema.sample_rate)
    seed_everything(3)
    sizes = {"channels": 2, "frames": ears.frames_per_step, "bands": ears.bands, "floor": ears.floor}
    tokenizer = CausalTokenizer(CausalTokenizerConfig.preset("tiny", **sizes))
    drawn = SequenceConfig(length=16, batch_size=2, seed=3, recent=0.5, half_life=20.0, cross_episodes=True)
    data = ClipData(store, ears, drawn)
    fit(CausalTokenizerLearner(tokenizer), data, store.with_name(store.name + ".training"), TrainConfig.preset("tiny", steps=3))
    return tokenizer.state_dict()


def test_what_is_learned_does_not_depend_on_whose_chunks_came_first(tmp_path):
    for name in ("one", "other"):
        record("bonk", tmp_path / name, "random", steps=60, games=2, seed=3, settings={"max_steps": 20}, chunk_steps=8)
    path = tmp_path / "other/manifest.jsonl"
    lines = (tmp_path / "one/manifest.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(sorted(lines, key=lambda line: -json.loads(line)["stream"])))
    chunks = [Store.open(tmp_path / name).chunks for name in ("one", "other")]
    assert chunks[0] != chunks[1] and sorted(map(str, chunks[0])) == sorted(map(str, chunks[1]))
    one, other = (learned(tmp_path / name) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.whole
def test_a_record_stage_that_was_stopped_records_what_is_missing(tmp_path):
    head = f"title: Record\nnotebooks: {ROOT / 'nbs/stages'}\nstages:\n  - notebook: record\n    resume: true\n"
    (tmp_path / "record.yaml").write_text(head)
    command = [sys.executable, "-m", "metabonk.cli", "run", str(tmp_path / "record.yaml"), "--run", str(tmp_path / "run"),
               "--game", "minatar:breakout", "--set", "steps=9000", "--set", "image_size=0"]  # fmt: skip
    store = tmp_path / "run/stages/record/store"
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(store.glob("data/*.arrow")) and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    told = first.communicate(timeout=120)[1]
    assert first.returncode == 143 and "(SIGTERM): run the same command again" in told, told
    before = {chunk.file: chunk.sha256 for chunk in Store.open(store).chunks}
    stopped = len(Store.open(store)) - len(Store.open(store).episodes)
    assert 0 < stopped < 9000 and all(episode.end for episode in Store.open(store).episodes)
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr[-2000:]
    after = Store.open(store)
    assert before.items() <= {chunk.file: chunk.sha256 for chunk in after.chunks}.items() and not after.verify()
    assert len(after) - len(after.episodes) == 9000 and {episode.stream for episode in after.episodes} == {0, 1}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_curious_record_stage_goes_on_after_a_sigterm(tmp_path):
    head = f"title: Record\nnotebooks: {ROOT / 'nbs/stages'}\nstages:\n  - notebook: record\n    resume: true\n"
    (tmp_path / "record.yaml").write_text(head)
    sizes = {"policy": "curious", "steps": 150, "rounds": 3, "games": 1, "model_steps": 6, "explorer_steps": 4,
             "episode_steps": 30, "image_size": 0}  # fmt: skip
    command = [sys.executable, "-m", "metabonk.cli", "run", str(tmp_path / "record.yaml"), "--run", str(tmp_path / "run"),
               "--game", "minatar:breakout", *(part for name, value in sizes.items() for part in ("--set", f"{name}={value}"))]
    folder = tmp_path / "run/stages/record"
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 500
    while not (folder / "explorer/exploration.json").exists() and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=200)[1].count("SIGTERM") and first.returncode == 143
    before = {chunk.file: chunk.sha256 for chunk in Store.open(folder / "store").chunks}
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr[-2000:]
    after = Store.open(folder / "store")
    assert before.items() <= {chunk.file: chunk.sha256 for chunk in after.chunks}.items() and not after.verify()
    assert len(after) - len(after.episodes) == 150 and pd.read_csv(folder / "rounds.csv")["steps"].tolist() == [50, 100, 150]
    assert {(e.about["exploration"], e.about["policy"]) for e in after.episodes} == {
        (0, "sticky_random"), (1, "curious"), (2, "curious")
    }  # fmt: skip
    assert not list(folder.glob("explorer.*")) and (folder / "explorer/round-002/agent/agent.json").exists()
