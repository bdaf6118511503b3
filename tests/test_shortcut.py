"""Shortcut forcing: the numbers of the paper's equations, and each deliberate error caught."""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.core.errors import UsageError
from metabonk.dream import shortcut
from metabonk.dream.shortcut import (
    RunningRMS,
    ShortcutConfig,
    advance_level,
    bootstrap_rows,
    bootstrap_velocity,
    corrupt,
    draw_levels,
    grid_index,
    per_frame,
    ramp,
    sample,
    shortcut_losses,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Inputs and outputs by name, in double precision."""
    with np.load(Path(__file__).parent / "goldens/shortcut_forcing.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def before(x: torch.Tensor) -> torch.Tensor:
    """Each frame's predecessor, zero before the first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


class Linear(torch.nn.Module):
    """The denoiser of the goldens, with its numbers as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.c = torch.nn.Parameter(torch.tensor([0.55, 0.21, 0.17, 0.09, -0.2], dtype=torch.float64))

    def forward(self, z: torch.Tensor, tau: torch.Tensor, d: torch.Tensor, rows: slice) -> torch.Tensor:
        """.55 z + .21 z before + .17 tau + .09 tau before - .2 d."""
        c = self.c
        return c[0] * z + c[1] * before(z) + per_frame(c[2] * tau + c[3] * before(tau) + c[4] * d, z)


def arguments(golden: dict[str, torch.Tensor]) -> tuple:
    """As `shortcut_losses` takes them."""
    return golden["z1"], golden["z_tilde"], golden["tau"], golden["d"]


BOOTSTRAP = 4  # rows of the goldens


def test_losses_of_both_branches(golden):
    assert golden["emp"].tolist() == [True] * 12 + [False] * BOOTSTRAP
    losses, _ = shortcut_losses(Linear(), *arguments(golden), BOOTSTRAP)
    torch.testing.assert_close(losses[:12], golden["flow"][:12], atol=1e-12, rtol=0)
    torch.testing.assert_close(losses[12:], golden["boot"][12:], atol=1e-12, rtol=0)
    torch.testing.assert_close((ramp(golden["tau"]) * losses).mean(), golden["loss"], atol=1e-12, rtol=0)
    torch.testing.assert_close(ramp(golden["tau"]), golden["w"], atol=1e-12, rtol=0)


def test_velocity_of_two_half_steps(golden):
    z, tau, d = (golden[name] for name in ("z_tilde", "tau", "d"))
    v = bootstrap_velocity(Linear(), z, tau, d, slice(0, 16))
    torch.testing.assert_close(v, golden["v_target"], atol=1e-10, rtol=0)


def test_bootstrap_everywhere(golden):
    losses, _ = shortcut_losses(Linear(), *arguments(golden), 16)
    torch.testing.assert_close(losses, golden["boot"], atol=1e-12, rtol=0)


def printed(golden: dict) -> tuple[torch.Tensor, Linear]:
    """Equation 7 as it is printed, and the denoiser it was computed with."""
    f, (z1, z, tau, d) = Linear(), arguments(golden)
    t, rows = per_frame(tau, z), slice(0, 16)
    clean = f(z, tau, d, rows)
    b1 = (f(z, tau, d / 2, rows) - z) / (1 - t)
    middle = z + b1 * per_frame(d / 2, z)
    b2 = (f(middle, tau + d / 2, d / 2, rows) - middle) / (1 - (t + per_frame(d / 2, z)))
    coarse = (1 - tau) ** 2 * ((clean - z) / (1 - t) - (b1 + b2).detach() / 2).square().mean((-1, -2))
    flow = (clean - z1).square().mean((-1, -2))
    return (ramp(tau) * torch.where(golden["emp"][:, None], flow, coarse)).mean(), f


def ours(golden: dict, losses_of: Callable = shortcut_losses) -> tuple[torch.Tensor, Linear]:
    """The same by the library."""
    f = Linear()
    losses, _ = losses_of(f, *arguments(golden), BOOTSTRAP)
    return (ramp(golden["tau"]) * losses).mean(), f


def gradient(loss: torch.Tensor, f: Linear) -> torch.Tensor:
    """Of the denoiser's five numbers."""
    return torch.autograd.grad(loss, f.c)[0]


def test_loss_and_gradient_are_those_of_the_printed_equation(golden):
    torch.testing.assert_close(ours(golden)[0], printed(golden)[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(*ours(golden)), gradient(*printed(golden)), atol=1e-12, rtol=0)


def test_a_missing_factor_is_caught(golden):
    "Negative control: without (1 - tau)^2 the loss of the bootstrap rows is another."
    factor = "torch.cat([torch.ones_like(per_frame(tau[:flow], z)), 1 - per_frame(tau[flow:], z)])"
    without = mutant(shortcut_losses, "(clean - target)", f"((clean - target) / {factor})")
    assert abs(ours(golden, without)[0] / golden["loss"] - 1) > 0.05


def test_an_unstopped_target_is_caught_by_its_gradient(golden, monkeypatch):
    "Negative control: the loss is the same, what is learned is not."
    right = gradient(*ours(golden))
    monkeypatch.setattr(shortcut, "bootstrap_velocity", inspect.unwrap(bootstrap_velocity))
    loss, f = ours(golden)
    torch.testing.assert_close(loss, golden["loss"], atol=1e-12, rtol=0)
    assert (gradient(loss, f) - right).abs().max() > 1e-2


def test_half_steps_at_the_old_level_are_caught(golden):
    "Negative control: the second half step must know that it begins half a step later."
    stuck = mutant(bootstrap_velocity, "f(middle, tau + half,", "f(middle, tau,")
    v = stuck(Linear(), *(golden[name] for name in ("z_tilde", "tau", "d")), slice(0, 16))
    assert (v - golden["v_target"]).abs().max() > 1e-2


def test_only_rows_with_larger_steps_make_the_further_passes(golden):
    seen = []

    def f(z: torch.Tensor, tau: torch.Tensor, d: torch.Tensor, rows: slice) -> torch.Tensor:
        seen.append((len(z), rows, torch.is_grad_enabled()))
        return Linear()(z, tau, d, rows)

    shortcut_losses(f, *arguments(golden), BOOTSTRAP)
    last = slice(12, 16)
    assert seen == [(4, last, False), (4, last, False), (16, slice(0, 16), True)]


def implied_noise(z: torch.Tensor, z1: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """The noise that must be in z if its level is what it is said to be."""
    t = per_frame(tau, z)
    return (z - t * z1) / (1 - t)


def test_frames_are_as_noisy_as_is_said():
    torch.manual_seed(0)
    z1 = 3 + torch.randn(64, 6, 20)
    tau, _ = draw_levels(64, 6, 0, 8)
    noise = implied_noise(corrupt(z1, tau), z1, tau)
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_a_context_that_is_cleaner_than_is_said_is_caught():
    "Negative control: clean frames that are called noisy hold no noise of the right kind."
    torch.manual_seed(0)
    z1 = 3 + torch.randn(64, 6, 20)
    tau, _ = draw_levels(64, 6, 0, 8)
    z = corrupt(z1, tau)
    z[:, :3] = z1[:, :3]
    assert abs(implied_noise(z, z1, tau).mean()) > 0.5


def test_levels_and_steps_lie_on_the_grid_and_are_drawn_for_every_frame():
    torch.manual_seed(0)
    for finest in (1, 4, 64):
        tau, d = draw_levels(40, 30, 10, finest)
        grid_index(tau, d, finest)
        assert d[:30].eq(1 / finest).all()
        assert tau.max() <= 1 - d.min() + 1e-6 and tau.min() >= 0
        if finest > 1:
            assert (d[30:] > 1 / finest).all()
    assert all(len(row.unique()) > 1 for row in tau) and all(len(row.unique()) > 1 for row in d[30:])
    assert set((tau[:30] * 64).unique().tolist()) == set(range(64))
    assert set(d[30:].unique().tolist()) == {2.0**-i for i in range(6)}


OFF = [(0.3, 1 / 16), (1.0, 1 / 16), (-1 / 16, 1 / 16), (1 / 16, 1 / 8), (0.5, 1.0), (0.0, 1 / 32), (0.0, 2.0), (0.0, 0.3),
       (float("nan"), 1 / 16)]  # fmt: skip


@pytest.mark.parametrize(("tau", "d"), OFF)
def test_off_the_grid_is_caught(tau, d):
    "Negative control."
    with pytest.raises(UsageError, match="off the grid"):
        grid_index(torch.tensor([0.5, tau]), torch.tensor([1 / 16, d]), 16)


def test_levels_drawn_from_the_whole_interval_are_caught():
    "Negative control: uniform numbers instead of the grid."
    with pytest.raises(UsageError, match="off the grid"):
        grid_index(torch.rand(8), torch.full((8,), 1 / 16), 16)


def test_sampling_ends_at_the_prediction_and_follows_the_flow():
    noise, target = torch.randn(5, 3), torch.randn(5, 3)
    for steps in (1, 4, 16):
        torch.testing.assert_close(sample(lambda z, tau, d: target, noise, steps), target)
    torch.manual_seed(0)
    noise = torch.randn(20_000)  # data N(0, 1/4): the exact denoiser is linear, and so is the flow
    exact = sample(lambda z, tau, d: z * tau / 4 / (tau**2 / 4 + (1 - tau) ** 2), noise, 128)
    assert abs(exact.std() - 0.5) < 0.02


def test_one_step_keeps_the_straight_line():
    z0, z1 = torch.randn(4), torch.randn(4)
    half = advance_level(z0, z1, 0.0, 0.5)
    torch.testing.assert_close(half, (z0 + z1) / 2)
    torch.testing.assert_close(advance_level(half, z1, 0.5, 0.25), z0 / 4 + z1 * 3 / 4)


def test_the_context_level_is_nine_tenths_and_on_the_grid():
    "Not the 0.1 that is printed."
    for finest in (4, 8, 16, 64, 128):
        level = ShortcutConfig(finest=finest).context_level
        grid_index(torch.tensor([level]), torch.tensor([1 / finest]), finest)
        assert abs(level - 0.9) <= max(0.5 / finest, 0.9 - (1 - 1 / finest)) + 1e-9


def test_a_share_of_the_rows_on_average():
    torch.manual_seed(0)
    counts = [bootstrap_rows(6, 0.25) for _ in range(400)]
    assert set(counts) == {1, 2} and abs(sum(counts) / 400 - 1.5) < 0.1
    assert {bootstrap_rows(6, 0.0) for _ in range(50)} == {0}


def test_running_sizes():
    rms = RunningRMS(("a", "b"), decay=0.9, floor=0.5)
    a = [rms("a", torch.full((2, 2), 8.0)) for _ in range(3)]
    assert all(loss.eq(1).all() for loss in a)  # no warm-up: the first average is already the right one
    assert rms("b", torch.full((2,), 0.1)).allclose(torch.tensor(0.2))  # not above 1 / floor
    x = torch.tensor([3.0], requires_grad=True)
    rms.eval()("a", x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([1 / 8]))
    assert float(rms.size("a")) == pytest.approx(8.0)


def test_a_divisor_without_a_floor_is_caught():
    "Negative control: of a loss that is nearly nothing, the gradient would be huge."
    x = torch.tensor([1e-6], requires_grad=True)
    RunningRMS(("a",))("a", x).sum().backward()
    assert x.grad is not None and x.grad.item() <= 1e3


def test_bad_constants_say_so():
    wrong = {"power of two": {"finest": 12}, "more than the finest": {"steps": 32}, "shares": {"bootstrap": 1.5}}
    for match, changes in {**wrong, "above 0": {"rms_floor": 0.0}}.items():
        with pytest.raises(UsageError, match=match):
            ShortcutConfig(**changes)
