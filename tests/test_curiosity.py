"""Curiosity: what pays in a dream, what does not, and what it is learned from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import mutant
from torch import nn

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.curiosity import (
    AudioCuriosity,
    Curiosity,
    CuriosityConfig,
    Ensemble,
    Explorer,
    ExplorerLearner,
    Plan2Explore,
    bootstrap_counts,
    distinct_so_far,
    intrinsic_rewards,
    standardised,
)
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.pessimism import PessimisticLearner, RewardDoubt
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.dream.interface import ImaginedTrajectory, imagine
from metabonk.dream.recurrent import RecurrentModel
from metabonk.dream.rssm import RSSMConfig

TINY = CuriosityConfig(members=4, layers=2, units=16)


def rows(batch=3, time=6, features=5, actions=2):
    torch.manual_seed(0)
    return torch.randn(batch, time, features), F.one_hot(torch.randint(actions, (batch, time)), actions).float()


def curious(features=5, actions=2, size=4, **changes):
    torch.manual_seed(0)
    return Curiosity(TINY.change(**changes), features, actions, size, lambda batch, states, features: features[..., :size])


def test_members_are_separate_networks():
    torch.manual_seed(0)
    ensemble, x = Ensemble(3, 2, members=4, layers=2, units=8), torch.randn(5, 3)
    together = ensemble(x)
    for k in range(4):
        y = x
        for depth in range(3):
            y = F.silu(y / (y.square().mean(-1, keepdim=True) + 1e-4).sqrt()) if depth else y
            y = y @ ensemble.weights[depth][k] + ensemble.biases[depth][k]
        torch.testing.assert_close(together[k], y)
    assert together.var(0).min() > 0
    together[1].sum().backward()
    assert all(p.grad[[0, 2, 3]].eq(0).all() and p.grad[1].ne(0).any() for p in ensemble.parameters())


def learn(curiosity, features, action, target, steps, copies=None):
    optimizer = torch.optim.Adam(curiosity.parameters(), lr=1e-2)
    follows = torch.ones(features.shape[0], features.shape[1] - 1, dtype=torch.bool)
    for _ in range(steps):
        losses = curiosity.losses(features, action, target, follows, copies)
        optimizer.zero_grad()
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()
    return {name: float(loss.detach().mean()) for name, loss in losses.items()}


def test_noise_keeps_its_error_and_loses_its_disagreement():
    "Two known situations, one followed by noise, one by a fixed thing; a third one was never met."
    torch.manual_seed(0)
    situation = F.one_hot(torch.randint(2, (64, 9)), 3).float()
    noise = torch.rand(64, 9, 4).round()
    fixed = torch.tensor([0.0, 1.0, 1.0, 0.0])
    after = torch.where(situation[:, :-1, :1] > 0, noise[:, 1:], fixed)  # of the situation in the row before
    target, action = torch.cat([noise[:, :1], after], 1), torch.zeros(64, 9, 1)
    curiosity = Curiosity(TINY, 3, 1, 4, lambda *given: target)
    episode, step = torch.meshgrid(torch.arange(64), torch.arange(9), indexing="ij")
    learn(curiosity, situation, action, target, 200, bootstrap_counts(episode, step, 4))
    with torch.no_grad():
        pays = curiosity.bonuses(torch.eye(3), torch.zeros(3, 1))
    disagreement, error = pays["disagreement"].tolist(), pays["error"].tolist()
    assert abs(error[0] - 0.25) < 0.05 and error[1] < 0.05
    assert disagreement[0] < 0.02 and disagreement[1] < 0.02 and disagreement[2] > 5 * max(disagreement[:2])


class Fixed(Curiosity):
    """Pays by a formula, so that every reward is known."""

    def forward(self, features, action):
        return 10 * features[..., 0] + action[..., 1]


def dream(features, action, reward=0.0):
    B, rows, _ = features.shape
    earned, goes_on = torch.full((B, rows), reward), torch.full((B, rows), 0.9)
    return ImaginedTrajectory(features, action, torch.zeros(B, rows), earned, goes_on, [])


def test_a_row_is_paid_for_the_step_that_led_to_it():
    features, action = torch.tensor([[[1.0], [2], [3]]]), torch.tensor([[[0.0, 0], [0, 1], [1, 0]]])
    explorer = Explorer({"a": Fixed(TINY, 1, 2, 1, lambda *given: features)})
    futures = dream(features, action, reward=5.0)
    assert explorer.bonuses(futures)["a"].tolist() == [[11, 20]]  # what was felt one row before, what was done since
    paid = intrinsic_rewards(futures, explorer)
    torch.testing.assert_close(paid.reward, torch.tensor([[0.0, -1, 1]]), atol=1e-4, rtol=0)  # nothing in row 0
    assert paid.features is features and paid.action is action


def test_weights_and_the_games_own_reward():
    features, action = torch.tensor([[[1.0], [2], [3]]]), torch.tensor([[[0.0, 0], [0, 1], [1, 0]]])
    kind = [Fixed(TINY, 1, 2, 1, lambda *given: features) for _ in range(2)]
    explorer = Explorer({"a": kind[0], "b": kind[1]}, {"b": 0.5}, game=2.0)
    reward = explorer.reward(dream(features, action, reward=5.0))
    torch.testing.assert_close(reward, torch.tensor([[10, 10 - 1.5, 10 + 1.5]]), atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="'c'"):
        Explorer({"a": kind[0]}, {"c": 1.0})


def test_bonuses_come_to_one_scale_whatever_their_size():
    torch.manual_seed(0)
    x = 1e-4 * torch.randn(5, 1000) + 3e-4
    assert abs(float(standardised(x).mean())) < 1e-3 and abs(float(standardised(x).std()) - 1) < 1e-2
    assert standardised(x).argmax() == x.argmax() and standardised(torch.full((4, 3), 0.2)).abs().max() < 0.1
    features, action = rows(8, 16)
    kind = {"a": curious(), "b": curious()}
    futures = dream(features, action)
    bonuses = {"a": torch.randn(8, 15), "b": 1e-3 * torch.randn(8, 15)}
    paid = Explorer(kind).reward(futures, bonuses)[:, 1:]
    torch.testing.assert_close(paid, standardised(bonuses["a"]) + standardised(bonuses["b"]))
    asked = Explorer(kind).bonuses(futures)
    assert Explorer(kind).reward(futures).equal(Explorer(kind).reward(futures, asked))


def test_nothing_is_learned_across_episodes():
    features, action = rows()
    follows = torch.tensor([[True, True, False, True, True]]).expand(3, 5)
    losses = curious().losses(features, action, features[..., :4], follows)
    for loss in losses.values():
        assert loss[:, 2].eq(0).all() and loss[:, [0, 1, 3, 4]].gt(0).all()


def test_predictions_are_of_the_next_row():
    "Only the right neighbour can be predicted: the target is a function of the row before and of the action."
    features, action = rows(32, 12, 3)
    target = torch.zeros(32, 12, 1)
    target[:, 1:, 0] = features[:, :-1, 0] + action[:, 1:, 1]
    right = learn(curious(3, size=1), features, action, target, 120)["ensemble"]
    wrong = learn(curious(3, size=1), features, action, target.roll(1, 1), 120)["ensemble"]
    assert right < 0.05 < 0.5 < wrong


def test_the_model_gets_no_gradient():
    features, action = rows()
    features.requires_grad_()
    curiosity = curious()
    follows = torch.ones(3, 5, dtype=torch.bool)
    losses = curiosity.losses(features, action, features[..., :4], follows)
    sum(loss.sum() for loss in losses.values()).backward()
    assert features.grad is None and all(p.grad is not None for p in curiosity.parameters())
    assert not curiosity(features, action).isnan().any()


def test_resampling_belongs_to_the_row_and_to_the_member():
    episode, step = (x.contiguous() for x in torch.meshgrid(torch.arange(40), torch.arange(300), indexing="ij"))
    copies = bootstrap_counts(episode, step, 5)
    values, counts = copies.unique(return_counts=True)
    expected = torch.tensor([0.3679, 0.3679, 0.1839, 0.0613, 0.0153])  # Poisson, mean 1
    torch.testing.assert_close(counts[:5] / copies.numel(), expected, atol=5e-3, rtol=0)
    assert values.tolist() == list(range(6))
    order = torch.randperm(300)
    assert bootstrap_counts(episode[:, order], step[:, order], 5).equal(copies[..., order])
    assert torch.corrcoef(copies.flatten(1)).fill_diagonal_(0).abs().max() < 0.1
    along = copies[0].flatten()
    assert abs(float(torch.corrcoef(torch.stack([along[1:], along[:-1]]))[0, 1])) < 0.05


def test_copies_weigh_each_members_loss():
    features, action = rows()
    curiosity, follows = curious(), torch.ones(3, 5, dtype=torch.bool)
    copies = torch.zeros(4, 3, 6)
    copies[2] = 1
    losses = curiosity.losses(features, action, features[..., :4], follows, copies)
    losses["ensemble"].mean().backward()
    assert all(p.grad[[0, 1, 3]].eq(0).all() and p.grad[2].ne(0).any() for p in curiosity.ensemble.parameters())


def test_sound_is_predicted_as_the_vectors_of_its_tokens():
    codebook = torch.arange(12.0).view(4, 3)
    ear = AudioCuriosity(TINY, 5, 2, codebook, tokens=2)
    batch = SimpleNamespace(audio=torch.tensor([[[0, 3], [1, 1]]]))
    target = ear.target(batch, {}, torch.zeros(1, 2, 5))
    assert target.tolist() == [[[0, 1, 2, 9, 10, 11], [3, 4, 5, 3, 4, 5]]]
    with pytest.raises(UsageError, match="sound tokens"):
        ear.target(SimpleNamespace(audio=None), {}, torch.zeros(1, 2, 5))
    with pytest.raises(UsageError, match="7 numbers"):
        ear.losses(*rows(1, 2), torch.zeros(1, 2, 7), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(UsageError, match="2 members"):
        CuriosityConfig(members=1)


class Eye(nn.Module):
    def forward(self, batch):
        return F.one_hot(batch.place, 6).float()


class Picture(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.head = nn.Linear(features, 6)

    def loss(self, features, batch):
        return F.cross_entropy(self.head(features).transpose(1, 2), batch.place, reduction="none")


def recording(batches=3):
    torch.manual_seed(0)
    shape, result = (2, 8), []
    for i in range(batches):
        never = torch.zeros(shape, dtype=torch.bool)
        first = never.clone()
        first[:, 0] = True
        step = torch.arange(8).expand(shape) + 8 * i
        result.append(SimpleNamespace(
            place=torch.randint(6, shape), action=torch.randint(3, shape), reward=torch.zeros(shape), terminated=never,
            truncated=never, first=first, episode=torch.tensor([[0], [1]]).expand(shape), step=step,
        ))  # fmt: skip
    return result


def test_an_explorer_learns_in_the_dreams_of_a_recurrent_model(tmp_path):
    torch.manual_seed(0)
    config = RSSMConfig(deter=32, hidden=8, units=8, latents=4, classes=4, blocks=4)
    features = 32 + 16
    model = RecurrentModel(config, Eye(), 6, {"picture": Picture(features)}, actions=ActionSpec(categorical=(3,)))
    kinds = {"latent": Plan2Explore(TINY, features, 3, 16), "all": Plan2Explore(TINY, features, 3, features, latent="")}
    explorer = Explorer(kinds)
    agent = ActorCritic(ActorCriticConfig(units=8), features, ActionSpec(categorical=(3,)))
    learner = ExplorerLearner(model, explorer, agent, DreamConfig(horizon=3, starts=5, replay=0.0))
    model_before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    fit(learner, recording(), tmp_path, TrainConfig(steps=4, lr=1e-2, warmup=0, log_every=2))
    assert all(tensor.equal(model_before[name]) for name, tensor in model.state_dict().items())
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert kept and not any("rssm" in name for name in kept)
    after = learner.state_dict()
    curious, player = ("latent.ensemble", "latent.error", "all.ensemble"), ("actor", "critic", "slow_critic")
    for part in [f"explorer.curiosities.{name}" for name in curious] + [f"actor_critic.{name}" for name in player]:
        assert any(not after[name].equal(before[name]) for name in before if name.startswith(part)), part
    log = read_log(tmp_path)
    assert {"loss/latent", "loss/latent_error", "loss/all", "loss/actor", "loss/critic", "watch/latent_bonus"} <= set(log.columns)
    batch = recording()[0]
    futures, _, _ = learner.dream(batch)
    assert futures.reward.shape == (5, 4) and futures.reward[:, 0].eq(0).all() and futures.reward[:, 1:].std() > 0.1


def test_paid_futures_are_those_that_were_imagined():
    "The model's own reward is replaced, and nothing else."
    torch.manual_seed(0)
    config = RSSMConfig(deter=32, hidden=8, units=8, latents=4, classes=4, blocks=4)
    model = RecurrentModel(config, Eye(), 6, {}, actions=ActionSpec(categorical=(3,)))
    agent = ActorCritic(ActorCriticConfig(units=8), 48, ActionSpec(categorical=(3,)))
    futures = imagine(model, agent.policy, model.observe(recording()[0]), 4)
    paid = intrinsic_rewards(futures, Explorer({"latent": Plan2Explore(TINY, 48, 3, 16)}))
    assert paid.reward[:, 1:].ne(0).all() and not paid.reward.requires_grad
    assert paid.continuation is futures.continuation and paid.features is futures.features


def test_what_was_covered_is_counted_row_by_row():
    generator = np.random.default_rng(0)
    a, b = generator.integers(5, size=200), generator.integers(4, size=200)
    seen, counts = set(), []
    for pair in zip(a.tolist(), b.tolist(), strict=True):
        seen.add(pair)
        counts.append(len(seen))
    assert distinct_so_far(a, b).tolist() == counts and distinct_so_far(a)[-1] == 5


def resampled_by_both() -> tuple[torch.Tensor, torch.Tensor]:
    """The ensemble's loss by the library, and by loops over members, recordings and rows."""
    curiosity, (features, action) = curious(), rows()
    target, copies = torch.randn(3, 6, 4), torch.randint(0, 4, (4, 3, 6)).float()
    follows = torch.rand(3, 5) < 0.8
    wanted = torch.zeros(3, 5)
    with torch.no_grad():
        for b in range(3):
            for t in range(5):  # row t and the action of row t + 1 foretell row t + 1, of which a member has its copies
                said = curiosity.ensemble(torch.cat([features[b, t], action[b, t + 1]])[None])[:, 0]
                for k in range(4):
                    error = ((said[k] - target[b, t + 1]) ** 2).mean()
                    wanted[b, t] += copies[k, b, t + 1] * error * follows[b, t] / 4
        return curiosity.losses(features, action, target, follows, copies)["ensemble"], wanted


