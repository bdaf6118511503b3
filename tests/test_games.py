"""Every machine behind the one interface: contract, bad input, silence, many games at once"""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import check_env

from metabonk.core.errors import MissingLibrary, RomError, SilentSound, UsageError
from metabonk.play import doom, game, gameboy, gameboy_files, machine, vector
from metabonk.play.game import GameConfig, games, make_game
from metabonk.play.machine import Shrink, Sound

pytestmark = pytest.mark.filterwarnings("ignore")
ALL = ["bonk", "atari:ms_pacman", "doom:defend_the_center", "rooms", "gym:CartPole-v1", "minatar:breakout"]

# While A is held: switch the screen off and on, start a tone on channel 2, and turn the palette over.
BEEP = bytes.fromhex(
    "3e80e026 3effe025 3e77e024"  # sound on, all channels to both sides, full volume
    "3e10e000 f000 e601 20f6"  # wait for A
    "3e00e040 3e91e040"  # screen off, screen on: the tick ends early
    "3ef0e017 3e80e016 3e00e018 3e87e019"  # a square wave of 512 Hz
    "3e1be047 18fe"  # palette turned over; wait for ever
)


@pytest.fixture
def beeper(tmp_path):
    path = tmp_path / "beep.gb"
    path.write_bytes(gameboy_files.tiny_rom(BEEP, "BEEP"))
    return f"gameboy:{path}"


def episode(env, steps=12, seed=3):
    "Everything that a seeded episode of fixed actions shows"
    rng, rows = np.random.default_rng(0), []
    observation, info = env.reset(seed=seed)
    rows.append((observation["image"].tobytes(), observation["audio"].tobytes(), 0.0, info["clock"], info["executed"]))
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        rows.append((observation["image"].tobytes(), observation["audio"].tobytes(), reward, info["clock"], info["executed"]))
        if terminated or truncated:
            break
    return rows


# --- the contract


@pytest.mark.parametrize("name", ALL)
def test_gymnasium_accepts_it(name):
    env = gym.make("MetaBonk/Game-v0", game=name, max_steps=50)
    check_env(env.unwrapped)
    env.close()


def test_bonk_has_an_id_of_its_own():
    env = gym.make("MetaBonk/Bonk-v0", music=0)
    assert env.unwrapped.name == "bonk" and env.unwrapped.config.settings == {"music": 0}
    env.close()


@pytest.mark.parametrize("name", ALL)
def test_observation_info_and_clock(name):
    env = make_game(name)
    observation, info = env.reset(seed=0)
    samples = observation["audio"].shape[1]
    for _ in range(8):
        assert observation in env.observation_space
        assert observation["audio"].dtype == np.int16 and observation["audio"].flags.c_contiguous
        assert info["clock"]["samples"] == samples
        assert abs(samples - info["clock"]["ticks"] * env.sample_rate / env.clock_rate) < 1
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert reward == pytest.approx(sum(info["terms"].values()))
        samples += observation["audio"].shape[1]
        if terminated or truncated:
            break
    env.close()


@pytest.mark.parametrize("name", ALL)
def test_an_episode_is_repeated_by_its_seed(name):
    env = make_game(name, sticky_actions=0.3)
    env.reset(seed=11)
    _, info = env.reset()
    assert info["seed"] != 11
    assert episode(env, seed=info["seed"]) == episode(make_game(name, sticky_actions=0.3), seed=info["seed"])
    env.close()


@pytest.mark.parametrize("name", ["bonk", "atari:ms_pacman", "doom:defend_the_center", "gym:CartPole-v1"])
def test_another_seed_is_another_episode(name):
    env = make_game(name)
    assert episode(env, 40, seed=1) != episode(env, 40, seed=2)
    env.close()


def test_sticky_actions_repeat_the_last_executed_one():
    env, sticks, last = make_game("minatar:freeway", sticky_actions=0.25), 0, 0
    env.reset(seed=0)
    for number in range(2000):
        wanted = number % 3
        *_, info = env.step(wanted)
        assert info["executed"] in (wanted, last)
        sticks += info["executed"] != wanted
        last = info["executed"]
    assert 0.15 < sticks / 2000 < 0.27  # a quarter, less the steps whose action would have been the same


def test_the_end_of_an_episode():
    env = make_game("bonk", max_steps=2)
    with pytest.raises(UsageError, match="reset"):
        env.step(0)
    env.reset(seed=0)
    assert env.step(0)[3] is False and env.step(0)[3] is True
    with pytest.raises(UsageError, match="over"):
        env.step(0)
    env.close()
    with pytest.raises(UsageError, match="closed"):
        env.step(0)


