"""A cartridge that the user names: begun past its title, rewarded by a profile, through the command line, with faults"""

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metabonk.core.errors import FolderError, MetaBonkError, RomError, UsageError
from metabonk.core.files import pinned, unpinned
from metabonk.measure.evaluation import evaluate
from metabonk.play import bonk, gameboy, gameboy_files
from metabonk.play.game import Game, make_game
from metabonk.play.profile import PROFILES
from metabonk.record.recorder import record
from metabonk.record.recording import Recorder
from metabonk.record.store import Store

ROOT = Path(__file__).parents[1]
BOOT = "noop 100, start 4, noop 60"
PHASE = bonk.symbols()["phase"].address  # 1 title, 2 play


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "A cartridge, a profile, and a state at which the hero runs to the right"
    shutil.copy(bonk.ROM, tmp_path / "game.gb")
    shutil.copy(PROFILES / "bonk.yaml", tmp_path / "mine.yaml")
    with playing(tmp_path, profile="generic") as game:
        game.reset(seed=0)
        for button, steps in (("noop", 25), ("start", 1), ("right", 20)):
            for _ in range(steps):
                game.step(game.action_names.index(button))
        game.write_state(tmp_path / "start.state")
    return tmp_path


class playing:  # noqa: N801
    "The cartridge in a folder as a game, closed at the end; `state` is looked for in the folder"

    def __init__(self, folder: Path, **settings: Any) -> None:
        if "state" in settings:
            settings["state"] = str(folder / settings["state"])
        self.game = make_game(f"gameboy:{folder / 'game.gb'}", **{"profile": "bonk", **settings})

    def __enter__(self) -> Game:
        return self.game

    def __exit__(self, *_: Any) -> None:
        self.game.close()


def look(observation: dict[str, np.ndarray]) -> tuple[bytes, bytes]:
    "Picture and sound"
    return observation["image"].tobytes(), observation["audio"].tobytes()


def episode(game: Game, seed: int, steps: int = 40) -> list[Any]:
    "Everything that an episode of fixed actions shows"
    observation, info = game.reset(seed=seed)
    rows: list[Any] = [(*look(observation), info["clock"], info["probes"])]
    generator = np.random.default_rng(0)
    for _ in range(steps):
        observation, reward, terminated, _, info = game.step(int(generator.integers(len(game.action_names))))
        rows.append((*look(observation), reward, info["clock"], info["probes"]))
        if terminated:
            break
    return rows


def earned(game: Game, steps: int = 300) -> float:
    "What random play gains, hits that it takes not counted"
    return sum(max(row[2], 0.0) for row in episode(game, 1, steps)[1:])


# --- the first moment


def test_random_play_earns_past_the_title_and_nothing_before_it(folder: Path) -> None:
    with playing(folder, ticks_per_step=12) as title:
        assert earned(title) == 0 and title.machine.read(PHASE, 1) == b"\1"
    for past in ({"boot": BOOT}, {"state": "start.state"}):
        with playing(folder, ticks_per_step=12, **past) as game:
            assert earned(game) > 0


@pytest.mark.parametrize("past", [{"boot": BOOT}, {"state": "start.state"}, {"state": "start.state", "boot": "left 9, noop 2"}])
def test_every_episode_begins_at_the_same_moment(folder: Path, past: dict[str, Any]) -> None:
    with playing(folder, **past) as game, playing(folder, **past) as fresh:
        first = episode(game, 1)
        assert episode(game, 1) == first and episode(game, 2) == first and episode(fresh, 3) == first


def test_what_follows_a_saved_moment_is_what_followed_it(folder: Path) -> None:
    with playing(folder, state="start.state") as game:
        game.reset(seed=0)
        for action in (3, 3, 5, 8):
            game.step(action)
        game.write_state(folder / "later.state")
        then = [look(game.step(0)[0]), *(look(game.step(action)[0]) for action in (4, 4, 1, 9))]
    with playing(folder, state="later.state") as game:
        again = [look(game.reset(seed=5)[0]), *(look(game.step(action)[0]) for action in (4, 4, 1, 9))]
    assert again == then
    with playing(folder, state="start.state") as game:  # a control: another moment goes on in another way
        assert [look(game.reset(seed=5)[0]), *(look(game.step(action)[0]) for action in (4, 4, 1, 9))] != then


def test_buttons_held_when_it_was_saved_are_let_go(folder: Path) -> None:
    with playing(folder, state="start.state") as game:
        game.reset(seed=0)
        xs = [game.step(0)[-1]["probes"]["x"] for _ in range(30)]
    assert xs[-1] == xs[-10], "the hero runs on"
    with playing(folder, state="start.state") as game:
        game.reset(seed=0)
        right = game.action_names.index("right")
        assert len({game.step(right)[-1]["probes"]["x"] for _ in range(30)}) > 10, "it could have run on"


