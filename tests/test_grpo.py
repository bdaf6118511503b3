"""GRPO equals its judges, each deliberate error is caught, and goals reach every place where a policy is asked."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import mutant
from test_objectives import Coin
from torch import nn

from metabonk.act import objectives
from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig, FiLM, drop_goals
from metabonk.act.agent import Agent
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.objectives import GRPO, PPO, GRPOConfig, group_advantages, make_objective, moved
from metabonk.act.returns import lambda_returns
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream.interface import ImaginedTrajectory, imagine
from metabonk.nn.distributions import Categorical
from metabonk.nn.layers import MLP

TWO = ActionSpec(categorical=(2,))
GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Rewards (groups, size, steps), and torchrl's advantages of each trajectory (goldens/make_grpo.py)."""
    with np.load(GOLDENS / "grpo.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def ours(reward: torch.Tensor, **changes) -> torch.Tensor:
    """Advantages by the objective: without discount, λ or critic, the return of row 0 is the sum of rewards."""
    rows = torch.cat([torch.zeros_like(reward[..., :1]), reward], -1).flatten(0, 1)
    returns = lambda_returns(rows, torch.zeros_like(rows), torch.ones_like(rows), 1.0, discount=1.0)
    objective = GRPO(config=GRPOConfig(group=reward.shape[1], kl=0.0, least_range=0.0, **changes))
    return objective.advantages(returns, torch.zeros_like(returns), torch.ones(())).view_as(reward)


def test_advantages_are_those_of_torchrl(golden):
    torch.testing.assert_close(ours(golden["reward"], eps=0.0)[..., 0], golden["advantage"], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours(golden["reward"], eps=0.0)[..., -1], golden["advantage"], atol=1e-6, rtol=0)


def test_the_golden_is_what_torchrl_says(golden):
    pytest.importorskip("torchrl")
    spec = importlib.util.spec_from_file_location("make_grpo", GOLDENS / "make_grpo.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    torch.testing.assert_close(maker.advantages(golden["reward"]), golden["advantage"], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("old", "new"), [
    ("grouped.mean(1, keepdim=True)", "grouped.mean()"),
    ("grouped.std(1, keepdim=True)", "grouped.std(1, unbiased=False, keepdim=True)"),
    ("score.view(-1, group)", "score.view(group, -1).T"),
], ids=["mean of everything", "biased deviation", "groups across each other"])  # fmt: skip
def test_deliberate_errors_in_advantages_are_caught(golden, monkeypatch, old, new):
    "Negative controls."
    monkeypatch.setattr(objectives, "group_advantages", mutant(group_advantages, old, new))
    assert (ours(golden["reward"], eps=0.0)[..., 0] - golden["advantage"]).abs().max() > 1e-3


def test_a_group_of_equal_returns_teaches_nothing(monkeypatch):
    "Neither equal ones nor such as differ by less than rewards do. Negative control: without the filter."
    score = torch.tensor([0.1] * 8 + [0.5, 0.5 + 1e-4] * 4 + [0.0] * 7 + [1.0])
    advantage = group_advantages(score, 8, least_range=1e-3).view(3, 8)
    assert advantage[:2].eq(0).all() and advantage[2, -1] > 2 and advantage.isfinite().all()
    without = mutant(group_advantages, "torch.where(kept, advantage, 0.0)", "advantage")
    assert without(score, 8, least_range=1e-3, eps=1e-6).view(3, 8)[1].abs().min() > 0.9


class Told(ActorCritic):
    """A reference whose logits are the features."""

    def __init__(self):
        super().__init__(ActorCriticConfig(units=4), 3, ActionSpec(categorical=(3,)))

    def policy(self, features, goal=None):
        return Categorical(features, unimix=0.0)