@pytest.mark.parametrize("profile", ["bonk", "none"])
def test_bonk_ends_when_the_hero_falls(profile):
    env = make_game("bonk", hp=1, profile=profile, actions=("noop", "left", "right", "up", "down"))
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(4000):
        _, _, terminated, truncated, _ = env.step(int(rng.integers(5)))
        if terminated:
            break
    assert terminated and not truncated and env.machine.read(0xC033, 1) == b"\1"


def test_milestones_are_those_of_the_episode():
    env = make_game("bonk", image_size=(16, 16), settings={"start_screen": 8})
    assert env.milestones and set(env.milestones.values()) == {None}
    rng = np.random.default_rng(0)
    env.reset(seed=1)
    for step in range(1, 400):
        info = env.step(int(rng.integers(env.action_space.n)))[-1]
        assert env.milestones["first_coin"] == (step if info["probes"]["coins"] else None)
        if info["probes"]["coins"]:
            break
    reached = env.milestones
    assert reached["first_coin"]
    env.step(0)
    assert env.milestones["first_coin"] == reached["first_coin"]
    env.reset(seed=1)
    assert set(env.milestones.values()) == {None}
    assert make_game("minatar:breakout").milestones == {}


def test_a_machine_that_loses_a_tick_of_sound_is_caught(monkeypatch):
    env = make_game("bonk")
    env.reset(seed=0)
    whole = env.machine.sound
    monkeypatch.setattr(env.machine, "sound", lambda pieces: whole(pieces[1:]))
    with pytest.raises(game.OutOfSync, match="samples"):
        env.step(0)


def test_snapshots_continue_bit_for_bit():
    env = make_game("bonk", sticky_actions=0.2)
    episode(env, 25)
    moment = env.snapshot()

    def later():
        rows = []
        for action in (1, 5, 3, 9, 2, 2, 8, 0, 4, 6):
            observation, reward, _, _, info = env.step(action)
            rows.append((observation["image"].tobytes(), observation["audio"].tobytes(), reward, info))
        return rows

    first = later()
    env.restore(moment)
    assert later() == first
    fresh = make_game("bonk", sticky_actions=0.2)
    fresh.reset(seed=99)
    env.close()
    env = fresh
    env.restore(moment)
    assert later() == first


@pytest.mark.parametrize("name", ["atari:pong", "doom:basic", "minatar:breakout"])
def test_machines_that_cannot_be_restored_exactly_refuse(name):
    env = make_game(name)
    env.reset(seed=0)
    with pytest.raises(UsageError, match="replay the episode"):
        env.snapshot()
    env.close()


# --- pictures and sounds


SIZES = [((144, 160), (64, 64)), ((210, 160), (84, 84)), ((9, 7), (4, 12)), ((120, 160), (30, 40))]


@pytest.mark.parametrize("source,target", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shrinking_is_exact(source, target, channels):
    picture = np.random.default_rng(1).integers(0, 256, (*source, channels), np.uint8)
    small = Shrink(source, target)(picture)
    assert small.shape == (*target, 3) and small.dtype == np.uint8
    for y, x, c in [(0, 0, 0), (target[0] - 1, target[1] - 1, 2), (1, 2, 1)]:
        top, left = Fraction(y * source[0], target[0]), Fraction(x * source[1], target[1])
        high, wide = Fraction(source[0], target[0]), Fraction(source[1], target[1])
        total = Fraction(0)
        for i in range(source[0]):
            for j in range(source[1]):
                over = min(Fraction(i + 1), top + high) - max(Fraction(i), top)
                across = min(Fraction(j + 1), left + wide) - max(Fraction(j), left)
                if over > 0 and across > 0:
                    total += over * across * int(picture[i, j, min(c, channels - 1)])
        assert small[y, x, c] == int(total / (high * wide) + Fraction(1, 2))


def test_shrinking_works_without_scipys_inner_function(monkeypatch):
    picture = np.random.default_rng(1).integers(0, 256, (144, 160, 4), np.uint8)
    fast = Shrink((144, 160), (64, 64))(picture)
    monkeypatch.setattr(machine, "csr_matvecs", None)
    assert (Shrink((144, 160), (64, 64))(picture) == fast).all()


def test_native_size_is_the_machines_picture():
    env = make_game("bonk", image_size=None)
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (144, 160, 3)
    assert (observation["image"] == env.machine._boy.screen.ndarray[..., :3]).all()
    assert (env.render() == observation["image"]).all()


def test_the_space_of_sounds():
    space = Sound(2, 10, seed=0)
    samples = [space.sample() for _ in range(200)]
    assert all(sample in space for sample in samples) and {s.shape[1] for s in samples} == set(range(11))
    assert np.zeros((2, 11), np.int16) not in space and np.zeros(4, np.int16) not in space and [] not in space
    restored = space.from_jsonable(space.to_jsonable(samples))
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(samples, restored, strict=True))
    assert space == Sound(2, 10) != Sound(2, 11)


