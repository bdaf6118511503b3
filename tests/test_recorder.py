"""Recording: one queue that drops nothing, whatever the disk, the game or the operating system does."""

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.core.actions import ActionBox, ActionSpec
from metabonk.core.errors import (
    DiskFull,
    FolderLocked,
    GameDied,
    GameError,
    Interrupted,
    MetaBonkError,
    StoreError,
    UsageError,
)
from metabonk.measure.evaluation import evaluate
from metabonk.play.game import make_game
from metabonk.play.keyboard import Keyboard, play
from metabonk.record import recorder as module
from metabonk.record import recording
from metabonk.record.cache import Cache
from metabonk.record.chunks import Chunk, ChunkBuilder
from metabonk.record.experience import Schema, Step, to_step
from metabonk.record.fleet import record_command
from metabonk.record.recorder import record
from metabonk.record.recording import Endless, Recorder, Recording, RowQueue, episode_seeds, recording_schema
from metabonk.record.sampling import Sequences
from metabonk.record.shares import share_out
from metabonk.record.stopping import interruptible
from metabonk.record.store import Store, Writer

SCHEMA = Schema(game="toy", image_shape=(4, 4, 3), channels=1, sample_rate=60, clock_rate=60.0,
                actions=ActionSpec(categorical=(3,)))


def toy_row(t: int, first: bool | None = None) -> Step:
    """Row `t`, in which every number is `t`."""
    sound = np.full((1, 1 + t % 3), t, np.int16)
    first = t == 0 if first is None else first
    return Step(np.full((4, 4, 3), t % 256, np.uint8), sound, np.array(t % 3), 0.0, False, False, first, t, t)