def test_a_member_learns_a_row_as_often_as_it_has_copies_of_it(monkeypatch):
    "Negative control: copies of the row before."
    torch.testing.assert_close(*resampled_by_both())
    wrong = mutant(Curiosity.losses, "copies[..., 1:]", "copies[..., :-1]")
    monkeypatch.setattr(Curiosity, "losses", wrong)
    mine, wanted = resampled_by_both()
    assert float((mine - wanted).abs().max()) > 0.1


def pessimist(pessimism=3.0, **dreams):
    """A learner that doubts, over a small recurrent model."""
    torch.manual_seed(0)
    config = RSSMConfig(deter=32, hidden=8, units=8, latents=4, classes=4, blocks=4)
    model = RecurrentModel(config, Eye(), 6, {}, actions=ActionSpec(categorical=(3,)))
    doubt = RewardDoubt(TINY, 48, 3)
    agent = ActorCritic(ActorCriticConfig(units=8), 48, ActionSpec(categorical=(3,)))
    return PessimisticLearner(model, doubt, agent, DreamConfig(horizon=3, **dreams), pessimism)


def paid_less():
    """By how much every row of the same dreams is paid less, and the deviation of what its networks say."""
    learner, batch = pessimist(), recording()[0]
    torch.manual_seed(1)
    less, _, _ = learner.dream(batch)
    torch.manual_seed(1)
    plain, _, _ = DreamLearner.dream(learner, batch)
    assert less.features.equal(plain.features)
    x = torch.cat([plain.features[:, :-1], plain.action[:, 1:]], -1)
    said = torch.stack([net[..., 0] for net in learner.doubt.ensemble(x)])
    return plain.reward - less.reward, said.std(0, correction=0), said.std(0, correction=1)


