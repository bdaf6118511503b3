"""Console games of stable-retro against the emulator itself, with the free game that it brings"""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from metabonk.core.errors import RomError, UsageError
from metabonk.measure.evaluation import evaluate
from metabonk.play import synchrony, vector
from metabonk.play.game import OutOfSync, check_sync, make_game
from metabonk.record.recorder import record
from metabonk.record.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("stable_retro", reason="needs stable-retro")
NAME = "retro:Airstriker-Genesis-v0"


@pytest.fixture
def env():
    game = make_game(NAME)
    yield game
    game.close()


def test_gymnasium_accepts_it(env):
    check_env(env, skip_render_check=True)
    assert env.action_names[:2] == ["noop", "b"] and env.reset(seed=0)[1]["probes"]["lives"] == 3


@pytest.mark.parametrize("config", [{}, {"ticks_per_step": 1, "noops": 0}, {"actions": ("noop", "right+b", "b")}])
def test_chunks_joined_are_the_emulators_own_stream(config):
    proof = synchrony.prove(NAME, steps=60, seed=7, **config)
    assert proof.repeats and proof.clock_error < 1 and proof.samples > 40_000


def test_a_process_has_one(env):
    with pytest.raises(UsageError, match="a process can have one"):
        make_game(NAME)
    env.close()
    again = make_game(NAME)
    again.close()
    again.close()


def test_several_are_played_in_processes():
    with pytest.raises(UsageError, match="leave how='threads'"):
        vector.make_vector(NAME, 2, how="threads")
    games = vector.make_vector(NAME, 2, max_steps=4)
    seen, _ = games.reset(seed=1)
    for _ in range(3):
        seen, *_ = games.step([1, 2])
    assert seen["image"].shape == (2, 64, 64, 3) and all(np.ptp(sound) for sound in seen["audio"])
    games.close()


@pytest.mark.parametrize(
    "what,config,error,words",
    [
        ("Airstriker-Genesis", {}, UsageError, "did you mean Airstriker-Genesis-v0"),
        ("SonicTheHedgehog-Genesis-v0", {}, RomError, "stable_retro.import"),
        ("Airstriker-Genesis-v0", {"state": "Level2"}, UsageError, "unknown state.*Level1"),
        ("Airstriker-Genesis-v0", {"scenario": "nothing"}, UsageError, "unknown scenario"),
        ("Airstriker-Genesis-v0", {"actions": ("noop", "fire")}, UsageError, "unknown button 'fire'|unknown button"),
        ("Airstriker-Genesis-v0", {"sample_rate": 8_000}, UsageError, "44100 Hz"),
        ("Airstriker-Genesis-v0", {"profile": "bonk"}, UsageError, "profile"),
        ("Airstriker-Genesis-v0", {"noops": -1}, UsageError, "noops"),
    ],
)
def test_what_cannot_be_played_is_told_in_one_line(what, config, error, words):
    with pytest.raises(error, match=words) as told:
        make_game(f"retro:{what}", **config)
    assert "\n" not in str(told.value)
    make_game(NAME).close()  # nothing was left open


def test_a_lost_frame_of_sound_is_caught(env, monkeypatch):
    env.reset(seed=0)
    whole = env.machine.sound
    monkeypatch.setattr(env.machine, "sound", lambda pieces: whole(pieces[1:]))
    with pytest.raises(OutOfSync):
        env.step(0)


def test_the_size_of_a_picture_may_change(env, monkeypatch):
    env.reset(seed=0)
    small = np.full((224, 256, 3), 77, np.uint8)
    monkeypatch.setattr(env.machine._env, "img", small)
    assert (env.machine.picture() == np.full((224, 320, 3), 77)).all()


def test_consoles_whose_rates_are_rough_are_given_room():
    check_sync(60, 44_100 + 400, 60, 44_100, jitter=1, drift=0.01)
    with pytest.raises(OutOfSync):
        check_sync(60, 44_100 + 500, 60, 44_100, jitter=1, drift=0.01)
    with pytest.raises(OutOfSync):
        check_sync(60, 44_100 + 2, 60, 44_100)


def test_it_is_recorded(tmp_path):
    record(NAME, tmp_path / "s", steps=30, settings={"max_steps": 14})
    store = Store.open(tmp_path / "s")
    steps = store.read(0)
    assert len(steps) == 15 and steps.audio.shape[0] == 2 and np.ptp(steps.audio)
    assert store.schema.sample_rate == 44_100 and store.schema.clock_rate == 3_579_545


def test_several_are_recorded_and_judged_in_processes(tmp_path):
    settings = {"max_steps": 10}
    record(NAME, tmp_path / "s", steps=40, games=2, settings=settings)
    store = Store.open(tmp_path / "s")
    assert {episode.stream for episode in store.episodes} == {0, 1} and np.ptp(store.read(0).audio)
    table = evaluate(NAME, episodes=2, games=2, settings=settings)
    assert table["length"].tolist() == [10, 10]
