"""Single stages on games that are not the usual one: silent, with pictures of odd sizes."""

from pathlib import Path

import pytest

from metabonk.core.run import Run
from metabonk.pipeline.execute import CellStopped, execute
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.sense.tokens import TokenCache, Tokenizers

STAGES = Path(__file__).parents[1] / "nbs/stages"


def tokenise(folder: Path, game: str, size: tuple[int, int]) -> Path:
    """The tokenise stage on a short recording; its folder."""
    run = Run.open(folder)
    record(game, run.stage_folder("record") / "store", steps=60, seed=1, settings={"image_size": size, "max_steps": 30})
    execute(STAGES / "tokenise.ipynb", parameters={"run": str(folder), "picture_steps": 2, "sound_steps": 2})
    return run.folder / "stages/tokenise"


def test_tokenise_takes_silent_games_and_odd_pictures(tmp_path: Path) -> None:
    folder = tokenise(tmp_path / "run", "minatar:breakout", (10, 36))
    tokenizers = Tokenizers.load(folder / "tokenizers")
    assert tokenizers.sizes == {"image": (5 * 4, 256)} and tokenizers.ears is None
    rows = len(Store.open(tmp_path / "run/stages/record/store"))
    assert TokenCache(folder / "tokens").check(tokenizers).table["image"].shape == (rows, 20)


def test_tokenise_says_at_once_which_pictures_it_cannot_cut(tmp_path: Path) -> None:
    with pytest.raises(CellStopped, match="a side of 61 pixels .* record pictures of another size, 64 for instance"):
        tokenise(tmp_path / "run", "bonk", (61, 64))
    assert not (tmp_path / "run/stages/tokenise/tokenizers").exists()
