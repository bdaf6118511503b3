"""Every place that reads what a person or a file gave stands in a table of the book, with the test that feeds it odd things"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "nbs/core/12_readers.ipynb"

# Calls that read text or files. A name alone means that function, a name with a dot in front a method of anything.
READS = re.compile(
    r"open|.*\.read_text|.*\.read_bytes|(os\.)?fdopen|.*ConfigParser\(.*|.*\bfacts\.read"
    r"|json\.loads?|parse_json|yaml\.(safe_|full_|unsafe_)?load(_all)?|parse_yaml|read_yaml|read_text|read_sections"
    r"|torch\.load|.*load_file|safetensors\.torch\.load|.*safe_open|np\.(load|memmap|fromfile|loadtxt|genfromtxt)|.*open_memmap"
    r"|pa\.(OSFile|memory_map|ipc\.\w*open\w*|ipc\.read\w*)|pq\.read\w*|pd\.read_\w+|csv\.\w*[rR]eader"
    r"|av\.open|(sf|soundfile)\.(read|info|blocks|SoundFile)|wave\.open|Image\.open|zipfile\.ZipFile|tarfile\.open|gzip\.\w+"
    r"|nbformat\.reads?|open_notebook|read_notebook|.*(ArgumentParser|_Parser)|input|sys\.stdin\.\w+"
    r"|.*load_dataset|.*load_from_disk|minari\.load_dataset"
)
# Calls that could run what they are given.
RUNS = re.compile(
    r"eval|exec|compile|__import__|(importlib\.)?import_module|importlib\.util\.\w*spec\w*|(pickle|dill|joblib|marshal|shelve)\.\w*|"
    r"cloudpickle\.\w+|runpy\.\w+|torch\.load|np\.load|yaml\.\w*load\w*|.*entry_points|torch\.(jit|hub|package)\.\w+|"
    r"os\.(system|popen|exec\w*|spawn\w*)|subprocess\.\w+|.*recv"
)


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of a module: in which function, of what, and the call."""

    def walk(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield ".".join(inside), ast.unparse(child.func), child
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            yield from walk(child, (*inside, child.name) if named else inside)

    module = ".".join(path.relative_to(ROOT / "metabonk").with_suffix("").parts)
    for inside, what, call in walk(ast.parse(path.read_text()), ()):
        yield f"{module}.{inside}" if inside else module, what, call


def modules() -> list[Path]:
    """The package's modules."""
    return [
        path for path in sorted((ROOT / "metabonk").rglob("*.py")) if path.name not in ("_modidx.py", "__init__.py")
    ]


def writes(what: str, call: ast.Call) -> bool:
    """Does this call open a file for writing, or only copy plain values through JSON?"""
    given = [*call.args, *(word.value for word in call.keywords if word.arg in ("mode", "options"))]
    texts = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    through = (
        what == "json.loads" and isinstance(call.args[0], ast.Call) and ast.unparse(call.args[0].func) == "json.dumps"
    )
    return through or any(re.fullmatch("[rbt+]*[wax][rbt+]*", text) for text in texts)


def readers() -> set[str]:
    """Every function that reads, by module and name."""
    return {
        where
        for path in modules()
        for where, what, call in calls(path)
        if READS.fullmatch(what) and not writes(what, call)
    }


def lines() -> list[str]:
    """The lines of the page."""
    cells = [
        "".join(cell["source"]) for cell in json.loads(PAGE.read_text())["cells"] if cell["cell_type"] == "markdown"
    ]
    return [line for cell in cells for line in cell.splitlines()]


def table() -> dict[str, list[str]]:
    """The tables of the book: reader -> its tests."""
    found: dict[str, list[str]] = {}
    for row in [line.strip("|").split("|") for line in lines() if line.startswith("| `")]:
        for name in re.findall(r"`([^`]+)`", row[0]):
            assert name not in found, f"{name} stands twice in {PAGE}"
            found[name] = re.findall(r"`([^`]+)`", row[-1])
    return found


def own() -> list[str]:
    """Readers of the package's own files, which need no test."""
    return [line.split("`")[1] for line in lines() if line.startswith("- `")]


def test_every_reader_stands_in_the_table() -> None:
    assert readers() - set(table()) - set(own()) == set(), (
        f"add them to {PAGE}, each with a test that feeds it odd things"
    )


def test_the_table_names_no_reader_that_is_gone() -> None:
    assert {*table(), *own()} - readers() == set() and not set(table()) & set(own())


@pytest.mark.parametrize(
    "name", sorted({test for tests in table().values() for test in tests}) if PAGE.exists() else []
)
def test_each_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^def {re.escape(function)}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)


