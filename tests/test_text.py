"""Text from outside: one meaning everywhere, or one line that refuses it; whatever it says, nothing of it runs"""

import contextlib
import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_pipeline import Toy

from metabonk.core.config import Config, check_value
from metabonk.core.errors import MetaBonkError, UsageError
from metabonk.core.seed import check_seed, seed_everything, spawn_seeds
from metabonk.core.text import parse_json, parse_yaml, read_yaml
from metabonk.pipeline.stages import Pipeline, StageParameter, read_notebook, read_parameters, read_value
from metabonk.play.profile import compile_profile, load_profile
from metabonk.record.tasks import TaskSet

NUMBERS: dict[str, Any] = {
    "0": 0,
    "-0": 0,
    "7": 7,
    "+7": 7,
    "-12": -12,
    "0010": 10,
    "010": 10,
    "-08": -8,
    "0x1F": 31,
    "0o17": 15,
    "1e-1": 0.1,
    "1e-4": 1e-4,
    "1E5": 1e5,
    ".5": 0.5,
    "1.": 1.0,
    "-2.5e+3": -2500.0,
    "010.5": 10.5,
    "1:30": None,
    "1_000": None,
    "0b11": None,
    "10.0.0.1": None,
    "1e": None,
    "e5": None,
    "1e1.5": None,
    "--1": None,
    "2024-05-01": None,
    "٣": None,
    "0x": None,
    "1,5": None,
    "five": None,
    "yes": None,
    "1e999": None,
    "-1e999": None,
    "1e-999": None,
    "9" * 5000: None,
    ".inf": None,
    "-.inf": None,
    ".nan": None,
    "nan": None,
    "inf": None,
    "": None,
}


@dataclass(frozen=True)
class Setting(Config):
    "A setting of a game, say"

    size: float = 1.0


def one_line(error: BaseException) -> str:
    assert isinstance(error, MetaBonkError) and str(error) and "\n" not in str(error)
    return str(error)


def read_everywhere(toy: Toy, word: str) -> dict[str, Any]:
    "What each reader of values makes of a word where a float is wanted; None where it refuses"
    toy.notebook("first", "size: float = 1.0  # how much")
    declared = StageParameter("size", float, 1.0, "")

    def command_line() -> Any:
        return read_value(word, declared, "first.size")

    def pipeline_file() -> Any:
        toy.pipeline(f"stages: [{{notebook: first, parameters: {{size: {word}}}}}]")
        return Pipeline.read(toy.file).values()["first"]["size"]

    def shared_parameter() -> Any:
        toy.pipeline(f"stages: [first]\nparameters:\n  size: {word}\n")
        return Pipeline.read(toy.file).values()["first"]["size"]

    def setting() -> Any:
        return Setting.from_dict({"size": parse_yaml(word, "--set size")}).size

    read = {}
    for reader in (command_line, pipeline_file, shared_parameter, setting):
        try:
            read[reader.__name__] = reader()
        except UsageError as error:
            one_line(error)
            read[reader.__name__] = None
    return read


@pytest.mark.parametrize("word", NUMBERS, ids=lambda word: word[:12] or "nothing")
def test_a_number_means_the_same_everywhere(tmp_path: Path, word: str) -> None:
    assert set(map(repr, read_everywhere(Toy(tmp_path), word).values())) == {
        repr(None if NUMBERS[word] is None else float(NUMBERS[word]))
    }


@pytest.mark.parametrize("word", [word for word, value in NUMBERS.items() if type(value) is int])
def test_argparse_reads_whole_numbers_as_yaml_does(word: str) -> None:
    from metabonk.cli import parser

    options = parser().parse_args(["record", "bonk", "store", f"--seed={word.replace('-', '')}"])
    assert options.seed == abs(NUMBERS[word])


