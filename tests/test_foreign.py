"""Folders and files from elsewhere: whatever was done to them, they load, or one line says what is wrong; nothing of them runs"""

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_av_world
import test_dual
import test_dynamics
import test_tasks
import test_token_model
import torch
from toy_pipeline import Toy

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent
from metabonk.act.dual import DualAgent
from metabonk.act.navigation import NavigationAgent, NavigationConfig, NavigationNet
from metabonk.core.actions import ActionSpec
from metabonk.core.checkpoints import load_checkpoint
from metabonk.core.errors import FolderError, MetaBonkError, StoreError
from metabonk.core.run import Run
from metabonk.dream.av_world import AVWorld
from metabonk.dream.causal_tokenizer import CausalTokenizer
from metabonk.dream.codes import CodeCache
from metabonk.dream.dynamics import ShortcutModel
from metabonk.dream.probes import Heads
from metabonk.dream.token_model import TokenModel
from metabonk.play.game import make_game
from metabonk.record.cache import Cache
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig
from metabonk.sense.codec import CodecConfig, PCACodec, load_codec
from metabonk.sense.tokens import Tokenizers


def save_agent(folder: Path) -> None:
    """An agent of a small model."""
    model = test_dynamics.build()
    Agent(model, ActorCritic(ActorCriticConfig(units=8), model.feature_size, model.actions)).save(folder)


def save_run(folder: Path) -> None:
    """A run as the runner leaves it after a failed stage, beside the pipeline that it belongs to."""
    toy = Toy(folder.parent)
    for name in ("first", "second"):
        toy.writer(name)
    toy.pipeline("stages: [first, second]")
    run = Run.open(folder)
    (run.stage_folder("first") / "out.txt").write_text("1")
    about = {
        "notebook": "n.ipynb",
        "code": "c",
        "parameters": {"size": 1},
        "files": {},
        "package": "p",
        "needs": [],
        "inputs": {},
        "execution": "e",
        "started": "2026-01-01T00:00:00.000+00:00",
        "ended": "2026-01-01T00:00:01.000+00:00",
        "seconds": 1.0,
    }
    file = {"out.txt": {"size": 1, "mtime": 5, "sha256": "0" * 64}}
    error = {"kind": "error", "cell": 1, "name": "ValueError", "message": "no"}
    stages = {
        "first": {**about, "status": "done", "outputs": file, "added": {}, "executed": "0" * 64},
        "second": {**about, "status": "failed", "error": error, "kernel": {"pid": 2**22 + 1, "began": 1.0}},
    }
    run.write(
        {
            **run.read(),
            "status": "failed",
            "title": "Toy",
            "pipeline": "toy.yaml",
            "order": ["first", "second"],
            "pending": [],
            "environment": {"metabonk": "0"},
            "started": about["started"],
            "ended": about["ended"],
            "stages": stages,
        }
    )


def plan(folder: Path) -> None:
    """What `metabonk run --dry-run` reads of a run."""
    toy = Toy(folder.parent)
    toy.run_folder = folder
    toy.run(dry_run=True)


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], str]] = {
    "tokenizers": (lambda folder: test_token_model.tokenizers().save(folder), Tokenizers.load, "tokenizers.json"),
    "autoencoder": (
        lambda folder: Autoencoder(AutoencoderConfig.preset("tiny", widths=(8, 8))).save(folder),
        Autoencoder.load,
        "autoencoder.json",
    ),
    "codec": (lambda folder: PCACodec(CodecConfig(latents=4)).save(folder), load_codec, "codec.json"),
    "token model": (lambda folder: test_token_model.build().save(folder), TokenModel.load, "model.json"),
    "causal tokenizer": (
        lambda folder: test_dynamics.build().tokenizer.save(folder),
        CausalTokenizer.load,
        "tokenizer.json",
    ),
    "shortcut model": (lambda folder: test_dynamics.build().save(folder), ShortcutModel.load, "model.json"),
    "audio-visual world": (lambda folder: test_av_world.build().save(folder), AVWorld.load, "model.json"),
    "navigation agent": (
        lambda folder: NavigationAgent(NavigationNet(NavigationConfig(), ActionSpec(categorical=(4,)))).save(folder),
        NavigationAgent.load,
        "navigation.json",
    ),
    "dual agent": (
        lambda folder: test_dual.dual().save(folder),
        lambda folder: DualAgent.load(folder, test_dual.Eyes.load, test_dual.BONK),
        "goals.json",
    ),
    "heads": (lambda folder: test_dual.heads().save(folder), Heads.load, "heads.json"),
    "agent": (save_agent, lambda folder: Agent.load(folder, ShortcutModel.load), "agent.json"),
    "cache": (lambda folder: test_tasks.recorded(folder.parent / "store", [[[0, 1, 2]]]), Cache, "cache.json"),
    "run": (save_run, plan, "manifest.json"),
}


