"""The recurrent model: its fast scan against the plain loop, and deliberate errors that must show."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mutants import mutant
from torch import distributions as torchs
from torch import nn

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.dream.latents import CategoricalLatents, GaussianLatents
from metabonk.dream.recurrent import RecurrentModel
from metabonk.dream.rssm import RSSM, RSSMConfig
from metabonk.dream.scan import fast_observe
from metabonk.nn.distributions import TwoHot, categorical_kl

KINDS = ["categorical", "gumbel", "gaussian"]


def small(kind: str = "categorical", dtype: torch.dtype = torch.float64, **changes) -> SimpleNamespace:
    """A model, a recording of 3 x 7 rows with resets in it, a carried state and noise."""
    torch.manual_seed(0)
    config = RSSMConfig(kind=kind, **{"deter": 16, "hidden": 6, "latents": 3, "classes": 4, "blocks": 4, **changes})
    rssm = RSSM(config, 5, 2).to(dtype)
    with torch.no_grad():
        for parameter in rssm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    embed, action = torch.randn(3, 7, 5, dtype=dtype), 2 * torch.randn(3, 7, 2, dtype=dtype)
    first = torch.zeros(3, 7, dtype=torch.bool)
    first[0, 0] = first[1, 3] = first[1, 6] = first[2, 3] = True
    state = {name: torch.randn_like(value) for name, value in rssm.initial(3).items()}
    return SimpleNamespace(
        rssm=rssm, embed=embed, action=action, first=first, state=state, noise=rssm.latents.noise((3, 7), embed)
    )


def gradients(observe, case) -> tuple[dict, list]:
    """States, and gradients of a loss that touches everything."""
    inputs = [case.embed.clone().requires_grad_(), *(value.clone().requires_grad_() for value in case.state.values())]
    states = observe(case.rssm, inputs[0], case.action, case.first, dict(zip(case.state, inputs[1:], strict=True)), case.noise)
    weights = torch.Generator().manual_seed(1)
    loss = sum(entry.sum() for entry in case.rssm.kl_losses(states).values())
    for value in states.values():
        loss = loss + (value * torch.randn(value.shape, generator=weights, dtype=value.dtype)).sum()
    return states, torch.autograd.grad(loss, [*case.rssm.parameters(), *inputs])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=["64", "32"])
def test_fast_scan_gives_states_and_gradients_of_the_plain_loop(kind, dtype, tolerance):
    case = small(kind, dtype)
    (plain, plain_grads), (fast, fast_grads) = gradients(RSSM.observe, case), gradients(fast_observe, case)
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], atol=tolerance, rtol=tolerance)
    for one, other in zip(fast_grads, plain_grads, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * max(1, float(other.abs().max())), rtol=tolerance)


@pytest.mark.parametrize("kind", ["gumbel", "gaussian"])
def test_gradients_of_the_fast_scan_are_derivatives(kind):
    "Finite differences; straight-through gradients are none, so the smooth kinds stand for all."
    case = small(kind, deter=8, latents=2, classes=3, hidden=4)
    names, values = zip(*case.rssm.named_parameters(), strict=True)
    action, first, noise = case.action[:2, :3], case.first[:2, :3], case.noise[:2, :3]
    first[1, 2] = True

    def forward(embed, deter, stoch):
        return tuple(fast_observe(case.rssm, embed, action, first, {"deter": deter, "stoch": stoch}, noise).values())

    def run(embed, deter, stoch, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(case.rssm, named, (embed, deter, stoch))

    case.rssm.forward = forward
    inputs = [case.embed[:2, :3], *(value[:2] for value in case.state.values()), *values]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    learned = [name for name in names if not name.startswith("prior")]
    moved = [value + 0.1 * name.startswith("cell.mix") for name, value in zip(names, inputs[3:], strict=True)]
    assert not torch.allclose(run(*inputs)[0], run(*inputs[:3], *moved)[0])  # the parameters checked are those used
    grads = torch.autograd.grad(sum(out.square().sum() for out in run(*inputs)), inputs[3:], allow_unused=True)
    assert [name for name, grad in zip(names, grads, strict=True) if grad is not None] == learned


@pytest.mark.parametrize("observe", [RSSM.observe, fast_observe], ids=["plain", "fast"])
def test_nothing_crosses_the_beginning_of_an_episode(observe):
    case = small()
    before, grads = gradients(observe, case)
    case.embed[1:, :3] += 3
    case.action[:, 3] *= torch.tensor([1.0, -5.0, -5.0])[:, None]  # an action in a first row means nothing
    case.state = {name: value + 1 for name, value in case.state.items()}
    after, _ = gradients(observe, case)
    torch.testing.assert_close(after["deter"][1:, 3:], before["deter"][1:, 3:])
    torch.testing.assert_close(after["deter"][0], before["deter"][0])  # its first row is an episode's first
    assert grads[-2][0].eq(0).all() and not grads[-2][1].eq(0).all()  # the carried memory of sequence 0 is cut off


def test_a_carry_that_is_not_reset_is_caught():
    "Negative control: without the resets the states differ."
    case = small()
    right, _ = gradients(RSSM.observe, case)
    case.first = torch.zeros_like(case.first)
    wrong, _ = gradients(RSSM.observe, case)
    assert not torch.allclose(right["deter"][1:, 3], wrong["deter"][1:, 3], atol=1e-3)


def test_surprise_is_clipped_after_the_sum():
    case = small(latents=8)
    states = case.rssm.observe(case.embed, case.action, case.first, case.state, case.noise)
    q, p = (case.rssm.latents.probabilities(raw) for raw in (states["raw"], case.rssm.prior(states["deter"])))
    each = categorical_kl(q, p)  # (3, 7, 8)
    losses = case.rssm.kl_losses(states)
    torch.testing.assert_close(losses["dynamics"], each.sum(-1).clamp(min=1))
    torch.testing.assert_close(losses["representation"], losses["dynamics"])
    # Negative control: clipping each latent gives each of them a nat for nothing.
    assert (each.clamp(min=1).sum(-1) > losses["dynamics"] + 0.1).any()


def test_surprise_on_raw_logits_is_caught():
    "Negative control: without the uniform share the divergence is another."
    case, raw = small(), 4 * torch.randn(2, 50, 12, dtype=torch.float64)
    mixed = case.rssm.latents.kl(raw[0], raw[1])
    plain = categorical_kl(*(r.view(50, 3, 4).softmax(-1) for r in raw)).sum(-1)
    assert (plain / mixed - 1).abs().mean() > 0.03


def test_dynamics_teaches_the_prior_and_representation_the_posterior():
    case = small(free_nats=0.0)
    states = case.rssm.observe(case.embed, case.action, case.first)
    states = {name: value.detach().requires_grad_() for name, value in states.items()}
    losses, prior = case.rssm.kl_losses(states), case.rssm.prior[-1].weight
    for name, learns in (("dynamics", [False, True]), ("representation", [True, False])):
        grads = torch.autograd.grad(losses[name].sum(), [states["raw"], prior], allow_unused=True, retain_graph=True)
        assert [grad is not None and bool(grad.abs().sum() > 0) for grad in grads] == learns


def test_one_draw_in_each_choice_follows_its_probabilities():
    case = small()
    raw = torch.randn(12, dtype=torch.float64).expand(20_000, 12).contiguous()
    drawn = case.rssm.latents.drawer(case.rssm.latents.noise((1, 20_000), raw))(0, raw)
    assert drawn.view(-1, 3, 4).sum(-1).eq(1).all()
    torch.testing.assert_close(drawn.view(-1, 3, 4).mean(0), case.rssm.latents.probabilities(raw[0]), atol=0.02, rtol=0)


@pytest.mark.parametrize(("name", "parameters"), [("1M", 377_472), ("12M", 5_982_720)])
def test_published_sizes(name, parameters):
    config = RSSMConfig.preset(name)
    with torch.device("meta"):
        rssm = RSSM(config, embed=64 * config.classes, action=18)
    assert sum(p.numel() for p in rssm.parameters()) == parameters


class Look(nn.Linear):
    """An encoder of numbers."""

    def forward(self, batch):
        return super().forward(batch.seen)


class Guess(nn.Linear):
    """A decoder of numbers."""

    def loss(self, features, batch):
        return (self(features) - batch.seen).square().sum(-1)


def world() -> tuple[RecurrentModel, SimpleNamespace]:
    """A model of numbers, and a recording."""
    torch.manual_seed(0)
    config = RSSMConfig(deter=16, hidden=8, latents=3, classes=4, units=8, blocks=4)
    model = RecurrentModel(config, Look(6, 5), 5, {"numbers": Guess(16 + 12, 6)}, actions=ActionSpec(categorical=(3,)))
    batch = SimpleNamespace(
        seen=torch.randn(4, 9, 6), action=torch.randint(3, (4, 9)), reward=torch.randn(4, 9),
        first=torch.rand(4, 9) < 0.2, terminated=torch.rand(4, 9) < 0.2,
    )  # fmt: skip
    return model, batch


def test_every_loss_has_one_entry_a_row_and_a_scale():
    model, batch = world()
    losses, states = model.losses(batch)
    assert losses.keys() == model.scales.keys()
    assert all(loss.shape == (4, 9) for loss in losses.values())
    assert model.scales["representation"] == 0.1 and model.scales["dynamics"] == 1.0
    model.total(losses).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert states["deter"].shape == (4, 9, 16)


def test_losses_without_scales_and_averaged_losses_are_caught():
    model, batch = world()
    del model.scales["reward"]
    with pytest.raises(AssertionError, match="scales"):
        model.losses(batch)
    model, batch = world()
    model.decoders["numbers"].loss = lambda features, batch: features.mean()
    with pytest.raises(AssertionError, match="numbers"):
        model.losses(batch)


def test_reward_is_exactly_zero_before_training_and_a_plain_sum_is_not():
    model, batch = world()
    features = model.features(model.observe(batch))
    assert model.reward(features).eq(0).all()
    two_hot = TwoHot(model.reward_head(features))
    assert not (two_hot.logits.softmax(-1) * two_hot.bins).sum(-1).eq(0).all()  # negative control


def continue_losses(model, batch):
    "Loss of rows after which the episode goes on, where the network says the same of all of them"
    model.continue_head[-1].weight.data.zero_()
    losses = {}
    for p in (0.99, 1 - 1 / 333, 0.9999):
        model.continue_head[-1].bias.data.fill_(torch.tensor(p).logit())
        losses[p] = model.losses(batch)[0]["continue"][~batch.terminated].mean().item()
    return losses


def test_continuation_is_a_probability_and_knows_no_discount():
    model, batch = world()
    losses = continue_losses(model, batch)
    assert min(losses, key=losses.__getitem__) == 0.9999
    over = batch.terminated.clone()
    over[:, 3] = True
    batch.terminated = over
    assert model.losses(batch)[0]["continue"][:, 3].min() > 5  # where it ended, being sure of the opposite is punished


def test_weights_that_were_learned_with_the_discount_in_the_target_tell_probabilities():
    old, batch = world()
    weights = {name: value for name, value in old.state_dict().items() if name != "continue_head.certain"}
    model = copy.deepcopy(old)
    model.load_state_dict(weights)
    features = torch.randn(50, old.feature_size)
    torch.testing.assert_close(model.continuation(features) * (1 - 1 / 333), old.continuation(features))
    losses = continue_losses(model, batch)  # trained on, the network is taught what it was taught before
    assert min(losses, key=losses.__getitem__) == 1 - 1 / 333
    model.continue_head[-1].bias.data.fill_(torch.tensor(1 - 1 / 333).logit())
    assert model.continuation(features).eq(1).all()
    again, _ = world()
    again.load_state_dict(model.state_dict())  # saved anew, it is still known
    assert torch.equal(again.continue_head.certain, model.continue_head.certain) and again.continue_head.certain < 1


def test_states_of_every_row_and_of_the_last():
    model, batch = world()
    torch.manual_seed(1)
    last = model.observe(batch)
    torch.manual_seed(1)
    every = model.observe(batch, every=True)
    torch.testing.assert_close(every["deter"].view(4, 9, -1)[:, -1], last["deter"])
    assert set(every) == {"deter", "stoch"}


def test_wrong_sizes_are_told():
    case = small()
    with pytest.raises(UsageError, match="embed has 4 numbers"):
        fast_observe(case.rssm, case.embed[..., :4], case.action, case.first)
    with pytest.raises(UsageError, match="blocks"):
        RSSM(RSSMConfig(deter=20), 5, 2)


@pytest.mark.parametrize("deter", [16, 16_384])
def test_a_scan_leaves_the_number_of_threads_alone(deter):
    "Whoever started the process chose it"
    case, seen = small(dtype=torch.float32, deter=deter, blocks=deter // 4), []
    latents = case.rssm.latents
    drawer, pullback = latents.drawer, latents.pullback
    latents.drawer = lambda noise: seen.append(torch.get_num_threads()) or drawer(noise)
    latents.pullback = lambda raw, noise: seen.append(torch.get_num_threads()) or pullback(raw, noise)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        gradients(fast_observe, case)
        assert seen == [3, 3] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def theirs(raw: torch.Tensor) -> torchs.Normal:
    """Bell curves of raw numbers: no narrower than 0.1."""
    mean, spread = raw.numpy()[..., :3], raw.numpy()[..., 3:]
    return torchs.Normal(*(torch.from_numpy(x) for x in (mean, 2 / (1 + np.exp(-spread / 2)) + 0.1)))


RAW = 4 * torch.randn(2, 50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_bell_curves_are_those_of_torch():
    latents, (p, q) = GaussianLatents(3), RAW
    mean, std = latents.curves(p)
    torch.testing.assert_close(mean, theirs(p).mean)
    torch.testing.assert_close(std, theirs(p).stddev)
    wanted = torchs.kl_divergence(theirs(p), theirs(q)).sum(-1)
    torch.testing.assert_close(latents.kl(p, q), wanted)
    for entry in latents.kl_losses(p, q):
        torch.testing.assert_close(entry, wanted)
    assert float(latents.curves(torch.full((6,), -200.0))[1].min()) == pytest.approx(0.1)


@pytest.mark.parametrize(("name", "old", "new"), [
    ("curves", " + self.low", ""), ("kl", "self.curves(raw_p), self.curves(raw_q)", "self.curves(raw_q), self.curves(raw_p)"),
    ("kl", "std_q.log() - std_p.log()", "std_p.log() - std_q.log()"), ("kl", "2 * std_q.square()", "std_q.square()"),
    ("kl", "(mean_p - mean_q).square()", "(mean_p - mean_q).abs()"), ("kl", " - 0.5", ""),
], ids=["no least spread", "the other way round", "logarithms exchanged", "no half", "distance not squared",
        "no constant"])  # fmt: skip
def test_deliberate_errors_in_bell_curves_are_caught(monkeypatch, name, old, new):
    "Negative controls."
    monkeypatch.setattr(GaussianLatents, name, mutant(getattr(GaussianLatents, name), old, new))
    with pytest.raises(AssertionError):
        test_bell_curves_are_those_of_torch()


DRAWS = {
    "draw": lambda latents, raw, noise: latents.draw(raw, noise),
    "sample": lambda latents, raw, noise: latents.sample(raw, noise),
    "drawer": lambda latents, raw, noise: latents.drawer(noise[None])(0, raw),
}


def drawn_by_both(how: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes of 400 choices whose head is sure of one, by the library and by NumPy: where the sum of the chances passes."""
    latents, generator = CategoricalLatents(2, 4), torch.Generator().manual_seed(0)
    raw = torch.zeros(200, 2, 4).scatter_(2, torch.randint(4, (200, 2, 1), generator=generator), 30.0)
    noise = torch.cat([torch.linspace(0.0003, 0.0297, 100), torch.linspace(0.9703, 0.9997, 100)])[:, None].repeat(1, 2)
    p = np.exp(raw.double().numpy() - 30)
    p = 0.99 * p / p.sum(-1, keepdims=True) + 0.01 / 4
    wanted = (p.cumsum(-1) < noise.double().numpy()[..., None]).sum(-1)
    mine = DRAWS[how](latents, raw.flatten(1), noise)
    return mine.detach().unflatten(-1, (2, 4)).argmax(-1).numpy(), wanted


