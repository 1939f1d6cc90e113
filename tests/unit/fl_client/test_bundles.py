"""Hostile bundles: each is refused, with a reason that the operator sees, and leaves nothing."""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import BundleRef, ModelRef, Order
from fl_client.bundles.policy import BundleSettings
from fl_client.bundles.store import DeviceBundles
from runtime.errors import ConfigError, Corrupt
from runtime.security.signing import SecretKey
from storage.bundles.archive import MAX_MEMBERS, write_archive
from storage.bundles.bundle import MANIFEST, read_bundle, sign, write_bundle
from tests.bundles import KEY, SOURCE, bundle, manifest_of

NOW_MS = 1_800_000_000_000
DAY_MS = 24 * 3600 * 1000
STRANGER = SecretKey("b2" * 32)


class Shelf:
    """Transfers that bring what is put here, as a store might: checked by nobody."""

    def __init__(self) -> None:
        self.data = b""
        self.downloads = 0

    def download(self, url: str, path: Path, *, sha256: str, size: int, **_: Any) -> int:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return 0
        self.downloads += 1
        path.write_bytes(self.data)
        return len(self.data)


class Device:
    """A device with settings, and whatever is sent to it as an order's bundle."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.shelf = Shelf()
        self.folder = folder
        self.own_ms: int | None = None
        given = {"trust": [KEY.public.text]} | settings
        self.bundles = DeviceBundles(
            BundleSettings(**given),
            folder / "bundles",
            self.shelf,  # type: ignore[arg-type]
            {"digits": "digits"},
            memory_bytes=100 << 20,
            clock=lambda: self.own_ms,
        )
        self.bundles.set_server_time(NOW_MS)

    def order(self, data: bytes, task: str = "tiny") -> Order:
        self.shelf.data = data
        return Order(
            epoch=1,
            action="evaluate",
            run_id="r",
            round=1,
            attempt=1,
            task=task,
            algorithm="fedavg",
            algorithm_settings={},
            training={},
            seed=0,
            model=ModelRef(url="u", key="k", sha256="0" * 64, size_bytes=1),
            upload=None,
            time_left_s=10.0,
            bundle=BundleRef(
                url="u", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)
            ),
        )

    def prepare(self, data: bytes, task: str = "tiny") -> Order:
        order = self.order(data, task)
        assert self.bundles.refusal(order) == ""
        self.bundles.prepare(order, lambda: "u", threading.Event())
        return order

    def unpacked(self) -> list[str]:
        """Return the files that lie unpacked."""
        found = self.folder.glob("bundles/*/task/**/*")
        return sorted(path.name for path in found if path.is_file())


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_a_bundle_of_a_trusted_key_is_unpacked_for_a_child_of_its_own(device: Device) -> None:
    order = device.prepare(bundle())
    placed = device.bundles.environment_of(order)
    path, _, class_name = placed.spec.rpartition(":")
    assert class_name == "Tiny"
    assert Path(path).read_bytes() == SOURCE
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o400
    assert placed.python is not None
    assert placed.python.is_relative_to(device.folder)
    assert placed.python.exists()


def test_it_is_fetched_once(device: Device) -> None:
    for _ in range(3):
        device.prepare(bundle())
    assert device.shelf.downloads == 1


def test_what_is_installed_comes_before_a_bundle_of_its_name(device: Device) -> None:
    order = device.order(bundle(name="digits"), "digits")
    placed = device.bundles.environment_of(order)
    assert (placed.spec, placed.python) == ("digits", None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bundle(key=None), "nobody has signed it"),
        (bundle(key=STRANGER), f"does not trust the key {STRANGER.public.text}"),
        (bundle(expires_ms=NOW_MS - 3 * DAY_MS), "it expired 3 days ago"),
        (bundle(expires_ms=NOW_MS), "it expired"),
        (bundle(name="other"), "it is of task 'other'"),
        (bundle(rengo="99.1"), r"it needs Rengo 99\.1"),
        (bundle(memory_bytes=200 << 20), "of memory"),
        (
            bundle(dependencies=[{"requirement": "no-such-package>=9"}]),
            "it needs no-such-package>=9; this device installs nothing",
        ),
    ],
    ids=["unsigned", "untrusted", "expired", "just", "task", "rengo", "memory", "needs"],
)
def test_a_bundle_that_must_not_run_is_refused_by_name(
    device: Device, data: bytes, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        device.prepare(data)
    assert str(caught.value).startswith("bundle tiny@")
    with pytest.raises(KeyError):
        device.bundles.environment_of(device.order(data))


def test_a_bundle_expires_between_two_rounds(device: Device) -> None:
    data = bundle(expires_ms=NOW_MS + DAY_MS)
    order = device.prepare(data)
    device.bundles.set_server_time(NOW_MS + DAY_MS)
    with pytest.raises(ConfigError, match="it expired"):
        device.prepare(data)
    with pytest.raises(KeyError):
        device.bundles.environment_of(order)


def test_expiry_is_judged_by_the_servers_time_and_by_a_clock_that_is_known_to_be_right(
    device: Device,
) -> None:
    data = bundle(expires_ms=NOW_MS + DAY_MS)
    device.own_ms = None  # a device that may think it is 1970, or 2099
    device.prepare(data)
    device.own_ms = NOW_MS + 2 * DAY_MS  # the server would make it young
    with pytest.raises(ConfigError, match="it expired"):
        device.prepare(data)
    device.own_ms = 0
    device.bundles.set_server_time(NOW_MS + 2 * DAY_MS)
    with pytest.raises(ConfigError, match="it expired"):
        device.prepare(data)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"trust": []}, "trusts nobody"),
        ({"allow": ["other"]}, r"does not allow it as a bundle \(allowed: other\)"),
        ({"allow": []}, r"\(allowed: none\)"),
        ({"max_bytes": 100}, "is too large for this device"),
    ],
)
def test_what_the_settings_rule_out_is_not_even_fetched(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    device = Device(tmp_path, **settings)
    refusal = device.bundles.refusal(device.order(bundle()))
    assert re.search(reason, refusal)
    assert device.shelf.downloads == 0


def test_an_order_without_a_bundle_is_refused(device: Device) -> None:
    order = device.order(bundle()).model_copy(update={"bundle": None})
    assert "brings no bundle" in device.bundles.refusal(order)


@pytest.mark.parametrize("changed", [SOURCE + b"import os\n", SOURCE.replace(b"2, 2", b"2, 9")])
def test_a_file_that_is_not_the_one_that_was_signed(device: Device, changed: bytes) -> None:
    out = io.BytesIO()
    write_bundle(out, sign(manifest_of(), KEY), [changed])
    with pytest.raises(Corrupt, match="was changed after it was packed"):
        device.prepare(out.getvalue())
    assert device.unpacked() == []


def test_a_signature_is_not_moved_to_another_manifest(device: Device) -> None:
    head = {
        "signed": manifest_of(version="2").model_dump_json(),
        "key": KEY.public.text,
        "signature": sign(manifest_of(), KEY).signature,
    }
    out = io.BytesIO()
    write_archive(out, [(MANIFEST, json.dumps(head).encode()), ("task/tiny.py", SOURCE)])
    with pytest.raises(Corrupt, match="not what its signer signed"):
        device.prepare(out.getvalue())


def test_a_file_that_the_manifest_does_not_name(device: Device) -> None:
    signed = sign(manifest_of(), KEY)
    head = {"signed": signed.text, "key": KEY.public.text, "signature": signed.signature}
    out = io.BytesIO()
    files = [("task/json.py", b"evil = 1"), ("task/tiny.py", SOURCE)]
    write_archive(out, [(MANIFEST, json.dumps(head).encode()), *files])
    with pytest.raises(Corrupt, match="not those that its manifest names"):
        device.prepare(out.getvalue())


def test_what_was_altered_on_the_device_is_put_right(device: Device) -> None:
    order = device.prepare(bundle())
    path = Path(device.bundles.environment_of(order).spec.rpartition(":")[0])
    path.chmod(0o600)
    path.write_bytes(b"evil = 1")
    (path.parent / "numpy.py").write_bytes(b"evil = 1")
    device.prepare(bundle())
    assert path.read_bytes() == SOURCE
    assert device.unpacked() == ["tiny.py"]


def test_only_the_bundles_used_last_stay(tmp_path: Path) -> None:
    device = Device(tmp_path, keep=2)
    for number in range(4):
        device.prepare(bundle(version=str(number)))
    folders = [path for path in (tmp_path / "bundles").iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert len(list((tmp_path / "bundles").glob("*.rtask"))) == 2


# --- archives that no writer of ours makes ------------------------------------------------------


def zipped(*files: tuple[zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for info, data in files:
            info.compress_type = compression
            archive.writestr(info, data)
    return out.getvalue()


def info(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system = 3
    made.external_attr = mode << 16
    return made


def head_of(files: dict[str, bytes]) -> bytes:
    signed = sign(manifest_of(files), KEY)
    text = {"signed": signed.text, "key": KEY.public.text, "signature": signed.signature}
    return json.dumps(text).encode()


GOOD_HEAD = head_of({"tiny.py": SOURCE})


def test_only_the_form_is_strict_the_control(device: Device) -> None:
    """The same members through zipfile, stored, are the very bytes of ours."""
    data = zipped((info(MANIFEST), GOOD_HEAD), (info("task/tiny.py"), SOURCE))
    device.prepare(data)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "task/../../evil.py",
        "/etc/evil.py",
        "task/.hidden.py",
        "task//evil.py",
        "task/evil\\x.py",
        "C:/evil.py",
        "task/",
    ],
)
def test_names_that_lead_elsewhere(device: Device, name: str) -> None:
    data = zipped((info(MANIFEST), GOOD_HEAD), (info(name), b"" if name[-1] == "/" else SOURCE))
    with pytest.raises(Corrupt, match="name"):
        device.prepare(data)
    assert not (device.folder / "evil.py").exists()


def test_a_link(device: Device) -> None:
    data = zipped((info(MANIFEST), GOOD_HEAD), (info("task/tiny.py", 0o120777), b"/etc/passwd"))
    with pytest.raises(Corrupt):
        device.prepare(data)


def test_two_files_of_one_name(device: Device) -> None:
    files = [("task/tiny.py", SOURCE), ("task/Tiny.py", b"evil = 1")]
    data = zipped((info(MANIFEST), GOOD_HEAD), *((info(name), held) for name, held in files))
    with pytest.raises(Corrupt, match="two files"):
        device.prepare(data)


def test_compression_that_would_unpack_to_more_than_it_says(device: Device) -> None:
    data = zipped(
        (info(MANIFEST), GOOD_HEAD),
        (info("task/tiny.py"), b"\0" * (64 << 20)),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert len(data) < 1 << 20
    with pytest.raises(Corrupt):
        device.prepare(data)
    assert device.unpacked() == []


def test_more_files_than_a_bundle_may_have() -> None:
    data = zipped(*((info(f"task/f{number}.py"), b"") for number in range(MAX_MEMBERS + 1)))
    with pytest.raises(Corrupt, match=r"more than \d+ files|not a bundle"):
        read_bundle(io.BytesIO(data), "x")


def test_bytes_behind_before_and_between(device: Device) -> None:
    data = bundle()
    for wrong in (data + b"x", b"#!/bin/sh\n" + data, data[:-2] + b"\1\0x"):
        with pytest.raises(Corrupt):
            device.prepare(wrong)
