"""Training: what no page can show: kills, Ctrl-C, several processes, full disks, checkpoints that do not fit."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from metabonk.core.capture import CapturedStep
from metabonk.core.errors import DiskFull, FolderError, FolderLocked, TrainingStopped, UsageError
from metabonk.core.files import folder_lock
from metabonk.core.learner import Learner, TrainConfig
from metabonk.core.logs import curves, held_out_verdict, read_log
from metabonk.core.optimizer import LaProp, Muon, orthogonalize
from metabonk.core.progress import NOTE, progress
from metabonk.core.training import fit, uninterrupted

Pairs = list[tuple[Tensor, Tensor]]


def pairs(count: int = 7, size: int = 8) -> Pairs:
    """Batches of a small regression."""
    random = torch.Generator().manual_seed(5)
    return [(torch.randn(size, 4, generator=random), torch.randn(size, 1, generator=random)) for _ in range(count)]


class Noisy(Learner):
    """Draws from every generator and keeps a running buffer, so that any state that is lost shows."""

    def __init__(self, width: int = 1, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.pause = nn.Linear(4, width), pause
        self.register_buffer("average", torch.zeros(()))

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Two terms with noise in them."""
        x, y = batch
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        error = (self.net(x + 0.1 * noise) - y).square()
        self.average = 0.9 * self.average + 0.1 * error.mean().detach()
        self.watch("noise", noise)
        return {"fit": error * (1 + self.average), "size": self.net.weight.square()}

    def after_step(self) -> None:
        """As slow as wanted."""
        time.sleep(self.pause)


class Counting(L.LightningDataModule):
    """Batches that follow from a position alone, in epochs of five, as those of a store do."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0

    def __iter__(self) -> Any:
        for _ in range(5 - self.position % 5):
            random = torch.Generator().manual_seed(self.position)
            self.position += 1
            yield torch.randn(8, 4, generator=random), torch.randn(8, 1, generator=random)

    def __len__(self) -> int:
        return 5

    def train_dataloader(self) -> Any:
        """This itself."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.position = state["position"]


def shuffled() -> Any:
    """A loader that shuffles by the global generator, and draws from it in each item."""
    x, y = (torch.cat(part) for part in zip(*pairs(), strict=True))

    class Items(torch.utils.data.Dataset[Any]):
        def __getitem__(self, i: int) -> Any:
            return x[i] + 0.01 * torch.rand(()), y[i]

        def __len__(self) -> int:
            return len(x)

    return torch.utils.data.DataLoader(Items(), batch_size=8, shuffle=True)


CONFIG = TrainConfig(steps=40, lr=1e-2, warmup=10, log_every=4, checkpoint_every=5)


def outcome(folder: Path, learner: Learner) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """What must be the same."""
    return learner.state_dict(), read_log(folder).drop(columns="seconds")


def same(one: tuple[dict[str, Tensor], pd.DataFrame], other: tuple[dict[str, Tensor], pd.DataFrame]) -> bool:
    """To the last bit."""
    weights = all(torch.equal(one[0][name], other[0][name]) for name in {**one[0], **other[0]})
    return weights and one[1].equals(other[1])


@pytest.mark.parametrize(("data", "accumulate"), [(Counting, 1), (Counting, 3), (shuffled, 1), (shuffled, 3), (pairs, 1)])
def test_resume(tmp_path: Path, data: Any, accumulate: int) -> None:
    """Stopped at any step (inside an epoch, at its end, between two rows of the log), the numbers stay the same."""
    config = CONFIG.change(accumulate=accumulate)
    whole = outcome(tmp_path / "whole", fit(Noisy(), data(), tmp_path / "whole", config))
    assert len(whole[1]) == 10 and whole[1]["loss/fit"].nunique() == 10
    for stop in (3, 10, 21):  # a checkpoint at each, without the row that a last step writes
        learner, source = Noisy(), data()
        learner.after_step = lambda learner=learner, stop=stop: learner.steps_done == stop and os.kill(  # type: ignore
            os.getpid(), signal.SIGINT
        )
        fit(learner, source, tmp_path / "parts", config)
        assert (learner.steps_done, learner.stopped) == (stop, "Ctrl-C")
    assert same(whole, outcome(tmp_path / "parts", fit(Noisy(), data(), tmp_path / "parts", config)))
    other = fit(Noisy(), data(), tmp_path / "other", config.change(seed=1))
    assert not same(whole, outcome(tmp_path / "other", other))


