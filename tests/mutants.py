"""Deliberate errors: the library's own source with one expression replaced, which the tests must catch."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def mutant(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The same function in its own module, with the only occurrence of `old` replaced."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__name__} has {source.count(old)} times {old!r}"
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<{function.__name__} with an error>", "exec"), function.__globals__, made)
    return made[function.__name__]
