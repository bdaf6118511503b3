"""Deliberate errors: the library's own source with one expression replaced, which the tests must catch."""

import inspect
import sys
import textwrap
from typing import Any


def mutant(thing: Any, old: str, new: str) -> Any:
    """The same function or class in its own module, with the only occurrence of `old` replaced."""
    thing = inspect.unwrap(thing)
    source, module = textwrap.dedent(inspect.getsource(thing)), sys.modules[thing.__module__]
    assert source.count(old) == 1, f"{thing.__name__} has {source.count(old)} times {old!r}"
    source, made = source.replace(old, new), {}
    if inspect.isclass(thing) or "super()" not in source:
        exec(compile(source, f"<{thing.__name__} with an error>", "exec"), module.__dict__, made)
        return made[thing.__name__]
    inside = "class Owner:\n" + textwrap.indent(source, "    ")
    exec(compile(inside, f"<{thing.__name__} with an error>", "exec"), module.__dict__, made)
    function = vars(made["Owner"])[thing.__name__]
    place = function.__code__.co_freevars.index("__class__")  # what `super()` looks at
    function.__closure__[place].cell_contents = getattr(module, thing.__qualname__.split(".")[0])
    return function