def test_every_reader_has_a_test() -> None:
    assert [name for name, tests in table().items() if not tests] == []


# What could run what it is given, and why it does not.
KNOWN = {
    "core.places.usable_cache importlib.util.find_spec": "a constant name",
    "core.text.parse_yaml yaml.load": "with our loader, which makes plain values only",
    "core.checkpoints.load_checkpoint torch.load": "with weights_only",
    "dream.codes.CodeCache.__init__ np.load": "without allow_pickle",
    "measure.live.load_model importlib.import_module": "a module of our own table",
    "measure.evaluation._together pickle.dumps": "written, not read",
    "measure.perceptual.read_weights torch.load": "with weights_only",
    "pipeline.authoring._git subprocess.run": "a list of words",
    "pipeline.authoring.run_nbdev subprocess.run": "a list of words, in the checkout",
    "pipeline.doctor._programs subprocess.run": "a list of words",
    "pipeline.kernels.ForkedKernel.__init__ answers.recv": "bytes, read as a number",
    "pipeline.kernels.ForkedKernel.wait self._answers.recv": "bytes, read as a number",
    "pipeline.kernels.KernelServer.__init__ subprocess.Popen": "a list of words",
    "pipeline.kernels.serve importlib.import_module": "names from the process that started us",
    "pipeline.render importlib.util.find_spec": "a constant name",
    "pipeline.render.pandoc_html subprocess.run": "a list of words",
    "pipeline.render.plotly_script importlib.util.find_spec": "a constant name",
    "pipeline.site.build_with_quarto subprocess.run": "a list of words",
    "pipeline.stages.check_kernel importlib.util.find_spec": "a constant name",
    "play.anygym.allow_import importlib.import_module": "what a user asks for by name",
    "play.game._machine_class importlib.import_module": "a module of our own table",
    "play.game._machine_class importlib.util.find_spec": "a library of our own table",
    "play.game.games importlib.util.find_spec": "a library of our own table",
    "play.policies.PlayerPolicy.__init__ importlib.import_module": "a module of our own table",
    "play.expressions.Translator.function exec": "built from checked names and syntax trees",
    "play.expressions.compile_probes exec": "built from checked names and numbers",
    "play.retro.library importlib.import_module": "a constant name",
    "play.vector.Worker.__init__ subprocess.Popen": "a list of words",
    "play.vector.Worker.answer self.pipe.recv": "from a process that we started",
    "play.vector.serve pipe.recv": "from the process that started us",
    "record.stopping.Stop._hear self._ear.recv": "from the process that started us",
    "record.recorder._in_processes.listen pipe.recv": "from a process that we started",
    "record.recorder._serve_share.hear pipe.recv": "from the process that started us",
}


def test_nothing_else_could_run_what_it_is_given() -> None:
    found = {f"{where} {what}" for path in modules() for where, what, _ in calls(path) if RUNS.fullmatch(what)}
    assert found == set(KNOWN)


def test_what_opens_pickles_is_told_not_to() -> None:
    for path in modules():
        for where, what, call in calls(path):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if what == "torch.load":
                assert given["weights_only"] == "True", where
            assert given.get("allow_pickle", "False") == "False" and given.get("shell", "False") == "False", where


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(p):\n    return open(p).read()", True), ("def f(p):\n    return open(p, 'wb')", False),
        ("def f(p):\n    return p.read_text()", True), ("def f(p):\n    return np.load(p)", True),
        ("def f(p):\n    return json.loads(json.dumps(p))", False), ("def f(p):\n    return av.open(p)", True),
        ("def f(p):\n    return json.loads(p)", True), ("class A:\n    def f(p):\n        return load_file(p)", True),
        ("def f(p):\n    return Path(p).read_bytes()", True), ("def f(p):\n    return pa.ipc.open_file(p)", True),
    ],
)  # fmt: skip
def test_the_search_finds_what_reads(source: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metabonk").mkdir()
    (tmp_path / "metabonk/a.py").write_text(source)
    monkeypatch.setattr("test_readers.ROOT", tmp_path)
    assert bool(readers()) == found


if __name__ == "__main__":
    for name in sorted(readers()):
        print(name)