def test_console_levels_become_int16_exactly(beeper):
    env = make_game(beeper, actions=("noop", "a"))
    env.reset(seed=0)
    env.step(1)
    audio = env.step(1)[0]["audio"]
    assert set(np.unique(audio)) == {0, 15 * 512}  # one channel at full volume: 15 steps of 512
    flips = np.flatnonzero(np.diff(audio[0]))
    assert np.diff(flips).mean() == pytest.approx(32_768 / 512 / 2, abs=0.5)  # half a period of 512 Hz


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_768, 44_100, 48_000])
def test_ticks_that_end_early_keep_their_true_length(beeper, rate):
    env = make_game(beeper, ticks_per_step=1, sample_rate=rate, actions=("noop", "a"))
    env.reset(seed=0)
    lengths = [env.step(action)[0]["audio"].shape[1] for action in (0, 0, 1, 1, 1, 1)]  # every step checks the clock
    usual = rate * 70_224 // 4_194_304
    short = [length for length in lengths if length < usual * 0.9]
    assert short and all(length in (usual, usual + 1) for length in lengths if length not in short)


# --- actions


def test_actions_by_name():
    env = make_game("bonk", actions=("noop", "right+b", "up_a"))
    assert env.action_names == ["noop", "right+b", "up_a"] and env.action_space.n == 3
    assert env.machine._buttons == [(), ("right", "b"), ("up", "a")]
    for name, wrong in (("bonk", "jump"), ("atari:pong", "jump"), ("doom:basic", "atack"), ("minatar:breakout", "fly")):
        with pytest.raises(UsageError, match="unknown"):
            make_game(name, actions=("noop", wrong))
    with pytest.raises(UsageError, match="twice"):
        make_game("bonk", actions=("a", "a"))


@pytest.mark.parametrize("action", [-1, 99, "left", None, np.array([1, 2])])
def test_actions_that_are_none(action):
    env = make_game("minatar:breakout")
    env.reset(seed=0)
    with pytest.raises(UsageError, match="is not one of 0 noop"):
        env.step(action)


# --- bad input


@pytest.mark.parametrize(
    "name,config,words",
    [
        ("bonkk", {}, "did you mean 'bonk'"),
        ("bonk", {"musik": 1}, "did you mean 'music'"),
        ("bonk", {"music": 9}, "from 0 to 2"),
        ("bonk", {"ticks_per_step": 0}, "at least 1"),
        ("bonk", {"image_size": (64, 0)}, "image_size"),
        ("bonk:drak", {}, "did you mean 'dark'"),
        ("bonk:dark", {"musik": 1}, "did you mean 'music'"),
        ("gameboy", {}, "gameboy:PATH"),
        ("atari:ms_pakman", {}, "did you mean 'ms_pacman'"),
        ("atari:pong", {"sample_rate": 44_100}, "30720"),
        ("atari:pong", {"mode": 77}, "unknown mode"),
        ("atari:pong", {"profile": "bonk"}, "profile"),
        ("doom:defend_the_centre", {}, "did you mean 'defend_the_center'"),
        ("doom:basic", {"sample_rate": 48_000}, "44100, 22050, 11025"),
        ("doom:basic", {"resolution": "1x1"}, "unknown resolution"),
        ("gym:CartPol-v1", {}, "did you mean 'CartPole-v1'"),
        ("gym:CartPole-v1", {"sample_rate": 8_000}, "no sound"),
        ("minatar:brakout", {}, "did you mean 'breakout'"),
        ("bonk", {"render_mode": "human"}, "render mode"),
        ("bonk", {"profile": "bonkers"}, "unknown profile"),
    ],
)
def test_wrong_names_and_values(name, config, words):
    with pytest.raises(UsageError, match=words):
        make_game(name, **config)