HELD = CONFIG.change(validate_every=8)  # looks at 8, 16, ..., 40


class Steady(Noisy):
    """Draws from the generators of NumPy and PyTorch alone: what checks annotations here draws from Python's."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """With the same number in the place of Python's."""
        random.seed(1)
        return super().losses(batch)


def test_looking_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batches held out or without: the same weights, buffers and losses, to the last bit. Control: nothing is put back."""
    without = outcome(tmp_path / "without", fit(Steady(), Counting(), tmp_path / "without", HELD))

    def looked_at(folder: Path) -> tuple[dict[str, Tensor], pd.DataFrame]:
        weights, log = outcome(folder, fit(Steady(), Counting(), folder, HELD, validation=pairs(3)))
        held = log.dropna(subset="val/loss")
        assert held["step"].tolist() == [8, 16, 24, 32, 40] and held["val/loss/fit"].nunique() == 5
        return weights, log[[name for name in log if not name.startswith("val/")]]

    assert same(without, looked_at(tmp_path / "with"))
    with monkeypatch.context() as patch:
        patch.setattr("metabonk.core.batches.untouched", lambda learner, seed: contextlib.nullcontext())
        assert not same(without, looked_at(tmp_path / "control"))


def test_looks_are_those_of_a_training_that_was_not_stopped(tmp_path: Path) -> None:
    """Stopped between two looks, and at one: the same log, the held-out numbers included, and the same best step."""
    whole = fit(Steady(), Counting(), tmp_path / "whole", HELD, validation=pairs(3))
    for stop in (11, 16):
        learner = Steady()
        learner.after_step = lambda learner=learner, stop=stop: learner.steps_done == stop and os.kill(  # type: ignore
            os.getpid(), signal.SIGINT
        )
        with pytest.raises(KeyboardInterrupt, match=f"step {stop}"):
            uninterrupted(fit(learner, Counting(), tmp_path / "parts", HELD, validation=pairs(3)))
    parts = uninterrupted(fit(Steady(), Counting(), tmp_path / "parts", HELD, validation=pairs(3)))
    assert same(outcome(tmp_path / "whole", whole), outcome(tmp_path / "parts", parts)) and parts.best == whole.best
    assert fit(Steady(), Counting(), tmp_path / "parts", HELD).best == whole.best


def test_training_ends_where_what_is_held_out_gets_worse(tmp_path: Path) -> None:
    """Held out is the opposite of what is learned: patience ends the training and names the best step, a warning tells."""
    taught = [(x, 3 * x.sum(1, keepdim=True)) for x, _ in pairs()]
    opposite = [(x, -y) for x, y in taught]  # worse from the first step on
    config = HELD.change(patience=3, steps=60)
    folder = tmp_path / "patient"
    learner = fit(Sharing(), taught, folder, config, validation=opposite)
    assert learner.best is not None and learner.best[0] + 3 * 8 == learner.steps_done < 60
    assert learner.stopped == f"held-out loss: 3 looks without a lower one than at step {learner.best[0]}"
    assert uninterrupted(learner).stopped  # no Ctrl-C
    again = fit(Sharing(), taught, folder, config, validation=opposite)
    assert (again.steps_done, again.stopped, again.best) == (learner.steps_done, learner.stopped, learner.best)
    on = fit(Sharing(), taught, folder, config.change(patience=0), validation=opposite)
    assert on.steps_done == 60 and held_out_verdict(folder).startswith("Warning: held out, loss rose from")
    fit(Sharing(), taught, tmp_path / "same", config, validation=taught)
    assert "it did not rise" in held_out_verdict(tmp_path / "same")
    fit(Sharing(), taught, tmp_path / "none", config)
    assert held_out_verdict(tmp_path / "none").startswith("Nothing was held out")
    dashed = [line for line in curves(folder).data if line.line.dash == "dash"]
    assert {line.name for line in dashed} == {"loss, held out", "loss/fit, held out"}


def test_a_checkpoint_of_lightnings_trainer_goes_on(tmp_path: Path) -> None:
    """It keeps the position in the data where that trainer kept it. Control: another position ends elsewhere."""
    whole = outcome(tmp_path / "whole", fit(Noisy(), Counting(), tmp_path / "whole", CONFIG))

    def gone_on(folder: Path, batch: int) -> tuple[dict[str, Tensor], pd.DataFrame]:
        learner = Noisy()
        learner.after_step = lambda: learner.steps_done == 22 and os.kill(os.getpid(), signal.SIGINT)  # type: ignore
        fit(learner, Counting(), folder, CONFIG)
        path = folder / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        stream = checkpoint.pop("stream")
        stream["keeper"]["position"] += batch
        torch.save({**checkpoint, "loops": {"fit_loop": {"state_dict": {"combined_loader": [stream]}}}}, path)
        return outcome(folder, fit(Noisy(), Counting(), folder, CONFIG))

    assert same(whole, gone_on(tmp_path / "parts", 0)) and not same(whole, gone_on(tmp_path / "control", 1))


def test_weights_under_an_earlier_name_are_loaded(tmp_path: Path) -> None:
    """Not only accepted: a training that goes on, and one that is done, have them."""

    class Now(Noisy):
        renamed = {"line.": "net."}

    fit(Noisy(), pairs(), tmp_path, CONFIG.change(steps=20))
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    weights = {name.replace("net.", "line."): weight for name, weight in checkpoint["state_dict"].items()}
    about = {**checkpoint["metabonk"], "learner": "Now"}
    torch.save({**checkpoint, "state_dict": weights, "metabonk": about}, path)
    done = fit(Now(), pairs(), tmp_path, CONFIG.change(steps=20))
    assert torch.equal(done.net.weight, weights["line.weight"]) and not torch.equal(done.net.weight, Noisy().net.weight)
    on, whole = fit(Now(), pairs(), tmp_path, CONFIG), fit(Noisy(), pairs(), tmp_path / "whole", CONFIG)
    assert torch.equal(on.net.weight, whole.net.weight)


def test_killed(tmp_path: Path) -> None:
    """`kill -9` in the middle: the resumed training has the weights and the log of one that was never killed."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import conftest; from test_training import *; "
        "fit(Noisy(pause=0.02), Counting(), sys.argv[1], CONFIG)"
    )
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(Path(__file__).parent)])
    try:
        while not (folder / "checkpoints" / "last.ckpt").exists() or len(read_log(folder)) < 4:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    rows = len(read_log(folder))
    assert 4 <= rows < 10
    killed = outcome(folder, fit(Noisy(), Counting(), folder, CONFIG))
    assert same(killed, outcome(tmp_path / "whole", fit(Noisy(), Counting(), tmp_path / "whole", CONFIG)))
    board = [path for path in (folder / "logs").iterdir() if "tfevents" in path.name]
    assert len(board) == 2  # one a process


