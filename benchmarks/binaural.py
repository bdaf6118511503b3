"""Impulse responses of a room, ours for two ears on a head against pyroomacoustics' for one microphone, on one thread

    python benchmarks/binaural.py [--rounds 9] [--orders 3 6 10]

Both compute the images of one source in the same shoebox and add them up at 16 kHz. Ours then has a head, with a shadow
for each image and ear, and a late tail; theirs has neither. The two take turns, and each round compares its calls with the
other's next to them, in processor time; what counts is the median of these ratios. The last line is a whole step's
sound: response, convolution and cross-fade, for 0.15 s of both ears.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the libraries start their threads

import numpy as np  # noqa: E402
import pyroomacoustics  # noqa: E402

from metabonk.play.binaural import (  # noqa: E402
    RATE,
    WALLS,
    Acoustics,
    AcousticsConfig,
    Arrival,
    Listener,
    Room,
    telephone_ring,
)

ROOM = Room(absorption=(0.2, 0.25, 0.3, 0.2, 0.4, 0.3))
SOURCE, POSE = Arrival(1.2, 3.1, 0.8), (3.6, 1.2, 1.0)


def microseconds(function: Callable[[], object], calls: int) -> float:
    "Processor time of one call"
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls * 1e6


def judge(order: int) -> Callable[[], object]:
    "A new position of the microphone in pyroomacoustics"
    materials = {w: pyroomacoustics.Material(a) for w, a in zip(WALLS, ROOM.absorption, strict=True)}
    pyroomacoustics.constants.set("num_threads", 1)

    def respond() -> object:
        room = pyroomacoustics.ShoeBox(ROOM.size, RATE, materials=materials, max_order=order, air_absorption=False)
        room.add_source(list(SOURCE[:3]))
        room.add_microphone([*POSE[:2], 1.5])
        room.compute_rir()
        return room.rir[0][0]

    return respond


def main() -> None:
    "Measure and tell"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--orders", type=int, nargs="+", default=[3, 6, 10])
    arguments = parser.parse_args()
    for order in arguments.orders:
        acoustics, theirs = Acoustics(ROOM, AcousticsConfig(order=order)), judge(order)
        listener = Listener(telephone_ring())

        def ours(acoustics: Acoustics = acoustics) -> np.ndarray:
            return acoustics.response(POSE, SOURCE)

        def step(acoustics: Acoustics = acoustics, listener: Listener = listener) -> np.ndarray:
            return listener.step(acoustics.response(POSE, SOURCE))

        step(), theirs()
        rounds = [(microseconds(ours, 40), microseconds(theirs, 3), microseconds(step, 40)) for _ in range(arguments.rounds)]
        a, b, c = np.array(rounds).T
        low, middle, high = np.quantile(b / a, [0.1, 0.5, 0.9])
        print(
            f"order {order}: ours {np.median(a):.0f} us, pyroomacoustics {np.median(b):.0f} us: ours is {middle:.0f} times "
            f"as fast (80 % of rounds between {low:.0f} and {high:.0f}); a step's sound {np.median(c):.0f} us"
        )


if __name__ == "__main__":
    main()
