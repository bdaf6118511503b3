"""Diffusion: data whose best denoiser is known, the bound against numbers computed in another way, and each error caught."""

import math

import pytest
import torch
from mutants import mutant
from torch.distributions import Normal, kl_divergence

from metabonk.core.errors import UsageError
from metabonk.dream import diffusion as module
from metabonk.dream.diffusion import (
    Diffusion,
    DiffusionConfig,
    Estimate,
    diffusion_losses,
    estimate,
    gaussian_kl,
    per_row,
    respaced,
    sample,
    target_of,
    transition,
    vlb,
)
from metabonk.nn.noise import make_generators

MEAN, DEVIATION = 1.5, 0.5
KINDS = ("eps", "v", "flow")


def best(diffusion: Diffusion, mean: float = MEAN, deviation: float = DEVIATION):
    """The best denoiser of normal data: E[z_0 | z_k], said as the target has it; the range as it is for sure of its mean."""
    kind = diffusion.config.target

    def f(z, step):
        said = {}
        for name, x in z.items():
            alpha, sigma = (per_row(level, x) for level in diffusion.levels(step))
            gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
            clean = mean + gain * (x - alpha * mean)
            noise = (x - alpha * clean) / sigma
            said[name] = target_of(kind, clean, noise, alpha, sigma)
            if kind == "eps":
                said[name] = torch.cat([said[name], torch.ones_like(x)], -1)
        return said

    return f


def drawn(kind: str, sampler: str, steps: int, count: int = 8_000) -> torch.Tensor:
    diffusion = Diffusion(DiffusionConfig(target=kind))
    generator = torch.Generator().manual_seed(0)
    noise = {"vision": torch.randn(count, 1, 1, generator=generator, dtype=torch.float64)}
    return sample(diffusion, best(diffusion), noise, generator, steps, sampler)["vision"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 250), ("ddim", 250), ("heun", 30)])
def test_samplers_recover_mean_and_deviation_of_normal_data(kind, sampler, steps):
    z = drawn(kind, sampler, steps)
    assert abs(z.mean() - MEAN) < 0.025 and abs(z.std() - DEVIATION) < 0.02


def test_what_ddpm_draws_with_the_wrong_posterior_is_caught(monkeypatch):
    "Negative control: the variance of the step that is undone, in place of that of the whole way."
    monkeypatch.setattr(
        module, "transition", mutant(transition, "ratio**2 * sigma_before**2", "ratio * sigma_before**2")
    )
    assert not abs(drawn("v", "ddpm", 250).std() - DEVIATION) < 0.02


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_heun_is_of_second_order_and_ddim_of_first(kind):
    def off(sampler: str, steps: int) -> float:
        return abs(float(drawn(kind, sampler, steps, 300).std() - drawn(kind, "heun", 200, 300).std()))

    assert off("ddim", 20) / off("ddim", 40) < 3 < off("heun", 20) / off("heun", 40)
    assert off("heun", 20) < off("ddim", 40) / 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_gives_the_mean_and_every_count_ends_clean(kind):
    config = DiffusionConfig(target=kind)
    diffusion = Diffusion(config)
    for count in (1, 4, 10, 250):
        places = respaced(config, count)
        assert (
            len(places) == count + 1
            and places[0] == 1000
            and places[-1] == 0
            and places == sorted(set(places), reverse=True)
        )
    noise = {"audio": torch.randn(50, 2, 3, 4)}
    z = sample(diffusion, best(diffusion), noise, steps=1)["audio"]
    assert z.shape == noise["audio"].shape and (z - MEAN).abs().max() < 0.1


def test_ddim_and_heun_draw_nothing_and_ddpm_draws_by_its_generators():
    diffusion = Diffusion(DiffusionConfig(target="v"))
    noise = {"vision": torch.randn(2, 3, 4), "audio": torch.randn(2, 5, 6)}
    for sampler in ("ddim", "heun"):
        before = torch.get_rng_state()
        once, again = (sample(diffusion, best(diffusion), noise, sampler=sampler) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(once[name], again[name]) for name in noise)
    once, again, other = (
        sample(diffusion, best(diffusion), noise, make_generators(seeds, torch.device("cpu")), sampler="ddpm")
        for seeds in ((1, 2), (1, 2), (3, 2))
    )
    assert all(torch.equal(once[name], again[name]) for name in noise)
    assert all(not torch.equal(once[name][0], other[name][0]) for name in noise)
    assert all(torch.equal(once[name][1], other[name][1]) for name in noise)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_solved_for_clean_and_noise(kind):
    diffusion = Diffusion(DiffusionConfig(target=kind))
    clean, step = torch.randn(7, 2, 3), torch.tensor([1.0, 2, 10, 100, 400, 700, 900])
    noisy, noise = diffusion.corrupt({"vision": clean}, step)
    levels = [per_row(level, clean) for level in diffusion.levels(step)]
    said = target_of(kind, clean, noise["vision"], *levels)
    said = torch.cat([said, said], -1) if kind == "eps" else said
    about = estimate(kind, said, noisy["vision"], *levels)
    torch.testing.assert_close(about.clean, clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(about.noise, noise["vision"], atol=1e-4, rtol=0)


def test_schedule_is_that_of_linear_betas():
    diffusion = Diffusion(DiffusionConfig(target="v"))
    beta = 1e-4 + (0.02 - 1e-4) * torch.arange(1000, dtype=torch.float64) / 999
    for k in (1, 2, 500, 1000):
        alpha, sigma = diffusion.levels(torch.tensor(float(k)))
        assert (float(alpha), float(sigma)) == pytest.approx(diffusion.level(k), rel=1e-6)
        assert float(alpha) == pytest.approx(math.sqrt(float((1 - beta[:k]).prod())), rel=1e-6)
        assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-6)
    assert [float(x) for x in diffusion.levels(torch.tensor(0.0))] == [1, 0]


