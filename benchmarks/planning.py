"""A planned move: what looking ahead costs, and where the time goes

    python benchmarks/planning.py [--threads 2] [--rounds 5] [--clock wall|cpu] [--steps 4]

An agent in the rooms at 64 x 64 pixels decides once: 3 candidates, 3 beams, 3 steps, which is 21 predicted frames. Its
model is AV-CDiT of the `tiny` preset at 4 denoising steps, with `tiny` encoders and a context of 4 rows, not trained: time
does not depend on that. Told are the fastest of several rounds in which the contenders take turns:

1. The planned move, in seconds and in moves of the policy alone; and with the game itself as the model.
2. The share of the model (diffusion in latents), of decoding (picture and sound), and of the agent's own network.
3. Trying the candidates with a context that is read once for all of them, against reading it for each.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait do not take processors from others

import numpy as np  # noqa: E402
import torch  # noqa: E402
from turns import fastest  # noqa: E402

from metabonk.act.lookahead import LookAheadAgent, LookAheadConfig, SimulatorModel  # noqa: E402
from metabonk.act.navigation import NavigationAgent, NavigationConfig, NavigationNet  # noqa: E402
from metabonk.core.actions import ActionSpec  # noqa: E402
from metabonk.dream.av_world import AVWorld  # noqa: E402
from metabonk.dream.avcdit import AVCDiT, AVCDiTConfig  # noqa: E402
from metabonk.dream.diffusion import DiffusionConfig  # noqa: E402
from metabonk.dream.interface import WorldModel  # noqa: E402
from metabonk.play.game import Game, make_game  # noqa: E402
from metabonk.play.rooms import MOTIONS  # noqa: E402
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig  # noqa: E402
from metabonk.sense.codec import CodecConfig, PCACodec  # noqa: E402

SETTINGS = {"scenes": 0, "pattern": "to_source"}
FOUR = ActionSpec(categorical=(4,))


def make_world(steps: int) -> AVWorld:
    "AV-CDiT `tiny` with encoders, not trained"
    torch.manual_seed(0)
    moves = np.array([(ahead, 0.0, turn) for ahead, turn in MOTIONS.values()])
    eyes, ears = Autoencoder(AutoencoderConfig.preset("tiny")), PCACodec(CodecConfig.preset("tiny"))
    diffusion = DiffusionConfig.preset("tiny", sample_steps=steps)
    return AVWorld(AVCDiT(AVCDiTConfig()), FOUR, diffusion, eyes, ears, moves=moves, game="rooms").eval()


def mover(player: Any, game: Game) -> Callable[[], None]:
    "One decision in the present moment of a game"
    observation, _ = game.reset(seed=1)
    for _ in range(4):
        observation, *_ = game.step(1)
    player.join([game])

    def move() -> None:
        player.reset(0)
        player.decide(player.senses, [observation], [None], [True], None, torch.Generator().manual_seed(0))

    return move


class Watch:
    "Seconds that are spent in some methods"

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.seconds = clock, dict[str, float]()

    def over(self, thing: Any, method: str, name: str) -> None:
        "Add the time of a method to a name"
        call = getattr(thing, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = self.clock()
            result = call(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - begun
            return result

        setattr(thing, method, timed)


def main() -> None:
    "Measure and tell"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--steps", type=int, default=4, help="of denoising")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    net, world = NavigationNet(NavigationConfig(), FOUR), make_world(options.steps)
    torch.nn.init.constant_(net.actor.bias, 0.0)
    net.actor.bias.data[3] = -50.0  # it does not stop
    game, simulator = make_game("rooms", **SETTINGS), make_game("rooms", **SETTINGS)
    players = {
        "policy alone": NavigationAgent(net), "planned with AV-CDiT": LookAheadAgent(world, net, LookAheadConfig(), stop=3),
        "planned with the game": LookAheadAgent(SimulatorModel(simulator), net, LookAheadConfig(), stop=3),
    }
    times = fastest({name: mover(player, game) for name, player in players.items()}, options.rounds, clock, options.threads)
    for name, took in times.items():
        print(f"{name}: {took:.3f} s a move, {took / times['policy alone']:.0f} times the policy's")
    shares(world, net, game, clock)
    contexts(world, options.rounds, clock, options.threads)


def shares(world: AVWorld, net: NavigationNet, game: Game, clock: Callable[[], float]) -> None:
    "Where the time of a planned move goes"
    watch, player = Watch(clock), LookAheadAgent(world, net, LookAheadConfig(), stop=3)
    move = mover(player, game)
    for thing, method, name in ((world, "branch", "model"), (world, "decode", "decoding"), (net, "step", "agent with decoding"),
                                (world, "observe", "reading")):  # fmt: skip
        watch.over(thing, method, name)
    begun = clock()
    move()
    whole, spent = clock() - begun, watch.seconds
    spent["agent"] = spent.pop("agent with decoding") - spent["decoding"]
    told = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in spent.items())
    print(f"of a planned move: {told}, search {1 - sum(spent.values()) / whole:.0%}")
    for thing, method in ((world, "branch"), (world, "decode"), (net, "step"), (world, "observe")):
        delattr(thing, method)


def contexts(world: AVWorld, rounds: int, clock: Callable[[], float], threads: int) -> None:
    "A context that is read once for three candidates, and for each"
    state = world.start(3)
    actions = torch.eye(4)[:3].expand(3, 3, 4)
    with torch.no_grad():
        contenders = {"once": lambda: world.branch(state, actions), "for each": lambda: WorldModel.branch(world, state, actions)}
        times = fastest(contenders, rounds, clock, threads)
    print(f"3 candidates of 3 beams: context read once {times['once']:.3f} s, for each {times['for each']:.3f} s, "
          f"{times['for each'] / times['once']:.2f} times")


if __name__ == "__main__":
    main()
