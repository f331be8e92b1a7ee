"""Where in a TOML text its keys and values are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connlib._tomlplaces import Path, Places

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = """\
# a comment with "quotes" and [brackets]
top = 1
"quoted \\u0041" = 'literal'
a.b . c = {x = 1, "y" = [1, {z = 2}]}

[table]  # of things
  indented = "with \\"quotes\\", ] and # in it"
dates = 1979-05-27 07:32:00
list = [
    "one",  # and a comment
    'two',
    [3, 4],
]
long = \"\"\"
[not.a.table]
x = 1 \\"\"\" and ""\"\"\"
literal = '''
it's ''here'''''
after = true
[[peers]]
name = "x"
[peers.inner]
k = 1
[[peers]]
name = "y"
[[peers.rules]]
allow = true
[[peers.rules]]
allow = false
"""


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("top",), (2, 1), (2, 7)),
        (("quoted A",), (3, 1), (3, 19)),
        (("a",), (4, 1), (4, 1)),
        (("a", "b", "c"), (4, 1), (4, 11)),
        (("a", "b", "c", "x"), (4, 12), (4, 16)),
        (("a", "b", "c", "y", 1, "z"), (4, 30), (4, 34)),
        (("table",), (6, 1), (6, 1)),
        (("table", "indented"), (7, 3), (7, 14)),
        (("table", "dates"), (8, 1), (8, 9)),
        (("table", "list", 1), (11, 5), (11, 5)),
        (("table", "list", 2, 1), (12, 9), (12, 9)),
        (("table", "long"), (14, 1), (14, 8)),
        (("table", "literal"), (17, 1), (17, 11)),
        (("table", "after"), (19, 1), (19, 9)),
        (("peers",), (20, 1), (20, 1)),
        (("peers", 0), (20, 1), (20, 1)),
        (("peers", 0, "name"), (21, 1), (21, 8)),
        (("peers", 0, "inner", "k"), (23, 1), (23, 5)),
        (("peers", 1), (24, 1), (24, 1)),
        (("peers", 1, "rules", 0, "allow"), (27, 1), (27, 9)),
        (("peers", 1, "rules", 1, "allow"), (29, 1), (29, 9)),
        (("peers", 1, "missing"), (24, 1), (24, 1)),
        (("missing",), (1, 1), (1, 1)),
        ((), (1, 1), (1, 1)),
    ],
)
def test_a_key_and_a_value_are_where_they_are_written(
    path: Path, key: tuple[int, int], value: tuple[int, int]
) -> None:
    places = Places(TEXT, [path])
    assert places.of_key(path) == key
    assert places.of_value(path) == value


def paths(document: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every path of a document, with its value."""
    yield path, document
    inner: Any = ()
    if isinstance(document, dict):
        inner = document.items()
    elif isinstance(document, list):
        inner = enumerate(document)
    for name, value in inner:
        yield from paths(value, (*path, name))


def test_every_path_that_the_parser_knows_has_a_place() -> None:
    known = {path for path, _ in paths(tomllib.loads(TEXT)) if path}
    places = Places(TEXT, known)
    assert known <= set(places._keys) and known <= set(places._values)


KEYS = st.sampled_from(["a", "b-1", '"q.x"', "'l #'", "a.b", 'c . "d"', '"\\u00e9"'])
SCALARS = st.sampled_from(
    [
        "1",
        "-2.5e3",
        "true",
        '"s"',
        "'[x'",
        '"a # \\" b"',
        "1979-05-27",
        '"""m\n" ""x"""',
        "'''l\n'''",
        "[]",
        "{}",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda items: "[" + ", # c\n".join(items) + " ]")
        | st.lists(st.tuples(KEYS, inner), min_size=1, max_size=2).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"
        )
    ),
    max_leaves=6,
)
LINES = (
    st.tuples(KEYS, VALUES).map(lambda pair: f"  {pair[0]} = {pair[1]} # c")
    | KEYS.map(lambda key: f"[{key}]")
    | KEYS.map(lambda key: f"[[{key}]]")
    | st.sampled_from(["", "# comment ]", "\t"])
)


@given(st.lists(LINES, max_size=8))
def test_what_stands_at_the_place_of_a_value_is_that_value(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    rows = text.split("\n")
    every = Places(text, [path for path, _ in paths(document)])
    for path, value in paths(document):
        if path:
            # What is asked for beside it makes no difference.
            places = Places(text, [path])
            assert path in places._values
            assert places.of_key(path) == every.of_key(path)
            assert places.of_value(path) == every.of_value(path)
            line, column = places.of_value(path)
            rest = "\n".join([rows[line - 1][column - 1 :], *rows[line:]])
            if isinstance(value, bool | int | float):
                assert rest.startswith(("true", "false", "1", "-2.5e3"))
            elif isinstance(value, str):
                assert rest.startswith(('"', "'"))
