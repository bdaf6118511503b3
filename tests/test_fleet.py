"""Many workers, one store: the same rows as without Ray, and a worker that dies takes only its own chunk with it."""

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metabonk.core.errors import MetaBonkError, MissingLibrary, UsageError
from metabonk.play.game import make_game
from metabonk.record import fleet as module
from metabonk.record.chunks import describe_chunk
from metabonk.record.fleet import chunks_of, cluster, record_fleet
from metabonk.record.recorder import record
from metabonk.record.recording import recording_schema
from metabonk.record.shares import Share
from metabonk.record.stopping import Stop
from metabonk.record.store import Store

pytestmark = pytest.mark.xdist_group("ray")


def make_share(steps: int, **changes: Any) -> Share:
    """A share of a fast game."""
    game = make_game("minatar:breakout")
    _, info = game.reset(seed=0)
    given = {"game": "minatar:breakout", "settings": {}, "policy": "random", "stream": 3, "steps": steps, "chunk_steps": 16}
    return Share(schema=recording_schema(game, info), **{**given, **changes})


def test_chunks_come_in_order_and_describe_themselves() -> None:
    """All rows of the stream, without a gap."""
    chunks = [describe_chunk(content) for content in chunks_of(make_share(100))]
    assert {chunk.stream for chunk in chunks} == {3} and [chunk.start for chunk in chunks] == [16 * n for n in range(len(chunks))]
    episodes = {entry["episode"] for chunk in chunks for entry in chunk.episodes}
    assert sum(chunk.rows for chunk in chunks) == 100 + len(episodes)


def test_errors_of_a_player_come_out_of_its_stream() -> None:
    """With their own type."""
    with pytest.raises(UsageError, match="policy"):
        list(chunks_of(make_share(100, policy="randon")))


def test_who_stops_asking_stops_the_player() -> None:
    """No thread plays on for nobody."""
    stream = chunks_of(make_share(10**9))
    next(stream)
    players = [thread for thread in threading.enumerate() if thread.name == "metabonk-player"]
    stream.close()
    for thread in players:
        thread.join(30)
    assert players and not any(thread.is_alive() for thread in players)


class Waits:
    """A player whose hundredth step does not return until it may."""

    name, there, may = "waits", threading.Event(), threading.Event()

    def reset(self, seed: int) -> None:
        self.calls = 0

    def __call__(self, observation: Any, info: Any) -> int:
        self.calls += 1
        if self.calls == 100:
            self.there.set()
            self.may.wait()
        return 0


def test_a_player_that_does_not_return_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is asked to stop."""
    monkeypatch.setattr(Stop, "patience", 0.1)
    share = make_share(10**9, game="minatar:freeway", policy=Waits(), chunk_steps=10**7)
    stream, got = chunks_of(share, Waits.there.is_set), list[bytes]()
    taking = threading.Thread(target=lambda: got.append(next(stream)), daemon=True)
    taking.start()
    taking.join(60)
    Waits.may.set()
    assert [describe_chunk(content).rows for content in got] == [100]


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to get it, and writes nothing."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingLibrary, match=r"metabonk\[fleet\]"):
        record_fleet("minatar:breakout", tmp_path / "s", steps=10)
    assert not (tmp_path / "s").exists()


def test_bad_numbers(tmp_path: Path) -> None:
    """Usage errors come before Ray is started."""
    for bad in ({}, {"steps": 0}, {"steps": 5, "workers": 0}):
        with pytest.raises(UsageError):
            record_fleet("minatar:breakout", tmp_path / "s", **bad)
    with pytest.raises(UsageError, match="bonk"):
        record_fleet("bonkk", tmp_path / "s", steps=5)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One cluster of two workers for the tests below, on this computer alone."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    try:
        with cluster(2) as library:
            yield library
    except MetaBonkError as error:
        if "did not start" in str(error):
            pytest.skip(str(error))
        raise


def test_two_workers_record_what_two_games_would(tmp_path: Path, ray: Any) -> None:
    """The same streams, seeds and rows; progress and summary count them."""
    summary = record_fleet("minatar:breakout", tmp_path / "fleet", steps=300, workers=2, seed=3, chunk_steps=32)
    record("minatar:breakout", tmp_path / "alone", steps=300, games=2, seed=3, chunk_steps=32)
    one, two = Store.open(tmp_path / "fleet"), Store.open(tmp_path / "alone")
    assert summary.steps == 300 and summary.episodes == len(one.episodes) == len(two.episodes)
    assert {episode.stream for episode in one.episodes} == {0, 1} and one.verify() == []
    for left, right in zip(one.episodes, two.episodes, strict=True):
        a, b = one.read(left), two.read(right)
        assert left.about == right.about and (a.image == b.image).all() and (a.action == b.action).all()
    record_fleet("minatar:breakout", tmp_path / "fleet", steps=50, workers=1, seed=3)
    assert {episode.stream for episode in Store.open(tmp_path / "fleet").episodes} == {0, 1, 2}


def test_nothing_of_ours_listens_beyond_this_computer(ray: Any) -> None:
    """All listening sockets of this process and of those that Ray has started here, with a worker at work."""
    psutil = pytest.importorskip("psutil")
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    listening = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    listening[socket.laddr.port] = socket.laddr.ip
    assert len(listening) >= 5 and {ip.removeprefix("::ffff:") for ip in listening.values()} <= {"127.0.0.1", "::1"}, listening


def test_a_recording_that_is_stopped_keeps_every_workers_rows(tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk was whole by then: what is in the store was in progress."""

    class Noted:
        """Presses nothing; its hundredth step leaves a file for each worker."""

        name = "noted"

        def reset(self, seed: int) -> None:
            self.calls = 0

        def __call__(self, observation: Any, info: Any) -> int:
            self.calls += 1
            if self.calls == 100:
                (tmp_path / f"worker-{os.getpid()}").touch()
            return 0

    @contextlib.contextmanager
    def interrupted() -> Iterator[Any]:
        yield lambda: len(list(tmp_path.glob("worker-*"))) == 2

    monkeypatch.setattr(module, "interruptible", interrupted)
    summary = record_fleet("minatar:freeway", tmp_path / "s", Noted(), steps=10**8, workers=2, chunk_steps=10**7)
    store = Store.open(tmp_path / "s")
    rows = {stream: sum(e.rows for e in store.episodes if e.stream == stream) for stream in (0, 1)}
    assert min(rows.values()) > 100 and store.verify() == []
    assert summary.steps == len(store) - len(store.episodes)


