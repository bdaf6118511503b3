"""The dual agent's pipeline from nothing to its report, at the smallest size, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metabonk.act.dual import DualAgent, goals_of
from metabonk.act.planner import read_journal
from metabonk.core.logs import read_log
from metabonk.core.run import Run
from metabonk.dream.probes import Heads
from metabonk.dream.token_model import TokenModel
from metabonk.measure.live import player_of
from metabonk.pipeline.runner import TINY_RUNS
from metabonk.play.course import ROM
from metabonk.record.store import Store

ROOT = Path(__file__).parents[1]
SMALL = {
    **TINY_RUNS["dual"], "report.held_steps": 120, "model.latents": "gaussian", "model.latent_size": 9, "model.single_rows": 1.0,
    "model.prior_loss_after": 0.5, "model.lr": 0.01, "model.cooldown": 0.5,
}  # fmt: skip
GAMES = {
    "bonk": {"objective": "grpo", "record.beside": '{"wanderer:0.1": 90, random: 90}'},
    f"gameboy:{ROM}": {"record.profile": "course", "record.ticks_per_step": 16, "play.planner": "random"},
}
WHEN = [pytest.mark.slow, pytest.mark.whole]
PLAYERS = ["dual", "without goals", "random goals", "dreams only", "cloned", "random play"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("game", [pytest.param(name, marks=WHEN[name == "bonk"]) for name in GAMES])
def test_the_dual_pipeline_from_nothing_to_its_report(tmp_path, game):
    given = [part for name, value in {**SMALL, **GAMES[game]}.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "metabonk.cli", "run", str(ROOT / "pipelines/dual.yaml"), "--game", game]
    command += ["--run", str(tmp_path / "run"), *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = tmp_path / "run/stages"
    store = Store.open(stages / "record/store")
    assert [sum(e.rows for e in store.episodes if e.about["policy"] == who) > least for who, least in
            (("scripted:0.1", 180), ("random", 90))] == [True, True]  # fmt: skip
    what_was_learned(stages, store, game)
    what_the_rounds_came_to(stages, store, game)
    what_was_played(stages, store, game)
    watched = player_of(Run.open(tmp_path / "run"))
    theirs = DualAgent.load(stages / "rounds/agent", TokenModel.load, goals_of(store.schema, game))
    theirs = theirs.agent.actor_critic.state_dict()
    assert all(value.equal(theirs[name]) for name, value in watched.agent.actor_critic.state_dict().items())
    page = (tmp_path / "run/report.html").read_text()
    for words in ("milestones against time", "badges, no human", "steps a second", "stays", "<video", "rationale"):
        assert words in page, words
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "done" and Run.open(tmp_path / "run")


def what_was_learned(stages: Path, store: Store, game: str) -> None:
    """Heads, a clone and a policy of dreams, all with one vocabulary; the archive holds rows in which something was reached."""
    goals = goals_of(store.schema, game)
    model = TokenModel.load(stages / "model/model")
    foreseen = {part: read_log(stages / "model" / part)["loss/prior"] for part in ("rows", "training")}
    assert model.rssm.latents.size == 9 and foreseen["rows"].eq(0).all() and foreseen["training"].gt(0).any()
    heads = Heads.load(stages / "probes/heads")
    agents = [DualAgent.load(stages / name / "agent", model, goals) for name in ("clone", "imagine")]
    assert all(agent.vocabulary.to_dict() == heads.about["vocabulary"] for agent in agents)
    assert {"x", "y", goals.planning.place} <= set(heads.probes.probes)
    weights = [agent.agent.actor_critic.state_dict() for agent in agents]
    assert not all(value.equal(weights[1][name]) for name, value in weights[0].items()), "dreams taught something"
    archive = pd.read_csv(stages / "imagine/archive.csv")
    assert list(archive.columns) == ["episode", "step"] and set(archive["episode"]) <= {e.number for e in store.episodes}


def what_the_rounds_came_to(stages: Path, recorded: Store, game: str) -> None:
    """Rows of each round in the store, a refreshed model with its heads, and the agent with the best real score."""
    rounds, store = pd.read_csv(stages / "rounds/rounds.csv"), Store.open(stages / "rounds/store")
    assert rounds["round"].tolist() == [0, 1, 2] and rounds["steps"].is_monotonic_increasing
    numbers = [episode.about.get("round") for episode in store.episodes]
    assert numbers == [None] * len(recorded.episodes) + [0, 0, 1, 1, 2, 2] and len(store) > len(recorded)
    goals = goals_of(store.schema, game)
    best = int(rounds["score"].argmax())
    folders = [stages / name for name in ("imagine/agent", f"rounds/rounds/round-{best:03d}/agent", "rounds/agent",
                                          "rounds/rounds/round-002/agent")]  # fmt: skip
    weights = [DualAgent.load(folder, TokenModel.load, goals).model.state_dict() for folder in folders]
    assert all(value.equal(weights[2][name]) for name, value in weights[1].items())
    assert not all(value.equal(weights[3][name]) for name, value in weights[0].items()), "the model is refreshed"
    for number in (0, 1, 2):
        lines = read_journal(stages / f"rounds/rounds/round-{number:03d}/journals/0.jsonl")
        assert any(line["event"] == "call" for line in lines), number
    assert Heads.load(stages / "rounds/heads").probes.probes


def what_was_played(stages: Path, store: Store, game: str) -> None:
    """Every player the same budget, each call in a journal, an episode written down and recorded, and a table of targets."""
    goals, planner = goals_of(store.schema, game), "random" if game != "bonk" else "graph"
    scores = pd.read_csv(stages / "play/scores.csv", index_col=0, header=[0, 1])
    assert list(scores.index) == PLAYERS
    episodes = pd.read_csv(stages / "play/episodes.csv")
    assert len(episodes) == 12 and (episodes["length"] <= 25).all()
    assert {f"milestones/{name}" for name in goals.milestones} <= set(episodes.columns)
    journals = {path.stem: read_journal(path) for path in (stages / "play/journals").glob("*.jsonl")}
    assert {"dual-0", "dual-1", "random goals-0", "cloned-1", "episode-0"} <= set(journals)
    assert {lines[0]["planner"] for name, lines in journals.items() if name.startswith("dual")} == {planner}
    assert all(any(line["event"] == "call" for line in lines) for lines in journals.values())
    steps = pd.read_csv(stages / "play/steps.csv", keep_default_na=False)
    assert len(steps) == 26 and steps["goal"].iloc[:15].eq("").all(), "an answer counts after 15 steps"
    kept = [line["step"] + 15 for line in journals["episode-0"] if line["event"] == "call" and line["verdict"] == "kept"]
    assert all(steps["goal"].iloc[step] for step in kept) and steps["goal"].ne("").any() == bool(kept)
    assert len(Store.open(stages / "play/store").episodes) == 1
    drift = pd.read_csv(stages / "report/drift.csv")
    assert set(drift["what"]) == {"read", "dream", "other actions", "stays"} and set(drift["ahead"]) == {1, 5, 15, 50}
    assert np.isfinite(drift["wrong"]).all()
    targets = pd.read_csv(stages / "report/targets.csv", keep_default_na=False)
    assert len(targets) == 5 and targets["command"].str.len().gt(10).all()
    assert targets["this run"].str.contains("not in this game").sum() == (game == "bonk")
