"""Environments that others publish: what keeps to Gymnasium's rules is played, the rest is told apart in one line"""

import sys

import gymnasium as gym
import numpy as np
import pytest

from metabonk.core.errors import MetaBonkError, StoreError, UsageError
from metabonk.play import vector
from metabonk.play.anygym import as_picture, own_name
from metabonk.play.game import OutOfSync, make_game
from metabonk.play.synchrony import clock_error, take
from metabonk.record.cache import Cache
from metabonk.record.exchange import from_dataset, to_dataset
from metabonk.record.experience import Schema
from metabonk.record.minari import export_minari, import_minari
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig, SequenceLoader, Sequences
from metabonk.record.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")
PICTURE = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


class Toy(gym.Env):
    "Counts its steps; `picture` is what it renders"

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space, action_space = gym.spaces.Box(-9, 9, (2,)), gym.spaces.Discrete(2)

    def __init__(self, render_mode=None, picture=PICTURE, fail_at=None):
        self.render_mode, self._picture, self._fail_at = render_mode, picture, fail_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self._fail_at:
            raise ValueError("the physics\nexploded")
        return np.full(2, self.steps, np.float32), 1.0, False, False, {}

    def render(self):
        return self._picture


class OldStep(Toy):
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, {}


class OldReset(Toy):
    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32)


class Seedless(Toy):
    def reset(self):
        return np.zeros(2, np.float32), {}


class Blind(Toy):
    metadata = {"render_modes": ["human", "ansi"]}


class NoMode(Toy):
    def __init__(self):
        super().__init__()


@pytest.fixture(autouse=True)
def registered():
    before = dict(gym.registry)
    for cls in (Toy, OldStep, OldReset, Seedless, Blind, NoMode):
        gym.register(f"Test/{cls.__name__}-v2", cls, max_episode_steps=7)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def play(name, steps=9, **config):
    env = make_game(name, **config)
    env.reset(seed=1)
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            break
    env.close()
    return env, observation, env._steps


@pytest.mark.parametrize("name", ["Test/Toy-v2", "Test/Toy"])
def test_an_environment_keeps_its_time_limit(name):
    assert play(f"gym:{name}")[2] == 7
    assert play(f"gym:{name}", kwargs={"max_episode_steps": 3})[2] == 3
    assert play(f"gym:{name}", kwargs={"max_episode_steps": -1})[2] == 9


@pytest.mark.parametrize(
    "what,kwargs,words",
    [
        ("Test/Toi-v2", {}, "did you mean 'Test/Toy-v2'"),
        ("Test/Toy v2", {}, "did you mean 'Test/Toy-v2'"),
        (" Test/Toy-v2", {}, "did you mean 'Test/Toy-v2'"),
        ("Test/Toy-v1", {}, "v1.*deprecated.*Test/Toy-v2"),
        ("Test/Toy-v3", {}, "unknown Gymnasium environment"),
        ("Test/Toy-v2", {"colour": 1}, "unexpected keyword argument 'colour'"),
        ("Test/Toy-v2", {"render_mode": "human"}, "leave id and render_mode out"),
        ("Test/OldStep-v2", {}, r"step\(\) gives 4 values.*Shimmy"),
        ("Test/OldReset-v2", {}, r"reset\(\) gives a bare ndarray.*Shimmy"),
        ("Test/Seedless-v2", {}, r"reset\(\) raised TypeError.*seed"),
        ("Test/Blind-v2", {}, "does not render pictures"),
        ("Test/NoMode-v2", {}, "render_mode"),
        ("Test/Toy-v2", {"fail_at": 1}, r"step\(\) raised ValueError: the physics exploded"),
        ("ALE/Pong-v5", {}, "use atari:pong, which has sound"),
        ("PongNoFrameskip-v4", {}, "use atari:pong,"),
        ("ALE/UpNDown-v5", {}, "use atari:up_n_down,"),
        ("ALE/MsPackman-v5", {}, "use atari:ms_pacman,"),
        ("VizdoomBasic-v1", {}, "use doom:"),
        ("MetaBonk/Bonk-v0", {}, "use bonk,"),
    ],
)
def test_what_cannot_be_played_is_told_in_one_line(what, kwargs, words):
    with pytest.raises(UsageError, match=words) as error:
        make_game(f"gym:{what}", kwargs=kwargs)
    assert "\n" not in str(error.value)


def test_an_environment_of_somebody_else_keeps_its_name():
    gym.register("Pong-v2", Toy)
    assert own_name("Pong-v2") is None and own_name("Pong-v0") == "atari:pong"


def test_an_environment_that_breaks_is_one_line():
    env = make_game("gym:Test/Toy-v2", kwargs={"fail_at": 3})
    env.reset(seed=0)
    env.step(0)
    env.step(0)
    with pytest.raises(MetaBonkError, match=r"broke after 2 steps: step\(\) raised ValueError: the physics exploded"):
        env.step(0)