def test_tensorboard_reads_the_log(tmp_path: Path) -> None:
    """Its own reader finds each row once, also where a resume went back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(Noisy(), Counting(), tmp_path, CONFIG.change(steps=20, checkpoint_every=7))
    fit(Noisy(), Counting(), tmp_path, CONFIG)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    log = read_log(tmp_path)
    assert [event.step for event in events.Scalars("loss/fit")] == log["step"].tolist()
    assert np.allclose([event.value for event in events.Scalars("watch/noise")], log["watch/noise"])


def test_accumulation_is_a_bigger_batch(tmp_path: Path) -> None:
    """Four batches of 8, or one of 32: the same weights and the same log."""

    class Plain(Learner):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(4, 1)

        def losses(self, batch: Any) -> dict[str, Tensor]:
            return {"fit": (self.net(batch[0]) - batch[1]).square()}

    small = pairs(12)
    big = [tuple(torch.cat(part) for part in zip(*small[i : i + 4], strict=True)) for i in (0, 4, 8)]
    four = fit(Plain(), small, tmp_path / "four", CONFIG.change(accumulate=4))
    one = fit(Plain(), big, tmp_path / "one", CONFIG)
    assert four.steps_done == one.steps_done == 40
    assert torch.allclose(four.net.weight, one.net.weight, atol=1e-6)
    assert np.allclose(read_log(tmp_path / "four")["loss"], read_log(tmp_path / "one")["loss"], atol=1e-6)
    three = fit(Plain(), small, tmp_path / "three", CONFIG.change(accumulate=3))
    assert not torch.allclose(three.net.weight, one.net.weight, atol=1e-4)


class Sharing(Learner):
    """For two processes: at module level, since they find it by name."""

    def __init__(self, bad: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.unused, self.bad = nn.Linear(4, 1), nn.Linear(2, 2), bad

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Plain regression; a NaN at one step if asked."""
        error = (self.net(batch[0]) - batch[1]).square()
        return {"fit": error * (float("nan") if self.steps_done == self.bad else 1.0)}