class Toy(gym.Env):
    """A game whose numbers all say which step it is; it ends after `length` steps."""

    name, channels, sample_rate, clock_rate, action_names, config = "toy", 1, 60, 60.0, ["a", "b", "c"], {}
    action_space = gym.spaces.Discrete(3)
    observation_space = gym.spaces.Dict(image=gym.spaces.Box(0, 255, (4, 4, 3), np.uint8))

    def __init__(self, length: int = 10, fail_at: int | None = None) -> None:
        self.length, self.fail_at, self.closed, self.total = length, fail_at, False, 0

    def _out(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        sound = np.full((1, 1 + self.t % 3), self.t, np.int16)
        self.samples += sound.shape[1]
        clock = {"ticks": self.t, "samples": self.samples}
        terms = {"game": float(self.t)}
        return {"image": np.full((4, 4, 3), self.t % 256, np.uint8), "audio": sound}, {"clock": clock, "terms": terms}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.t = self.samples = 0
        self.seed = seed
        return self._out()

    def step(self, action: int) -> Any:
        self.t, self.total = self.t + 1, self.total + 1
        if self.total == self.fail_at:
            raise RuntimeError("the game broke")
        observation, info = self._out()
        return observation, float(self.t), self.t == self.length, False, info

    def close(self) -> None:
        self.closed = True


class Turns:
    """A policy: 0, 1, 2, 0, ..."""

    def reset(self, seed: int) -> None:
        self.count = itertools.count()

    def __call__(self, observation: Any, info: Any) -> int:
        return next(self.count) % 3


def check_toy(store: Store) -> int:
    """Every episode is exactly what the toy does; returns the number of rows."""
    for episode in store.episodes:
        steps = store.read(episode)
        t = np.arange(len(steps))
        assert (steps.image[:, 0, 0, 0] == t % 256).all() and (steps.tick == t).all()
        assert (steps.audio_length == 1 + t % 3).all() and (steps.audio[0] == np.repeat(t, 1 + t % 3)).all()
        assert (steps.action[1:] == (t[1:] - 1) % 3).all() and steps.action[0] == 0
        assert (steps.reward == t).all() and (steps.first == (t == 0)).all()
    return sum(episode.rows for episode in store.episodes)


# The queue


def test_a_slow_writer_slows_the_game_and_drops_nothing() -> None:
    """All rows arrive in order, and never more than the bound are under way."""
    arrived: list[int] = []

    class Slow(ChunkBuilder):
        def add(self, row: Step, about: Any = None) -> Any:
            time.sleep(0.002)
            arrived.append(int(row.tick))
            return super().add(row, about)

    chunks: list[Chunk] = []
    queue = RowQueue(lambda chunk, content: chunks.append(chunk), capacity=10)
    builder = Slow(SCHEMA, 0, chunk_steps=16)
    waiting = []
    for t in range(200):
        queue.put(builder, toy_row(t))
        waiting.append(len(queue._rows))
    queue.close()
    assert arrived == list(range(200)) and sum(chunk.rows for chunk in chunks) == queue.saved == 200
    assert max(waiting) <= queue.deepest <= 10
    assert queue.deepest == 10  # the writer was slow enough for the bound to be felt


@pytest.mark.parametrize(("capacity", "wake"), [(1, 1), (1, 32), (3, 2), (500, 500)])
def test_any_bound_works(capacity: int, wake: int) -> None:
    """No bound and no batch size leaves rows behind or waits for ever."""
    chunks: list[Chunk] = []
    queue = RowQueue(lambda chunk, content: chunks.append(chunk), capacity, wake)
    builder = ChunkBuilder(SCHEMA, 0, chunk_steps=7)
    for t in range(50):
        queue.put(builder, toy_row(t))
    queue.close()
    assert [chunk.rows for chunk in chunks] == [7] * 7 + [1]


def test_the_same_row_twice_is_one_row() -> None:
    """A row that is offered again after an interruption is not doubled."""
    chunks: list[Chunk] = []
    queue, builder = RowQueue(lambda chunk, content: chunks.append(chunk)), ChunkBuilder(SCHEMA, 0)
    for t in range(5):
        row = toy_row(t)
        queue.put(builder, row)
        queue.put(builder, row)
    queue.close()
    assert [chunk.rows for chunk in chunks] == [5]


def test_what_the_writer_meets_with_reaches_the_game_at_once() -> None:
    """A full disk is `DiskFull` in `put`, also in one that waits, and says what is safe."""

    def save(chunk: Chunk, content: bytes) -> None:
        if chunk.start >= 20:
            time.sleep(0.05)
            raise DiskFull("no space left on the disk")

    queue, builder = RowQueue(save, capacity=5), ChunkBuilder(SCHEMA, 0, chunk_steps=10)
    with pytest.raises(DiskFull, match="20 rows of this recording are safe, the [0-9]+ after them are not"):
        for t in range(1000):
            queue.put(builder, toy_row(t))
    with pytest.raises(DiskFull):
        queue.close()


def test_errors_that_are_nobodys_fault_keep_their_type() -> None:
    """A defect in the writer is not dressed up."""

    def save(chunk: Chunk, content: bytes) -> None:
        raise ZeroDivisionError

    queue, builder = RowQueue(save), ChunkBuilder(SCHEMA, 0)
    queue.put(builder, toy_row(0))
    with pytest.raises(ZeroDivisionError):
        queue.close()


def test_nothing_can_be_put_into_a_closed_queue() -> None:
    """It says so."""
    queue = RowQueue(lambda chunk, content: None)
    queue.close()
    with pytest.raises(StoreError, match="closed"):
        queue.put(ChunkBuilder(SCHEMA, 0), toy_row(0))


# The recorder


def test_every_row_is_there(tmp_path: Path) -> None:
    """T + 1 rows for T steps, the convention of the rows, the marks at the ends."""
    summary = record(Toy(), tmp_path / "s", Turns(), steps=25, chunk_steps=8)
    store = Store.open(tmp_path / "s")
    assert check_toy(store) == 28
    assert [episode.end for episode in store.episodes] == ["terminated", "terminated", "truncated"]
    assert (summary.steps, summary.episodes, summary.total_steps) == (25, 3, 25)
    assert [store.episodes[n].reward for n in range(3)] == [55.0, 55.0, 15.0]


def test_whole_episodes(tmp_path: Path) -> None:
    """`episodes=` plays each to its end."""
    summary = record(Toy(7), tmp_path / "s", Turns(), episodes=3)
    assert (summary.steps, summary.episodes) == (21, 3)
    assert {episode.end for episode in Store.open(tmp_path / "s").episodes} == {"terminated"}


@pytest.mark.parametrize("space", [
    gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([3, 2]), gym.spaces.MultiBinary(4), gym.spaces.Box(-1, 1, (2,)),
    ActionBox(keys=2, choices=(5,), controls=1),
], ids=str)  # fmt: skip
def test_a_recording_says_what_its_actions_are(tmp_path: Path, space: gym.Space[Any]) -> None:
    space.seed(0)
    toy, done = Toy(), [space.sample() for _ in range(10)]
    toy.action_space = space  # type: ignore[assignment]
    with Recorder(toy, tmp_path / "s") as game:
        game.reset()
        for action in done:
            game.step(action)
    store = Store.open(tmp_path / "s")
    spec = store.schema.actions
    assert spec == ActionSpec.of(space) == ActionSpec.of(spec.space())
    recorded = store.read(store.episodes[0]).action
    assert np.array_equal(recorded[1:], done)
    vectors = spec.vectors(torch.tensor(recorded)[None])
    assert vectors.shape == (1, 11, spec.size) and np.array_equal(spec.recorded(vectors)[0, 1:], done)



class Hurried(Toy):
    """Every other episode ends by the game's rules, those between are cut off by it."""

    over = 0

    def step(self, action: int) -> Any:
        observation, reward, over, _, info = super().step(action)
        cut, self.over = bool(self.over % 2), self.over + over
        return observation, reward, over and not cut, over and cut, info


def ends(folder: Path) -> list[tuple[list[bool], list[bool], str]]:
    """Of four episodes of three steps: which rows ended them, which cut them off, what the store says."""
    record(Hurried(3), folder, Turns(), episodes=4)
    store = Store.open(folder)
    read = [(store.read(episode), episode.end) for episode in store.episodes]
    return [(steps.terminated.tolist(), steps.truncated.tolist(), end) for steps, end in read]


@pytest.mark.parametrize("wrong", ["bool(terminated or truncated), bool(truncated)", "bool(truncated), bool(terminated)"])
def test_what_a_game_cuts_off_did_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Negative control: truncation stored as termination."""
    no, last = [False] * 4, [False, False, False, True]
    wanted = [(last, no, "terminated"), (no, last, "truncated")] * 2
    assert ends(tmp_path / "right") == wanted
    monkeypatch.setattr(recording, "to_step", mutant(to_step, "bool(terminated), bool(truncated)", wrong))
    assert ends(tmp_path / "wrong") != wanted


def test_reset_in_the_middle_is_a_truncation(tmp_path: Path) -> None:
    """An episode that was left is marked, at its last row."""
    with Recorder(Toy(), tmp_path / "s") as game:
        for _ in range(2):
            game.reset()
            for action in (0, 1, 2):
                game.step(action)
    store = Store.open(tmp_path / "s")
    assert [episode.end for episode in store.episodes] == ["truncated", "truncated"]
    assert store.read(store.episodes[0]).truncated.tolist() == [False, False, False, True]
    assert store.episodes[0].about["policy"] == "person"


def test_a_game_that_breaks_leaves_a_whole_store(tmp_path: Path) -> None:
    """The error says in which game and row; every row before it is stored."""
    game = Toy(length=1000, fail_at=300)
    with pytest.raises(GameError, match="RuntimeError: the game broke .toy, stream 0, episode 0, row 300;"):
        record(game, tmp_path / "s", Turns(), steps=1000, chunk_steps=64)
    store = Store.open(tmp_path / "s")
    assert check_toy(store) == 300 and store.episodes[0].end == "truncated" and store.verify() == []
    record(Toy(), tmp_path / "s", Turns(), steps=10)
    assert len(Store.open(tmp_path / "s").episodes) == 2


def test_one_of_several_games_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stop at their next step, and what all of them recorded is there."""
    made = iter([Toy(10), Toy(10, fail_at=77), Toy(10)])
    monkeypatch.setattr(module, "make_game", lambda name, **settings: next(made))
    with pytest.raises(GameError, match="the game broke .toy, stream 1, episode 7, row 7;"):
        record("toy", tmp_path / "s", Turns(), steps=10**9, games=3)
    store = Store.open(tmp_path / "s")
    check_toy(store)
    assert sum(episode.rows - 1 for episode in store.episodes if episode.stream == 1) == 76


def test_a_full_disk_stops_the_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DiskFull` comes out of `record`; the store keeps what was written, opens, and can be appended to."""
    real, calls = Writer.add_chunk, itertools.count()

    def add_chunk(self: Any, content: bytes, chunk: Any = None) -> None:
        if next(calls) >= 2:
            raise DiskFull("no space left on the disk while writing a chunk: free some, then run again")
        real(self, content, chunk)

    monkeypatch.setattr(Writer, "add_chunk", add_chunk)
    game = Toy(100)
    with pytest.raises(DiskFull, match="64 rows of this recording are safe"):
        record(game, tmp_path / "s", Turns(), steps=100_000, chunk_steps=32)
    assert game.total < 2_000
    monkeypatch.undo()
    store = Store.open(tmp_path / "s")
    assert check_toy(store) == 64
    record(Toy(), tmp_path / "s", Turns(), steps=10)
    assert len(Store.open(tmp_path / "s")) == 64 + 11


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes stands for it where no small disk can be mounted: the operating system refuses the bytes."""
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path.insert(0, "tests")
from test_recorder import Toy, Turns
from metabonk.record.recorder import record
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
record(Toy(100), sys.argv[1], Turns(), steps=100_000, chunk_steps=1024)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Error" in done.stderr.splitlines()[-1]
    assert check_toy(Store.open(tmp_path / "s")) >= 0


def test_two_writers(tmp_path: Path) -> None:
    """The second one is told."""
    with Recording(tmp_path / "s", SCHEMA), pytest.raises(FolderLocked):
        Recording(tmp_path / "s", SCHEMA)
    Recording(tmp_path / "s", SCHEMA).close()


def test_another_game_does_not_fit_into_the_store(tmp_path: Path) -> None:
    """What differs is named, and nothing is written."""
    record(Toy(), tmp_path / "s", Turns(), steps=5)
    other = Toy()
    other.name = "other"
    with pytest.raises(StoreError, match="game is 'toy', not 'other'"):
        record(other, tmp_path / "s", Turns(), steps=5)


@pytest.mark.parametrize("bad", [{}, {"steps": 0}, {"episodes": 0}, {"steps": 5, "games": 0}])
def test_bad_numbers(tmp_path: Path, bad: dict[str, int]) -> None:
    """Usage errors come before anything is written."""
    with pytest.raises(UsageError):
        record("bonk", tmp_path / "s", **bad)
    assert not (tmp_path / "s").exists()


def test_unknown_names(tmp_path: Path) -> None:
    """The nearest game, policy and setting are named before anything is written."""
    wrong = [({"game": "bonkk"}, "bonk"), ({"policy": "randon"}, "random"), ({"settings": {"tick": 4}}, "ticks_per_step")]
    for names, told in wrong:
        with pytest.raises(UsageError, match=told):
            record(**{"game": "bonk", "store": tmp_path / "s", "steps": 5} | names)
    assert not (tmp_path / "s").exists()


def test_seeds_follow_from_one() -> None:
    """They differ between episodes, streams and recordings, and fit 31 bits."""
    seeds = [episode_seeds(seed, stream, n) for seed in range(3) for stream in range(5) for n in range(50)]
    assert len({s for pair in seeds for s in pair}) == 2 * len(seeds)
    assert max(max(pair) for pair in seeds) < 2**31


def test_shares_add_up() -> None:
    """Nothing is lost in the division."""
    assert share_out(10, 3) == [4, 3, 3] and share_out(None, 2) == [None, None] and share_out(1, 2) == [1, 0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_is_refused_at_its_step(tmp_path: Path, wrong: float) -> None:
    """With game and row; the rows before it are kept, and none of those behind."""

    class Wrong(Toy):
        def step(self, action: int) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, wrong if self.total == 25 else reward, *rest

    game = Wrong()
    with pytest.raises(StoreError, match="reward is -?(nan|inf).*toy, stream 0, episode 2, row 5; the rows before it are kept"):
        record(game, tmp_path / "s", Turns(), steps=100)
    assert game.total == 25 and check_toy(Store.open(tmp_path / "s")) == 27


def test_a_reward_that_is_no_number_comes_out_of_no_game(tmp_path: Path) -> None:
    """However it is played: a game refuses it in its step, and what packs rows refuses it from elsewhere."""

    def broken(name: str, **settings: Any) -> Any:
        game = make_game(name, **settings)
        run, steps = game.machine.run, itertools.count()

        def wrong(*given: Any) -> Any:
            pieces, reward, *rest = run(*given)
            return pieces, float("nan") if next(steps) == 7 else reward, *rest

        game.machine.run = wrong
        return game

    for play_it in (
        lambda: evaluate(broken("minatar:breakout", sample_rate=0), "random", episodes=20),
        lambda: record(broken("minatar:breakout"), tmp_path / "s", "random", steps=100),
    ):
        with pytest.raises(GameError, match="minatar:breakout: step [0-9]+ of the episode with seed [0-9]+ earned .*nan"):
            play_it()
    row = toy_row(0)
    row.reward = float("inf")
    with pytest.raises(StoreError, match="toy: the reward of row 0 of episode 3000000 is inf"):
        ChunkBuilder(SCHEMA, 3).add(row)


class Mortal(Toy):
    """A toy whose machine dies after so many steps, and is started again by `reset`."""

    def __init__(self, deaths: tuple[int, ...], length: int = 10) -> None:
        super().__init__(length)
        self.deaths = deaths

    def step(self, action: int) -> Any:
        out = super().step(action)
        if self.total in self.deaths:
            raise GameDied("toy: the machine has ended")
        return out


def test_a_machine_that_died_is_started_again(tmp_path: Path) -> None:
    """Its rows are kept, its episode is cut off there, and the next one goes on."""
    with pytest.warns(UserWarning, match="the machine has ended .toy, stream 0, episode 2, row 5; .* started again"):
        summary = record(Mortal((25,)), tmp_path / "s", Turns(), episodes=4)
    store = Store.open(tmp_path / "s")
    assert [episode.rows for episode in store.episodes] == [11, 11, 5, 11, 11] and check_toy(store) == 49
    assert store.episodes.columns()["cut"].tolist() == [False, False, True, False, False] and summary.episodes == 5
    with pytest.warns(UserWarning), pytest.raises(GameDied, match="episode 2, row 1"):
        record(Mortal((1, 2, 3)), tmp_path / "s", Turns(), episodes=4)


def test_an_engine_that_was_killed_is_started_again(tmp_path: Path) -> None:
    """Doom, with a real kill."""
    pytest.importorskip("vizdoom")
    psutil = pytest.importorskip("psutil")
    engines = lambda: [p for p in psutil.Process().children(recursive=True) if "vizdoom" in p.name()]  # noqa: E731

    class Killer:
        def __init__(self) -> None:
            self.calls = 0

        def reset(self, seed: int) -> None:
            pass

        def __call__(self, observation: Any, info: Any) -> int:
            self.calls += 1
            if self.calls == 20:
                for engine in engines():
                    engine.kill()
            return 0

    with pytest.warns(UserWarning, match="doom:basic: Doom's engine has ended .*row 20; .* started again"):
        record("doom:basic", tmp_path / "s", Killer(), steps=60, settings={"sample_rate": 0})
    store = Store.open(tmp_path / "s")
    assert [episode.rows for episode in store.episodes] == [20, 42] and store.verify() == []
    assert not engines()


def test_an_episode_without_an_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it gets long, and when it is twice as long; a limit on steps needs no warning."""
    monkeypatch.setattr(Endless, "rows", 100)
    with pytest.warns(UserWarning, match="rows, .* a second, and the episode has not ended: max_steps") as told:
        record(Toy(1000), tmp_path / "s", Turns(), episodes=1)
    rows = [int(str(one.message).split(": ")[1].split()[0]) for one in told if "not ended" in str(one.message)]
    assert rows == [129, 321, 705]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record(Toy(1000), tmp_path / "s", Turns(), steps=900)


# Going on with a recording


def same_episodes(one: Store, other: Store) -> int:
    """Episodes that are whole in both are equal; how many there are."""
    count = 0
    others = {episode.number: episode for episode in other.episodes}
    for episode in one.episodes:
        twin = others.get(episode.number)
        if twin is None or not episode.end or "cut" in {*episode.about, *twin.about}:
            continue
        assert episode.about == twin.about and episode.end == twin.end
        a, b = one.read(episode), other.read(twin)
        for name in ("image", "audio", "audio_length", "action", "reward", "terminated", "truncated", "first", "tick"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        count += 1
    return count


@pytest.mark.parametrize(("parallel", "limit"), [("threads", "steps"), ("threads", "episodes"), ("processes", "steps")])
def test_what_is_resumed_is_what_would_have_been(tmp_path: Path, parallel: str, limit: str) -> None:
    """Two games, stopped at different places: only what is missing comes, in the same streams, equal per seed."""
    here: dict[str, Any] = {"seed": 5, "games": 2, "settings": {"max_steps": 40}, "chunk_steps": 16}
    how = {**here, "parallel": parallel}
    record("minatar:breakout", tmp_path / "whole", "random", **{limit: 300 if limit == "steps" else 12}, **here)
    for amount in (71, 150) if limit == "steps" else (3, 7):
        record("minatar:breakout", tmp_path / "s", "random", **{limit: amount}, **here, resume=True)
    record("minatar:breakout", tmp_path / "s", "random", **{limit: 300 if limit == "steps" else 12}, **how, resume=True)
    store, whole = Store.open(tmp_path / "s"), Store.open(tmp_path / "whole")
    assert {episode.stream for episode in store.episodes} == {0, 1} and {chunk.session for chunk in store.chunks} == {0}
    assert same_episodes(store, whole) >= 8 and store.verify() == []
    if limit == "steps":
        assert len(store) - len(store.episodes) == 300
        cut = store.episodes.columns()["cut"]
        assert cut.sum() >= 2
    else:
        assert len(store) == len(whole) and not store.episodes.columns()["cut"].any()
    more = record("minatar:breakout", tmp_path / "s", "random", **{limit: 10}, **how, resume=True)
    assert more.steps == more.episodes == 0
    sequences = Sequences(Cache.build(store), 2, cross_episodes=True)
    assert len(sequences) == len(store) - 2  # each game is one stretch without a gap


def test_a_killed_recording_goes_on(tmp_path: Path) -> None:
    """What was in the chunk in progress is recorded again, from the seeds that it had."""
    with pytest.raises(GameError):
        record(Toy(10, fail_at=300), tmp_path / "s", Turns(), steps=500, chunk_steps=32)
    store = Store.open(tmp_path / "s")
    (store.path / store.chunks[-1].file).unlink()
    lines = (store.path / "manifest.jsonl").read_text().splitlines(keepends=True)
    (store.path / "manifest.jsonl").write_text("".join(lines[:-1]))
    before = check_toy(store.refresh())
    assert before % 32 == 0 and before < 330
    record(Toy(10), tmp_path / "s", Turns(), steps=500, chunk_steps=32, resume=True)
    record(Toy(10), tmp_path / "whole", Turns(), steps=500)
    store.refresh()
    assert check_toy(store) == len(store) == 500 + len(store.episodes)
    assert same_episodes(store, Store.open(tmp_path / "whole")) >= 40


def test_what_can_not_be_resumed(tmp_path: Path) -> None:
    """Another seed, player or number of games, and stores that do not tell their recordings apart."""
    how: dict[str, Any] = {"steps": 20, "seed": 1, "games": 2, "policy": "random", "resume": True}
    record("minatar:breakout", tmp_path / "s", **how)
    for change, told in (({"seed": 2}, "another seed"), ({"policy": "sticky_random"}, "policy 'random'"),
                         ({"games": 1}, "at least 2 games"), ({"about": {"day": 1}}, "day None")):  # fmt: skip
        with pytest.raises(UsageError, match=f"the last recording of .*{told}"):
            record("minatar:breakout", tmp_path / "s", **{**how, **change})
    there = Store.open(tmp_path / "s")
    assert len(there) - len(there.episodes) == 20
    store = Store.create(tmp_path / "old", SCHEMA)
    with store.writer() as writer:
        builder = ChunkBuilder(SCHEMA, writer.new_stream())
        builder.add(toy_row(0))
        writer.add_chunk(builder.finish()[1])
    toy = Toy()
    toy.action_space = gym.spaces.Discrete(3)
    with pytest.raises(MetaBonkError, match="tell its recordings apart|other rows"):
        record(toy, tmp_path / "old", Turns(), steps=5, resume=True)


# Real games


def test_threads_and_processes_record_the_same(tmp_path: Path) -> None:
    """Bonk twice at once, each way: every array of every episode is equal."""
    for parallel in ("threads", "processes"):
        record("bonk", tmp_path / parallel, steps=60, games=2, seed=5, parallel=parallel, chunk_steps=16)
    one, two = Store.open(tmp_path / "threads"), Store.open(tmp_path / "processes")
    assert len(one.episodes) == len(two.episodes) == 2
    for left, right in zip(one.episodes, two.episodes, strict=True):
        assert left.about == right.about and left.rows == right.rows == 31
        a, b = one.read(left), two.read(right)
        assert (a.image == b.image).all() and (a.audio == b.audio).all() and (a.action == b.action).all()
        assert all((a.probes[name] == b.probes[name]).all() for name in a.probes)


def test_recorded_is_what_was_played(tmp_path: Path) -> None:
    """Bonk, step by step against a second copy that is not recorded."""
    settings = {"sticky_actions": 0.5, "max_steps": 40}
    with Recorder(make_game("bonk", **settings), tmp_path / "s", seed=3) as game:
        for _ in range(2):
            game.reset()
            for action in np.random.default_rng(0).integers(0, game.action_space.n, 40):
                game.step(int(action))
    store, other = Store.open(tmp_path / "s"), make_game("bonk", **settings)
    for episode in store.episodes:
        steps = store.read(episode)
        observation, info = other.reset(seed=episode.about["seed"])
        for t, row in enumerate(steps):
            if t:
                observation, reward, *_, info = other.step(int(row.action))
                assert row.reward == reward and row.terms == info["terms"]
            assert (row.image == observation["image"]).all() and (row.audio == observation["audio"]).all()
            assert row.tick == info["clock"]["ticks"] and row.sample == info["clock"]["samples"]
            assert row.probes == {**info["probes"], "executed": info["executed"]}
        assert steps.truncated[-1] and (steps.probes["executed"] != steps.action).any()


def test_a_person_records_through_step(tmp_path: Path) -> None:
    """`Recorder.step` is all that a keyboard needs; any thread may call it."""
    game = Recorder(make_game("bonk"), tmp_path / "s")
    game.reset()
    thread = threading.Thread(target=lambda: [game.step(4) for _ in range(5)])
    thread.start()
    thread.join()
    game.close()
    store = Store.open(tmp_path / "s")
    assert store.episodes[0].rows == 6 and store.episodes[0].about["policy"] == "person"


def test_a_keyboard_records_what_it_played(tmp_path: Path) -> None:
    """`play` with a `Keyboard` on a game that records itself: the keys that were down are in the store."""
    game = Recorder(make_game("bonk"), tmp_path / "s")
    keyboard = Keyboard(game)

    async def session() -> int:
        playing = asyncio.create_task(play(game, keyboard, steps=12, speed=50.0, wait=False))
        await asyncio.sleep(0)
        keyboard.press("ArrowRight")
        return await playing

    assert asyncio.run(session()) == 12
    game.close()
    steps = Store.open(tmp_path / "s").read(0)
    right = game.unwrapped.action_names.index("right")
    assert len(steps) == 13 and steps.action[0] == 0 and right in steps.action[1:].tolist()


def test_the_command_line_function(tmp_path: Path) -> None:
    """It returns a summary whose text tells the numbers."""
    told = str(record_command("bonk", tmp_path / "s", steps=20, settings={"ticks_per_step": 2}))
    assert "20 steps in 1 episodes of bonk" in told and str(tmp_path / "s") in told


def test_silent_games_record_too(tmp_path: Path) -> None:
    """No sound, no samples, everything else."""
    record("gym:CartPole-v1", tmp_path / "s", steps=30, settings={"image_size": (32, 32)})
    steps = Store.open(tmp_path / "s").read(0)
    assert steps.audio.size == 0 and steps.image.any()


# Interruptions

PLAY = """
import sys
sys.path.insert(0, "tests")
from test_recorder import Toy, Turns
from metabonk.record.recorder import record
print("ready", flush=True)
record(Toy(50), sys.argv[1], Turns(), steps=10**9, chunk_steps=32)
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    """A process that records until it is stopped."""
    there = len(list(folder.glob("data/*.arrow")))
    command = [sys.executable, "-c", PLAY, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    until = time.monotonic() + 60
    while len(list(folder.glob("data/*.arrow"))) == there and time.monotonic() < until:
        time.sleep(0.01)
    return process


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """`kill -9`, several times into one store: it opens, every chunk is sound, and it can be appended to."""
    moments = np.random.default_rng().uniform(0, 0.3, 4)
    rows = 0
    for moment in moments:
        process = start(tmp_path / "s")
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = Store.open(tmp_path / "s")
        assert store.verify() == [], f"killed after {moment} s"
        now = check_toy(store)
        assert now > rows and now == len(store)
        assert all(episode.rows == 51 or episode.end == "" for episode in store.episodes)
        rows = now
    record(Toy(), tmp_path / "s", Turns(), steps=20)
    assert check_toy(Store.open(tmp_path / "s")) == rows + 22


def test_ctrl_c_keeps_every_row(tmp_path: Path) -> None:
    """The step in progress is finished, everything is stored, and the process ends by KeyboardInterrupt."""
    process = start(tmp_path / "s")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in told and process.returncode != 0
    store = Store.open(tmp_path / "s")
    assert check_toy(store) == len(store) and store.verify() == []
    assert store.episodes[len(store.episodes) - 1].end in ("truncated", "terminated")


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.whole), pytest.param(signal.SIGINT, marks=pytest.mark.whole)],
    ids=lambda number: number.name,
)
def test_the_command_stops_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """A real signal: no row is lost, the exit status says which it was, and --resume adds what is missing."""
    command = [sys.executable, "-m", "metabonk.cli", "record", "minatar:breakout", str(tmp_path / "s"), "--games", "2"]
    command += ["--policy", "random", "--set", "max_steps=50"]
    answered = functools.partial(signal.signal, number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    process = subprocess.Popen(  # under nohup, a signal may be ignored
        [*command, "--steps", "40000"], stderr=subprocess.PIPE, text=True, preexec_fn=answered
    )
    until = time.monotonic() + 60
    while not list((tmp_path / "s/data").glob("*.arrow")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    store = Store.open(tmp_path / "s")
    stopped = len(store) - len(store.episodes)
    assert 0 < stopped < 40000 and process.returncode == 128 + number, told
    assert f"{len(store)} rows more are in" in told and "--resume" in told
    assert (f"stopped by {number.name}" in told) == (number != signal.SIGINT)
    assert all(episode.end for episode in store.episodes) and store.verify() == []
    subprocess.run([*command, "--steps", "40000", "--resume"], check=True, capture_output=True, timeout=120)
    store.refresh()
    assert len(store) - len(store.episodes) == 40000 and {episode.stream for episode in store.episodes} == {0, 1}


def test_signals_that_are_ignored_stay_ignored() -> None:
    """`nohup` is not undone, and afterwards everything is as it was."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as asked:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
        with pytest.raises(Interrupted, match="SIGTERM") as error, interruptible() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked() and asked.wait()
    finally:
        signal.signal(signal.SIGHUP, old)
    assert error.value.exit_status == 143
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_second_signal_is_raised_only_where_a_game_plays() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible() as asked:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.wait(len(asked.given))
        assert asked.twice()
        with pytest.raises(Interrupted), asked.raising():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)


def test_a_second_signal_while_everything_is_saved_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Writer.add_chunk

    def add_chunk(self: Any, content: bytes, chunk: Any = None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        time.sleep(0.5)  # a slow disk
        real(self, content, chunk)

    monkeypatch.setattr(Writer, "add_chunk", add_chunk)
    with pytest.raises(KeyboardInterrupt):  # by either name: two that wait side by side are delivered in no order
        record(Toy(), tmp_path / "s", Turns(), steps=25)
    assert check_toy(Store.open(tmp_path / "s")) == 28


@contextlib.contextmanager
def stuck(folder: Path, where: str, lock: str, patience: str = "0.3") -> Iterator["subprocess.Popen[str]"]:
    """A recording that has got stuck: `stuck.py`, whose signals nobody ignores."""

    def answered() -> None:  # under nohup and in the background of a shell, some are ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    command = [sys.executable, str(Path(__file__).with_name("stuck.py")), str(folder), where, lock, patience]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=answered)
    assert process.stdout is not None
    try:
        for _ in range(1 if where == "alone" else 2):
            assert process.stdout.readline() == "stuck\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("where", "lock"), [("alone", "free"), ("alone", "asked"), ("threads", "free"), ("processes", "free")])
def test_a_game_that_does_not_return_is_left_by_asking_twice(tmp_path: Path, where: str, lock: str) -> None:
    """Whether or not the main thread had answered the first signal; and every row is kept."""
    recorded = 100 if where == "alone" else 200
    with stuck(tmp_path / "s", where, lock) as process:
        if lock == "free":
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 60
        while len(Store.open(tmp_path / "s")) < recorded and time.monotonic() < until:  # they are saved although nobody returns
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    store = Store.open(tmp_path / "s")
    assert process.returncode == (143 if where == "alone" else 1), told
    assert "stopped by SIGTERM" in told or "Interrupted: SIGTERM" in told
    assert len(store) == recorded and store.verify() == []


@pytest.mark.parametrize("where", ["alone", "threads", "processes"])
def test_two_signals_at_once_lose_no_row(tmp_path: Path, where: str) -> None:
    """Of two kinds, before anything is saved."""
    with stuck(tmp_path / "s", where, "free", "1") as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    store = Store.open(tmp_path / "s")
    assert process.returncode != 0 and store.verify() == [], told
    assert len(store) == (100 if where == "alone" else 200)


def test_a_game_that_holds_the_lock_for_good_is_left_to_the_system(tmp_path: Path) -> None:
    """Nobody can pack what is in the queue; the chunks on the disk are whole."""
    with stuck(tmp_path / "s", "alone", "held") as process:
        for patience in (1, 1, 60):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
    store = Store.open(tmp_path / "s")
    assert process.returncode == -signal.SIGTERM and store.verify() == []
    assert len(store) % 16 == 0 and len(store) <= 96


def test_a_process_that_dies_takes_nothing_of_the_others_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two recording processes is killed: the other finishes, and the error says what is there."""
    real = module.multiprocessing.connection.wait
    killed: list[int] = []

    def wait(pipes: Any, timeout: float) -> Any:
        names = {p.name: p for p in module.multiprocessing.active_children()}
        if not killed and "metabonk-0" in names and list((tmp_path / "s/data").glob("000000-*.arrow")):
            killed.append(names["metabonk-0"].pid)
            os.kill(killed[0], signal.SIGKILL)
        return real(pipes, timeout)

    monkeypatch.setattr(module.multiprocessing.connection, "wait", wait)
    with pytest.raises(MetaBonkError, match="metabonk-0 .exit status -9. died"):
        record("bonk", tmp_path / "s", steps=400, games=2, parallel="processes", chunk_steps=16, settings={"ticks_per_step": 1})
    store = Store.open(tmp_path / "s")
    steps = {n: sum(e.rows for e in store.episodes if e.stream == n) for n in (0, 1)}
    assert killed and store.verify() == [] and 16 <= steps[0] < 200 and steps[1] == 200 + 1


def test_schema_of_a_sticky_game() -> None:
    """The executed action is a probe where it may differ from the chosen one, and only there."""
    for sticky, there in ((0.25, True), (0.0, False)):
        game = make_game("bonk", sticky_actions=sticky)
        _, info = game.reset(seed=0)
        assert ("executed" in recording_schema(game, info).probes) is there