def test_a_module_is_imported_only_where_the_machine_allows_it(tmp_path, monkeypatch):
    (tmp_path / "evil_envs.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for setting in ("", "other,evil"):
        monkeypatch.setenv("METABONK_ALLOW_IMPORT", setting)
        with pytest.raises(UsageError, match="METABONK_ALLOW_IMPORT=evil_envs"):
            make_game("gym:evil_envs:Test/Toy-v2")
        assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("METABONK_ALLOW_IMPORT", "other,evil_envs")
    assert make_game("gym:evil_envs:Test/Toy-v2").name == "gym:evil_envs:Test/Toy-v2"
    assert (tmp_path / "ran").exists()
    monkeypatch.delenv("METABONK_ALLOW_IMPORT")
    assert "evil_envs" in sys.modules and make_game("gym:evil_envs:Test/Toy-v2")  # imported already: nothing runs
    with pytest.raises(UsageError, match="nowhere_envs"):
        make_game("gym:nowhere_envs:Test/Toy-v2")
    monkeypatch.setenv("METABONK_ALLOW_IMPORT", "nowhere_envs")
    with pytest.raises(UsageError, match="can't be imported: ModuleNotFoundError"):
        make_game("gym:nowhere_envs:Test/Toy-v2")


@pytest.mark.parametrize(
    "picture",
    [PICTURE, PICTURE[..., 0], PICTURE[..., :1], np.moveaxis(PICTURE, 2, 0), np.concatenate([PICTURE, PICTURE[..., :1]], 2)],
    ids=["RGB", "grey", "one channel", "channels first", "RGBA"],
)
def test_kinds_of_picture(picture):
    _, observation, _ = play("gym:Test/Toy-v2", image_size=None, kwargs={"picture": picture})
    grey = picture.ndim == 2 or picture.shape[-1] == 1
    assert (observation["image"] == (PICTURE[..., :1] if grey else PICTURE)).all()
    small = make_game("gym:Test/Toy-v2", image_size=(4, 3), kwargs={"picture": picture})
    assert (small.reset(seed=0)[0]["image"][..., 0] == 15 + np.array([0, 6, 12])[None] - 4 + 36 * np.arange(4)[:, None]).all()


@pytest.mark.parametrize(
    "picture",
    [np.zeros((8, 6, 5), np.uint8), np.zeros((8, 6, 2), np.uint8), PICTURE / 255, PICTURE.astype(np.int64), None, [1],
     np.zeros((0, 6, 3), np.uint8), PICTURE[None, :, :, :]],
)  # fmt: skip
def test_what_is_no_picture(picture):
    with pytest.raises(UsageError, match="a picture is uint8"):
        make_game("gym:Test/Toy-v2", kwargs={"picture": picture})
    with pytest.raises(UsageError):
        as_picture(picture)


# --- sound


class Beeper(Toy):
    "Counts its samples aloud: sample number n of the episode is n, and -n on the other side"

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30, "sample_rate": 8_000}

    def __init__(self, render_mode=None, place="info", wrong=None, fps=30, rate=8_000):
        super().__init__(render_mode)
        self._place, self._wrong = place, wrong or (lambda sound: sound)
        if place == "observation":
            self.observation_space = gym.spaces.Dict(audio=gym.spaces.Box(-(2**15), 2**15 - 1, (2, 266), np.int16))
        self.metadata = {**self.metadata, "render_fps": fps, "sample_rate": rate}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        step = 8_000 / 30
        count = np.arange(int((self.steps - 1) * step), int(self.steps * step))
        sound = np.stack([count, -count]).astype(np.int16)
        if self.steps == 3:
            sound = self._wrong(sound)
        if self._place == "mono":
            sound = sound[0]
        info, observation = ({}, {"audio": sound}) if self._place == "observation" else ({"audio": sound}, observation)
        return observation, reward, terminated, truncated, info


@pytest.fixture
def beeper(registered):
    gym.register("Test/Beeper-v0", Beeper)
    return "gym:Test/Beeper-v0"