def test_a_worker_that_does_not_return(tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had is kept, and its place is free for others."""

    class Sleeps:
        """Does not return from its hundredth step."""

        name = "sleeps"

        def reset(self, seed: int) -> None:
            Stop.patience, self.calls = 0.5, 0

        def __call__(self, observation: Any, info: Any) -> int:
            self.calls += 1
            if self.calls == 100:
                (tmp_path / f"worker-{os.getpid()}").touch()
                time.sleep(10**6)
            return 0

    @contextlib.contextmanager
    def interrupted() -> Iterator[Any]:
        yield lambda: len(list(tmp_path.glob("worker-*"))) == 2

    with monkeypatch.context() as patch:
        patch.setattr(module, "interruptible", interrupted)
        patch.setattr(Stop, "patience", 10.0)  # what a busy computer may need to hear it and to send 200 rows
        record_fleet("minatar:freeway", tmp_path / "s", Sleeps(), steps=10**8, workers=2, chunk_steps=10**7)
    assert len(Store.open(tmp_path / "s")) == 200
    record_fleet("minatar:freeway", tmp_path / "t", steps=100, workers=2)


def test_a_worker_that_dies(tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finished chunks are in the store, the other's are all there, and the error says so."""

    def deadly(share: Share, stop: Any) -> Iterator[bytes]:
        import os
        import signal
        import time

        for number, content in enumerate(chunks_of(share)):
            yield content
            if share.stream == 0 and number == 2:
                time.sleep(2)  # what was finished has been sent by then, on a busy computer, too
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "_chunks_until", deadly)
    with pytest.raises(MetaBonkError, match="the worker of stream 0 died"):
        record_fleet("minatar:breakout", tmp_path / "s", steps=400, workers=2, chunk_steps=16)
    store = Store.open(tmp_path / "s")
    rows = {stream: sum(e.rows for e in store.episodes if e.stream == stream) for stream in (0, 1)}
    steps = sum(e.rows - 1 for e in store.episodes if e.stream == 1)
    assert store.verify() == [] and 16 <= rows[0] <= 48 and steps == 200


def test_a_worker_that_fails(tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is named, and everything else is kept."""

    def failing(share: Share, stop: Any) -> Iterator[bytes]:
        yield from chunks_of(share)
        if share.stream == 1:
            raise ValueError("out of luck")

    monkeypatch.setattr(module, "_chunks_until", failing)
    with pytest.raises(MetaBonkError, match="ValueError: out of luck"):
        record_fleet("minatar:breakout", tmp_path / "s", steps=100, workers=2)
    assert sum(episode.rows - 1 for episode in Store.open(tmp_path / "s").episodes) == 100
