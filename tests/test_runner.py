"""Pipelines: what is checked before anything starts, and what runs again after a change"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_pipeline import Toy

from metabonk.core.errors import UsageError, unknown
from metabonk.core.run import Run
from metabonk.pipeline.stages import Pipeline, find_pipeline, notebooks, read_notebook, stage_parameters, tagged

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("runner")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("finished"))
    toy.diamond()
    assert toy.run().ran == ["a", "b", "c", "d"]
    return toy


@pytest.fixture
def toy(finished, tmp_path) -> Toy:
    "A finished run of four stages (b and c need a, d needs both), to be spoiled"
    shutil.copytree(finished.folder, tmp_path / "toy")
    return Toy(tmp_path / "toy")


@pytest.fixture
def unrun(tmp_path) -> Toy:
    toy = Toy(tmp_path)
    toy.diamond()
    return toy


def refused(toy: Toy, **options) -> str:
    "The message of a refusal, after which nothing has been made"
    with pytest.raises(UsageError) as error:
        toy.run(**options)
    assert not toy.run_folder.exists()
    assert error.value.exit_status == 2
    return str(error.value)


# ---- before anything starts


def test_unknown_pipeline_names_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/bonk.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert find_pipeline("bonk") == Path("pipelines/bonk.yaml")
    for name in ("pipelines/bonkk.yaml", "bonkk"):
        with pytest.raises(UsageError, match="did you mean pipelines/bonk.yaml"):
            find_pipeline(name)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"sise": "2"}, "unknown parameter 'sise': did you mean 'size'"),
        ({"c.widht": "2"}, "unknown parameter of stage c 'widht': did you mean 'width'"),
        ({"a.width": "2"}, "unknown parameter of stage a 'width'"),
        ({"bb.size": "2"}, "did you mean 'b'"),
        ({"c.width": "wide"}, "c.width must be int, not 'wide'"),
        ({"size": 1.5}, "a.size must be int, not 1.5"),
        ({"size": True}, "a.size must be int, not True"),
        ({"run": "elsewhere"}, "use --run"),
        ({"b.run": "elsewhere"}, "use --run"),
    ],
)
def test_bad_parameters(unrun, overrides, words):
    assert words in refused(unrun, overrides=overrides)


def test_given_checks_see_every_value(unrun):
    def check(value: int) -> None:
        if value > 2:
            raise unknown("size", str(value), ["1", "2"])

    assert "unknown size '3'" in refused(unrun, overrides={"d.size": "3"}, checks={"size": check})


@pytest.mark.parametrize(
    "text, words",
    [
        ("stages: [a, bb]", "did you mean 'b'"),
        ("stages: [{notebook: a, neds: []}]", "unknown key of stage a"),
        ("stages: [a]\nparamters: {}", "did you mean 'parameters'"),
        ("stages: [b, {notebook: c, needs: [a]}]", "it must come before"),
        ("stages: [a, a]", "two stages named a"),
        ("stages: []", "has no stages"),
        ("stages: [{name: x}]", "names no notebook"),
        ("stages: [{notebook: a, name: ../x}]", "stage name"),
        ("stages: [a]\nparameters: {sise: 1}", "unknown parameter 'sise'"),
        ("stages: [{notebook: a, parameters: {size: big}}]", "a.size must be int"),
        ("stages: [{notebook: a, timeout: long}]", "timeout of stage a"),
        ("stages: [a\nx", "line 2"),
        ("just words", "must be a mapping"),
    ],
)
def test_bad_pipeline_files(unrun, text, words):
    unrun.pipeline(text)
    assert words in refused(unrun)


@pytest.mark.parametrize(
    "source, words",
    [
        ("size: int = 1\nhalf = size / 2", "derives a value"),
        ("import os", "only lines like"),
        ("size: integer = 1", "unknown type"),
        ("size: int = 'one'", "must be int"),
        ("size: int =", "not Python"),
    ],
)
def test_bad_parameters_cells(unrun, source, words):
    unrun.notebook("a", source)
    assert words in refused(unrun)


def test_a_stage_has_exactly_one_parameters_cell(unrun):
    path = unrun.stages / "a.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    assert "has 0 cells tagged `parameters`" in refused(unrun)


def test_a_damaged_notebook_is_told(unrun):
    (unrun.stages / "b.ipynb").write_text("{")
    assert "b.ipynb is not a notebook" in refused(unrun)


def test_the_nearer_value_wins(unrun):
    unrun.pipeline("parameters: {size: 2}\nstages: [a, b, {notebook: c, parameters: {size: 3}}]")
    pipeline = Pipeline.read(unrun.file)
    sizes = lambda **given: [values["size"] for values in pipeline.values(given).values()]  # noqa: E731
    assert sizes() == [2, 2, 3]
    assert sizes(size="4") == [4, 4, 4]
    assert sizes(**{"size": "4", "b.size": "5"}) == [4, 5, 4]


def test_a_dry_run_writes_nothing(unrun):
    side = ["new", "a runs"]
    assert unrun.plan() == {"a": ["new"], "b": side, "c": side, "d": ["new", "b runs", "c runs"]}
    assert not unrun.run_folder.exists()


# ---- after a change


def test_a_finished_run_executes_nothing(toy):
    before = (toy.run_folder / "manifest.json").stat().st_mtime_ns
    assert toy.plan() == {} and toy.run().ran == []
    assert (toy.run_folder / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "overrides, stages",
    [
        ({"a.size": 2}, "abcd"),
        ({"b.size": 2}, "bd"),
        ({"c.width": 2}, "cd"),
        ({"d.size": 2}, "d"),
        ({"width": 1}, ""),
        ({"size": "2"}, "abcd"),
    ],
)
def test_a_changed_parameter_reruns_its_stage_and_what_needs_it(toy, overrides, stages):
    assert "".join(toy.plan(**overrides)) == stages


def test_what_the_plan_says_is_what_runs(toy):
    untouched = [(toy.run_folder / "notebooks" / f"{name}.ipynb").stat().st_mtime_ns for name in "ac"]
    assert toy.plan(**{"b.size": 2})["b"] == ["parameter size changed: 1 to 2"]
    assert toy.run({"b.size": 2}).ran == ["b", "d"]
    assert [(toy.run_folder / "notebooks" / f"{name}.ipynb").stat().st_mtime_ns for name in "ac"] == untouched
    assert (toy.run_folder / "stages/d/out.txt").read_text() == "1" + "21" + "11"
    assert toy.plan(**{"b.size": 2}) == {}
    aside = {path.name for path in toy.run_folder.glob("old/*-b/*")} - {"b.log"}  # there if the kernel said something
    assert aside == {"artefacts", "b.ipynb"}
    assert [path.read_text() for path in toy.run_folder.glob("old/*-b/artefacts/out.txt")] == ["11"]


def test_code_counts_and_prose_does_not(toy):
    path = toy.stages / "b.ipynb"
    path.write_text(path.read_text().replace("# B", "# Another title"))
    assert toy.plan() == {}
    path.write_text(path.read_text().replace("from metabonk", "import os\\nfrom metabonk"))
    assert toy.plan() == {"b": ["code changed"], "d": ["b runs"]}


def test_a_changed_package_reruns_everything(toy):
    (toy.package / "__pycache__").mkdir()
    (toy.package / "__pycache__/model.pyc").touch()
    assert toy.plan() == {}
    (toy.package / "weights.txt").write_text("data of the package")
    assert list(toy.plan()) == list("abcd")


def test_harmed_artefacts_are_found(toy):
    out = toy.run_folder / "stages/b/out.txt"
    os.utime(out, ns=(1, 1))
    assert toy.plan() == {}, "a new time is no new content"
    out.write_text("99")
    assert toy.plan() == {"b": ["artefact changed: out.txt"], "d": ["input changed: b", "b runs"]}
    out.unlink()
    assert toy.plan()["b"] == ["artefact gone: out.txt"]


def test_a_new_time_is_read_once_only(toy):
    out = toy.run_folder / "stages/b/out.txt"
    os.utime(out, ns=(1, 1))
    toy.run()
    assert toy.manifest()["stages"]["b"]["outputs"]["out.txt"]["mtime"] == 1


def test_an_added_file_is_an_input_of_what_follows(toy):
    added = toy.run_folder / "stages/b/more.txt"
    added.write_text("more")
    assert toy.plan() == {"d": ["input changed: b"]}
    added.unlink()
    assert toy.plan() == {}


NAMES = {  # how a parameter can name the file `mine.txt` in the folder `near`
    "a path": ("str", "'{near}/mine.txt'"),
    "a game": ("str", "'gameboy:{near}/mine.txt'"),
    "a home": ("str", "'~/mine.txt'"),
    "a setting": ("dict", "{{'machine': {{'state': '{near}/mine.txt'}}, 'noops': 3}}"),
    "a list": ("list", "[1, '{near}/mine.txt']"),
    "a folder": ("str", "'{near}'"),
}


@pytest.mark.parametrize("how", NAMES)
def test_a_changed_file_behind_a_parameter_is_noticed(tmp_path, monkeypatch, how):
    toy, near = Toy(tmp_path), tmp_path / "near"
    near.mkdir()
    monkeypatch.setenv("HOME", str(near))
    kind, value = NAMES[how]
    named = value.format(near=near)
    toy.writer("a", parameters=f"size: {kind} = {named}  # of the file")
    toy.writer("b", "a", parameters="size: str = 'a: b'  # no file")
    toy.pipeline("stages: [a, b]")
    opened, file = Run.open(toy.run_folder), near / "mine.txt"
    file.write_text("coin: +1")
    stages, values = toy.steps(), Pipeline.read(toy.file).values()["a"]
    text = next(iter(stages[0].conditions["files"]))
    assert stages[1].conditions["files"] == {} and text in str(values)
    opened.write({**opened.read(), "stages": {step.stage.name: {"status": "done", **step.conditions} for step in stages}})
    file.write_text("coin: -5")  # as long as before
    assert toy.plan()["a"][:1] == [f"{text} changed"]
    shutil.rmtree(near)
    assert toy.plan()["a"][:1] == [f"{text} is gone"]


def test_a_changed_profile_records_again(tmp_path):
    toy, profile = Toy(tmp_path), tmp_path / "mine.yaml"
    toy.writer("a", parameters="size: dict = {}  # of the file")
    toy.pipeline("stages: [a]")
    profile.write_text("terms: {coin: +1}")
    given = {"size": f"{{profile: {profile}}}"}
    toy.run(given)
    assert toy.plan(**given) == {}
    profile.write_text("terms: {coin: -5}")
    assert toy.plan(**given) == {"a": [f"{profile} changed"]}
    assert toy.run(given).ran == ["a"] and toy.plan(**given) == {}


def test_the_folder_that_the_run_lies_in_is_no_input(tmp_path):
    toy = Toy(tmp_path)
    toy.writer("a", parameters=f"size: list = ['.', '{tmp_path}', '/', '']  # places")
    toy.pipeline("stages: [a]")
    Run.open(toy.run_folder)
    assert toy.steps()[0].conditions["files"] == {}


def test_a_changed_executed_notebook_is_noticed(toy):
    path = toy.run_folder / "notebooks/d.ipynb"
    content = json.loads(path.read_text())
    content["cells"].append({"cell_type": "code", "source": "import os", "metadata": {}, "outputs": [], "execution_count": None})
    path.write_text(json.dumps(content))
    assert toy.plan() == {"d": ["executed notebook changed"]}


@pytest.mark.parametrize("harm, reason", [("{", "executed notebook damaged"), (None, "executed notebook gone")])
def test_the_executed_notebook_is_the_evidence(toy, harm, reason):
    path = toy.run_folder / "notebooks/d.ipynb"
    path.write_text(harm) if harm else path.unlink()
    assert toy.plan() == {"d": [reason]}


def test_stages_run_again_on_request(toy):
    planned = toy.run(dry_run=True, again=["c"]).steps
    assert [step.stage.name for step in planned if step.reasons] == ["c", "d"]
    with pytest.raises(UsageError, match="unknown stage"):
        toy.run(again=["x"])


def test_a_moved_run_is_still_done(toy):
    toy.run_folder.rename(toy.folder / "moved")
    toy.run_folder = toy.folder / "moved"
    assert toy.plan() == {}


def test_the_manifest_explains_the_run(toy):
    manifest = toy.manifest()
    assert manifest["status"] == "done" and manifest["order"] == list("abcd")
    assert {"python", "platform", "metabonk", "libraries"} <= set(manifest["environment"])
    record = manifest["stages"]["d"]
    assert record["parameters"] == {"size": 1} and set(record["inputs"]) == {"b", "c"}
    assert record["seconds"] > 0 and "kernel" not in record and record["outputs"]["out.txt"]["size"] == 5


# ---- what a stage may count on


def test_a_stage_that_resumes_finds_its_folder(tmp_path):
    toy = Toy(tmp_path)
    code = """from metabonk.core.run import Run
