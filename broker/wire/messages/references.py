"""References to objects in the store, as messages carry them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker.wire.messages.base import Key, Sha256, Size, Url, WireModel

MAX_PARTS = 400

StoreHeader = Annotated[str, Field(pattern=r"^x-amz-[a-z0-9-]{1,64}$")]
StoreHeaderValue = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}$")]
# decoding gives a list: the tuple accepts one, its two ends are still strict
ByteRange = Annotated[tuple[Size, Size], Field(strict=False)]


class Patch(WireModel):
    """The byte ranges ``[start, end)`` in which a file differs from the file ``base_sha256``.

    Whoever has that file downloads these alone. They are in order and do not touch; all other bytes
    are the same in both files.
    """

    base_sha256: Sha256
    changed: Annotated[list[ByteRange], Field(max_length=256)]


class ModelRef(WireModel):
    """A model in the store, by a presigned URL. ``sha256`` and ``size_bytes`` are the file's.

    ``patches`` say how it differs from earlier versions, where that saves much of a download.
    """

    url: Url
    key: Key
    sha256: Sha256
    size_bytes: Size
    patches: Annotated[list[Patch], Field(max_length=4)] = []


class PartsRef(WireModel):
    """Where to upload a large file in parts: presigned PUTs in order, a POST that completes it.

    Every part but the last has ``part_bytes``. The same ``upload_id`` again means that the parts
    that were uploaded still count.
    """

    upload_id: Annotated[str, Field(min_length=1, max_length=2048)]
    part_bytes: Annotated[int, Field(ge=1, le=5 << 30)]
    urls: Annotated[list[Url], Field(min_length=1, max_length=MAX_PARTS)]
    complete_url: Url


class UploadRef(WireModel):
    """Where to upload an update: a presigned PUT, with the headers that are signed into it.

    A large update is uploaded by ``parts``, where they are given.
    """

    url: Url
    key: Key
    headers: Annotated[dict[StoreHeader, StoreHeaderValue], Field(max_length=4)] = {}
    parts: PartsRef | None = None


class UpdateRef(WireModel):
    """An uploaded update: its object, size, and the sha256 of its header."""

    key: Key
    size_bytes: Size
    header_sha256: Sha256


class BundleRef(WireModel):
    """A task bundle in the store, by a presigned URL, for devices without the task installed."""

    url: Url
    sha256: Sha256
    size_bytes: Size
