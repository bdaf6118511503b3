"""The course, played from end to end: what the profile reads and pays is held against what stands on the screen"""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyboy import PyBoy

from metabonk.core.errors import RomError, UsageError
from metabonk.play.course import BALL, ROM, RUN, CoursePlayer, areas
from metabonk.play.game import Game, make_game
from metabonk.play.policies import PLAYERS, PlayerPolicy, make_policy
from metabonk.play.profile import load_profile
from metabonk.record.recorder import record
from metabonk.record.store import Store

BUILD = Path(__file__).parents[1] / "games" / "course" / "build.py"
CELLS = " .#T,DSPB"  # in the order of the pictures


def make(**settings: Any) -> Game:
    return make_game(f"gameboy:{ROM}", **{"profile": "course", "ticks_per_step": 8, "sample_rate": 0, **settings})


def letters(game: Game, address: int, rows: int) -> list[str]:
    "Lines of text on the screen, from its map of tiles: a tile is a letter less 32, others are blanks"
    lines = [game.unwrapped.machine.read(address + 32 * y, 20) for y in range(rows)]
    return ["".join(chr(t + 32) if t < 64 else " " for t in line).rstrip() for line in lines]


def panel(game: Game) -> str:
    return "\n".join(letters(game, 0x9C00, 6))


@dataclass
class Walkthrough:
    "Steps of one game, as the profile saw them"

    game: Game
    folder: Path
    player: CoursePlayer = field(default_factory=CoursePlayer)
    last: str = "noop"
    info: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[dict[str, Any], dict[str, float]]] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)  # panels of each fight
    pages: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)  # probes, and what the status says
    wrong: list[Any] = field(default_factory=list)  # steps in which the screen says something else

    def step(self, action: str) -> dict[str, Any]:
        before = self.info["probes"]
        self.last = action
        self.info = self.game.step(self.game.action_names.index(action))[4]
        now = self.info["probes"]
        self.rows.append((now, self.info["terms"]))
        if now["in_battle"] and not before["in_battle"]:
            self.texts.append([])
        open_panel = self.game.unwrapped.machine.read(0xFF4A, 1)[0] == 96  # only then it is drawn to its end
        if now["in_battle"] and now["dialog"] and open_panel and panel(self.game) not in self.texts[-1][-1:]:
            self.texts[-1].append(panel(self.game))
        self.look(now)
        for name, at in self.game.milestones.items():
            if at == len(self.rows):
                self.game.write_state(self.folder / f"{name}.state")
        return now

    def look(self, now: dict[str, Any]) -> None:
        "Does the screen agree with the probes?"
        read = self.game.unwrapped.machine.read
        y, x = read(0xC200, 2)
        if now["in_battle"] in (1, 2) and now["dialog"]:
            shown = letters(self.game, 0x9820, 1)[0].split()[1:]
            told = f"L{now['opponent_level']:02} HP {now['opponent_hp']:03}/{now['opponent_max_hp']:03}"
            if " ".join(shown) != told:
                self.wrong.append((len(self.rows), shown, told))
        elif not now["in_battle"] and y < 160 and y % 16 == 0 and x % 16 == 8 and ((x - 8) // 16, (y - 16) // 16) != (
            now["x"], now["y"]
        ):  # fmt: skip
            self.wrong.append((len(self.rows), (x, y), (now["x"], now["y"])))

    def status(self) -> None:
        "Open the status and read its pages"
        pages: list[str] = []
        for _ in range(4):  # a map may still be drawn
            probes = dict(self.step("noop"))
        self.step("start")
        for _ in range(20):
            if not self.step("noop")["dialog"]:
                break
            self.step("noop")
            pages.append(panel(self.game))
            self.step("a")
        self.pages.append((probes, pages))

    def play(self, until: Callable[[dict[str, Any]], Any], most: int = 3_000) -> "Walkthrough":
        for _ in range(most):
            if until(self.step(self.player(self.game.unwrapped.machine.read, self.last))):
                return self
        raise AssertionError(f"not there after {most} steps: {self.info['probes']}")


def begin(folder: Path, player: CoursePlayer | None = None, **settings: Any) -> Walkthrough:
    game = make(**settings)
    walk = Walkthrough(game, folder, player or CoursePlayer())
    walk.info = game.reset(seed=0)[1]
    return walk


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walkthrough]:
    "The whole course, with a look at the status after the gift, the capture and each badge"
    walk = begin(tmp_path_factory.mktemp("states"))
    for until in ("party_count == 1", "species_owned == 2 and not in_battle", "badges == 1", "badges == 3"):
        walk.play(lambda now, until=until: eval(until, {}, now) and not now["dialog"] and not now["in_battle"])
        walk.status()
    yield walk
    walk.game.close()


