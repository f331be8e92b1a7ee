"""Whether the fields of an object have the types that its class says.

What a script writes is not looked at by any type checker unless its author runs one: the text "false" would count as
true, and a text where a tuple belongs be taken letter by letter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints


def check_types(made: object) -> None:
    """Raise `TypeError` for the first field that has another type. No value is shown: it may be a key."""
    for name, plain, fits, wanted in _fields(type(made)):  # type: ignore[arg-type]
        value = getattr(made, name)
        if type(value) not in plain and not fits(value):
            raise TypeError(f"{name} must be {wanted}, not {_found(value)}")


Fits = Callable[[object], bool]


@cache
def _fields(kind: type) -> tuple[tuple[str, frozenset[object], Fits, str], ...]:
    """Of each field: its name, the types of which every value fits, whether another value fits, and what would.

    Nearly every value is of such a type, and there may be ten thousand peers.
    """
    return tuple(
        (name, _plain(hint), _fits(hint), _words(hint)) for name, hint in get_type_hints(kind).items()
    )


def _plain(hint: object) -> frozenset[object]:
    if get_origin(hint) in (Union, UnionType):
        return frozenset[object]().union(*map(_plain, get_args(hint)))
    return frozenset([hint]) if isinstance(hint, type) and get_origin(hint) is None else frozenset()


def _fits(hint: object) -> Fits:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        choices = [_fits(part) for part in parts]
        return lambda value: any(fits(value) for fits in choices)
    if origin is Literal:
        return lambda value: value in parts
    if origin is tuple:
        element = _fits(parts[0])
        return lambda value: isinstance(value, tuple) and all(map(element, value))
    assert isinstance(hint, type)
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    return lambda value: isinstance(value, hint)


def _words(hint: object) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"tuple of {_words(parts[0])}"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _found(value: object) -> str:
    kinds = sorted({type(each).__name__ for each in value}) if isinstance(value, tuple) else ()
    return f"tuple with {' and '.join(kinds)}" if kinds else type(value).__name__
