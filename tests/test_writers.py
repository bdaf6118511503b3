"""Whatever this library writes, it leaves alone what is not its own, and is there whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_codes import tokenizer
from test_tokens import SCHEMA, play, store_of, tokenizers_of
from test_training import CONFIG, Noisy, pairs

from metabonk.act.agent import Agent
from metabonk.act.finetune import FineTune
from metabonk.core.errors import FolderError
from metabonk.core.files import claim_folder, remove_leftovers, replacing, temporary, write_atomic
from metabonk.core.run import Run
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.codes import CodeCache
from metabonk.dream.dynamics import ShortcutModel
from metabonk.dream.token_model import TokenModel
from metabonk.pipeline.execute import execute
from metabonk.pipeline.site import _replace
from metabonk.record.cache import Cache
from metabonk.record.exchange import export_media, write_wav
from metabonk.record.minari import export_minari, import_minari
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.record.vpt import import_vpt
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig
from metabonk.sense.codec import CodecConfig, PCACodec
from metabonk.sense.latents import encode_latents
from metabonk.sense.tokens import TokenCache


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store, and what is made of it."""
    place = tmp_path_factory.mktemp("made")
    store = store_of(place / "store", play([9, 12]))
    cache = Cache.build(store)
    (place / "vpt").mkdir()
    (place / "vpt" / "a.mp4").touch()
    return SimpleNamespace(place=place, store=store, cache=cache, minari=export_minari(store, place / "minari"))


def eyes() -> CausalTokenizer:
    """A tokenizer of pictures alone."""
    sizes = {"width": 16, "layers": 2, "heads": 2, "latents": 4, "bottleneck": 4}
    return CausalTokenizer(CausalTokenizerConfig(size=(16, 16), channels=0, **sizes)).eval()


def _site(made: SimpleNamespace, folder: Path) -> None:
    part = temporary(made.place)
    part.mkdir()
    _replace(part, folder)


def _training(made: SimpleNamespace, folder: Path) -> None:
    fit(Noisy(), pairs(), folder, CONFIG.change(steps=2))


def _finetune(made: SimpleNamespace, folder: Path) -> None:
    tuning = FineTune.__new__(FineTune)
    tuning.folder = folder
    tuning.run()


# Every writer of a folder: how it is called, and a file of its own whose name may be somebody's, too.
def autoencoder() -> Autoencoder:
    """Untrained."""
    torch.manual_seed(0)
    size = SCHEMA.image_shape[0], SCHEMA.image_shape[1]
    return Autoencoder(AutoencoderConfig.preset("tiny", size=size, widths=(8, 8))).requires_grad_(False).eval()


