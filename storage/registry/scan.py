"""What a bucket says of a project's versions: one listing, and a GET for each unknown document.

Whatever else wrote to the bucket, reading it never fails for what stands there: a document that is
damaged, signed by another or out of its place counts as not there, and is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from runtime.errors import Corrupt, NotFound
from runtime.security.signing import PublicKey
from storage.store.objects import ObjectInfo, Objects
from storage.versions.index import Version, VersionKey
from storage.versions.keys import RunKeys, runs_prefix
from storage.versions.manifest import MAX_DOCUMENT_BYTES, Manifest, Record

_READERS = 8


@dataclass(frozen=True)
class Document:
    """A stored file with the ETag that a listing shows of it."""

    key: str
    etag: str
    data: bytes


class DocumentCache(Protocol):
    """Documents as they were read, so that a rebuild reads only what is new. Never trusted."""

    def get(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """Return by key the documents that are held with the given ETag and no other."""
        ...

    def put(self, documents: Iterable[Document]) -> None:
        """Hold the documents in the place of older ones."""
        ...

    def forget(self, keys: Iterable[str]) -> None:
        """Drop the documents."""
        ...


@dataclass
class RegistryScan:
    """What a listing came to.

    Attributes:
        versions: those with a sound manifest and a model in the store.
        unreadable: versions of which a manifest or record is there that cannot be believed.
        strays: records' keys that belong to none of the versions.
        read: documents that the cache did not hold.
        lines: what was wrong, for people.
    """

    versions: list[Version] = field(default_factory=list)
    unreadable: set[VersionKey] = field(default_factory=set)
    strays: set[str] = field(default_factory=set)
    read: list[Document] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def read_catalogue(
    store: Objects, project: str, key: PublicKey, cache: DocumentCache | None
) -> RegistryScan:
    """Return what the store holds of a project's versions.

    Raises:
        Unavailable, AccessDenied: nothing can be said.
    """
    return _Reading(store, project, key, cache).catalogue()


def read_record(store: Objects, key: PublicKey, manifest: Manifest) -> Record:
    """Return a version's record as it stands in the store.

    Raises:
        NotFound: it has none.
        Corrupt: it cannot be believed.
    """
    where = RunKeys(manifest.project, manifest.run_id).record(manifest.version)
    record = Record.decode(_fetch(store, where), key, where)
    wrong = _wrong_of_record(record, manifest, where)
    if wrong:
        raise Corrupt(wrong)
    return record


def new_record(manifest: Manifest) -> Record:
    """Return what holds of a version that has no record."""
    return Record(run_id=manifest.run_id, version=manifest.version, sha256=manifest.sha256)


@dataclass
class _Place:
    """Which of a version's objects the listing shows."""

    manifest: ObjectInfo | None = None
    record: ObjectInfo | None = None
    model: ObjectInfo | None = None


