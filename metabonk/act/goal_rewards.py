import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from metabonk.act.actor_critic import ActorCritic
from metabonk.act.returns import DISCOUNT
from metabonk.core.errors import UsageError
from metabonk.dream.interface import Imagined

#| exports
class GoalReward:
    "Pays dreams for the goals that they were asked for; to be handed to `DreamLearner` as `change`"

    def __init__(
        self,
        reached: Callable[[Tensor, Tensor], Tensor],  # features, goals -> probability that they have been reached: a `GoalHead`
        worth: float = 1.0,  # κ, of a goal
        game: float = 0.0,  # α, weight of the reward that the model predicts
        ends_at: float = 0.5,  # probability from which on a goal is reached, and the dream over
        go_on: ActorCritic | None = None,  # whose value without a goal is paid at the end; `None`: nothing follows
        discount: float = DISCOUNT,  # γ of that value
    ):
        if worth < 0 or not 0 < ends_at <= 1:
            raise UsageError(f"a goal's worth must be at least 0 and ends_at above 0 and at most 1, not {worth} and {ends_at}")
        self.reached, self.worth, self.game, self.ends_at = reached, worth, game, ends_at
        self.go_on, self.discount = go_on, discount

    @torch.no_grad()
    def __call__(
        self,
        dream: Imagined,  # with goals
    ) -> Imagined:  # with another reward, and over where the goal is reached
        "Pay the rise, and end"
        if dream.row_goal is None:
            raise UsageError("these dreams were asked for nothing: give the learner `goals`")
        best = self.reached(dream.features, dream.row_goal).cummax(1).values  # m (batch, rows)
        reward, over = self.game * dream.reward, best >= self.ends_at
        reward[:, 1:] += self.worth * best.diff(dim=1)
        if self.go_on is not None:
            after = self.discount * dream.continuation * self.go_on.value(dream.features)
            ends = over & ~torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], 1)
            reward = torch.where(ends, reward + after, reward)
        return dataclasses.replace(dream, reward=reward, continuation=dream.continuation.where(~over, 0.0))
