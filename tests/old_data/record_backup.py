"""Records a backup of a running site, as the commit writes it whose code is imported.

    git worktree add /tmp/old COMMIT
    PYTHONPATH=/tmp/old python tests/old_data/record_backup.py COMMIT.backup.xz

Later versions must be able to restore it (``tests/integration/test_old_backups.py``). In it are a
device ``a``, a run of two rounds, and its version 1 in production. An operator goes on while the
backup is written: what is copied after the journal may be ahead of it.

Every key, token and password in it was made for it and is used nowhere else.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
import time
from pathlib import Path

from rengo.operator.client import OperatorClient
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site import backup
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site

_PATIENCE_S = 60.0


def go_on_while_it_is_written(client: OperatorClient, site: Path) -> None:
    """Have an operator do something, and the server note it, once the journal is copied."""
    copy = backup._Writing.add_database
    mark = site / "server" / "journal.sqlite.mark"

    def copy_and_go_on(writing: backup._Writing, key: str) -> None:
        copy(writing, key)
        if key == "server/journal.sqlite":
            before = mark.read_bytes() if mark.exists() else b""
            client.call("devices_invite", {})
            deadline = time.monotonic() + 5.0
            while mark.exists() and mark.read_bytes() == before and time.monotonic() < deadline:
                time.sleep(0.05)

    backup._Writing.add_database = copy_and_go_on  # type: ignore[method-assign]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rengo-old-backup-") as folder:
        root, file = Path(folder) / "site", Path(folder) / "site.tar"
        with Site(root) as site:
            site.start_devices([DeviceSpec("a")], "digits")
            with site.connect() as client:
                wait_for_devices(client, ["a"], _PATIENCE_S)
                run_id = submit(client, "digits", {"rounds": 2, "cohort": {"size": 1}})
                follow(client, run_id)
                client.call("models_promote", {"name": f"{run_id}:1"}, timeout_s=_PATIENCE_S)
                go_on_while_it_is_written(client, root)
                backup.back_up(root, file)
        Path(sys.argv[1]).write_bytes(lzma.compress(file.read_bytes(), preset=9))
    return 0


if __name__ == "__main__":
    sys.exit(main())
