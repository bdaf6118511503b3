"""Bonk, driven in the emulator: the ROM, its memory map, every sound that an agent may rely on, and a whole game."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from metabonk.core.errors import RomError, UsageError
from metabonk.play.bonk import ROM, BonkSettings, start, symbols
from metabonk.play.profile import load_profile

GAME = Path(__file__).parents[1] / "games" / "bonk"
RATE = 24_000
QUIET = {"music": 0, "chargers": 0, "opponents": 0}
ROW_PITCH = {1: 1397, 2: 1109, 3: 880, 4: 698, 5: 554, 6: 440}  # Hz
DING = 2637  # Hz, its second note


def load_players() -> SimpleNamespace:
    spec = importlib.util.spec_from_file_location("bonk_players", GAME / "players.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


players = load_players()


@pytest.fixture
def console():
    made = []

    def make(seed=1, begin=True, **settings):
        made.append(players.Console(BonkSettings(**settings), seed, RATE, begin))
        made[-1].record = True
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def walk_to(machine, x, y, until, limit=400):
    """Walk towards a place, tick by tick, until something is so; True if it came about."""
    for i in range(limit):
        if until():
            return True
        if i % 4 == 0:
            action = players.walk(players.View(machine.read), x, y) or "noop"
        machine.tick(action)
    return until()


def energy(sound, frequency, width=40):
    """Energy of (samples,) around a frequency, of the sound's own length."""
    spectrum = np.abs(np.fft.rfft(sound - sound.mean())) ** 2
    bins = np.fft.rfftfreq(len(sound), 1 / RATE)
    return spectrum[np.abs(bins - frequency) < width].sum()


def loudness(sound):
    """Standard deviation of each channel of (samples, 2)."""
    return sound.astype(float).std(axis=0)


# --- the files ----------------------------------------------------------------------------------------------------
def test_rom_is_a_clean_32_kib_cartridge():
    rom = ROM.read_bytes()
    assert len(rom) == 32 * 1024
    assert not any(rom[0x104:0x134])
    assert rom[0x134:0x139] == b"BONK\0"
    assert rom[0x14D] == (-sum(rom[0x134:0x14D]) - 25) & 0xFF


