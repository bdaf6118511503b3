"""What an agent decides and foretells: distributions over actions of every kind, and several steps ahead from one moment."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from mutants import mutant
from torch import distributions as torchs

from metabonk.act import returns
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.dream import agent_heads
from metabonk.dream.agent_heads import AgentHeads, ahead
from metabonk.nn.actions import ActionChoice
from metabonk.nn.distributions import Categorical, TwoHot
from metabonk.nn.layers import MLP, ContinueHead

MIXED = ActionSpec(binary=2, categorical=(3, 4), continuous=2)


def theirs(output: torch.Tensor) -> list[torchs.Distribution]:
    """The same by torch: keys, two choices, controls."""
    keys, first, second, mean, spread = output.split([2, 3, 4, 2, 2], -1)
    controls = torchs.Normal(mean.tanh(), 0.9 * (spread + 2).sigmoid() + 0.1)
    return [torchs.Bernoulli(logits=keys), torchs.Categorical(logits=first), torchs.Categorical(logits=second), controls]


def summed(parts: list[torch.Tensor]) -> torch.Tensor:
    """Keys and controls are several each."""
    return parts[0].sum(-1) + parts[1] + parts[2] + parts[3].sum(-1)


def test_decisions_are_those_of_torch():
    torch.manual_seed(0)
    outputs = [torch.randn(5, MIXED.outputs) for _ in range(2)]
    mine, other = (ActionChoice(output, MIXED, unimix=0.0) for output in outputs)
    action = mine.sample()
    keys, first, second, controls = action.split([2, 3, 4, 2], -1)
    parts, others = (theirs(output) for output in outputs)
    given = [keys, first.argmax(-1), second.argmax(-1), controls]
    torch.testing.assert_close(mine.log_prob(action), summed([p.log_prob(a) for p, a in zip(parts, given, strict=True)]))
    torch.testing.assert_close(mine.entropy(), summed([p.entropy() for p in parts]))
    divergence = [torchs.kl_divergence(p, q) for p, q in zip(parts, others, strict=True)]
    torch.testing.assert_close(mine.kl(other), summed(divergence))


def test_drawn_actions_are_vectors_of_the_game_and_as_frequent_as_they_should_be():
    torch.manual_seed(0)
    output = torch.randn(MIXED.outputs)
    choice = ActionChoice(output.expand(20_000, -1), MIXED, unimix=0.0)
    action = choice.sample()
    keys, first, second, controls = action.split([2, 3, 4, 2], -1)
    assert set(keys.unique().tolist()) == {0, 1} and first.sum(-1).eq(1).all() and second.sum(-1).eq(1).all()
    wanted = theirs(output)
    torch.testing.assert_close(keys.mean(0), wanted[0].probs, atol=0.02, rtol=0)
    torch.testing.assert_close(second.mean(0), wanted[2].probs, atol=0.02, rtol=0)
    torch.testing.assert_close(controls.mean(0), wanted[3].mean, atol=0.05, rtol=0)
    assert choice.mode[0, :2].equal((output[:2] > 0).float()) and choice.mode[0, 2:5].argmax() == output[2:5].argmax()


def test_one_choice_is_the_categorical_that_other_policies_have():
    torch.manual_seed(0)
    logits, spec = torch.randn(6, 4), ActionSpec(categorical=(4,))
    mine, plain = ActionChoice(logits, spec), Categorical(logits)
    action = plain.sample()
    assert mine.log_prob(action).equal(plain.log_prob(action)) and mine.entropy().equal(plain.entropy())


@pytest.mark.parametrize("start", [0, 1])
def test_what_comes_later_is_of_the_same_episode(start):
    torch.manual_seed(0)
    x, first = torch.randn(5, 12, 2), torch.rand(5, 12) < 0.2
    rows, there = ahead(x, first, 4, start)
    episode = first.cumsum(1)
    for b in range(5):
        for t in range(12):
            for i in range(4):
                later = t + start + i
                known = later < 12 and bool(episode[b, later] == episode[b, t])
                assert bool(there[b, t, i]) is known and (not known or rows[b, t, i].equal(x[b, later]))


SPEC = ActionSpec(categorical=(3,))


def case() -> tuple[AgentHeads, tuple]:
    """Heads that have an opinion, and two short recordings."""
    torch.manual_seed(0)
    heads = AgentHeads(5, SPEC, distances=3, units=8)
    for head in (heads.policy_head, heads.reward_head):
        torch.nn.init.normal_(head[-1].weight, std=0.5)
    first = torch.zeros(2, 6, dtype=torch.bool)
    first[:, 0] = first[1, 3] = True
    action = SPEC.vectors(torch.randint(3, (2, 6)))
    return heads, (torch.randn(2, 6, 5), action, torch.randn(2, 6), torch.rand(2, 6) < 0.3, first)


def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 9, written out: actions are decided a row before the one that holds them, rewards are earned on the way."""
    heads, (features, action, reward, _, first) = case()
    policy, worth = torch.zeros(2, 6), torch.zeros(2, 6)
    for b in range(2):
        for t in range(6):
            logits = heads.policy_head(features[b, t]).view(3, 3).log_softmax(-1)
            bins = heads.reward_head(features[b, t]).view(3, 255)
            for n in range(3):
                if t + n < 6 and not first[b, t + 1 : t + n + 1].any():
                    worth[b, t] += TwoHot(bins[n]).loss(reward[b, t + n])
                if t + 1 + n < 6 and not first[b, t + 1 : t + n + 2].any():
                    p = 0.99 * logits[n].exp() + 0.01 / 3
                    policy[b, t] -= p[action[b, t + 1 + n].argmax()].log()
    return policy, worth


