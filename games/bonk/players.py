"""Scripted players for Bonk, and what their senses are worth.

`python games/bonk/players.py` plays each of them for a few episodes and prints a table. They read the game's memory
instead of picture and sound, but each only what its senses would tell: one that cannot hear knows nothing of a charger
before it is in the picture, and nothing of a coin in the dark. The tests play with them too.
"""

import argparse
import io
import random
import statistics
from collections import deque
from collections.abc import Callable

import numpy as np
from pyboy import PyBoy

from metabonk.play.bonk import ROM, BonkSettings, start, symbols

SYMBOLS = symbols()
AT = {name: symbol.address for name, symbol in SYMBOLS.items()}
PAD = ("up", "down", "left", "right")
ACTIONS = ("noop", *PAD, "a", "b", *(f"{way}_a" for way in PAD))
FLOOR, KEY = 0, 6  # kinds of cells that the hero can enter
BOSS = 3  # kind of opponent
NEIGHBOURS = {0: "E", 1: "SEW", 2: "SW", 3: "ES", 4: "NESW", 5: "WNS", 6: "N", 7: "NE", 8: "WN"}  # doors of each screen
SCREEN_STEP = {"N": -3, "S": 3, "E": 1, "W": -1}


class Console:
    """A fresh machine with Bonk at the first frame of an episode; every tick's sound is kept while `record` is set."""

    def __init__(self, settings: BonkSettings | None = None, seed: int = 1, rate: int = 24_000, begin: bool = True):
        self.boy = PyBoy(io.BytesIO(ROM.read_bytes()), window="null", sound_emulated=True, sound_sample_rate=rate,
                         log_level="ERROR")
        self.boy.set_emulation_speed(0)
        self.rate, self.held, self.record = rate, set[str](), False
        self.sounds: list[np.ndarray] = []
        if begin:
            for ticks in start(self.boy.memory, settings or BonkSettings(), seed):
                self.boy.tick(ticks)

    def __getattr__(self, name: str) -> int:
        if name not in AT:
            raise AttributeError(name)
        return int(SYMBOLS[name].read(self.boy.memory))

    def tick(self, buttons: str = "", count: int = 1) -> None:
        """Hold the buttons of an action's name (such as `left_a`) for some frames."""
        wanted = set() if buttons in ("", "noop") else set(buttons.split("_"))
        for button in self.held - wanted:
            self.boy.button_release(button)
        for button in wanted - self.held:
            self.boy.button_press(button)
        self.held = wanted
        for _ in range(count):
            self.boy.tick(1, True, True)
            if self.record:
                self.sounds.append(self.boy.sound.ndarray.copy())

    def picture(self) -> np.ndarray:
        """The screen in grey, (144, 160)."""
        return self.boy.screen.ndarray[:, :, 0].copy()

    def heard(self) -> np.ndarray:
        """All recorded sound, (samples, 2), and forget it."""
        joined = np.concatenate(self.sounds)
        self.sounds = []
        return joined

    def close(self) -> None:
        self.boy.stop(save=False)


class View:
    """What a player may know, from one read of the memory."""

    def __init__(self, console: Console):
        block = bytes(console.boy.memory[AT["phase"] : AT["cells"] + 80])

        def at(name: str) -> int:
            return block[AT[name] - AT["phase"]]

        self.x, self.y, self.hp, self.screen = at("x"), at("y"), at("hp"), at("screen")
        self.vx, self.vy = ((at(v) ^ 128) / 16 - 8 for v in ("vx", "vy"))  # pixels a frame
        self.speed = at("speed") / 16
        self.over, self.dialog, self.dark = at("game_over"), at("dialog"), at("dark")
        self.key, self.badges, self.boss_hp, self.dash_wait = at("key"), at("badges"), at("boss_hp"), at("dash_wait")
        self.charger, self.row_y = at("charger_phase"), at("charger_row") * 16 + 8
        self.hidden, self.coins = (at("coin_x"), at("coin_y")), at("coins")
        start_cells, start_spots = AT["cells"] - AT["phase"], AT["coin_cells"] - AT["phase"]
        self.cells = block[start_cells : start_cells + 80]
        spots = block[start_spots : start_spots + 8]
        self.lit = [centre(spots[i]) for i in range(8) if at("coin_mask") >> i & 1]
        rows = [block[k : k + 16] for k in range(AT["actors"] - AT["phase"], start_cells, 16)]
        self.opponents = [(r[0], r[5], r[7], r[3]) for r in rows[:4] if r[0]]  # kind, x, y, frames it still blinks

    def free(self, x: float, y: float) -> bool:
        return self.cells[cell(int(x), int(y))] in (FLOOR, KEY)


