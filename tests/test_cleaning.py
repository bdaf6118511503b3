"""What is thrown away of a run, what never is, and that the run is as done as before."""

import json
import shutil
from pathlib import Path

import pytest
from toy_pipeline import OPEN, Toy

from metabonk.cli import main
from metabonk.core.run import Run
from metabonk.pipeline import cleaning
from metabonk.pipeline.cleaning import ALONE, remove, spare

STAGES = Path(__file__).parents[1] / "nbs/stages"
TRAIN = OPEN + """
folder = run.stage_folder('a')
for name in ('training/checkpoints/last.ckpt', 'training/logs/events', 'model/weights', 'model/checkpoints/last.ckpt',
             'store/old/x.arrow', 'agent/cache.json', 'tokens/cache.json'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name * 100)
"""

pytestmark = pytest.mark.xdist_group("cleaning")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Toy:
    "A run of a stage that trained, one that only looked, and one that reads from both"
    toy = Toy(tmp_path_factory.mktemp("made"))
    toy.notebook("a", "size: int = 1  # how much", TRAIN)
    toy.notebook("look", "", OPEN + "f = run.stage_folder('look') / 'cache'\nf.mkdir()\n(f / 'cache.json').write_text('{}')")
    toy.notebook("b", "", OPEN + "(run.stage_folder('b') / 'out.txt').write_text('b')")
    toy.pipeline("stages: [a, look, {notebook: b, needs: [a, look]}]")
    toy.run()
    return toy


@pytest.fixture
def toy(made, tmp_path) -> Toy:
    "A copy of it"
    shutil.copytree(made.folder, tmp_path / "copy")
    return Toy(tmp_path / "copy")


def names(run: Run) -> set[str]:
    return {item.path.relative_to(run.folder).as_posix() for item in spare(run)}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != ".metabonk.lock"}


def test_what_goes_what_stays_and_the_run_is_as_done_as_before(toy):
    run = Run.open(toy.run_folder)
    assert names(run) == {"stages/a/training/checkpoints", "stages/look/cache"}
    before = files(toy.run_folder)
    gone = {"stages/a/training/checkpoints/last.ckpt", "stages/look/cache/cache.json"}
    assert {item.path.name for item in remove(run)} == {"checkpoints", "cache"}
    after = files(toy.run_folder)
    assert before.keys() - after.keys() == gone and not after.keys() - before.keys()
    assert {path for path in after if after[path] != before[path]} == {"manifest.json"}
    assert toy.plan() == {} and spare(run) == []
    assert toy.plan(size=2).keys() == {"a", "look", "b"}  # a control: the plan still sees changes


def test_without_the_manifest_s_correction_the_stages_would_run_again(toy, monkeypatch):
    "Negative control."
    monkeypatch.setattr(cleaning, "_forget", lambda run, before: None)
    remove(Run.open(toy.run_folder))
    assert toy.plan().keys() == {"a", "look", "b"}


def test_what_was_set_aside_goes(toy):
    toy.run(again=["look"])
    assert any(name.startswith("old/") for name in names(Run.open(toy.run_folder)))
    remove(Run.open(toy.run_folder))
    assert not (toy.run_folder / "old").exists() and toy.plan() == {}


def test_a_stage_that_is_not_done_keeps_what_it_goes_on_from(toy):
    manifest = toy.manifest()
    manifest["stages"]["a"]["status"] = "interrupted"
    (toy.run_folder / "manifest.json").write_text(json.dumps(manifest))
    assert names(Run.open(toy.run_folder)) == {"stages/look/cache"}


def test_what_lies_behind_a_link_is_not_touched(toy, tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(toy.run_folder / "stages/a/training", outside)
    (toy.run_folder / "stages/a/elsewhere").symlink_to(outside)
    (toy.run_folder / "stages/linked").symlink_to(outside)
    (toy.run_folder / "old").mkdir()
    (toy.run_folder / "old/link").symlink_to(outside)
    remove(Run.open(toy.run_folder))
    assert (outside / "checkpoints/last.ckpt").exists() and not (toy.run_folder / "old").exists()


def test_leftovers_of_a_dead_process_go_wherever_they_are(toy):
    part = toy.run_folder / "stages/b/.metabonk-0123456789abcdef.part"
    part.write_text("half")
    other = toy.run_folder / "stages/b/.metabonk-of-mine.part"
    other.write_text("mine")
    remove(Run.open(toy.run_folder))
    assert not part.exists() and other.exists()


def test_the_command_lists_first_and_leaves_a_run_in_use_alone(toy, capsys):
    before = files(toy.run_folder)
    assert main(["clean", str(toy.run_folder)]) == 0
    assert "checkpoints of a training that is done" in capsys.readouterr().out and files(toy.run_folder) == before
    with Run.open(toy.run_folder).lock():
        assert main(["clean", str(toy.run_folder), "--yes"]) != 0
        assert "being written by another process" in capsys.readouterr().err and files(toy.run_folder) == before
    assert main(["clean", str(toy.run_folder), "--yes"]) == 0
    assert "thrown away" in capsys.readouterr().out and spare(Run.open(toy.run_folder)) == []
    assert main(["clean", str(toy.run_folder / "nothing")]) != 0
    assert "there is no run" in capsys.readouterr().err


def test_without_a_name_all_runs_of_the_folder_are_listed(toy, capsys, monkeypatch):
    (toy.folder / "runs").mkdir()
    shutil.copytree(toy.run_folder, toy.folder / "runs/one")
    monkeypatch.chdir(toy.folder)
    assert main(["clean"]) == 0 and "runs/one/stages/look/cache" in capsys.readouterr().out
    assert main(["clean", "one", "--yes"]) == 0 and not (toy.folder / "runs/one/stages/look/cache").exists()


@pytest.mark.parametrize("stage", sorted(ALONE))
def test_no_other_stage_reads_the_caches_that_go(stage):
    "A stage that opened one of them would fail after cleaning."
    assert (STAGES / f"{stage}.ipynb").exists()
    for path in STAGES.glob("*.ipynb"):
        code = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        for line in "\n".join(code).splitlines():
            if f'input_folder("{stage}")' in line:
                assert "cache" not in line and "tokens" not in line, f"{path.name}: {line}"
