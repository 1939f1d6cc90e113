"""A version's file on this machine: downloaded with its signed manifest and verified by it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fl_server.operations.catalogue import MODELS_URL, Operation, R
from runtime.errors import ConfigError, Corrupt
from runtime.files import atomic_write, file_sha256
from runtime.security.signing import PublicKey
from storage.transfer.files import OnProgress, Transfers, TransferSettings
from storage.versions.manifest import MAX_DOCUMENT_BYTES, Manifest
from storage.weights import Weights, read_safetensors

_ENDINGS = (".safetensors", ".pt", ".onnx", ".bin")
# a person sees the progress and may interrupt it
_PATIENT = TransferSettings(attempts=8, total_s=7 * 24 * 3600.0)


class Client(Protocol):
    """What downloads use of a connection to the site."""

    @property
    def server_key(self) -> PublicKey:
        """The key of the site's server."""
        ...

    def request(self, operation: Operation[Any, R], arguments: Mapping[str, Any]) -> R:
        """Have the server do one operation; return its result."""
        ...

    def transfers(self, settings: TransferSettings) -> Transfers:
        """Return a client of the site's object store."""
        ...


@dataclass(frozen=True)
class DownloadOffer:
    """A version that the server has.

    Attributes:
        signed: the manifest as the server signed it.
        url: a presigned GET of its file.
    """

    manifest: Manifest
    signed: bytes
    url: str


@dataclass(frozen=True)
class FetchedVersion:
    """Weights and their origin.

    Attributes:
        name: a file's path or a version's name.
        manifest: as the site's server signed it; None for weights of another origin.
    """

    name: str
    weights: Weights
    manifest: Manifest | None = None


def manifest_path(path: Path) -> Path:
    """Return where the signed manifest of a model's file lies."""
    return path.with_name(f"{path.name}.manifest.json")


def part_path(path: Path) -> Path:
    """Return where the file is while it is being downloaded."""
    return path.with_name(f"{path.name}.part")


def verify_file(path: Path, manifest_path: Path, key: PublicKey) -> Manifest:
    """Return the manifest when ``key`` signed it and the file matches it. Needs no connection.

    Raises:
        ConfigError: one of the files is not there.
        Corrupt: the manifest or the file was altered, or the file is of another version.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if not manifest_path.is_file():
        raise ConfigError(
            f"there is no {manifest_path}: `rengo models get` writes it beside the model"
        )
    with manifest_path.open("rb") as file:
        manifest = Manifest.decode(file.read(MAX_DOCUMENT_BYTES + 1), key, str(manifest_path))
    if path.stat().st_size != manifest.size_bytes:
        raise Corrupt(
            f"{path} has {path.stat().st_size} bytes, {manifest.name} has {manifest.size_bytes}"
        )
    sha256 = file_sha256(path)
    if sha256 != manifest.sha256:
        raise Corrupt(f"{path} is not {manifest.name}: its sha256 is {sha256}")
    return manifest


def find_model(client: Client, name: str) -> DownloadOffer:
    """Return the version that ``name`` means, once the server's signature was verified.

    Raises:
        NotFound: there is none.
        ConfigError: the name means several.
        Corrupt: the manifest is not signed by the server, or is of another version.
    """
    found = client.request(MODELS_URL, {"name": name})
    signed = found.manifest.encode()
    manifest = Manifest.decode(signed, client.server_key, f"manifest of {name}")
    if manifest.sha256 != found.sha256 or manifest.name != found.name:
        raise Corrupt(f"manifest of {name}: the server offers {found.name} with another's")
    return DownloadOffer(manifest, signed, found.url)


def download(
    client: Client, offer: DownloadOffer, path: Path, watch: OnProgress | None = None
) -> int:
    """Download a version to ``path``, its manifest beside it; return the bytes transferred.

    What an interrupted call left in ``<name>.part`` is not transferred again. The manifest is
    written last: a file with one beside it is whole.

    Args:
        client: the connection by which the offer came.
        offer: the version.
        path: where to; an existing file is replaced, a missing folder is made.
        watch: called with how many bytes of the file are there.

    Raises:
        Corrupt: the object does not match the manifest; nothing is left of it.
        StorageError: as :meth:`storage.transfer.files.Transfers.download` says.
    """
    manifest = offer.manifest
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made: {error.strerror}") from error
    if not _is_beside(path, offer):
        manifest_path(path).unlink(missing_ok=True)
    try:
        moved = client.transfers(_PATIENT).download(
            offer.url,
            path,
            sha256=manifest.sha256,
            size=manifest.size_bytes,
            renew=lambda: find_model(client, manifest.name).url,
            on_progress=watch,
        )
    except Corrupt as error:
        part_path(path).unlink(missing_ok=True)
        raise Corrupt(f"{manifest.name} was altered in the store: {error}") from error
    atomic_write(manifest_path(path), offer.signed)
    return moved


def fetch(client: Client, name: str, path: Path) -> Manifest:
    """Download the version that ``name`` means to ``path``; return its manifest."""
    offer = find_model(client, name)
    download(client, offer, path)
    return offer.manifest


def load(
    source: Path | str,
    key: PublicKey | None,
    connect: Callable[[], AbstractContextManager[Client]],
) -> FetchedVersion:
    """Return the weights of a safetensors file or of a version of the site.

    Args:
        source: a file's path, or (as text) a version's name.
        key: of the site's server, by which a file with a manifest beside it is verified.
        connect: opens a connection to the site; called for a version only.

    Raises:
        ConfigError: no such file, or it is not safetensors.
        NotFound: no such version.
        Corrupt: the file does not match the manifest beside it.
    """
    path = Path(source)
    if path.is_file():
        manifest = None
        beside = manifest_path(path)
        if key is not None and beside.is_file():
            try:
                manifest = verify_file(path, beside, key)
            except Corrupt as error:
                raise Corrupt(f"{error} (without {beside} it is taken unverified)") from error
        return FetchedVersion(str(path), _read(path), manifest)
    if isinstance(source, Path) or path.suffix in _ENDINGS or len(path.parts) > 1:
        raise ConfigError(f"there is no file {path}")
    with tempfile.TemporaryDirectory(prefix="rengo-model-") as folder:
        path = Path(folder) / "model.safetensors"
        with connect() as client:
            manifest = fetch(client, source, path)
        return FetchedVersion(manifest.name, _read(path), manifest)


def _read(path: Path) -> Weights:
    try:
        return read_safetensors(path)
    except Corrupt as error:
        raise ConfigError(f"not a safetensors file that can be taken: {error}") from error


def _is_beside(path: Path, offer: DownloadOffer) -> bool:
    beside = manifest_path(path)
    return beside.is_file() and beside.read_bytes() == offer.signed
