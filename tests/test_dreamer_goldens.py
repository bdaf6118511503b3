"""Same inputs, same numbers as the authors' own code of DreamerV3."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metabonk.act.actor_critic import ActorCriticConfig, actor_critic_losses
from metabonk.act.returns import DISCOUNT, ReturnScale, lambda_returns
from metabonk.core.optimizer import LaProp
from metabonk.dream.interface import ImaginedTrajectory
from metabonk.nn.distributions import Categorical, TwoHot, categorical_kl, mixed_probabilities, symexp_bins
from metabonk.nn.layers import BlockGRU


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Inputs and outputs by name."""
    with np.load(Path(__file__).parent / "goldens/dreamer3.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_two_hot_loss(golden):
    loss = TwoHot(golden["twohot_logits"]).loss(golden["twohot_target"])
    torch.testing.assert_close(loss, golden["twohot_loss"], atol=1e-5, rtol=1e-5)


def test_two_hot_mean(golden):
    mean = TwoHot(golden["twohot_pred_logits"]).mean
    torch.testing.assert_close(mean, golden["twohot_pred"], atol=1e-5, rtol=1e-5)


def test_two_hot_of_zero_logits_is_exactly_zero_and_a_plain_sum_is_not():
    assert TwoHot(torch.zeros(4, 255)).mean.eq(0).all()
    assert (torch.zeros(255).softmax(-1) * symexp_bins()).sum() != 0


def test_two_hot_interpolated_between_logarithms_is_caught(golden):
    "Negative control: weights measured in symlog space give another loss."
    bins, target = torch.linspace(-20, 20, 255), golden["twohot_target"]
    x = target.sign() * target.abs().log1p()
    above = torch.searchsorted(bins, x, right=True).clamp(1, 254)
    w = (bins[above] - x) / (bins[above] - bins[above - 1])
    log_p = golden["twohot_logits"].log_softmax(-1)
    wrong = -(w * log_p.gather(-1, above[:, None] - 1)[:, 0] + (1 - w) * log_p.gather(-1, above[:, None])[:, 0])
    assert not torch.allclose(wrong, golden["twohot_loss"], atol=1e-3)


def test_kl(golden):
    p, q = (mixed_probabilities(golden[f"kl_{name}_logits"]) for name in ("post", "prior"))
    torch.testing.assert_close(categorical_kl(p, q).sum(-1), golden["kl"], atol=1e-3, rtol=1e-5)


def test_kl_without_the_uniform_share_is_caught(golden):
    "Negative control: on raw logits the divergence is several percent off."
    p, q = (golden[f"kl_{name}_logits"].softmax(-1) for name in ("post", "prior"))
    assert ((categorical_kl(p, q).sum(-1) / golden["kl"] - 1).abs() > 0.03).all()


@pytest.mark.parametrize("piece", [4, 65_536], ids=["in pieces", "at once"])
def test_optimizer(golden, piece, monkeypatch):
    monkeypatch.setattr(LaProp, "piece", piece)
    parameter = torch.nn.Parameter(golden["opt_param"].clone())
    optimizer = LaProp([parameter], lr=4e-5, warmup=0)
    for grad in golden["opt_grads"]:
        parameter.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(parameter.detach() - golden["opt_param"], golden["opt_delta"], atol=1e-7, rtol=1e-4)


def test_optimizer_on_tensors_that_are_not_contiguous(golden):
    "The pass over whole tensors, as a GPU takes it, gives the same numbers."
    parameter = torch.nn.Parameter(golden["opt_param"].t().contiguous().t())
    optimizer = LaProp([parameter], lr=4e-5, warmup=0)
    for grad in golden["opt_grads"]:
        parameter.grad = grad.t().contiguous().t()
        optimizer.step()
    torch.testing.assert_close(parameter.detach() - golden["opt_param"], golden["opt_delta"], atol=1e-7, rtol=1e-4)


def test_adam_is_caught(golden):
    "Negative control: averaging before dividing is another optimizer."
    parameter = torch.nn.Parameter(golden["opt_param"].clone())
    optimizer = torch.optim.Adam([parameter], lr=4e-5, eps=1e-20)
    for grad in golden["opt_grads"]:
        parameter.grad = grad.clone()
        optimizer.step()
    assert not torch.allclose(parameter.detach() - golden["opt_param"], golden["opt_delta"], atol=1e-6)


def test_optimizer_warms_up_and_skips_what_has_no_gradient():
    moved, kept = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = LaProp([moved, kept], lr=1.0, warmup=1000, clip=0.0)
    moved.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(moved.detach(), torch.full((3,), 1 - 1e-3))
    assert kept.eq(1).all() and kept not in optimizer.state


def golden_cell(golden) -> BlockGRU:
    """The cell of the golden numbers, with its parameters."""
    cell, parameter = BlockGRU(deter=16, stoch=16, action=5, hidden=8, blocks=4), lambda name: golden[f"gru_param_{name}"]
    with torch.no_grad():
        for index, entrance in enumerate((cell.deter_in, cell.stoch_in, cell.action_in)):
            entrance.linear.weight.copy_(parameter(f"dynin{index}_kernel").T)
            entrance.linear.bias.copy_(parameter(f"dynin{index}_bias"))
            entrance.norm.scale.copy_(parameter(f"dynin{index}norm_scale"))
        for layer, name in ((cell.mix, "dynhid0"), (cell.gates, "dyngru")):
            layer.weight.copy_(parameter(f"{name}_kernel"))
            layer.bias.copy_(parameter(f"{name}_bias"))
        cell.mix_norm.scale.copy_(parameter("dynhid0norm_scale"))
    return cell


def test_block_gru(golden):
    after = golden_cell(golden)(golden["gru_deter"], golden["gru_stoch"].flatten(1), golden["gru_action"])
    torch.testing.assert_close(after, golden["gru_next_deter"], atol=1e-6, rtol=1e-5)


def test_block_gru_with_other_order_of_inputs_is_caught(golden):
    "Negative control: a block that reads the projections before its memory is another cell."
    cell = golden_cell(golden)
    cell.mix.weight = torch.nn.Parameter(cell.mix.weight.roll(24, dims=1))
    after = cell(golden["gru_deter"], golden["gru_stoch"].flatten(1), golden["gru_action"])
    assert not torch.allclose(after, golden["gru_next_deter"], atol=1e-3)


def test_lambda_returns(golden):
    returns = lambda_returns(golden["lambda_reward"], golden["lambda_value"], golden["lambda_cont"], 0.95, discount=1.0)
    torch.testing.assert_close(returns, golden["lambda_return"], atol=1e-5, rtol=1e-5)


def test_lambda_returns_with_rewards_a_row_late_are_caught(golden):
    "Negative control: the reward of a row was earned on the way to it, not after it."
    late = golden["lambda_reward"].roll(1, dims=1)
    returns = lambda_returns(late, golden["lambda_value"], golden["lambda_cont"], 0.95, discount=1.0)
    assert not torch.allclose(returns, golden["lambda_return"], atol=1e-3)


def led_to(decided: torch.Tensor) -> torch.Tensor:
    """One-hot actions, moved from the rows where they were decided to those that they led to."""
    return torch.nn.functional.one_hot(decided, 6).float().roll(1, dims=1)


def imagination_losses(golden, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean actor and critic loss on the golden imagined rows."""
    action, reward = led_to(golden["imag_actions"]), golden["imag_reward"]
    goes_on = golden["imag_cont"] / DISCOUNT  # theirs has the discount in it
    inputs = {
        "policy": Categorical(golden["imag_policy_logits"][:, :-1], unimix=0.0),
        "value": TwoHot(golden["imag_value_logits"]),
        "slow_value": TwoHot(golden["imag_slow_value_logits"]),
        "dream": ImaginedTrajectory(action, action, torch.zeros_like(reward), reward, goes_on, []),
        "scale": ReturnScale(),
        "config": ActorCriticConfig(),
        **changes,
    }
    losses, _ = actor_critic_losses(**inputs)
    return losses["actor"].mean(), losses["critic"].mean()


def test_imagination_losses(golden):
    actor, critic = imagination_losses(golden)
    torch.testing.assert_close(actor, golden["imag_policy_mean"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(critic, golden["imag_value_mean"], atol=1e-4, rtol=1e-5)


def test_returns_that_are_not_normalised_are_caught(golden):
    "Negative control: a scale that never leaves its limit gives another actor loss."
    actor, critic = imagination_losses(golden, scale=ReturnScale(rate=0.0))
    assert abs(actor - golden["imag_policy_mean"]) > 1 and torch.isclose(critic, golden["imag_value_mean"])


def test_a_critic_without_its_slow_copy_is_caught(golden):
    "Negative control: the pull towards the slow critic is part of the loss."
    actor, critic = imagination_losses(golden, config=ActorCriticConfig(slow=0.0))
    assert abs(critic - golden["imag_value_mean"]) > 1 and torch.isclose(actor, golden["imag_policy_mean"])


def test_a_discount_that_is_left_out_is_caught(golden):
    "Negative control: continuation alone is not what the authors' losses are made of."
    actor, critic = imagination_losses(golden, discount=1.0)
    assert abs(actor - golden["imag_policy_mean"]) > 1e-3 and abs(critic - golden["imag_value_mean"]) > 1e-3


def test_actions_a_row_late_are_caught(golden):
    "Negative control: an action that led to a row, taken for the one decided there."
    actor, _ = imagination_losses({**golden, "imag_actions": golden["imag_actions"].roll(1, dims=1)})
    assert abs(actor - golden["imag_policy_mean"]) > 0.1