def test_boot_follows_the_state(folder: Path) -> None:
    with playing(folder, state="start.state", boot="start 2, noop 10") as game:
        game.reset(seed=0)
        assert game.machine.read(PHASE, 1) == b"\3", "START in play is a pause"


def test_noops_tell_seeds_apart(folder: Path) -> None:
    with playing(folder, state="start.state", noops=30) as game:
        episodes = [episode(game, seed) for seed in (1, 2, 3, 4)]
        assert episode(game, 1) == episodes[0]
    assert len({row[0][1] for row in episodes}) >= 3


def test_a_silent_game_begins_from_a_state_with_sound(folder: Path) -> None:
    with playing(folder, state="start.state", sample_rate=0) as silent, playing(folder, state="start.state") as heard:
        silent.reset(seed=0)
        assert silent.machine.read(PHASE, 1) == b"\2"
        heard.reset(seed=0)
        silent.write_state(folder / "silent.state")
    with playing(folder, state="silent.state") as game:
        assert len(episode(game, 1)) == 41  # its clock and its sound go together: every step checks it


def test_a_state_of_pyboys_own(folder: Path) -> None:
    state, _, about = (folder / "start.state").read_bytes().rpartition(gameboy_files.STATE_LINE)
    assert about
    (folder / "game.gb.state").write_bytes(state)
    with playing(folder, state="game.gb.state") as theirs, playing(folder, state="start.state") as ours:
        assert episode(theirs, 1) == episode(ours, 1)
    boy = gameboy.pyboy.PyBoy(io.BytesIO(bonk.ROM.read_bytes()), window="null", sound_sample_rate=32_768, log_level="ERROR")
    boy.load_state(io.BytesIO((folder / "start.state").read_bytes()))  # and PyBoy takes ours
    assert boy.memory[PHASE] == 2
    boy.stop(save=False)


# --- faults


def fails(folder: Path, name: str, **settings: Any) -> MetaBonkError:
    "The error of a game that begins from this state"
    with pytest.raises(MetaBonkError) as caught, playing(folder, state=name, **settings) as game:
        game.reset(seed=0)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_state_that_is_not_there(folder: Path) -> None:
    error = fails(folder, "strat.state")
    assert isinstance(error, UsageError) and "there is no state" in str(error) and "start.state meant" in str(error)
    assert "check the path" in str(fails(folder, "nowhere/at-all"))
    assert "mine.yaml meant" in str(fails(folder, "start.state", profile=folder / "mien.yaml"))


def test_a_state_of_another_cartridge(folder: Path) -> None:
    rom = bytearray((folder / "game.gb").read_bytes())
    rom[-1] ^= 1  # the same title in another version
    (folder / "game.gb").write_bytes(rom)
    error = fails(folder, "start.state", profile="generic")
    assert isinstance(error, RomError) and str(error).count("'BONK' (sha1 ") == 2
    (folder / "game.gb").write_bytes(gameboy_files.tiny_rom(title="SOMEGAME"))
    assert "'SOMEGAME'" in str(fails(folder, "start.state", profile="generic"))


def test_a_state_cut_off_or_altered(folder: Path) -> None:
    whole = (folder / "start.state").read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        (folder / "cut.state").write_bytes(whole[:length])
        assert any(words in str(fails(folder, "cut.state")) for words in ("is cut off", "is damaged")), length
    altered = bytearray(whole)
    altered[70_000] ^= 1
    (folder / "cut.state").write_bytes(altered)
    assert "is damaged" in str(fails(folder, "cut.state"))


def test_a_bad_state_under_the_cartridges_name(folder: Path) -> None:
    state = (folder / "start.state").read_bytes().rpartition(gameboy_files.STATE_LINE)[0]
    for content, words in (
        (state[:-1], "cut off"), (state[:9], "cut off"), (b"", "cut off"),
        (state + b"more", "another one's"), (b"\xff" * 999, "newer version"),
    ):  # fmt: skip
        (folder / "game.gb.state").write_bytes(content)
        assert words in str(fails(folder, "game.gb.state"))
    (folder / "other.state").write_bytes(state)
    assert "call it game.gb.state" in str(fails(folder, "other.state"))


def test_a_state_of_another_setting(folder: Path) -> None:
    assert "saved at 32768 sound samples a second, and this game has 48000; set" in str(
        fails(folder, "start.state", sample_rate=48_000)
    )
    assert "CGB" in str(fails(folder, "start.state", color=True))


