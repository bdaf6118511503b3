"""Recording Bonk beside the bare emulator: rates as ratios in one run, and bytes a step.

python benchmarks/recording.py
python benchmarks/recording.py --steps 3000 --rounds 5

The bare loop is PyBoy alone: the same ROM, the same actions, four ticks a step, each tick with its sound copied, the
last one with its picture copied in the console's own size. The recorded loop is all that a user gets: the game
interface, a sticky random player, pictures of 64 x 64, all sound, probes and reward terms, compressed and on the disk
when the clock stops. Both are timed in turns, and the medians of their rates are compared.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from metabonk.play.game import Game, make_game
from metabonk.record.recorder import Recorder, Recording, play_on, record, recording_schema
from metabonk.record.store import Store


class Actions:
    """The same sticky random actions for every loop."""

    def __init__(self, count: int, actions: int) -> None:
        self.all = np.repeat(np.random.default_rng(0).integers(0, actions, count // 8 + 1), 8)[:count].tolist()

    def reset(self, seed: int) -> None:
        """Episodes go on where the last one ended."""

    def __call__(self, observation: object, info: object) -> int:
        self.place = (getattr(self, "place", -1) + 1) % len(self.all)
        return self.all[self.place]


def bare(game: Game, actions: list[int]) -> float:
    """Steps a second of the emulator alone."""
    game.reset(seed=0)
    machine = game.machine
    boy = machine._boy
    started = time.perf_counter()
    for action in actions:
        sounds = []
        for number in range(4):
            machine.tick(action, False) if number < 3 else machine.tick(action, True)
            sounds.append(boy.sound.ndarray.copy())
        picture = boy.screen.ndarray.copy()
        np.concatenate(sounds)
        del picture
    return len(actions) / (time.perf_counter() - started)


def stepped(game: Game, actions: list[int]) -> float:
    """Steps a second of the game interface, without recording."""
    game.reset(seed=0)
    resets, started = 0.0, time.perf_counter()
    for action in actions:
        *_, terminated, truncated, _ = game.step(action)
        if terminated or truncated:
            begun = time.perf_counter()
            game.reset()
            resets += time.perf_counter() - begun
    return len(actions) / (time.perf_counter() - started - resets)


def recorded(game: Game, actions: list[int], folder: Path) -> tuple[float, float, float]:
    """Steps a second until all is on the disk, how many while playing, and bytes a step."""
    _, info = game.reset(seed=0)
    with contextlib.closing(Recording(folder, recording_schema(game, info))) as recording:
        recorder = Recorder(game, recording, "benchmark")
        recorder.begin_stream()
        policy, resets = Actions(len(actions), game.action_space.n), 0.0
        policy.all = actions
        real = game.reset

        def reset(**given: object) -> object:
            nonlocal resets
            begun = time.perf_counter()
            out = real(**given)
            resets += time.perf_counter() - begun
            return out

        game.reset = reset  # starting the machine is not what is measured, in no loop
        try:
            started = time.perf_counter()
            play_on(recorder, policy, steps=len(actions))
            played = time.perf_counter() - started - resets
            recording.close()
            stored = time.perf_counter() - started - resets
        finally:
            game.reset = real
    store = Store.open(folder)
    return len(actions) / stored, len(actions) / played, store.nbytes / len(actions)


def several(folder: Path, games: int, steps: int, parallel: str) -> float:
    """Steps a second of whole calls of `record`; the time to start the processes is taken out by a short call."""
    short, times = 64, []
    for number, count in enumerate((short, steps)):
        started = time.perf_counter()
        record("bonk", folder / f"{games}-{parallel}-{number}", steps=count * games, games=games, parallel=parallel)
        times.append(time.perf_counter() - started)
    return (steps - short) * games / (times[1] - times[0])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000, help="steps in each loop")
    parser.add_argument("--rounds", type=int, default=3, help="how often each loop runs")
    options = parser.parse_args()
    game = make_game("bonk")
    actions = Actions(options.steps, game.action_space.n).all
    rates: dict[str, list[float]] = {"bare": [], "stepped": [], "recorded": [], "while playing": []}
    sizes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(options.rounds):
            rates["bare"].append(bare(game, actions))
            rates["stepped"].append(stepped(game, actions))
            stored, played, size = recorded(game, actions, folder / str(number))
            rates["recorded"].append(stored)
            rates["while playing"].append(played)
            sizes.append(size)
        game.close()
        base = statistics.median(rates["bare"])
        for kind, found in rates.items():
            rate = statistics.median(found)
            print(f"{kind:15} {rate:8.0f} steps/s  {rate / base:6.1%} of the bare loop")
        print(f"{'size':15} {statistics.median(sizes):8.0f} bytes a step")
        one = several(folder, 1, options.steps, "processes")
        for parallel in ("threads", "processes"):
            two = several(folder, 2, options.steps, parallel)
            print(f"two {parallel:11} {two:8.0f} steps/s  {two / one:5.2f} times one")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
