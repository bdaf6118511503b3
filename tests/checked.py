"""How calls are held against their annotations while tests run."""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where a float is asked, an int will do


def typechecker(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype on one function; `Self` says nothing outside its class, so that part goes unchecked."""
    hints = getattr(function, "__annotations__", {})
    for name in [name for name, hint in hints.items() if hint is Self]:
        del hints[name]
    return _check(function)
