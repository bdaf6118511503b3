from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metabonk.act.actor_critic import ActorCritic, drop_goals
from metabonk.core.errors import UsageError
from metabonk.core.training import Learner
from metabonk.dream.interface import WorldModel
from metabonk.nn.actions import ActionChoice

#| exports
class CloneLearner(Learner):
    "Teaches an actor to do what recorded players did, under the goals that they pursued"

    frozen = ("model",)

    def __init__(
        self,
        model: WorldModel,  # any; not changed
        actor_critic: ActorCritic,  # whose actor learns; its critic stays as it is
        goals: Callable[[Any], Tensor] | None = None,  # batch -> codes (B, T, G) of what was pursued in each row
        before: Callable[[Any], Any] | None = None,  # batch -> states in which its reading begins; those of an episode's start
    ):
        super().__init__()
        if (goals is None) != (actor_critic.config.goal_size == 0):
            raise UsageError(f"a policy with goal_size {actor_critic.config.goal_size} learns "
                             f"{'with goals: hand them over' if goals is None else 'without goals: set its goal_size'}")
        self.model, self.actor_critic, self.goals, self.before = model, actor_critic, goals, before
        actor_critic.critic.requires_grad_(False)
        self.identity = {"game": model.game, "actions": str(model.actions.size)}

    def on_fit_end(self) -> None:
        "Lightning's hook: the critic may learn again"
        self.actor_critic.critic.requires_grad_(True)

    def choice(
        self,
        batch: Any,  # recorded rows (B, T), as the model was trained on
    ) -> tuple[ActionChoice, Float[Tensor, "batch steps actions"], Float[Tensor, "batch steps"]]:  # said, done, 1 where it counts
        "What the policy would do in every row but the last of each sequence, and what was done"
        self.model.eval()
        with torch.no_grad():
            states, _ = self.model.observe_rows(batch, self.before(batch) if self.before else None)
            features = self.model.features(states).unflatten(0, tuple(batch.first.shape))[:, :-1]
        goal = None if self.goals is None else self.goals(batch)[:, :-1].to(features.device)
        goal = None if goal is None else drop_goals(goal, self.actor_critic.config.goal_dropout)
        done = self.model.actions.vectors(batch.action)[:, 1:]
        return self.actor_critic.policy(features, goal), done, (~batch.first[:, 1:]).to(features.dtype)

    def losses(
        self,
        batch: Any,  # recorded rows (B, T), as the model was trained on
    ) -> dict[str, Tensor]:  # "clone" (B, T - 1), 0 where an episode ended
        "Cross-entropy to what was done"
        policy, done, counts = self.choice(batch)
        nats = -policy.log_prob(done)
        self.watch("nats", nats, counts)
        self.watch("entropy", policy.entropy(), counts)
        return {"clone": nats * counts}

#| exports
@torch.no_grad()
def goal_divergence(
    actor_critic: ActorCritic,  # that reads goals
    features: Float[Tensor, "batch features"],  # of states
    codes: Float[Tensor, "goals goal"],  # of at least two goals
) -> Float[Tensor, " batch"]:  # nats; in each state the mean over pairs of goals
    "Jensen-Shannon divergence of a policy between goals, state by state"
    if len(codes) < 2 or actor_critic.spec.continuous:
        raise UsageError("goal_divergence compares at least two goals, of a policy over keys and choices")
    parts = actor_critic.policy(features[:, None].expand(-1, len(codes), -1), codes).parts  # (batch, goals, ...)
    apart = features.new_zeros(len(features))
    first, second = torch.triu_indices(len(codes), len(codes), 1)
    for part in parts:
        p, q = part.probabilities[:, first], part.probabilities[:, second]  # type: ignore[union-attr]
        middle = ((p + q) / 2).log()
        each = (p * (p.log() - middle) + q * (q.log() - middle)) / 2
        apart += each.flatten(2).sum(-1).mean(1)
    return apart
