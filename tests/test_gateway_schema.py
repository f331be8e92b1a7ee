"""`connlib schema` and the reader of a gateway's file take the same single values, and refuse the same ones.

The values are made around what is right: by the schema's own patterns and bounds, and with a character more, less or
other. What JSON Schema has no words for is in `ONLY_THE_READER`, and in docs/gateway.md under "Fields".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connlib import ConfigFileError, parse_gateway
from connlib.gatewayschema import schema
from helpers_config import ALICE, OWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = schema()


def ecma_pattern(_: Any, pattern: str, text: object, __: Any) -> Iterator[jsonschema.ValidationError]:
    """JSON Schema's patterns are ECMAScript's, whose $ is the end of the text, and not the line break before it."""
    if isinstance(text, str) and not re.search(re.sub(r"(?<!\\)\$", r"\\Z", pattern), text):
        yield jsonschema.ValidationError("does not match")


VALIDATOR = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": ecma_pattern})(SCHEMA)

INTERFACE = f'[interface]\nprivate_key = "{OWN.to_base64()}"\n'
PEER = f'{INTERFACE}[[peers]]\npublic_key = "{ALICE.to_base64()}"\n'
RULE = f"{PEER}[[peers.rules]]\nallow = true\n"
# Of each field: what the file has before it, and how the value stands in it.
PLACES = {
    ("GatewayInterface", "private_key"): "[interface]\nprivate_key = {}\n",
    ("GatewayInterface", "private_key_file"): "[interface]\nprivate_key_file = {}\n",
    ("GatewayInterface", "name"): INTERFACE + "name = {}\n",
    ("GatewayInterface", "listen_port"): INTERFACE + "listen_port = {}\n",
    ("GatewayInterface", "addresses"): INTERFACE + "addresses = [{}]\n",
    ("GatewayInterface", "mtu"): INTERFACE + "mtu = {}\n",
    ("GatewayInterface", "fwmark"): INTERFACE + "fwmark = {}\n",
    ("GatewayInterface", "routes"): INTERFACE + "routes = {}\n",
    ("GatewayInterface", "endpoint"): INTERFACE + "endpoint = {}\n",
    ("GatewayInterface", "role"): INTERFACE + "role = {}\n",
    ("GatewayInterface", "offload"): INTERFACE + "offload = {}\n",
    ("GatewayInterface", "encryption"): INTERFACE + "encryption = {}\n",
    ("GatewayInterface", "threads"): INTERFACE + "threads = {}\n",
    ("GatewayInterface", "worker"): INTERFACE + "worker = {}\n",
    ("GatewayInterface", "queues"): INTERFACE + "queues = {}\n",
    ("GatewayInterface", "masquerade"): INTERFACE + "masquerade = [{}]\n",
    ("GatewayInterface", "protect_addresses"): INTERFACE + "protect_addresses = {}\n",
    ("GatewayInterface", "dns"): INTERFACE + "dns = [{}]\n",
    # Each with what leaves room for it: which timer has to be less than which is for the reader.
    ("Timers", "rekey_after_time"): INTERFACE
    + "[interface.timers]\nreject_after_time = 31536000\nrekey_after_time = {}\n",
    ("Timers", "reject_after_time"): INTERFACE + "[interface.timers]\nreject_after_time = {}\n",
    ("Timers", "rekey_attempt_time"): INTERFACE + "[interface.timers]\nrekey_attempt_time = {}\n",
    ("Timers", "rekey_timeout"): INTERFACE + "[interface.timers]\nrekey_timeout = {}\n",
    ("Timers", "keepalive_timeout"): INTERFACE + "[interface.timers]\nkeepalive_timeout = {}\n",
    ("Limits", "rekey_after_messages"): INTERFACE + "[interface.limits]\nrekey_after_messages = {}\n",
    ("Limits", "reject_after_messages"): INTERFACE + "[interface.limits]\nreject_after_messages = {}\n",
    ("Limits", "queue_packets"): INTERFACE + "[interface.limits]\nqueue_packets = {}\n",
    ("GatewayPeer", "public_key"): INTERFACE + "[[peers]]\npublic_key = {}\n",
    ("GatewayPeer", "name"): PEER + "name = {}\n",
    ("GatewayPeer", "preshared_key"): PEER + "preshared_key = {}\n",
    ("GatewayPeer", "preshared_key_file"): PEER + "preshared_key_file = {}\n",
    ("GatewayPeer", "allowed_ips"): PEER + "allowed_ips = [{}]\n",
    ("GatewayPeer", "endpoint"): PEER + "endpoint = {}\n",
    ("GatewayPeer", "persistent_keepalive"): PEER + "persistent_keepalive = {}\n",
    ("GatewayPeer", "role"): PEER + "role = {}\n",
    ("GatewayPeer", "default"): PEER + "default = {}\n",
    ("GatewayPeer", "outbound"): PEER + "outbound = {}\n",
    ("GatewayRule", "allow"): f"{PEER}[[peers.rules]]\nallow = {{}}\n",
    ("GatewayRule", "name"): RULE + "name = {}\n",
    ("GatewayRule", "protocol"): RULE + "protocol = {}\n",
    ("GatewayRule", "to"): RULE + "to = [{}]\n",
    ("GatewayRule", "ports"): RULE + 'protocol = "tcp"\nports = [{}]\n',
    ("GatewayRule", "icmp_types"): RULE + 'protocol = "icmp"\nicmp_types = [{}]\n',
}
# Tables, and lists of them.
OTHERS = {"timers", "limits", "rules", "interface", "peers"}

ONLY_THE_READER = {
    "a whole number that is written as 5.0": r"must be (a whole number|text), not a number\b",
    "`nan`": r"this is not a number of seconds",
    "a range that ends before it begins": r"ends before it begins",
    "a public key of low order": r"point of low order",
    "characters of names and paths that are not printable": r"not printable|is not a path",
    "characters of other scripts in host names": r"is neither an address nor a host name",
    "timers that contradict each other": r"must be (less|more) than \w+_t",
}


def toml(value: object) -> str:
    """The value as it stands in a file."""
    if isinstance(value, str):
        return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower()


def choices(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The kinds of single values that a part of the schema has."""
    if "$ref" in part:
        yield from choices(SCHEMA["$defs"][part["$ref"].rpartition("/")[2]])
    elif "items" in part:
        yield from choices(part["items"])
    else:
        for each in part.get("anyOf", ()):
            yield from choices(each)
        if "anyOf" not in part:
            yield part


