"""What a request makes of the settings: the semantics of the kernel's configuration, without an interface."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from connlib import PeerConfig, PrivateKey, PublicKey, Role
from connlib.uapi.protocol import Network, RequestParser, SetRequest
from connlib.uapi.settings import Change, Settings, change

OWN = PrivateKey.from_bytes(b"\x07" * 32)
ALICE, BOB, CAROL = (PublicKey.from_bytes(bytes([number]) * 32) for number in (1, 2, 3))
WIDE, NARROW = ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")


def requested(*lines: str) -> SetRequest:
    (request,) = RequestParser().feed("\n".join(["set=1", *lines, "", ""]).encode())
    assert isinstance(request, SetRequest), request
    return request


def peer(key: PublicKey, *lines: str) -> list[str]:
    return [f"public_key={key.to_bytes().hex()}", *lines]


def settings(*peers: PeerConfig, private_key: PrivateKey | None = OWN) -> Settings:
    return Settings(private_key=private_key, peers={peer.public_key: peer for peer in peers})


def after(old: Settings, *lines: str) -> Change:
    return change(old, requested(*lines))


def test_nothing_changes_nothing() -> None:
    old = settings(PeerConfig(public_key=ALICE, allowed_ips=(WIDE,)))
    assert after(old) == Change(old, frozenset(), frozenset())


def test_a_peer_both_starts_and_answers_handshakes_as_the_kernel_s_do() -> None:
    """The protocol has no word for anything else, so that no default of ours may decide it."""
    new = after(settings(), *peer(ALICE, "endpoint=192.0.2.1:1"), *peer(BOB)).settings
    assert [each.role for each in new.peers.values()] == [Role.EITHER, Role.EITHER]
    # Also where the program gave the peer another role before, which nobody who asks can see.
    old = settings(PeerConfig(public_key=ALICE, role=Role.RESPONDER))
    again = after(old, "replace_peers=true", *peer(ALICE)).settings
    assert again.peers[ALICE].role is Role.EITHER


def test_a_prefix_moves_to_whom_it_is_given() -> None:
    old = settings(PeerConfig(public_key=ALICE, allowed_ips=(WIDE, NARROW)), PeerConfig(public_key=BOB))
    new = after(old, *peer(BOB, "allowed_ip=10.0.0.0/8")).settings
    assert new.peers[ALICE].allowed_ips == (NARROW,)
    assert new.peers[BOB].allowed_ips == (WIDE,)
    assert old.peers[ALICE].allowed_ips == (WIDE, NARROW), "what was is not touched"


def test_a_prefix_is_taken_away_only_from_the_peer_that_is_named() -> None:
    old = settings(PeerConfig(public_key=ALICE, allowed_ips=(WIDE,)), PeerConfig(public_key=BOB))
    assert after(old, *peer(BOB, "allowed_ip=-10.0.0.0/8")).settings == old
    assert after(old, *peer(ALICE, "allowed_ip=-10.0.0.0/8")).settings.peers[ALICE].allowed_ips == ()


def test_prefixes_are_added_or_replaced() -> None:
    old = settings(PeerConfig(public_key=ALICE, allowed_ips=(WIDE,)))
    added = after(old, *peer(ALICE, "allowed_ip=10.1.0.0/16"))
    assert added.settings.peers[ALICE].allowed_ips == (WIDE, NARROW)
    replaced = after(old, *peer(ALICE, "replace_allowed_ips=true", "allowed_ip=10.1.0.0/16"))
    assert replaced.settings.peers[ALICE].allowed_ips == (NARROW,)
    assert after(old, *peer(ALICE, "replace_allowed_ips=true")).settings.peers[ALICE].allowed_ips == ()


def test_a_removed_peer_leaves_its_prefixes_to_others() -> None:
    old = settings(PeerConfig(public_key=ALICE, allowed_ips=(WIDE,)), PeerConfig(public_key=BOB))
    taken = peer(BOB, "allowed_ip=10.0.0.0/8")
    new = after(old, *peer(BOB, "allowed_ip=10.1.0.0/16"), *peer(ALICE, "remove=true"), *taken)
    assert new.settings.peers == {BOB: PeerConfig(public_key=BOB, allowed_ips=(NARROW, WIDE))}
    assert new.anew == frozenset()


def test_remove_wins_over_whatever_else_is_said_of_the_peer() -> None:
    old = settings(PeerConfig(public_key=ALICE))
    step = after(old, *peer(ALICE, "endpoint=192.0.2.1:1", "remove=true", "allowed_ip=10.0.0.0/8"))
    assert step == Change(settings(), frozenset(), frozenset())
    assert after(settings(), *peer(BOB, "remove=true")).settings == settings(), "an unknown one is no error"


def test_update_only_makes_no_peer() -> None:
    lines = ["update_only=true", "persistent_keepalive_interval=25"]
    assert after(settings(), *peer(ALICE, *lines)).settings == settings()
    changed = after(settings(PeerConfig(public_key=ALICE)), *peer(ALICE, *lines)).settings
    assert changed.peers[ALICE].persistent_keepalive == 25.0


def test_replaced_peers_are_made_anew() -> None:
    old = settings(
        PeerConfig(
            public_key=ALICE, endpoint=("192.0.2.1", 1), allowed_ips=(WIDE,), persistent_keepalive=5.0
        ),
        PeerConfig(public_key=BOB),
    )
    step = after(old, "replace_peers=true", *peer(ALICE), *peer(CAROL, "allowed_ip=10.0.0.0/8"))
    assert step.settings.peers == {
        ALICE: PeerConfig(public_key=ALICE),
        CAROL: PeerConfig(public_key=CAROL, allowed_ips=(WIDE,)),
    }
    assert step.anew == {ALICE}


def test_a_peer_that_is_removed_and_named_again_is_made_anew() -> None:
    old = settings(PeerConfig(public_key=ALICE, endpoint=("192.0.2.1", 1)))
    step = after(old, *peer(ALICE, "remove=true"), *peer(ALICE, "endpoint=192.0.2.1:2"))
    assert step.settings.peers[ALICE].endpoint == ("192.0.2.1", 2)
    assert step.anew == {ALICE} and step.relocate == set()


def test_an_endpoint_relocates_the_peer_even_if_it_is_the_same() -> None:
    old = settings(PeerConfig(public_key=ALICE, endpoint=("192.0.2.1", 1)))
    assert after(old, *peer(ALICE, "endpoint=192.0.2.1:1")).relocate == {ALICE}
    assert after(old, *peer(ALICE, "persistent_keepalive_interval=1")).relocate == frozenset()


def test_the_own_public_key_is_no_peer_before_and_after_the_key_is_known() -> None:
    own = OWN.public_key()
    assert after(settings(), *peer(own, "allowed_ip=10.0.0.0/8")).settings == settings()
    keyless = after(settings(private_key=None), *peer(own), *peer(ALICE)).settings
    assert set(keyless.peers) == {own, ALICE}
    keyed = after(keyless, f"private_key={OWN.to_bytes().hex()}").settings
    assert set(keyed.peers) == {ALICE}
    both = after(settings(private_key=None), f"private_key={OWN.to_bytes().hex()}", *peer(own)).settings
    assert both.peers == {}


def test_a_private_key_is_kept_as_it_is_used() -> None:
    """RFC 7748, section 5: three bits of the first byte and one of the last are cleared, and one of the last is set."""
    for given_key, used in (("ff" * 32, "f8" + "ff" * 30 + "7f"), ("01" + "00" * 31, "00" * 31 + "40")):
        made = after(settings(), f"private_key={given_key}").settings.private_key
        assert made is not None and made.to_bytes().hex() == used
        assert made.public_key() == PrivateKey.from_bytes(bytes.fromhex(given_key)).public_key()


def test_without_a_private_key_the_peers_stay() -> None:
    old = settings(PeerConfig(public_key=ALICE, persistent_keepalive=25.0))
    new = after(old, f"private_key={'00' * 32}").settings
    assert new.private_key is None and new.peers == old.peers


KEYS = st.sampled_from([ALICE, BOB, CAROL])
PREFIX = st.integers(0, 7).map(lambda number: f"10.0.{number}.0/24")
SECTION = st.tuples(
    KEYS,
    st.lists(
        st.sampled_from(["remove=true", "replace_allowed_ips=true", "update_only=true"])
        | PREFIX.map("allowed_ip={}".format)
        | PREFIX.map("allowed_ip=-{}".format),
        max_size=6,
    ),
)


@given(st.lists(st.tuples(st.booleans(), st.lists(SECTION, max_size=4)), max_size=4))
def test_prefixes_have_one_owner_as_in_a_plain_model(
    requests: list[tuple[bool, list[tuple[PublicKey, list[str]]]]],
) -> None:
    """Against a model that keeps nothing but who owns which prefix, in any order of any operations."""
    state = Settings()
    owners: dict[Network, PublicKey] = {}
    peers: set[PublicKey] = set()
    for replace, sections in requests:
        lines = ["replace_peers=true"] if replace else []
        if replace:
            peers, owners = set(), {}
        for key, said in sections:
            lines += peer(key, *said)
            if "remove=true" in said or (key not in peers and "update_only=true" in said):
                if "remove=true" in said:
                    peers.discard(key)
                    owners = {prefix: owner for prefix, owner in owners.items() if owner != key}
                continue
            peers.add(key)
            for line in said:
                name, _, value = line.partition("=")
                if name == "replace_allowed_ips":
                    owners = {prefix: owner for prefix, owner in owners.items() if owner != key}
                elif name == "allowed_ip" and value.startswith("-"):
                    if owners.get(ip_network(value[1:])) == key:
                        del owners[ip_network(value[1:])]
                elif name == "allowed_ip":
                    owners[ip_network(value)] = key
        state = after(state, *lines).settings
        assert set(state.peers) == peers
        assert {prefix: key for key, config in state.peers.items() for prefix in config.allowed_ips} == owners
        assert sum(len(config.allowed_ips) for config in state.peers.values()) == len(owners)
