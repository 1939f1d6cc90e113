"""Task bundles: a task's code with a manifest, signed by a person.

    bundle.json          {"signed": "<the manifest>", "key": "<hex>", "signature": "<hex>"}
    task/…               the files, each named in the manifest with its sha256

The file names its signer; whom to trust is a setting of the device. ``key`` and ``signature`` are
empty in a bundle that is not signed yet.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.errors import ConfigError, Corrupt, PeerError
from runtime.security.signing import PublicKey, SecretKey
from storage.bundles.archive import (
    Member,
    Source,
    blocks,
    first_member,
    is_name,
    read_archive,
    require_names,
    write_archive,
)
from storage.updates.header import Sha256

MANIFEST = "bundle.json"
FILES = "task/"
MAX_MANIFEST_BYTES = 192 << 10
MAX_FILES = 511
MAX_BUNDLE_BYTES = 256 << 20
_PURPOSE = b"rengo-bundle-1\0"
_VERSION = r"[0-9]+(?:\.[0-9]+){0,3}"
# a name with extras and versions: no URL, no path, no option
_CLAUSE = r"(?:[<>=!~]=|[<>]) ?[A-Za-z0-9.*+!]{1,40}"
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:\[[A-Za-z0-9._,-]{1,100}\])?"
    rf"(?: ?{_CLAUSE}(?:, ?{_CLAUSE})*)?"
)
# what Python imports by itself at its start, and what the agent and its task import
_RESERVED = frozenset(
    {"sitecustomize", "usercustomize"}
    | {each.casefold() for each in sys.stdlib_module_names}
    | {"algorithms", "broker", "fl_client", "fl_server", "iot", "rengo", "runtime", "storage"}
    | {"cryptography", "msgpack", "numpy", "packaging", "paho", "pydantic", "tenacity"}
    | {"torch", "urllib3"}
)
_MODULES = (".py", ".pyc", ".so", ".pyd")
Milliseconds = Annotated[int, Field(ge=0, lt=1 << 53)]


def refusal_of_name(path: str) -> str:
    """Return why a file of a bundle may not be called so, "" where it may.

    >>> refusal_of_name("numpy/__init__.py")
    "numpy/__init__.py would stand for the module 'numpy': give it another name"
    """
    folded = path.casefold()
    if folded.endswith(".pth"):
        return f"{path} would run when Python starts: a bundle has no .pth files"
    name = folded.partition("/")[0].partition(".")[0]
    if folded.endswith(_MODULES) and name in _RESERVED:
        return f"{path} would stand for the module {name!r}: give it another name"
    return ""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Dependency(_Model):
    """A package that the task needs, with the sha256 of its installable files, if given."""

    requirement: Annotated[str, Field(min_length=1, max_length=300)]
    hashes: Annotated[list[Sha256], Field(max_length=64)] = []

    @model_validator(mode="after")
    def _is_plain(self) -> Dependency:
        if _REQUIREMENT.fullmatch(self.requirement) is None:
            raise ValueError(f"{self.requirement!r} is not a package and its versions")
        return self


class PackedFile(_Model):
    """One file of a bundle, by its path below the task's folder."""

    path: Annotated[str, Field(min_length=1, max_length=190)]
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, lt=1 << 32)]


