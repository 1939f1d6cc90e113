"""What a site's devices move for a model of which little changes: counted on real processes."""

from __future__ import annotations

import hashlib
import io
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from fl_server.selection import uniform
from rengo.operator.client import OperatorClient
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.store.embedded import EmbeddedStore
from storage.store.s3 import S3Store
from storage.transfer.byte_ranges import EarlierVersion, length
from storage.transfer.files import Transfers, TransferSettings
from storage.weights import stored_size, write_safetensors
from tests.integration.moving_part import PART, MovingPart, part_of
from tests.integration.store_fixtures import bucket_of, embedded_store  # noqa: F401
from tests.integration.test_patches import CHANGED, NEW, OLD, SHA, SIZE
from tests.proxy import Fault, Proxy

TASK = f"{Path(__file__).with_name('moving_part.py')}:MovingPart"
NAMES = ["device-1", "device-2"]
START_S = 60.0
PART_BYTES = 4 * PART
WHOLE_BYTES = stored_size(MovingPart().initial_weights(0).layout)
HEADER_BYTES = 1200
"""The most that an update's header with three chunks takes."""


def definition(cohort: int, rounds: int, seed: int = 0) -> dict[str, Any]:
    return {
        "cohort": {"size": cohort, "quorum": cohort, "deadline_s": 60.0},
        "evaluation": {"on": "none"},
        "rounds": rounds,
        "seed": seed,
    }


def start(site: Site) -> None:
    fleet = [
        DeviceSpec(name, engine="numpy", index=number, count=len(NAMES))
        for number, name in enumerate(NAMES)
    ]
    site.start_devices(fleet, TASK)


def model_after(rounds: int, seed: int) -> str:
    """The sha256 of the model that plain numpy makes of so many rounds."""
    weights = MovingPart().initial_weights(seed)
    for number in range(1, rounds + 1):
        weights.vector[part_of(number)] += 0.5
    data = io.BytesIO()
    write_safetensors(weights, data)
    return hashlib.sha256(data.getvalue()).hexdigest()


def cohorts(seed: int, rounds: int) -> list[str]:
    return [
        uniform.select(NAMES, 1, seed=seed, round_number=number, attempt=1)[0]
        for number in range(1, rounds + 1)
    ]


def skips(seed: int, rounds: int) -> set[int]:
    """How many versions further the devices are at each of their rounds."""
    chosen = cohorts(seed, rounds)
    places = [[at for at, name in enumerate(chosen) if name == device] for device in NAMES]
    return {after - before for own in places for before, after in itertools.pairwise(own)}


def expected_down(chosen: list[str], device: str) -> int:
    """What a device must fetch: the ranges of up to four versions, else the whole."""
    total, held = 0, None
    for version, name in enumerate(chosen):
        if name != device:
            continue
        near = held is not None and version - held <= 4
        total += (version - (held or 0)) * PART_BYTES if near else WHOLE_BYTES
        held = version
    return total


def of_device(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [row for row in report["devices"] if row["id"] == name]
    return dict(found)


def until_paused(client: OperatorClient, run_id: str) -> int:
    """Pause the run after its third round; return the latest version."""
    while client.call("runs_show", {"run_id": run_id})["rounds_completed"] < 3:
        time.sleep(0.01)
    client.call("runs_pause", {"run_id": run_id})
    while (shown := client.call("runs_show", {"run_id": run_id}))["phase"] != "gathering":
        time.sleep(0.01)
    return int(shown["rounds_completed"])


def damage(folder: Path) -> int:
    """Flip a bit in the middle of every model there."""
    paths = list(folder.glob("*.safetensors"))
    for path in paths:
        with path.open("r+b") as file:
            file.seek(WHOLE_BYTES - 5)
            byte = file.read(1)
            file.seek(WHOLE_BYTES - 5)
            file.write(bytes([byte[0] ^ 1]))
    return len(paths)


@pytest.mark.timeout(180)
def test_a_site_moves_what_changed(tmp_path: Path) -> None:
    with Site(tmp_path / "site") as site:
        start(site)
        with site.connect() as client:
            wait_for_devices(client, NAMES, START_S)
            check_skipped_rounds(client)
            check_a_damaged_model_and_a_killed_server(site, client)


def check_skipped_rounds(client: OperatorClient) -> None:
    rounds = 14
    wanted = {1, 2, 4, 5}
    seed = next(seed for seed in itertools.count() if wanted <= skips(seed, rounds))
    report = follow(client, submit(client, TASK, definition(1, rounds, seed))).report.document()
    chosen = cohorts(seed, rounds)
    assert report["model_sha256"] == model_after(rounds, seed)
    for name in NAMES:
        row = of_device(report, name)
        assert row["bytes_down"] == expected_down(chosen, name)
        sent = chosen.count(name)
        assert sent * PART_BYTES < row["bytes_up"] < sent * (PART_BYTES + HEADER_BYTES)


def check_a_damaged_model_and_a_killed_server(site: Site, client: OperatorClient) -> None:
    rounds = 40
    run_id = submit(client, TASK, definition(2, rounds))
    version = until_paused(client, run_id)
    (folder,) = site.folder.root.glob("**/device-1/**/models")
    assert damage(folder) == 2
    first_life = site.children["server"].pid
    site.children["server"].kill()
    resume(client, run_id)
    report = follow(client, run_id).report.document()
    assert site.children["server"].pid != first_life
    assert version < rounds
    assert report["model_sha256"] == model_after(rounds, 0)
    honest = WHOLE_BYTES + (rounds - 1) * PART_BYTES
    assert of_device(report, "device-2")["bytes_down"] == honest
    assert of_device(report, "device-1")["bytes_down"] == honest + WHOLE_BYTES


def resume(client: OperatorClient, run_id: str) -> None:
    """Resume the run once the server is back."""
    client.call("runs_resume", {"run_id": run_id}, timeout_s=START_S)


def test_a_real_store_behind_a_line_that_breaks(
    embedded_store: EmbeddedStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    direct = bucket_of(embedded_store)
    direct.put("k/patched", NEW)
    older, path = tmp_path / "older", tmp_path / "model"
    older.write_bytes(OLD)
    cuts = [Fault(cut_down=60_000), Fault(cut_down=90_000), Fault(cut_down=120_000)]
    with Proxy(direct.settings.endpoint, faults=cuts) as proxy:
        store = S3Store(direct.settings.model_copy(update={"public_endpoint": proxy.url}))
        moved = Transfers(TransferSettings(attempts=3)).download(
            store.presign_get("k/patched", 60),
            path,
            sha256=SHA,
            size=SIZE,
            earlier=EarlierVersion(older, CHANGED),
        )
        assert proxy.connections >= 3
    assert path.read_bytes() == NEW
    assert moved == length(CHANGED)
