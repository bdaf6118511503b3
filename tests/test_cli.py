"""The command line, as a user calls it: in a process of its own."""

import subprocess
import sys

import pytest

from metabonk.cli import main, parser


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


def test_games_lists_bonk():
    done = metabonk("games")
    assert done.returncode == 0 and done.stderr == ""
    assert any(line.split()[0] == "bonk" for line in done.stdout.splitlines())


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