def test_controls_are_counted_between_their_limits():
    ours, theirs = make_game("gym:Pendulum-v1", image_size=None), gym.make("Pendulum-v1")
    assert ours.action_space == gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    for share in (1.0, -0.25):
        ours.reset(seed=3)
        theirs.reset(seed=3)
        theirs.unwrapped.state = np.array(ours.machine._env.unwrapped.state)
        reward = ours.step(np.array([share], np.float32))[1]
        assert reward == pytest.approx(theirs.step(np.array([2 * share], np.float32))[1], rel=1e-5)
    ours.close()


def test_cartridges_that_are_none(tmp_path):
    rom = gameboy_files.tiny_rom()
    damaged = rom[:0x140] + b"\xff" + rom[0x141:]
    for content, words in ((b"hello", "no Game Boy ROM"), (rom[:-1], "no Game Boy ROM"), (damaged, "checksum")):
        (tmp_path / "x.gb").write_bytes(content)
        with pytest.raises(RomError, match=words):
            make_game(f"gameboy:{tmp_path / 'x.gb'}")
    with pytest.raises(RomError, match="can't read"):
        make_game(f"gameboy:{tmp_path / 'nowhere.gb'}")
    (tmp_path / "x.gb").write_bytes(rom)
    with pytest.raises(RomError, match="sha1"):
        make_game(f"gameboy:{tmp_path / 'x.gb'}", sha1="0" * 40)
    with pytest.raises(RomError, match="ea9bcae617fdf159b045185467ae58b2e4a48b9a"):
        make_game(f"gameboy:{tmp_path / 'x.gb'}", profile="pokemon_red")


def test_a_library_that_is_not_installed(monkeypatch):
    there = game.importlib.util.find_spec
    monkeypatch.setattr(game.importlib.util, "find_spec", lambda name: None if name == "vizdoom" else there(name))
    with pytest.raises(MissingLibrary, match=r"metabonk\[doom\]"):
        make_game("doom:basic")
    rows = {row["game"]: row["status"] for row in games()}
    assert rows["bonk"] == "ready" and "vizdoom" in rows["doom:defend_the_center"]


# --- silence


