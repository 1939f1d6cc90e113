"""Rounds without training, against the floor of the same bytes in the same run.

    python -m benchmarks.rounds [--clients 4 8] [--sizes 1 25 100] [--rounds 8] [--json FILE]

The site is the product's: real broker, real store, a server process, one agent process and one
training process a device. The floor moves the same bytes by bare urllib3 (see ``floor``), before
and after the rounds, plus one MQTT round trip.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import floor
from benchmarks.processes import cost, peak_rss_bytes
from broker.wire.messages import DeviceState
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.store.s3 import S3Store
from storage.versions.keys import RunKeys, epoch_key

_TASKS = Path(__file__).with_name("perturb.py")
_WARM_ROUNDS = 2
_START_S = 60.0


@dataclass(frozen=True)
class Row:
    """One measured case. Ratios are to ``floor_s`` of the same run."""

    clients: int
    model_mib: int
    round_s: float
    floor_s: float
    ratio: float
    mqtt_round_trip_s: float
    server_peak_rss_mib: float
    client_peak_rss_mib: float
    agent_idle_rss_mib: float
    cpu_s_per_client_round: float
    server_cpu_s_per_round: float
    bytes_per_client_round: int
    killed_client_noticed_s: float
    objects_left: int


def measure(clients: int, mib: int, rounds: int) -> Row:
    """Return one case, on a site of its own."""
    with Site() as site:
        store = S3Store(site.store.settings)
        size = mib << 20
        repetitions = max(3, rounds // 2)
        before = floor.measure(store, clients, size, repetitions)
        row = _run(site, store, clients, mib, rounds)
        after = floor.measure(store, clients, size, repetitions)
    floor_s = statistics.median(before.seconds + after.seconds) + row["mqtt_round_trip_s"]
    return Row(
        clients=clients, model_mib=mib, floor_s=floor_s, ratio=row["round_s"] / floor_s, **row
    )


def _run(site: Site, store: S3Store, clients: int, mib: int, rounds: int) -> dict[str, Any]:
    task = f"{_TASKS}:Perturb{mib}"
    fleet = [
        DeviceSpec(f"device-{number + 1}", engine="numpy", index=number, count=clients)
        for number in range(clients)
    ]
    site.start_devices(fleet, task)
    pids = [site.children[spec.name].pid for spec in fleet]
    with site.connect() as client:
        wait_for_devices(client, [spec.name for spec in fleet], _START_S)
        idle = statistics.mean(peak_rss_bytes(pid) for pid in pids)
        definition = {
            "cohort": {"size": clients, "quorum": clients, "deadline_s": 300.0},
            "evaluation": {"on": "none"},
        }
        follow(client, submit(client, task, {**definition, "rounds": _WARM_ROUNDS}))
        server_pid = site.children["server"].pid
        run_id = submit(client, task, {**definition, "rounds": rounds + 1})
        # the first round starts the training processes; count from its end
        _wait_for_round(client, run_id, 2)
        start = [cost(pid) for pid in pids]
        server_start = cost(server_pid)
        peaks: list[float] = []
        result = follow(client, run_id, lambda _: peaks.append(0.0))
        server_end = cost(server_pid)
        end = [cost(pid) for pid in pids]
        trip_s = _mqtt_round_trip_s(client)
        noticed_s = _noticed_s(client, site, fleet[-1].name)
    report = result.report.document()
    cpu_s = sum(b.cpu_s - a.cpu_s for a, b in zip(start, end, strict=True))
    keys = {info.key for info in store.list("projects/")} - {epoch_key("default")}
    runs = ((key, RunKeys.of(key)) for key in keys)
    retained = sum(run is not None and run.version_of(key) is not None for key, run in runs)
    return {
        "round_s": statistics.median(report["round_s"][1:]),
        "mqtt_round_trip_s": trip_s,
        "server_peak_rss_mib": server_end.peak_rss_bytes / 2**20,
        "client_peak_rss_mib": max(each["peak_rss_bytes"] for each in report["devices"]) / 2**20
        + statistics.mean(peak_rss_bytes(pid) for pid in pids[:-1]) / 2**20,
        "agent_idle_rss_mib": idle / 2**20,
        "cpu_s_per_client_round": cpu_s / (rounds * clients),
        "server_cpu_s_per_round": (server_end.cpu_s - server_start.cpu_s) / rounds,
        "bytes_per_client_round": (report["bytes_up"] + report["bytes_down"])
        // ((rounds + 1) * clients),
        "killed_client_noticed_s": noticed_s,
        "objects_left": len(keys) - retained,
    }


def _wait_for_round(client: Any, run_id: str, number: int) -> None:
    while True:
        for news in client.news(1.0):
            message = news.message
            if getattr(message, "run_id", "") == run_id and getattr(message, "round", 0) >= number:
                return


def _mqtt_round_trip_s(client: Any) -> float:
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        client.call("server_info")
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _noticed_s(client: Any, site: Site, name: str) -> float:
    """Return how long after a device's kill -9 its will was seen."""
    list(client.news(0.2))
    site.children[name].kill()
    start = time.perf_counter()
    while True:
        for news in client.news(0.5):
            message = news.message
            of_device = isinstance(message, DeviceState) and news.address.id == name
            if of_device and message.status == "lost":
                return time.perf_counter() - start


def print_table(rows: list[Row]) -> None:
    """Print one line a case."""
    heading = (
        "clients  MiB  round s  floor s  ratio  server MiB  client MiB  idle MiB  "
        "CPU s/client-round  noticed s  orphans"
    )
    print(heading)
    for row in rows:
        print(
            f"{row.clients:7}  {row.model_mib:3}  {row.round_s:7.3f}  {row.floor_s:7.3f}  "
            f"{row.ratio:5.2f}  {row.server_peak_rss_mib:10.0f}  {row.client_peak_rss_mib:10.0f}  "
            f"{row.agent_idle_rss_mib:8.1f}  {row.cpu_s_per_client_round:18.3f}  "
            f"{row.killed_client_noticed_s:9.3f}  {row.objects_left:7}"
        )


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 25, 100], help="MiB")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    rows = []
    for mib in options.sizes:
        for clients in options.clients:
            rows.append(measure(clients, mib, options.rounds))
            print_table(rows[-1:])
    print()
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
