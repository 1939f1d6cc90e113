"""Keys: what one signs another does not, what is sealed for one another cannot read."""

from __future__ import annotations

import pytest

from runtime.errors import ConfigError, PeerError
from runtime.signing import SIGNATURE_BYTES, PublicKey, SecretKey

ONE, OTHER = SecretKey("01" * 32), SecretKey("02" * 32)


def test_a_signature_is_its_owners_over_these_bytes() -> None:
    signature = ONE.sign(b"round 3")
    assert len(signature) == SIGNATURE_BYTES
    ONE.public.verify(signature, b"round 3")
    for key, signed, data in [
        (OTHER.public, signature, b"round 3"),
        (ONE.public, signature, b"round 4"),
        (ONE.public, signature[:-1], b"round 3"),
        (ONE.public, b"", b"round 3"),
        (ONE.public, bytes(SIGNATURE_BYTES), b"round 3"),
    ]:
        with pytest.raises(PeerError) as caught:
            key.verify(signed, data)
        assert caught.value.reason == "signature"


def test_a_known_answer_of_rfc_8032() -> None:
    key = SecretKey("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert key.public.text == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert (
        key.sign(b"")
        .hex()
        .startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e0652249")
    )


def test_what_is_sealed_its_owner_alone_reads() -> None:
    sealed = ONE.public.seal(b"a password")
    assert ONE.unseal(sealed) == b"a password"
    assert ONE.public.seal(b"a password") != sealed
    for key, data in [(OTHER, sealed), (ONE, sealed[:-1]), (ONE, b""), (ONE, bytes(64))]:
        with pytest.raises(PeerError) as caught:
            key.unseal(data)
        assert caught.value.reason == "sealed"


@pytest.mark.parametrize("low_order", ["00" * 32, "01" + "00" * 31])
def test_nothing_is_sealed_for_a_key_of_low_order(low_order: str) -> None:
    with pytest.raises(PeerError) as caught:
        PublicKey(low_order).seal(b"a password")
    assert caught.value.reason == "key"


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "G" * 64, "AB" * 32, "0" * 63 + "\n"])
def test_what_is_no_key_is_a_named_error_that_does_not_show_it(text: str) -> None:
    for kind in (SecretKey, PublicKey):
        with pytest.raises(ConfigError, match="64 hexadecimal digits"):
            kind(text)


def test_keys_are_new_and_never_shown() -> None:
    key = SecretKey.generate()
    assert key != SecretKey.generate()
    assert key.text not in repr(key)


def test_a_derived_key_depends_on_secret_and_purpose() -> None:
    keys = {
        SecretKey.derive(secret, purpose).text
        for secret in (b"x" * 16, b"y" * 16)
        for purpose in ("claim", "broker")
    }
    assert len(keys) == 4
    assert SecretKey.derive(b"x" * 16, "claim") == SecretKey.derive(b"x" * 16, "claim")
    with pytest.raises(ConfigError):
        SecretKey.derive(b"x" * 16, "a purpose too long")
