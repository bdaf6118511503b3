"""What a planner's call adds to a step: the same play with a planner that was asked nothing, and with a call in flight.

`python benchmarks/planner.py` starts a server on loopback that answers after `--answer` seconds, plays the real game Bonk
with pictures, and prints percentiles of the time of `PlannerLoop.step` and of whole steps, in alternating blocks.
"""

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from metabonk.act.goals import Goals
from metabonk.act.language_planner import LanguagePlanner, LanguagePlannerConfig
from metabonk.act.planner_loop import LoopConfig, PlannerLoop
from metabonk.play.game import make_game
from metabonk.play.profile import load_profile

ANSWER = {"choice": "place loft", "text": "Go to the loft", "rationale": "The key is there."}


class Double(BaseHTTPRequestHandler):
    """Thinks for a while, then says the same thing."""

    seconds = 30.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.seconds)
        choice = {"message": {"role": "assistant", "content": json.dumps(ANSWER)}, "finish_reason": "stop"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer", type=float, default=30.0, help="seconds until the double answers")
    parser.add_argument("--calls", type=int, default=2, help="calls to be measured")
    parser.add_argument("--hz", type=float, default=60.0, help="steps a second")
    options = parser.parse_args()
    Double.seconds = options.answer
    server = ThreadingHTTPServer(("127.0.0.1", 0), Double)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, deadline = f"http://127.0.0.1:{server.server_port}/v1", options.answer + 30
    config = LanguagePlannerConfig(base_url=url, model="double", deadline=deadline)
    goals, game, random = Goals(load_profile("bonk")), make_game("bonk", hp=9), np.random.default_rng(0)
    planner = LanguagePlanner(goals, config)
    taken: dict[str, list[tuple[float, float]]] = {"no call": [], "a call": []}

    def block(kind: str, seconds: float) -> None:
        _, info = game.reset(seed=1)
        waits = LoopConfig(gap_steps=0 if kind == "a call" else 10**9)
        with PlannerLoop(planner, goals, waits) as loop:
            loop.asker._asked = 0 if kind == "no call" else loop.asker._asked  # as if it had just been asked
            loop.reset(info["probes"], game.render())
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                began = time.perf_counter()
                _, _, ended, cut, info = game.step(int(random.integers(11)))
                image, before = game.render(), time.perf_counter()
                loop.step(info["probes"], image) if not (ended or cut) else loop.reset(game.reset()[1]["probes"], image)
                now = time.perf_counter()
                taken[kind].append((now - before, now - began))
                time.sleep(max(0.0, 1 / options.hz - (now - began)))

    for _ in range(options.calls):
        block("no call", options.answer)
        block("a call", options.answer)
    print("| | steps | loop.step, median ms | 99 % | whole step, median ms | 99 % |\n|---|---|---|---|---|---|")
    for kind, times in taken.items():
        own, whole = (np.percentile(np.array(times)[:, i] * 1e3, [50, 99]) for i in (0, 1))
        print(f"| {kind} | {len(times)} | {own[0]:.3f} | {own[1]:.3f} | {whole[0]:.2f} | {whole[1]:.2f} |")
    game.close()


if __name__ == "__main__":
    main()
