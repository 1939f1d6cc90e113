"""A bundle has no file that Python, the agent or a library would take for one of their own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from rengo.operator.bundle_files import Contents, pack
from runtime.errors import ConfigError, Corrupt
from storage.bundles.archive import write_archive
from storage.bundles.bundle import FILES, MANIFEST, read_bundle, refusal_of_name, write_bundle
from tests.bundles import KEY, SOURCE, manifest_of

REFUSED = (
    *("sitecustomize.py", "usercustomize.py", "SiteCustomize.py", "sitecustomize/__init__.py"),
    *("numpy.py", "Numpy.py", "numpy/__init__.py", "numpy/core/x.py", "torch.py", "json.py"),
    *("numpy.pyc", "numpy.cpython-311-x86_64-linux-gnu.so", "torch.pyd", "storage.py"),
    *("links.pth", "LINKS.PTH", "data/links.pth"),
)
ALLOWED = ("my_numpy.py", "numpy.csv", "data/numpy.py", "json/table.csv", "pth.py", "torches.py")


@pytest.mark.parametrize("name", ALLOWED)
def test_other_names_are_the_authors_own(name: str) -> None:
    assert refusal_of_name(name) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_when_packed(tmp_path: Path, name: str) -> None:
    (tmp_path / "tiny.py").write_bytes(SOURCE)
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"give it another name|has no \.pth files"):
        pack(Contents(f"{tmp_path / 'tiny.py'}:Tiny", [file]), tmp_path / "tiny.rtask")
    assert not (tmp_path / "tiny.rtask").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_when_read_whoever_made_it(name: str) -> None:
    """The site reads a bundle that is pushed, and a device one that it runs, by this function."""
    text = manifest_of({"a.py": b"", "tiny.py": SOURCE}).model_dump_json().replace("a.py", name)
    purpose = b"rengo-bundle-1\0"
    head = {
        "signed": text,
        "key": KEY.public.text,
        "signature": KEY.sign(purpose + text.encode()).hex(),
    }
    file = io.BytesIO()
    members = [(FILES + name, b""), (FILES + "tiny.py", SOURCE)]
    write_archive(file, [(MANIFEST, json.dumps(head).encode()), *members])
    with pytest.raises(Corrupt, match=r"give it another name|has no \.pth files"):
        read_bundle(file, "bundle")


def test_the_hand_made_bundle_is_read_where_its_names_are_allowed() -> None:
    from storage.bundles.bundle import sign  # noqa: PLC0415

    file = io.BytesIO()
    write_bundle(file, sign(manifest_of({"a.py": b"", "tiny.py": SOURCE}), KEY), [b"", SOURCE])
    assert read_bundle(file, "bundle")
