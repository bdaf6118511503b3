"""Pages of results: read from data, asserted, and red as soon as a number of theirs changes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "nbs/results").glob("[!.]*.ipynb"))
MEASURED = [page for page in PAGES if page.stem != "18_once"]
READS = re.compile(r'read_csv\("\.\./\.\./((?:experiments|benchmarks)/results/\w+\.csv)"')
KEYS = ["seed", "round", "offset", "beams", "depth", "minutes", "asked", "ahead"]  # no page claims anything of these numbers
INTERVAL = re.compile(r"-?\d[\d.]* \[-?[\d.]+, -?[\d.]+\]")


def cells(page: Path, kind: str) -> list[str]:
    """Sources of one kind of cell."""
    return [cell.source for cell in nbformat.read(page, 4).cells if cell.cell_type == kind]


def data(page: Path) -> list[str]:
    """The files that a page reads, below the checkout."""
    return READS.findall("\n".join(cells(page, "code")))


def run(page: Path, root: Path = ROOT, monkeypatch: Any = None) -> dict[str, Any]:
    """The names of a page whose code has run beside the data of a checkout."""
    folder = root / "nbs/results"
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        for source in cells(page, "code"):
            exec(compile(source, page.name, "exec"), names)
    return names


def copied(page: Path, folder: Path) -> Path:
    """A checkout with what one page reads, and nothing else."""
    for path in [*data(page), "experiments/results/playable.webm"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return folder


def test_every_file_of_results_is_read_by_a_page():
    read = {path for page in PAGES for path in data(page)}
    there = {path.relative_to(ROOT).as_posix() for name in ("experiments", "benchmarks")
             for path in (ROOT / name / "results").glob("*.csv")}  # fmt: skip
    assert len(there) > 15 and read == there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_asks_a_question_and_names_commands_that_are_there(page):
    text = "\n".join(cells(page, "markdown"))
    assert re.match(r"# [^\n]+\?\n\n> ", text), "the title is the question"
    named = re.findall(r"((?:experiments|benchmarks|games|pipelines)/[\w/]+\.(?:py|yaml|csv))", text)
    assert named or page.stem == "17_speed"
    if page.stem == "17_speed":
        named += pd.read_csv(ROOT / data(page)[0])["command"].str.split().str[1].tolist()
    assert [path for path in named if not (ROOT / path).exists()] == []
    shared = (ROOT / "experiments/common.py").read_text()
    for script, options in re.findall(r"`python (\S+\.py)([^`]*)`", text):
        known = re.sub(r"[-_]", "-", (ROOT / script).read_text() + shared)
        assert [option for option in re.findall(r"--([\w-]+)", options) if not re.search(rf"\b{option}\b", known)] == []


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: page.stem)
def test_intervals_in_the_prose_of_a_page_are_asserted(page):
    claims = [source for source in cells(page, "code") if source.startswith("#| hide") and "assert " in source]
    assert claims, "a page asserts what it says in a cell with `#| hide`"
    assert [said for said in INTERVAL.findall("\n".join(cells(page, "markdown"))) if said not in claims[-1]] == []
    assert any("vnd.plotly" in json.dumps(cell.outputs) for cell in nbformat.read(page, 4).cells if cell.cell_type == "code")


def test_a_page_without_a_file_says_so():
    (page,) = set(PAGES) - set(MEASURED)
    assert not data(page) and "There is no CSV behind this page" in cells(page, "markdown")[0]


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: page.stem)
def test_a_page_is_true_and_turns_red_with_each_of_its_files(page, tmp_path, monkeypatch):
    run(page, monkeypatch=monkeypatch)
    for number, path in enumerate(data(page)):
        root = copied(page, tmp_path / str(number))
        run(page, root, monkeypatch)
        table = pd.read_csv(root / path, dtype={"sizes": str}, keep_default_na=False, na_values=[""])
        told = table.select_dtypes("number").columns.difference(KEYS)
        table[told] = 1.2 * table[told]
        table.to_csv(root / path, index=False)
        with pytest.raises(AssertionError):
            run(page, root, monkeypatch)


@pytest.mark.parametrize("runs", range(1, 6))
def test_the_main_page_says_how_many_runs_there_are(runs, tmp_path, monkeypatch):
    page = ROOT / "nbs/results/01_dreams_alone.ipynb"
    root = copied(page, tmp_path)
    path = root / data(page)[0]
    row = pd.read_csv(path, dtype={"sizes": str}).iloc[[0]]
    pd.concat([row.assign(seed=seed, minutes=90.0 + seed) for seed in range(runs)]).to_csv(path, index=False)
    answer = run(page, root, monkeypatch)["answer"]
    assert ("One run has been made of 5" if runs == 1 else f"{runs} runs have been made of 5") in answer
    assert ("no interval" in answer) == (runs == 1)


def test_the_main_page_shows_the_rows_that_there_are(monkeypatch):
    page = ROOT / "nbs/results/01_dreams_alone.ipynb"
    outputs = json.dumps([cell.get("outputs") for cell in nbformat.read(page, 4).cells], ensure_ascii=False)
    answer = json.dumps(run(page, monkeypatch=monkeypatch)["answer"], ensure_ascii=False)[1:-1]
    assert answer in outputs, f"run: metabonk notebooks --execute {page.relative_to(ROOT)}"
