"""What experiments keep: rows that are found again, and rows of other sizes that are not."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest


@pytest.fixture
def rows(root: Path):
    """The module, which lies beside the experiments."""
    spec = importlib.util.spec_from_file_location("common", root / "experiments/common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_other_sizes_do_not_mix(rows, tmp_path):
    small, large = rows.Rows("test", {"steps": 10}), rows.Rows("test", {"steps": 20})
    small.path = large.path = tmp_path / "results" / "test.csv"
    assert not small.has(arm="a", seed=0) and not len(small.table())
    small.add({"arm": "a", "seed": 0, "score": 1.5})
    assert small.has(arm="a", seed=0) and not small.has(arm="a", seed=1) and not small.has(arm="b", seed=0)
    assert not large.has(arm="a", seed=0)
    large.add({"arm": "a", "seed": 0, "score": 2.5})
    assert small.table()["score"].tolist() == [1.5] and large.table()["score"].tolist() == [2.5]
    again = rows.Rows("test", {"steps": 10})
    again.path = small.path
    assert again.has(arm="a", seed=0)


def test_results_in_the_repository_can_be_read(root):
    keys = ("sizes", "arm", "fusion", "game", "player", "music", "round", "with", "seed", "condition", "mode", "who", "offset",
            "model", "beams", "depth", "encoder", "measure")  # fmt: skip
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
    monkeypatch.syspath_prepend(str(root / "experiments"))
    spec = importlib.util.spec_from_file_location("av_worlds", root / "experiments/av_worlds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