def paid(walk: Walkthrough, term: str) -> list[float]:
    return [terms[term] for _, terms in walk.rows if terms[term]]


# --- the cartridge
def test_rom_is_clean_and_what_the_sources_give() -> None:
    rom = ROM.read_bytes()
    assert len(rom) == 0x8000 and not any(rom[0x104:0x134]) and rom[0x134:0x13B] == b"COURSE\0"
    if shutil.which("sdcc") is None:
        pytest.skip("sdcc is not installed: the ROM can't be built here")
    if " 4.2.0 " not in subprocess.run(["sdcc", "--version"], capture_output=True, text=True).stdout:
        pytest.skip("another sdcc than 4.2.0 gives other bytes")
    done = subprocess.run([sys.executable, "-B", str(BUILD), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_real_game_s_profile_asks_for_the_real_game() -> None:
    with pytest.raises(RomError, match="'COURSE'.*not Pokemon Red"):
        make(profile="pokemon_red")
    ours, red = load_profile("course"), load_profile("pokemon_red")
    assert (ours.table, ours.weights, ours.milestones, ours.actions) == (red.table, red.weights, red.milestones, red.actions)


def test_chance_is_a_number_in_memory() -> None:
    def numbers(seed: int) -> list[int]:
        boy = PyBoy(io.BytesIO(ROM.read_bytes()), window="null", log_level="ERROR")
        boy.tick(150, False, False)
        boy.memory[0xDA00], boy.memory[0xDA01] = seed & 255, seed >> 8
        found = []
        for _ in range(20):
            boy.tick(1, False, False)
            found.append(boy.memory[0xDA00] + 256 * boy.memory[0xDA01])
        boy.stop(save=False)
        return found

    assert numbers(7) == numbers(7) != numbers(8)
    assert numbers(0) == numbers(1) and len(set(numbers(0))) == 20


# --- what the profile reads
def test_the_hero_and_the_opponent_are_where_the_screen_shows_them(course: Walkthrough) -> None:
    assert course.wrong == []
    assert len({(now["x"], now["y"]) for now, _ in course.rows}) > 30


def test_maps_are_those_of_the_screen(course: Walkthrough, tmp_path: Path) -> None:
    names = [f"{n}.state" for n in ("first_member", "viridian_forest", "cerulean_city")]
    for name in names:
        game = make(state=str(course.folder / name))
        now = game.reset(seed=0)[1]["probes"]
        for _ in range(8):  # a map is drawn in eighteen frames
            game.step(0)
        for y, cells in enumerate(areas()[now["map"]].cells):
            top = game.unwrapped.machine.read(0x9800 + 64 * y, 20)[::2]
            first = min(game.unwrapped.machine.read(0x9800, 576))  # of the pictures: the floor
            assert [CELLS[(tile - 65) // 4 + 1] for tile in top] == list(cells), (now["map"], y, first)
        game.close()


def test_status_pages_say_what_the_probes_say(course: Walkthrough) -> None:
    assert [probes["badges"] for probes, _ in course.pages] == [0, 0, 1, 3]
    for probes, pages in course.pages:
        numbers = [int(n) for n in re.findall(r"\d+", pages[0])]
        balls = probes["bag_1_quantity"] if probes["bag_count"] else 0
        named = ("species_owned", "species_seen", "money", "events")
        assert numbers == [probes["badges"].bit_count(), balls, *(probes[name] for name in named)]
        assert len(pages) == 1 + probes["party_count"]
        for i, page in enumerate(pages[1:], 1):
            fields = ("level", "hp", "max_hp", "xp")
            assert [int(n) for n in re.findall(r"\d+", page)] == [probes[f"party_{i}_{name}"] for name in fields]
    steps = zip(course.rows, course.rows[1:], strict=False)
    won = [now["money"] - before["money"] for (before, _), (now, terms) in steps if terms["badge"]]
    assert won == [1000, 1000] and course.pages[0][0]["money"] == 3000


def test_no_walking_while_a_panel_waits(tmp_path: Path) -> None:
    walk = begin(tmp_path)
    walk.play(lambda now: now["dialog"])
    place = [walk.info["probes"][name] for name in ("map", "x", "y")]
    for action in ["right"] * 8 + ["noop"]:
        assert walk.step(action)["dialog"] == 1
    assert [walk.info["probes"][name] for name in ("map", "x", "y")] == place == [38, 3, 3]
    walk.step("a")
    assert not walk.step("noop")["dialog"]
    for action in ("right", "noop", "noop"):
        now = walk.step(action)
    assert (now["x"], now["y"], now["facing"]) == (4, 3, 12)
    walk.game.close()


# --- what it pays
def test_each_reward_is_paid_once_and_where_it_should(course: Walkthrough) -> None:
    assert paid(course, "badge") == [10, 10] and paid(course, "species") == [2, 2]
    maps = [now["map"] for now, _ in course.rows]
    assert paid(course, "map") == [0.5] * (len(set(maps) | {0}) - 1)
    assert maps.count(2) > 1 and len(re.findall(r"(?:^|,)2(?=,(?!2,))", ",".join(map(str, maps)))) > 1  # came back, unpaid
    ends = ["\n".join(texts) for texts in course.texts]
    beaten = [text for text in ends if "IS BEATEN" in text]
    assert paid(course, "battle") == [1] * len(beaten)
    assert sum("IS YOURS NOW" in text for text in ends) == 1 and len(beaten) < len(ends)
    earned = [int(n) for text in beaten for n in re.findall(r"XP \+(\d+)", text)]
    assert paid(course, "xp") == pytest.approx([0.01 * n for n in earned])


def test_wounds_cost_and_rest_pays_nothing(course: Walkthrough) -> None:
    healed = 0
    for (before, _), (now, terms) in zip(course.rows, course.rows[1:], strict=False):
        if before["party_count"] == now["party_count"]:
            members = range(1, now["party_count"] + 1)
            changes = [now[f"party_{i}_hp"] - before[f"party_{i}_hp"] for i in members]
            assert terms["hp"] == pytest.approx(-0.05 * sum(-c for c in changes if c < 0))
            healed += not now["in_battle"] and any(c > 0 for c in changes)
    assert healed >= 2 and sum(paid(course, "hp")) < -2


def test_milestones_come_in_the_order_of_the_way(course: Walkthrough) -> None:
    reached = {name: step for name, step in course.game.milestones.items() if step is not None}
    way = ["first_member", "viridian_city", "viridian_forest", "pewter_city", "boulder_badge", "mt_moon", "cerulean_city"]
    assert sorted(way, key=reached.__getitem__) == way and reached["cascade_badge"] > reached["cerulean_city"]
    assert {*way, "first_win", "cascade_badge"} <= set(reached)
    first = next(i for i, (_, terms) in enumerate(course.rows, 1) if terms["battle"])
    assert reached["first_win"] == first
    assert not course.game.over  # the profile knows no end: an episode's length is the player's choice


def test_stuck_is_told_by_a_state_that_does_not_change(course: Walkthrough) -> None:
    game = make(state=str(course.folder / "viridian_city.state"))
    game.reset(seed=0)
    for step, action in enumerate(["noop"] * 5 + ["left"] * 6 + ["right"] * 6, 1):  # to walk about is no progress either
        _, reward, _, _, info = game.step(game.action_names.index(action))
        assert info["probes"]["steps_without_progress"] == step and reward == -0.001
    game.close()


# --- fights that are not won
class Chooser(CoursePlayer):
    "Always the same line of the menu"

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line

    def choice(self, seen: Any) -> int:
        return self.line


def wild_fight(course: Walkthrough, folder: Path, line: int) -> Walkthrough:
    walk = begin(folder, state=str(course.folder / "first_member.state"))
    walk.play(lambda now: now["in_battle"])
    walk.player = Chooser(line)
    return walk.play(lambda now: not now["in_battle"] and not now["dialog"], 400)


def test_who_runs_away_earns_nothing(course: Walkthrough, tmp_path: Path) -> None:
    walk = wild_fight(course, tmp_path, RUN)
    now = walk.info["probes"]
    assert "GOT AWAY" in walk.texts[-1][-1] and (now["battle_result"], now["in_battle"]) == (2, 0)
    assert paid(walk, "battle") == paid(walk, "xp") == [] and walk.game.milestones["first_win"] is None
    walk.game.close()


def test_who_loses_passes_by_255_and_wakes_at_rest(course: Walkthrough, tmp_path: Path) -> None:
    walk = wild_fight(course, tmp_path, BALL)  # he has none: the opponent alone hits
    for _ in range(6):
        now = walk.step("noop")
    fights = [before["in_battle"] for before, _ in walk.rows]
    assert 255 in fights and fights[fights.index(255) - 1] == 1 and fights[-1] == 0
    assert (now["battle_result"], now["map"], now["money"], now["party_1_hp"]) == (1, 37, 0, now["party_1_max_hp"])
    assert paid(walk, "battle") == [] and sum(paid(walk, "hp")) == pytest.approx(-0.05 * now["party_1_max_hp"])
    walk.game.close()


def test_who_flees_by_himself_is_not_beaten(course: Walkthrough) -> None:
    fled = [text for text in course.texts if "IS GONE" in "\n".join(text)]
    assert fled, "no wild one fled on this way: choose another seed"
    for (before, _), (now, terms) in zip(course.rows, course.rows[1:], strict=False):
        if before["in_battle"] == 1 and not now["in_battle"] and now["battle_result"] == 0:
            assert bool(terms["battle"]) == (now["opponent_hp"] == 0)


# --- states archived at milestones
@pytest.mark.parametrize("name", ["first_member", "boulder_badge"])
def test_a_state_is_its_moment_and_not_more(course: Walkthrough, name: str) -> None:
    step = course.game.milestones[name]
    assert step is not None
    then, _ = course.rows[step - 1]
    game = make(state=str(course.folder / f"{name}.state"))
    now = game.reset(seed=0)[1]["probes"]
    lasting = ("map", "x", "y", "badges", "species_owned", "events", "money", "party_count", "party_1_xp", "party_1_hp")
    assert {n: now[n] for n in lasting} == {n: then[n] for n in lasting}
    assert sum(game.step(0)[4]["terms"].values()) == pytest.approx(-0.001)  # what was won before is not paid again
    later = [n for n, at in course.game.milestones.items() if at is not None and at > step]
    assert all(game.milestones[n] is None for n in later if n != "first_win")
    game.close()


def test_one_goes_on_from_a_state(course: Walkthrough, tmp_path: Path) -> None:
    walk = begin(tmp_path, state=str(course.folder / "cerulean_city.state"))
    walk.play(lambda now: now["badges"] == 3, 400)
    assert paid(walk, "badge") == [10] and walk.game.milestones["cascade_badge"]
    walk.game.close()


# --- sound
@pytest.mark.parametrize(("action", "effect"), [("down", 1), ("start", 3)])
def test_a_bump_and_a_page_are_heard(action: str, effect: int) -> None:
    def listen(do: str) -> tuple[np.ndarray, int]:
        game = make(sample_rate=32_768)
        game.reset(seed=0)
        opening = [*["noop"] * 20, "start", *["noop"] * 9, "a", *["noop"] * 3]
        plan = [*opening, do, "noop", "noop", "a", "noop", "noop"]  # below him is a box; A closes the status
        sounds = [game.step(game.action_names.index(a))[0]["audio"] for a in plan]
        told = game.unwrapped.machine.read(0xC0EE, 1)[0]
        game.close()
        return np.concatenate(sounds[len(opening) :], 1).astype(int), told

    (still, _), (heard, told) = listen("noop"), listen(action)
    length = min(still.shape[1], heard.shape[1])
    assert told == effect and still.std() > 0 and np.abs(heard[:, :length] - still[:, :length]).max() > 1_000


# --- a policy for recordings
def test_noise_spoils_the_share_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Toy:
        name, action_names = "toy", ["noop", "a", "b", "up"]

        class machine:  # noqa: N801
            rom = b""

            @staticmethod
            def read(address: int, length: int) -> bytes:
                return bytes(length)

    monkeypatch.setitem(PLAYERS["scripted"], "toy", ("tests", "none"))
    monkeypatch.setattr("importlib.import_module", lambda name: type("M", (), {"none": lambda seed: lambda read, last: "a"}))
    policies = [PlayerPolicy(Toy(), noise) for noise in (0.0, 0.4, 1.0)]
    played = [np.mean([policy(None, {}) != 1 for _ in range(4_000)]) for policy in policies]
    stray = [noise * 0.375 / (1 - 0.5 * noise) for noise in (0.0, 0.4, 1.0)]  # half a draw of four, half what came before
    assert played[0] == 0 and np.abs(np.subtract(played, stray)).max() < 0.05
    again = PlayerPolicy(Toy(), 0.4)
    again.reset(5)
    first = [again(None, {}) for _ in range(100)]
    again.reset(5)
    assert first == [again(None, {}) for _ in range(100)]


def test_with_noise_it_reaches_its_milestones_and_is_recorded(tmp_path: Path) -> None:
    settings = {"profile": "course", "ticks_per_step": 8, "sample_rate": 0, "max_steps": 400}
    record(f"gameboy:{ROM}", tmp_path / "store", policy="scripted:0.1", steps=400, seed=2, settings=settings)
    store = Store.open(tmp_path / "store")
    assert store.episodes[0].about["policy"] == "scripted:0.1"
    episode = store.read(0)
    assert episode.probes["party_count"].max() >= 1 and 1 in episode.probes["map"]


def test_a_game_without_a_player_says_so() -> None:
    class Other:
        name, action_names, machine = "other", ["noop"], None

    with pytest.raises(UsageError, match="no scripted player of 'other', only of BONK, COURSE"):
        make_policy("scripted", Other())
    with pytest.raises(UsageError, match="a share, such as scripted:0.1"):
        make_policy("scripted:much", Other())
