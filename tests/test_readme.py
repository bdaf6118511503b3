"""The README is the first page of the site, and its commands and links are good."""

import re

import nbformat
import pytest

from metabonk.core.errors import FolderError
from metabonk.pipeline.readme import cell_text, github_callouts, readme_text, repository_links

COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e . "
    "&& .venv/bin/metabonk run pipelines/metabonk.yaml",
    "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]' && .venv/bin/python -m pytest",
]


def test_readme_equals_index(root):
    assert (root / "README.md").read_text() == readme_text(root), "run: metabonk notebooks"


def test_readme_changes_with_the_index(root, tmp_path):
    "Negative control: another index gives another README."
    notebook = nbformat.read(root / "nbs/index.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("One more line."))
    (tmp_path / "nbs").mkdir()
    nbformat.write(notebook, tmp_path / "nbs/index.ipynb")
    assert readme_text(tmp_path) != readme_text(root) and "One more line." in readme_text(tmp_path)


def test_two_commands_and_no_other_set_up(root):
    text = (root / "README.md").read_text()
    assert re.findall(r"^python3 -m venv .*$", text, re.M) == COMMANDS
    assert not re.search(r"\b(make|sudo|activate)\b", "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)))


def test_links_of_the_readme_lead_to_files(root):
    links = re.findall(r"\]\(([^)\s]+)\)", (root / "README.md").read_text())
    local = [link.split("#")[0] for link in links if not re.match(r"https?:|#", link)]
    assert local and [link for link in local if not (root / link).exists()] == []


def test_readme_has_no_markup_of_pages(root):
    text = (root / "README.md").read_text()
    assert not re.search(r"^:::|^#\||data:\w+/|<div|<script", text, re.M)


def test_links_keep_their_anchor_and_leave_the_web_alone():
    given = "[a](core/00_errors.ipynb#x) [b](https://example.org/a) [c](#here) [d](../LICENSE)"
    assert repository_links(given) == "[a](nbs/core/00_errors.ipynb#x) [b](https://example.org/a) [c](#here) [d](LICENSE)"


def test_callouts_and_divisions():
    given = "::: {.callout-warning title=\"Mind\"}\nOne\n\nTwo\n:::\n\n::: {.wide}\nThree\n:::\n"
    assert github_callouts(given) == "> [!WARNING]\n> One\n>\n> Two\n\nThree\n"


@pytest.mark.parametrize("option", ["echo: false", "hide", "export", "include: false"])
def test_hidden_code_stays_hidden(option):
    assert cell_text(nbformat.v4.new_code_cell(f"#| {option}\nsecret = 1")) == ""


def test_without_an_index_the_error_says_what_is_missing(tmp_path):
    with pytest.raises(FolderError, match="index.ipynb"):
        readme_text(tmp_path)