@given(st.text(max_size=12) | st.from_regex(r"[-+0-9_.:eExo]{1,8}", fullmatch=True))
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_plain_value_or_one_line(text: str) -> None:
    try:
        value = parse_yaml(text, "a text")
    except UsageError as error:
        one_line(error)
        return
    if type(value) in (int, float):
        word = text.split("#")[0].strip(" \r\n")
        assert (
            re.fullmatch(r"[-+.0-9a-fA-FnaifxoeEINF]+", word) or "\n" in text or text.startswith(("---", "!", "|", ">"))
        )
    assert value is None or isinstance(value, str | int | float | bool | list | dict)


@given(st.integers(-(2**70), 2**70), st.sampled_from(["{}", "{:+d}", "-000{}", "000{}"]))
def test_whole_numbers_are_decimal(number: int, form: str) -> None:
    word = form.format(number).replace("--", "-").replace("0-", "-0").replace("+-", "-")
    if re.fullmatch(r"[-+]?[0-9]+", word):
        assert parse_yaml(word, "a number") == int(word)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive(number: float) -> None:
    assert parse_yaml(repr(number), "a number") == number
    assert parse_yaml(yaml.safe_dump({"a": number}), "a number")["a"] == number


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef_1", min_size=1, max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(plain)
@settings(deadline=None)
def test_what_json_writes_yaml_reads_and_a_notebook_gets(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert parse_yaml(text, "a text") == value
    assert parse_json(text) == value
    made = read_value(value, StageParameter("x", Any, None, ""), "x") if not isinstance(value, str) else value
    assert made == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "line 2: not YAML: 'a' is there twice"),
        ("a: 1\n'a': 2", "twice"),
        ("{1: a, 01: b}", "twice"),
        ("{1: a, '1': b}", "twice"),
        ("{1: a, 1.0: b}", "twice"),
        ("{[a]: 1}", "single word"),
        ("? {a: 1}\n: 2", "single word"),
        ("a: &x [*x]", "repeats another place"),
        ("a: &x 1\nb: *x", "line 2"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("\ta: 1", "cannot start any token"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: !!python/name:os.system", "type"),
        ("!!python/object/apply:os.system ['true']", "no type of plain YAML"),
        ("!!timestamp 2001-13-99", "no type"),
        ("!!int five", "'five' is no int"),
        ("!!binary aGk=", "no type"),
        ("--- 1\n--- 2", "another document"),
        ('a: "\\0"', "NUL"),
        ('a: "\\uD800"', ""),
        ("a: \x07", "not allowed"),
        ("[" * 500, "nested too deeply"),
        ("{a: " * 500, "nested too deeply"),
        ("<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> theirs", "not YAML"),
    ],
)
def test_yaml_that_would_lose_something_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (read_yaml, load_profile, TaskSet.load, Pipeline.read):
        with pytest.raises(UsageError) as caught:
            read(path)
        assert said in one_line(caught.value) and "odd.yaml" in str(caught.value), read


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"a: \xff")
    for read in (read_yaml, load_profile, TaskSet.load, Pipeline.read, read_notebook):
        for place in (path, tmp_path, tmp_path / "missing.yaml"):
            with pytest.raises(UsageError) as caught:
                read(place)
            one_line(caught.value)
    with pytest.raises(UsageError, match="can't be the name"):
        read_yaml("a\0b")


def test_json_with_a_key_twice_or_endless_nesting_is_a_value_error() -> None:
    for text in ('{"a": 1, "a": 2}', "[" * 100_000, '{"a":' * 100_000, "{", "", b"\xff", "9" * 5000):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json('{"a": [1, {"b": NaN}]}')["a"][0] == 1  # what older files hold is read


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_no_setting_is_beyond_every_float(value: float) -> None:
    for annotation in (float, float | None, list[float], dict[str, float]):
        given = {list[float]: [value], dict[str, float]: {"a": value}}.get(annotation, value)
        with pytest.raises(UsageError) as caught:
            check_value(given, annotation, "rate")
        one_line(caught.value)
    with pytest.raises(UsageError):
        read_value(
            {"a": [float(value) if value < 1e300 or value != value else math.inf]},
            StageParameter("x", dict, {}, ""),
            "x",
        )


