"""Recording Bonk beside the bare emulator: rates as ratios in one run, and bytes a step.

python benchmarks/recording.py
python benchmarks/recording.py --steps 3000 --rounds 5

The bare loop is PyBoy alone: the same ROM, the same episodes (a game that is over costs the console less, so each is
started anew with the seed that the recording uses), the same actions, four ticks a step, each tick with its sound
copied, the last one with its picture copied in the console's own size. The recorded loop is all that a user gets: the
game interface, a player, pictures of 64 x 64, all sound, probes and reward terms, compressed and on the disk when the
clock stops. All are timed in turns. Rates are by the clock, at the median of the rounds; processor time a step, all
threads together, is beside them, since it says more when the computer has other work.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metabonk.play.bonk import symbols
from metabonk.play.game import Game, make_game
from metabonk.record.recorder import record
from metabonk.record.recording import Recorder, Recording, episode_seeds, play_on, recording_schema
from metabonk.record.store import Store


class Timing(NamedTuple):
    """How fast a loop was."""

    rate: float  # steps a second
    cpu: float  # microseconds of processor time a step


class Actions:
    """The same sticky random actions for every loop."""

    def __init__(self, count: int, actions: int) -> None:
        self.all = np.repeat(np.random.default_rng(0).integers(0, actions, count // 8 + 1), 8)[:count].tolist()

    def reset(self, seed: int) -> None:
        """Episodes go on where the last one ended."""

    def __call__(self, observation: object, info: object) -> int:
        self.place = (getattr(self, "place", -1) + 1) % len(self.all)
        return self.all[self.place]


class Watch:
    """Time by the clock and processor time of the process, without what happens in `paused`: starting the machine."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, no time passes."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def read(self, steps: int) -> Timing:
        """Steps a second, and microseconds of processor time a step."""
        return Timing(steps / (time.perf_counter() - self.wall), (time.process_time() - self.cpu) / steps * 1e6)


def seeds() -> Iterator[int]:
    """The seeds of the episodes that a recording plays."""
    return (episode_seeds(0, 0, number)[0] for number in itertools.count())


def bare(game: Game, actions: list[int]) -> Timing:
    """The emulator alone."""
    machine, seed = game.machine, seeds()
    over = symbols()["game_over"].address
    game.reset(seed=next(seed))
    boy, held = machine._boy, ()
    watch = Watch()
    for action in actions:
        buttons = machine._buttons[action]
        if buttons != held:
            for button in held:
                boy.button_release(button)
            for button in buttons:
                boy.button_press(button)
            held = buttons
        sounds = []
        for tick in range(4):
            boy.tick(1, tick == 3, True)
            sounds.append(boy.sound.ndarray.copy())
        picture = boy.screen.ndarray.copy()
        if boy.memory[over]:
            with watch.paused():
                game.reset(seed=next(seed))
                boy, held = machine._boy, ()
    del picture
    return watch.read(len(actions))


def stepped(game: Game, actions: list[int]) -> Timing:
    """The game interface, without recording."""
    seed = seeds()
    game.reset(seed=next(seed))
    watch = Watch()
    for action in actions:
        *_, terminated, truncated, _ = game.step(action)
        if terminated or truncated:
            with watch.paused():
                game.reset(seed=next(seed))
    return watch.read(len(actions))


def recorded(game: Game, actions: list[int], folder: Path) -> tuple[Timing, Timing, float]:
    """Until all is on the disk, while playing, and bytes a step."""
    _, info = game.reset(seed=0)
    with contextlib.closing(Recording(folder, recording_schema(game, info))) as recording:
        recorder = Recorder(game, recording, "benchmark")
        recorder.begin_stream()
        policy, real = Actions(len(actions), game.action_space.n), game.reset

        def reset(**given: Any) -> Any:
            with watch.paused():
                return real(**given)

        game.reset = reset  # type: ignore[method-assign]
        try:
            watch = Watch()
            play_on(recorder, policy, steps=len(actions))
            played = watch.read(len(actions))
            recording.close()
            stored = watch.read(len(actions))
        finally:
            game.reset = real  # type: ignore[method-assign]
    store = Store.open(folder)
    return stored, played, store.nbytes / len(actions)


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
    found: dict[str, list[Timing]] = {"bare": [], "stepped": [], "recorded": [], "while playing": []}
    sizes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(options.rounds):
            found["bare"].append(bare(game, actions))
            found["stepped"].append(stepped(game, actions))
            stored, played, size = recorded(game, actions, folder / str(number))
            found["recorded"].append(stored)
            found["while playing"].append(played)
            sizes.append(size)
        game.close()
        base = statistics.median(timing.rate for timing in found["bare"])
        for kind, timings in found.items():
            rate, cpu = (statistics.median(column) for column in zip(*timings, strict=True))
            print(f"{kind:15} {rate:8.0f} steps/s  {rate / base:6.1%} of the bare loop  {cpu:6.0f} us of processor a step")
        print(f"{'size':15} {statistics.median(sizes):8.0f} bytes a step")
        one = several(folder, 1, options.steps, "processes")
        for parallel in ("threads", "processes"):
            two = several(folder, 2, options.steps, parallel)
            print(f"two {parallel:11} {two:8.0f} steps/s  {two / one:5.2f} times one")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
