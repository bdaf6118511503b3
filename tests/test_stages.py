"""Single stages on games that are not the usual one: silent, with pictures of odd sizes."""

import re
from pathlib import Path

import pytest

from metabonk.core.errors import UsageError
from metabonk.core.run import Run
from metabonk.pipeline.execute import CellStopped, execute
from metabonk.pipeline.runner import tiny_run
from metabonk.pipeline.stages import Pipeline, find_pipeline, read_notebook, stage_parameters
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


def test_a_perceptual_term_of_weight_0_is_none(tmp_path: Path) -> None:
    """Bit by bit, in what is learned; with a weight something else is learned."""
    learned = []
    for number, given in enumerate(({}, {"perceptual_weight": 0.0}, {})):
        run = Run.open(tmp_path / str(number))
        record("minatar:breakout", run.stage_folder("record") / "store", steps=40, seed=1, settings={"image_size": (16, 16)})
        chosen = {"perceptual": "efficientnet-lite0" if number else "", "sizes": {"patch": 8}, "steps": 2, **given}
        execute(STAGES / "encode.ipynb", parameters={"run": str(run.folder), **chosen})
        learned.append((run.folder / "stages/encode/tokenizer/tokenizer.safetensors").read_bytes())
    assert learned[0] == learned[1] != learned[2]


MAKES = re.compile(r'tiny_run\("(\w+)", "(\w+)", game=game, seed=seed\)')


def test_every_stage_opened_alone_makes_what_it_reads() -> None:
    """The run that it makes is planned: pipeline, stages, and all sizes are known, and it ends just before that stage."""
    made = set()
    for notebook in sorted(STAGES.glob("*.ipynb")):
        if "run" not in (known := stage_parameters(notebook)):
            continue
        source = "\n".join(cell["source"] for cell in read_notebook(notebook)["cells"])
        assert known["run"].default == ""
        if not (found := MAKES.search(source)):
            assert "mkdtemp()" in source, f"{notebook.stem} stops without a run"
            continue
        pipeline, stage = found.groups()
        stages = {one.name: one.notebook.stem for one in Pipeline.read(find_pipeline(pipeline)).stages}
        assert stages[stage] == notebook.stem
        given = {name: parameter.default for name, parameter in known.items() if name in ("game", "seed")}
        tiny_run(pipeline, stage, dry_run=True, **given)
        made.add(notebook.stem)
    assert {"dynamics", "imagine", "evaluate", "report", "dual_play", "judge"} <= made and len(made) == 18
    with pytest.raises(UsageError, match="imagine"):
        tiny_run("dreamer4", "imagin")


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_imagine_opens_alone() -> None:
    execute(STAGES / "imagine.ipynb", parameters={"steps": 2, "starts": 16, "horizon": 2, "episodes": 2})
