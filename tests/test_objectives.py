"""What a policy makes of a dream: PMPO's golden number with each deliberate error caught, PPO, and dreams used again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import mutant
from torch import nn

from metabonk.act import objectives
from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig, reinforce
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.objectives import GRPO, PMPO, PPO, GRPOConfig, pmpo_losses
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream.interface import ImaginedTrajectory, WorldModel
from metabonk.nn.actions import ActionChoice
from metabonk.nn.distributions import Categorical, Normal

TWO = ActionSpec(categorical=(2,))


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Inputs and outputs by name."""
    with np.load(Path(__file__).parent / "goldens/pmpo.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


class Told(ActorCritic):
    """A prior whose logits are the features."""

    def __init__(self):
        super().__init__(ActorCriticConfig(units=4), 6, ActionSpec(categorical=(6,)))

    def policy(self, features, goal=None):
        return Categorical(features, unimix=0.0)


def by_hand(golden) -> torch.Tensor:
    """Equation 11 by the library: 40 futures of one step."""
    action = nn.functional.one_hot(golden["actions"], 6).to(golden["logits"].dtype)
    rows = torch.stack([golden["prior"], golden["prior"].flip(0)], 1)  # the second row holds another state,
    nothing = torch.zeros(40, 2)
    actions = torch.stack([action.flip(0), action], 1)  # the first another action
    dream = ImaginedTrajectory(rows, actions, nothing, nothing, nothing, [])
    objective = PMPO(Told())
    losses = objective(Categorical(golden["logits"][:, None], unimix=0.0), dream, golden["adv"][:, None], nothing[:, :1])
    return losses.mean()


def test_pmpo_has_the_golden_loss(golden):
    torch.testing.assert_close(by_hand(golden), golden["loss"], atol=1e-10, rtol=0)
    p, q = (Categorical(golden[name], unimix=0.0) for name in ("logits", "prior"))
    torch.testing.assert_close(p.kl(q).mean(), golden["kl"], atol=1e-10, rtol=0)


PRIOR = "self.prior.policy(dream.features[:, :-1], dream.row_goal)"


@pytest.mark.parametrize(("function", "old", "new"), [
    (PMPO.forward, f"policy.kl({PRIOR})", f"{PRIOR}.kl(policy)"),
    (PMPO.forward, "policy.log_prob(dream", "advantage.abs() * policy.log_prob(dream"),
    (PMPO.forward, "advantage >= 0", "advantage < 0"),
    (PMPO.forward, "dream.features[:, :-1]", "dream.features[:, 1:]"),
    (PMPO.forward, "dream.action[:, 1:]", "dream.action[:, :-1]"),
    (pmpo_losses, "-alpha / share, (1 - alpha) / (1 - share)", "-alpha * share / share, 1 - alpha"),
], ids=["KL in the wrong direction", "weighted by magnitude", "signs exchanged", "prior a row late",
        "decisions a row early", "votes as large as their sets"])  # fmt: skip
def test_deliberate_errors_are_caught(golden, monkeypatch, function, old, new):
    "Negative controls."
    owner = PMPO if function is PMPO.forward else objectives
    monkeypatch.setattr(owner, function.__name__, mutant(function, old, new))
    assert abs(by_hand(golden) - golden["loss"]) > 1e-3


def test_only_signs_count(golden):
    larger = {**golden, "adv": golden["adv"] * torch.linspace(0.1, 1000, 40)}
    torch.testing.assert_close(by_hand(larger), golden["loss"], atol=1e-10, rtol=0)


def votes(objective: PMPO) -> torch.Tensor:
    """Gradient of six log-probabilities whose advantages are below, at and above 0."""
    logits, action = torch.zeros(6, 1, 6, requires_grad=True), torch.eye(6)[:, None].expand(6, 2, 6)
    dream = ImaginedTrajectory(torch.zeros(6, 2, 6), action, torch.zeros(6, 2), torch.zeros(6, 2), torch.ones(6, 2), [])
    advantage = torch.tensor([-2.0, -1, 0, 0, 1, 2])[:, None]
    objective(Categorical(logits, unimix=0.0), dream, advantage, torch.ones(6, 1)).mean().backward()
    return logits.grad[:, 0].diagonal().sign()  # -1: the decision becomes likelier


def test_what_turned_out_as_expected_is_good(monkeypatch):
    "D+ = {A >= 0}. Negative control: without the zero."
    objective = PMPO(Told(), beta=0.0)
    assert votes(objective).tolist() == [1, 1, -1, -1, -1, -1]
    monkeypatch.setattr(PMPO, "forward", mutant(PMPO.forward, "advantage >= 0", "advantage > 0"))
    assert votes(objective).tolist() == [1, 1, 1, 1, -1, -1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_empty_set_has_no_vote(sign):
    log_prob = torch.randn(8, requires_grad=True)
    losses = pmpo_losses(log_prob, torch.zeros(8), torch.full((8,), sign) > 0)
    losses.mean().backward()
    assert losses.isfinite().all() and torch.allclose(log_prob.grad, torch.full((8,), -0.5 * sign / 8))


def test_the_prior_stays_what_it_was():
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(), 3, TWO)
    objective, before = PMPO(agent), agent.policy(torch.eye(3)).parts[0].probabilities.detach()
    for p in agent.actor.parameters():
        p.data += 0.5
    assert objective.prior.policy(torch.eye(3)).parts[0].probabilities.equal(before)
    assert not any(p.requires_grad for p in objective.parameters())


def test_divergence_of_bell_curves_is_that_of_torch():
    torch.manual_seed(0)
    p, q = Normal(torch.randn(5, 6)), Normal(torch.randn(5, 6))
    theirs = torch.distributions.kl_divergence(*(torch.distributions.Normal(x.mean, x.std) for x in (p, q)))
    torch.testing.assert_close(p.kl(q), theirs.sum(-1))
    torch.testing.assert_close(p.kl(p), torch.zeros(5))


def one_step(old: float) -> ImaginedTrajectory:
    """Two futures in which action 0 was decided when its log-probability was `old`."""
    action = torch.tensor([1.0, 0.0]).expand(2, 2, 2)
    return ImaginedTrajectory(torch.zeros(2, 2, 1), action, torch.full((2, 2), old), torch.zeros(2, 2), torch.ones(2, 2), [])


def gradient(objective, old: float, advantage: float) -> torch.Tensor:
    """Of the logits of a policy that is undecided."""
    logits = torch.zeros(2, 1, 2, requires_grad=True)
    given = torch.full((2, 1), advantage), torch.ones(2, 1)
    objective(Categorical(logits, unimix=0.0), one_step(old), *given).mean().backward()
    return logits.grad


def test_the_first_update_of_ppo_is_reinforce():
    half = float(np.log(0.5))
    for advantage in (2.0, -3.0):
        torch.testing.assert_close(gradient(PPO(), half, advantage), gradient(reinforce, half, advantage))


@pytest.mark.parametrize(("old", "advantage", "learns"), [
    (0.4, 1.0, False), (0.4, -1.0, True), (0.6, 1.0, True), (0.6, -1.0, True), (0.7, -1.0, False), (0.7, 1.0, True),
])  # fmt: skip
def test_ppo_stops_where_it_has_moved_far_enough(old, advantage, learns):
    assert bool(gradient(PPO(entropy=0.0), float(np.log(old)), advantage).abs().max() > 0) is learns


class Coin(WorldModel):
    """A state is a number; an action is added to it."""

    feature_size, actions = 1, ActionSpec(categorical=(2,))

    def observe(self, context, state=None, every=False, generator=None):
        return {"sum": context.flatten()}

    def advance(self, state, action, generator=None):
        return {"sum": state["sum"] + action[:, 1]}

    def features(self, state):
        return state["sum"][:, None]

    def reward(self, features):
        return features[..., 0]

    def continuation(self, features):
        return torch.full_like(features[..., 0], 0.9)


DATA = [torch.rand(1, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]


def learner(make=lambda agent: None, **changes) -> DreamLearner:
    """Of an objective that is made from the actor-critic as it begins."""
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(units=8), 1, TWO)
    return DreamLearner(Coin(), agent, DreamConfig(horizon=3, replay=0.0, **changes), objective=make(agent))


def ppo_by_both() -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's loss of 5 futures of 4 steps by the library, and equation 7 of its paper in NumPy."""
    rng = np.random.default_rng(0)
    logits, old, taken = rng.normal(size=(5, 4, 3)), np.log(rng.uniform(0.1, 0.9, (5, 5))), rng.integers(3, size=(5, 5))
    advantage, weight = rng.normal(size=(5, 4)), rng.uniform(0.2, 1, (5, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ratio = np.take_along_axis(p, taken[:, 1:, None], -1)[..., 0] / np.exp(old[:, 1:])
    gain = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    wanted = -weight * (gain + 0.1 * -(p * np.log(p)).sum(-1))
    nothing, action = torch.zeros(5, 5), nn.functional.one_hot(torch.from_numpy(taken), 3).double()
    dream = ImaginedTrajectory(torch.zeros(5, 5, 1), action, torch.from_numpy(old), nothing, nothing, [])
    given = torch.from_numpy(advantage), torch.from_numpy(weight)
    policy = Categorical(torch.from_numpy(logits), unimix=0.0)
    return PPO(entropy=0.1)(policy, dream, *given), torch.from_numpy(wanted)


def test_ppo_is_equation_7_of_its_paper():
    torch.testing.assert_close(*ppo_by_both(), atol=1e-6, rtol=1e-6)


def left_reference() -> tuple[torch.Tensor, torch.Tensor]:
    """What leaving a reference adds to PPO's loss, by the library and summed over all actions by hand; then what is watched."""
    torch.manual_seed(0)
    spec = ActionSpec(categorical=(3,))
    agent = ActorCritic(ActorCriticConfig(units=8), 1, spec)
    nn.init.normal_(agent.actor[-1].weight)
    policy = ActionChoice(torch.randn(5, 4, 3), spec, 0.0)
    action, nothing = nn.functional.one_hot(torch.randint(3, (5, 5)), 3).float(), torch.zeros(5, 5)
    dream = ImaginedTrajectory(torch.randn(5, 5, 1), action, torch.full((5, 5), -1.0), nothing, nothing, [])
    given, priced = (torch.randn(5, 4), torch.rand(5, 4)), PPO(reference=agent, kl=2.0)
    p, q = policy.parts[0].probabilities, agent.policy(dream.features[:, :-1]).parts[0].probabilities.detach()
    nn.init.zeros_(agent.actor[-1].weight)  # it learns on; the reference stays
    added = priced(policy, dream, *given) - PPO()(policy, dream, *given)
    apart = (p * (p / q).log()).sum(-1)
    watched = priced.watched(policy, dream, given[0])["reference_kl"]
    return torch.cat([added.flatten(), watched[None]]), torch.cat([(2.0 * given[1] * apart).flatten(), apart.mean()[None]])


def test_ppo_pays_for_leaving_its_reference(monkeypatch):
    "Negative controls: paid for leaving, the other divergence, the row after, and a reference that learns on."
    torch.testing.assert_close(*left_reference(), atol=1e-5, rtol=1e-4)
    asked = "policy.kl(self.reference.policy(dream.features[:, :-1], dream.row_goal))"
    for name, old, new in (
        ("forward", "- self.kl", "+ self.kl"),
        ("divergence", asked, "self.reference.policy(dream.features[:, :-1], dream.row_goal).kl(policy)"),
        ("divergence", "features[:, :-1]", "features[:, 1:]"),
        ("__init__", "copy.deepcopy(reference).requires_grad_(False)", "reference"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(PPO, name, mutant(getattr(PPO, name), old, new))
            mine, wanted = left_reference()
            assert float((mine - wanted).detach().abs().max()) > 1e-2, (name, new)


@pytest.mark.parametrize(("old", "new"), [
    ("-weight * (", "-("), ("self.entropy * policy", "-self.entropy * policy"),
    ("dream.log_prob[:, 1:]", "dream.log_prob[:, :-1]"), ("dream.action[:, 1:]", "dream.action[:, :-1]"),
    ("torch.minimum", "torch.maximum"), ("1 - self.clip", "1 - 2 * self.clip"),
], ids=["without its weight", "entropy's sign turned", "old log-probability a row off", "actions a row off",
        "the larger gain", "clipped elsewhere"])  # fmt: skip
def test_deliberate_errors_in_ppo_are_caught(monkeypatch, old, new):
    "Negative controls."
    monkeypatch.setattr(PPO, "forward", mutant(PPO.forward, old, new))
    mine, wanted = ppo_by_both()
    assert float((mine - wanted).abs().max()) > 1e-2


def test_dreams_are_used_as_often_as_was_asked(monkeypatch):
    begun, dream = [], DreamLearner.dream
    monkeypatch.setattr(DreamLearner, "dream", lambda self, *given: begun.append(1) or dream(self, *given))
    it = learner(lambda agent: PPO(), reuse=3)
    seen = [it.losses(DATA[0])["actor"].detach() for _ in range(7)]
    assert len(begun) == 3 and seen[0].equal(seen[1]) and not seen[0].equal(seen[3])


def test_only_the_first_update_from_a_dream_has_ratios_of_one(tmp_path):
    ratios = []

    class Watched(PPO):
        def forward(self, policy, dream, advantage, weight):
            ratios.append((policy.log_prob(dream.action[:, 1:]) - dream.log_prob[:, 1:]).exp().detach())
            return super().forward(policy, dream, advantage, weight)

    fit(learner(lambda agent: Watched(), reuse=3), DATA, tmp_path, TrainConfig(steps=6, lr=1e-2, warmup=0))
    moved = [bool((ratio - 1).abs().max() > 1e-4) for ratio in ratios]
    assert moved == [False, True, True] * 2


@pytest.mark.parametrize(("make", "reuse"), [
    (lambda agent: PPO(), 3), (PMPO, 1), (lambda agent: None, 1), (lambda agent: GRPO(agent, GRPOConfig(group=2)), 3),
])  # fmt: skip
def test_a_resumed_training_has_the_numbers_of_one_that_went_on(tmp_path, make, reuse):
    config = TrainConfig(steps=7, log_every=1, checkpoint_every=1, warmup=0)
    whole = fit(learner(make, reuse=reuse), DATA, tmp_path / "whole", config)
    for steps in (2, 5, 7):
        part = fit(learner(make, reuse=reuse), DATA, tmp_path / "parts", config.change(steps=steps))
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(part.state_dict()[name]), name
    logs = [read_log(tmp_path / name).filter(like="loss") for name in ("whole", "parts")]
    assert len(logs[0]) == 7 and logs[0].equals(logs[1])


def test_bad_input_is_told():
    for wrong in (lambda: PPO(clip=0), lambda: PMPO(ActorCritic(ActorCriticConfig(), 1, TWO), alpha=2),
                  lambda: DreamConfig(reuse=2), lambda: DreamConfig(reuse=0), lambda: learner(reuse=2)):  # fmt: skip
        with pytest.raises(UsageError):
            wrong()
