"""On a GPU: the same numbers as on a CPU, the same training when its steps are captured or compiled."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_dynamics import build as build_dynamics
from test_dynamics import codes
from test_token_model import build as build_tokens
from test_token_model import rows
from test_transformer import KINDS, video
from test_transformer import build as build_transformer

from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.optimizer import LaProp, Muon
from metabonk.core.training import fit
from metabonk.dream.dynamics import DynamicsLearner
from metabonk.dream.rssm import RSSM, RSSMConfig
from metabonk.dream.scan import fast_observe
from metabonk.dream.token_model import WorldModelLearner
from metabonk.sense.logmel import LogMel, LogMelConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CONFIG = TrainConfig(steps=12, lr=1e-3, warmup=5, log_every=1, checkpoint_every=7, accelerator="cuda")


def trained(folder: Path, config: TrainConfig, steps: int = 12, **choices) -> tuple[dict[str, torch.Tensor], object]:
    """Weights and log of a world model that saw six batches again and again."""
    learner = WorldModelLearner(build_tokens(**choices))
    fit(learner, [rows(seed=seed) for seed in range(6)], folder, config.change(steps=steps))
    return copy.deepcopy(learner.cpu().state_dict()), read_log(folder).drop(columns="seconds").fillna(-1)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> bool:
    return all(torch.allclose(one[name].float(), other[name].float(), atol=tolerance, rtol=tolerance) for name in one)


@pytest.mark.parametrize("latents", ["categorical", "gumbel", "gaussian"])
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-4), ("bf16-mixed", 5e-3)])
def test_a_captured_training_gives_the_numbers_of_the_same_training_told_step_by_step(latents, precision, tolerance, tmp_path):
    config = CONFIG.change(precision=precision)
    told, log = trained(tmp_path / "told", config, latents=latents)
    captured, again = trained(tmp_path / "captured", config.change(capture=True), latents=latents)
    assert close(told, captured, tolerance)
    assert list(log) == list(again) and bool(((log - again).abs() < 0.01 + 0.01 * log.abs()).stack().all())
    start = WorldModelLearner(build_tokens(latents=latents)).state_dict()
    assert not close(start, captured, tolerance)  # it learned at all


def test_a_captured_training_that_was_stopped_goes_on_as_if_it_was_not(tmp_path):
    config = CONFIG.change(capture=True)
    whole, _ = trained(tmp_path / "whole", config)
    trained(tmp_path / "parts", config, steps=8)
    resumed, _ = trained(tmp_path / "parts", config)
    assert close(whole, resumed, 1e-4)


def test_new_shapes_are_recordings_of_their_own(tmp_path):
    batches = [rows(time=time, seed=seed) for seed in range(12) for time in (6, 9)]
    found = []
    for capture in (False, True):
        learner = WorldModelLearner(build_tokens())
        fit(learner, batches, tmp_path / str(capture), CONFIG.change(capture=capture, steps=24))
        found.append(copy.deepcopy(learner.cpu().state_dict()))
    assert close(*found, 1e-4)


@pytest.mark.parametrize("make", [LaProp, lambda params, **more: Muon(params[:1], params[1:], **more)], ids=["LaProp", "Muon"])
def test_the_optimizer_takes_the_same_steps(make):
    torch.manual_seed(0)
    here = [torch.nn.Parameter(torch.randn(size)) for size in ((300, 300), (7,))]
    there = [torch.nn.Parameter(p.detach().cuda()) for p in here]
    optimizers = [make(params, lr=0.01, warmup=4) for params in (here, there)]
    for _ in range(8):
        for p, q in zip(here, there, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.cuda()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(here, there, strict=True):
        torch.testing.assert_close(p, q.cpu(), atol=1e-5, rtol=1e-5)
    moved = make(here, lr=0.01, warmup=4)  # what was counted on one device goes on on the other
    moved.load_state_dict(optimizers[1].state_dict())
    moved.step()
    optimizers[1].step()
    torch.testing.assert_close(here[0], there[0].cpu(), atol=1e-5, rtol=1e-5)


def test_the_scan_reads_as_on_a_cpu():
    torch.manual_seed(0)
    rssm = RSSM(RSSMConfig(), embed=12, action=3)
    embed, action, first = torch.randn(4, 10, 12), torch.randn(4, 10, 3), torch.rand(4, 10) < 0.2
    noise = rssm.latents.noise((4, 10), embed)

    def gradients(rssm: RSSM, *given: torch.Tensor) -> list[torch.Tensor]:
        *given, noise = given
        states = fast_observe(rssm, *given, noise=noise)
        loss = sum(entry.mean() for entry in rssm.kl_losses(states).values()) + states["stoch"].square().mean()
        return [loss, *states.values(), *torch.autograd.grad(loss, list(rssm.parameters()))]

    here = gradients(rssm, embed, action, first, noise)
    there = gradients(copy.deepcopy(rssm).cuda(), *(x.cuda() for x in (embed, action, first, noise)))
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_is_heard_as_on_a_cpu(channels):
    torch.manual_seed(0)
    ears = LogMel(LogMelConfig.preset("tiny", sample_rate=8_000))
    lengths = torch.tensor([533, 534, 533, 533])
    audio = (torch.randn(channels, int(lengths.sum())) * 3_000).short()
    there = copy.deepcopy(ears).cuda()(audio.cuda(), lengths.cuda())
    torch.testing.assert_close(ears(audio, lengths), there.cpu(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_transformer_reads_as_on_a_cpu_with_its_cache_and_without(changes):
    model = build_transformer(**{"context": 5, **changes})
    x, first = video(2, 24, model), torch.zeros(2, 24, dtype=torch.bool)
    first[1, [0, 9, 10, 17]] = True
    with torch.no_grad():
        whole = model(x, first)
        model.cuda()
        torch.testing.assert_close(model(x.cuda(), first.cuda()).cpu(), whole, atol=1e-4, rtol=0)
        cache, parts, t = model.new_cache(2), [], 0
        for size in (7, 1, 1, 5, 1, 9):
            y, cache = model.read(x[:, t : t + size].cuda(), cache, first[:, t : t + size].cuda())
            parts.append(y.cpu())
            t += size
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [[], ["checkpointing"]], ids=str)
def test_compiled_dynamics_learn_the_same(changes):
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, script, "cuda", "inductor", *changes], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1])["apart"] < 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_half_precision_dynamics_learn_nearly_the_same(checkpointing, tmp_path):
    logs = []
    for precision in ("32-true", "bf16-mixed"):
        learner = DynamicsLearner(build_dynamics(checkpointing=checkpointing))
        config = CONFIG.change(precision=precision)
        fit(learner, [codes(seed=seed) for seed in range(6)], tmp_path / precision, config)
        logs.append(read_log(tmp_path / precision)["loss"].to_numpy())
    assert 0 < abs(logs[0] / logs[1] - 1).max() < 0.05


@pytest.mark.parametrize("half", [False, True])
def test_captured_dreams_are_the_same_dreams(half):
    clip, action, dreams = codes().map(lambda x: x.cuda()), torch.eye(3, device="cuda"), []
    for capture in (False, True):
        model = build_dynamics().cuda()
        model = model.bfloat16() if half else model
        model = model.capture() if capture else model
        torch.manual_seed(4)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            states = [model.observe(clip)]
            for _ in range(12):
                states.append(model.advance(states[-1], action))
        dreams.append(torch.stack([state["latent"] for state in states]))
        assert not torch.equal(dreams[-1][-1], dreams[-1][-2])  # noise is drawn anew
    torch.testing.assert_close(*dreams, atol=0.05 if half else 1e-4, rtol=0)


def test_captured_imagination_of_the_recurrent_model_is_the_same():
    dreams = []
    for capture in (False, True):
        model = build_tokens().cuda().eval()
        model = model.capture() if capture else model
        state, action = model.rssm.initial(5), torch.eye(2, device="cuda")[[0, 1, 0, 1, 1]]
        torch.manual_seed(4)
        with torch.no_grad():
            for _ in range(12):
                state = model.advance(state, action)
        dreams.append(state["deter"])
    torch.testing.assert_close(*dreams)


def test_it_dreams_in_half_precision():
    model = build_dynamics().cuda().bfloat16()
    clip, action = codes().map(lambda x: x.cuda()), torch.eye(3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        state = model.observe(clip)
        assert state["keys"].dtype == torch.bfloat16
        for _ in range(5):
            state = model.advance(state, action)
        assert bool(state["latent"].isfinite().all()) and model.render(state)["image"].shape == (3, 8, 8, 3)