def test_losses_are_those_of_the_printed_equation():
    heads, given = case()
    losses = heads.losses(*given)
    policy, worth = by_hand()
    torch.testing.assert_close(losses["policy"], policy)
    torch.testing.assert_close(losses["reward"], worth)
    features, terminated = given[0], given[3]
    probability = heads.continuation(features)  # 1 is its target where the episode goes on, whatever the discount
    torch.testing.assert_close(losses["continue"], -torch.where(terminated, 1 - probability, probability).log())


@pytest.mark.parametrize(("name", "old", "new"), [
    ("policy", "ahead(action, first, self.distances, start=1)", "ahead(action, first, self.distances)"),
    ("reward", "ahead(reward.to(features.dtype), first, self.distances)",
     "ahead(reward.to(features.dtype), first, self.distances, start=1)"),
], ids=["cloning the action that led here", "a reward whose action was not seen"])  # fmt: skip
def test_a_row_early_or_late_is_caught(monkeypatch, name, old, new):
    "Negative controls."
    monkeypatch.setattr(AgentHeads, "losses", mutant(AgentHeads.losses, old, new))
    heads, given = case()
    assert (heads.losses(*given)[name] - by_hand()[name == "reward"]).abs().max() > 0.1


def test_looking_into_another_episode_is_caught(monkeypatch):
    "Negative control."
    monkeypatch.setattr(agent_heads, "ahead", mutant(ahead, "episode[:, inside] == episode", "torch.ones_like(first)"))
    heads, given = case()
    assert (heads.losses(*given)["policy"] - by_hand()[0]).abs().max() > 0.1


def test_what_is_not_recorded_is_not_learned():
    heads, (features, _, _, _, first) = case()
    assert all(loss.eq(0).all() for loss in heads.losses(features, None, None, None, first).values())
    silent = AgentHeads(5, ActionSpec(), distances=2)
    assert silent.terms == ("reward", "continue")
    for call in (lambda: silent.policy(features), silent.actor, lambda: AgentHeads(5, SPEC, distances=0)):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize("layers", [1, 3])
def test_the_actor_is_the_policy_of_the_next_step(layers):
    torch.manual_seed(0)
    heads, features = AgentHeads(5, SPEC, distances=4, units=8, layers=layers), torch.randn(7, 5)
    alone = MLP(5, SPEC.outputs, layers, 8)
    alone.load_state_dict(heads.actor())
    torch.testing.assert_close(ActionChoice(alone(features), SPEC).entropy(), heads.policy(features).entropy())
    torch.nn.init.normal_(alone[-1].weight)
    assert not torch.allclose(ActionChoice(alone(features), SPEC).entropy(), heads.policy(features).entropy())


@pytest.mark.parametrize(("spec", "space"), [
    (ActionSpec(categorical=(5,)), gym.spaces.Discrete(5)), (ActionSpec(categorical=(2, 3)), gym.spaces.MultiDiscrete([2, 3])),
    (ActionSpec(binary=4), gym.spaces.MultiBinary(4)), (ActionSpec(continuous=2), gym.spaces.Box(-1, 1, (2,))),
], ids=str)  # fmt: skip
def test_actions_go_from_a_game_to_vectors_and_back(spec, space):
    assert ActionSpec.of(space) == spec == ActionSpec.of(spec.space())
    space.seed(0)
    action = torch.stack([torch.as_tensor(space.sample()) for _ in range(6)])[None]
    assert torch.allclose(spec.recorded(spec.vectors(action)).to(action.dtype), action)
    drawn = spec.recorded(ActionChoice(torch.randn(6, spec.outputs), spec).sample())
    if not spec.continuous:  # drawn controls may lie a little outside
        assert all(space.contains(one.numpy().astype(space.dtype)) for one in drawn)