def by_both(preset: str = "tiny", **changes) -> tuple[torch.Tensor, float]:
    """The loss of 2 groups of 4 dreams of 5 steps by the library, and the formula as trl computes it, in NumPy."""
    rng, (N, T, G) = np.random.default_rng(0), (8, 5, 4)
    config = GRPOConfig.preset(preset, **{"group": G, "entropy": 0.0, "kl": 0.04, **changes})
    logits, taken = rng.normal(size=(N, T, 3)), rng.integers(3, size=(N, T + 1))
    old, score = np.log(rng.uniform(0.2, 0.6, (N, T + 1))), rng.normal(size=N)
    score[4:] = 2.0 * score[4:] + 5.0
    start = np.repeat(rng.normal(size=(2, 1, 3)), G, 0)
    features = np.concatenate([start, rng.normal(size=(N, T, 3))], 1)
    mask = (np.arange(T) < rng.integers(2, T + 1, size=(N, 1))).astype(float)

    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_q = features[:, :-1] - np.log(np.exp(features[:, :-1]).sum(-1, keepdims=True))
    pick = lambda x: np.take_along_axis(x, taken[:, 1:, None], -1)[..., 0]  # noqa: E731
    grouped = score.reshape(-1, G)
    advantage = grouped - grouped.mean(1, keepdims=True)
    if config.by_deviation:
        advantage = advantage / (grouped.std(1, ddof=1, keepdims=True) + 1e-4)
    advantage = advantage.reshape(-1, 1)
    ratio = np.exp(pick(log_p) - old[:, 1:])
    each = -np.minimum(ratio * advantage, np.clip(ratio, 1 - 0.2, 1 + config.clip_high) * advantage)
    apart = pick(log_q) - pick(log_p)
    exact = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    each += config.kl * (np.exp(apart) - apart - 1 if config.kl_form == "k3" else exact)
    wanted = {"dreams": ((each * mask).sum(1) / mask.sum(1)).mean(), "steps": (each * mask).sum() / mask.sum(),
              "horizon": (each * mask).sum() / each.size}[config.mean]  # fmt: skip

    tensor, nothing = torch.from_numpy, torch.zeros(N, T + 1)
    action = nn.functional.one_hot(tensor(taken), 3).double()
    dream = ImaginedTrajectory(tensor(features), action, tensor(old), nothing, nothing, [])
    objective = GRPO(Told() if config.kl else None, config)
    judged = objective.advantages(tensor(score)[:, None].expand(N, T), nothing[:, 1:], torch.ones(()))
    policy = Categorical(tensor(logits), unimix=0.0)
    return objective(policy, dream, judged, tensor(mask)).mean(), float(wanted)


@pytest.mark.parametrize(("preset", "changes"), [
    ("tiny", {}), ("paper", {}), ("dapo", {"kl": 0.0}), ("dr_grpo", {"kl": 0.0}), ("tiny", {"mean": "steps", "kl_form": "k3"}),
])  # fmt: skip
def test_the_loss_is_that_of_trl(preset, changes):
    mine, wanted = by_both(preset, **changes)
    assert abs(float(mine) - wanted) < 1e-6


@pytest.mark.parametrize(("function", "old", "new"), [
    (GRPO.divergence, "policy.kl(reference)", "reference.kl(policy)"),
    (GRPO.divergence, "dream.features[:, :-1]", "dream.features[:, 1:]"),
    (GRPO.forward, "torch.minimum", "torch.maximum"),
    (GRPO.forward, "1 + config.clip_high", "1 + config.clip"),
    (GRPO.forward, "dream.log_prob[:, 1:]", "dream.log_prob[:, :-1]"),
    (GRPO.forward, "dream.action[:, 1:]", "dream.action[:, :-1]"),
    (GRPO.forward, "loss + config.kl", "loss - config.kl"),
    (GRPO.shares, "weight.sum(1, keepdim=True)", "weight.sum()"),
    (GRPO.advantages, "returns[:, 0]", "returns[:, -1] ** 2"),
], ids=["KL in the wrong direction", "reference a row late", "the larger gain", "clipped alike above and below",
        "old log-probability a row off", "actions a row off", "paid for leaving", "long dreams count more",
        "another score"])  # fmt: skip
def test_deliberate_errors_are_caught(monkeypatch, function, old, new):
    "Negative controls."
    monkeypatch.setattr(GRPO, function.__name__, mutant(function, old, new))
    mine, wanted = by_both(kl=0.4)
    assert abs(float(mine) - wanted) > 1e-3


