"""Contenders that take turns, so that what else the computer does falls on all of them."""

from collections.abc import Callable, Mapping

import torch


def fastest(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float], threads: int
) -> dict[str, float]:
    "Seconds of the fastest round of each, on one thread or on all; they take turns"
    times: dict[str, float] = dict.fromkeys(contenders, float("inf"))
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        for _ in range(rounds):
            for name, call in contenders.items():
                start = clock()
                call()
                times[name] = min(times[name], clock() - start)
    return times
