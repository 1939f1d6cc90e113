"""What a store's answers mean for Rengo, in words for its operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rengo.doctor.checks import Check, healthy
from runtime.errors import AccessDenied, Corrupt, NotFound, StorageError, Unavailable
from storage.store.lifecycle import rule_is_set
from storage.store.probe import LATEST_S, Answer, Findings
from storage.store.s3 import S3Store
from storage.store.speed import SIZES_MB, TransferSpeed
from storage.transfer import http

_CLOSE_S = 60.0
_READ_BYTES = 256 << 20
_DAMAGED_SHOWN = 5
_MEND_OBJECTS = (
    "restore the store's files from a backup; until then such a version is set aside, see "
    "`rengo models ls`, and `rengo models rm` removes it for good"
)
_NOT_USED = "Rengo does not use it"
_ASK = "ask the store's operator for it, or use another store"


@dataclass(frozen=True)
class StoreFeature:
    """What one answer is called and what follows from it.

    Attributes:
        there: what it gives.
        lacking: what follows where it is not there.
        required: Rengo cannot work without it.
        matters: its absence is worth a note.
    """

    name: str
    there: str
    lacking: str
    required: bool = False
    matters: bool = True


FEATURES = {
    "range": StoreFeature(
        "byte ranges",
        "an interrupted download goes on where it stood",
        "an interrupted download begins anew",
    ),
    "if_match": StoreFeature(
        "If-Match on GET", "answered", f"{_NOT_USED}: a download's sha256 decides", matters=False
    ),
    "delete_many": StoreFeature(
        "delete many", "a round is swept in one request", "the server cannot sweep", required=True
    ),
    "multipart": StoreFeature(
        "multipart uploads",
        "objects of 64 MiB and more go in parts, and what was left unfinished is found",
        "no model or update of 64 MiB and more, or its leftovers are not found",
    ),
    "presigned_parts": StoreFeature(
        "presigned parts",
        "devices send large updates in parts, and go on after a cut",
        "devices send each update in one request, which begins anew after a cut",
    ),
    "part_copy": StoreFeature("copying of parts", "answered", _NOT_USED, matters=False),
    "pinned_length": StoreFeature(
        "pinned length",
        "an upload of another length than its URL says is refused",
        "a URL takes a body of any length; the server refuses it afterwards",
        matters=False,
    ),
    "conditional_put": StoreFeature(
        "conditional PUT", "answered", f"{_NOT_USED}: one server writes a project", matters=False
    ),
    "versioning": StoreFeature(
        "versioning", "answered", f"{_NOT_USED}: it keeps versions itself", matters=False
    ),
    "lifecycle": StoreFeature(
        "lifecycle rules",
        "the bucket can end unfinished uploads by itself",
        "unfinished uploads stay until the server sweeps: at a run's end, and by its collector",
        matters=False,
    ),
    "sse_s3": StoreFeature(
        "encryption, store's key", "sse = 'AES256' works", "leave out sse = 'AES256'", matters=False
    ),
    "sse_kms": StoreFeature(
        "encryption, key service",
        "sse = 'aws:kms' works",
        "leave out sse = 'aws:kms'",
        matters=False,
    ),
}
_KINDS = {"AES256": "sse_s3", "aws:kms": "sse_kms"}


def checks(store: S3Store, found: Findings) -> list[Check]:
    """Return what the answers mean, in the order to read it."""
    return [
        Check("plain verbs", True, f"a small GET takes {found.round_trip_s * 1e3:.1f} ms"),
        _clock(found.clock_offset_s),
        *_public(store),
        *(_feature(store, name, getattr(found.can, name)) for name in FEATURES),
        *_versions(found),
        *_rule(store, found),
        _objects(store),
    ]


def _objects(store: S3Store) -> Check:
    """Read what the store has, small objects first, as far as a person may wait."""
    listed = sorted(store.list("projects/"), key=lambda info: info.size)
    damaged: list[str] = []
    left = _READ_BYTES
    read = 0
    for info in listed:
        left -= info.size
        if left < 0:
            break
        read += 1
        try:
            with store.open(info.key) as stream:
                while stream.read(http.BLOCK_BYTES):
                    pass
        except NotFound:
            continue  # removed meanwhile, as updates are
        except (Unavailable, Corrupt) as error:
            damaged.append(str(error))
    if damaged:
        shown = "; ".join(damaged[:_DAMAGED_SHOWN])
        return Check("objects", False, f"{len(damaged)} cannot be read: {shown}", _MEND_OBJECTS)
    return Check("objects", True, f"{read} of {len(listed)} were read, all whole")


def speed_lines(speeds: Sequence[TransferSpeed]) -> list[str]:
    """Return the speeds for a person, a line a size."""
    lines = [
        f"{each.size_mb:3d} MB: PUT {_rate(each.put_mb_s)}, GET {_rate(each.get_mb_s)}"
        for each in speeds
    ]
    left_out = [str(size) for size in SIZES_MB if size not in {each.size_mb for each in speeds}]
    if left_out:
        lines.append(f"{' and '.join(left_out)} MB left out: it would take minutes at this speed")
    return lines


def as_json(
    store: S3Store, found: Findings, speeds: Sequence[TransferSpeed], checked: Sequence[Check]
) -> dict[str, Any]:
    """Return all of it as a document for ``--json``."""
    settings = store.settings
    return {
        "ok": healthy(checked),
        "endpoint": settings.endpoint,
        "bucket": settings.bucket,
        "prefix": settings.prefix,
        "can": asdict(found.can),
        "keeps_versions": found.keeps_versions,
        "round_trip_s": round(found.round_trip_s, 6),
        "clock_offset_s": found.clock_offset_s,
        "speeds": [asdict(each) for each in speeds],
        "checks": [asdict(each) for each in checked],
    }


def _rate(mb_s: float) -> str:
    return f"{mb_s:.0f} MB/s" if mb_s >= 10 else f"{mb_s:.1f} MB/s"


def _feature(store: S3Store, name: str, answer: Answer) -> Check:
    feature = FEATURES[name]
    if answer:
        return Check(feature.name, True, feature.there, required=feature.required)
    if _KINDS.get(store.settings.sse or "") == name:
        mend = f"leave out store.sse = '{store.settings.sse}', or let the store support it"
        return Check(feature.name, False, "asked for by store.sse, and not there", mend)
    why = "this key may not ask for it" if answer is None else "not there"
    detail = f"{why}: {feature.lacking}"
    if not feature.matters:
        return Check(feature.name, True, detail, required=False)
    return Check(feature.name, False, detail, _ASK, feature.required)


def _clock(offset_s: float) -> Check:
    late = "ahead of" if offset_s > 0 else "behind"
    detail = (
        "equal to this machine's, to the second"
        if abs(offset_s) <= 1
        else f"{abs(offset_s):.0f} s {late} this machine's"
    )
    if abs(offset_s) <= _CLOSE_S:
        return Check("clock", True, detail)
    mend = "set both clocks, for example: sudo timedatectl set-ntp true"
    if abs(offset_s) < LATEST_S:
        detail += "; URLs live that much shorter or longer than they say"
        return Check("clock", False, detail, mend, required=False)
    detail += "; stores refuse what was signed more than 15 minutes away from their time"
    return Check("clock", False, detail, mend)


def _public(store: S3Store) -> Iterator[Check]:
    """Ask for an object that is not there as a device would: NotFound is a good answer."""
    endpoint = store.settings.public_endpoint
    if endpoint is None:
        return
    name, url = "public endpoint", store.presign_get("probe/none", 60)
    try:
        http.fetch(store.http, url).close()
    except NotFound:
        yield Check(name, True, f"{endpoint} answers")
    except AccessDenied:
        detail = f"{endpoint} refuses URLs that name it: something between changes the host's name"
        yield Check(name, False, detail, "let the proxy pass the Host header on, or name the store")
    except StorageError as error:
        detail = f"not reached from here, which devices may do nevertheless: {error}"
        yield Check(name, False, detail, "look at store.public_endpoint", required=False)


def _versions(found: Findings) -> Iterator[Check]:
    if found.keeps_versions:
        yield Check(
            "old versions",
            False,
            "the bucket keeps what is deleted: the updates of each round cost space for ever",
            "give it a rule that ends noncurrent versions, or a bucket without versioning",
            required=False,
        )


def _rule(store: S3Store, found: Findings) -> Iterator[Check]:
    if found.can.lifecycle:
        name, there = "unfinished uploads", rule_is_set(store)
        detail = (
            "end after a day by the bucket's rule" if there else "no rule of ours ends them yet"
        )
        mend = "" if there else "the server sets it at its start where no other rule stands"
        yield Check(name, there, detail, mend, required=False)