def test_k3_has_the_value_of_one_divergence_and_the_slope_of_the_other():
    features = torch.randn(64, 2, 3, generator=torch.Generator().manual_seed(0))
    logits, every = torch.zeros(64 * 3, 1, 3, requires_grad=True), torch.eye(3).repeat(64, 1)  # each action once: on policy
    states = features.repeat_interleave(3, 0)
    actions, nothing = every[:, None].expand(-1, 2, -1), torch.zeros(192, 2)
    dream = ImaginedTrajectory(states, actions, nothing, nothing, torch.ones(192, 2), [])
    policy, slopes, values = Categorical(logits, unimix=0.0), {}, {}
    for form in ("exact", "k3"):
        told = GRPO(Told(), GRPOConfig(kl_form=form)).divergence(policy, dream).mean()
        values[form], slopes[form] = told, torch.autograd.grad(told, logits, retain_graph=True)[0].view(64, 3, 3).sum(1)
    mine = torch.zeros(64, 1, 3, requires_grad=True)
    other = Categorical(features[:, :1], unimix=0.0).kl(Categorical(mine, unimix=0.0))
    backward = torch.autograd.grad(other.mean(), mine)[0][:, 0]
    torch.testing.assert_close(values["k3"], values["exact"])
    torch.testing.assert_close(slopes["k3"], backward)
    assert not torch.allclose(slopes["exact"], backward, atol=1e-3)


def test_an_action_that_ends_a_dream_in_success_gets_its_full_gradient():
    "Four dreams; in the last, the first action earns 1 and ends it. The same gradient as where it would have gone on."
    slopes = []
    for after in (1.0, 0.0):
        reward, goes_on = torch.zeros(4, 4), torch.ones(4, 4)
        reward[3, 1], goes_on[3, 1:] = 1.0, after
        agent = ActorCritic(ActorCriticConfig(units=4), 1, TWO)
        action = torch.eye(2)[torch.tensor([0, 0, 0, 1])][:, None].expand(4, 4, 2)
        dream = ImaginedTrajectory(torch.zeros(4, 4, 1), action, torch.full((4, 4), np.log(0.5)), reward, goes_on, [])
        objective = GRPO(config=GRPOConfig(group=4, kl=0.0, entropy=0.0, mean="horizon"))
        agent.losses(dream, objective, discount=1.0)[0]["actor"][:, 0].mean().backward()
        slopes.append(agent.actor[-1].bias.grad.clone())
    assert slopes[0].abs().max() > 1e-3
    torch.testing.assert_close(*slopes)


DATA = [torch.rand(2, 8, generator=torch.Generator().manual_seed(i)) for i in range(6)]


def asked(batch: torch.Tensor) -> torch.Tensor:
    """A goal for each row, that tells which row it is."""
    return torch.stack([batch, -batch, torch.ones_like(batch)], -1)


def learner(objective="grpo", goal_size: int = 0, reading: str = "concatenation", choose=None, **changes) -> DreamLearner:
    torch.manual_seed(0)
    config = ActorCriticConfig(units=8, goal_size=goal_size, goal_reading=reading, goal_dropout=0.25)
    agent = ActorCritic(config, 1, TWO)
    for name, p in agent.actor.named_parameters():
        if "goal" in name or name.endswith("weight"):
            p.data += torch.randn_like(p)  # what it does depends on what it is asked for
    dreams = DreamConfig(**{"horizon": 3, "replay": 0.0, "objective": objective, **changes})
    return DreamLearner(Coin(), agent, dreams, goals=asked if goal_size else None, choose=choose)


def test_groups_begin_alike_and_go_their_own_ways():
    it = learner(goal_size=3)
    dream, _, chosen = it.dream(DATA[0])
    assert dream.features.shape == (16, 4, 1) and chosen.unique().numel() == 2
    for column in (dream.features[:, 0], dream.goal):
        grouped = column.view(2, 8, -1)
        assert grouped.eq(grouped[:, :1]).all() and not grouped[0].equal(grouped[1])
    assert not dream.action[:8].eq(dream.action[:1]).all()


def test_a_group_of_dreams_from_different_starts_is_refused(monkeypatch):
    "Negative control."
    wrong = mutant(DreamLearner._chosen, "repeat_interleave(self.group)", "repeat(self.group)")
    monkeypatch.setattr(DreamLearner, "_chosen", wrong)
    with pytest.raises(UsageError, match="the same state"):
        learner().losses(DATA[0])
    with pytest.raises(UsageError, match="the same goal"):
        GRPO(config=GRPOConfig(group=2, kl=0.0)).check(
            ImaginedTrajectory(torch.zeros(2, 2, 1), torch.zeros(2, 2, 2), *[torch.zeros(2, 2)] * 3, [], goal=torch.eye(2))
        )


