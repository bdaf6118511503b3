"""The command line, as a user calls it: in a process of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_pipeline import Toy, cell

from metabonk.cli import main, parser
from metabonk.core.errors import UsageError
from metabonk.pipeline.stages import read_notebook


def metabonk(*arguments: str) -> subprocess.CompletedProcess:
    """Run `metabonk ARGUMENTS`."""
    return subprocess.run([sys.executable, "-m", "metabonk.cli", *arguments], capture_output=True, text=True)


def commands() -> list[str]:
    """The names of the commands."""
    (action,) = [a for a in parser()._actions if getattr(a, "choices", None)]
    return list(action.choices)


@pytest.mark.parametrize("command", commands())
def test_each_command_has_help_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    example = capsys.readouterr().out.split("example:\n")[1].split()
    assert example[:2] == ["metabonk", command]
    parser().parse_args(example[1:])


def test_games_lists_worlds_and_settings_of_one():
    told = metabonk("games", "bonk:dark").stdout
    assert "bonk:dark" in told and "--set darkness=1 " in told and "0 every screen is lit" in told
    assert "--set ticks_per_step=4 " in told and "how long an action is held" in told
    rooms = metabonk("games", "rooms").stdout
    assert "--set scenes=" in rooms and "darkness" not in rooms


def test_games_lists_bonk():
    done = metabonk("games")
    assert done.returncode == 0 and done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines()]
    bonk = [words[0] for words in lines].index("bonk")
    assert lines[bonk + 1][:2] == ["worlds:", "lit,"] and lines[bonk + 2][0] == "settings:" and "hp," in lines[bonk + 2]
    assert "ticks_per_step," in lines[-2] and not any("ticks_per_step," in words for words in lines[:-2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "metabonc"], "did you mean pipelines/metabonk.yaml"),
        (["run", "metabonk", "--game", "bonkk"], "did you mean 'bonk'"),
        (["run", "metabonk", "--preset", "tinny"], "did you mean 'tiny'"),
        (["run", "metabonk", "--set", "record.step=3"], "did you mean"),
        (["run", "metabonk", "--set", "recrod.steps=3"], "did you mean"),
        (["run", "metabonk", "--set", "record.steps=many"], "record.steps must be int"),
        (["run", "metabonk", "--set", "record.steps"], "name=value"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, said, tmp_path):
    done = metabonk(*arguments, "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.startswith("metabonk: ") and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (tmp_path / "run").exists(), "nothing is made before everything is valid"


# ---- one line for every error


def said(capsys: pytest.CaptureFixture, *arguments: str, status: int = 2) -> str:
    """What one command line says on standard error."""
    assert main(list(arguments)) == status
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["record", "bonk", "s", "--steps", "1:30"], "--steps: it must be int, not '1:30'"),
        (["record", "bonk", "s", "--steps", "0"], "--steps: 0 is not 1 or more"),
        (["record", "bonk", "s", "--steps", "1e3"], "--steps: it must be int, not 1000.0"),
        (["record", "bonk", "s", "--steps", "1_000"], "--steps: it must be int"),
        (["record", "bonk", "s", "--steps", "9" * 5000], "too large"),
        (["record", "bonk", "s", "--seed", "-1"], "--seed: -1 is not 0 or more"),
        (["games", "bonkk"], "unknown game 'bonkk': did you mean 'bonk'?"),
        (["record", "bonk", "s", "--games", "0"], "--games: 0 is not 1 or more"),
        (["record", "bonk", "s", "--steps", "5", "--set", "noops={a: 1, a: 2}"], "--set noops: not YAML: 'a' is there twice"),
        (["record", "bonk", "s", "--steps", "5", "--set", "noops=1", "--set", "noops=2"], "--set noops is there twice"),
        (["record", "bonk", "", "--steps", "5"], "store: the path is empty"),
        (["record", "bonk"], "the following arguments are required: store (see metabonk record --help)"),
        (["site", "--port", "99999"], "99999 is not from 0 to 65535"),
        (["site", "--port", "-1"], "-1 is not from 0 to 65535"),
        (["recrod"], "unknown command 'recrod': did you mean 'record'?"),
        ([], "required: COMMAND"),
        (["hooks", "now\n\x1b[2J"], "unrecognized arguments: now \\x1b[2J"),
        (["run", "metabonk", "--seed", "-1", "--dry-run"], "seed -1 is negative"),
        (["run", "metabonk", "--seed", "1e999", "--dry-run"], "1e999 is too large"),
        (["run", "metabonk", "--seed", ".nan", "--dry-run"], "seed must be int, not nan"),
        (["import", "vido", "nowhere", "s"], "choose from 'video'"),
        (["import", "minari", "nowhere", "s", "--set", "a=1"], "leave --set out"),
        (["import", "video", "nowhere", "s", "--set", "stepp=1"], "did you mean 'step'"),
        (["import", "vpt", "nowhere", "s", "--set", "camera=[1, 1"], "--set camera: not YAML"),
        (["run", "metabonk", "--seed", "1", "--set", "seed=2"], "--seed and --set seed=... say the same thing"),
        (["run", "metabonk", "--set", "model.reward_scale=.inf"], "model.reward_scale must be float, not inf"),
        (["run", "metabonk", "--set", "record.settings={1: a}"], "a key of record.settings must be str, not 1"),
        (["run", "metabonk", "--run", ""], "the path is empty"),
        (["run", "a\0b"], "there is no pipeline"),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = said(capsys, *arguments)
    assert told.startswith("metabonk: ") and told.count("\n") == 1 and told.endswith("\n")
    assert words in told
    assert not any(tmp_path.iterdir())


def defect(*_: object) -> None:
    """What no one foresaw."""
    raise ValueError("bad\r\nnews \x1b[31min red")


@pytest.mark.parametrize("way", ["no", "before", "behind", "environment", "environment says 0"])
def test_a_defect_is_one_line_and_a_traceback_only_if_asked_for(way, capsys, monkeypatch):
    monkeypatch.setattr("metabonk.play.game.games", defect)
    monkeypatch.delenv("METABONK_DEBUG", raising=False)
    if way.startswith("environment"):
        monkeypatch.setenv("METABONK_DEBUG", "0" if "0" in way else "1")
    arguments = {"before": ["--debug", "games"], "behind": ["games", "--debug"]}.get(way, ["games"])
    *trace, last = said(capsys, *arguments, status=1).splitlines()
    assert last.startswith("metabonk: unexpected ValueError in cli.py, line ") and "bad news \\x1b[31min red" in last
    if way in ("no", "environment says 0"):
        assert not trace
    else:
        assert trace[0].startswith("Traceback") and "in defect" in "\n".join(trace)


@pytest.mark.parametrize("debug", [False, True])
def test_a_failing_stage_is_one_line_and_its_traceback_only_if_asked_for(debug, capsys, tmp_path):
    toy = Toy(tmp_path)
    toy.notebook("first", "", "def inner():\n    raise ValueError('bad\\nnews')", "inner()")
    toy.pipeline("stages: [first]")
    command = ["run", str(toy.file), "--run", str(toy.run_folder), *(["--debug"] if debug else [])]
    told = said(capsys, *command, status=1)
    *trace, last = [line for line in told.splitlines() if not line.startswith("first")]
    assert last.startswith("metabonk: stage first failed in cell 4 with ValueError: bad. See ") and "first.ipynb" in last
    assert ("Traceback" in told) == debug
    assert any("def inner" in line or "in inner()" in line for line in trace) == debug


# ---- notebooks that a merge left half done


GIT = '{\n "cells": [\n<<<<<<< HEAD\n  {"cell_type": "markdown"}\n=======\n  {}\n>>>>>>> theirs\n ]\n}\n'
MARKED = {"git": GIT, "nbdev": "`<<<<<<< HEAD`", "in a cell": "x = 1\n<<<<<<< HEAD\nx = 2\n=======\nx = 3\n>>>>>>> theirs"}


def broken(path: Path, how: str) -> str:
    """Make the notebook at `path` half merged, or break it otherwise; what an error must say."""
    if how in ("git", "cut off", "empty", "a list"):
        path.write_text({"git": GIT, "cut off": path.read_text()[:-9], "empty": "", "a list": "[1]"}[how])
    else:
        content = json.loads(path.read_text())
        content["cells"].append(cell(MARKED[how], "markdown"))
        path.write_text(json.dumps(content))
    return "merge" if how in MARKED else "not a notebook"


@pytest.mark.parametrize("how", [*MARKED, "cut off", "empty", "a list"])
def test_a_half_merged_notebook_is_named_wherever_one_is_read(how, capsys, tmp_path):
    toy = Toy(tmp_path)
    path = toy.notebook("first", "", "1 + 1")
    toy.pipeline("stages: [first]")
    words = broken(path, how)
    for command in (["run", str(toy.file), "--dry-run"], ["notebooks", "--execute", str(path)]):
        told = said(capsys, *command)
        assert "first.ipynb" in told and words in told and told.count("\n") == 1


@pytest.mark.parametrize("how", ["git", "in a cell", "cut off"])
def test_a_half_merged_page_is_named_by_site_readme_and_authoring(how, tmp_path):
    from metabonk.pipeline.authoring import export_and_clean, out_of_step
    from metabonk.pipeline.readme import readme_text
    from metabonk.pipeline.render import render_notebook
    from metabonk.pipeline.site import build_site

    def site(root: Path) -> None:
        build_site(root=root, output="site")

    (tmp_path / "nbs").mkdir()
    (tmp_path / "metabonk").mkdir()
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        shutil.copy(Path(__file__).parents[1] / name, tmp_path)
    (tmp_path / "_quarto.yml").write_text(
        "website: {title: t, description: d, repo-url: r, sidebar: {contents: [index.ipynb]}}"
    )
    path = tmp_path / "nbs/index.ipynb"
    path.write_text(json.dumps({"cells": [cell("# Page", "markdown")], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    words, before = broken(path, how), path.read_bytes()
    for read in (readme_text, out_of_step, export_and_clean, site, lambda root: render_notebook(path)):
        with pytest.raises(UsageError) as caught:
            read(tmp_path)
        assert "index.ipynb" in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [("_quarto.yml", ""), ("_quarto.yml", "website: {}"), ("_quarto.yml", "a: 1\na: 2"), ("_quarto.yml", "[" * 900),
     ("settings.ini", "<<<<<<< HEAD\n"), ("settings.ini", "a = 1\n")],
)  # fmt: skip
def test_broken_settings_of_the_site_are_one_line(name, text, tmp_path):
    from metabonk.pipeline.site import read_book

    (tmp_path / "nbs").mkdir()
    quarto = "website: {title: t, description: d, repo-url: r, sidebar: {contents: []}}"
    (tmp_path / "_quarto.yml").write_text(quarto)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nbranch = main\n")
    assert read_book(tmp_path).title == "t"
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_book(tmp_path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_merge_markers_in_outputs_are_no_merge(tmp_path):
    path = Toy(tmp_path).notebook("first", "", "print('<<<<<<< HEAD')")
    content = json.loads(path.read_text())
    content["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "<<<<<<< HEAD\n"}]
    path.write_text(json.dumps(content, indent=1))
    assert len(read_notebook(path)["cells"]) == 3


def test_a_hook_of_others_is_refused_and_kept(tmp_path):
    from metabonk.core.errors import FolderError
    from metabonk.pipeline.authoring import install_hooks

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    hook = tmp_path / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_bytes(b"\xff\x00 not ours")
    with pytest.raises(FolderError, match="is there already and is not ours"):
        install_hooks(tmp_path)
    install_hooks(tmp_path, remove=True)
    assert hook.read_bytes() == b"\xff\x00 not ours"


def test_a_readme_that_is_no_text_is_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "README.md").write_bytes(b"\xff")
    monkeypatch.setattr("metabonk.pipeline.authoring.project_root", lambda: tmp_path)
    monkeypatch.setattr("metabonk.pipeline.authoring.out_of_step", lambda root: [])
    assert "README.md is no text: byte 0 is not UTF-8" in said(capsys, "notebooks", "--check")


def test_no_error_of_ours_has_two_lines():
    assert str(UsageError(" one\r\n  two\n\nthree ")) == "one two three" and str(UsageError()) == ""


@pytest.mark.parametrize("command", ["", *commands()])
def test_the_page_of_commands_shows_what_help_prints(root, monkeypatch, capsys, command):
    shown = {}
    for one in read_notebook(root / "nbs/reference/commands.ipynb")["cells"]:
        for output in one.get("outputs", []):
            shown["".join(one["source"]).split('"')[1].replace("--help", "")] = "".join(output["text"])
    monkeypatch.setenv("COLUMNS", "88")
    with pytest.raises(SystemExit):
        main([*[command] * bool(command), "--help"])
    renew = "run: metabonk notebooks --execute nbs/reference/commands.ipynb"
    assert shown[command].strip() == capsys.readouterr().out.strip(), renew