def changed(value: Any) -> list[str]:
    """Texts of descriptions of another shape: each part left out, and each replaced by values of other kinds."""
    texts = ["", "[]", "{}", "5", "null", '"text"', "[" * 50_000, '{"format": 1, "format": 1}', "<<<<<<< HEAD\n{}\n"]

    def parts(whole: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        inner = whole.items() if isinstance(whole, dict) else []
        return [
            path,
            *(deeper for key, item in list(inner)[:12] if len(path) < 4 for deeper in parts(item, (*path, key))),
        ]

    for number, path in enumerate(parts(value)[1:]):
        others: list[Any] = [None, [], {}, "x", -1, math.nan, ["x"], {"x": 1}]
        for other in (..., others[number % len(others)], others[(number * 5 + 3) % len(others)]):
            copy = json.loads(json.dumps(value))
            place = copy
            for key in path[:-1]:
                place = place[key]
            if other is ...:
                del place[path[-1]]
            else:
                place[path[-1]] = other
            texts.append(json.dumps(copy))
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_description_is_loaded_or_one_line(kind: str, tmp_path: Path) -> None:
    save, load, name = KINDS[kind]
    folder = tmp_path / "saved"
    made = save(folder)
    folder = made.path if isinstance(made, Cache) else folder
    load(folder)
    whole = json.loads((folder / name).read_text())
    for text in changed(whole):
        (folder / name).write_text(text)
        try:
            load(folder)
        except MetaBonkError as error:
            assert str(error) and "\n" not in str(error), text
    (folder / name).write_bytes(b'{"format": "\xff"}')
    with pytest.raises(MetaBonkError):
        load(folder)


HAVE_WEIGHTS = ["tokenizers", "autoencoder", "codec", "token model", "causal tokenizer", "shortcut model", "agent", "heads"]


class Touch:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_does_run_where_it_is_read(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").exists(), "or the tests below prove nothing"


def test_hostile_checkpoints_run_nothing(tmp_path: Path) -> None:
    marker, path = tmp_path / "it-ran", tmp_path / "last.ckpt"
    torch.save({"state_dict": Touch(marker)}, path)
    for _ in range(2):  # as torch writes it, then as a bare pickle
        for look in (False, True):
            with pytest.raises(FolderError):
                load_checkpoint(path, look)
        path.write_bytes(pickle.dumps(Touch(marker)))
    assert not marker.exists()


@pytest.mark.parametrize("kind", HAVE_WEIGHTS)
def test_hostile_weights_run_nothing(kind: str, tmp_path: Path) -> None:
    save, load, _ = KINDS[kind]
    marker, folder = tmp_path / "it-ran", tmp_path / "saved"
    save(folder)
    (weights,) = folder.glob("*.safetensors")
    for content in (pickle.dumps(Touch(marker)), b"\xff" * 8 + b"{}", b"", (1 << 40).to_bytes(8, "little")):
        weights.write_bytes(content)
        with pytest.raises(MetaBonkError) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    torch.save({"weight": Touch(marker)}, weights)
    with pytest.raises(MetaBonkError):
        load(folder)
    assert not marker.exists()


def test_hostile_codes_run_nothing(tmp_path: Path) -> None:
    marker, cache = tmp_path / "it-ran", test_tasks.recorded(tmp_path / "store", [[[0, 1, 2]]])
    codes = tmp_path / "codes"
    codes.mkdir()
    (codes / "codes.json").write_text("{}")
    hostile = np.array([Touch(marker)] * len(cache.table), object)
    np.save(codes / "codes.npy", hostile, allow_pickle=True)
    with pytest.raises(StoreError):
        CodeCache(cache, codes)
    for content in (pickle.dumps(Touch(marker)), b"", b"\x93NUMPY\x01\x00\xff\xff"):
        (codes / "codes.npy").write_bytes(content)
        with pytest.raises(StoreError):
            CodeCache(cache, codes)
    assert not marker.exists()


def test_the_report_of_a_foreign_run_evaluates_nothing(tmp_path: Path) -> None:
    from test_text import FORMS, evil

    from metabonk.pipeline.report import write_report

    marker, folder = tmp_path / "it-ran", tmp_path / "run"
    save_run(folder)
    run = Run.open(folder)
    (folder / "notebooks").mkdir()
    for form in FORMS.values():
        cells = [
            {
                "cell_type": "code",
                "source": form.format(evil(marker)),
                "metadata": {"tags": ["parameters"]},
                "outputs": [],
                "execution_count": None,
            }
        ]
        for name in ("first", "second"):
            run.notebook(name).write_text(
                json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4})
            )
        with pytest.raises(MetaBonkError):
            write_report(run)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"MZ", b"\x00" * 0x150, b"\xff" * 0x8000, b"title: a profile\n", bytes(0x8001)]
)
def test_files_that_are_no_cartridge_are_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "game.gb"
    path.write_bytes(content)
    for game in (f"gameboy:{path}", f"gameboy:{tmp_path}", f"gameboy:{tmp_path}/missing.gb"):
        with pytest.raises(MetaBonkError) as caught:
            make_game(game).close()
        assert "\n" not in str(caught.value)