def test_two_processes(tmp_path: Path) -> None:
    """Two processes with half of the batches each do what one does that accumulates two."""
    config = CONFIG.change(steps=12, accelerator="cpu", log_every=6, checkpoint_every=6)
    two = fit(Sharing(), pairs(8), tmp_path / "two", config.change(devices=2))
    one = fit(Sharing(), pairs(8), tmp_path / "one", config.change(accumulate=2))
    assert two.steps_done == 12 and torch.allclose(two.net.weight, one.net.weight, atol=1e-6)
    assert np.allclose(read_log(tmp_path / "two")["loss"], read_log(tmp_path / "one")["loss"], atol=1e-6)


class Halves(Learner):
    """With blocks, a large matrix that is in none, a frozen part, a slow copy and a running average of its own loss.

    Counts the numbers that a process holds.
    """

    blocks, frozen = ("layers",), ("eyes",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.eyes, self.layers = nn.Linear(4, 300), nn.ModuleList([nn.Linear(300, 20), nn.Linear(20, 300)])
        self.out, self.slow = nn.Linear(300, 300), nn.Linear(300, 300).requires_grad_(False)
        self.register_buffer("usual", torch.ones(()))

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Regression, with some noise of a process's own."""
        x = self.out(self.layers[1](self.layers[0](self.eyes(batch[0])).tanh()))
        error = (x + 0.1 * torch.randn_like(x) - batch[1]).square()
        self.usual.lerp_(error.detach().mean(), 0.5)
        return {"fit": error / self.usual}

    def after_step(self) -> None:
        """The slow copy follows."""
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.out.parameters(), strict=True):
                slow.lerp_(fast, 0.3)
        self.watch("held", sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in self.parameters()))


@pytest.mark.whole
def test_shared_out_weights_learn_the_same(tmp_path: Path) -> None:
    """Two processes with half of the weights each, stopped between, do what two do that hold everything."""
    config = CONFIG.change(steps=8, accelerator="cpu", devices=2, log_every=5, muon=0.02, clip=0.05)
    whole = fit(Halves(), pairs(8), tmp_path / "whole", config)
    fit(Halves(), pairs(8), tmp_path / "shared", config.change(steps=5, shard=True))
    shared = fit(Halves(), pairs(8), tmp_path / "shared", config.change(shard=True))
    assert shared.steps_done == 8
    for (name, one), other, start in zip(whole.named_parameters(), shared.parameters(), Halves().parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5), name
        assert torch.equal(one, start) == name.startswith("eyes"), name
    logs = [read_log(tmp_path / kind) for kind in ("whole", "shared")]
    assert np.allclose(logs[0]["loss"], logs[1]["loss"], atol=1e-5) and torch.allclose(whole.usual, shared.usual, atol=1e-5)
    held = [log["watch/held"].iloc[-1] for log in logs]
    assert held[1] == held[0] / 2 and held[0] == sum(p.numel() for p in whole.parameters())
    with pytest.raises(UsageError, match="shard=True, not False"):
        fit(Halves(), pairs(8), tmp_path / "shared", config.change(steps=9))
    with pytest.raises(UsageError, match="set devices above 1"):
        CONFIG.change(shard=True)


@pytest.mark.slow
def test_two_processes_stop(tmp_path: Path) -> None:
    """A NaN in other processes is told in the same words; what they kept can be resumed."""
    config = CONFIG.change(steps=12, accelerator="cpu", checkpoint_every=6, devices=2)
    with pytest.raises(TrainingStopped, match="loss 'fit' is not a number at step 9: .*last.ckpt .step 6."):
        fit(Sharing(bad=8), pairs(8), tmp_path, config)
    assert fit(Sharing(), pairs(8), tmp_path, config).steps_done == 12


