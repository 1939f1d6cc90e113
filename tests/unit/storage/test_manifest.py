"""Signed documents: what was written is read, and nothing else is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.errors import Corrupt
from storage.versions.manifest import MAX_COHORT, MAX_DOCUMENT_BYTES, Manifest, Parent, Record
from tests.versions import KEY, OTHER_KEY, manifest_of

PUBLIC = KEY.public
PARENT = Parent(run_id="digits-0", version=3, sha256="0c" * 32)
MANIFEST = manifest_of("digits-1", 4, b"weights", parent=PARENT, changed=[(0, 8), (64, 80)])
RECORD = Record(
    run_id="digits-1",
    version=4,
    sha256="0a" * 32,
    revision=3,
    stage="archived",
    tags=["best", "v1.0"],
    metrics={"accuracy": 0.9375, "loss": 1e-9},
    promotions=[2, 5],
    withdrawn=True,
    reason="the accuracy dropped — by 0.2",
    changed_ms=1_700_000_000_000,
)


@pytest.mark.parametrize("document", [MANIFEST, RECORD])
def test_what_was_signed_is_read(document: Manifest | Record) -> None:
    data = document.encode(KEY)
    assert type(document).decode(data, PUBLIC, "it") == document
    assert type(document).decode(data, PUBLIC, "it").encode(KEY) == data


@given(
    settings=st.dictionaries(
        st.text(max_size=8),
        st.none()
        | st.booleans()
        | st.integers(-(1 << 60), 1 << 60)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8)
        | st.lists(st.integers(0, 9), max_size=3),
        max_size=5,
    )
)
def test_an_algorithms_settings_come_back_and_sign_the_same(settings: dict[str, Any]) -> None:
    manifest = manifest_of("r", 1, algorithm_settings=settings, training=settings)
    data = manifest.encode(KEY)
    again = Manifest.decode(data, PUBLIC, "it")
    assert again == manifest
    assert again.encode(KEY) == data


def test_no_byte_can_be_changed() -> None:
    data = RECORD.encode(KEY)
    for index in range(len(data)):
        for bit in (0x01, 0x80):
            altered = bytearray(data)
            altered[index] ^= bit
            if json_of(bytes(altered)) != json_of(data):
                with pytest.raises(Corrupt, match="it: "):
                    Record.decode(bytes(altered), PUBLIC, "it")


def json_of(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


@given(cut=st.integers(0, 10_000))
def test_a_torn_file_is_refused(cut: int) -> None:
    data = MANIFEST.encode(KEY)
    with pytest.raises(Corrupt, match="projects/p: "):
        Manifest.decode(data[: cut % len(data)], PUBLIC, "projects/p")


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_rubbish_is_refused_by_name(data: bytes) -> None:
    for kind in (Manifest, Record):
        with pytest.raises(Corrupt, match="projects/p: not a "):
            kind.decode(data, PUBLIC, "projects/p")


def test_another_key_is_no_server_of_this_site() -> None:
    with pytest.raises(Corrupt, match=r"^it: not signed by this site's server$"):
        Manifest.decode(MANIFEST.encode(OTHER_KEY), PUBLIC, "it")


def envelope(signed: str, purpose: bytes) -> bytes:
    signature = KEY.sign(purpose + signed.encode()).hex()
    return json.dumps({"signed": signed, "signature": signature}).encode()


def test_a_signature_serves_one_purpose() -> None:
    text = MANIFEST.model_dump_json()
    assert Manifest.decode(envelope(text, Manifest.purpose()), PUBLIC, "it") == MANIFEST
    for purpose in (Record.purpose(), b"", b"rengo-manifest-1"):
        with pytest.raises(Corrupt, match="not signed"):
            Manifest.decode(envelope(text, purpose), PUBLIC, "it")


def test_a_manifest_is_no_record_and_a_record_no_manifest() -> None:
    with pytest.raises(Corrupt, match="not signed"):
        Record.decode(MANIFEST.encode(KEY), PUBLIC, "it")
    with pytest.raises(Corrupt, match="not signed"):
        Manifest.decode(RECORD.encode(KEY), PUBLIC, "it")
    # not even where the server was brought to sign it so
    with pytest.raises(Corrupt, match="not a Record"):
        Record.decode(envelope(MANIFEST.model_dump_json(), Record.purpose()), PUBLIC, "it")


@pytest.mark.parametrize(
    "wrong",
    [
        {"signature": "zz" * 64},
        {"signature": "0A" * 64},
        {"signature": "00" * 63},
        {"signature": 5},
        {"signed": 5},
        {"signed": {}},
        {"more": 1},
    ],
)
def test_an_envelope_of_another_form_is_refused(wrong: dict[str, Any]) -> None:
    fields = json.loads(RECORD.encode(KEY)) | wrong
    with pytest.raises(Corrupt, match="not a Record"):
        Record.decode(json.dumps(fields).encode(), PUBLIC, "it")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("manifest", {"schema_version": 2}),
        ("manifest", {"version": -1}),
        ("manifest", {"version": 1 << 53}),
        ("manifest", {"version": 1.5}),
        ("manifest", {"version": True}),
        ("manifest", {"run_id": "Not a name"}),
        ("manifest", {"project": "a/b"}),
        ("manifest", {"sha256": "0A" * 32}),
        ("manifest", {"sha256": "0a" * 31}),
        ("manifest", {"seed": 1 << 63}),
        ("manifest", {"cohort": ["d"] * (MAX_COHORT + 1)}),
        ("manifest", {"key": ""}),
        ("manifest", {"key": "k" * 513}),
        ("manifest", {"parent": {"run_id": "r"}}),
        ("manifest", {"changed": [[1]]}),
        ("manifest", {"more": 1}),
        ("record", {"stage": "live"}),
        ("record", {"tags": ["Best"]}),
        ("record", {"tags": ["t"] * 65}),
        ("record", {"tags": ["t" * 65]}),
        ("record", {"metrics": {"": 1.0}}),
        ("record", {"metrics": {str(number): 1.0 for number in range(65)}}),
        ("record", {"metrics": {"a": "1"}}),
        ("record", {"promotions": [-1]}),
        ("record", {"promotions": [1] * 1001}),
        ("record", {"reason": "r" * 2001}),
        ("record", {"withdrawn": 1}),
        ("record", {"more": 1}),
    ],
)
def test_what_is_out_of_bounds_is_refused_though_it_was_signed(
    kind: str, wrong: dict[str, Any]
) -> None:
    document: Manifest | Record = MANIFEST if kind == "manifest" else RECORD
    text = json.dumps(document.model_dump(mode="json") | wrong)
    with pytest.raises(Corrupt, match=f"not a {type(document).__name__}"):
        type(document).decode(envelope(text, type(document).purpose()), PUBLIC, "it")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_is_finite(value: float) -> None:
    with pytest.raises(ValidationError):
        Record(run_id="r", version=1, sha256="0a" * 32, metrics={"loss": value})
    text = RECORD.model_dump_json().replace("1e-9", str(value))
    with pytest.raises(Corrupt, match="not a Record"):
        Record.decode(envelope(text, Record.purpose()), PUBLIC, "it")


def test_a_document_has_a_largest_size() -> None:
    names = [f"{number:064d}" for number in range(MAX_COHORT)]
    largest = manifest_of("r", 1, cohort=names, training={"text": "x" * (32 << 10)})
    assert len(largest.encode(KEY)) <= MAX_DOCUMENT_BYTES
    with pytest.raises(Corrupt, match=r"a Manifest of .* bytes, at most 196608"):
        manifest_of("r", 1, training={"text": "x" * (192 << 10)}).encode(KEY)
    with pytest.raises(Corrupt, match="it: 196609 bytes, at most 196608"):
        Manifest.decode(b"[" * (MAX_DOCUMENT_BYTES + 1), PUBLIC, "it")


@pytest.mark.parametrize("depth", [1000, 90_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    with pytest.raises(Corrupt, match="not a Manifest"):
        Manifest.decode(b"[" * depth, PUBLIC, "it")
    nested = '{"a":' * depth + "1" + "}" * depth
    text = MANIFEST.model_dump_json().replace('"training":{"epochs":1}', f'"training":{nested}')
    data = envelope(text, Manifest.purpose())
    if len(data) <= MAX_DOCUMENT_BYTES:
        with pytest.raises(Corrupt, match="not a Manifest"):
            Manifest.decode(data, PUBLIC, "it")


def test_a_version_has_a_name() -> None:
    assert MANIFEST.name == "digits-1:4"
