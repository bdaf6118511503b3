"""Probe heads, rewards for goals that are paid once, cloning with goals: by hand, and with each deliberate error caught."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import mutant

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.cloning import CloneLearner, goal_divergence
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.goal_rewards import GoalReward
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream.interface import ImaginedTrajectory, WorldModel
from metabonk.dream.probes import GoalHead, Probe, ProbeHeads, ProbeLearner, precision_recall
from metabonk.record.lookup import RowLookup

TWO = ActionSpec(categorical=(2,))


class Street(WorldModel):
    """Nine places; an action goes left or right."""

    feature_size, actions = 9, TWO

    def observe(self, context, state=None, every=False, generator=None):
        return {"place": context.place.flatten()}

    def advance(self, state, action, generator=None):
        return {"place": (state["place"] + 2 * action.argmax(-1) - 1).clamp(0, 8)}

    def features(self, state):
        return F.one_hot(state["place"], 9).float()

    def reward(self, features):
        return torch.zeros_like(features[..., 0])

    def continuation(self, features):
        return torch.ones_like(features[..., 0])


def rows(seed: int, batch: int = 8, time: int = 6) -> SimpleNamespace:
    """Recorded rows: a new episode begins in row 3 of the first sequence."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(9, (batch, time), generator=generator)
    first = torch.zeros(batch, time, dtype=torch.bool)
    first[:, 0], first[0, 3] = True, True
    action = torch.randint(2, (batch, time), generator=generator)
    episode, step = first.long().cumsum(1) + 10 * torch.arange(batch)[:, None], torch.arange(time).expand(batch, -1)
    return SimpleNamespace(place=place, action=action, first=first, episode=episode, step=step)


def dream_of(p: torch.Tensor, goal: float = 1.0) -> ImaginedTrajectory:
    """Dreams whose features say how probable it is that the goal is reached."""
    none = torch.zeros_like(p)
    goals = torch.full((len(p), 1), goal)
    return ImaginedTrajectory(p[..., None], none[..., None], none, none, torch.ones_like(p), [], goal=goals)


def paid(p: torch.Tensor, **changes) -> ImaginedTrajectory:
    return GoalReward(lambda features, goal: features[..., 0] * goal[..., 0], **changes)(dream_of(p))


COMES_AND_GOES = torch.tensor([[0.0, 0.3, 0.1, 0.4, 0.2, 0.4], [0.0, 1, 1, 1, 1, 1], [0.9, 0, 0.9, 0, 0.9, 0]])


def test_a_goal_is_paid_once():
    torch.testing.assert_close(paid(COMES_AND_GOES, worth=2.0).reward.sum(1), torch.tensor([0.8, 2, 0]))
    torch.testing.assert_close(paid(COMES_AND_GOES).reward[0], torch.tensor([0, 0.3, 0, 0.1, 0, 0]))


@pytest.mark.parametrize(("old", "new"), [("best.diff(dim=1)", "best[:, 1:]"), (".cummax(1).values", "")],
                         ids=["paid every step", "every rise is paid, and every fall"])  # fmt: skip
def test_a_goal_paid_otherwise_is_caught(monkeypatch, old, new):
    "Negative controls."
    monkeypatch.setattr(GoalReward, "__call__", mutant(GoalReward.__call__, old, new))
    total = paid(COMES_AND_GOES, ends_at=1.0).reward
    assert (total[0] - torch.tensor([0, 0.3, 0, 0.1, 0, 0])).abs().max() > 0.05


def test_where_a_goal_is_reached_the_dream_is_over():
    assert paid(COMES_AND_GOES).continuation.tolist() == [[1.0] * 6, [1, 0, 0, 0, 0, 0], [0.0] * 6]


def test_what_follows_without_a_goal_is_paid_with_the_last_row():
    class Worth(ActorCritic):
        def value(self, features, goal=None):
            assert goal is None
            return torch.full_like(features[..., 0], 7.0)

    follow = Worth(ActorCriticConfig(goal_size=1), 1, TWO)
    torch.testing.assert_close(paid(COMES_AND_GOES, go_on=follow, discount=0.5).reward[1], torch.tensor([0, 4.5, 0, 0, 0, 0]))


