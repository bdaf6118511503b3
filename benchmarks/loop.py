"""Seeing, hearing, deciding and stepping the emulator in one loop on a CPU, against the emulator's steps alone

    python benchmarks/loop.py [--size tiny|1M|12M|50M] [--game bonk] [--seconds 3] [--games 8] [--threads 2] [--clock cpu]

Model and policy are of the size named, with first weights; what they cost does not depend on what they have learned.
A loop of the agent and a loop of the same game with fixed actions take turns; each is told by its fastest round.
On a computer that is busy with other things, `--threads 1 --clock cpu` counts the processor's time of one thread.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait do not take processors from others

import numpy as np  # noqa: E402
import torch  # noqa: E402

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig  # noqa: E402
from metabonk.act.agent import Agent, play_episodes  # noqa: E402
from metabonk.core.actions import ActionSpec
from metabonk.dream.token_model import TokenModel, TokenModelConfig  # noqa: E402
from metabonk.play.game import make_game  # noqa: E402
from metabonk.sense.logmel import LogMelConfig  # noqa: E402
from metabonk.sense.picture import PictureConfig, PictureTokenizer  # noqa: E402
from metabonk.sense.sound import SoundConfig, SoundTokenizer  # noqa: E402
from metabonk.sense.tokens import Tokenizers  # noqa: E402

SIZES = {  # the world model's preset or size, and the tokenizers' preset
    "tiny": (TokenModelConfig.preset("tiny"), "tiny"),
    "1M": (TokenModelConfig.preset("tiny", size="1M"), "tiny"),
    "12M": (TokenModelConfig.preset("small", size="12M"), "small"),
    "50M": (TokenModelConfig.preset("paper", size="50M"), "small"),
}


def make_agent(size: str, game) -> Agent:
    "An agent of some size that knows nothing"
    torch.manual_seed(0)
    config, preset = SIZES[size]
    logmel = LogMelConfig.preset(preset, sample_rate=game.sample_rate)
    picture = PictureConfig.preset(preset, size=game.observation_space["image"].shape[:2])
    sound = SoundConfig.preset(preset, channels=game.channels, frames=logmel.frames_per_step, bands=logmel.bands)
    tokenizers = Tokenizers(PictureTokenizer(picture), SoundTokenizer(sound), logmel, game.name)
    model = TokenModel(config, tokenizers, ActionSpec.of(game.action_space)).eval()
    units = size if size in ActorCriticConfig.presets else "tiny"
    return Agent(model, ActorCritic(ActorCriticConfig.preset(units), model.feature_size, model.actions))


def loop(game, seconds: float, agent: Agent | None, clock: Callable[[], float]) -> dict[str, float]:
    "Steps a second, and the milliseconds of a step that go into deciding; with fixed actions without an agent"
    rng, steps, deciding = np.random.default_rng(0), 0, 0.0
    observation, info = game.reset(seed=0)
    if agent:
        agent.reset(0)
        agent(observation, info)
        agent.reset(0)
    actions = rng.integers(game.action_space.n, size=4096).tolist()
    begun = clock()
    while clock() - begun < seconds:
        before = clock()
        action = agent(observation, info) if agent else actions[steps % 4096]
        deciding += clock() - before
        observation, _, terminated, truncated, info = game.step(action)
        steps += 1
        if terminated or truncated:
            observation, info = game.reset(seed=steps)
            if agent:
                agent.reset(steps)
    return {"rate": steps / (clock() - begun), "deciding": 1000 * deciding / steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of model and policy")
    parser.add_argument("--game", default="bonk", help="a name for make_game")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each loop")
    parser.add_argument("--games", type=int, default=8, help="played at once in the last measurement; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="what is counted; cpu: of this thread")
    given = parser.parse_args()
    clock = time.perf_counter if given.clock == "wall" else time.thread_time
    torch.set_num_threads(given.threads)
    game = make_game(given.game)
    agent = make_agent(given.size, game)
    count = sum(p.numel() for name, p in agent.model.named_parameters() if not name.startswith("tokenizers."))
    seeing = sum(p.numel() for p in agent.model.tokenizers.parameters())
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        files = [path for path in (Path(folder) / "agent").rglob("*") if path.is_file()]
        on_disk = sum(path.stat().st_size for path in files) / 1e6
        model = sum(path.stat().st_size for path in files if path.name == "model.safetensors") / 1e6
    print(f"{given.size}: world model {count / 1e6:.1f}M parameters, {model:.0f} MB on disk; tokenizers {seeing / 1e6:.2f}M; "
          f"the whole agent {on_disk:.0f} MB")
    rounds = [(loop(game, given.seconds, agent, clock), loop(game, given.seconds, None, clock)) for _ in range(given.rounds)]
    best = max((one for one, _ in rounds), key=lambda one: one["rate"])
    bare = max(other["rate"] for _, other in rounds)
    print(f"one loop: {best['rate']:.0f} Hz ({best['deciding']:.2f} ms a step of it for seeing, hearing and deciding)")
    print(f"the game alone: {bare:.0f} Hz; ratio {best['rate'] / bare:.2f}")
    game.close()
    if given.games:
        rates = []
        for games in (1, given.games):
            begun = clock()
            played = play_episodes(agent, given.game, given.games, games=games, settings={"max_steps": 100})
            rates.append(played["length"].sum() / (clock() - begun))
        print(f"{given.games} games at once: {rates[1]:.0f} steps/s, {rates[1] / rates[0]:.2f} times as many as one by one")


if __name__ == "__main__":
    main()
