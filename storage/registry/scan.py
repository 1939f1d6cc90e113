"""Reads a project's versions from a bucket: one listing, and a GET for each document not cached.

The contents of the bucket never make the scan fail: a document that is damaged, signed by another
key or stored at a wrong key counts as absent and is reported. One that the store cannot give while
it serves others sets its version aside until a later scan: what it says of stage and tags must not
be written over.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from runtime.errors import Corrupt, Damaged, NotFound
from runtime.security.signing import PublicKey
from storage.store.objects import ObjectInfo, Objects
from storage.store.serving import damage_told
from storage.versions.keys import RunKeys, runs_prefix
from storage.versions.manifest import MAX_DOCUMENT_BYTES, Manifest, Record
from storage.versions.version import Version, VersionKey

_READERS = 8
# how many versions are read together; what the server holds of others is on the disk
_AT_ONCE = 200


@dataclass(frozen=True)
class Document:
    """A stored file with the ETag of a listing."""

    key: str
    etag: str
    data: bytes


class DocumentCache(Protocol):
    """Documents of earlier scans, so that a scan reads only new ones. They are verified again."""

    def get(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """Return by key the cached documents whose ETag is the given one."""
        ...

    def put(self, documents: Iterable[Document]) -> None:
        """Cache the documents instead of older ones."""
        ...

    def forget(self, keys: Iterable[str]) -> None:
        """Remove the documents from the cache."""
        ...


@dataclass
class RegistryScan:
    """The result of a scan.

    Attributes:
        unreadable: versions with a manifest or record that is not valid, and why.
        set_aside: versions with a manifest or record that the store cannot give, and why.
        orphan_records: the keys of records without a version.
        problems: what was wrong, for people.
    """

    unreadable: dict[VersionKey, str] = field(default_factory=dict)
    set_aside: dict[VersionKey, str] = field(default_factory=dict)
    orphan_records: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def scan_registry(
    store: Objects,
    project: str,
    key: PublicKey,
    cache: DocumentCache | None,
    add: Callable[[Version], None],
) -> RegistryScan:
    """Read a project's versions in the store, some at a time.

    Args:
        add: is given each with a valid manifest and a model in the store.

    Raises:
        Unavailable, AccessDenied: the store could not be read.
    """
    return _Scanner(store, project, key, cache, add).scan()


def read_record(store: Objects, key: PublicKey, manifest: Manifest) -> Record:
    """Return a version's record in the store.

    Raises:
        NotFound: it has none.
        Corrupt: it is not valid.
    """
    record_key = RunKeys(manifest.project, manifest.run_id).record(manifest.version)
    record = Record.decode(_fetch(store, record_key), key, record_key)
    problem = _record_mismatch(record, manifest, record_key)
    if problem:
        raise Corrupt(problem)
    return record


def new_record(manifest: Manifest) -> Record:
    """Return the record of a version that has none in the store."""
    return Record(run_id=manifest.run_id, version=manifest.version, sha256=manifest.sha256)


@dataclass
class _ListedObjects:
    """A version's objects in the listing."""

    manifest: ObjectInfo | None = None
    record: ObjectInfo | None = None
    model: ObjectInfo | None = None