def test_a_dream_pays_less_by_the_networks_deviation(monkeypatch):
    "Negative controls: paid for doubt, and doubt about the row before."
    less, *deviations = paid_less()
    assert less[:, 0].eq(0).all() and less[:, 1:].min() > 0
    assert any(torch.allclose(less[:, 1:], 3 * deviation, rtol=1e-4) for deviation in deviations)
    for where, old, new in (
        (PessimisticLearner, "reward[:, 1:] -=", "reward[:, 1:] +="),
        (PessimisticLearner, "reward[:, 1:] -= self.pessimism * doubt", "reward[:, :-1] -= self.pessimism * doubt"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, "dream", mutant(where.dream, old, new))
            wrong = paid_less()[0]
            assert not torch.allclose(wrong, less)


def test_networks_that_doubt_learn_rewards_and_the_recording_is_paid_in_full(tmp_path):
    learner = pessimist()
    batches = recording()
    for batch in batches:
        batch.reward = (batch.place == 2).float()
    before = {name: tensor.clone() for name, tensor in learner.doubt.state_dict().items()}
    losses = learner.losses(batches[0])
    assert losses["doubt"].shape == losses["replay"].shape == (2, 7) and learner.scales["replay"] > 0
    fit(learner, batches, tmp_path, TrainConfig(steps=4, lr=1e-2, warmup=0, log_every=2))
    assert any(not tensor.equal(before[name]) for name, tensor in learner.doubt.state_dict().items())
    assert {"loss/doubt", "watch/doubt", "loss/actor", "loss/replay"} <= set(read_log(tmp_path).columns)
    again = pessimist(reuse=2, replay=0.0, objective="ppo")
    assert "doubt" in again.losses(batches[0]) and "doubt" not in again.losses(batches[0])


def test_doubt_is_never_paid_for():
    with pytest.raises(UsageError, match="pessimism must be at least 0, not -1"):
        pessimist(-1.0)
