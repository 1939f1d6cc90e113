"""An older backup comes back while devices have seen more: they say so, and obey it in the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.backup import back_up, restore
from rengo.site.device_process import DeviceSpec, device_process
from rengo.site.site import Site
from runtime.processes.child import Child

NAME = "a"
IGNORED = "it ignores the server, which has perhaps been restored from an older backup"
_PATIENCE_S = 90.0


def own_machine(site: Site, folder: Path) -> Child:
    """Return a device, not yet started, of which nothing lies in the site's folder."""
    identity = site.folder.ensure_identity("device", NAME, site.at)
    site.admit([identity])
    folder.mkdir()
    shutil.copy(site.folder.identity_path(NAME), folder / "identity.json")
    spec, log = DeviceSpec(NAME, engine="numpy"), folder / "device.log"
    return device_process(spec, folder / "identity.json", folder / "data", "digits", log)


def one_round(site: Site) -> str:
    """Have the device take part in a run of one round; return the run."""
    with site.connect() as client:
        wait_for_devices(client, [NAME], _PATIENCE_S)
        run_id = submit(client, "digits", {"rounds": 1, "cohort": {"size": 1}})
        report = follow(client, run_id).report
    assert report.status == "completed"
    assert [row.included for row in report.history] == [[NAME]]
    return run_id


def call(site: Site, operation: str) -> dict[str, Any]:
    with site.connect() as client:
        return client.call(operation)


@contextmanager
def stopped_at_the_end(child: Child) -> Iterator[None]:
    child.start()
    try:
        yield
    finally:
        child.stop()


def test_a_device_that_has_obeyed_a_later_server_says_so_and_goes_on(tmp_path: Path) -> None:
    root, file, machine = tmp_path / "site", tmp_path / "site.tar", tmp_path / "machine"
    with ExitStack() as stack:
        with Site(root) as site:
            device = own_machine(site, machine)
            stack.enter_context(stopped_at_the_end(device))
            before = one_round(site)
            assert back_up(root, file).domain == "main"
            one_round(site)
        for _ in range(2):
            with Site(root) as site:
                one_round(site)
        shutil.rmtree(root)
        restore(file, root)
        log = machine / "device.log"
        assert IGNORED not in log.read_text()
        with Site(root) as site:
            assert [run["run_id"] for run in call(site, "runs_ls")["runs"]] == [before]
            after = one_round(site)
            runs = {run["run_id"] for run in call(site, "runs_ls")["runs"]}
            assert runs == {before, after}
            entries = call(site, "audit_ls")["entries"]
            (raised,) = [each for each in entries if each["act"] == "epoch raised"]
            assert (raised["actor"], raised["detail"]) == (NAME, {"obeyed": 3})
            assert call(site, "audit_verify")["entries"] == len(entries)
        assert device.running
        said = [line for line in log.read_text().splitlines() if IGNORED in line]
        assert len(said) == 1, "once, and in one line"
        assert "the server is at epoch 2 and this device has obeyed epoch 3" in said[0]
        assert (
            "device a has obeyed epoch 3 and ignores this server, at epoch 2"
            in (root / "logs" / "server.log").read_text()
        )
