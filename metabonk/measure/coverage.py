from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8

from metabonk.act.curiosity import distinct_so_far
from metabonk.core.errors import UsageError, unknown
from metabonk.record.cache import Cache
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMel, LogMelConfig
from metabonk.sense.tokens import Hearing, has_sound

def picture_cells(
    images: UInt8[np.ndarray, "rows height width 3"],  # as recorded
    squares: int = 8,  # along each side
    shades: int = 4,  # that are told apart in each
) -> UInt8[np.ndarray, "rows squares*squares"]:  # shade of each square
    "Pictures, so coarse that small things in them don't count"
    rows, height, width, _ = images.shape
    if height < squares or width < squares:
        raise UsageError(f"pictures of {height} x {width} can't be cut into {squares} x {squares} squares: record larger ones")
    down, right = (np.arange(squares) * size // squares for size in (height, width))
    sums = np.add.reduceat(np.add.reduceat(images.mean(-1, dtype=np.float32), down, 1), right, 2)
    counts = np.outer(np.diff([*down, height]), np.diff([*right, width]))
    return (sums / counts * shades / 256).astype(np.uint8).reshape(rows, -1)


def sound_cells(
    frames: Float[np.ndarray, "rows channels frames bands"],  # log10 of power
    groups: int = 8,  # of neighbouring bands
) -> Int[np.ndarray, "rows groups"]:  # level of each, in steps of 10 dB
    "Sounds, so coarse that a step heard a little later counts as the same"
    bands = frames.mean((1, 2))
    return np.rint(np.stack([part.mean(-1) for part in np.array_split(bands, groups, -1)], -1)).astype(np.int64)

def covered(
    store: Store | str | Path,  # what was recorded, or its folder
    places: Mapping[str, float],  # probe -> size of a cell, 1 to count every value: {"screen": 1, "x": 16, "y": 16}
    cache: str | Path | None = None,  # folder of the training cache; beside the store if not given
) -> pd.DataFrame:  # a row for each recorded row: places, pictures, and sounds if there are any, so far
    "How much a recording had covered when"
    store = store if isinstance(store, Store) else Store.open(store)
    rows = Cache.build(store, cache)
    probes = [name.removeprefix("probes/") for name in rows.table.dtype.names if name.startswith("probes/")]
    for name in places:
        if name not in probes:
            raise unknown("probe", name, probes)
    cells = [np.floor(rows.table[f"probes/{name}"] / size) for name, size in places.items()]
    found: dict[str, Any] = {"places": distinct_so_far(*cells)} if places else {}
    found["pictures"] = distinct_so_far(*picture_cells(np.asarray(rows.image)).T)
    if has_sound(store.schema):
        config = LogMelConfig.preset("tiny", sample_rate=store.schema.sample_rate).covering(rows.samples / len(rows))
        with torch.no_grad():
            hearing, blocks = Hearing(rows, LogMel(config)), range(0, len(rows), 512)
            heard = [sound_cells(hearing.stretch(a, min(a + 512, len(rows))).numpy()) for a in blocks]
        found["sounds"] = distinct_so_far(*np.concatenate(heard).T)
    return pd.DataFrame(found)
