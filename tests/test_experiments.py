"""What experiments keep: rows that are found again, and rows of other sizes that are not."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_dual import BONK, SETTINGS, VOCABULARY, Eyes, acts, dual, graph


@pytest.fixture
def rows(root: Path):
    """The module, which lies beside the experiments."""
    spec = importlib.util.spec_from_file_location("common", root / "experiments/common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_other_sizes_do_not_mix(rows, tmp_path):
    small, large = rows.Results("test", {"steps": 10}), rows.Results("test", {"steps": 20})
    small.path = large.path = tmp_path / "results" / "test.csv"
    assert not small.has(arm="a", seed=0) and not len(small.table())
    small.add({"arm": "a", "seed": 0, "score": 1.5})
    assert small.has(arm="a", seed=0) and not small.has(arm="a", seed=1) and not small.has(arm="b", seed=0)
    assert not large.has(arm="a", seed=0)
    large.add({"arm": "a", "seed": 0, "score": 2.5})
    assert small.table()["score"].tolist() == [1.5] and large.table()["score"].tolist() == [2.5]
    again = rows.Results("test", {"steps": 10})
    again.path = small.path
    assert again.has(arm="a", seed=0)
    number = rows.Results("test", {})
    number.path, number.sizes = tmp_path / "number.csv", "80744e72"
    number.add({"arm": "a", "seed": 0})
    assert number.has(arm="a", seed=0), "sizes that read as a number are still found"


def test_results_in_the_repository_can_be_read(root):
    keys = ("sizes", "arm", "fusion", "game", "player", "music", "round", "with", "seed", "condition", "mode", "who", "offset",
            "model", "beams", "depth", "encoder", "tokenizer", "measure", "planner", "episode", "what", "ahead")  # fmt: skip
    for path in (root / "experiments/results").glob("*.csv"):
        table = pd.read_csv(path)
        assert len(table) and "seed" in table and not table.duplicated([key for key in keys if key in table]).any(), path


def test_means_are_over_the_runs_that_have_a_number(rows, capsys):
    nan, three = float("nan"), {"sizes": "a", "seed": [0, 1, 2]}
    rows.show_means(pd.DataFrame({**three, "off": [1.0, nan, 3.0], "same": [2.0] * 3, "never": [nan] * 3}))
    off, same, never = capsys.readouterr().out.splitlines()
    assert off.split()[:2] == ["off", "2"] and off.endswith("(2 of 3 runs)")
    assert same.split() == ["same", "[2.]"] and never.endswith("[] (0 of 3 runs)")


def test_arms_of_the_audio_visual_experiment_are_equal_in_what_they_say(root: Path, monkeypatch):
    """Equal weights, or equal operations; and stages that are as long as the training."""
    module = experiment("av_worlds", root, monkeypatch)
    base = module.AVCDiTConfig(width=module.SIZES["width"], layers=module.SIZES["layers"])
    weights, whole = module.count_parameters(base), module.work(base, module.plan(1_000))
    for arm, about in module.ARMS.items():
        config, factorised, stages = module.arm_of(arm, base, 1_000)
        own = module.count_parameters(config, factorised), module.operations(config, factorised)
        if about.get("equal") == "weights":
            assert abs(own[0] / weights - 1) < 0.06, arm
        elif about.get("equal") == "operations":
            done = module.work(config, stages) if "at_once" in about else own[1]
            assert abs(done / (whole if "at_once" in about else module.operations(base)) - 1) < 0.08, arm
        assert config.experts == ("shared" not in arm) and factorised == ("factorised" in arm)
        assert list(stages) == (["joint"] if "at once" in arm else ["vision", "audio", "joint"])
        assert sum(stages.values()) == 1_000 or arm == "at once, operations"
    assert set(module.plan(7).values()) == {3, 1} and sum(module.plan(7).values()) == 7


def experiment(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with the others of its folder."""
    monkeypatch.syspath_prepend(str(root / "experiments"))
    spec = importlib.util.spec_from_file_location(name, root / f"experiments/{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def codes_of(kind: type) -> tuple[np.ndarray, np.ndarray]:
    """What the policy is told in each step, and what the loop pursues."""
    told, pursued = [], []

    class Listened(kind):
        def decide(self, senses, observations, actions, first, *given):
            told.append(self.code(0))
            pursued.append(self.vocabulary.code(self.loops[0].goal))
            return super().decide(senses, observations, actions, first, *given)

    acts(dual(graph(2), Listened))
    return np.stack(told), np.stack(pursued)


def test_goals_are_told_late_or_in_place_of_others(root: Path, monkeypatch):
    module = experiment("dual", root, monkeypatch)
    monkeypatch.setattr(module.Delayed, "steps", 3)
    told, pursued = codes_of(module.Delayed)
    assert (told[3:] == pursued[:-3]).all() and not told[:3].any() and pursued.any() and not (told == pursued).all()
    told, pursued = codes_of(module.Shuffled)
    asked, table = pursued.any(1), VOCABULARY.table(BONK)[1:]
    assert asked.any() and (told.any(1) == asked).all() and not (told == pursued).all(1)[asked].any()
    assert all((table == code).all(1).any() for code in told[asked]), "another goal of the game"


def test_a_planner_that_presses_buttons_answers_late_and_holds_its_button(root: Path, monkeypatch):
    module = experiment("dual", root, monkeypatch)
    pressed, meant = [], []
    asked = module.PlayerPolicy.__call__

    class Asked(module.PlayerPolicy):
        def __call__(self, observation, info):
            meant.append(asked(self, observation, info))
            return meant[-1]

    def note(episode, action, info):
        pressed.append(action)

    monkeypatch.setattr(module, "PlayerPolicy", Asked)
    for latency in (0, 3):
        pressed.clear(), meant.clear()
        played = module.play_episodes(module.Pressing(Eyes(), latency, 5), "bonk", 1, 7, 1, SETTINGS, watch=note)
        assert len(pressed) == 1 + played["length"][0] and pressed.pop(0) is None
        if latency:
            held = [0, *meant[:-1]] if len(pressed) % latency == 0 else [0, *meant]
            assert pressed == [action for action in held for _ in range(latency)][: len(pressed)]
        else:
            assert pressed == meant[: len(pressed)]
        assert len(set(pressed)) > 1


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.timeout(1800)
def test_the_dual_agents_evidence_runs_to_its_end_and_goes_on(root: Path, tmp_path, monkeypatch, capsys):
    module = experiment("dual", root, monkeypatch)
    monkeypatch.setattr("common.__file__", str(tmp_path / "common.py"))
    monkeypatch.setattr(sys, "argv", ["dual.py", "--tiny", "--runs", "2", "--folder", str(tmp_path / "runs")])
    module.main()
    rows = pd.read_csv(tmp_path / "results/dual.csv")
    episodes, drift = (pd.read_csv(tmp_path / f"results/dual_{name}.csv") for name in ("episodes", "drift"))
    assert len(rows) == 2 * 15 and len(episodes) == 2 * 15 * 2 and len(drift) == 2 * 4 * 4
    assert rows["divergence"].notna().sum() == 2 and rows["fulfilled"][rows["planner"].isin(["none", *module.ALONE])].isna().all()
    told = capsys.readouterr().out
    compared = ("grpo, graph minus ppo, graph", "cloned, graph minus cloned, shuffled")
    for words in (*compared, "Kaplan-Meier", "drift, stays, 50 steps"):
        assert words in told, words
    monkeypatch.setattr(module.Trained, "play", pytest.fail)  # nothing is left to do
    module.main()
    assert capsys.readouterr().out.splitlines()[-16:] == told.splitlines()[-16:]


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.timeout(1800)
def test_dreams_under_self_forcing_are_an_arm_of_their_own(root: Path, tmp_path, monkeypatch):
    module = experiment("playable", root, monkeypatch)
    monkeypatch.setattr("common.__file__", str(tmp_path / "common.py"))
    shares, passes = [], module.ShortcutModel._self_forced

    def counted(model, z, share, *rest):
        shares.append(share)
        return passes(model, z, share, *rest)

    monkeypatch.setattr(module.ShortcutModel, "_self_forced", counted)
    words = ["playable.py", "--tiny", "--runs", "1", "--folder", str(tmp_path / "runs")]
    for more in ([], ["--self-forcing", "0.5"]):
        monkeypatch.setattr(sys, "argv", words + more)
        module.main()
        assert set(shares) == ({0.5} if more else set())
    tables = [pd.read_csv(tmp_path / f"results/playable{name}.csv") for name in ("", "_self_forcing")]
    assert [len(table) for table in tables] == [1, 1] and not (tmp_path / "results/playable.webm").exists()
    assert tables[0]["tokenizer, psnr"].equals(tables[1]["tokenizer, psnr"]), "the same tokenizer"
    monkeypatch.setattr(module, "train", pytest.fail)
    module.main()


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.timeout(1800)
def test_three_world_models_are_compared_and_what_is_done_is_not_done_again(root: Path, tmp_path, monkeypatch, capsys):
    module = experiment("world_models", root, monkeypatch)
    monkeypatch.setattr("common.__file__", str(tmp_path / "common.py"))
    monkeypatch.setattr(sys, "argv", ["world_models.py", "--tiny", "--runs", "1", "--folder", str(tmp_path / "runs")])
    module.main()
    rows, steps = (pd.read_csv(tmp_path / f"results/{name}.csv") for name in ("world_models", "world_models_steps"))
    assert rows["model"].tolist() == list(module.MODELS) and (rows["Hz"] > 0).all() and rows["random"].nunique() == 1
    assert len(steps) == 3 * 2 * 5 and steps["psnr"].notna().all() and steps["lsd"].notna().all()
    control = steps[steps["who"] == "repeat last"].pivot(index="ahead", columns="model", values="ssim")
    assert (control.nunique(axis=1) == 1).all() and control.iloc[0, 0] == 1, "all are asked the same"
    told = capsys.readouterr().out
    monkeypatch.setattr(module, "learn", pytest.fail)  # nothing is left to do
    module.main()
    assert capsys.readouterr().out.splitlines()[-20:] == told.splitlines()[-20:]


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.timeout(3600)
def test_tokenizers_are_compared_to_the_end_and_row_by_row(root: Path, tmp_path, monkeypatch, capsys):
    module = experiment("tokenizers", root, monkeypatch)
    monkeypatch.setattr("common.__file__", str(tmp_path / "common.py"))
    words = ["tokenizers.py", "--tiny", "--runs", "1", "--folder", str(tmp_path / "runs")]
    for tokenizers in (["patch MLP", "masked transformer"], []):
        monkeypatch.setattr(sys, "argv", [*words, *(["--tokenizers", *tokenizers] if tokenizers else [])])
        module.main()
        monkeypatch.setattr(module, "TOKENIZERS", {name: module.TOKENIZERS[name] for name in ("patch MLP", "masked transformer")})
    rows = pd.read_csv(tmp_path / "results/tokenizers.csv")
    assert list(rows["tokenizer"]) == ["patch MLP", "masked transformer"]
    assert np.isfinite(rows.drop(columns=["sizes", "tokenizer"]).to_numpy()).all() and {"dream, 15", "cloned"} <= set(rows)
    models = sorted((tmp_path / "runs").glob("*/*-0/stages/dynamics/model"))
    codes = [module.ShortcutModel.load(folder).tokenizer.config for folder in models]
    assert [(code.local, code.mask_ratio, code.width) for code in codes] == [(False, 0.9, 128), (True, 0.0, 64)]
    assert "masked transformer" in capsys.readouterr().out
