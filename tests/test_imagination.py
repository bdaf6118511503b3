"""Imagination, dreams as games, and the actor-critic that learns from them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from mutants import mutant

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.returns import ReturnScale, lambda_returns, row_weights
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.dream.interface import (
    DreamEnv,
    DreamVector,
    ImaginedTrajectory,
    WorldModel,
    imagine,
    join_states,
    open_loop_rollout,
    pick_states,
    repeat_states,
)
from metabonk.nn.distributions import Categorical, Normal


class Counter(WorldModel):
    """A state is a number, an action adds to it: every answer is known."""

    def __init__(self, discrete: bool = True):
        super().__init__()
        self.feature_size, self.actions = 1, ActionSpec(categorical=(3,)) if discrete else ActionSpec(continuous=1)

    def advance(self, state, action, generator=None):
        return {"sum": state["sum"] + (action.argmax(-1) if self.actions.discrete else action[:, 0])}

    def features(self, state):
        return state["sum"].float()[:, None]

    def reward(self, features):
        return features[..., 0]

    def continuation(self, features):
        return (features[..., 0] < 5).float() * 0.9

    def decode(self, state):
        count = len(state["sum"])
        return {"image": torch.zeros(count, 4, 4, 3, dtype=torch.uint8), "audio": torch.zeros(count, 1, 8, dtype=torch.int16)}


def always(action: int):
    """A policy that knows one action."""
    return lambda features: Categorical(50.0 * F.one_hot(torch.tensor(action), 3).float().expand(len(features), 3), unimix=0.0)


def test_rows_follow_the_convention_of_recordings():
    dream = imagine(Counter(), always(2), {"sum": torch.tensor([0, 1])}, horizon=4)
    assert dream.features[0, :, 0].tolist() == [0, 2, 4, 6, 8]
    assert dream.action[:, 0].eq(0).all() and dream.action[:, 1:].argmax(-1).eq(2).all()
    assert dream.reward[1].tolist() == [1, 3, 5, 7, 9]
    torch.testing.assert_close(dream.reached[0], torch.tensor([1, 0.9, 0.81, 0.729, 0.0]))


def test_states_are_kept_only_when_asked():
    start = {"sum": torch.tensor([0])}
    assert [int(state["sum"][0]) for state in imagine(Counter(), always(1), start, 3).states] == [3]
    assert [int(state["sum"][0]) for state in imagine(Counter(), always(1), start, 3, True).states] == [0, 1, 2, 3]


def test_dreams_remember_how_likely_each_action_was():
    policy = lambda features: Categorical(torch.tensor([0.0, 0.0, 1.0]).expand(len(features), 3), unimix=0.0)  # noqa: E731
    start = {"sum": torch.tensor([0, 1])}
    dream = imagine(Counter(), policy, start, horizon=4)
    log_prob = torch.tensor([0.0, 0.0, 1.0]).log_softmax(0)[dream.action[:, 1:].argmax(-1)]
    torch.testing.assert_close(dream.log_prob, torch.cat([torch.zeros(2, 1), log_prob], 1))
    assert open_loop_rollout(Counter(), start, dream.action[:, 1:]).log_prob.eq(0).all()


def test_dreaming_along_follows_the_actions_given():
    actions = ActionSpec(categorical=(3,)).vectors(torch.tensor([[2, 0, 1]]))
    dream = open_loop_rollout(Counter(), {"sum": torch.tensor([0])}, actions)
    assert dream.features[0, :, 0].tolist() == [0, 2, 2, 3] and not dream.features.requires_grad


def test_states_can_be_handled_without_knowing_them():
    state = {"a": torch.arange(3), "b": torch.arange(6).view(3, 2)}
    assert repeat_states(state, 2)["a"].tolist() == [0, 0, 1, 1, 2, 2]
    assert join_states([pick_states(state, [0]), pick_states(state, [2])])["b"].tolist() == [[0, 1], [4, 5]]


@pytest.mark.parametrize("discrete", [True, False])
def test_a_dream_is_a_gymnasium_environment(discrete):
    env = DreamEnv(Counter(discrete), {"sum": torch.tensor([0.0, 1.0])}, max_steps=50)
    observation, info = env.reset(seed=3)
    assert env.observation_space.contains(observation) and info["features"].shape == (1,)
    for _ in range(3):
        observation, reward, ended, cut, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation) and isinstance(reward, float)
    if discrete:
        check_env(env, skip_render_check=True)


class Deaf(Counter):
    """The same for eyes alone."""

    def decode(self, state):
        return {"image": super().decode(state)["image"]}


def test_a_dream_of_one_sense_is_an_environment_too():
    env = DreamEnv(Deaf(), {"sum": torch.tensor([0])})
    assert list(env.observation_space) == ["image"] and env.observation_space.contains(env.reset()[0])
    assert env.observation_space.contains(env.step(1)[0])


def test_a_dream_ends_where_the_model_says_and_is_cut_off_in_time():
    env = DreamEnv(Counter(), {"sum": torch.tensor([0])}, max_steps=4)
    env.reset()
    assert [env.step(2)[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]
    env.reset()
    assert [env.step(0)[2:4] for _ in range(4)] == [(False, False)] * 3 + [(False, True)]


def dreamed_rewards() -> list[float]:
    """Of three steps from 1 that add 2, 0 and 1: the counter pays its count."""
    env = DreamEnv(Counter(), {"sum": torch.tensor([1.0])})
    env.reset()
    return [env.step(action)[1] for action in (2, 0, 1)]


@pytest.mark.parametrize("wrong", ["torch.zeros(len(features))", "self.model.reward(features - 1)"], ids=["none", "other"])
def test_a_dream_pays_what_the_model_says_of_the_state_it_leads_to(monkeypatch, wrong):
    "Negative controls in the same test."
    assert dreamed_rewards() == [3, 3, 4]
    monkeypatch.setattr(DreamVector, "step", mutant(DreamVector.step, "self.model.reward(features)", wrong))
    assert dreamed_rewards() != [3, 3, 4]


def test_bad_input_is_told():
    env = DreamEnv(Counter(), {"sum": torch.tensor([0])})
    vectors = ActionSpec(categorical=(3,)).vectors
    for wrong in (lambda: env.step(3), lambda: env.reset(options={"start": 1}), lambda: vectors(torch.tensor([[5]]))):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(UsageError, match="horizon"):
        imagine(Counter(), always(0), {"sum": torch.tensor([0])}, horizon=0)


def test_what_follows_an_end_has_no_weight_in_the_losses():
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(), feature_size=1, spec=ActionSpec(categorical=(3,)))
    dream = imagine(Counter(), always(2), {"sum": torch.tensor([0.0, 9.0])}, horizon=5)
    losses, watched = agent.losses(dream)
    assert losses["critic"].shape == losses["actor"].shape == (2, 5)
    assert losses["critic"][0, 3:].eq(0).all() and losses["critic"][1].eq(0).all() and losses["critic"][0, :2].gt(0).all()
    assert set(watched) >= {"return", "entropy", "scale"}
    assert all(number.shape == () and not number.requires_grad for number in watched.values())


def test_decisions_are_matched_with_the_rows_they_were_taken_at():
    "The gradient of the actor makes the decision likelier that was rewarded, in the state where it was taken."
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(entropy=0.0), feature_size=3, spec=ActionSpec(categorical=(2,)))
    rows = torch.eye(3)[None]  # three different states in a row
    action = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])  # action 1 was decided in state 0, action 0 in state 1
    reward, goes_on = torch.tensor([[0.0, 10.0, 0.0]]), torch.tensor([[0.9, 0.01, 0.9]])
    dream = ImaginedTrajectory(rows, action, torch.zeros(1, 3), reward, goes_on, [])
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    agent.policy = lambda features, goal: Categorical(logits)
    agent.losses(dream)[0]["actor"].sum().backward()
    assert logits.grad[0, 0, 1] < -0.1 and logits.grad[0, 0, 0] > 0.1
    assert logits.grad[0, 1:].abs().max() < 1e-3


def test_the_critic_gets_no_gradient_from_the_actor_and_the_slow_one_none_at_all():
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(), feature_size=1, spec=ActionSpec(categorical=(3,)))
    dream = imagine(Counter(), always(1), {"sum": torch.tensor([0.0, 1.0])}, horizon=3)
    losses, _ = agent.losses(dream)
    losses["actor"].sum().backward(retain_graph=True)
    assert all(p.grad is None for p in agent.critic.parameters())
    losses["critic"].sum().backward()
    assert all(p.grad is None for p in agent.slow_critic.parameters())
    agent.critic[-1].bias.data += 1
    agent.follow()
    torch.testing.assert_close(agent.slow_critic[-1].bias, torch.full((255,), 0.02))


def test_continuous_actions_learn_too():
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(), feature_size=1, spec=ActionSpec(continuous=1))
    assert isinstance(agent.policy(torch.zeros(2, 1)).parts[0], Normal)
    optimizer = torch.optim.Adam([*agent.actor.parameters(), *agent.critic.parameters()], lr=3e-3)
    earned = []
    for _ in range(60):
        dream = imagine(Counter(discrete=False), agent.policy, {"sum": torch.zeros(64)}, horizon=5)
        losses, _ = agent.losses(dream)
        optimizer.zero_grad()
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()
        agent.follow()
        earned.append(float(dream.reward.mean()))
    assert sum(earned[-5:]) / 5 > sum(earned[:5]) / 5 + 0.5


def test_returns_by_hand():
    reward, value, goes_on = torch.tensor([7.0, 1, 2]), torch.tensor([0.0, 10, 20]), torch.tensor([0.3, 0.5, 0.8])
    # R1 = 2 + .8 (.5 * 20 + .5 * 20) = 18, R0 = 1 + .5 (.5 * 10 + .5 * 18) = 8
    assert lambda_returns(reward, value, goes_on, 0.5, discount=1.0).tolist() == [8, 18]


def test_the_discount_is_applied_once_where_returns_are_made():
    reward, value, goes_on = torch.rand(3, 6), torch.rand(3, 6), torch.rand(3, 6)
    inside = lambda_returns(reward, value, 0.9 * goes_on, discount=1.0)
    torch.testing.assert_close(lambda_returns(reward, value, goes_on, discount=0.9), inside)
    torch.testing.assert_close(row_weights(goes_on, 0.9), (0.9 * goes_on).cumprod(1)[:, :-1])
    assert not torch.allclose(lambda_returns(reward, value, goes_on), inside)  # negative control: another discount
    full = torch.ones(4)
    torch.testing.assert_close(lambda_returns(full, 333 * full, full), 333 * full[1:])  # γ = 1 - 1/333: what 1 a step is worth


def test_scale_never_enlarges_small_returns():
    scale = ReturnScale(rate=1.0)
    scale.update(0.01 * torch.randn(100))
    assert scale.scale == 1
    scale.update(torch.linspace(0, 100, 101))
    torch.testing.assert_close(scale.scale, torch.tensor(90.0))
    copy = ReturnScale()
    copy.load_state_dict(scale.state_dict())
    assert copy.scale == scale.scale


def chances_of_four(agent: ActorCritic) -> np.ndarray:
    """Of an actor that is sure of the first action."""
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
        agent.actor[-1].bias.copy_(torch.tensor([20.0, 0, -5, -5]))
        return agent.policy(torch.zeros(1, 2)).log_prob(torch.eye(4)).exp().double().numpy()


def test_a_policy_keeps_one_percent_of_chance(monkeypatch):
    "The published share, which every policy has unless told otherwise. Negative controls: without it, at either place."
    spec, logits = ActionSpec(categorical=(4,)), np.array([20.0, 0, -5, -5])
    wanted = 0.99 * np.exp(logits) / np.exp(logits).sum() + 0.01 / 4
    np.testing.assert_allclose(chances_of_four(ActorCritic(ActorCriticConfig(), 2, spec)), wanted, rtol=1e-4)
    without = mutant(ActorCriticConfig, "unimix: float = 0.01", "unimix: float = 0.0")
    assert chances_of_four(ActorCritic(ActorCriticConfig(unimix=without().unimix), 2, spec)).min() < 1e-6
    monkeypatch.setattr(ActorCritic, "policy", mutant(ActorCritic.policy, "self.config.unimix", "0.0"))
    assert chances_of_four(ActorCritic(ActorCriticConfig(), 2, spec)).min() < 1e-6
