"""What a GPU makes of training steps and dreams, beside what its arithmetic and memory allow

    python benchmarks/gpu.py [--parts recurrent dream train] [--rounds 5]

Four parts, each told by the fastest of several rounds:

1. Rates of the device, measured: a large matrix product in bfloat16 and in float32, and a copy within its memory.
2. A whole training step of the token world model (16 sequences of 64 rows; losses, gradients, change of the weights):
   told kernel by kernel, and captured as one graph. Its bound is 6 operations for each weight of the RSSM and row.
3. Dreaming at the published sizes of Dreamer 4: frames a second, one dream, 256 spatial tokens, four steps a frame, after a
   context of 192 frames, in bfloat16; published for one H100: 21.4. Bounds: what one token costs in operations, and what
   must be read (weights and the past of each pass).
4. A training step of the dynamics in bfloat16 mixed precision, `small` and `paper`: as it is, with layers compiled, with
   layers computed again for the gradient (checkpointing), with both; memory at its peak.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from metabonk.core.actions import ActionSpec
from metabonk.core.capture import CapturedStep
from metabonk.core.optimizer import LaProp
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.clips import Clip
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import TokenBatch, Tokenizers

MINECRAFT = ActionSpec(binary=23, categorical=(121,))


def seconds(call: Callable[[], object], rounds: int, repeats: int = 1) -> float:
    "Of the fastest round, a call"
    best = float("inf")
    for _ in range(rounds):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begun) / repeats)
    return best


def measure_rates(rounds: int) -> dict[str, float]:
    "Operations a second in both types, bytes a second read and written"
    rates = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        rates[name] = 2 * 8192**3 / seconds(lambda a=a, b=b: torch.mm(a, b), rounds)
    a = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    b.copy_(a)
    rates["copy"] = 2 * len(a) / seconds(lambda: b.copy_(a), rounds)
    return rates


def recurrent_steps(size: str) -> tuple[WorldModelLearner, TokenBatch]:
    "A token world model with that RSSM, and rows to learn from"
    torch.manual_seed(0)
    ears, logmel = SoundConfig.preset("small"), LogMelConfig.preset("small")
    tokenizers = Tokenizers(PictureTokenizer(PictureConfig.preset("small")), SoundTokenizer(ears), logmel)
    model = TokenModel(TokenModelConfig.preset("small", size=size), tokenizers.requires_grad_(False),
                       ActionSpec(categorical=(18,)))
    learner = WorldModelLearner(model).cuda().train()
    shape, no = (16, 64), torch.zeros(16, 64, dtype=torch.bool, device="cuda")
    senses = {name: torch.randint(codes, (*shape, tokens), device="cuda") for name, (tokens, codes) in tokenizers.sizes.items()}
    action, reward = torch.randint(18, shape, device="cuda"), (torch.rand(shape, device="cuda") < 0.05).float()
    first = torch.rand(shape, device="cuda") < 0.01
    return learner, TokenBatch(senses["image"], senses["audio"], action, reward, no, no, first)


def tell_recurrent(rates: dict[str, float], rounds: int) -> None:
    "Part 2"
    for size in ("1M", "12M", "50M"):
        for precision in ("float32", "bfloat16"):
            learner, batch = recurrent_steps(size)
            optimizer = LaProp([p for p in learner.parameters() if p.requires_grad])

            def step(rows: TokenBatch, learner: WorldModelLearner = learner, optimizer: LaProp = optimizer,
                     mixed: bool = precision == "bfloat16") -> torch.Tensor:  # fmt: skip
                with torch.autocast("cuda", torch.bfloat16, enabled=mixed, cache_enabled=False):
                    return learner.whole_step(rows, optimizer)

            captured = CapturedStep(step)
            for _ in range(captured.warmup + 1):
                captured(batch)
            told, played = (seconds(partial(way, batch), rounds, 3) for way in (step, captured))
            weights = sum(p.numel() for p in learner.model.rssm.parameters())
            bound = 6 * weights * 16 * 64 / rates["float32"]
            print(f"{size} {precision}: a step {1e3 * told:.1f} ms, captured {1e3 * played:.1f} ms: {told / played:.1f} times as "
                  f"fast; {played / bound:.1f} times the bound of {1e3 * bound:.1f} ms (float32)", flush=True)


def make_model(preset: str, action: ActionSpec = MINECRAFT, **changes: bool | float) -> ShortcutModel:
    "Tokenizer and dynamics of that size, on the GPU"
    with torch.device("cuda"):
        tokenizer = CausalTokenizer(CausalTokenizerConfig.preset(preset))
        config = DynamicsConfig.preset(preset, **changes)
        return ShortcutModel(tokenizer, action, config, ShortcutConfig.preset(preset))


def make_clip(model: ShortcutModel, batch: int, time: int) -> Clip:
    "Codes and actions of no game"
    code, no = model.tokenizer.config, torch.zeros(batch, time, dtype=torch.bool, device="cuda")
    first = no.clone()
    first[:, 0] = True
    latent = torch.rand(batch, time, code.latents, code.bottleneck, device="cuda") * 2 - 1
    action = torch.zeros(batch, time, model.actions.parts, dtype=torch.long, device="cuda")
    reward = torch.rand(batch, time, device="cuda")
    return Clip(latent=latent, action=action, reward=reward, terminated=no, truncated=no, first=first)


def tell_dreams(rates: dict[str, float], rounds: int) -> None:
    "Part 3"
    model = make_model("paper").bfloat16().eval()
    frames, config = 10, model.config
    weights = sum(p.numel() for p in model.dynamics.parameters())
    tokens = model.dynamics.transformer.layout.tokens
    action = model.actions.vectors(torch.zeros(1, 1, model.actions.parts, device="cuda"))[:, 0]
    with torch.autocast("cuda", torch.bfloat16), torch.inference_mode():
        state = model.observe(make_clip(model, 1, config.context))
        past = sum(state[name].nbytes for name in ("keys", "values"))

        def dream(look: bool) -> None:
            now = state
            for _ in range(frames):
                now = model.advance(now, action)
                if look:
                    model.render(now)

        passes = model.shortcut.steps + 1
        arithmetic = passes * 2 * weights * tokens / rates["bfloat16"]
        memory = 2 * passes * (2 * weights + past) / rates["copy"]  # a copy's rate counts what is read and what is written
        for captured, look in ((False, False), (True, False), (True, True)):
            if captured:
                model.capture()
            dream(look)
            rate = frames / seconds(lambda look=look: dream(look), rounds)
            print(f"paper, {weights / 1e9:.2f}e9 weights, {tokens} tokens a frame, context {config.context}, "
                  f"{'captured' if captured else 'told kernel by kernel'}{', decoded' if look else ''}: {rate:.1f} frames/s, "
                  f"{rate / 21.4:.2f} times the published 21.4; bounds: {1 / arithmetic:.0f} by operations, "
                  f"{1 / memory:.0f} by memory", flush=True)


def tell_training(rates: dict[str, float], rounds: int) -> None:
    "Part 4"
    for preset, batch, length in (("small", 16, 64), ("paper", 1, 64)):
        plain = 0.0
        for checkpointing in (False, True):
            for compiled in (False, True):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                learner = DynamicsLearner(make_model(preset, checkpointing=checkpointing, image_ratio=0.0)).train()
                for layer in learner.model.dynamics.transformer.layers if compiled else []:
                    layer.compile(dynamic=False)
                clip = make_clip(learner.model, batch, length)
                optimizer = LaProp([p for p in learner.parameters() if p.requires_grad])

                def step(learner: DynamicsLearner = learner, clip: Clip = clip, optimizer: LaProp = optimizer) -> None:
                    with torch.autocast("cuda", torch.bfloat16):
                        learner.whole_step(clip, optimizer)

                begun = time.perf_counter()
                try:
                    step()
                    torch.cuda.synchronize()
                    first = time.perf_counter() - begun
                    took = seconds(step, rounds)
                except torch.OutOfMemoryError:
                    print(f"{preset}, checkpointing={checkpointing}, compiled={compiled}: out of memory", flush=True)
                    continue
                plain = plain or took
                weights = sum(p.numel() for p in learner.model.dynamics.parameters())
                tokens = batch * length * learner.model.dynamics.transformer.layout.tokens
                bound = 6 * weights * tokens / rates["bfloat16"]
                print(f"{preset}, {batch} x {length} frames, checkpointing={checkpointing}, compiled={compiled}: "
                      f"{1e3 * took:.0f} ms ({first:.0f} s for the first), {took / plain:.2f} times the first line, "
                      f"{took / bound:.1f} times the bound of {1e3 * bound:.0f} ms, "
                      f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
                del learner, clip, optimizer, step


PARTS = {"recurrent": tell_recurrent, "dream": tell_dreams, "train": tell_training}


def main() -> None:
    "Print a line a measurement"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark is about a GPU, and PyTorch sees none here")
    torch._dynamo.config.recompile_limit = 64
    rates = measure_rates(options.rounds)
    print(f"{torch.cuda.get_device_name()}: {rates['bfloat16'] / 1e12:.0f} TFLOP/s in bfloat16, {rates['float32'] / 1e12:.0f} in "
          f"float32, {rates['copy'] / 1e12:.2f} TB/s read and written", flush=True)
    for part in options.parts:
        PARTS[part](rates, options.rounds)


if __name__ == "__main__":
    main()