@pytest.mark.parametrize(
    "game,settings,words",
    [
        ("gameboy", {"boot": "strat 4"}, "did you mean 'start'"),
        ("gameboy", {"boot": "start four"}, "'start four' is not an action and a number"),
        ("gameboy", {"noops": -1}, "noops is -1"),
        ("bonk", {"state": "start.state"}, "unknown setting of bonk 'state'"),
        ("minatar:breakout", {"boot": "start"}, "unknown setting of minatar 'boot'"),
    ],
)
def test_bad_settings(folder: Path, game: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_game(f"gameboy:{folder / 'game.gb'}" if game == "gameboy" else game, **settings)


def test_a_moment_that_cannot_be_written(folder: Path) -> None:
    with playing(folder) as game:
        with pytest.raises(UsageError, match="call reset"):
            game.write_state(folder / "new.state")
        game.reset(seed=0)
        with pytest.raises(FolderError, match="can't write"):
            game.write_state(folder / "game.gb" / "new.state")
        assert game.write_state(folder / "new/folder/one.state").is_file()
    assert not (folder / "new.state").exists()
    toy = make_game("minatar:breakout")
    toy.reset(seed=0)
    with pytest.raises(UsageError, match="can't begin from a file"):
        toy.write_state(folder / "new.state")


def test_written_from_a_game_that_is_recorded(folder: Path) -> None:
    recorder = Recorder(make_game(f"gameboy:{folder / 'game.gb'}", boot=BOOT), folder / "store")
    recorder.reset()
    recorder.unwrapped.write_state(folder / "new.state")  # type: ignore[attr-defined]
    recorder.close()
    with playing(folder, state="new.state") as game:
        game.reset(seed=0)
        assert game.machine.read(PHASE, 1) == b"\2"


# --- what a recording keeps


def test_a_file_is_pinned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a@b.state").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    word = pinned("a@b.state")
    monkeypatch.chdir("/")
    assert pinned(word) == word == pinned(tmp_path / "a@b.state") and unpinned(word) == tmp_path / "a@b.state"


def test_a_recordings_settings_begin_at_the_same_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = f"gameboy:{folder / 'game.gb'}"
    with monkeypatch.context() as there:
        there.chdir(folder)
        settings = {"profile": "mine.yaml", "state": "start.state", "ticks_per_step": 12, "max_steps": 60}
        record(game, "store", "random", steps=120, seed=3, settings=settings)
    store = Store.open(folder / "store")
    config = dict(store.schema.config)
    assert unpinned(config["settings"]["state"]) == folder / "start.state" and unpinned(config["profile"]) == folder / "mine.yaml"
    record(game, folder / "store", "random", steps=60, seed=4, settings=config)  # and the same store takes more of it
    kept = Store.open(folder / "store")
    first = [kept.read(episode, 0, 1) for episode in kept.episodes]
    assert len(kept.episodes) == 3 and all((row.image == first[0].image).all() for row in first)
    assert all((row.audio == first[0].audio).all() for row in first)
    assert len(evaluate(game, "random", 2, 1, config)) == 2

    for name in ("start.state", "mine.yaml"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"\n# another one")
        with pytest.raises(UsageError, match=f"{name} has changed: its fingerprint was"):
            make_game(game, **config)
        (folder / name).rename(folder / "moved")
        with pytest.raises(UsageError, match="put it back, or record again from its new place"):
            make_game(game, **config)
        (folder / name).write_bytes(content)
        make_game(game, **config).close()


# --- on the command line


@pytest.fixture
def command(folder: Path) -> Iterator[Any]:
    "`metabonk run` with the record stage alone, in the folder of the cartridge"
    (folder / "short.yaml").write_text(f"notebooks: {ROOT / 'nbs/stages'}\nrun: run\nstages: [record]\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        sizes = ("steps=240", "episode_steps=60", "ticks_per_step=12", "games=1", "policy=random")
        words = ["run", "short.yaml", "--game", "gameboy:game.gb", *arguments]
        given = [word for size in sizes for word in ("--set", f"record.{size}")]
        command = [sys.executable, "-m", "metabonk.cli", *words, *given]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)

    yield run


@pytest.mark.whole
def test_the_record_stage_takes_a_cartridge_a_profile_and_a_state(folder: Path, command: Any) -> None:
    given = ("--set", "profile=mine.yaml", "--set", "record.settings={state: start.state, noops: 30}")
    done = command(*given)
    assert done.returncode == 0, done.stderr
    store = Store.open(folder / "run/stages/record/store")
    columns = store.episodes.columns()
    assert len(store.episodes) >= 4 and columns["reward"].max() > 0
    assert store.schema.game == "gameboy:game" and store.schema.config["settings"]["noops"] == 30
    assert "keep  record" in command(*given, "--dry-run").stdout
    changed = command("--set", "profile=mine.yaml", "--set", "record.settings={state: start.state}", "--dry-run").stdout
    assert "parameter settings changed" in changed


def test_the_record_stage_says_what_is_wrong_in_one_line(folder: Path, command: Any) -> None:
    failed = command("--set", "record.settings={state: strat.state}")
    assert failed.returncode != 0 and "start.state meant" in failed.stderr and failed.stderr.count("\n") <= 2, failed.stderr