def test_nan_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The message names the term, the step and the checkpoint, which is untouched; the weights are too."""
    learner = Sharing(bad=12)
    with pytest.raises(TrainingStopped, match="loss 'fit' is not a number at step 13: .*last.ckpt .step 10."):
        fit(learner, pairs(), tmp_path, CONFIG.change(accelerator="cpu"))
    assert bool(torch.isfinite(learner.net.weight).all())
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 10 and bool(torch.isfinite(kept["state_dict"]["net.weight"]).all())
    assert fit(Sharing(), pairs(), tmp_path, CONFIG).steps_done == 40  # it can go on from there


def test_nan_where_numbers_are_read_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the step and the term are told exactly, and no checkpoint was written after it."""
    monkeypatch.setattr("metabonk.core.learner.Terms.at_once", ())
    whole = outcome(tmp_path / "late", fit(Noisy(), pairs(), tmp_path / "late", CONFIG))
    with pytest.raises(TrainingStopped, match="loss 'fit' is not a number at step 14: .*last.ckpt .step 10."):
        fit(Sharing(bad=13), pairs(), tmp_path / "nan", CONFIG.change(log_every=100))
    assert torch.load(tmp_path / "nan" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10
    monkeypatch.undo()
    assert same(whole, outcome(tmp_path / "soon", fit(Noisy(), pairs(), tmp_path / "soon", CONFIG)))


def test_bad_gradients(tmp_path: Path) -> None:
    """Weights that are not numbers, though the losses were, are never written over good ones."""

    class Root(Sharing):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            zero = self.net.weight.sum() * (0.0 if self.steps_done == 9 else 1.0)  # the square root's slope is infinite at 0
            return {"root": zero.abs().sqrt()}

    with pytest.raises(TrainingStopped, match="weights 'net.weight' are not numbers at step 10.*step 5"):
        fit(Root(), pairs(), tmp_path, CONFIG)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()])
def test_out_of_memory(tmp_path: Path, error: Exception | None) -> None:
    """One error that says what to lower, whichever allocator gave up."""

    class Hungry(Sharing):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            if self.steps_done == 7 and error:
                raise error
            if self.steps_done == 7:
                torch.empty(10**17)
            return super().losses(batch)

    with pytest.raises(TrainingStopped, match="^out of memory at step 8.*lower the batch size.*last.ckpt .step 5.$"):
        fit(Hungry(), pairs(), tmp_path, CONFIG)


def test_other_errors_pass(tmp_path: Path) -> None:
    """A bug of the learner stays what it is, and Ctrl-C means again what it meant."""

    class Broken(Sharing):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            raise ZeroDivisionError("mine")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError, match="^mine$"):
        fit(Broken(), pairs(), tmp_path, CONFIG)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def hearing_ctrl_c():
    """A shell's background jobs begin deaf to Ctrl-C; here it is heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hearing_ctrl_c")
def test_second_ctrl_c(tmp_path: Path) -> None:
    """The second Ctrl-C interrupts at once, and leaves signals as they were."""

    class Twice(Sharing):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            if self.steps_done == self.bad:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().losses(batch)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(Twice(bad=7), pairs(), tmp_path, CONFIG)
    assert signal.getsignal(signal.SIGINT) is before
    assert fit(Twice(), pairs(), tmp_path, CONFIG.change(steps=6)).steps_done == 6


def test_stop_file_and_time(tmp_path: Path) -> None:
    """Either ends cleanly with a checkpoint of the step reached; the file is gone afterwards; any thread can train."""
    (tmp_path / "stop").touch()
    learner = fit(Noisy(pause=0.2), pairs(), tmp_path, CONFIG)
    assert learner.stopped == "file 'stop'" and 1 <= learner.steps_done < 10 and not (tmp_path / "stop").exists()
    done = learner.steps_done
    found: list[Learner] = []
    config = CONFIG.change(steps=10_000, max_seconds=0.3)
    thread = threading.Thread(target=lambda: found.append(fit(Noisy(pause=0.05), pairs(), tmp_path, config)))
    thread.start()
    thread.join()
    assert found[0].stopped == "max_seconds" and done < found[0].steps_done < 200
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == found[0].steps_done


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    """Another shape, another class, another game, other settings, a damaged file: each one clear error, nothing changed."""
    config = CONFIG.change(steps=5)
    fit(Noisy(), pairs(), tmp_path, config)
    more = config.change(steps=6)
    with pytest.raises(FolderError, match=r"'net.weight' is \(1, 4\) in it and \(2, 4\) here \(1 more differ\): .*resume=False"):
        fit(Noisy(width=2), pairs(), tmp_path, more)
    with pytest.raises(FolderError, match="belongs to another learner: 'Noisy', and this is 'Sharing'"):
        fit(Sharing(), pairs(), tmp_path, more)
    other = Noisy()
    other.identity = {"game": "bonk"}
    with pytest.raises(FolderError, match="belongs to another game: None, and this is 'bonk'"):
        fit(other, pairs(), tmp_path, more)
    with pytest.raises(UsageError, match="was trained with lr=0.01, not 0.5"):
        fit(Noisy(), pairs(), tmp_path, more.change(lr=0.5))
    path = tmp_path / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(FolderError, match="last.ckpt is damaged .*resume=False"):
            fit(Noisy(), pairs(), tmp_path, more)
    fit(Noisy(width=2), pairs(), tmp_path, more, resume=False)  # sets the damaged one aside
    assert [p.name for p in (tmp_path / "old").glob("*/checkpoints/*")] == ["last.ckpt"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device says that it is full, in the middle of a checkpoint: `DiskFull`, and the one before stays whole."""
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    fit(Noisy(), pairs(), tmp_path, CONFIG.change(steps=5))
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    files = []

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode != "wb" or not path.name.startswith(".metabonk-"):
            return open(path, mode, **options)
        files.append(path)
        path.touch()
        return open("/dev/full", "wb")

    with monkeypatch.context() as patch:
        patch.setattr("metabonk.core.checkpoints.open", full, raising=False)
        with pytest.raises(DiskFull, match="while writing .*: free some, then run again"):
            fit(Noisy(), pairs(), tmp_path, CONFIG)
    assert files
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]  # no half files
    assert fit(Noisy(), pairs(), tmp_path, CONFIG).steps_done == 40


