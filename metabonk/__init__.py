__version__ = "0.1.0"

from importlib import import_module
from os import PathLike
from typing import Any


def load(
    store: str | PathLike[str],  # folder of a store
    length: int | None = None,  # rows in a sequence; None: an item is one row, without an axis of time
    cross_episodes: bool = False,  # whether a sequence may run on into the next episode; `first` marks the seam
    cache: str | PathLike[str] | None = None,  # folder of the training cache; beside the store if not given
) -> Any:  # a `metabonk.record.sampling.StoreDataset`
    "A recording as a PyTorch data set: tensors by name, sound padded with zeros to one width beside its lengths"
    sampling = import_module("metabonk.record.sampling")  # by name: nothing heavy before it is asked for
    return sampling.StoreDataset(store, length, cross_episodes, cache)