def test_mappings_keep_their_keys(tmp_path: Path) -> None:
    declared = StageParameter("settings", dict, {}, "")
    assert read_value("{a: 1, '1': 2}", declared, "settings") == {"a": 1, "1": 2}
    for text in ("{1: a}", "{a: {true: 1}}", "{a: [{2.5: 1}]}", "{a: .nan}"):
        with pytest.raises(UsageError, match="settings"):
            read_value(text, declared, "record.settings")


def test_booleans_and_their_likes_are_told_apart() -> None:
    assert check_value(True, bool, "x") is True and check_value([1, 2], tuple, "x") == (1, 2)
    for value, annotation in (
        (True, Literal[1]),
        (1, Literal[True]),
        (1.0, Literal[1]),
        ("yes", bool),
        (1, bool),
        (10, str),
    ):
        with pytest.raises(UsageError):
            check_value(value, annotation, "x")
    with pytest.raises(UsageError, match="write true or false"):
        read_value("yes", StageParameter("x", bool, False, ""), "x")


@pytest.mark.parametrize("seed", [-1, -(2**40)])
def test_seeds_are_not_negative(seed: int) -> None:
    for call in (check_seed, seed_everything, lambda seed: spawn_seeds(seed, 2)):
        with pytest.raises(UsageError, match="negative"):
            call(seed)


# ---- parameters cells


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("int", int),
        ("float | None", float | None),
        ("Optional[int]", int | None),
        ("Union[int, str]", int | str),
        ("Literal['a', 1, None, True]", None),
        ("list[int]", list[int]),
        ("dict[str, list[float]]", dict[str, list[float]]),
        ("tuple[int, ...]", tuple[int, ...]),
        ("tuple[int, str]", tuple[int, str]),
        ("'int | None'", int | None),
        ("Any", Any),
        ("dict", dict),
        ("None", type(None)),
    ],
)
def test_annotations_are_read(written: str, kind: Any) -> None:
    default = {
        "Literal['a', 1, None, True]": "1",
        "list[int]": "[1]",
        "dict[str, list[float]]": "{'a': [1]}",
        "tuple[int, ...]": "(1, 2)",
        "tuple[int, str]": "(1, 'a')",
        "dict": "{}",
        "None": "None",
    }.get(written, "1")
    found = read_parameters(f"x: {written} = {default}  # help")["x"].annotation
    assert kind is None or found == kind


def evil(marker: Path) -> str:
    "An expression that needs no builtins to run a command"
    finder = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    return f"{finder}.__init__.__globals__['system']('touch {marker}')"


