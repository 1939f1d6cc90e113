"""Backups that earlier versions wrote are restored, and their sites go on.

How they were recorded: ``tests/old_data/record_backup.py``.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from rengo.operator.models import load
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.backup import restore
from rengo.site.device_process import DeviceSpec
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from runtime.processes.ports import free_port
from tests.old_data.restore import HERE

BACKUPS = sorted(HERE.glob("*.backup.xz"))


@pytest.mark.parametrize("recorded", BACKUPS, ids=lambda path: path.name.partition(".")[0])
def test_a_backup_of_an_earlier_version_is_restored_and_goes_on(
    recorded: Path, tmp_path: Path
) -> None:
    file, root = tmp_path / "site.tar", tmp_path / "restored"
    file.write_bytes(lzma.decompress(recorded.read_bytes()))
    held = restore(file, root)
    assert "server/journal.sqlite" in held.files
    options = SiteOptions(broker_port=free_port(), store_port=free_port())
    with Site(root, options=options) as site:
        with site.connect() as client:
            (old,) = client.call("runs_ls")["runs"]
            assert (old["status"], old["rounds_completed"]) == ("completed", 2)
            assert (
                client.call("models_show", {"name": "digits@production"})["stage"] == "production"
            )
            assert client.call("audit_verify")["entries"] >= 3
        # its bytes have the hash that the server signed
        assert load(f"{old['run_id']}:2", site.operator.believed, site.connect).weights.vector.size
        site.start_devices([DeviceSpec("a")], "digits")
        with site.connect() as client:
            wait_for_devices(client, ["a"], 60.0)
            run_id = submit(client, "digits", {"rounds": 1, "cohort": {"size": 1}})
            assert follow(client, run_id).report.rounds_completed == 1
            assert {row["id"] for row in client.call("devices_ls")["devices"]} == {"a"}
