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
    r"|av\.open|sf\.\w+|soundfile\.\w+|wave\.open|Image\.open|zipfile\.ZipFile|tarfile\.open|gzip\.\w+"
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
    yield from ((f"{module}.{inside}" if inside else module, what, call) for inside, what, call in walk(ast.parse(path.read_text()), ()))


def modules() -> list[Path]:
    """The package's modules."""
    return [path for path in sorted((ROOT / "metabonk").rglob("*.py")) if path.name not in ("_modidx.py", "__init__.py")]


def writes(what: str, call: ast.Call) -> bool:
    """Does this call open a file for writing, or only copy plain values through JSON?"""
    given = [*call.args, *(word.value for word in call.keywords if word.arg in ("mode", "options"))]
    mode = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str) and re.fullmatch(r"[rwaxb+t]{1,3}", a.value)]
    through = what == "json.loads" and isinstance(call.args[0], ast.Call) and ast.unparse(call.args[0].func) == "json.dumps"
    return through or any(set(m) & set("wax") for m in mode)


def readers() -> set[str]:
    """Every function that reads, by module and name."""
    return {
        where
        for path in modules()
        for where, what, call in calls(path)
        if READS.fullmatch(what) and not writes(what, call)
    }


def table() -> dict[str, list[str]]:
    """The table of the book: reader -> its tests."""
    cells = ["".join(cell["source"]) for cell in json.loads(PAGE.read_text())["cells"] if cell["cell_type"] == "markdown"]
    lines = [line for cell in cells for line in cell.splitlines() if line.startswith("| `")]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    found: dict[str, list[str]] = {}
    for names, *_, tests in rows:
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in found, f"{name} stands twice in {PAGE}"
            found[name] = re.findall(r"`([^`]+)`", tests)
    return found


def test_every_reader_stands_in_the_table() -> None:
    assert readers() - set(table()) == set(), f"add them to {PAGE}, each with a test that feeds it odd things"


def test_the_table_names_no_reader_that_is_gone() -> None:
    assert set(table()) - readers() == set()


@pytest.mark.parametrize("name", sorted({test for tests in table().values() for test in tests}) if PAGE.exists() else [])
def test_each_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^def {re.escape(function)}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)


def test_every_reader_has_a_test() -> None:
    assert [name for name, tests in table().items() if not tests] == []


if __name__ == "__main__":
    for name in sorted(readers()):
        print(name)