characters = st.sampled_from("0159aFfzZ:./-_ %[]=\n\t\0\x7f\x85é\u0660\u2028😀") | st.characters(
    exclude_categories=["Cs"]
)


@st.composite
def damaged(draw: st.DrawFn, right: st.SearchStrategy[str]) -> str:
    """A text that is nearly right, or right after all."""
    text = draw(right)
    place = draw(st.integers(0, len(text)))
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return text[:place] + draw(characters) + text[place:]
    if kind == 1:
        return text[:place] + text[place + 1 :]
    if kind == 2:
        return text[:place] + draw(characters) + text[place + 1 :]
    if kind == 3:
        return draw(st.sampled_from([text.upper(), text.lower(), f" {text}", f"{text} ", f"{text}\n"]))
    return text[:place] + text[place:].replace(":", "::", 1).replace("/", " / ", 1)


ADDRESSES = st.builds(
    lambda address, length: f"{address}{length}",
    st.ip_addresses().map(str)
    | st.sampled_from(["::", "1::", "::ffff:1.2.3.4", "1:2:3:4:5:6:7::", "FD00::1"]),
    st.just("") | st.integers(0, 140).map(lambda length: f"/{length}"),
)
HOSTS = st.sampled_from(
    ["h", "vpn.example.org", "1.2.3.4", "1.2.3", "[::1]", "[1::2::3]", "bücher.example", "::1"]
)
PORTS = st.sampled_from(
    [
        0,
        1,
        9,
        10,
        99,
        255,
        256,
        999,
        1000,
        9999,
        59999,
        60000,
        64999,
        65499,
        65529,
        65534,
        65535,
        65536,
        99999,
        100000,
    ]
)
TEXTS = (
    ADDRESSES
    | st.builds("{}:{}".format, HOSTS, PORTS)
    | st.builds("{}-{}".format, PORTS, PORTS)
    | PORTS.map(str)
    | st.sampled_from(
        ["a..b", "10.0.0", "a.10", "a.1b", "-a.b", "a-.b", "a_b.c", f"{'a' * 63}.b", f"{'a' * 64}.b"]
    )
    | st.sampled_from(
        ["a." * 126 + "b", "a." * 126 + "bc", "x" * 64, "x" * 65, ".", "all", "either", "Tcp", "ask"]
    )
    | st.just(ALICE.to_base64())
    | st.text(max_size=70)
)