def first_ratios(objective: str, reading: str) -> torch.Tensor:
    seen = []

    class Watched(PPO):
        def forward(self, policy, dream, advantage, weight):
            seen.append((policy.log_prob(dream.action[:, 1:]) - dream.log_prob[:, 1:]).exp().detach())
            return super().forward(policy, dream, advantage, weight)

    it = learner(objective, 3, reading)
    it.objective = Watched()
    it.losses(DATA[0])
    return seen[0]


@pytest.mark.parametrize("reading", ["concatenation", "film"])
def test_a_decision_and_its_probability_know_the_same_goal(monkeypatch, reading):
    "Negative control: the log-probability without the goal."
    torch.testing.assert_close(first_ratios("ppo", reading), torch.ones(16, 3))
    wrong = mutant(ActorCritic.losses, "self.policy(features[:, :-1], goal)", "self.policy(features[:, :-1])")
    monkeypatch.setattr(ActorCritic, "losses", wrong)
    assert (first_ratios("ppo", reading) - 1).abs().max() > 0.05


@pytest.mark.parametrize("name", ["pmpo", "grpo"])
def test_the_reference_knows_the_goal_too(name):
    it = learner(name, 3)
    dream, _, _ = it.dream(DATA[0])
    policy = it.actor_critic.policy(dream.features[:, :-1], dream.row_goal)
    known = (it.objective.prior if name == "pmpo" else it.objective.reference).policy(dream.features[:, :-1], dream.row_goal)
    torch.testing.assert_close(policy.kl(known), torch.zeros(16, 3))
    if name == "grpo":
        assert it.objective.watched(policy, dream, torch.zeros(16, 3))["reference_kl"].abs() < 1e-6


def test_what_is_logged_tells_how_far_a_policy_moved(tmp_path):
    fit(learner(reuse=3), DATA, tmp_path, TrainConfig(steps=6, lr=3e-2, warmup=0, log_every=1))
    log = read_log(tmp_path)
    assert log["watch/effective_sample_size"].iloc[0] == pytest.approx(1, abs=1e-5)
    assert log["watch/effective_sample_size"].iloc[2] < 0.9999 and log["watch/kl"].iloc[2] > 1e-5
    assert {"watch/dropped", "watch/clip_fraction", "watch/reference_kl"} <= set(log)


def test_moved_by_hand():
    action = torch.eye(2)[torch.tensor([0, 1, 0, 1])][:, None].expand(4, 2, 2)
    old = torch.tensor([0.25, 0.5, 1.0, 0.4]).log()[:, None].expand(4, 2)
    dream = ImaginedTrajectory(torch.zeros(4, 2, 1), action, old, torch.zeros(4, 2), torch.ones(4, 2), [])
    told = moved(Categorical(torch.zeros(4, 1, 2), unimix=0.0), dream, torch.tensor([[1.0], [1], [-1], [-1]]), 0.2, 0.28)
    ratio = np.array([2.0, 1.0, 0.5, 1.25])  # clipped: the first, and the third; the fourth went up though it was bad
    assert told["clip_fraction"] == 0.5
    assert told["effective_sample_size"].item() == pytest.approx(ratio.sum() ** 2 / (4 * (ratio**2).sum()))
    assert told["kl"].item() == pytest.approx((ratio - 1 - np.log(ratio)).mean(), rel=1e-5)


def test_dreams_start_where_they_are_likely_to():
    it = learner("ppo", starts=6, choose=lambda batch: (torch.arange(16).view(2, 8) % 8 > 5).float())
    chosen = it.dream(DATA[0])[2]
    assert len(chosen) == 6 and set((chosen % 8).tolist()) <= {6, 7}


def test_without_goals_an_agent_is_what_it_has_been():
    "The same networks from the same chances, under the same names."
    torch.manual_seed(3)
    agent = ActorCritic(ActorCriticConfig(), 5, TWO)
    torch.manual_seed(3)
    actor, critic = MLP(5, 2, 3, 32, scale=0.01), MLP(5, 255, 3, 32, scale=0.0)
    for name, mine in (("actor", actor), ("critic", critic)):
        assert all(agent.state_dict()[f"{name}.{key}"].equal(value) for key, value in mine.state_dict().items())
    assert len(agent.state_dict()) == 3 * len(actor.state_dict()) + 2
    older = {name: value for name, value in ActorCriticConfig().to_dict().items() if not name.startswith("goal")}
    assert ActorCriticConfig.from_dict(older) == ActorCriticConfig()