WRITERS: dict[str, tuple[Callable[[SimpleNamespace, Path], Any], str]] = {
    "store": (lambda made, folder: Store.create(folder, SCHEMA, exist_ok=True), "store.json"),
    "record": (lambda made, folder: record("bonk", folder, steps=3), "README.md"),
    "minari in": (lambda made, folder: import_minari(made.minari, folder), "manifest.jsonl"),
    "vpt in": (lambda made, folder: import_vpt(made.place / "vpt", folder), "incoming/a.arrow"),
    "minari out": (lambda made, folder: export_minari(made.store, folder), "metadata.json"),
    "films": (lambda made, folder: export_media(made.store, folder), "film.mp4"),
    "cache": (lambda made, folder: Cache.build(made.store, folder), "cache.json"),
    "tokens": (lambda made, folder: TokenCache.build(made.store, tokenizers_of(), folder), "rows-0.bin"),
    "latents": (lambda made, folder: encode_latents(made.store, autoencoder(), None, folder), "rows-0.bin"),
    "autoencoder": (lambda made, folder: autoencoder().save(folder), "autoencoder.json"),
    "codec": (lambda made, folder: PCACodec(CodecConfig(latents=4)).save(folder), "codec.json"),
    "codes": (lambda made, folder: CodeCache.build(made.cache, eyes(), folder), "codes.part"),
    "tokenizers": (lambda made, folder: tokenizers_of().save(folder), "tokenizers.json"),
    "causal tokenizer": (lambda made, folder: tokenizer().save(folder), "tokenizer.json"),
    "shortcut model": (lambda made, folder: ShortcutModel.save(None, folder), "model.safetensors"),  # type: ignore[arg-type]
    "token model": (lambda made, folder: TokenModel.save(None, folder), "model.json"),  # type: ignore[arg-type]
    "agent": (lambda made, folder: Agent.save(SimpleNamespace(model=eyes()), folder), "agent.json"),  # type: ignore[arg-type]
    "fine-tuning": (_finetune, "finetune.json"),
    "training logs": (_training, "logs/log.csv"),
    "checkpoints": (_training, "checkpoints/last.pt"),
    "site": (_site, "index.html"),
    "run": (lambda made, folder: Run.open(folder), "notes/manifest.json"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every visible file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".metabonk"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_of_others_is_refused(made: SimpleNamespace, tmp_path: Path, name: str) -> None:
    """With a README, another program's `.part` file, or a file that has the name of one of ours."""
    write, own = WRITERS[name]
    inside = "" if own.count("/") == 0 else own.split("/")[0] + "/"
    for number, files in enumerate(([own], [f"{inside}README.md", f"{inside}film.mp4.part"], [f"{inside}x.arrow"])):
        folder = tmp_path / str(number)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("mine")
        before = contents(folder)
        with pytest.raises(FolderError, match="holds"):
            write(made, folder)
        assert contents(folder) == before


ELSEWHERE = ("shortcut model", "token model", "agent", "fine-tuning", "vpt in")  # their own tests write them twice
AGAIN = [name for name in WRITERS if name not in (*ELSEWHERE, "minari out")]


@pytest.mark.parametrize("name", AGAIN)
def test_what_was_written_may_be_written_again(made: SimpleNamespace, tmp_path: Path, name: str) -> None:
    """Our own folder is known again, also when it is a link, and nothing half is left in it."""
    write, _ = WRITERS[name]
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    for _ in range(2):
        write(made, tmp_path / "new")
        if name != "site":  # whose folder is exchanged as a whole
            write(made, tmp_path / "link")
    assert not list(tmp_path.rglob(".metabonk-*")) and contents(tmp_path / "new")


@pytest.mark.parametrize("name", ["store", "cache", "tokens", "latents", "codes"])
def test_names_that_are_not_ours_stay_in_our_folders(made: SimpleNamespace, tmp_path: Path, name: str) -> None:
    """In a folder of ours too: only temporary names of our own are deleted."""
    write, _ = WRITERS[name]
    write(made, tmp_path / "a")
    others = ["film.mp4.part", "codes.part", "weights-7.bin", ".metabonk-12.part", "notes.txt"]
    for file in others:
        (tmp_path / "a" / file).write_text("mine")
    write(made, tmp_path / "a")
    assert all((tmp_path / "a" / file).read_text() == "mine" for file in others)


def test_an_interrupted_first_build_goes_on(made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that was killed before it was finished once is known as ours."""
    for name, part in (("cache", "metabonk.record.cache._Files.append"),
                       ("tokens", "metabonk.sense.tokens.Tokenizers.encode_image"),
                       ("latents", "metabonk.sense.autoencoder.Autoencoder.encode")):  # fmt: skip
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(part, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            WRITERS[name][0](made, tmp_path / name)
        assert len(WRITERS[name][0](made, tmp_path / name).table) == len(made.store)


def test_what_is_in_the_making(tmp_path: Path) -> None:
    """A file or a folder is exchanged as a whole; what was there stays if the new one can't be made."""
    write_atomic(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    write_atomic(tmp_path / "folder" / "a", "old")
    for name in ("file", "folder"):
        with pytest.raises(ZeroDivisionError), replacing(tmp_path / name) as part:
            part.write_text("half") if name == "file" else part.mkdir()
            raise ZeroDivisionError
    assert contents(tmp_path) == {"file": b"old", "folder/a": b"old"}
    with replacing(tmp_path / "folder") as part:
        part.mkdir()
        write_atomic(part / "b", "new")
    assert contents(tmp_path) == {"file": b"old", "folder/b": b"new"} and len(os.listdir(tmp_path)) == 2
    with pytest.raises(FolderError, match="can't write"):
        write_atomic(tmp_path / "nowhere" / "x", "")
    with pytest.raises(FolderError, match="can't write"):
        write_wav(tmp_path / "nowhere" / "x.wav", np.ones((1, 9), np.int16), 8000)
    (tmp_path / "link").symlink_to("file")
    write_atomic(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "newer"


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=200))
def test_any_name_can_be_written(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Temporary names are short, so a name may be as long as the disk takes."""
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    if len(name.encode()) > 255 or name in (".", ".."):
        with pytest.raises(FolderError):
            write_atomic(folder / name, "x")
    else:
        write_atomic(folder / name, name)
        assert (folder / name).read_bytes() == name.encode()


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    """Our temporary names, files and folders; nothing that only looks like them."""
    temporary(tmp_path).write_text("half")
    (temporary(tmp_path)).mkdir()
    others = [".metabonk-0123456789abcde.part", "metabonk-0123456789abcdef.part", ".metabonk-0123456789abcdef.part.txt", "a.part"]
    for name in others:
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_what_marks_a_folder(tmp_path: Path) -> None:
    """A common name counts only if the file says whose it is; hidden names don't make a folder somebody's."""
    (tmp_path / ".DS_Store").write_text("x")
    claim_folder(tmp_path, "model", ("model.json",))
    for text, ours in (('{"format": "pt"}', False), (json.dumps({"format": "metabonk model"}), True)):
        (tmp_path / "model.json").write_text(text)
        if ours:
            claim_folder(tmp_path, "model", ("model.json",))
        else:
            with pytest.raises(FolderError, match="model.json"):
                claim_folder(tmp_path, "model", ("model.json",))


def test_the_log_beside_an_executed_notebook(tmp_path: Path) -> None:
    """What the kernel says goes to NAME.log, which may be somebody's: it is added to, and not deleted."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os.write(2, b'said')")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python", "language": "python"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    (tmp_path / "b.log").write_text("mine\n")
    execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert (tmp_path / "b.log").read_text().startswith("mine\n") and (tmp_path / "b.ipynb").exists()


def test_weights_survive_an_exchange(tmp_path: Path) -> None:
    """A tokenizer saved over another one: the folder holds the new one alone."""
    tokenizer(0).save(tmp_path / "t")
    tokenizer(1).save(tmp_path / "t")
    loaded = type(tokenizer()).load(tmp_path / "t")
    loaded = loaded[0] if isinstance(loaded, tuple) else loaded
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), tokenizer(1).state_dict().values(), strict=True))