def test_rom_is_what_the_sources_give():
    if shutil.which("sdcc") is None:
        pytest.skip("sdcc is not installed: the ROM can't be built here")
    version = subprocess.run(["sdcc", "--version"], capture_output=True, text=True).stdout
    if " 4.2.0 " not in version:
        pytest.skip("another sdcc than 4.2.0 gives other bytes")
    done = subprocess.run([sys.executable, "-B", str(GAME / "build.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_missing_compiler_is_named(tmp_path):
    command = [sys.executable, "-B", str(GAME / "build.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "sdcc" in done.stderr and "install" in done.stderr
    assert not list(tmp_path.iterdir())


def test_symbols_readme_and_profile_agree():
    table = re.findall(r"^\| `([0-9A-F]{4})` \| (\S+) \| `(\w+)` \|", (GAME / "README.md").read_text(), flags=re.M)
    assert {name: (int(address, 16), kind) for address, kind, name in table} == {
        name: (symbol.address, symbol.kind) for name, symbol in symbols().items()
    }
    for name, probe in load_profile("bonk").table.items():
        assert probe.address == symbols()[name].address, name
        assert probe.size == symbols()[name].size, name


# --- protocol and settings -----------------------------------------------------------------------------------------
def test_host_starts_an_episode_with_its_settings(console):
    machine = console(seed=0xBEEF, start_screen=6, hp=3)
    assert (machine.phase, machine.screen, machine.hp, machine.max_hp) == (2, 6, 3, 3)
    assert machine.set_seed == 0xBEEF
    assert machine.frame == 0 and machine.visited == 1 << 6


def test_person_starts_with_start_and_defaults(console):
    machine = console(begin=False)
    while machine.phase != 1:
        machine.tick()
    machine.tick(count=50)
    assert machine.phase == 1 and machine.music == 10
    machine.tick("start")
    machine.tick(count=20)
    assert (machine.phase, machine.screen, machine.hp, machine.music) == (2, 4, 6, 5)
    machine.tick("start")
    frame = machine.frame
    machine.tick("right", 20)
    assert machine.phase == 3 and machine.frame == frame
    machine.tick("start")
    machine.tick(count=20)
    assert machine.phase == 2 and machine.frame > frame


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match="start_screen is 9.*0 to 8"):
        BonkSettings(start_screen=9)
    with pytest.raises(UsageError, match="hp is 0"):
        BonkSettings(hp=0)


def test_another_cartridge_is_refused():
    memory = bytearray(0x10000)
    with pytest.raises(RomError, match="phase is not 1.*bonk.gb"):
        for _ in start(memory, BonkSettings()):
            pass


def test_one_seed_is_one_game_bit_for_bit(console):
    generator = np.random.default_rng(0)
    actions = generator.choice(players.ACTIONS, size=60)

    def run(seed):
        machine = console(seed, chargers=2, decoys=40, start_screen=3)
        pictures = []
        for action in actions:
            machine.tick(str(action), 4)
            pictures.append(machine.picture())
        return np.stack(pictures), machine.heard()

    (first, sound), (again, sound_again), (other, sound_other) = run(7), run(7), run(8)
    assert np.array_equal(first, again) and np.array_equal(sound, sound_again)
    assert not np.array_equal(first, other) and not np.array_equal(sound, sound_other)


def test_frames_have_one_length_even_through_doors(console):
    machine = console(opponents=0)
    lengths = []
    for _ in range(120):
        before = machine.boy._cycles()
        machine.tick("right")
        lengths.append(machine.boy._cycles() - before)
    assert machine.doors == 1 and machine.late == 0
    assert max(abs(length - 70_224) for length in lengths) < 100


# --- coins ----------------------------------------------------------------------------------------------------------
def test_coin_gives_score_and_ding_and_vanishes_with_it(console):
    machine = console(**QUIET)
    assert walk_to(machine, 24, 24, lambda: machine.coins)
    assert machine.score == 1 and machine.sfx == 1
    before, silent = machine.picture(), machine.sounds[-1]
    machine.tick()
    assert machine.sfx == 1
    assert (before[17:30, 17:30] != machine.picture()[17:30, 17:30]).any()  # picture and sound: the frame after
    assert loudness(machine.sounds[-1]).min() > 2 > loudness(silent).max()
    machine.tick(count=14)
    ding = np.concatenate(machine.sounds[-11:])[:, 0].astype(float)
    assert energy(ding, DING) > 10 * energy(ding, DING / 2)


def test_decoy_dings_without_a_coin(console):
    machine = console(decoys=200, **QUIET)
    dings = 0
    for _ in range(300):
        before = machine.decoys
        machine.tick()
        if machine.decoys > before:
            assert machine.sfx == 1
            dings += 1
    assert dings > 8
    assert machine.coins == machine.score == 0
    sound = machine.heard()[:, 0].astype(float)
    assert energy(sound, DING) > 10 * energy(sound, DING / 2)


def test_coins_come_back(console):
    machine = console(**QUIET)
    assert walk_to(machine, 24, 24, lambda: machine.coins)
    assert machine.lit_coins == 3
    assert walk_to(machine, 80, 64, lambda: machine.lit_coins == 4)


# --- bonks ----------------------------------------------------------------------------------------------------------
def test_thud_follows_the_speed(console):
    machine = console(start_screen=6, **QUIET)

    def bonk(run_up):
        """Let go, then hit the right wall after some frames of pushing (from the left wall)."""
        walk_to(machine, 150 - run_up, 64, lambda: abs(machine.x - (150 - run_up)) < 3 and machine.speed < 4, 300)
        before = machine.bonks
        for _ in range(150):
            machine.tick("right")
            if machine.bonks > before:
                break
        machine.sounds = []
        machine.tick(count=8)
        sound = machine.heard()[:, 0].astype(float)
        crossings = np.mean(np.diff(np.sign(sound - np.median(sound))) != 0)
        return machine.bonk_speed, sound.std(), crossings

    soft, hard = bonk(20), bonk(100)
    assert hard[0] > 1.7 * soft[0]
    assert hard[1] > 1.3 * soft[1]
    assert hard[2] > 1.3 * soft[2]


def test_slow_hero_is_hurt_and_fast_hero_wins(console):
    machine = console(start_screen=3, chargers=0)
    for _ in range(400):
        machine.tick()
        if machine.hits:
            break
    assert (machine.hits, machine.hp, machine.beaten) == (1, 5, 0)

    machine, player = console(start_screen=3, chargers=0), players.Collector()
    while not machine.beaten and machine.frame < 1500:
        machine.tick(player(players.View(machine.read)), 4)
    assert machine.beaten == 1 and machine.bonk_speed >= 24
    assert machine.xp > 0 and machine.score >= 2


def test_hits_end_the_episode_and_nothing_moves_after(console):
    machine = console(start_screen=3, chargers=2, hp=1)
    for _ in range(1500):
        machine.tick()
        if machine.game_over:
            break
    machine.tick(count=3)
    assert (machine.game_over, machine.win, machine.hp, machine.phase) == (1, 0, 0, 4)
    frame, x = machine.frame, machine.x
    machine.tick("right_a", 60)
    assert (machine.frame, machine.x, machine.phase) == (frame, x, 4)
    machine.tick("start")
    machine.tick(count=60)
    assert machine.phase == 1 and machine.game_over == 0


# --- chargers ---------------------------------------------------------------------------------------------------------
def test_charger_is_announced_by_side_and_row_before_it_is_seen(console):
    heard = set()
    for seed, height in enumerate((24, 40, 56, 72, 88, 104), 1):
        machine = console(seed, music=0, opponents=0, chargers=2, charger_gap=6, start_screen=7, darkness=0)
        while machine.announced == 0:
            machine.tick(players.walk(players.View(machine.read), 72, height) or "noop")
        row, side = machine.charger_row, machine.charger_side
        machine.sounds, empty, ticks = [], machine.picture(), 0
        while machine.charger_phase == 1:
            machine.tick("b")
            ticks += 1
        assert ticks == 30
        sound = np.concatenate(machine.sounds[1:28]).astype(float)
        near, far = loudness(sound)[[side, 1 - side]]
        assert near > 2 and near > 3 * far
        spectrum = np.abs(np.fft.rfft(sound[:, side] - sound[:, side].mean()))
        lowest = np.fft.rfftfreq(len(sound), 1 / RATE)[np.argmax(spectrum > 0.4 * spectrum.max())]
        assert abs(lowest / ROW_PITCH[row] - 1) < 0.06
        where = slice(row * 16, row * 16 + 16), slice(146, 160) if side else slice(0, 14)
        assert np.array_equal(empty[where], machine.picture()[where])
        machine.tick()
        assert not np.array_equal(empty[where], machine.picture()[where])
        heard.add((row, side))
    assert len({row for row, _ in heard}) >= 4 and len({side for _, side in heard}) == 2


def test_charger_hurts_who_stays_and_misses_who_hears(console):
    stays = console(seed=2, music=0, opponents=0, chargers=2, charger_gap=1, start_screen=6)
    stays.tick(count=400)
    assert stays.charger_hits >= 1 and stays.hp <= 4
    hears, player = console(seed=2, music=0, opponents=0, chargers=2, charger_gap=1, start_screen=0), players.Collector(ears=True)
    sees, blind = console(seed=2, music=0, opponents=0, chargers=2, charger_gap=1, start_screen=0), players.Collector()
    for _ in range(200):
        hears.tick(player(players.View(hears.read)), 4)
        sees.tick(blind(players.View(sees.read)), 4)
    assert hears.announced > 4
    assert hears.charger_hits < sees.charger_hits


# --- the dark -----------------------------------------------------------------------------------------------------------
def test_hidden_coin_is_invisible_and_hums_louder_when_near(console):
    machine, other = (console(seed, darkness=2, start_screen=8, **QUIET) for seed in (3, 5))
    for cart in (machine, other):
        cart.tick(count=60)
    assert (machine.coin_x, machine.coin_y) != (other.coin_x, other.coin_y)
    where = tuple(slice(at - 8, at + 8) for at in (machine.coin_y, machine.coin_x))
    assert np.array_equal(machine.picture()[where], other.picture()[where])  # with a coin there, and without
    heard = []

    def note():
        machine.tick(count=2)
        last = np.concatenate(machine.sounds[-2:])
        away = np.hypot(machine.x - machine.coin_x, machine.y - machine.coin_y)
        if machine.sfx == 3 and machine.noise == 0:
            heard.append((away, loudness(last).max(), machine.hum))

    for _ in range(120):
        if machine.coins:
            break
        machine.tick(players.walk(players.View(machine.read), machine.coin_x, machine.coin_y) or "noop")
        note()
    assert machine.coins == 1 and machine.score == 2
    away, loud, level = np.array(heard).T
    assert np.corrcoef(away, loud)[0, 1] < -0.9
    assert loud[away < 20].mean() > 1.7 * loud[away > 55].mean()
    assert level.max() >= 13


def test_hum_tells_the_direction(console):
    machine = console(3, darkness=2, start_screen=8, **QUIET)
    machine.tick(count=40)

    def hum():
        machine.sounds = []
        machine.tick(count=6)
        sound = machine.heard()[-1600:]
        side = int(loudness(sound).argmax())
        spectrum = np.abs(np.fft.rfft(sound[:, side] - sound[:, side].mean()))
        return loudness(sound), np.fft.rfftfreq(len(sound), 1 / RATE)[spectrum.argmax()]

    pitches = {}
    for x, y in ((24, 24), (136, 104), (136, 24), (24, 104)):
        walk_to(machine, x, y, lambda x=x, y=y: abs(machine.x - x) < 4 and abs(machine.y - y) < 4 and machine.speed < 4)
        if not machine.coin_x:  # taken on the way: the next one
            machine.tick(count=40)
        (left, right), pitch = hum()
        if abs(machine.coin_x - machine.x) > 16:
            assert (right > left) == (machine.coin_x > machine.x)
        pitches[machine.y - machine.coin_y] = pitch
    heights = sorted(pitches)
    assert pitches[heights[-1]] > 1.1 * pitches[heights[0]]


# --- music --------------------------------------------------------------------------------------------------------------
def play_in_one_screen(machine, actions):
    for action in actions:
        machine.tick(action, 4)
        assert machine.screen == 0
    return machine.heard(), machine.music, machine.music_tick


@pytest.mark.parametrize("music", [1, 2])
def test_music_does_not_depend_on_actions(console, music):
    settings = {"start_screen": 0, "chargers": 0, "music": music}
    plans = (["left", "left_a", "up", "down_a"] * 15, ["b", "noop", "up_a", "left"] * 15)
    still, moving = (play_in_one_screen(console(effects=0, **settings), plan) for plan in plans)
    assert np.array_equal(still[0], moving[0])
    assert still[1:] == moving[1:]
    assert loudness(still[0]).min() > 1
    loud = play_in_one_screen(console(effects=1, **settings), plans[0])
    assert loud[1:] == still[1:] and not np.array_equal(loud[0], still[0])


def test_music_off_is_silence_and_every_screen_has_its_tune(console):
    machine = console(**QUIET)
    machine.tick(count=120)
    assert len(np.unique(machine.heard())) == 1 and machine.music == 0
    tunes = []
    for screen in range(9):
        machine = console(start_screen=screen, chargers=0, opponents=0, effects=0)
        machine.tick(count=64)
        assert machine.music == screen + 1
        tunes.append(machine.heard()[:, 0])
    assert all(not np.array_equal(a, b) for i, a in enumerate(tunes) for b in tunes[:i])


def test_noise_instead_of_music_depends_on_the_seed_only(console):
    first, again, other = (console(seed, music=2, chargers=0, opponents=0) for seed in (1, 1, 2))
    for machine in (first, again, other):
        machine.tick(count=90)
    heard = [machine.heard() for machine in (first, again, other)]
    assert np.array_equal(heard[0], heard[1]) and not np.array_equal(heard[0], heard[2])


# --- the world ------------------------------------------------------------------------------------------------------------
def test_sign_opens_a_dialog_and_a_closes_it(console):
    machine = console(**QUIET)
    assert walk_to(machine, 120, 40, lambda: abs(machine.x - 120) < 5 and machine.y < 50)
    for _ in range(40):
        machine.tick("up")
        if machine.dialog:
            break
    assert machine.dialog == 5 and machine.dialogs == 1
    machine.tick(count=20)
    x, y = machine.x, machine.y
    machine.tick("left", 20)
    assert (machine.x, machine.y, machine.dialog) == (x, y, 5)
    machine.tick("a")
    machine.tick(count=2)
    assert machine.dialog == 0


def test_lock_and_gate_stay_shut(console):
    for screen, way, cell in ((3, "down", 74), (1, "left", 30)):
        machine = console(start_screen=screen, **QUIET)
        machine.tick(way, 200)
        assert machine.screen == screen and machine.opened == 0
        assert symbols()["cells"].read(machine.boy.memory)[cell] in (4, 5)


def test_who_begins_behind_a_door_finds_it_open(console):
    "Shut, its cells would hold him who comes through from behind, and throw him off the map."
    for screen, way, other in ((6, "up", 3), (0, "right", 1)):
        machine = console(start_screen=screen, **QUIET)
        machine.tick(way, 90)
        assert machine.screen == other and 16 < machine.x < 144 and 16 < machine.y < 112


def test_the_game_can_be_won(console):
    machine, player, profile = console(seed=3), players.Champion(3), load_profile("bonk").start()
    machine.record = False
    total = 0.0

    profile.step(machine.read)
    while not profile.ended and machine.frame < 8000:
        machine.tick(player(players.View(machine.read)), 4)
        total += sum(profile.step(machine.read)[1].values())
    assert (machine.win, machine.game_over, machine.badges, machine.late) == (1, 1, 3, 0)
    reached = profile.milestones_reached
    order = [reached[name] for name in ("key", "lock_open", "boss_1_met", "badge_1", "gate_open", "boss_2_met", "badge_2")]
    assert order == sorted(order)
    assert total > machine.score


def test_random_play_scores_a_little():
    scores = [players.episode(players.RandomPlayer(seed, 0.5), BonkSettings(), seed, 300)["score"] for seed in range(3)]
    assert 0 < sum(scores) < 3 * 40