folder = Run.open(run).stage_folder("grow")
count = len(list(folder.iterdir()))
(folder / f"{count}.txt").touch()
assert count == target, "not there yet"
"""
    toy.notebook("grow", "target: int = 1  # files wanted before", code)
    found = {}
    for resume in ("true", "false"):
        toy.run_folder = tmp_path / resume
        toy.pipeline(f"stages: [{{notebook: grow, resume: {resume}}}]")
        with pytest.raises(Exception, match="not there yet"):
            toy.run()
        if resume == "true":
            assert "goes on in its folder" in str(toy.run(dry_run=True))
            toy.run()
        else:
            toy.run({"target": 0})
        found[resume] = sorted(p.name for p in Run(toy.run_folder).input_folder("grow").iterdir())
        assert toy.manifest()["stages"]["grow"]["status"] == "done"
    assert found == {"true": ["0.txt", "1.txt"], "false": ["0.txt"]}
    assert [path.name for path in tmp_path.glob("false/old/*/artefacts/*")] == ["0.txt"]


# ---- the project's own


def test_importing_the_runner_is_light():
    code = "import sys, metabonk.pipeline.runner; print({'torch', 'papermill', 'nbformat'} & set(sys.modules))"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("path", notebooks(ROOT), ids=lambda path: path.stem)
def test_notebooks_name_the_kernel_python3(path):
    assert read_notebook(path)["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", sorted(ROOT.glob("nbs/stages/*.ipynb")), ids=lambda path: path.stem)
def test_stage_notebooks_declare_their_parameters(path):
    cells = read_notebook(path)["cells"]
    assert sum(tagged(cell, "parameters") for cell in cells) == 1
    undocumented = [name for name, parameter in stage_parameters(path).items() if not parameter.help]
    assert not undocumented


@pytest.mark.parametrize("path", sorted(ROOT.glob("pipelines/*.yaml")), ids=lambda path: path.stem)
def test_pipelines_are_sound(path):
    pipeline = Pipeline.read(path)
    values = pipeline.values()
    assert pipeline.run_folder(values).parts[0] == "runs"