@pytest.mark.parametrize(("how", "old", "new"), [
    ("draw", "self.probabilities(raw)", "self._split(raw).softmax(-1)"),
    ("sample", "self.probabilities(raw)", "self._split(raw).softmax(-1)"),
    ("drawer", "(noise[..., None] - self.unimix / self.classes * k) / (1 - self.unimix)", "noise[..., None] - 0 * k"),
])  # fmt: skip
def test_every_draw_has_its_uniform_share(monkeypatch, how, old, new):
    "Negative control: the softmax alone."
    mine, wanted = drawn_by_both(how)
    assert (mine == wanted).all() and len(set(wanted.flatten())) == 4
    monkeypatch.setattr(CategoricalLatents, how, mutant(getattr(CategoricalLatents, how), old, new))
    mine, wanted = drawn_by_both(how)
    assert (mine != wanted).mean() > 0.05


class Row(nn.Module):
    """An encoder that copies, so that nothing of it is in the way."""

    def forward(self, batch):
        return batch.x


def rewards_by_both() -> tuple[torch.Tensor, torch.Tensor]:
    """The reward's loss by the library, and the two-hot cross-entropy of each row's own reward in NumPy."""
    torch.manual_seed(0)
    model = RecurrentModel(RSSMConfig(deter=16, hidden=6, latents=3, classes=4, units=6, blocks=4), Row(), 5, {},
                           ActionSpec(categorical=(2,)))
    nn.init.normal_(model.reward_head[-1].weight)
    no = torch.zeros(2, 6, dtype=torch.bool)
    reward = torch.tensor([[0.0, 1, 0, -3, 0, 0.25], [7, 0, 0, 0, 1, 0]])
    batch = SimpleNamespace(x=torch.randn(2, 6, 5), action=torch.randint(2, (2, 6)), reward=reward, terminated=no, first=no)
    losses, states = model.losses(batch)
    logits = model.reward_head(model.rssm.features(states)).detach().double().numpy()
    half = np.linspace(-20, 0, 128)
    bins = np.concatenate([-np.expm1(-half), np.expm1(-half[:-1])[::-1]])
    log_p, wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True)), np.zeros((2, 6))
    for b, t in np.ndindex(2, 6):
        x = float(reward[b, t])
        above = int(np.clip(np.searchsorted(bins, x, side="right"), 1, 254))
        w = (bins[above] - x) / (bins[above] - bins[above - 1])
        wanted[b, t] = -(w * log_p[b, t, above - 1] + (1 - w) * log_p[b, t, above])
    return losses["reward"].detach().double(), torch.from_numpy(wanted)


def test_a_state_foretells_the_reward_of_its_own_row(monkeypatch):
    "Negative control: that of the row before."
    torch.testing.assert_close(*rewards_by_both(), atol=1e-4, rtol=1e-4)
    late = mutant(RecurrentModel.losses, "batch.reward.to(", "batch.reward.roll(1, 1).to(")
    monkeypatch.setattr(RecurrentModel, "losses", late)
    mine, wanted = rewards_by_both()
    assert float((mine - wanted).abs().max()) > 0.1


@pytest.mark.parametrize("fan", ["block", "layer"])
def test_block_linear_layers_start_as_wide_as_was_asked(fan):
    """The authors count the inputs of all eight blocks, which makes gates 2.8 times smaller."""
    torch.manual_seed(0)
    cell = RSSM(RSSMConfig(deter=512, hidden=64, fan=fan), 8, 2).cell
    for layer, inputs in ((cell.mix, 512 + 3 * 64 * 8), (cell.gates, 512)):
        assert float(layer.weight.detach().std()) == pytest.approx((inputs if fan == "layer" else inputs / 8) ** -0.5, rel=0.02)