def test_the_decision_that_reaches_a_goal_gets_its_full_gradient():
    "The advantage of the step into the goal is its worth, although the dream ends there."
    agent, seen = ActorCritic(ActorCriticConfig(goal_size=1), 1, TWO), []
    agent.losses(paid(COMES_AND_GOES), lambda policy, dream, advantage, weight: seen.extend([advantage, weight]) or advantage)
    assert seen[0][1, 0] == 1 and seen[1][1, 0] > 0.99 and seen[1][1, 1:].eq(0).all()


def test_a_policy_learns_to_reach_what_it_is_asked_for(tmp_path):
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(layers=1, goal_size=2, goal_dropout=0.1), 9, TWO)
    ends = torch.tensor([0, 8])
    reached = lambda features, goal: (features[..., ends] * goal).sum(-1)  # noqa: E731
    goals = lambda batch: torch.eye(2)[batch.place % 2]  # noqa: E731
    config = DreamConfig(horizon=8, replay=0.0, reuse=3, objective="grpo", discount=0.9)
    learner = DreamLearner(Street(), agent, config, GoalReward(reached, discount=0.9), goals=goals)
    fit(learner, [rows(seed) for seed in range(10)], tmp_path, TrainConfig.preset("tiny", steps=90, lr=1e-2))
    right = [agent.policy(torch.eye(9)[2:7], code).parts[0].probabilities[:, 1].mean() for code in torch.eye(2)]
    assert right[0] < 0.25 < 0.75 < right[1]


def test_probes_by_hand():
    place, x = Probe.of("place", np.array([7, 3, 3])), Probe.of("position", np.array([1.0, 3]))
    flag = Probe.of("flag", np.array([0]))
    assert place.places == (3, 7) and (x.mean, x.deviation) == (2, 1)
    assert place.estimate(torch.tensor([[0.0, 1]])).tolist() == [7] and x.estimate(torch.tensor([[0.5]])).tolist() == [2.5]
    loss = place.loss(torch.tensor([[0.0, 1.0]] * 2), torch.tensor([7, 99]))
    assert loss[0].item() == pytest.approx(np.log(1 + np.exp(-1))) and loss[1] == 0
    assert x.loss(torch.tensor([[1.0]]), torch.tensor([2])).tolist() == [1]
    assert flag.loss(torch.zeros(1, 1), torch.tensor([5])).item() == pytest.approx(np.log(2))
    heads = ProbeHeads(4, {"place": place, "x": x, "flag": flag})
    assert heads.head[-1].out_features == 4 and set(heads(torch.zeros(2, 3, 4))) == {"place", "x", "flag"}


def test_precision_and_recall_by_hand():
    told, true = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, True])
    precision, recall = precision_recall(told, true)
    assert precision == 0.5 and recall.item() == pytest.approx(1 / 3)
    assert precision_recall(~told & told, true)[0].isnan()


def test_heads_learn_from_recorded_memory_and_leave_the_model_alone(tmp_path):
    torch.manual_seed(0)
    data, codes = [rows(seed) for seed in range(10)], torch.eye(3)[:2]
    column = lambda values: RowLookup(episode, step, values)  # noqa: E731
    data = data[:1] * 10  # one recording
    episode, step, place = (getattr(data[0], name).flatten().numpy() for name in ("episode", "step", "place"))
    goals, heads = GoalHead(9, 3), ProbeHeads(9, {"place": Probe.of("place", place)})
    look, reached = column(place), column(np.stack([place == 0, place > 5], -1))
    learner = ProbeLearner(Street(), heads, lambda batch: {"place": look(batch)}, goals, codes, reached)
    fit(learner, data, tmp_path, TrainConfig.preset("tiny", steps=120, lr=1e-2))
    features = Street().features({"place": data[0].place.flatten()})
    assert (heads(features)["place"] == data[0].place.flatten()).float().mean() > 0.95
    torch.testing.assert_close(goals(features, codes[1]), goals.every(features, codes)[:, 1].sigmoid())
    assert ((goals(features, codes[1]) > 0.5) == (data[0].place.flatten() > 5)).float().mean() > 0.95
    assert goals(features, torch.zeros(3)).eq(0).all()
    log = read_log(tmp_path)
    assert log["watch/precision"].iloc[-1] > 0.9 and log["watch/recall"].iloc[-1] > 0.9