class _Scanner:
    def __init__(
        self,
        store: Objects,
        project: str,
        key: PublicKey,
        cache: DocumentCache | None,
        add: Callable[[Version], None],
    ) -> None:
        self._store = store
        self._project = project
        self._key = key
        self._cache = cache
        self._add = add
        self._found = RegistryScan()
        # of the versions that are being read
        self._manifests: dict[str, Manifest] = {}
        self._records: dict[str, Record] = {}
        self._problem_of: dict[str, str] = {}
        self._damaged: dict[str, str] = {}

    def scan(self) -> RegistryScan:
        listed = self._list()
        while some := list(itertools.islice(listed, _AT_ONCE)):
            documents = [info for _, each in some for info in (each.manifest, each.record)]
            self._read([info for info in documents if info is not None])
            for (run_id, number), objects in some:
                self._add_version(RunKeys(self._project, run_id), number, objects)
            for kept in (self._manifests, self._records, self._problem_of, self._damaged):
                kept.clear()
        return self._found

    def _list(self) -> Iterator[tuple[VersionKey, _ListedObjects]]:
        """Yield each version with its objects; a listing has those of a run one after the other."""
        for run_id, infos in itertools.groupby(self._of_runs(), lambda it: it[0].run_id):
            listed: defaultdict[int, _ListedObjects] = defaultdict(_ListedObjects)
            for keys, number, info in infos:
                self._note(listed[number], keys, number, info)
            for number in sorted(listed):
                yield (run_id, number), listed[number]

    def _of_runs(self) -> Iterator[tuple[RunKeys, int, ObjectInfo]]:
        for info in self._store.list(runs_prefix(self._project)):
            keys = RunKeys.of(info.key)
            number = None if keys is None else keys.version_of(info.key)
            if keys is not None and number is not None:
                yield keys, number, info

    def _note(self, objects: _ListedObjects, keys: RunKeys, number: int, info: ObjectInfo) -> None:
        if info.key == keys.manifest(number):
            objects.manifest = info
        elif info.key == keys.record(number):
            objects.record = info
        elif info.key == keys.version(number):
            objects.model = info
        elif info.key not in {keys.state(number), *keys.of_domain(number)}:
            self._found.problems.append(f"{info.key}: no key that Rengo writes")

    def _read(self, documents: list[ObjectInfo]) -> None:
        """Decode the documents: from the cache where it has them and they are valid."""
        if self._cache is not None:
            # without an ETag one revision cannot be told from the next
            wanted = {info.key: info.etag for info in documents if info.etag}
            for key, cached in self._cache.get(wanted).items():
                self._decode(key, cached)
        missing = [
            info
            for info in documents
            if info.key not in self._manifests and info.key not in self._records
        ]
        fetched: list[Document] = []
        with ThreadPoolExecutor(_READERS, "registry") as readers:
            for info, data in zip(missing, readers.map(self._fetch, missing), strict=True):
                if info.key in self._damaged:
                    continue
                if data is None:
                    self._problem_of[info.key] = f"{info.key}: listed, but not there"
                elif self._decode(info.key, data) and info.etag:
                    fetched.append(Document(info.key, info.etag, data))
        if self._cache is not None and fetched:
            self._cache.put(fetched)

    def _fetch(self, info: ObjectInfo) -> bytes | None:
        try:
            return damage_told(self._store, lambda: _fetch(self._store, info.key))
        except NotFound:
            return None
        except Damaged as error:
            self._damaged[info.key] = str(error)
            return b""

    def _decode(self, key: str, data: bytes) -> bool:
        try:
            if "/manifests/" in key:
                self._manifests[key] = Manifest.decode(data, self._key, key)
            else:
                self._records[key] = Record.decode(data, self._key, key)
        except Corrupt as error:
            self._problem_of[key] = str(error)
            return False
        return True

    def _add_version(self, keys: RunKeys, number: int, objects: _ListedObjects) -> None:
        documents = [each for each in (objects.manifest, objects.record) if each is not None]
        damage = [self._damaged[each.key] for each in documents if each.key in self._damaged]
        if damage:
            self._found.set_aside[keys.run_id, number] = damage[0]
            self._found.problems.append(f"{keys.run_id}:{number} is set aside: {damage[0]}")
            return
        if objects.manifest is None:
            self._note_orphan_record(keys, number, objects)
            return
        manifest = self._manifests.get(objects.manifest.key)
        problem = self._problem_of.get(objects.manifest.key, "")
        if manifest is not None:
            problem = _manifest_mismatch(manifest, keys, number)
        if manifest is None or problem:
            self._found.unreadable[keys.run_id, number] = problem
            self._found.problems.append(problem)
            return
        if objects.model is None:
            self._found.problems.append(
                f"{objects.manifest.key}: its model {manifest.key} is not there"
            )
            self._note_orphan_record(keys, number, objects)
            return
        if objects.model.size != manifest.size_bytes:
            self._found.problems.append(
                f"{manifest.key}: {objects.model.size} bytes, "
                f"its manifest says {manifest.size_bytes}: it will be refused"
            )
        self._add(Version(manifest, self._record(manifest, objects.record)))

    def _record(self, manifest: Manifest, info: ObjectInfo | None) -> Record:
        if info is None:
            return new_record(manifest)
        record = self._records.get(info.key)
        problem = self._problem_of.get(info.key, "")
        if record is not None:
            problem = _record_mismatch(record, manifest, info.key)
        if record is None or problem:
            self._found.unreadable[manifest.run_id, manifest.version] = problem
            self._found.problems.append(
                f"{problem}; {manifest.name} counts as without stage and tags"
            )
            return new_record(manifest)
        return record

    def _note_orphan_record(self, keys: RunKeys, number: int, objects: _ListedObjects) -> None:
        if objects.record is not None:
            self._found.orphan_records.add(objects.record.key)
            if objects.manifest is None:
                self._found.problems.append(f"{objects.record.key}: a record without a manifest")


def _manifest_mismatch(manifest: Manifest, keys: RunKeys, number: int) -> str:
    named = manifest.project, manifest.run_id, manifest.version, manifest.key
    if named == (keys.project, keys.run_id, number, keys.version(number)):
        return ""
    return f"{keys.manifest(number)}: the manifest of {manifest.project}/{manifest.name}"


def _record_mismatch(record: Record, manifest: Manifest, key: str) -> str:
    if (record.run_id, record.version) != (manifest.run_id, manifest.version):
        return f"{key}: the record of {record.run_id}:{record.version}"
    if record.sha256 != manifest.sha256:
        return f"{key}: the record of sha256 {record.sha256[:8]}…, not of its manifest's"
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