class BundleManifest(_Model):
    """What is in a bundle, and what it needs.

    Attributes:
        name: the task's name on the network.
        version: the author's, for people.
        entry: the file of the class ``class_name``; both are data, never an import path.
        created_ms: by the packer's clock, for people.
        expires_ms: when devices stop running it; 0 for never.
        rengo: the oldest version of Rengo that it runs with.
        memory_bytes: the least that training needs on a device; 0 where the author gives none.
    """

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$")]
    entry: Annotated[str, Field(pattern=r"\.py$", max_length=190)]
    class_name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
    dependencies: Annotated[list[Dependency], Field(max_length=64)] = []
    files: Annotated[list[PackedFile], Field(min_length=1, max_length=MAX_FILES)]
    created_ms: Milliseconds
    expires_ms: Milliseconds = 0
    rengo: Annotated[str, Field(pattern=rf"^{_VERSION}$", max_length=40)] = "0"
    memory_bytes: Annotated[int, Field(ge=0, lt=1 << 50)] = 0

    @model_validator(mode="after")
    def _is_consistent(self) -> BundleManifest:
        paths = [file.path for file in self.files]
        for path in paths:
            if not is_name(FILES + path):
                raise ValueError(f"the path {path!r} is not allowed")
            if reason := refusal_of_name(path):
                raise ValueError(reason)
        if paths != sorted(set(paths)):
            raise ValueError("the files are not in order, or one is named twice")
        if self.entry not in paths:
            raise ValueError(f"there is no file {self.entry!r}")
        return self

    @property
    def size_bytes(self) -> int:
        """The size of its files together."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class SignedManifest:
    """A manifest and its signer, None where it is not signed."""

    manifest: BundleManifest
    text: str
    signer: PublicKey | None = None
    signature: str = ""


class _BundleEnvelope(_Model):
    signed: Annotated[str, Field(max_length=MAX_MANIFEST_BYTES)]
    key: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")]


def sign(manifest: BundleManifest, key: SecretKey) -> SignedManifest:
    """Return the manifest signed by a key."""
    text = manifest.model_dump_json()
    signature = key.sign(_PURPOSE + text.encode()).hex()
    return SignedManifest(manifest, text, key.public, signature)


def unsigned(manifest: BundleManifest) -> SignedManifest:
    """Return the manifest without a signature."""
    return SignedManifest(manifest, manifest.model_dump_json())


def write_bundle(out: BinaryIO, signed: SignedManifest, sources: Sequence[Source]) -> None:
    """Write a bundle.

    Args:
        sources: the files in the manifest's order.

    Raises:
        ConfigError: the manifest is too large.
    """
    envelope = {
        "signed": signed.text,
        "key": "" if signed.signer is None else signed.signer.text,
        "signature": signed.signature,
    }
    head = json.dumps(envelope).encode()
    if len(head) > MAX_MANIFEST_BYTES:
        raise ConfigError(f"a manifest of {len(head)} bytes, at most {MAX_MANIFEST_BYTES}")
    names = [FILES + file.path for file in signed.manifest.files]
    write_archive(out, [(MANIFEST, head), *zip(names, sources, strict=True)])


def read_manifest(file: BinaryIO, where: str) -> SignedManifest:
    """Return a bundle's manifest with its signature verified; its files are not read.

    Raises:
        Corrupt: it is not a bundle, or the signature is not that of the manifest.
    """
    member, data = first_member(file, where, MAX_MANIFEST_BYTES)
    if member.name != MANIFEST:
        raise Corrupt(f"{where}: not a bundle")
    return decode_manifest(data, where)


def decode_manifest(data: bytes, where: str) -> SignedManifest:
    """Return the manifest in the bytes of ``bundle.json``; see :func:`read_manifest`."""
    try:
        envelope = _BundleEnvelope.model_validate_json(data)
        manifest = BundleManifest.model_validate_json(envelope.signed)
        if not envelope.key:
            if envelope.signature:
                raise Corrupt(f"{where}: a signature without a key")
            return SignedManifest(manifest, envelope.signed)
        signer = PublicKey(envelope.key)
        signer.verify(bytes.fromhex(envelope.signature), _PURPOSE + envelope.signed.encode())
    except (PeerError, ConfigError) as error:
        raise Corrupt(f"{where}: its manifest is not what its signer signed") from error
    except (ValidationError, UnicodeError) as error:
        line = "; ".join(str(error).splitlines()[:3])
        raise Corrupt(f"{where}: its manifest is not one: {line:.300}") from error
    return SignedManifest(manifest, envelope.signed, signer, envelope.signature)


def read_bundle(file: BinaryIO, where: str) -> tuple[SignedManifest, list[Member]]:
    """Return a bundle's manifest and members, with every file verified.

    Raises:
        Corrupt: a file is not what the manifest says.
    """
    signed = read_manifest(file, where)
    first, *members = read_archive(file, where)
    if first.name != MANIFEST:
        raise Corrupt(f"{where}: not a bundle")
    expected = [FILES + each.path for each in signed.manifest.files]
    if [member.name for member in members] != expected:
        raise Corrupt(f"{where}: its files are not those that its manifest names")
    for member, packed in zip(members, signed.manifest.files, strict=True):
        digest = hashlib.sha256()
        for block in blocks(file, member):
            digest.update(block)
        if member.size != packed.size_bytes or digest.hexdigest() != packed.sha256:
            raise Corrupt(f"{where}: {packed.path} was changed after it was packed")
    require_names([each.path for each in signed.manifest.files], where)
    return signed, members


def unpack(file: BinaryIO, members: Sequence[Member], folder: Path) -> None:
    """Write a verified bundle's files, read-only, below ``folder``, which must be empty.

    Args:
        members: as :func:`read_bundle` returned them.
    """
    for member in members:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("xb") as out:
            for block in blocks(file, member):
                out.write(block)
        path.chmod(0o400)