def test_folder(tmp_path: Path) -> None:
    """A folder that is being trained in, one that can't be written, a log that is not there."""
    with folder_lock(tmp_path), pytest.raises(FolderLocked, match="training folder"):
        fit(Noisy(), pairs(), tmp_path, CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(FolderError):
        fit(Noisy(), pairs(), tmp_path / "file", CONFIG)
    with pytest.raises(FolderError, match="there is no log"):
        read_log(tmp_path)


def test_data_and_learner(tmp_path: Path) -> None:
    """No batches, no parameters, a scale without a loss: told, not guessed."""
    with pytest.raises(UsageError, match="no batch"):
        fit(Noisy(), [], tmp_path / "a", CONFIG)

    class Empty(Learner):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            return {"none": torch.zeros(())}

    with pytest.raises(UsageError, match="Empty has no parameter to train"):
        fit(Empty(), pairs(), tmp_path / "b", CONFIG)
    learner = Noisy()
    learner.scales = {"fti": 2.0}
    with pytest.raises(UsageError, match="did you mean 'fit'"):
        fit(learner, pairs(), tmp_path / "c", CONFIG)


def test_frozen(tmp_path: Path) -> None:
    """A frozen part is not trained, not moved by dropout or the like, and not in the checkpoint; a resume needs it anew."""

    class OnTop(Learner):
        frozen = ("model",)

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model, self.head = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), nn.Linear(4, 1)

        def losses(self, batch: Any) -> dict[str, Tensor]:
            assert not self.model.training and self.head.training
            return {"fit": (self.head(self.model(batch[0])) - batch[1]).square()}

    before = OnTop()
    learner = fit(OnTop(), pairs(), tmp_path, CONFIG.change(steps=5))
    assert torch.equal(learner.model[0].weight, before.model[0].weight)
    assert not torch.equal(learner.head.weight, before.head.weight)
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert sorted(kept["state_dict"]) == ["head.bias", "head.weight"]
    again = fit(OnTop(), pairs(), tmp_path, CONFIG.change(steps=5))
    assert again.steps_done == 5 and torch.equal(again.head.weight, learner.head.weight)
    assert fit(OnTop(), pairs(), tmp_path, CONFIG.change(steps=8)).steps_done == 8


def test_a_learner_hears_when_training_begins_and_ends_and_keeps_what_it_wants(tmp_path: Path) -> None:
    """Also of an error, and of each batch before it is learned from or looked at."""
    heard: list[str] = []

    class Hearing(Sharing):
        kept = 0

        def before_training(self) -> None:
            heard.append(f"begins at {self.steps_done}")

        def check_batch(self, batch: Any) -> None:
            heard.append("batch" if self.training else "held out")

        def after_training(self) -> None:
            heard.append("ends")

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["kept"] = self.steps_done * 10

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.kept = checkpoint["kept"]

    config = CONFIG.change(steps=2, log_every=1, validate_every=1)
    fit(Hearing(), pairs(), tmp_path, config, validation=pairs(1))
    assert heard == ["begins at 0", "batch", "held out", "batch", "held out", "ends"]
    heard.clear()
    again = Hearing(bad=2)
    with pytest.raises(TrainingStopped, match="step 3"):
        fit(again, pairs(), tmp_path, config.change(steps=4))
    assert again.kept == 20 and heard == ["begins at 2", "batch", "ends"]