def cell(x: int, y: int) -> int:
    """Cell of a place in pixels."""
    return (y >> 4) * 10 + (x >> 4)


def centre(index: int) -> tuple[int, int]:
    """Middle of a cell in pixels."""
    return index % 10 * 16 + 8, index // 10 * 16 + 8


def direction(dx: float, dy: float) -> str:
    """Button along the longer axis."""
    return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")


def steer(view: View, x: float, y: float) -> str:
    """Push towards a point so that momentum carries onto it."""
    dx, dy = x - view.x - 9 * view.vx, y - view.y - 9 * view.vy
    if abs(dx) < 3 and abs(dy) < 3:
        return "b" if view.speed > 0.6 else "noop"
    return direction(dx, dy)


def path(cells: bytes, first: int, last: int) -> list[int]:
    """Cells from first to last around what is solid; empty where there is no way."""
    before: dict[int, int | None] = {first: None}
    queue = deque([first])
    while queue and last not in before:
        here = queue.popleft()
        row, column = divmod(here, 10)
        for step, inside in ((-1, column > 0), (1, column < 9), (-10, row > 0), (10, row < 7)):
            there = here + step
            if inside and there not in before and (cells[there] in (FLOOR, KEY) or there == last):
                before[there] = here
                queue.append(there)
    found, at = [], last if last in before else None
    while at is not None:
        found.append(at)
        at = before[at]
    return found[::-1]


def walk(view: View, x: int, y: int) -> str | None:
    """One push on the way to a point; None where no way leads there."""
    cells = path(view.cells, cell(view.x, view.y), cell(x, y))
    if len(cells) < 2:
        return steer(view, x, y) if cells else None
    step, straight = cells[1] - cells[0], 1
    while straight + 1 < len(cells) and cells[straight + 1] - cells[straight] == step:
        straight += 1
    to = (x, y) if straight == len(cells) - 1 else centre(cells[straight])
    middle = centre(cells[0])
    if abs(step) == 1:  # along a row: first onto its middle, so that no corner catches
        off, drift = middle[1] - view.y, 9 * view.vy
        if abs(off - drift) > (3 if abs(off) > 3 else 8):
            return "down" if off > drift else "up"
        return steer(view, to[0], view.y)
    off, drift = middle[0] - view.x, 9 * view.vx
    if abs(off - drift) > (3 if abs(off) > 3 else 8):
        return "right" if off > drift else "left"
    return steer(view, view.x, to[1])


class RandomPlayer:
    """Any action, each held for some steps."""

    def __init__(self, seed: int = 0, hold: float = 0.85):
        self.random, self.hold, self.action = random.Random(seed), hold, "noop"

    def __call__(self, view: View) -> str:
        if self.random.random() >= self.hold:
            self.action = self.random.choice(ACTIONS)
        return self.action


