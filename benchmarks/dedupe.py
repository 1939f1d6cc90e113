"""What a block that did not change costs: bytes of a round with and without, and its time.

    python -m benchmarks.dedupe [--cases head whole] [--sizes 25 100] [--rounds 6] [--json FILE]

The site is the product's: real broker, real store, real processes, torch. ``head`` trains the head
of a frozen backbone, ``whole`` trains everything. "Without" is what a version and an update of this
layout take as whole files, which is what a device moves in round 1 and when all has changed.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.processes import cost
from fl_client.tasks.registry import load_task
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.updates.info import UpdateInfo
from storage.updates.stream import write_update
from storage.weights import stored_size

_TASKS = Path(__file__).with_name("finetune.py")
_CASES = ("head", "whole")
_START_S = 120.0


@dataclass(frozen=True)
class Row:
    """One measured case; bytes are one client's in one round, ``first_down`` those of round 1."""

    case: str
    model_mib: int
    clients: int
    down: int
    down_without: int
    up: int
    up_without: int
    first_down: int
    round_s: float
    client_cpu_s: float
    server_cpu_s: float


def measure(case: str, mib: int, clients: int, rounds: int) -> Row:
    """Return one case, on a site of its own."""
    spec = f"{_TASKS}:{case.title()}{mib}"
    down_without, up_without = whole_files(spec)
    fleet = [
        DeviceSpec(f"device-{number + 1}", engine="torch", index=number, count=clients)
        for number in range(clients)
    ]
    definition = {
        "cohort": {"size": clients, "quorum": clients, "deadline_s": 300.0},
        "evaluation": {"on": "none"},
    }
    with Site() as site:
        site.start_devices(fleet, spec)
        pids = [site.children[device.name].pid for device in fleet]
        server_pid = site.children["server"].pid
        with site.connect() as client:
            wait_for_devices(client, [device.name for device in fleet], _START_S)
            # it starts the training processes, and is what a device costs that holds nothing
            first = follow(
                client, submit(client, spec, {**definition, "rounds": 1})
            ).report.document()
            start, server_start = [cost(pid).cpu_s for pid in pids], cost(server_pid).cpu_s
            run = follow(
                client, submit(client, spec, {**definition, "rounds": rounds})
            ).report.document()
            cpu_s = sum(cost(pid).cpu_s for pid in pids) - sum(start)
            server_cpu_s = cost(server_pid).cpu_s - server_start
    later = rounds - 1
    return Row(
        case=case,
        model_mib=mib,
        clients=clients,
        down=(run["bytes_down"] - first["bytes_down"]) // (later * clients),
        down_without=down_without,
        up=run["bytes_up"] // (rounds * clients),
        up_without=up_without,
        first_down=first["bytes_down"] // clients,
        round_s=statistics.median(run["round_s"][1:]),
        client_cpu_s=cpu_s / (rounds * clients),
        server_cpu_s=server_cpu_s / rounds,
    )


def whole_files(spec: str) -> tuple[int, int]:
    """Return the sizes of the task's model and of an update without a zero."""
    weights = load_task(spec).initial_weights(0)
    info = UpdateInfo(
        run_id="x" * 22,
        round=1,
        attempt=1,
        device_id="device-1",
        base_sha256="0" * 64,
        layout_hash=weights.layout.hash,
        kind="delta",
        num_examples=32,
        metrics={"train_loss": 1.0},
    )
    weights.vector.fill(1.0)
    return stored_size(weights.layout), write_update(io.BytesIO(), info, weights.vector).size_bytes


def print_table(rows: list[Row]) -> None:
    """Print one line a case."""
    print(
        "case    MiB  clients    down B  without B   saved      up B  without B   saved  "
        "round s  client CPU s  server CPU s"
    )
    for row in rows:
        print(
            f"{row.case:5}  {row.model_mib:4}  {row.clients:7}  "
            f"{row.down:9}  {row.down_without:9}  {1 - row.down / row.down_without:6.1%}  "
            f"{row.up:9}  {row.up_without:9}  {1 - row.up / row.up_without:6.1%}  "
            f"{row.round_s:7.3f}  {row.client_cpu_s:12.3f}  {row.server_cpu_s:12.3f}"
        )


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", choices=[25, 100], default=[25, 100])
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=_CASES)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    rows = []
    for mib in options.sizes:
        for case in options.cases:
            rows.append(measure(case, mib, options.clients, options.rounds))
            print_table(rows[-1:])
    print()
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