def test_log_survives_a_cut_line(tmp_path: Path) -> None:
    """A row that was cut off is left out; a column that comes later is empty before."""

    class Late(Sharing):
        def after_step(self) -> None:
            if self.steps_done > 20:
                self.watch("late", 1.0)

    fit(Late(), pairs(), tmp_path, CONFIG)
    log = read_log(tmp_path)
    assert log["watch/late"].isna().sum() == 5 and list(log["step"]) == list(range(4, 41, 4))
    with open(tmp_path / "logs" / "log.csv", "a") as file:
        file.write("44,0.1")
    assert read_log(tmp_path).equals(log)




def test_what_can_not_be_captured_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Sharing can't be captured"):
        fit(Sharing(), pairs(), tmp_path, CONFIG.change(capture=True))
    with pytest.raises(UsageError, match="only what happens on a GPU"):
        CapturedStep(torch.sum)(torch.ones(3))
    with pytest.raises(UsageError, match="leave accumulate and devices at 1"):
        CONFIG.change(capture=True, accumulate=2)


def test_watched_numbers_count_where_they_are_asked_to(tmp_path: Path) -> None:
    class Watching(Sharing):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            value = torch.tensor([1.0, 5.0])
            self.watch("all", value)
            self.watch("some", value, value > 2)
            self.watch("none", value, value > (2 if self.steps_done % 2 else 9))  # every second step has none
            return super().losses(batch)

    fit(Watching(), pairs(), tmp_path, CONFIG.change(log_every=4, steps=4))
    row = read_log(tmp_path).iloc[0]
    assert (row["watch/all"], row["watch/some"], row["watch/none"]) == (3.0, 5.0, 5.0)


def test_the_learning_rate_rises_and_falls_the_same_counted_here_or_on_a_device(tmp_path: Path) -> None:
    optimizer = LaProp([nn.Parameter(torch.ones(1))], lr=1.0, warmup=4, cooldown=5, steps=20)
    group, heights = optimizer.param_groups[0], []
    for step in range(1, 23):
        counted, told = optimizer._rates(group, step), optimizer._rates(group, torch.tensor(float(step)))
        assert [float(x) for x in told] == pytest.approx(counted, rel=1e-4)
        heights.append(counted[1] * (1 - 0.9**step))
    assert heights == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 13, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    old = optimizer.state_dict()
    for name in ("cooldown", "steps"):
        del old["param_groups"][0][name]
    optimizer.load_state_dict(old)  # as it was before there was a cool-down
    assert (optimizer.param_groups[0]["cooldown"], optimizer.param_groups[0]["steps"]) == (0, 0)
    config = CONFIG.change(cooldown=0.5)
    fit(Sharing(), pairs(), tmp_path, config)
    with pytest.raises(UsageError, match="steps=40, not 60"):  # the fall was planned for another end
        fit(Sharing(), pairs(), tmp_path, config.change(steps=60))


