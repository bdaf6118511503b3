"""Rooms: whole frames a second on one core, beside a loop over pyroomacoustics and a plain numpy raycaster.

python benchmarks/rooms.py
python benchmarks/rooms.py --steps 2000 --rounds 5

A whole frame is a step of the game: the motion with its collisions, the shortest path, the picture, the impulse response
of both ears, and 0.15 s of sound with its cross-fade. The plain loop does what is usually done: a pyroomacoustics
shoebox for every pose, with two microphones where the ears are and as many reflections (its two ears have no head
between them, and no late reverberation), the past of the ring convolved with its two responses and cross-faded, and a
raycaster of numpy operations, one column after the other: walls, floor and ceiling, without furniture. Both walk the
same way through the same home, in turns. `long` is the plain loop with the reflections that the room's reverberation
time asks for, which is how pyroomacoustics makes what our late tail stands for.

Rates are frames a second of processor time, at the median of the rounds, which other work on the computer leaves alone;
those by the clock stand beside them.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_threads] = "1"  # one core

import numpy as np  # noqa: E402
import pyroomacoustics as pra  # noqa: E402
from scipy.signal import fftconvolve  # noqa: E402

from metabonk.play.binaural import FADE, HEAD_RADIUS, RATE, STEP, telephone_ring  # noqa: E402
from metabonk.play.game import Game, make_game  # noqa: E402
from metabonk.play.plans import EYE, Plan  # noqa: E402
from metabonk.play.raycast import FADE as DARK  # noqa: E402
from metabonk.play.raycast import TEXELS, TILE, Scene, paint  # noqa: E402
from metabonk.play.rooms import Moment  # noqa: E402

TAPS = 8_000


class Timing(NamedTuple):
    """How fast a loop was."""

    rate: float  # frames a second of processor time
    wall: float  # frames a second by the clock


def timed(frames: Iterator[object], count: int) -> Timing:
    """Take so many frames."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(frames)
    return Timing(count / (time.process_time() - cpu), count / (time.perf_counter() - wall))


def way(game: Game) -> Iterator[int]:
    """Actions that lead around the home."""
    generator = np.random.default_rng(0)
    while True:
        yield int(generator.choice(3, p=(0.6, 0.2, 0.2)))


def ours(game: Game) -> Iterator[Moment]:
    """Whole frames of the game, and where each was."""
    game.reset(seed=1)
    for action in way(game):
        game.step(action)
        yield game.machine.moment