def test_steps_are_drawn_from_all_and_only_those():
    drawn = Diffusion(DiffusionConfig(target="eps", steps=5)).draw_steps((4000,))
    assert sorted(set(drawn.tolist())) == [1, 2, 3, 4, 5]
    flow = Diffusion(DiffusionConfig(steps=5)).draw_steps((4000,))
    assert 0 < flow.min() < 0.1 and 4.9 < flow.max() <= 5


def both_noises(function) -> float:
    """How alike the noise of the two senses is, -1 to 1."""
    clean = {"vision": torch.zeros(500, 2, 6), "audio": torch.zeros(500, 3, 4)}
    _, noise = function(Diffusion(), clean, torch.full((500,), 500.0), torch.Generator().manual_seed(0))
    return float(torch.corrcoef(torch.stack([noise["vision"].flatten(), noise["audio"].flatten()]))[0, 1])


def test_each_sense_has_its_own_noise():
    assert abs(both_noises(Diffusion.corrupt)) < 0.05
    drawn = "gaussian(z.shape, z, generator)"
    one = mutant(Diffusion.corrupt, drawn, drawn.replace("generator", "torch.Generator().manual_seed(0)"))
    assert both_noises(one) > 0.9, "negative control"


def bound(share: float, step: float, function=vlb) -> tuple[float, float]:
    """The bound's term for one number, and the same by torch's own distributions and the joint normal of z_k-1 and z_k."""
    diffusion = Diffusion(DiffusionConfig(target="eps"))
    clean, guessed, noise = torch.tensor([[[0.7]]]).double(), torch.tensor([[[0.4]]]).double(), 0.3
    k = torch.tensor([step]).double()
    (alpha, sigma), (a, s) = ([float(x) for x in diffusion.levels(k - j)] for j in (0, 1))
    noisy = alpha * clean + sigma * noise
    about = Estimate(guessed, torch.zeros_like(clean), torch.full_like(clean, share))
    got = float(function(diffusion, about, clean, noisy, k))
    beta = float(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[int(step) - 1])

    def posterior(z0: float) -> tuple[float, float]:  # by Bayes: N(z; a z0, s^2) N(z_k; sqrt(1 - beta) z, beta)
        precision = 1 / s**2 + (1 - beta) / beta
        return (a * z0 / s**2 + math.sqrt(1 - beta) * float(noisy) / beta) / precision, 1 / precision

    if step == 1:
        first, second = (float(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[i]) for i in (0, 1))
        least = second * first / (1 - (1 - first) * (1 - second))
        deviation = math.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(least)))
        return got, float(-Normal(float(guessed), deviation).log_prob(clean)) / math.log(2)
    (mean, least), (off, _) = posterior(0.7), posterior(0.4)
    deviation = math.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(least)))
    kl = kl_divergence(Normal(mean, math.sqrt(least)), Normal(off, deviation))
    return got, float(kl) / math.log(2)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("step", [1.0, 2.0, 100.0, 1000.0])
def test_bound_is_the_divergence_of_the_posteriors(share, step):
    got, wanted = bound(share, step)
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("said.share * most.log()", "said.share * most"),
        ("gaussian_kl(wanted, least, mean, log_var)", "gaussian_kl(mean, log_var, wanted, least)"),
        ("/ math.log(2)", ""),
        ("diffusion, step, step - 1, clean", "diffusion, step, step * 0, clean"),
    ],
)
def test_a_wrong_bound_is_caught(old, new):
    "Negative controls."
    got, wanted = bound(0.3, 2.0, mutant(vlb, old, new))
    assert got != pytest.approx(wanted, rel=1e-2)


def test_divergence_of_normals():
    p, q = Normal(0.3, 1.7), Normal(-1.0, 0.4)
    got = gaussian_kl(*(torch.tensor(x) for x in (0.3, 2 * math.log(1.7), -1.0, 2 * math.log(0.4))))
    assert float(got) == pytest.approx(float(kl_divergence(p, q)), rel=1e-6)


def test_bound_teaches_the_range_alone():
    diffusion, clean = Diffusion(DiffusionConfig(target="eps")), {"vision": torch.randn(6, 2, 3)}
    step = diffusion.draw_steps((6,))
    noisy, noise = diffusion.corrupt(clean, step)
    said = torch.randn(6, 2, 6).requires_grad_()
    losses = diffusion_losses(diffusion, {"vision": said}, clean, noisy, noise, step)
    assert {name: x.shape for name, x in losses.items()} == {"vision": (6,), "vlb": (6,)}
    grad = torch.autograd.grad(losses["vlb"].sum(), said, retain_graph=True)[0]
    assert grad[..., :3].abs().max() == 0 < grad[..., 3:].abs().min()
    grad = torch.autograd.grad(losses["vision"].sum(), said)[0]
    assert grad[..., 3:].abs().max() == 0 < grad[..., :3].abs().min()


def test_bad_configurations_are_refused():
    bad = {"steps": 1, "beta_first": 0.0, "beta_last": 1.0, "sample_steps": 1001, "target": "x"}
    for changes in ({name: value} for name, value in bad.items()):
        with pytest.raises(UsageError):
            DiffusionConfig.from_dict(changes)
