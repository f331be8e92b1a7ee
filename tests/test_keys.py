"""Keys: the format of `wg`, RFC 7748's key pairs, and secrets that stay where they are."""

from __future__ import annotations

import base64
import copy
import dataclasses
import pickle
from typing import Any

import pytest

from connlib import ConnlibError, KeyFormatError, PeerConfig, PresharedKey, PrivateKey, PublicKey

# RFC 7748, section 6.1.
PAIRS = [
    (
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
    ),
    (
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
    ),
]
SECRET = bytes(range(100, 132))
KINDS: list[Any] = [PrivateKey, PresharedKey, PublicKey]
SECRETS: list[Any] = [PrivateKey, PresharedKey]


@pytest.mark.parametrize(("private", "public"), PAIRS)
def test_the_public_key_is_that_of_the_rfc(private: str, public: str) -> None:
    key = PrivateKey.from_bytes(bytes.fromhex(private))
    assert key.public_key().to_bytes().hex() == public


def test_bits_that_clamping_removes_do_not_change_the_public_key() -> None:
    private = bytes.fromhex(PAIRS[0][0])
    unclamped = bytes([private[0] ^ 7]) + private[1:31] + bytes([private[31] ^ 0x80])
    assert PrivateKey.from_bytes(unclamped).to_bytes() == unclamped
    assert PrivateKey.from_bytes(unclamped).public_key() == PrivateKey.from_bytes(private).public_key()


def test_a_generated_private_key_is_clamped_as_wg_genkey_does_it() -> None:
    for _ in range(64):
        data = PrivateKey.generate().to_bytes()
        assert data[0] & 7 == 0
        assert data[31] & 0xC0 == 0x40


@pytest.mark.parametrize("kind", SECRETS)
def test_generated_keys_differ(kind: Any) -> None:
    assert len({kind.generate().to_bytes() for _ in range(100)}) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_base64_come_back_as_they_went_in(kind: Any) -> None:
    text = base64.b64encode(SECRET).decode()
    assert kind.from_bytes(SECRET).to_bytes() == SECRET
    assert kind.from_bytes(SECRET).to_base64() == text
    assert kind.from_base64(text).to_bytes() == SECRET


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("buffer", [bytearray, memoryview, lambda data: memoryview(data * 2)[::2]])
def test_a_key_can_be_made_from_any_buffer(kind: Any, buffer: Any) -> None:
    key = kind.from_bytes(buffer(SECRET))
    assert len(key.to_bytes()) == 32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_a_wrong_number_of_bytes_is_named_and_the_key_is_not(kind: Any, length: int) -> None:
    data = (SECRET * 2)[:length]
    with pytest.raises(KeyFormatError) as raised:
        kind.from_bytes(data)
    message = str(raised.value)
    assert f"not {length}" in message and "\n" not in message
    assert not data or (data.hex() not in message and repr(data) not in message)


GOOD = base64.b64encode(SECRET).decode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[:-1],
        GOOD + "=",
        GOOD + "\n",
        " " + GOOD[1:],
        GOOD[:-1] + "A",
        GOOD[:20] + "\n" + GOOD[21:],
        GOOD[:20] + "!" + GOOD[21:],
        GOOD[:20] + "-_" + GOOD[22:],
        GOOD[:20] + "é" + GOOD[21:],
        GOOD[:20] + "\0" + GOOD[21:],
        "=" * 44,
        base64.b64encode(SECRET + b"x").decode(),
        base64.b64encode(SECRET[:31]).decode(),
        # Canonical base64 leaves the two bits behind the 32 bytes zero; `wg` insists on it.
        GOOD[:42] + chr(ord(GOOD[42]) + 1) + "=",
    ],
)
def test_text_that_wg_would_refuse_is_refused_without_showing_it(kind: Any, text: str) -> None:
    with pytest.raises(KeyFormatError) as raised:
        kind.from_base64(text)
    message = str(raised.value)
    assert "\n" not in message
    for start in range(len(text) - 8):
        assert text[start : start + 8] not in message


def test_a_format_error_is_a_value_error_of_ours() -> None:
    assert {ValueError, ConnlibError} <= set(KeyFormatError.__mro__)


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_of_another_type_are_a_type_error(kind: Any) -> None:
    with pytest.raises(TypeError):
        kind.from_bytes("text")
    with pytest.raises(TypeError):
        kind.from_bytes(32)
    with pytest.raises(TypeError):
        kind.from_base64(GOOD.encode())
    with pytest.raises(TypeError):
        kind()


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_equal_if_their_bytes_and_kinds_are(kind: Any) -> None:
    assert kind.from_bytes(SECRET) == kind.from_bytes(SECRET)
    assert kind.from_bytes(SECRET) != kind.from_bytes(bytes(32))
    assert kind.from_bytes(SECRET) != SECRET
    assert kind.from_bytes(SECRET) != GOOD
    for other in KINDS:
        if other is not kind:
            assert kind.from_bytes(SECRET) != other.from_bytes(SECRET)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_have_no_order_and_cannot_be_changed(kind: Any) -> None:
    key = kind.from_bytes(SECRET)
    with pytest.raises(TypeError):
        _ = key < key
    with pytest.raises(AttributeError):
        key.extra = 1


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_shows_in_no_text(kind: Any) -> None:
    key = kind.from_bytes(SECRET)
    peer = PeerConfig(
        public_key=PublicKey.from_bytes(bytes(32)), preshared_key=PresharedKey.from_bytes(SECRET)
    )
    for text in (repr(key), str(key), f"{key}", f"{key!r}", f"{[key]}", repr(peer), str(vars(type(key)))):
        assert GOOD not in text
        assert SECRET.hex() not in text
        assert repr(SECRET)[2:-1] not in text


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_not_pickled_copied_or_hashed(kind: Any) -> None:
    key = kind.from_bytes(SECRET)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(key, protocol)
    for make in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied"):
            make(key)
    with pytest.raises(TypeError, match="unhashable"):
        hash(key)


def test_a_configuration_with_a_secret_is_not_pickled_or_copied_deeply() -> None:
    peer = PeerConfig(
        public_key=PublicKey.from_bytes(bytes(32)), preshared_key=PresharedKey.from_bytes(SECRET)
    )
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(peer)
    with pytest.raises(TypeError, match="cannot be copied"):
        dataclasses.asdict(peer)
    assert dataclasses.replace(peer, name="x").preshared_key == peer.preshared_key


def test_a_public_key_is_hashed_pickled_copied_and_printed() -> None:
    key = PublicKey.from_bytes(SECRET)
    assert {key: 1}[PublicKey.from_bytes(SECRET)] == 1
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(key, protocol)) == key
    assert copy.copy(key) == key and copy.deepcopy(key) == key
    assert str(key) == GOOD
    assert repr(key) == f"PublicKey.from_base64('{GOOD}')"
