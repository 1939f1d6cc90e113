"""Presigned URLs are those that boto3 makes, for every kind of endpoint, verb and key."""

from __future__ import annotations

import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.auth
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.store.clock import StoreClock
from storage.store.presign import UrlSigner
from storage.store.settings import StoreSettings, client_of

MOMENT = datetime.datetime(2026, 11, 24, 12, 0, 0, tzinfo=datetime.UTC)
KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key-1"}
KMS_HEADERS = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": "key-1",
}
VERBS: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, str]]] = [
    ("get_object", "GET", {}, {}, {}),
    ("put_object", "PUT", {}, {}, {}),
    ("put_object", "PUT", {"ContentLength": 5}, {}, {"Content-Length": "5"}),
    ("put_object", "PUT", KMS, {}, KMS_HEADERS),
    (
        *("upload_part", "PUT"),
        {"UploadId": "u/+= 1~", "PartNumber": 7},
        {"uploadId": "u/+= 1~", "partNumber": 7},
        {},
    ),
    ("complete_multipart_upload", "POST", {"UploadId": "u-1"}, {"uploadId": "u-1"}, {}),
]
ENDPOINTS: list[dict[str, Any]] = [
    {"endpoint": "http://127.0.0.1:9000"},
    {"endpoint": "https://store.example/", "region": "local"},
    {"endpoint": "https://store.example", "path_style": False},
    {"endpoint": "http://store.example:9000", "path_style": False, "bucket": "a.b.c"},
    {"endpoint": "https://store.example", "path_style": False, "bucket": "a.b.c"},
    {"endpoint": "https://s3.eu-west-1.amazonaws.com", "region": "eu-west-1", "path_style": False},
    {"endpoint": "https://s3.amazonaws.com", "session_token": "to/ken+=="},
]
MADE = [
    (settings, client, UrlSigner(settings, client, StoreClock(MOMENT.timestamp, lambda: 0.0)))
    for settings in (
        StoreSettings(access_key="AKIAEXAMPLE", secret="se/cr+et", **endpoint)
        for endpoint in ENDPOINTS
    )
    for client in [client_of(settings, settings.endpoint)]
]


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = MOMENT.replace(tzinfo=None)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)


def parts(url: str) -> tuple[Any, ...]:
    found = urlsplit(url)
    return (*found[:3], parse_qs(found.query, keep_blank_values=True, strict_parsing=True))


@given(
    st.sampled_from(MADE),
    st.sampled_from(VERBS),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(
        lambda tail: f"projects/{tail}"
    ),
    st.integers(1, 604_800),
)
def test_a_url_is_the_one_that_boto3_makes(made: Any, verb: Any, key: str, expires_s: int) -> None:
    settings, client, signer = made
    name, method, params, query, headers = verb
    wanted = client.generate_presigned_url(
        name, Params={"Bucket": settings.bucket, "Key": key, **params}, ExpiresIn=expires_s
    )
    assert parts(signer.sign(method, key, expires_s, query=query, headers=headers)) == parts(wanted)
