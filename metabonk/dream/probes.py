from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from metabonk.core.errors import UsageError
from metabonk.core.training import Learner
from metabonk.dream.interface import WorldModel
from metabonk.nn.layers import MLP, linear

#| exports
@dataclass(frozen=True)
class Probe:
    "What kind of number a probe is, and its spread in a recording"

    kind: Literal["place", "position", "flag"]  # one of several, a number, or yes and no
    places: tuple[float, ...] = ()  # of a place: its values, in rising order
    mean: float = 0.0  # of a position
    deviation: float = 1.0  # of a position

    @classmethod
    def of(
        cls,
        kind: Literal["place", "position", "flag"],  # as above
        values: Shaped[np.ndarray, " rows"],  # as recorded, of the episodes to train on
    ) -> Self:  # for these values
        "The probe of a recorded column"
        if kind == "place":
            return cls(kind, tuple(np.unique(values).astype(float).tolist()))
        if kind == "position":
            return cls(kind, mean=float(np.mean(values)), deviation=max(float(np.std(values)), 1e-6))
        return cls(kind)

    @property
    def outputs(self) -> int:  # of a network
        "Numbers that tell it"
        return len(self.places) if self.kind == "place" else 1

    def loss(
        self,
        output: Float[Tensor, "*batch outputs"],  # of the network
        value: Shaped[Tensor, "*batch"],  # as recorded; a place that was never seen before counts for nothing
    ) -> Float[Tensor, "*batch"]:  # nats, or squared deviations
        "How wrong it is"
        value = value.to(output.dtype)
        if self.kind == "flag":
            return F.binary_cross_entropy_with_logits(output[..., 0], (value != 0).to(output.dtype), reduction="none")
        if self.kind == "position":
            return (output[..., 0] - (value - self.mean) / self.deviation).square()
        there = value[..., None] == torch.tensor(self.places, dtype=output.dtype, device=output.device)
        return -(output.log_softmax(-1) * there).sum(-1)

    def told(
        self,
        output: Float[Tensor, "*batch outputs"],  # of the network
    ) -> Float[Tensor, "*batch"]:  # the likeliest place, the position, or the probability of the flag
        "The probe in its own unit"
        if self.kind == "flag":
            return output[..., 0].sigmoid()
        if self.kind == "position":
            return output[..., 0] * self.deviation + self.mean
        return torch.tensor(self.places, dtype=output.dtype, device=output.device)[output.argmax(-1)]

#| exports
class ProbeHeads(nn.Module):
    "A head that tells several probes from features"

    def __init__(
        self,
        features: int,  # numbers in the features of a state
        probes: Mapping[str, Probe],  # by name
        units: int = 64,  # width of the network
        layers: int = 1,  # hidden layers; 0 for a linear probe
    ):
        super().__init__()
        if not probes:
            raise UsageError("ProbeHeads: name at least one probe of the recording")
        self.probes = dict(probes)
        self.head = MLP(features, sum(probe.outputs for probe in self.probes.values()), layers, units)

    def _outputs(self, features: Tensor) -> dict[str, Tensor]:
        parts = self.head(features).split([probe.outputs for probe in self.probes.values()], -1)
        return dict(zip(self.probes, parts, strict=True))

    def forward(
        self,
        features: Float[Tensor, "*batch features"],  # of states
    ) -> dict[str, Float[Tensor, "*batch"]]:  # by name, each in its own unit
        "What the memory would say"
        return {name: self.probes[name].told(output) for name, output in self._outputs(features).items()}

    def losses(
        self,
        features: Float[Tensor, "*batch features"],  # of recorded rows
        values: Mapping[str, Shaped[Tensor, "*batch"]],  # as recorded
    ) -> dict[str, Float[Tensor, "*batch"]]:  # by name
        "How wrong each head is"
        return {name: self.probes[name].loss(output, values[name]) for name, output in self._outputs(features).items()}

#| exports
class GoalHead(nn.Module):
    "Probability that a goal has been reached"

    def __init__(
        self,
        features: int,  # numbers in the features of a state
        goal_size: int,  # numbers in the code of a goal
        units: int = 64,  # width of the network, and length of the vectors that are compared
        layers: int = 1,  # hidden layers
    ):
        super().__init__()
        self.seen, self.asked = MLP(features, units, layers, units), linear(goal_size, units + 1)

    def forward(
        self,
        features: Float[Tensor, "*batch features"],  # of states
        goal: Float[Tensor, "*#batch goal"],  # one for each, or for many of them
    ) -> Float[Tensor, "*batch"]:  # 0 to 1; 0 where nothing is asked for
        "Probability that it has been reached"
        asked = self.asked(goal)
        logit = (self.seen(features) * asked[..., :-1]).sum(-1) + asked[..., -1]
        return logit.sigmoid() * goal.ne(0).any(-1)

    def every(
        self,
        features: Float[Tensor, "*batch features"],  # of states
        codes: Float[Tensor, "goals goal"],  # of all goals that there are
    ) -> Float[Tensor, "*batch goals"]:  # log-odds
        "Every goal in every state"
        asked = self.asked(codes)
        return self.seen(features) @ asked[:, :-1].T + asked[:, -1]


def precision_recall(
    told: Bool[Tensor, "*batch"],  # where it is said
    true: Bool[Tensor, "*batch"],  # where it is so
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:  # share of what is said that is so, and of what is so that is said
    "Precision and recall"
    both = (told & true).sum()
    return both / told.sum(), both / true.sum()

#| exports
class ProbeLearner(Learner):
    "Teaches heads what recorded memory says"

    frozen = ("model",)

    def __init__(
        self,
        model: WorldModel,  # any; not changed
        heads: ProbeHeads | None = None,  # of probes
        probes: Callable[[Any], Mapping[str, Tensor]] | None = None,  # batch -> recorded probes (B, T) by name
        goals: GoalHead | None = None,  # of goals
        codes: Float[Tensor, "goals goal"] | None = None,  # of all goals that there are
        reached: Callable[[Any], Tensor] | None = None,  # batch -> (B, T, goals) bool: whether each goal has been reached
    ):
        super().__init__()
        if (heads is None) != (probes is None) or len({each is None for each in (goals, codes, reached)}) > 1:
            raise UsageError("ProbeLearner: heads go with probes, and goals with their codes and with what was reached")
        if heads is None and goals is None:
            raise UsageError("ProbeLearner: there is nothing to learn: give it heads of probes, of goals, or both")
        self.model, self.heads, self.goals = model, heads, goals
        self.probes, self.reached = probes, reached
        self.register_buffer("codes", codes, persistent=False)
        self.identity = {"game": model.game}

    def losses(
        self,
        batch: Any,  # recorded rows (B, T), as the model was trained on
    ) -> dict[str, Tensor]:  # NAME of each probe (B, T), and "reached" (B, T, goals)
        "What the heads have to learn from these rows"
        self.model.eval()
        with torch.no_grad():
            states, _ = self.model.observe_rows(batch)
            features = self.model.features(states).unflatten(0, tuple(batch.first.shape))
        losses: dict[str, Tensor] = {}
        if self.heads is not None and self.probes is not None:
            values = {name: value.to(features.device) for name, value in self.probes(batch).items()}
            losses |= self.heads.losses(features, values)
        if self.goals is not None and self.reached is not None:
            true, logits = self.reached(batch).to(features.device), self.goals.every(features, self.codes)
            losses["reached"] = F.binary_cross_entropy_with_logits(logits, true.to(logits.dtype), reduction="none")
            precision, recall = precision_recall(logits > 0, true)
            self.watch("precision", precision)
            self.watch("recall", recall)
        return losses
