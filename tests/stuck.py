"""A recording whose players do not return: run by `test_recorder.py` as a process of its own"""

import functools
import hashlib
import itertools
import os
import signal
import sys
from typing import Any

from metabonk.record.recorder import record
from metabonk.record.stopping import Stop

Stop.patience = float(sys.argv[4])  # in the processes that are started from here, too


class Stuck:
    """A player whose hundredth step does not return from C code, with or without Python's lock."""

    name = "stuck"

    def __init__(self, lock: str) -> None:
        self.lock = lock

    def reset(self, seed: int) -> None:
        self.calls = 0

    def __call__(self, observation: Any, info: Any) -> int:
        self.calls += 1
        if self.calls == 100:
            tell = functools.partial(os.write, 1)  # whole lines, whoever else writes
            if self.lock == "held":  # no line of Python runs between the word and the loop
                sum(itertools.chain(map(tell, [b"stuck\n"]), itertools.repeat(0)))
            if self.lock == "asked":  # the main thread answers the first signal, and then does not return
                os.kill(os.getpid(), signal.SIGTERM)
            tell(b"stuck\n")
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        return 0


if __name__ == "__main__":
    path, where, lock, _ = sys.argv[1:]
    record("minatar:freeway", path, Stuck(lock), steps=10**6, games=1 if where == "alone" else 2, chunk_steps=16,
           parallel="processes" if where == "processes" else "threads")