def cloner(goal_size: int = 2, imitated=None) -> CloneLearner:
    torch.manual_seed(0)
    agent = ActorCritic(ActorCriticConfig(layers=1, goal_size=goal_size, goal_dropout=0.0), 9, TWO)
    for p in agent.actor.parameters():
        p.data += torch.randn_like(p)
    goals = (lambda batch: torch.eye(2)[batch.place % 2]) if goal_size else None
    return CloneLearner(Street(), agent, goals, imitated=imitated)


def cloned_by_both() -> tuple[torch.Tensor, torch.Tensor]:
    """The loss by the library and row by row; who stands in place 3 is not imitated."""
    it, batch = cloner(imitated=lambda batch: batch.place != 3), rows(0)
    wanted = torch.zeros(8, 5)
    for b in range(8):
        for t in range(5):
            place = batch.place[b, t]
            p = it.actor_critic.policy(torch.eye(9)[place], torch.eye(2)[place % 2]).parts[0].probabilities
            left_out = batch.first[b, t + 1] or batch.place[b, t + 1] == 3
            wanted[b, t] = 0 if left_out else -p[batch.action[b, t + 1]].log()
    return it.losses(batch)["clone"].detach(), wanted.detach()


def test_cloning_is_cross_entropy_to_the_next_action_under_the_goal():
    torch.testing.assert_close(*cloned_by_both())


@pytest.mark.parametrize(("old", "new"), [
    ("self.model.actions.vectors(batch.action)[:, 1:]", "self.model.actions.vectors(batch.action)[:, :-1]"),
    ("self.goals(batch)[:, :-1]", "self.goals(batch)[:, 1:]"), ("policy(features, goal)", "policy(features)"),
    ("~batch.first[:, 1:]", "~batch.first[:, :-1]"), ("self.imitated(batch)[:, 1:]", "self.imitated(batch)[:, :-1]"),
    ("counts & self", "counts | self"),
], ids=["the action before", "the goal of the next row", "without the goal", "across a reset", "the player of the row before",
        "whoever played"])  # fmt: skip
def test_deliberate_errors_in_cloning_are_caught(monkeypatch, old, new):
    "Negative controls."
    monkeypatch.setattr(CloneLearner, "choice", mutant(CloneLearner.choice, old, new))
    mine, wanted = cloned_by_both()
    assert (mine - wanted).abs().max() > 0.05


def test_the_critic_is_left_alone_and_learns_afterwards(tmp_path):
    it = cloner()
    before = [p.clone() for p in it.actor_critic.critic.parameters()]
    fit(it, [rows(seed) for seed in range(3)], tmp_path, TrainConfig(steps=3, lr=1e-2, warmup=0))
    assert all(p.equal(q) and p.requires_grad for p, q in zip(it.actor_critic.critic.parameters(), before, strict=True))


def test_divergence_between_goals_by_hand():
    agent = ActorCritic(ActorCriticConfig(layers=1, goal_size=3), 9, TWO)
    told = lambda features: SimpleNamespace(probabilities=table.expand(*features.shape[:2], 2))  # noqa: E731
    agent.policy = lambda features, goal: SimpleNamespace(parts=[told(features)])
    table = torch.tensor([[1 - 1e-7, 1e-7], [1e-7, 1 - 1e-7], [1 - 1e-7, 1e-7]])  # two of three pairs never agree
    torch.testing.assert_close(goal_divergence(agent, torch.zeros(2, 9), torch.eye(3)), torch.full((2,), 2 / 3 * np.log(2)),
                               atol=1e-4, rtol=0)  # fmt: skip


def test_bad_input_is_told():
    blind, batch = ActorCritic(ActorCriticConfig(), 9, TWO), rows(0)
    look = RowLookup(np.array([1]), np.array([0]), np.array([5.0]))
    unknown = SimpleNamespace(episode=None, step=None)
    for wrong in (lambda: GoalReward(lambda f, g: f, worth=-1.0), lambda: GoalReward(lambda f, g: f, ends_at=0.0),
                  lambda: ProbeHeads(3, {}), lambda: ProbeLearner(Street()), lambda: look(batch), lambda: look(unknown),
                  lambda: RowLookup(np.array([1]), np.array([0]), np.zeros(2)),
                  lambda: CloneLearner(Street(), blind, lambda batch: batch.place),
                  lambda: goal_divergence(blind, torch.zeros(1, 9), torch.zeros(1, 2))):  # fmt: skip
        with pytest.raises(UsageError):
            wrong()
