"""What operations on task bundles return. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker.wire.messages import (
    Sha256,
)
from broker.wire.messages.base import Url
from broker.wire.messages.references import StoreHeader, StoreHeaderValue
from fl_server.operations.arguments import Name
from fl_server.operations.results.base import (
    Count,
    Listing,
    OperationResult,
    Short,
    Text,
)


class BundleRow(OperationResult):
    """A task bundle of the site. Units: times are Unix milliseconds; 0 never expires."""

    name: Short
    task: Name
    version: Short
    sha256: Sha256
    size_bytes: Count
    signer: Annotated[str, Field(max_length=64)]
    created_ms: Count
    expires_ms: Count
    dependencies: Annotated[list[Text], Field(max_length=1000)]
    memory_bytes: Count


class BundleList(Listing):
    """The site's bundles, the latest made first."""

    rows_key, id_key = "bundles", "sha256"
    bundles: Annotated[list[BundleRow], Field(max_length=100_000)]


class BundleUrl(BundleRow):
    """A bundle with a presigned GET of it."""

    url: Url


class BundleUpload(OperationResult):
    """Where a bundle is to be uploaded."""

    url: Url
    headers: dict[StoreHeader, StoreHeaderValue]
