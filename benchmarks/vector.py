"""How fast games are: a step against the bare emulator, and several games in threads and processes

    python benchmarks/vector.py             # the table of ways to run several games
    python benchmarks/vector.py --step      # a step of Bonk against PyBoy alone

Every number is a ratio of two loops that take turns in one run, so that whatever else the computer does hits both.
"""

import argparse
import contextlib
import io
import time

import numpy as np
import pyboy

from metabonk.play import bonk
from metabonk.play.game import make_game
from metabonk.play.vector import make_vector

GAMES = ("bonk", "atari:ms_pacman", "doom:defend_the_center", "gym:CartPole-v1", "minatar:breakout")


def rate(games, actions: int, seconds: float) -> float:
    "Steps a second of all games together, for about `seconds`"
    rng, steps, start = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        games.step(rng.integers(actions, size=games.num_envs))
        steps += games.num_envs
    return steps / (time.perf_counter() - start)


def ways(names, seconds: float, rounds: int) -> None:
    "Steps a second of two games in each way, relative to one game by itself; the median of some rounds"
    print(f"{'game':24s} {'one, steps/s':>12s} {'2 serial':>9s} {'2 threads':>9s} {'2 processes':>11s}")
    for name in names:
        with contextlib.ExitStack() as stack:
            kinds = {"one": (1, "serial"), "serial": (2, "serial"), "threads": (2, "threads"), "processes": (2, "processes")}
            open_games = {}
            for kind, (count, how) in kinds.items():
                games = stack.enter_context(contextlib.closing(make_vector(name, count, how=how, workers=count)))
                games.reset(seed=0)
                open_games[kind] = games
            actions = int(open_games["one"].single_action_space.n)
            rates = {kind: [] for kind in kinds}
            for _ in range(rounds):
                for kind, games in open_games.items():
                    rates[kind].append(rate(games, actions, seconds))
            one = np.array(rates["one"])
            ratios = {kind: float(np.median(np.array(rates[kind]) / one)) for kind in kinds}
            shown = f"{ratios['serial']:9.2f} {ratios['threads']:9.2f} {ratios['processes']:11.2f}"
            print(f"{name:24s} {np.median(one):12.0f} {shown}")


def step(blocks: int) -> None:
    "The time of a step of 4 ticks, with all sound and a small picture, against PyBoy alone with copies of the same"
    game, rng = make_game("bonk", hp=9), np.random.default_rng(0)
    probes_off = make_game("bonk", hp=9, profile="none", actions=tuple(n.replace("_", "+") for n in game.action_names))
    buttons, rom = game.machine._buttons, bonk.ROM.read_bytes()

    def boot(seed: int):
        boy = pyboy.PyBoy(io.BytesIO(rom), window="null", sound_sample_rate=game.sample_rate, log_level="ERROR")
        boy.set_emulation_speed(0)
        for ticks in bonk.start(boy.memory, bonk.BonkSettings(hp=9), seed):
            boy.tick(ticks, False, False)
        for _ in range(4):
            boy.tick(1, True, True)
        return boy

    def bare(boy, actions):
        held = ()
        for action in actions:
            for button in held:
                boy.button_release(button)
            held = buttons[action]
            for button in held:
                boy.button_press(button)
            sounds = []
            for tick in range(4):
                boy.tick(1, tick == 3, True)
                sounds.append(boy.sound.ndarray.copy())
            boy.screen.ndarray.copy()

    def ours(game, actions):
        for action in actions:
            game.step(action)

    ratios, plain = [], []
    for seed in range(blocks):
        actions = rng.integers(len(buttons), size=60).tolist()
        boy, times = boot(seed), []
        game.reset(seed=seed)
        probes_off.reset(seed=seed)
        order = [(bare, boy), (ours, game), (ours, probes_off)]
        for run, what in order if seed % 2 else order[::-1]:
            start = time.thread_time()
            run(what, actions)
            times.append(time.thread_time() - start)
        first, second, third = times if seed % 2 else times[::-1]
        ratios.append(first / second)
        plain.append(first / third)
        boy.stop(save=False)
    for label, values in (("with probes and rewards", ratios), ("without profile", plain)):
        low, middle, high = np.percentile(values, (25, 50, 75))
        print(f"speed of a Bonk step, bare emulator = 1, {label}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true", help="measure a step against the bare emulator")
    parser.add_argument("--games", nargs="+", default=GAMES, help="which games")
    parser.add_argument("--seconds", type=float, default=0.7, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind")
    given = parser.parse_args()
    if given.step:
        step(given.rounds * 8)
    else:
        ways(given.games, given.seconds, given.rounds)


if __name__ == "__main__":
    main()
