"""What Bonk's senses are worth: `python games/bonk/players.py` plays scripted players for a few episodes and prints a table.

The players are those of `metabonk.play.bonk_players`, and one that knows nothing. The tests drive the game from here too.
"""

import argparse
import io
import random
import statistics
from collections.abc import Callable

import numpy as np
from pyboy import PyBoy

from metabonk.play.bonk import ROM, BonkSettings, start, symbols
from metabonk.play.bonk_players import PAD, Champion, Collector, View, walk

__all__ = ["ACTIONS", "Champion", "Collector", "Console", "RandomPlayer", "View", "episode", "walk"]
SYMBOLS = symbols()
ACTIONS = ("noop", *PAD, "a", "b", *(f"{way}_a" for way in PAD))


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
        if name not in SYMBOLS:
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

    def read(self, address: int, length: int) -> bytes:
        """Bytes of the memory."""
        return bytes(self.boy.memory[address : address + length])

    def close(self) -> None:
        self.boy.stop(save=False)


class RandomPlayer:
    """Any action, each held for some steps."""

    def __init__(self, seed: int = 0, hold: float = 0.85):
        self.random, self.hold, self.action = random.Random(seed), hold, "noop"

    def __call__(self, view: View) -> str:
        if self.random.random() >= self.hold:
            self.action = self.random.choice(ACTIONS)
        return self.action


def episode(player: Callable[[View], str], settings: BonkSettings, seed: int, steps: int = 900) -> dict[str, float]:
    """One episode of at most this many steps of four frames; what memory counted."""
    console, step = Console(settings, seed), 0
    while step < steps and not console.game_over:
        console.tick(player(View(console.read)), 4)
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