@pytest.mark.parametrize("reading", ["concatenation", "film"])
def test_no_goal_is_the_zero_vector(reading):
    agent = learner("ppo", 3, reading).actor_critic
    features = torch.randn(4, 6, 1)
    for network in (agent.policy, agent.value):
        told = [network(features, *goal) for goal in ((), (torch.zeros(3),), (torch.zeros(4, 1, 3),))]
        told = [each if isinstance(each, torch.Tensor) else each.parts[0].probabilities for each in told]
        assert all(torch.allclose(each, told[0], atol=1e-6) for each in told)
    one, other = (agent.policy(features, goal).parts[0].probabilities for goal in torch.eye(3)[:2])
    assert (one - other).abs().max() > 1e-3
    twice = agent.policy(features, torch.eye(3)[0], guidance=1.0).parts[0].probabilities
    assert not torch.allclose(twice, one, atol=1e-3)


def test_film_begins_as_if_there_were_no_goal():
    film = FiLM(4, 3, layers=2, width=8, goal_size=5)
    plain = MLP(4, 3, layers=2, width=8)
    for mine, theirs in zip(film.mlp, plain, strict=True):
        theirs.load_state_dict(mine.state_dict())
    x = torch.randn(6, 4)
    torch.testing.assert_close(film(x, torch.randn(6, 5)), plain(x))


def test_goals_are_left_out_as_often_as_asked():
    torch.manual_seed(0)
    left = drop_goals(torch.ones(2_000, 3), 0.25)
    assert left.sum(1).unique().tolist() == [0, 3] and abs(float(left[:, 0].mean()) - 0.75) < 0.03


def test_recorded_rewards_teach_the_critic_of_each_row_under_its_goal():
    class Rows(torch.Tensor):
        pass

    batch = DATA[0].as_subclass(Rows)
    no = torch.zeros(2, 8, dtype=torch.bool)
    batch.first, batch.terminated, batch.truncated, batch.reward = no.clone(), no, no, DATA[0].as_subclass(torch.Tensor)
    it = learner("grpo", 3, replay=0.3)
    losses = it.losses(batch)
    assert losses["replay"].shape == (2, 7) and losses["actor"].shape == (16, 3)
    sum(loss.mean() for loss in losses.values()).backward()
    assert it.actor_critic.critic[-1].weight.grad.isfinite().all()


def test_bad_input_is_told():
    agent = ActorCritic(ActorCriticConfig(goal_size=3), 1, TWO)
    features, blind = torch.zeros(2, 1), ActorCritic(ActorCriticConfig(), 1, TWO)
    for wrong in (lambda: GRPOConfig(group=1), lambda: GRPOConfig(clip=0.0), lambda: GRPO(None, GRPOConfig(kl=0.1)),
                  lambda: make_objective("gppo", agent), lambda: DreamConfig(objective="gppo"),
                  lambda: agent.policy(features, torch.zeros(2)), lambda: blind.policy(features, torch.zeros(2)),
                  lambda: ActorCriticConfig(goal_size=-1), lambda: ActorCriticConfig(goal_dropout=2.0),
                  lambda: learner(starts=4).dream(DATA[0]),
                  lambda: GRPO().advantages(torch.zeros(9, 2), torch.zeros(9, 2), torch.ones(()))):  # fmt: skip
        with pytest.raises(UsageError):
            wrong()


def test_a_dream_keeps_its_goal():
    agent = learner("ppo", 3).actor_critic
    goal = torch.randn(2, 3)
    dream = imagine(Coin(), agent.policy, {"sum": torch.zeros(2)}, 2, goal=goal)
    assert dream.goal.equal(goal) and replace(dream, states=[]).row_goal.shape == (2, 1, 3)


def test_an_agent_follows_the_goal_that_it_is_given():
    actor_critic = learner("ppo", 3).actor_critic
    agent = Agent(Coin(), actor_critic, greedy=True)
    agent.read = lambda *rest: DATA[0]
    features, code = DATA[0].flatten()[:, None], torch.tensor([3.0, -3.0, 1.0])
    for goal in (None, code, -code):
        agent.goal = goal
        assert agent.decide(None, [], [], [])[1].equal(actor_critic.policy(features, goal).mode)
    assert not actor_critic.policy(features, code).mode.equal(actor_critic.policy(features, -code).mode)