@pytest.mark.parametrize("place", ["info", "observation", "mono"])
@pytest.mark.parametrize("ticks", [1, 4])
def test_the_sound_of_an_environment_is_kept_sample_by_sample(beeper, place, ticks):
    env = make_game(beeper, ticks_per_step=ticks, kwargs={"place": place})
    kept = take(env, [0] * 30)
    count = np.arange(8_000 * 30 * ticks // 30)
    assert (kept.stream == (count if place == "mono" else np.stack([count, -count]))).all()
    assert (env.sample_rate, env.channels, kept.audio[0].shape[1]) == (8_000, 1 if place == "mono" else 2, 0)
    assert clock_error(kept, env.clock_rate, env.sample_rate) < 1
    assert all(sound in env.observation_space["audio"] for sound in kept.audio)


@pytest.mark.parametrize(
    "wrong",
    [lambda s: s[:, 1:-1], lambda s: np.pad(s, ((0, 0), (1, 2))), lambda s: s.astype(np.float32), lambda s: s[:1],
     lambda s: s.T, lambda s: None, lambda s: s.tolist()],
    ids=["short", "long", "float", "one channel", "turned", "none", "list"],
)  # fmt: skip
def test_wrong_sound_names_the_step(beeper, wrong):
    env = make_game(beeper, kwargs={"wrong": wrong})
    env.reset(seed=0)
    env.step(0)
    env.step(0)
    with pytest.raises(MetaBonkError, match=r"sound of step 3 is .*, not int16 \(2, 266 or 267\)"):
        env.step(0)


def test_sound_that_drifts_from_the_clock_is_found(beeper):
    env = make_game(beeper, kwargs={"fps": 29.97})
    env.reset(seed=0)
    with pytest.raises(OutOfSync):
        for _ in range(9):
            env.step(0)


def test_sound_is_declared_in_full_or_switched_off(beeper):
    for kwargs in ({"fps": None}, {"rate": 0}):
        with pytest.raises(UsageError, match="sound needs all three"):
            make_game(beeper, kwargs=kwargs)
        quiet = make_game(beeper, kwargs=kwargs, sample_rate=0)
        assert quiet.sample_rate == 0 and quiet.reset(seed=0)[0]["audio"].shape == (1, 0)
    with pytest.raises(UsageError, match="whole number"):
        make_game(beeper, kwargs={"rate": 44_100.5})
    with pytest.raises(UsageError, match="sounds at 8000 Hz: leave sample_rate=44100 out"):
        make_game(beeper, sample_rate=44_100)
    assert make_game(beeper, sample_rate=8_000).sample_rate == 8_000


def test_the_sound_of_an_environment_is_recorded(beeper, tmp_path):
    record(beeper, tmp_path / "s", steps=40, settings={"max_steps": 12})
    steps = Store.open(tmp_path / "s").read(0)
    assert steps.audio_length[0] == 0 and (steps.audio[0] == np.arange(steps.audio.shape[1])).all() and len(steps) == 13


# --- numbers


class Numbers(Toy):
    "Observes numbers of several kinds"

    observation_space = gym.spaces.Dict(
        speed=gym.spaces.Box(-9, 9, (), np.float64), place=gym.spaces.Box(-9, 9, (40,)),
        view=gym.spaces.Box(0, 255, (8, 6, 3), np.uint8), name=gym.spaces.Text(5),
    )  # fmt: skip

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._see(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return self._see(), *rest

    def _see(self):
        place = np.full(40, self.steps, np.float32)
        return {"view": PICTURE, "speed": np.float64(-self.steps), "place": place, "name": "toy"}


def test_numbers_are_observed_recorded_and_read_again(registered, tmp_path):
    gym.register("Test/Numbers-v0", Numbers)
    name = "gym:Test/Numbers-v0"
    env = make_game(name)
    env.reset(seed=0)
    seen = env.step(0)[0]
    assert seen in env.observation_space and seen["vector"].dtype == np.float32
    assert seen["vector"].tolist() == [1.0] * 40 + [-1.0]
    assert "vector" not in make_game(name, vector=False).reset(seed=0)[0]
    record(name, tmp_path / "s", steps=30, settings={"max_steps": 9})
    store = Store.open(tmp_path / "s")
    wanted = np.arange(10)[:, None] * np.array([1] * 40 + [-1])
    steps = store.read(0)
    assert store.schema.vector == 41 and (steps.vector == wanted).all() and steps.vector.dtype == np.float32
    assert (steps[3:5].vector == wanted[3:5]).all() and (steps[4].vector == wanted[4]).all()
    batch = next(iter(SequenceLoader(Sequences(Cache.build(store), 4), SequenceConfig(batch_size=3))))
    assert batch.vector.shape == (3, 4, 41) and (batch.vector[..., 0] == batch.step).all()
    rows = to_dataset(store, cache=tmp_path / "d")
    again = from_dataset(rows, tmp_path / "t")
    back = import_minari(export_minari(store, tmp_path / "m"), tmp_path / "u")
    assert (again.read(0).vector == wanted).all() and (back.read(0).vector == wanted).all()


def test_games_side_by_side_observe_numbers():
    games = vector.make_vector("gym:CartPole-v1", 2, how="serial")
    seen, _ = games.reset(seed=0)
    assert seen["vector"].shape == (2, 4) and seen in games.observation_space
    games.close()


@pytest.mark.parametrize("wrong", [np.full(4, np.nan), np.full(4, 1e200), np.zeros(3)])
def test_numbers_that_are_none_are_refused(wrong):
    env = make_game("gym:CartPole-v1")
    env.reset(seed=0)
    env.machine._observation = wrong
    with pytest.raises(MetaBonkError, match="4 finite numbers"):
        env.machine.vector()


def test_stores_without_numbers_still_open(tmp_path):
    record("gym:CartPole-v1", tmp_path / "s", steps=9, settings={"vector": False})
    schema = Store.open(tmp_path / "s").schema
    told = schema.to_dict()
    told.pop("vector")
    assert Schema.from_dict(told) == schema and Store.open(tmp_path / "s").read(0).vector is None
    with pytest.raises(StoreError, match="vector is"):
        record("gym:CartPole-v1", tmp_path / "s", steps=9)
