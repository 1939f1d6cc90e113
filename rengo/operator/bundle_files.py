"""Files of task bundles: packing, keys, signing, checking, unpacking."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from fl_client.tasks.listing import imported_modules, resolve
from runtime.errors import ConfigError, Corrupt
from runtime.files import atomic_write, file_sha256, whole_file
from runtime.security.signing import PublicKey, SecretKey
from storage.bundles.archive import is_name
from storage.bundles.bundle import (
    FILES,
    BundleManifest,
    Dependency,
    PackedFile,
    SignedManifest,
    read_bundle,
    sign,
    unpack,
    unsigned,
    write_bundle,
)

_DAY_MS = 24 * 3600 * 1000
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Contents:
    """The contents of a new bundle.

    Attributes:
        spec: the task as FILE.py:CLASS.
        data: files beside FILE or below its folder that the task opens.
        requires: packages with their versions, as pip takes them; each with ``--hash=sha256:…``
            of the files that may be installed, if wished.
        version: the author's, for people.
        memory_bytes: what training needs at least; 0 where it is not known.
        rengo: the oldest version that it runs with; "" for the one that is installed here.
    """

    spec: str
    data: Sequence[Path] = ()
    requires: Sequence[str] = ()
    version: str = "1"
    memory_bytes: int = 0
    rengo: str = ""


def pack(contents: Contents, path: Path) -> BundleManifest:
    """Write an unsigned bundle and return its manifest.

    With SOURCE_DATE_EPOCH set, the same contents give the same bytes.

    Raises:
        ConfigError: there is no such task or file, or a file cannot be packed; names it.
    """
    reference = resolve(contents.spec)
    file, separator, class_name = reference.spec.rpartition(":")
    if not separator:
        raise ConfigError(f"{contents.spec!r} is installed; a bundle is made of FILE.py:CLASS")
    entry = Path(file)
    files = _named({*_modules(entry), *(each.resolve() for each in contents.data)}, entry.parent)
    try:
        manifest = BundleManifest(
            name=reference.name,
            version=contents.version,
            entry=entry.name,
            class_name=class_name,
            dependencies=[_dependency(text) for text in contents.requires],
            files=[
                PackedFile(path=name, sha256=file_sha256(each), size_bytes=each.stat().st_size)
                for name, each in files
            ],
            created_ms=_now_ms(),
            rengo=contents.rengo or _plain(version("rengo")),
            memory_bytes=contents.memory_bytes,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the bundle cannot be made: {where}: {text}") from error
    _write(path, unsigned(manifest), [each for _, each in files])
    return manifest


def generate_key(path: Path) -> PublicKey:
    """Write a new key pair: the secret key to ``path``, mode 0600, the public key beside it.

    Raises:
        ConfigError: the file exists; a key is never replaced.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already; a key is never replaced")
    key = SecretKey.generate()
    atomic_write(path, f"{key.text}\n".encode())
    atomic_write(public_path(path), f"{key.public.text}\n".encode(), 0o644)
    return key.public


def public_path(path: Path) -> Path:
    """Return the path of the public key that belongs to a key file."""
    return path.with_name(f"{path.name}.pub")


def read_key(path: Path) -> SecretKey:
    """Return the secret key of a file.

    Raises:
        ConfigError: there is no such file, others may read it, or it holds no key.
    """
    try:
        others = path.stat().st_mode & 0o077
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"key {path} cannot be read: {error}") from error
    if others:
        raise ConfigError(
            f"key {path} is readable by others; run: chmod 600 {shlex.quote(str(path))}"
        )
    try:
        return SecretKey(text)
    except ConfigError as error:
        raise ConfigError(f"{path} is not a key that `rengo task keygen` made") from error


def public_key(given: str) -> PublicKey:
    """Return a public key, given as its 64 digits or as a file that holds them."""
    path = Path(given)
    try:
        text = path.read_text("ascii").strip() if path.is_file() else given
        return PublicKey(text)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{given!r} is not a public key: 64 hexadecimal digits, or a file that holds them"
        ) from error


def sign_bundle(path: Path, key: SecretKey, expires_days: float = 0.0) -> BundleManifest:
    """Sign a bundle in place, replacing any earlier signature; return its manifest.

    Args:
        expires_days: how long devices may run it from now on; 0 for ever.

    Raises:
        ConfigError: it is not a bundle, or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="rengo-bundle-") as folder:
        signed = extract(path, Path(folder))
        expires_ms = int(time.time() * 1000 + expires_days * _DAY_MS) if expires_days else 0
        manifest = signed.manifest.model_copy(update={"expires_ms": expires_ms})
        files = [Path(folder) / FILES / each.path for each in manifest.files]
        _write(path, sign(manifest, key), files)
    return manifest


def read(path: Path) -> tuple[SignedManifest, str]:
    """Check a whole bundle; return its manifest and the file's sha256.

    Raises:
        ConfigError: it is not a bundle, or damaged.
    """
    try:
        with path.open("rb") as file:
            signed, _ = read_bundle(file, str(path))
            file.seek(0)
            return signed, hashlib.file_digest(file, "sha256").hexdigest()
    except Corrupt as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def extract(path: Path, folder: Path) -> SignedManifest:
    """Check a whole bundle and unpack it below ``folder``; return its manifest.

    Raises:
        ConfigError: it is not a bundle, or damaged.
    """
    try:
        with path.open("rb") as file:
            signed, members = read_bundle(file, str(path))
            unpack(file, members, folder)
    except Corrupt as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return signed


def distrust(signed: SignedManifest, trusted: Sequence[PublicKey]) -> str:
    """Return why a bundle must not run where these keys are trusted, "" where it may."""
    manifest = signed.manifest
    if signed.signer is None:
        return "nobody has signed it; `rengo task sign` does"
    if signed.signer not in trusted:
        return f"it is signed by {signed.signer.text}, which you do not trust"
    if manifest.expires_ms and time.time() * 1000 >= manifest.expires_ms:
        return "it has expired"
    return ""


def _write(path: Path, signed: SignedManifest, files: Sequence[Path]) -> None:
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    with whole_file(path) as out:
        write_bundle(out, signed, files)


def _named(files: Iterable[Path], root: Path) -> list[tuple[str, Path]]:
    """Return the files with their names in the bundle, sorted by name."""
    named = []
    for file in files:
        if not file.is_file():
            raise ConfigError(f"there is no file {file}")
        if not file.is_relative_to(root):
            raise ConfigError(f"{file} does not lie in the task's folder {root}")
        name = file.relative_to(root).as_posix()
        if not is_name(FILES + name):
            raise ConfigError(
                f"{file} cannot be packed: a name may have letters, digits and ._-, and begins "
                "with neither . nor -"
            )
        named.append((name, file))
    return sorted(named)


def _modules(entry: Path) -> set[Path]:
    """Return a file and the modules of its folder that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported_modules(path):
            folder = entry.parent.joinpath(*name.split("."))
            if (package := folder / "__init__.py").is_file():
                waiting += folder.rglob("*.py")
                waiting.append(package)
            elif (module := folder.with_suffix(".py")).is_file():
                waiting.append(module)
    return found


def _dependency(text: str) -> Dependency:
    hashes = _HASH.findall(text)
    requirement = " ".join(_HASH.sub("", text).split())
    return Dependency(requirement=requirement, hashes=hashes)


def _plain(text: str) -> str:
    """Return the numeric beginning of a version."""
    found = re.match(r"[0-9]+(?:\.[0-9]+){0,3}", text)
    return found[0] if found else "0"


def _now_ms() -> int:
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(given) * 1000 if given.isdigit() else time.time_ns() // 1_000_000