class Collector:
    """Goes for the nearest coin and fights what comes near; in the dark it searches, or follows the hum."""

    def __init__(self, seed: int = 0, ears: bool = False, fights: bool = True):
        self.random, self.ears, self.fights = random.Random(seed), ears, fights
        self.goal: int | None = None
        self.seen: dict[int, int] = {}
        self.time, self.coins, self.still, self.place = 0, 0, 0, (0, 0, 0)

    def __call__(self, view: View) -> str:
        if view.dialog:
            return self.random.choice(("a", "noop"))
        place = (view.x // 4, view.y // 4, view.screen)
        self.still = self.still + 1 if place == self.place else 0
        self.place = place
        if self.still > 25:
            self.still = 0
            return f"{self.random.choice(PAD)}_a"
        known = view.charger if self.ears else view.charger == 2
        action = (self.dodge(view) if known else None) or (self.fight(view) if self.fights else None)
        if action:
            return action
        target = self.target(view)
        action = walk(view, *target)
        if action is None:
            self.goal = None
            return self.random.choice(PAD)
        if known:  # do not step into the charger's row
            y = view.y + 10 * view.vy + {"up": -6, "down": 6}.get(action, 0)
            if abs(y - view.row_y) < 20:
                return "b"
        return action

    def dodge(self, view: View) -> str | None:
        """Out of the charger's row, to the nearest free cell above or below it."""
        if abs(view.y + 6 * view.vy - view.row_y) >= 18:
            return None
        here, row = cell(view.x, view.y), view.row_y // 16
        ways = []
        for there in (r * 10 + c for r in (row - 1, row + 1) if 1 <= r <= 6 for c in range(1, 9)):
            if view.cells[there] == FLOOR and (cells := path(view.cells, here, there)):
                x, y = centre(there)
                ways.append((len(cells), abs(x - view.x - 9 * view.vx) + abs(y - view.y - 9 * view.vy), x, y))
        if not ways:
            return None
        *_, x, y = min(ways)
        way = walk(view, x, y)
        return f"{way}_a" if way in ("up", "down") and not view.dash_wait else way

    def fight(self, view: View) -> str | None:
        for _, x, y, blinks in view.opponents:
            dx, dy = x - view.x, y - view.y
            if blinks or max(abs(dx), abs(dy)) >= 34:
                continue
            if not view.dash_wait and min(abs(dx), abs(dy)) < 9:
                return f"{direction(dx, dy)}_a"
            if view.speed < 1.6 and max(abs(dx), abs(dy)) < 26:
                return direction(-dx, -dy)
        return None

    def target(self, view: View) -> tuple[int, int]:
        if not view.dark and view.lit:
            return min(view.lit, key=lambda p: abs(p[0] - view.x) + abs(p[1] - view.y))
        if view.dark and self.ears:
            return view.hidden if view.hidden[0] else (80, 64)
        if view.coins != self.coins:
            self.coins, self.seen = view.coins, {}
        here, self.time = cell(view.x, view.y), self.time + 1
        self.seen[here] = self.time
        if self.goal in (None, here) or self.random.random() < 0.01:  # the cell that was not visited for longest
            inside = [c for c in range(80) if view.cells[c] == FLOOR and 0 < c % 10 < 9 and 0 < c // 10 < 7]
            oldest = min(self.seen.get(c, 0) for c in inside)
            x, y = here % 10, here // 10
            self.goal = min((c for c in inside if self.seen.get(c, 0) == oldest),
                            key=lambda c: abs(c % 10 - x) + abs(c // 10 - y) + self.random.random())
        assert self.goal is not None
        return centre(self.goal)


class Champion(Collector):
    """Key, locked door, Brute, gate, King: plays the game to its end."""

    def __init__(self, seed: int = 0):
        super().__init__(seed, ears=True)

    def fight(self, view: View) -> str | None:
        boss = [(x, y, blinks) for kind, x, y, blinks in view.opponents if kind == BOSS]
        if not boss:
            return super().fight(view)
        x, y, blinks = boss[0]
        dx, dy = x - view.x, y - view.y
        near, far = sorted((abs(dx), abs(dy)))
        if not blinks and not view.dash_wait and near < 15 and far < 52:
            return f"{direction(dx, dy)}_a"
        if not blinks and view.speed > 1.9 and view.vx * dx + view.vy * dy > 0:
            return direction(dx, dy)
        if far < 44 or blinks:  # too near for a run-up, or it takes no hits now
            ways = {"up": (0, -24), "down": (0, 24), "left": (-24, 0), "right": (24, 0)}
            after = {w: (view.x + 8 * view.vx + a, view.y + 8 * view.vy + b) for w, (a, b) in ways.items()}
            after = {w: p for w, p in after.items() if 20 < p[0] < 140 and 20 < p[1] < 108}
            if after:
                return max(after, key=lambda w: abs(x - after[w][0]) + abs(y - after[w][1]))
        return steer(view, view.x, y) if abs(dx) > abs(dy) else steer(view, x, view.y)

    def target(self, view: View) -> tuple[int, int]:
        goal = 0 if view.badges & 1 else 6 if view.key else 2
        if view.screen == goal:
            return (136, 24) if goal == 2 else (80, 64)
        shut = {(3, "S")} if not view.key else set()
        door = way_to(view.screen, goal, shut if view.badges & 1 else shut | {(1, "W")})
        x, y = (88 if view.x >= 80 else 72), (72 if view.y >= 64 else 56)
        return {"N": (x, 0), "S": (x, 127), "E": (159, y), "W": (0, y)}[door]


def way_to(screen: int, goal: int, shut: set[tuple[int, str]]) -> str:
    """Door of a screen that leads to another screen the shortest way."""
    first: dict[int, str] = {screen: ""}
    queue = deque([screen])
    while goal not in first:
        here = queue.popleft()
        for door in NEIGHBOURS[here]:
            there = here + SCREEN_STEP[door]
            if there not in first and (here, door) not in shut:
                first[there] = first[here] or door
                queue.append(there)
    return first[goal]


def episode(player: Callable[[View], str], settings: BonkSettings, seed: int, steps: int = 900) -> dict[str, float]:
    """One episode of at most this many steps of four frames; what memory counted."""
    console, step = Console(settings, seed), 0
    while step < steps and not console.game_over:
        console.tick(player(View(console)), 4)
        step += 1
    counted = ("score", "coins", "beaten", "hits", "charger_hits", "announced", "win", "late")
    result = {name: getattr(console, name) for name in counted} | {"seconds": step * 4 / 59.7275}
    console.close()
    return result


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description="What the senses are worth: mean over episodes of each player.")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--steps", type=int, default=900, help="of four frames")
    options = parser.parse_args()
    worlds = {
        "as the map says": BonkSettings(),
        "chargers everywhere, all lit": BonkSettings(chargers=2, darkness=0),
        "no chargers, all dark": BonkSettings(chargers=0, darkness=2, start_screen=8),
        "chargers everywhere, all dark": BonkSettings(chargers=2, darkness=2, start_screen=8),
    }
    players: dict[str, Callable[[int], Callable[[View], str]]] = {
        "random": lambda seed: RandomPlayer(seed, 0.0),
        "sticky random": RandomPlayer,
        "sees": Collector,
        "sees and hears": lambda seed: Collector(seed, ears=True),
    }
    print("| world | player | score | score a minute | coins | beaten | hurt | by chargers of | seconds |\n|" + "---|" * 9)
    for world, settings in worlds.items():
        for name, make in players.items():
            runs = [episode(make(seed), settings, seed, options.steps) for seed in range(1, options.episodes + 1)]
            mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
            print(f"| {world} | {name} | {mean['score']:.1f} | {60 * mean['score'] / mean['seconds']:.1f} "
                  f"| {mean['coins']:.1f} | {mean['beaten']:.1f} | {mean['hits']:.1f} "
                  f"| {mean['charger_hits']:.1f} of {mean['announced']:.1f} | {mean['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