class _Reading:
    def __init__(
        self, store: Objects, project: str, key: PublicKey, cache: DocumentCache | None
    ) -> None:
        self._store = store
        self._project = project
        self._key = key
        self._cache = cache
        self._found = RegistryScan()
        self._manifests: dict[str, Manifest] = {}
        self._records: dict[str, Record] = {}
        self._wrong: dict[str, str] = {}

    def catalogue(self) -> RegistryScan:
        places = self._places()
        self._read(
            [
                info
                for place in places.values()
                for info in (place.manifest, place.record)
                if info is not None
            ]
        )
        for run_id, number in sorted(places):
            self._take(RunKeys(self._project, run_id), number, places[run_id, number])
        return self._found

    def _places(self) -> dict[VersionKey, _Place]:
        places: dict[VersionKey, _Place] = {}
        for info in self._store.list(runs_prefix(self._project)):
            keys = RunKeys.of(info.key)
            number = None if keys is None else keys.version_of(info.key)
            if keys is None or number is None:
                continue
            place = places.setdefault((keys.run_id, number), _Place())
            if info.key == keys.manifest(number):
                place.manifest = info
            elif info.key == keys.record(number):
                place.record = info
            elif info.key == keys.version(number):
                place.model = info
            elif info.key != keys.state(number):
                self._found.lines.append(f"{info.key}: no key that Rengo writes")
        return places

    def _read(self, documents: list[ObjectInfo]) -> None:
        """Decode the documents: from the cache where it holds them and they are sound."""
        if self._cache is not None:
            # no ETag, no way to tell one revision from the next
            wanted = {info.key: info.etag for info in documents if info.etag}
            for where, held in self._cache.get(wanted).items():
                self._decode(where, held)
        missing = [
            info
            for info in documents
            if info.key not in self._manifests and info.key not in self._records
        ]
        with ThreadPoolExecutor(_READERS, "registry") as readers:
            for info, data in zip(missing, readers.map(self._fetch, missing), strict=True):
                if data is None:
                    self._wrong[info.key] = f"{info.key}: listed, but not there"
                elif self._decode(info.key, data) and info.etag:
                    self._found.read.append(Document(info.key, info.etag, data))

    def _fetch(self, info: ObjectInfo) -> bytes | None:
        try:
            return _fetch(self._store, info.key)
        except NotFound:
            return None

    def _decode(self, where: str, data: bytes) -> bool:
        try:
            if "/manifests/" in where:
                self._manifests[where] = Manifest.decode(data, self._key, where)
            else:
                self._records[where] = Record.decode(data, self._key, where)
        except Corrupt as error:
            self._wrong[where] = str(error)
            return False
        return True

    def _take(self, keys: RunKeys, number: int, place: _Place) -> None:
        if place.manifest is None:
            self._note_stray(keys, number, place)
            return
        manifest = self._manifests.get(place.manifest.key)
        wrong = self._wrong.get(place.manifest.key, "")
        if manifest is not None:
            wrong = _wrong_of_manifest(manifest, keys, number)
        if manifest is None or wrong:
            self._found.unreadable.add((keys.run_id, number))
            self._found.lines.append(wrong)
            return
        if place.model is None:
            self._found.lines.append(f"{place.manifest.key}: its model {manifest.key} is not there")
            self._note_stray(keys, number, place)
            return
        if place.model.size != manifest.size_bytes:
            self._found.lines.append(
                f"{manifest.key}: {place.model.size} bytes, "
                f"its manifest says {manifest.size_bytes}: it will be refused"
            )
        self._found.versions.append(Version(manifest, self._record(manifest, place.record)))

    def _record(self, manifest: Manifest, info: ObjectInfo | None) -> Record:
        if info is None:
            return new_record(manifest)
        record = self._records.get(info.key)
        wrong = self._wrong.get(info.key, "")
        if record is not None:
            wrong = _wrong_of_record(record, manifest, info.key)
        if record is None or wrong:
            self._found.unreadable.add((manifest.run_id, manifest.version))
            self._found.lines.append(f"{wrong}; {manifest.name} counts as without stage and tags")
            return new_record(manifest)
        return record

    def _note_stray(self, keys: RunKeys, number: int, place: _Place) -> None:
        if place.record is not None:
            self._found.strays.add(place.record.key)
            if place.manifest is None:
                self._found.lines.append(f"{place.record.key}: a record without a manifest")


def _wrong_of_manifest(manifest: Manifest, keys: RunKeys, number: int) -> str:
    named = manifest.project, manifest.run_id, manifest.version, manifest.key
    if named == (keys.project, keys.run_id, number, keys.version(number)):
        return ""
    return f"{keys.manifest(number)}: the manifest of {manifest.project}/{manifest.name}"


def _wrong_of_record(record: Record, manifest: Manifest, where: str) -> str:
    if (record.run_id, record.version) != (manifest.run_id, manifest.version):
        return f"{where}: the record of {record.run_id}:{record.version}"
    if record.sha256 != manifest.sha256:
        return f"{where}: the record of sha256 {record.sha256[:8]}…, not of its manifest's"
    return ""


def _fetch(store: Objects, key: str) -> bytes:
    data = bytearray()
    with store.open(key) as stream:
        while len(data) <= MAX_DOCUMENT_BYTES:
            part = stream.read(MAX_DOCUMENT_BYTES + 1 - len(data))
            if not part:
                break
            data += part
    return bytes(data)