def values_of(part: dict[str, Any]) -> st.SearchStrategy[object]:
    """Values around what a field may be."""
    right: list[st.SearchStrategy[Any]] = []
    numbers: list[st.SearchStrategy[Any]] = [
        st.booleans(),
        st.integers(-2, 70000),
        st.floats(0, 1e9),
        st.just([]),
    ]
    for choice in choices(part):
        bounds = [choice[bound] for bound in ("minimum", "maximum") if bound in choice]
        for bound in bounds:
            near = [bound - 1, bound, bound + 1, -bound, float(bound), bound * 0.999, bound * 1.001]
            numbers.append(st.sampled_from(near))
        if "pattern" in choice:
            right.append(st.from_regex(choice["pattern"], fullmatch=True))
        words = [word for word in choice.get("enum", ()) if isinstance(word, str)]
        if words:
            right.append(st.sampled_from(words))
    texts = st.one_of(*right, TEXTS)
    return texts | damaged(texts) | st.one_of(*numbers)


def test_every_field_of_the_schema_is_compared() -> None:
    found = {
        (name, field)
        for name, definition in SCHEMA["$defs"].items()
        for field in definition.get("properties", ())
        if field not in OTHERS
    }
    assert found == set(PLACES)


@pytest.mark.parametrize(("table", "field"), PLACES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_schema_and_the_reader_take_the_same_values(table: str, field: str, data: st.DataObject) -> None:
    value = data.draw(values_of(SCHEMA["$defs"][table]["properties"][field]))
    text = PLACES[table, field].format(toml(value))
    takes = VALIDATOR.is_valid(tomllib.loads(text))
    try:
        parse_gateway(text)
    except ConfigFileError as error:
        said = [problem.problem for problem in error.problems]
        if takes:
            assert all(any(re.search(known, each) for known in ONLY_THE_READER.values()) for each in said), (
                said
            )
    else:
        assert takes, "only the reader takes it"


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("GatewayInterface", "role", "RESPONDER"),
        ("GatewayInterface", "endpoint", "h : 1"),
        ("GatewayInterface", "endpoint", "h:99999"),
        ("GatewayInterface", "endpoint", "h:0"),
        ("GatewayInterface", "endpoint", "h:01"),
        ("GatewayInterface", "endpoint", "1.2.3:5"),
        ("GatewayInterface", "endpoint", "[1::2::3]:5"),
        ("GatewayInterface", "addresses", "10.0.0.1 / 24"),
        ("GatewayInterface", "addresses", "10.0.0.1/33"),
        ("GatewayInterface", "addresses", "10.0.0.1/024"),
        ("GatewayInterface", "addresses", "10.0.0.1, 10.0.0.2"),
        ("GatewayInterface", "addresses", "1::2::3"),
        ("GatewayInterface", "dns", "a..b"),
        ("GatewayInterface", "dns", "10.0.0"),
        ("GatewayPeer", "name", "a\x07"),
        ("GatewayPeer", "name", ALICE.to_base64()),
        ("GatewayPeer", "preshared_key_file", ALICE.to_base64()),
        ("GatewayRule", "ports", "0443"),
        ("GatewayRule", "ports", "1-65536"),
        ("GatewayRule", "icmp_types", "0-256"),
    ],
)
def test_both_refuse(table: str, field: str, value: str) -> None:
    text = PLACES[table, field].format(toml(value))
    assert not VALIDATOR.is_valid(tomllib.loads(text))
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(text)
    assert len(caught.value.problems) == 1
    assert len(str(caught.value).splitlines()) == 1
    assert ALICE.to_base64() not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (INTERFACE + "listen_port = 5.0\n", "a whole number that is written as 5.0"),
        (RULE + 'protocol = "tcp"\nports = ["2-1"]\n', "a range that ends before it begins"),
        (f'{INTERFACE}[[peers]]\npublic_key = "{"A" * 43}="\n', "a public key of low order"),
        (PEER + 'name = "a\\u2028b"\n', "characters of names and paths that are not printable"),
        (PEER + 'endpoint = "a\\u2028b:1"\n', "characters of other scripts in host names"),
    ],
)
def test_what_only_the_reader_refuses_is_known(text: str, what: str) -> None:
    VALIDATOR.validate(tomllib.loads(text))
    with pytest.raises(ConfigFileError, match=ONLY_THE_READER[what]):
        parse_gateway(text)