FORMS = {
    "annotation": "x: {} = 1",
    "quoted": 'x: "{}" = 1',
    "inside": "x: list[{}] = 1",
    "literal": "x: Literal[{}] = 1",
    "union": "x: int | {} = 1",
    "default": "x: int = {}",
    "call": "{}",
    "f-string": "x: str = f'{{{}}}'",
    "named": "x: (y := {}) = 1",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_hostile_parameters_cell_runs_nothing(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "it-ran"
    with pytest.raises(UsageError) as caught:
        read_parameters(FORMS[form].format(evil(marker)))
    one_line(caught.value)
    assert not marker.exists()


def test_the_hostile_expression_does_run_where_it_is_evaluated(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    eval(evil(marker), {"__builtins__": {}}, {})  # what the cells above would do, if anything evaluated them
    assert marker.exists()


@pytest.mark.parametrize(
    "source",
    [
        "x: int = 1\nx: int = 2",
        "x = y = 1",
        "x: int",
        "x: 'int' 'str' = 1",
        "x: int = 1e999",
        "x: float = 1e999",
        "x = 1j",
        "x = b''",
        "x = {1: 2}",
        "x = {[]: 1}",
        "x: " + "[" * 500 + "]" * 500 + " = 1",
        "x: int = " + "-" * 100_000 + "1",
        "x: int = \0",
        "x: " + "list[" * 900 + "int" + "]" * 900 + " = 1",
        "x = " + "[" * 90 + "(" * 90,
        "x: Literal[{}] = 1",
        "x: Literal[1.5] = 1",
        "x: tuple[()] = 1",
        "x: dict[str] = {}",
        "x: os.system = 1",
        "x: int = 1 if True else 2",
        "x: Union[()] = 1",
        "import os",
    ],
)
def test_odd_parameters_cells_are_one_line(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_parameters(source)
    one_line(caught.value)


@given(
    st.text(max_size=60) | st.from_regex(r"[a-z]: [a-zA-Z\[\], |'.()]{1,30} = [0-9a-z'\[\]{}:,.]{1,20}", fullmatch=True)
)
@settings(max_examples=200, deadline=None)
def test_any_parameters_cell_is_read_or_refused(source: str) -> None:
    with contextlib.suppress(UsageError):
        read_parameters(source)


# ---- profiles and tasks


@pytest.mark.parametrize(
    "expression",
    [
        "2 ** 99",
        "x ** x",
        "1e999 * x",
        "9" * 400 + " * x",
        "9" * 5000,
        "x << 3",
        "(" * 300 + "x" + ")" * 300,
        "-" * 95 + "x",
        "x" + " + x" * 100,
        "x " * 3000,
        "\0",
        "x if " * 99 + "x",
        "__import__('os').system('true')",
        "x.__class__",
        "'a' * x",
        "lambda: x",
        "[x for x in x]",
        "x[0]",
        "gain(" * 95 + "x" + ")" * 95,
        "1j",
        "x := 1",
        "min(*x)",
        "",
        "x is x",
        10**400,
        float("nan"),
        None,
    ],
    ids=lambda e: str(e)[:16].replace("\0", "NUL"),
)
def test_deep_endless_and_hostile_expressions_are_one_line(expression: Any) -> None:
    base = {"title": "t", "probes": {"x": "0xC000 u8"}}
    for part in ("values", "terms", "milestones"):
        with pytest.raises(UsageError) as caught:
            compile_profile({**base, part: {"v": expression}}, "t", "t.yaml")
        one_line(caught.value)
    with pytest.raises(UsageError) as caught:
        compile_profile({**base, "ends": expression}, "t", "t.yaml")
    one_line(caught.value)


@pytest.mark.parametrize(
    "section, expression",
    [
        ("terms", "x / 2 & 1"),
        ("terms", " * ".join(["9223372036854775807"] * 60) + " * x"),
        ("values", "x * 9223372036854775807"),
        ("terms", "1e300 * (x * 1e300)"),
        ("values", "x * 1e300 * 1e300"),
        ("values", "popcount(x * 1e300 * 1e300)"),
    ],
)
def test_arithmetic_that_fails_while_playing_is_one_line(section: str, expression: str) -> None:
    profile = compile_profile({"title": "t", "probes": {"x": "0xC000 u8"}, section: {"v": expression}}, "t", "t.yaml")
    state = profile.start()
    with pytest.raises(UsageError) as caught:
        for _ in range(3):
            state.terms({"x": 255})
    one_line(caught.value)


def test_a_bit_of_a_negative_number_of_place_is_no_bit() -> None:
    profile = compile_profile(
        {"title": "t", "probes": {"x": "0xC000 u8"}, "values": {"v": "bit(x, x - 300)"}}, "t", "t.yaml"
    )
    state = profile.start()
    state.terms({"x": 255})
    assert state.values["v"] == 0


def test_expressions_as_deep_as_allowed_compile_and_count() -> None:
    profile = compile_profile(
        {"title": "t", "probes": {"x": "0xC000 u8"}, "values": {"v": " + ".join(["x"] * 80)}}, "t", "t.yaml"
    )
    state = profile.start()
    state.terms({"x": 3})
    assert state.values["v"] == 240


sections = [
    "title",
    "machine",
    "rom",
    "notes",
    "actions",
    "probes",
    "records",
    "values",
    "terms",
    "milestones",
    "ends",
    "names",
    "planner",
]
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats()
    | st.sampled_from(["x", "gain(x)", "0xC000 u8", "a", "title", "most"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["x", "y", "a", "count", "most", "every", "same", "fields", "title", "sha1", 0, True]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sections), odd, max_size=6))
@settings(max_examples=80, deadline=None)
def test_any_profile_is_compiled_or_refused(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "odd.yaml"
        path.write_text(yaml.safe_dump({"title": "t", "probes": {"x": "0xC000 u8"}, **content}), encoding="utf-8")
        for load in (load_profile, TaskSet.load, Pipeline.read):
            try:
                load(path)
            except MetaBonkError as error:
                one_line(error)


@given(
    st.dictionaries(
        st.sampled_from(["title", "run", "notebooks", "parameters", "timeout", "time_limit", "stages"]),
        odd
        | st.lists(
            st.fixed_dictionaries(
                {"notebook": odd},
                optional={"name": odd, "needs": odd, "parameters": odd, "timeout": odd, "resume": odd},
            ),
            max_size=2,
        ),
    )
)
@settings(max_examples=80, deadline=None)
def test_any_pipeline_is_read_or_refused(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy(Path(folder))
        toy.notebook("x", "a: int = 1  # a number")
        toy.pipeline(yaml.safe_dump(content))
        try:
            pipeline = Pipeline.read(toy.file)
            pipeline.run_folder(pipeline.values())
        except MetaBonkError as error:
            one_line(error)


@pytest.mark.parametrize(
    "run", ["runs/{a.__class__}", "{a!r}", "{a:>99999999999}", "{", "}}{{a", "{0}", "{}", "", "a\0b"]
)
def test_the_run_template_takes_names_only(tmp_path: Path, run: str) -> None:
    toy = Toy(tmp_path)
    toy.notebook("x", "a: int = 1  # a number")
    toy.pipeline(yaml.safe_dump({"run": run, "stages": ["x"]}))
    with pytest.raises(UsageError) as caught:
        pipeline = Pipeline.read(toy.file)
        pipeline.run_folder(pipeline.values())
    one_line(caught.value)


@pytest.mark.parametrize("limit", ["0", "-1", ".nan", ".inf", "1e999", "'5'"])
def test_time_limits_are_above_zero(tmp_path: Path, limit: str) -> None:
    toy = Toy(tmp_path)
    toy.notebook("x", "a: int = 1  # a number")
    for key in ("timeout", "time_limit"):
        toy.pipeline(f"{key}: {limit}\nstages: [x]")
        with pytest.raises(UsageError):
            Pipeline.read(toy.file)


# ---- files beside the current folder


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    for name in ("numpy", "colorsys", "metabonk", "torch", "pyboy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    toy = Toy(tmp_path / "toy")
    toy.notebook("first", "", "import colorsys\ncolorsys.rgb_to_hsv", "import numpy\nnumpy.zeros(1)")
    toy.pipeline("stages: [first]")
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); import os; from pathlib import Path\n"
        "from metabonk.pipeline.runner import run_pipeline\n"
        "from metabonk.play.vector import Worker\n"
        "os.chdir(sys.argv[1])\n"
        "run_pipeline(sys.argv[2], run='run', package=sys.argv[4], progress=False)\n"
        "worker = Worker('bonk', {}, 1); worker.answer(); worker.close()\n"
    )
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-P", "-c", code, str(tmp_path), str(toy.file), root, str(toy.package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