@pytest.mark.parametrize("shape", [(24, 96), (96, 24)])
def test_muon_takes_the_steps_of_pytorchs_own(shape: tuple[int, int]) -> None:
    """Which multiplies matrices in bfloat16, so only to some hundredths. Negative control: without momentum."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(12, *shape)
    ended = {}
    for name, make in {
        "ours": lambda p: Muon([p], [], 0.02, warmup=0),
        "theirs": lambda p: torch.optim.Muon([p], 0.02, weight_decay=0.0),
        "forgetful": lambda p: Muon([p], [], 0.02, 0.0, warmup=0),
    }.items():
        weight = nn.Parameter(start.clone())
        optimizer = make(weight)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ended[name] = weight.detach() - start
    off = {name: float((moved - ended["theirs"]).norm() / ended["theirs"].norm()) for name, moved in ended.items()}
    assert off["ours"] < 0.03 < 0.3 < off["forgetful"]


def test_matrices_of_one_shape_are_orthogonalized_each_for_itself() -> None:
    several = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    each = torch.stack([orthogonalize(matrix) for matrix in several])
    assert torch.allclose(orthogonalize(several), each, atol=1e-5)
    assert torch.allclose(orthogonalize(several.mT), each.mT, atol=1e-5)
    values = torch.linalg.svdvals(each)
    assert values.min() > 0.65 and values.max() < 1.25


class Blocks(Noisy):
    """A network with one block, in which there is a matrix and a vector."""

    blocks = ("net",)

    def __init__(self, **more: Any) -> None:
        super().__init__(width=3, **more)
        self.head = nn.Linear(3, 2)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """With the head in it."""
        return {**super().losses(batch), "head": self.head(self.net(batch[0])).square()}


def test_muon_moves_the_matrices_of_blocks_and_nothing_else(tmp_path: Path) -> None:
    before = {name: p.detach().clone() for name, p in Blocks().named_parameters()}
    after = fit(Blocks(), pairs(), tmp_path / "some", CONFIG.change(steps=3, lr=0.0, muon=0.1))
    assert [name for name, p in after.named_parameters() if not torch.equal(p, before[name])] == ["net.weight"]
    with pytest.raises(UsageError, match="muon=0.1, not 0.2"):
        fit(Blocks(), pairs(), tmp_path / "some", CONFIG.change(steps=9, lr=0.0, muon=0.2))
    with pytest.raises(UsageError, match=r"the shape \(3,\): put it with the others"):
        Muon([nn.Parameter(torch.ones(3))], [])
    with pytest.raises(UsageError, match="leave TrainConfig.muon at 0"):
        fit(Noisy(), pairs(), tmp_path / "none", CONFIG.change(muon=0.1))


class Looking(Muon):
    """Asks for the number of the step."""

    def _rate(self, group: dict[str, Any], step: Any) -> Any:
        return super()._rate(group, float(step))


@pytest.mark.parametrize("kind", [Muon, Looking])
def test_a_step_of_muon_can_be_captured_since_it_never_looks_at_a_number(kind: type[Muon]) -> None:
    weights = [nn.Parameter(torch.empty(*shape, device="meta")) for shape in ((4, 8), (4, 8), (7,))]  # where there are no numbers
    optimizer = kind(weights[:2], weights[2:], warmup=2, cooldown=2, steps=4)
    for p in weights:
        p.grad = torch.empty_like(p)
    if kind is Looking:  # and a look is caught
        with pytest.raises(RuntimeError, match="meta"):
            optimizer.step()
    else:
        optimizer.step()
        assert {state["step"].device.type for state in optimizer.state.values()} == {"meta"}


def test_muon_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    config = CONFIG.change(steps=12, muon=0.05)
    whole = fit(Blocks(), Counting(), tmp_path / "whole", config)
    fit(Blocks(), Counting(), tmp_path / "parts", config.change(steps=5))
    parts = fit(Blocks(), Counting(), tmp_path / "parts", config)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))
    state = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["state"]
    assert [sorted(kept) for kept in state.values()] == [["m", "step"], *[["m", "step", "v"]] * 3]


def test_a_stage_that_nobody_watches_notes_step_loss_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note, told = tmp_path / "note", []
    monkeypatch.setenv(NOTE, str(note))
    config = CONFIG.change(steps=8, log_every=1)
    learner = Noisy(pause=0.4)
    step = learner.after_step
    learner.after_step = lambda: (step(), told.append(note.read_text()))  # type: ignore[method-assign]
    fit(learner, pairs(), tmp_path / "run", config)
    shown = [re.fullmatch(r"Noisy (\d) of 8 steps, loss=([\d.e+-]+), 00:0(\d) left", line) for line in told]
    logged = read_log(tmp_path / "run").set_index("step").loss
    found = [match for match in shown if match]
    assert found and all(f"{logged[int(match[1])]:.4g}" == match[2] and 0 <= int(match[3]) <= 5 for match in found)
    assert note.read_text() == "", "its line goes with the bar"


def test_time_left_counts_no_steps_of_an_earlier_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTE, str(tmp_path / "note"))
    bar = progress((), 1000, "again", "step", 900)
    bar.start_t -= 10  # ten seconds for ten steps
    bar.last_print_t -= 10
    bar.update(10)
    assert (tmp_path / "note").read_text() == "again 910 of 1000 steps, 01:30 left"
    bar.close()
