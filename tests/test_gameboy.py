"""The console itself: speeds, illegal instructions, clocks, batteries, boards; each on a cartridge of a few bytes"""

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metabonk.core.errors import RomError, UsageError
from metabonk.play import gameboy, gameboy_files
from metabonk.play.game import Game, OutOfSync, make_game
from metabonk.play.gameboy import CLOCK, FRAME, ILLEGAL
from metabonk.play.gameboy_files import tiny_rom
from metabonk.record.recorder import record
from metabonk.record.store import Store

TWICE = b"\x3e\x01\xe0\x4d\x10\x00"  # ld a, 1; ldh (4D), a; stop: the other speed
ENDLESS = b"\x18\xfe"  # jr to itself
WAIT = b"\x01\x00\x00\x0b\x78\xb1\x20\xfb"  # counts BC down from 65,536: 26 pictures
BATTERY_CLOCK = {"board": 0x10, "ram": 3}


def clock_reader() -> bytes:
    """A program that copies seconds, minutes, hours and days of its clock to C000 to C003, over and over."""
    code = b"\x3e\x0a\xea\x00\x00"  # the cartridge's memory is let in
    latch = b"\x3e\x00\xea\x00\x60\x3e\x01\xea\x00\x60"
    copies = b"".join(bytes([0x3E, 8 + n, 0xEA, 0, 0x40, 0xFA, 0, 0xA0, 0xEA, n, 0xC0]) for n in range(4))
    return code + latch + copies + b"\x18" + bytes([(-len(latch + copies) - 2) & 0xFF])


def play(tmp_path: Path, rom: bytes, **settings: Any) -> Game:
    """A cartridge of these bytes, just begun."""
    (tmp_path / "game.gb").write_bytes(rom)
    game = make_game(f"gameboy:{tmp_path / 'game.gb'}", **settings)
    game.reset(seed=0)
    return game


def steps(game: Game, count: int) -> dict[str, Any]:
    """The clock after some steps of doing nothing."""
    for _ in range(count):
        info = game.step(0)[-1]
    return info["clock"]


def shown(game: Game) -> int:
    """Seconds on the cartridge's clock, as its program read them last."""
    return sum(n * unit for n, unit in zip(game.machine.read(0xC000, 4), (1, 60, 3_600, 86_400), strict=True))


# --- two speeds: stays fast; changes in every round of a loop of 26 or 13 pictures; slows down again at once
SPEEDS = {"fast": TWICE + ENDLESS, "changing": TWICE + WAIT + b"\x18" + bytes([(-len(TWICE + WAIT) - 2) & 0xFF]),
          "back": TWICE + TWICE + ENDLESS}


@pytest.mark.parametrize("name", SPEEDS)
def test_time_is_pictures_whatever_the_processors_speed(tmp_path: Path, name: str) -> None:
    heard = play(tmp_path, tiny_rom(SPEEDS[name], color=True))
    clock = steps(heard, 100)  # each step holds sound against clock
    assert abs(clock["ticks"] - 404 * FRAME) < 256
    assert abs(clock["samples"] - clock["ticks"] * heard.sample_rate / CLOCK) <= 1
    silent = steps(play(tmp_path, tiny_rom(SPEEDS[name], color=True), sample_rate=0), 100)
    assert abs(silent["ticks"] - 400 * FRAME) < 256 and silent["samples"] == 0


def test_the_processors_cycles_alone_are_twice_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = play(tmp_path, tiny_rom(SPEEDS["fast"], color=True))
    monkeypatch.setattr(game.machine, "_two_speeds", False)
    monkeypatch.setattr(game.machine, "_fast", False)
    with pytest.raises(OutOfSync):
        steps(game, 1)


@pytest.mark.parametrize("name", SPEEDS)
def test_a_lost_tick_of_sound_is_noticed_at_either_speed(tmp_path: Path, name: str) -> None:
    game = play(tmp_path, tiny_rom(SPEEDS[name], color=True))
    steps(game, 5)
    game._samples -= 549
    with pytest.raises(OutOfSync):
        steps(game, 1)


