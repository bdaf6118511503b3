"""Dreaming and learning with the shortcut model: what its cache, its decoder and its training step cost

    python benchmarks/shortcut.py [--threads 2] [--rounds 5] [--clock wall|cpu] [--context 192]

Four measurements, each told by the fastest of several rounds in which the contenders take turns:

1. A frame after a context of 192, four steps out of noise: with the cache, and by the whole sequence at each step.
2. Frames a second of the tiny model on pictures of 64 x 64 with sound, generated and decoded: one dream, and eight at once.
3. Reading 16 frames and dreaming 20 more, not decoded, against the `dreamer4` package where it is installed
   (pip install 'dreamer4==0.20.*', with a torchvision that fits torch): as many tokens a frame but for the action's, the
   same width, depth and heads, four steps. Its heads are larger and stay as they come.
4. A training step of the dynamics (flow alone, and with a quarter of the rows bootstrapped) against forward and backward
   of PyTorch's own transformer encoder of the same width, depth, number of tokens and about as many parameters.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait do not take processors from others

import torch  # noqa: E402
from torch import nn  # noqa: E402
from turns import fastest  # noqa: E402

from metabonk.core.actions import ActionSpec  # noqa: E402
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig  # noqa: E402
from metabonk.dream.clips import Clip  # noqa: E402
from metabonk.dream.dynamics import DynamicsConfig, ShortcutModel  # noqa: E402
from metabonk.dream.interface import State  # noqa: E402
from metabonk.dream.shortcut import ShortcutConfig, advance_level, corrupt, draw_levels  # noqa: E402

ACTIONS = ActionSpec(categorical=(11,))


def make_model(**changes: int | float) -> ShortcutModel:
    "A tiny model with eyes and ears"
    torch.manual_seed(0)
    code = CausalTokenizerConfig.preset("tiny", channels=2)
    config = DynamicsConfig.preset("tiny", image_ratio=0.0, **changes)
    return ShortcutModel(CausalTokenizer(code), ACTIONS, config, ShortcutConfig.preset("tiny"))


def make_clip(model: ShortcutModel, batch: int, time: int) -> Clip:
    "Codes and actions of no game"
    code, no = model.tokenizer.config, torch.zeros(batch, time, dtype=torch.bool)
    first = no.clone()
    first[:, 0] = True
    latent = torch.rand(batch, time, code.latents, code.bottleneck) * 2 - 1
    return Clip(latent=latent, action=torch.randint(11, (batch, time)), first=first)


def dreams(model: ShortcutModel, batch: int, frames: int, look: bool) -> Callable[[], None]:
    "Frames in a row, decoded or not"
    start = model.observe(make_clip(model, batch, model.config.context))
    action = torch.eye(11)[torch.zeros(batch, dtype=torch.long)]

    def run() -> None:
        state: State = start
        for _ in range(frames):
            state = model.advance(state, action)
            if look:
                model.render(state)

    return run


def whole_dream(model: ShortcutModel, frames: int) -> Callable[[], None]:
    "A context read, and frames in a row after it"
    clip, action = make_clip(model, 1, model.config.context), torch.eye(11)[:1]

    def run() -> None:
        state = model.observe(clip)
        for _ in range(frames):
            state = model.advance(state, action)

    return run


def their_dream(model: ShortcutModel, frames: int) -> Callable[[], None] | None:
    "The same by the package `dreamer4`, if it is installed"
    try:
        from dreamer4.dreamer4 import DynamicsWorldModel
    except Exception as error:  # a torchvision that does not fit raises whatever it likes
        print(f"dreamer4 is left out: {error}")
        return None
    torch.manual_seed(0)
    code, c = model.tokenizer.config, model.config
    theirs = DynamicsWorldModel(
        dim=c.width, dim_latent=code.bottleneck, num_latent_tokens=code.latents, num_spatial_tokens=code.latents,
        num_register_tokens=c.registers, depth=c.layers, time_block_every=c.time_every, attn_heads=c.heads,
        attn_dim_head=c.width // c.heads, num_discrete_actions=11, max_steps=model.shortcut.finest,
    ).eval()  # fmt: skip
    clip = make_clip(model, 1, c.context)

    @torch.no_grad()
    def run() -> None:
        theirs.generate(c.context + frames, num_steps=model.shortcut.steps, return_decoded_video=False,
                        prompt_latents=clip.latent, prompt_discrete_actions=clip.action[..., None])  # fmt: skip

    return run


@torch.no_grad()
def uncached(model: ShortcutModel) -> Callable[[], None]:
    "One frame, for which the whole sequence is computed at every step"
    clip, K = make_clip(model, 1, model.config.context + 1), model.shortcut.steps
    done, known = ACTIONS.vectors(clip.action), ~clip.first
    past = torch.full(clip.first.shape, model.shortcut.context_level)
    d = torch.full_like(past, 1 / model.shortcut.finest)
    seen = corrupt(clip.latent, past)

    @torch.no_grad()
    def run() -> None:
        z = torch.randn_like(seen[:, -1:])
        for k in range(K):
            tau, step = past.clone(), d.clone()
            tau[:, -1], step[:, -1] = k / K, 1 / K
            clean, _ = model.dynamics(torch.cat([seen[:, :-1], z], 1), tau, step, done, known, clip.first)
            z = advance_level(z, clean[:, -1:], k / K, 1 / K)
        model.dynamics(torch.cat([seen[:, :-1], z], 1), past, d, done, known, clip.first)  # what the agent tokens say of it

    return run


def training_step(model: ShortcutModel, clip: Clip, bootstrap: bool) -> Callable[[], None]:
    "Losses and gradients of the dynamics alone"
    model.train()

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.losses(clip, None if bootstrap else 0)["shortcut"].mean().backward()

    return run


def flow_step(model: ShortcutModel, clip: Clip) -> Callable[[], None]:
    "The transformer's share of it: tokens in, clean codes out"
    done, known = ACTIONS.vectors(clip.action), ~clip.first

    def run() -> None:
        model.zero_grad(set_to_none=True)
        tau, d = draw_levels(*clip.first.shape, 0, model.shortcut.finest, clip.first.device)
        clean, _ = model.dynamics(corrupt(clip.latent, tau), tau, d, done, known, clip.first)
        (clean - clip.latent).square().mean().backward()

    return run


def plain_step(model: ShortcutModel, batch: int, time: int) -> tuple[Callable[[], None], int, int]:
    "PyTorch's encoder over as many tokens: the step, its parameters, tokens of a sequence"
    config, tokens = model.config, sum(model.dynamics.transformer.layout.sizes.values())
    layer = nn.TransformerEncoderLayer(config.width, config.heads, 4 * config.width, 0.0, batch_first=True, norm_first=True)
    encoder, rows = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False), time * tokens
    x, mask = torch.randn(batch, rows, config.width), nn.Transformer.generate_square_subsequent_mask(rows)

    def run() -> None:
        encoder.zero_grad(set_to_none=True)
        encoder(x, mask=mask, is_causal=True).square().mean().backward()

    return run, sum(p.numel() for p in encoder.parameters()), rows


def main() -> None:
    "Print a line a measurement"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--context", type=int, default=192, help="frames that a dream looks back")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a training step")
    parser.add_argument("--time", type=int, default=16, help="rows of each")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time

    long = make_model(context=options.context).eval()
    times = fastest({"cached": dreams(long, 1, 1, False), "uncached": uncached(long)}, options.rounds, clock, options.threads)
    print(f"a frame after {options.context}: cached {1e3 * times['cached']:.1f} ms, uncached {1e3 * times['uncached']:.0f} ms, "
          f"{times['uncached'] / times['cached']:.1f} times")

    tiny = make_model().eval()
    times = fastest({str(n): dreams(tiny, n, 20, True) for n in (1, 8)}, options.rounds, clock, options.threads)
    print(f"tiny, generated and decoded: {20 / times['1']:.0f} frames/s alone, {8 * 20 / times['8']:.0f} frames/s eight at once")

    dreamed = {"ours": whole_dream(tiny, 20)}
    if theirs := their_dream(tiny, 20):
        times = fastest({**dreamed, "theirs": theirs}, options.rounds, clock, options.threads)
        print(f"16 frames read and 20 dreamed: {1e3 * times['ours']:.0f} ms, dreamer4 {1e3 * times['theirs']:.0f} ms, "
              f"{times['theirs'] / times['ours']:.1f} times")

    model, clip = make_model(), make_clip(make_model(), options.batch, options.time)
    plain, parameters, rows = plain_step(model, options.batch, options.time)
    ours = sum(p.numel() for p in model.dynamics.parameters())
    contenders = {"plain": plain, "flow": flow_step(model, clip), "flow with heads": training_step(model, clip, False),
                  "with bootstrap": training_step(model, clip, True)}  # fmt: skip
    times = fastest(contenders, options.rounds, clock, options.threads)
    print(f"a training step of {options.batch} sequences of {rows} tokens; {ours:,} parameters, plain {parameters:,}")
    for name, took in times.items():
        print(f"  {name}: {1e3 * took:.0f} ms, {took / times['plain']:.2f} times the plain one")


if __name__ == "__main__":
    main()
