"""Presigned URLs, made in a third of the time that boto3's clients need.

For each URL boto3 serialises a whole request and evaluates its endpoint rules, and a server signs
three URLs for each update. The signature itself is botocore's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from storage.store.clock import StoreClock, credentials_of
from storage.store.settings import StoreSettings

if TYPE_CHECKING:
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from mypy_boto3_s3 import S3Client

_IN_A_PATH, _IN_A_QUERY = "/-._~", "-._~"


def _auth_by(clock: StoreClock) -> type[S3SigV4QueryAuth]:
    """Return botocore's signature with the clock's time."""
    from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415  (boto3 is the server's alone)

    class _QueryAuth(S3SigV4QueryAuth):
        def _modify_request_before_signing(self, request: AWSRequest) -> None:
            request.context["timestamp"] = clock.stamp()
            super()._modify_request_before_signing(request)  # type: ignore[misc]  # not in the stubs

    return _QueryAuth


class UrlSigner:
    """Signs URLs of one bucket, by Signature Version 4 in the query.

    Safe for use by many threads.

    Args:
        settings: the keys and the region.
        client: knows the bucket's URL, with the bucket in the path or in the host name.
        clock: the time that a URL is valid from.
    """

    def __init__(self, settings: StoreSettings, client: S3Client, clock: StoreClock) -> None:
        self._auth = _auth_by(clock)
        any_key = {"Bucket": settings.bucket, "Key": "k"}
        url = client.generate_presigned_url("get_object", Params=any_key)
        self._bucket_url = url.partition("?")[0].removesuffix("k")
        self._region = settings.region
        self._credentials = credentials_of(settings)
        self._clock = clock

    def sign(
        self,
        method: str,
        key: str,
        expires_s: int,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Return a URL for one method on one key of the bucket.

        Args:
            key: the whole key in the bucket.
            query: parameters besides the signature, as ``uploadId``.
            headers: those that the request must have.
        """
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415

        parameters = "&".join(
            f"{name}={quote(str(value), safe=_IN_A_QUERY)}" for name, value in (query or {}).items()
        )
        query_text = f"?{parameters}" if parameters else ""
        request = AWSRequest(
            method=method,
            url=self._bucket_url + quote(key, safe=_IN_A_PATH) + query_text,
            headers=dict(headers or {}),
        )
        auth = self._auth(self._credentials, "s3", self._region, expires=expires_s)
        auth.add_auth(request)
        return str(request.url)