def test_a_moment_at_double_speed(tmp_path: Path) -> None:
    game = play(tmp_path, tiny_rom(SPEEDS["changing"], color=True))
    steps(game, 7)
    moment = game.snapshot()
    after = steps(game, 30)
    game.restore(moment)
    assert steps(game, 30) == after


# --- illegal instructions
@pytest.mark.parametrize("opcode, settings", [(0xD3, {}), (0xFD, {"sample_rate": 0}), (0xE3, {"boot": "noop 60"})])
def test_an_illegal_instruction_ends_the_step(tmp_path: Path, opcode: int, settings: dict[str, Any]) -> None:
    assert opcode in ILLEGAL and len(ILLEGAL) == 11
    game = None
    for _ in range(2):  # the machine stays broken until it is switched on again, and is again then
        with pytest.raises(RomError, match=f"ran into {opcode:#04x} at 0x0158"):
            game = play(tmp_path, tiny_rom(WAIT + bytes([opcode])), **settings)
            steps(game, 20)
    if game:
        with pytest.raises(RomError, match="no instruction"):
            game.step(0)


def test_an_endless_loop_is_no_illegal_instruction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = play(tmp_path, tiny_rom(ENDLESS), sample_rate=0, profile="none")
    game.machine.run(-1, 5_000)  # one call, longer than the watchdog's patience
    assert game.machine.clock() == pytest.approx(5_000 * FRAME, abs=256)


def test_what_was_played_before_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "game.gb").write_bytes(tiny_rom(WAIT + b"\xd3"))
    with pytest.raises(RomError, match="ran into 0xd3"):
        record(f"gameboy:{tmp_path / 'game.gb'}", tmp_path / "store", steps=100, settings={"profile": "none"})
    assert len(Store.open(tmp_path / "store")) == 6  # 26 pictures in steps of four


# --- clocks
def clock_in_use(tmp_path: Path, locked: bool = True, pause: float = 0.0) -> tuple[int, bytes, int]:
    """Seconds shown, the snapshot, and seconds shown five seconds later: twice, the second time from the snapshot."""
    game = play(tmp_path, tiny_rom(clock_reader(), **BATTERY_CLOCK), ticks_per_step=60, clock=2 * 86_400 - 5)
    steps(game, 10)
    moment, now = game.snapshot(), shown(game)
    steps(game, 5)
    later = shown(game)
    time.sleep(pause)
    if not locked:
        game.machine._has_clock = False
    game.restore(moment)
    steps(game, 5)
    assert shown(game) == later
    return now, moment.machine, later


def test_the_clock_runs_on_the_consoles_time(tmp_path: Path) -> None:
    now, moment, later = clock_in_use(tmp_path)
    assert now == pytest.approx(2 * 86_400 - 5 + 11 * 60 * FRAME / CLOCK, abs=2)  # and the time of starting
    assert later - now in (5, 6)
    assert clock_in_use(tmp_path, pause=1.1) == (now, moment, later)


def test_a_clock_that_follows_the_computers_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        clock_in_use(tmp_path, locked=False)
    with monkeypatch.context() as patch:
        patch.setattr(gameboy, "without_stamps", lambda state, since, until: state)
        assert clock_in_use(tmp_path)[1] != clock_in_use(tmp_path)[1]
    monkeypatch.setattr(gameboy_files, "_NEVER", 10.0**9)
    with pytest.raises(AssertionError):
        test_the_clock_runs_on_the_consoles_time(tmp_path)


def test_a_state_keeps_its_clock(tmp_path: Path) -> None:
    rom = tiny_rom(clock_reader(), **BATTERY_CLOCK)
    game = play(tmp_path, rom, clock=1_000)
    steps(game, 30)
    saved = game.write_state(tmp_path / "later.state")
    begun = play(tmp_path, rom, state=str(saved))
    assert shown(begun) in (shown(game), shown(game) + 1)
    with pytest.raises(UsageError, match="clock and state are both given"):
        play(tmp_path, rom, state=str(saved), clock=5)


@pytest.mark.parametrize("seconds", [-1, 512 * 86_400])
def test_a_clock_beyond_its_range(tmp_path: Path, seconds: int) -> None:
    with pytest.raises(UsageError, match="seconds from 0 to 44236799"):
        play(tmp_path, tiny_rom(**BATTERY_CLOCK), clock=seconds)