def plain_picture(plan: Plan, scene: Scene, moment: Moment, size: int) -> np.ndarray:
    """Walls, floor and ceiling, one column after the other."""
    image, focal, rows = np.empty((size, size, 3), np.uint8), size / 2, np.arange(size) + 0.5
    walls, here = plan.home.walls, plan.home.room(moment.x, moment.y)
    for column in range(size):
        off = (size / 2 - column - 0.5) / focal
        dx = math.cos(moment.heading) - off * math.sin(moment.heading)
        dy = math.sin(moment.heading) + off * math.cos(moment.heading)
        upright = walls[:, 0] == walls[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = np.where(upright, (walls[:, 0] - moment.x) / dx, (walls[:, 1] - moment.y) / dy)
            place = np.where(upright, moment.y + depth * dy, moment.x + depth * dx)
        low, high = np.where(upright, walls[:, 1], walls[:, 0]), np.where(upright, walls[:, 3], walls[:, 2])
        depth = np.where((depth > 1e-6) & (low <= place) & (place <= high), depth, np.inf)
        first = int(depth.argmin())
        near = depth[first]
        top, bottom = size / 2 - focal * (plan.home.height - EYE) / near, size / 2 + focal * EYE / near
        down = np.clip((rows - top) / (bottom - top) * TEXELS, 0, TEXELS - 1).astype(int)
        paper = scene.papers[here][down, int(place[first] / TILE * TEXELS) % TEXELS] / (1 + DARK * near)
        ground = focal * EYE / np.maximum(rows - size / 2, 0.5)
        u = ((moment.x + ground * dx) / TILE * TEXELS).astype(int) % TEXELS
        v = ((moment.y + ground * dy) / TILE * TEXELS).astype(int) % TEXELS
        floor = scene.floors[here][v, u] / (1 + DARK * ground)[:, None]
        colour = np.where((rows < top)[:, None], scene.ceilings[here], np.where((rows > bottom)[:, None], floor, paper))
        image[:, column] = colour
    return image


def plain_responses(plan: Plan, moment: Moment, long: bool) -> np.ndarray:
    """Impulse responses (2, TAPS) of two microphones in a shoebox."""
    heard = plan.heard(moment.x, moment.y)
    x0, y0, x1, y1 = plan.home.rooms[heard.room]
    share, order = plan.home.absorption[heard.room], 3
    if long:
        x, y, z = x1 - x0, y1 - y0, plan.home.height
        order = pra.inverse_sabine(0.161 * x * y * z / (2 * (x * y + x * z + y * z) * share), (x, y, z))[1]
    room = pra.ShoeBox((x1 - x0, y1 - y0, plan.home.height), RATE, materials=pra.Material(share), max_order=order)

    def inside(x: float, y: float, z: float) -> tuple[float, float, float]:
        return float(np.clip(x - x0, 0.01, x1 - x0 - 0.01)), float(np.clip(y - y0, 0.01, y1 - y0 - 0.01)), z

    room.add_source(inside(heard.x, heard.y, plan.home.source[2]))
    left = HEAD_RADIUS * np.array([-math.sin(moment.heading), math.cos(moment.heading)])
    ears = [inside(moment.x + side * left[0], moment.y + side * left[1], EYE) for side in (1, -1)]
    room.add_microphone_array(np.array(ears).T)
    room.compute_rir()
    responses = np.zeros((2, TAPS))
    for ear in range(2):
        found = room.rir[ear][0][:TAPS]
        responses[ear, : len(found)] = found
    return responses


def plain(game: Game, moments: list[Moment], size: int, long: bool) -> Iterator[np.ndarray]:
    """The same frames by the plain loop."""
    plan, ring, before = game.machine.plan, telephone_ring().astype(float), None
    scene, index = paint(plan.home), 0
    ramp = np.linspace(0, 1, FADE)
    while True:
        for moment in moments:
            plain_picture(plan, scene, moment, size)
            past = ring[np.arange(index - TAPS, index + STEP) % len(ring)]
            now = plain_responses(plan, moment, long)
            sound = np.stack([fftconvolve(past, response, "valid")[-STEP:] for response in now])
            if before is not None:
                old = np.stack([fftconvolve(past[: TAPS + FADE], response, "valid")[-FADE:] for response in before])
                sound[:, :FADE] = old + (sound[:, :FADE] - old) * ramp
            before, index = now, (index + STEP) % len(ring)
            yield np.clip(np.rint(sound), -32_768, 32_767).astype(np.int16)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000, help="steps of the game in a round")
    parser.add_argument("--plain", type=int, default=30, help="steps of the plain loop in a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often each loop runs")
    options = parser.parse_args()
    found: dict[tuple[str, int], list[Timing]] = {}
    for size in (64, 128):
        names = {"image_size": (size, size), "max_steps": None, "actions": ("forward", "left", "right")}
        game, silent = make_game("rooms", **names), make_game("rooms", **names, sample_rate=0)
        frames, pictures = ours(game), ours(silent)
        moments = [next(frames) for _ in range(200)]  # also compiles
        next(pictures)
        loops: dict[str, Callable[[], Timing]] = {
            "frames": lambda: timed(frames, options.steps),  # noqa: B023
            "without sound": lambda: timed(pictures, options.steps),  # noqa: B023
            "plain": lambda: timed(plain(game, moments, size, False), options.plain),  # noqa: B023
            "plain, long": lambda: timed(plain(game, moments, size, True), max(2, options.plain // 10)),  # noqa: B023
        }
        for _ in range(options.rounds):
            for name, loop in loops.items():
                found.setdefault((name, size), []).append(loop())
    middle = {key: Timing(*map(statistics.median, zip(*times, strict=True))) for key, times in found.items()}
    for (name, size), timing in middle.items():
        ratio = middle["frames", size].rate / timing.rate
        print(f"{size:4} px  {name:14} {timing.rate:8.1f} frames/s of processor time  {timing.wall:8.1f} by the clock"
              f"  ours is {ratio:7.1f} times as fast")  # fmt: skip
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