def test_doom_without_openal(monkeypatch):
    doom.hearing_test.cache_clear()
    monkeypatch.setattr(doom.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(MissingLibrary, match="libopenal1"):
        make_game("doom:basic")
    doom.hearing_test.cache_clear()
    make_game("doom:basic", sample_rate=0).close()  # no sound on purpose needs no library


def test_doom_with_its_sound_switched_off():
    with pytest.raises(SilentSound, match="-nosound"):
        make_game("doom:basic", game_args="-nosound")


def test_atari_with_its_sound_switched_off():
    env = make_game("atari:pong")
    env.machine._ale.setBool("sound_obs", False)
    whole = env.machine._load

    def deaf(seed):
        env.machine.sample_rate = 0
        whole(seed)
        env.machine.sample_rate = 30_720

    env.machine._load = deaf
    with pytest.raises(SilentSound, match="sound_obs"):
        env.reset(seed=0)


def test_gameboy_with_its_sound_switched_off(monkeypatch):
    env = make_game("bonk")
    whole = gameboy.pyboy.PyBoy
    monkeypatch.setattr(gameboy.pyboy, "PyBoy", lambda *a, **k: whole(*a, **{**k, "sound_emulated": False}))
    with pytest.raises(SilentSound, match="sound_emulated"):
        env.reset(seed=0)


@pytest.mark.parametrize("name", ["bonk", "atari:pong", "doom:basic"])
def test_no_sound_on_purpose(name):
    loud, quiet = make_game(name), make_game(name, sample_rate=0)
    a, b = loud.reset(seed=1)[0], quiet.reset(seed=1)[0]
    assert quiet.sample_rate == 0 and b["audio"].shape[1] == 0 < a["audio"].shape[1]
    for action in (1, 0, 1):
        a, b = loud.step(action)[0], quiet.step(action)[0]
    assert b["audio"].shape[1] == 0 < a["audio"].shape[1]
    loud.close()
    quiet.close()


def test_nothing_is_left_lying_about(tmp_path, monkeypatch, beeper):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("doom:basic", "atari:pong", beeper, "bonk"):
        env = make_game(name)
        env.reset(seed=0)
        env.step(0)
        env.close()
    assert [path.name for path in tmp_path.rglob("*")] and not list((tmp_path / "here").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beep.gb", "here"]


# --- configuration


def test_a_configuration_makes_the_same_game_again():
    env = make_game("bonk", music=2, decoys=40, sticky_actions=0.1, image_size=None, weights={"hurt": 0.0})
    again = make_game("bonk", **env.config.to_dict())
    assert again.config == env.config and again.config.fingerprint() == env.config.fingerprint()
    assert episode(env, 5) == episode(again, 5)
    assert GameConfig.from_dict(env.config.to_dict()) == env.config


# --- many games at once


@pytest.mark.parametrize("name", ["bonk", "atari:pong", "doom:basic", "minatar:breakout"])
def test_all_ways_of_running_many_games_agree(name):
    def play(how):
        games = vector.make_vector(name, 3, how=how, workers=2, max_steps=5)
        rows = []
        observation, infos = games.reset(seed=5)
        for number in range(8):
            rows.append((observation["image"].tobytes(), [a.tobytes() for a in observation["audio"]],
                         [info["clock"] for info in infos["games"]], infos["first"].tolist()))  # fmt: skip
            assert observation in games.observation_space
            observation, rewards, terminated, truncated, infos = games.step([number % 2, 1, 0])
            assert rewards.shape == terminated.shape == truncated.shape == (3,)
        games.close()
        return rows

    serial = play("serial")
    assert serial == play("threads") == play("processes")
    assert [row[3] for row in serial] == [[True] * 3] + [[False] * 3] * 5 + [[True] * 3] + [[False] * 3]
    alone = make_game(name)
    seed = vector.spawn_seeds(5, 3)[1]
    assert alone.reset(seed=seed)[0]["image"].tobytes() == np.frombuffer(serial[0][0], np.uint8).reshape(3, -1)[1].tobytes()
    alone.close()


@pytest.mark.parametrize("how", ["serial", "threads", "processes"])
def test_errors_of_many_games_are_the_errors_themselves(how):
    with pytest.raises(UsageError, match="did you mean 'music'"):
        vector.make_vector("bonk", 2, how=how, musik=0)
    games = vector.make_vector("bonk", 2, how=how, workers=2)
    games.reset(seed=0)
    with pytest.raises(UsageError, match="action 99"):
        games.step([0, 99])
    for wrong in ([0], [0, 0, 0]):
        with pytest.raises(UsageError, match="2 games"):
            games.step(wrong)
    games.close()
    games.close()
    with pytest.raises(UsageError, match="closed"):
        games.step([0, 0])


def test_a_worker_that_dies_is_noticed():
    games = vector.make_vector("bonk", 2, how="processes", workers=2)
    games.reset(seed=0)
    games._workers[1].process.kill()
    with pytest.raises(Exception, match="ended with status -9"):
        games.step([0, 0])
    games.close()
    assert all(worker.process.returncode is not None for worker in games._workers)


def descendants(pid):
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["bonk", "doom:basic"])
def test_no_process_outlives_its_parent(sign, name, tmp_path):
    script = tmp_path / "play.py"  # no main guard: none is needed
    script.write_text(textwrap.dedent(f"""
        import signal
        from metabonk.play.vector import make_vector
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin deaf to Ctrl-C
        games = make_vector({name!r}, 2, how="processes", workers=2)
        games.reset(seed=0)
        print("ready", flush=True)
        while True:
            games.step([0, 0])
            if games.step([0, 0])[2].any():
                games.reset()
    """))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    pipe = subprocess.PIPE
    parent = subprocess.Popen([sys.executable, script], stdout=pipe, stderr=pipe, text=True, env=environment,
                              start_new_session=True, cwd=tmp_path)  # fmt: skip
    children = []
    try:
        assert parent.stdout.readline() == "ready\n", parent.stderr.read()
        children = descendants(parent.pid)
        assert len(children) >= 2
        parent.send_signal(sign) if sign != signal.SIGINT else os.killpg(parent.pid, sign)  # Ctrl-C reaches the whole group
        parent.wait(20)
        left = psutil.wait_procs(children, timeout=20)[1]
        assert not left
    finally:
        parent.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        parent.wait()
        parent.stdout.close()
        parent.stderr.close()


def test_a_world_is_a_name_for_settings_that_single_ones_override():
    named, spelled = make_game("bonk:dark", hp=3), make_game("bonk", chargers=0, darkness=2, opponents=0, start_screen=8, hp=3)
    seen = [game.reset(seed=5)[1]["probes"] for game in (named, spelled, make_game("bonk", hp=3))]
    assert seen[0] == seen[1] != seen[2]
    assert seen[0]["dark"] == 1 and seen[0]["hp"] == 3 and named.name == "bonk"