def test_a_cartridge_without_a_clock(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no clock"):
        play(tmp_path, tiny_rom(), clock=5)


# --- batteries
COUNTER = b"\x3e\x0a\xea\x00\x00\xfa\x00\xa0\x3c\xea\x00\xa0" + ENDLESS  # one more at A000 each time it is switched on


@pytest.mark.parametrize("board, ram, size", [(0x03, 2, 8_192), (0x03, 1, 2_048), (0x1B, 4, 131_072), (0x13, 3, 32_768)])
def test_a_battery_file_goes_in_and_comes_out(tmp_path: Path, board: int, ram: int, size: int) -> None:
    rom = tiny_rom(COUNTER, board=board, ram=ram)
    kept = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    kept[0] = 41
    (tmp_path / "in.sav").write_bytes(kept.tobytes())
    game = play(tmp_path, rom, battery=str(tmp_path / "in.sav"))
    out = np.frombuffer(game.write_battery(tmp_path / "made" / "out.sav").read_bytes(), np.uint8)
    assert out[0] == 42 and (out[1:] == kept[1:]).all() and out.size == size
    assert np.frombuffer((tmp_path / "in.sav").read_bytes(), np.uint8)[0] == 41  # what a user brought stays as it is
    assert play(tmp_path, rom).write_battery(tmp_path / "new.sav").read_bytes()[0] == 1


@pytest.mark.parametrize("width", [44, 48])
def test_a_battery_file_with_a_clock(tmp_path: Path, width: int) -> None:
    footer = struct.pack("<5I", 7, 6, 5, 4, 1).ljust(width, b"\0")
    (tmp_path / "in.sav").write_bytes(bytes(32_768) + footer)
    game = play(tmp_path, tiny_rom(clock_reader(), **BATTERY_CLOCK), battery=str(tmp_path / "in.sav"))
    seconds = 7 + 60 * 6 + 3_600 * 5 + 86_400 * 4  # the program reads the lower eight bits of the day
    assert seconds <= shown(game) <= seconds + 2 and game.machine.battery_file() == bytes(32_768)


@pytest.mark.parametrize("rom, content, words", [
    (tiny_rom(board=3, ram=2), bytes(8_191), "has 8191 bytes, the battery of gameboy:game keeps 8192"),
    (tiny_rom(board=3, ram=2), bytes(8_192 + 48), "another cartridge's"),
    (tiny_rom(), bytes(8_192), "has no battery"),
    (tiny_rom(board=2, ram=2), bytes(8_192), "has no battery"),
])  # fmt: skip
def test_a_battery_file_that_does_not_fit(tmp_path: Path, rom: bytes, content: bytes, words: str) -> None:
    (tmp_path / "in.sav").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        play(tmp_path, rom, battery=str(tmp_path / "in.sav"))


def test_a_battery_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no battery"):
        play(tmp_path, tiny_rom(board=3, ram=2), battery=str(tmp_path / "none.sav"))
    with pytest.raises(UsageError, match="has no battery, so there is nothing to write"):
        play(tmp_path, tiny_rom()).write_battery(tmp_path / "out.sav")
    with pytest.raises(UsageError, match="only Game Boy cartridges"):
        make_game("atari:pong").machine.battery_file()


# --- boards and paths
@pytest.mark.parametrize("board, ram", [(0x03, 9), (0x20, 0), (0xFC, 2), (0xFF, 0)])
def test_a_board_that_the_emulator_does_not_know(tmp_path: Path, board: int, ram: int) -> None:
    with pytest.raises(RomError, match=f"board that PyBoy does not know \\(type {board:#04x}, memory {ram:#04x}\\)"):
        play(tmp_path, tiny_rom(board=board, ram=ram))


def test_a_cartridge_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "game.gb").write_bytes(tiny_rom())
    game = make_game("gameboy:~/game.gb")
    game.reset(seed=0)
    with pytest.raises(RomError, match="can't read the ROM ~nobody-of-that-name"):
        make_game("gameboy:~nobody-of-that-name/game.gb")
    with pytest.raises(RomError, match="can't read the ROM"):
        make_game("gameboy:a\0b.gb")
