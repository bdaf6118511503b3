"""What no single notebook can see: that notebooks, package, settings and documents agree."""

import ast
import configparser
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

import metabonk
from metabonk.pipeline.authoring import out_of_step
from metabonk.pipeline.execute import CellStopped, execute

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
LITERATE = [p for p in NOTEBOOKS if p.parent.name != "stages"]
STAGES = [p for p in NOTEBOOKS if p.parent.name == "stages"]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(metabonk.__path__, "metabonk.") if not module.name.endswith("_modidx")
)


def label(path: Path) -> str:
    """A short name for test ids."""
    return str(path.relative_to(ROOT / "nbs").with_suffix(""))


def test_threads_are_chosen_by_whoever_starts_a_process_in_one_place():
    sources = {path.relative_to(ROOT): path.read_text() for path in [*(ROOT / "metabonk").rglob("*.py"), *STAGES]}
    calls = [str(path) for path, source in sources.items() if re.search(r"set_num(_interop)?_threads\(", source)]
    assert calls == ["metabonk/core/device.py"]


def test_package_equals_notebooks_and_notebooks_are_clean():
    assert out_of_step(ROOT) == [], "run: metabonk notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_notebook_names_the_common_kernel_and_keeps_no_foreign_metadata(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert {key for cell in notebook["cells"] for key in cell["metadata"]} <= {"tags"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_notebook_opens_with_title_and_subtitle(path):
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S.*\n\n> \S", first.source), "a notebook opens with '# Title' and '> subtitle'"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_stored_outputs_hold_no_errors_and_no_paths_of_a_computer(path):
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.source
            text = json.dumps(output.get("text", "")) + json.dumps(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"/(home|root|tmp|work)/", text), text[:300]


@pytest.mark.whole
@pytest.mark.parametrize("path", LITERATE, ids=label)
def test_literate_notebook_runs(path, tmp_path):
    try:
        execute(shutil.copy(path, tmp_path), folder=path.parent, timeout=300.0)
    except CellStopped as error:
        if "Ray did not start" not in str(error):
            raise
        pytest.skip("Ray did not start in time on this computer")


@pytest.mark.parametrize("path", STAGES, ids=label)
def test_stage_has_one_parameters_cell_of_plain_assignments_and_exports_nothing(path):
    cells = nbformat.read(path, 4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.AnnAssign), "written as: name: type = value  # comment"
        ast.literal_eval(statement.value)
    for line in tagged[0].source.splitlines():
        assert "#" in line, f"a parameter without its comment: {line}"
    assert not any(re.search(r"^#\|\s*(default_exp|exports?)", cell.source, re.M) for cell in cells)


@pytest.mark.parametrize("path", LITERATE, ids=label)
def test_only_stages_have_parameters(path):
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in nbformat.read(path, 4).cells)


def test_arrows_between_chapters():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_arrows_are_really_watched(tmp_path):
    "Negative control: an arrow that points the wrong way is found."
    for name in ("pyproject.toml", "settings.ini", "metabonk"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for module, wrong in (
        ("core/errors", "play.game"), ("nn/layers", "dream.interface"), ("act/returns", "dream.rssm"),
    ):  # fmt: skip
        with open(tmp_path / f"metabonk/{module}.py", "a") as file:
            file.write(f"\nimport metabonk.{wrong}\n")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode != 0
    for arrow in ("core imports nothing of ours", "nn imports core", "act imports core"):
        assert re.search(rf"{arrow}.* BROKEN", done.stdout), done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_public_symbols_are_documented_and_annotated(name):
    module = importlib.import_module(name)
    if module.__spec__ and module.__spec__.submodule_search_locations is not None:
        return
    assert module.__doc__, f"{name} has no docstring: its notebook needs a subtitle"
    for symbol in getattr(module, "__all__", []):
        thing = getattr(module, symbol)
        if symbol.startswith("_") or not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        assert thing.__doc__, f"{name}.{symbol} has no docstring"
        functions = [thing] if inspect.isfunction(thing) else [
            member for key, member in vars(thing).items() if inspect.isfunction(member) and not key.startswith("_")
        ]
        for function in functions:
            if function.__module__ != name:
                continue
            signature = inspect.signature(function)
            for parameter in signature.parameters.values():
                if parameter.name in ("self", "cls"):
                    continue
                annotated = parameter.annotation is not inspect.Parameter.empty
                assert annotated, f"{name}.{function.__qualname__}: {parameter.name} has no annotation"
            returns = signature.return_annotation is not inspect.Signature.empty
            assert returns, f"{name}.{function.__qualname__} does not say what it returns"


def settings() -> dict[str, str]:
    """The facts of settings.ini."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    return dict(parser["DEFAULT"])


def requirement_name(requirement: str) -> str:
    """`torch>=2.6` -> `torch`."""
    return re.split(r"[<>=\[;]", requirement)[0].lower().replace("_", "-")


def test_every_requirement_has_an_exact_version():
    pinned = {requirement_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    facts = settings()
    asked = {requirement_name(r) for key in facts if key.endswith("requirements") for r in facts[key].split()}
    assert asked <= pinned, f"not in constraints.txt: {sorted(asked - pinned)}"


# How a requirement is used where its name is not what one imports.
IMPORT_NAMES = {
    "vector-quantize-pytorch": "vector_quantize_pytorch", "ale-py": "ale_py", "pyyaml": "yaml", "pypandoc-binary": "pypandoc",
    "scikit-image": "skimage", "tensorboard": "torch.utils.tensorboard", "jupyterlab": None, "fastcore": None, "execnb": None,
    "ghapi": None,
}  # fmt: skip


def test_every_requirement_is_really_used():
    code = "\n".join(p.read_text() for p in [*(ROOT / "metabonk").rglob("*.py"), *STAGES] if p.name != "_modidx.py")
    for requirement in settings()["requirements"].split():
        name = requirement_name(requirement)
        module = IMPORT_NAMES.get(name, name)
        if module is None:  # a program that users start, or a companion whose version has to be held
            continue
        assert re.search(rf"\b(import|from) {module}\b|-m\W+{module}\b", code), f"{name} is required and not used"


def test_pyproject_holds_tool_settings_only():
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())) == {"build-system", "tool"}


def test_version_is_told_once():
    assert metabonk.__version__ == settings()["version"]
    assert f"## {metabonk.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_quarto_reads_the_same_configuration():
    assert (ROOT / "nbs/_quarto.yml").resolve() == ROOT / "_quarto.yml"


@pytest.mark.xdist_group("project")
def test_groups_of_tests_stay_together(request):
    """Where workers share the tests, a group's name is in the node's: without it each worker builds the site and the rest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@project"), "this pytest-xdist does not group tests under this pytest"


def test_ci_calls_the_command_of_the_readme():
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) == 2
    assert all("activate" not in command and "sudo" not in command for command in commands)
    assert "grep -m1 -E '^python3 -m venv .*pytest' README.md" in (ROOT / ".ci/run").read_text()


def test_help_does_not_import_what_is_slow():
    code = "import sys, metabonk.cli as c; c.parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lightning", "pandas", "numpy", "gymnasium", "papermill"} & set(loaded)
