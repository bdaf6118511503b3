"""AV-CDiT: a training step against its arithmetic, a jump against single steps, a context read once

    python benchmarks/avcdit.py [--threads 1] [--rounds 7] [--clock cpu|wall] [--preset tiny]

Three ratios, each by the fastest of several rounds in which the contenders take turns:

1. A training step (loss, gradients, AdamW, average) against the time in which the same number of operations is done by
   products of matrices of its sizes. Target: at most 2.
2. A state 16 steps ahead: one jump against 16 single steps. Target: at least 8 times as fast.
3. Candidates from one context, each a goal, in several denoising steps: the context read once for all of them, against
   read for each candidate in each step, and against the published form, in which the condition modulates the context before
   keys and values are made of it, so that it must be read each time. Target: at least 1.5 times as fast.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait do not take processors from others

import numpy as np  # noqa: E402
import torch  # noqa: E402
from einops import rearrange  # noqa: E402
from turns import fastest  # noqa: E402

from metabonk.core.actions import ActionSpec  # noqa: E402
from metabonk.core.learner import TrainConfig  # noqa: E402
from metabonk.core.products import product  # noqa: E402
from metabonk.dream.av_learner import AVLearner, AVLearnerConfig  # noqa: E402
from metabonk.dream.av_world import LatentWorld  # noqa: E402
from metabonk.dream.avcdit import AVCDiT, AVCDiTConfig, CrossAttention, count_operations, modulated, to_parts  # noqa: E402
from metabonk.dream.diffusion import Diffusion, Parts, sample  # noqa: E402
from metabonk.dream.interface import repeat_states  # noqa: E402
from metabonk.sense.latents import LatentBatch  # noqa: E402

ROOMS = ActionSpec(categorical=(4,))
MOVES = np.array([[0.15, 0, 0], [0, 0, 0.1745], [0, 0, -0.1745], [0, 0, 0]])


def make_batch(config: AVCDiTConfig, batch: int, goals: int) -> LatentBatch:
    "Latents of no recording"
    image, audio = (
        [torch.randn(*lead, *size) for lead in ((batch, config.context), (batch, goals))]
        for size in (config.vision, config.audio)
    )
    return LatentBatch(
        image[0], audio[0], torch.ones(batch, config.context, dtype=torch.bool), image[1], audio[1],
        torch.randn(batch, goals), torch.randn(batch, goals, 3), torch.randint(1, 65, (batch, goals)),
        torch.zeros(batch, goals, 4), torch.zeros(batch, goals, dtype=torch.bool), torch.arange(batch),
    )  # fmt: skip


def training_step(config: AVCDiTConfig, batch: int, goals: int) -> Callable[[], None]:
    "Loss, gradients, the change of the weights, the average"
    learner = AVLearner(AVCDiT(config), Diffusion(), AVLearnerConfig.preset("joint"))
    learner.train_config = TrainConfig(steps=10**6, lr=1e-4, warmup=0)
    optimizer, rows = learner.make_optimizer(), make_batch(config, batch, goals)

    def run() -> None:
        optimizer.zero_grad()
        losses = learner.losses(rows)
        sum(learner.scales[name] * x.mean() for name, x in losses.items()).backward()
        optimizer.step()
        learner.steps_done += 1
        learner.after_step()

    return run


def products(
    config: AVCDiTConfig, rows: int, linear: Callable[..., torch.Tensor], repeats: int = 20
) -> tuple[Callable[[], None], int]:
    "The products of a feed-forward network, by one library or another; their operations"
    x, up = torch.randn(rows, config.width), torch.randn(4 * config.width, config.width)
    down = torch.randn(config.width, 4 * config.width)

    def run() -> None:
        for _ in range(repeats):
            linear(linear(x, up), down)

    return run, repeats * 2 * 2 * rows * 4 * config.width**2


def make_world(config: AVCDiTConfig) -> tuple[LatentWorld, dict[str, torch.Tensor]]:
    "An untrained world, and a state of it"
    world = LatentWorld(AVCDiT(config), ROOMS, moves=MOVES).eval()
    return world, world.begin(*(torch.randn(1, config.context, *size) for size in (config.vision, config.audio)))


def ahead(config: AVCDiTConfig, steps: int) -> dict[str, Callable[[], None]]:
    "As many steps in one jump, or one by one"
    world, start = make_world(config)
    action = torch.eye(4)[torch.zeros(1, steps, dtype=torch.long)]

    def one_by_one() -> None:
        state = start
        for t in range(steps):
            state = world.advance(state, action[:, t])

    return {"jump": lambda: world.jump(start, action), "steps": one_by_one}


class Published(CrossAttention):
    "As published: the context is modulated before keys and values are made, so that none of them can be kept"

    def forward(self, x: torch.Tensor, memory: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        "Attend; `memory` is the context itself, (B, tokens, width)"
        keys, values = self.read(modulated(memory[:, None], shift, scale)[:, 0])
        q = rearrange(self.query(x), "b g n (h e) -> b h (g n) e", h=self.heads)
        y = torch.nn.functional.scaled_dot_product_attention(q, keys, values)
        return self.outward(rearrange(y, "b h (g n) e -> b g n (h e)", g=x.shape[1]))


def candidates(config: AVCDiTConfig, count: int) -> dict[str, Callable[[], object]]:
    "Goals around one context: it is read once; for each candidate and step; or so and modulated, as published"
    world, start = make_world(config)
    motion, offset = torch.randn(1, count, 3), torch.arange(1.0, count + 1)[None]
    state, away = repeat_states(start, count), (motion.transpose(0, 1), offset.T)
    context = to_parts(config, state["vision"], state["audio"])
    noise = {name: torch.randn(count, 1, *size) for name, size in config.parts.items()}
    plain = copy.deepcopy(world.net)
    for block in plain.blocks:
        block.cross.__class__ = Published

    @torch.no_grad()
    def each_time() -> Parts:
        def f(noisy: Parts, step: torch.Tensor) -> Parts:
            return world.net(noisy, step, *away, world.net.read_context(context))

        return sample(world.diffusion, f, noise)

    @torch.no_grad()
    def published() -> Parts:
        def f(noisy: Parts, step: torch.Tensor) -> Parts:
            frames = [plain.adaptors[name](x) + plain.times[:, None] for name, x in context.items()]
            tokens = torch.cat([x.flatten(1, 2) for x in frames], 1)
            return plain(noisy, step, *away, [tokens] * config.layers)

        return sample(world.diffusion, f, noise)

    return {"once": lambda: world.predict(start, motion, offset), "each time": each_time, "published": published}


def main() -> None:
    "Print a line a measurement"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu")
    parser.add_argument("--preset", choices=["tiny", "small"], default="tiny")
    parser.add_argument("--contexts", type=int, default=16, help="contexts of a training step")
    parser.add_argument("--goals", type=int, default=4, help="goals of each")
    parser.add_argument("--candidates", type=int, default=16, help="goals around one context when it is read once")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    config, B, G = AVCDiTConfig.preset(options.preset), options.contexts, options.goals
    torch.manual_seed(0)

    rows = B * G * sum(size[0] for size in config.parts.values())
    libraries = {"oneDNN's": product, "PyTorch's": torch.nn.functional.linear}
    bare = {name: products(config, rows, linear) for name, linear in libraries.items()}
    contenders = {"step": training_step(config, B, G), **{name: run for name, (run, _) in bare.items()}}
    times = fastest(contenders, options.rounds, clock, options.threads)
    wanted = 3 * count_operations(config, B * G, B)
    print(
        f"a training step of {B} contexts with {G} goals, {wanted / 1e9:.1f} G operations: {1e3 * times['step']:.0f} ms"
    )
    for name, (_, operations) in bare.items():
        speed = operations / times[name]
        print(f"  {times['step'] * speed / wanted:.2f} times its bound by {name} products ({speed / 1e9:.0f} G/s)")

    times = fastest(ahead(config, 16), options.rounds, clock, options.threads)
    print(
        f"16 steps ahead: one jump {1e3 * times['jump']:.0f} ms, one by one {1e3 * times['steps']:.0f} ms, "
        f"{times['steps'] / times['jump']:.1f} times"
    )

    times = fastest(candidates(config, options.candidates), options.rounds, clock, options.threads)
    once, steps = times["once"], Diffusion().config.sample_steps
    print(f"{options.candidates} goals around a context, {steps} denoising steps: read once {1e3 * once:.0f} ms; for each "
          f"goal and step {1e3 * times['each time']:.0f} ms, {times['each time'] / once:.2f} times; so and modulated as "
          f"published {1e3 * times['published']:.0f} ms, {times['published'] / once:.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
