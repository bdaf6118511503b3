from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from metabonk.core.errors import UsageError

#| exports
class RowLookup:
    "A column of values, one for each recorded row, handed out batch by batch"

    def __init__(
        self,
        episode: Int[np.ndarray, " rows"],  # of each row, as `cache.table` has it
        step: Int[np.ndarray, " rows"],  # of each row, the same
        values: Shaped[np.ndarray, "..."],  # what belongs to it: `cache.table["probes/x"]`, codes of goals, ...
    ):
        if not len(episode) == len(step) == len(values):
            raise UsageError(f"{len(values)} values for {len(episode)} rows: give one a row")
        self._span = int(np.max(step, initial=0)) + 1
        key = np.asarray(episode, np.int64) * self._span + np.asarray(step, np.int64)
        order = np.argsort(key, kind="stable")
        self._keys, self._values = key[order], np.ascontiguousarray(np.asarray(values)[order])

    def __call__(
        self,
        batch: Any,  # recorded rows (B, T) as tensors, with `episode` and `step`
    ) -> Shaped[Tensor, "batch time *rest"]:  # on the CPU
        "The values of these rows"
        if batch.episode is None or batch.step is None:
            raise UsageError("these batches don't say of which episode and step their rows are: make their cache anew")
        key = (batch.episode * self._span + batch.step).cpu().numpy()
        place = np.searchsorted(self._keys, key).clip(max=len(self._keys) - 1)
        if not len(self._keys) or (self._keys[place] != key).any() or (batch.step >= self._span).any():
            raise UsageError("a batch has rows that there are no values for: look them up in the recording that they are from")
        return torch.from_numpy(self._values[place])
