"""The settings of a bucket, and boto3's client for it."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from runtime.config import AbsolutePath, from_environment, load
from runtime.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from botocore.session import Session as BotocoreSession
    from mypy_boto3_s3 import S3Client

CONNECT_S, READ_S = 3.0, 30.0
ATTEMPTS = 4
ENVIRONMENT = "RENGO_SERVER"
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_SSE = "x-amz-server-side-encryption"


class StoreSettings(BaseModel):
    """Where the bucket is, which key opens it, and how its objects are encrypted.

    Attributes:
        path_style: URLs have the bucket in their path; otherwise before the endpoint's host name.
        public_endpoint: the endpoint for devices, where it differs from the server's; presigned
            URLs name it and are signed for it.
        session_token: of temporary keys.
        ca: a PEM file with the authority of the certificate at ``endpoint``, where the system does
            not trust it.
        prefix: a folder of the bucket for this server alone; no such folder lies within another.
        sse: how the store is to encrypt each object; None leaves it to the bucket.
        kms_key: the id of the key for ``aws:kms``; None for the bucket's own.
        proxy: the HTTP proxy between the server and the store; None for none. Neither this nor
            anything else is taken from the variables and files of the AWS tools.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    endpoint: str
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "rengo"
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = "us-east-1"
    access_key: Annotated[str, Field(min_length=1)]
    secret: Annotated[SecretStr, Field(min_length=1)]
    session_token: SecretStr | None = None
    path_style: bool = True
    public_endpoint: str | None = None
    ca: AbsolutePath | None = None
    prefix: Annotated[str, Field(max_length=200)] = ""
    sse: Literal["AES256", "aws:kms"] | None = None
    kms_key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}$")] | None = None
    proxy: str | None = None

    @field_validator("endpoint", "public_endpoint", "proxy")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        try:
            usable = parts.scheme in {"http", "https"} and parts.port != 0 and not parts.username
        except ValueError:
            usable = False
        if not usable or _HOST.fullmatch(parts.hostname or "") is None:
            raise ValueError("must be http://host:port or https://host:port, without user")
        return value.rstrip("/")

    @field_validator("prefix")
    @classmethod
    def _is_folder(cls, value: str) -> str:
        folder = value.strip("/")
        if folder and (not _PREFIX.fullmatch(folder) or {".", ".."} & set(folder.split("/"))):
            raise ValueError("must be letters, digits and ._- between slashes")
        return folder

    @field_validator("kms_key")
    @classmethod
    def _needs_kms(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("sse") != "aws:kms":
            raise ValueError("is for sse = 'aws:kms' alone")
        return value

    @model_validator(mode="after")
    def _endpoints_are_names(self) -> StoreSettings:
        for name in ("endpoint", "public_endpoint"):
            value = getattr(self, name)
            if value is not None and not self.path_style and _is_address(value):
                raise ValueError(
                    f"path_style = false puts the bucket before {name}'s host, which must be a "
                    "name then, not an address"
                )
        return self

    @property
    def root(self) -> str:
        """The start of every key in the bucket."""
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def upload_params(self) -> dict[str, str]:
        """The parameters for boto3 where it makes an object or a multipart upload."""
        params = {"ServerSideEncryption": self.sse, "SSEKMSKeyId": self.kms_key}
        return {name: value for name, value in params.items() if value is not None}

    @property
    def upload_headers(self) -> dict[str, str]:
        """The same as headers of a PUT, signed into its URL; parts of an upload have none."""
        headers = {_SSE: self.sse, f"{_SSE}-aws-kms-key-id": self.kms_key}
        return {name: value for name, value in headers.items() if value is not None}


class _OfServer(BaseModel):
    """A server's settings, of which only the store is read."""

    model_config = ConfigDict(extra="ignore")
    store: StoreSettings


def settings_from(path: Path | None, given: Mapping[str, str]) -> StoreSettings:
    """Return the store in a server's TOML file and in RENGO_SERVER_STORE__….

    Args:
        path: the file; None where the environment has everything.
        given: keys that override both.

    Raises:
        ConfigError: names the file and each key that is missing or wrong.
    """
    if path is None and not from_environment(_OfServer, ENVIRONMENT):
        raise ConfigError(
            "no store is named: give a server's TOML file by --config, a site's folder by "
            f"--data-dir, or {ENVIRONMENT}_STORE__ENDPOINT and its other keys"
        )
    return load(_OfServer, path, ENVIRONMENT, {"store": dict(given)}).store


def _is_address(url: str) -> bool:
    try:
        ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def client_of(settings: StoreSettings, endpoint: str) -> S3Client:
    """Return a client for the bucket at one of its endpoints, by the settings alone.

    Raises:
        MissingExtra: boto3 is not installed.
    """
    try:
        import boto3  # noqa: PLC0415  (boto3 is the server's alone)
        import botocore.session  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("boto3", "server") from error
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if settings.path_style else "virtual"},
        # some stores refuse checksum trailers, others store them as data
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        max_pool_connections=16,
        # without proxies botocore takes those of the environment, also for this machine itself
        proxies={} if settings.proxy is None else dict.fromkeys(("http", "https"), settings.proxy),
    )
    token = settings.session_token
    # its own session: boto3's default session is not thread-safe
    session = botocore.session.Session()
    _ignore_surroundings(session)
    client = boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret.get_secret_value(),
        aws_session_token=None if token is None else token.get_secret_value(),
        verify=None if settings.ca is None else str(settings.ca),
        config=config,
    )
    for verb in ("DeleteObjects", "PutBucketLifecycleConfiguration"):
        client.meta.events.register(f"before-call.s3.{verb}", _add_md5)
    return client


def _ignore_surroundings(session: BotocoreSession) -> None:
    """Let a session have its defaults, whatever AWS_… variables and ~/.aws of this user say.

    They are about other stores: a profile that is not there would be an error, and a section for
    S3 another protocol.
    """
    from botocore.configprovider import (  # noqa: PLC0415
        BOTOCORE_DEFAUT_SESSION_VARIABLES as VARIABLES,
    )

    values = session.get_component("config_store")
    for name, (_, _, default, _) in VARIABLES.items():
        values.set_config_variable(name, default)
    for name in ("config_file", "credentials_file"):
        values.set_config_variable(name, os.devnull)


def _add_md5(params: dict[str, Any], **_: object) -> None:
    # MinIO's front requires it, and boto3 sends a CRC32 instead
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