def test_numbers_of_several_kinds_share_a_box():
    space = MIXED.space()
    assert space.high.tolist() == [1, 1, 2, 3, 1, 1] and space.low.tolist() == [0, 0, 0, 0, -1, -1]
    assert ActionSpec.of(space) == MIXED and space != ActionSpec(binary=1, categorical=(2, 3, 4), continuous=2).space()
    assert copy.deepcopy(space) == space and ActionSpec.of(pickle.loads(pickle.dumps(space))) == MIXED
    with pytest.raises(UsageError, match="Discrete"):
        ActionSpec.of(gym.spaces.Text(3))


def test_drawn_actions_of_several_kinds_are_whole_where_they_must_be():
    space = MIXED.space()
    space.seed(0)
    drawn = [space.sample() for _ in range(300)]
    assert all(space.contains(one) and one.dtype == np.float32 for one in drawn)
    actions = torch.from_numpy(np.stack(drawn))
    assert torch.equal(MIXED.recorded(MIXED.vectors(actions[None]))[0], actions)
    assert [len(set(column.tolist())) for column in actions[:, :4].T] == [2, 2, 3, 4]
    assert actions[:, 4:].min() < -0.9 and actions[:, 4:].max() > 0.9
    assert space.contains(np.array([1, 0, 2, 3, 1, -1])) and space.contains([1, 0, 2, 3, 0.5, -0.5])
    for place, number in ((0, 0.5), (1, -1), (2, 1.5), (2, 3), (4, 1.5), (2, np.nan), (5, np.nan)):
        assert not space.contains([number if i == place else 0 for i in range(6)])
    assert not space.contains([0] * 5) and not space.contains(["0"] * 6)


def continuation_by_both() -> tuple[torch.Tensor, torch.Tensor]:
    """The loss by the library, and the cross-entropy to 1 - terminal in NumPy."""
    heads, (features, action, reward, terminated, first) = case()
    torch.nn.init.normal_(heads.continue_head[-1].weight)
    logit = heads.continue_head(features)[..., 0].detach().double().numpy()
    p, target = 1 / (1 + np.exp(-logit)), 1 - terminated.double().numpy()
    wanted = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    mine = heads.losses(features, action, reward, terminated, first)["continue"].detach()
    return mine.double(), torch.from_numpy(wanted)


def test_continuation_learns_a_probability(monkeypatch):
    "Negative control: a discount in its target, which returns would then apply a second time."
    torch.testing.assert_close(*continuation_by_both(), atol=1e-5, rtol=1e-5)
    discounted = mutant(ContinueHead.loss, "self.certain * goes_on", "(1 - 1 / 333) * goes_on")
    monkeypatch.setattr(ContinueHead, "loss", discounted)
    mine, wanted = continuation_by_both()
    assert float((mine - wanted).abs().max()) > 1e-3


def returns_of_a_dream() -> tuple[torch.Tensor, torch.Tensor]:
    """Of the heads' own dream: by the library, and equation 10 in NumPy with the published discount."""
    heads, (features, *_) = case()
    torch.nn.init.normal_(heads.continue_head[-1].weight)
    with torch.no_grad():
        reward, c, v = heads.reward(features), heads.continuation(features), torch.randn(2, 6)
        mine = returns.lambda_returns(reward, v, c)
    after, wanted = v[:, -1].double().numpy(), []
    for t in reversed(range(1, 6)):
        r, goes_on, worth = (x[:, t].double().numpy() for x in (reward, c, v))
        after = r + (1 - 1 / 333) * goes_on * (0.05 * worth + 0.95 * after)
        wanted.append(after)
    return mine.double(), torch.from_numpy(np.stack(wanted[::-1], 1))


def test_what_continues_is_discounted_where_returns_are_made(monkeypatch):
    "Negative control: continuation without the discount."
    torch.testing.assert_close(*returns_of_a_dream(), atol=1e-5, rtol=1e-5)
    without = mutant(returns.lambda_returns, "discount * continuation[..., 1:]", "continuation[..., 1:]")
    monkeypatch.setattr(returns, "lambda_returns", without)
    mine, wanted = returns_of_a_dream()
    assert float((mine - wanted).abs().max()) > 1e-3
