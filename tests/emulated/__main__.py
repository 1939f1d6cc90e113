"""A device of another processor takes part in a run: its root is run by qemu-user, as root.

    python -m tests.emulated [--arch arm64|armhf] [--engine numpy|torch] [--root DIR]

The root file system is Debian's; Rengo and what it needs come into it as wheels, by pip. The agent
enrols by a join token and trains beside devices of this machine's own. Emulation proves that the
wheels exist and work together; it says nothing of speed or memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rengo.operator.progress import DeviceTable
from rengo.operator.result import RunResult
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from runtime.errors import TransportError
from runtime.processes.child import Child
from tests.emulated.rootfs import ARCHITECTURES, RootFs, missing

_REGISTRY = Path("/proc/sys/fs/binfmt_misc")
_ROOTS = Path("/var/tmp/rengo-emulated")  # kept between calls
_START_S = 300.0
_RUN_S = 900.0
_LOOK_S = 0.5
_NATIVE = 2
_ENGINES = {"arm64": ("numpy", "torch"), "armhf": ("numpy",)}


@dataclass(frozen=True)
class InstallRequest:
    """What is to be shown."""

    arch: str
    engine: str
    task: str
    rounds: int


def main() -> int:
    """Show it for each engine and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="arm64")
    parser.add_argument("--engine", choices=("numpy", "torch"), help="(default: all that fit)")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=_ROOTS, help=f"(default: {_ROOTS})")
    options = parser.parse_args()
    architecture = ARCHITECTURES[options.arch]
    lacks = missing(architecture, root=os.geteuid() == 0, registry=_REGISTRY)
    if lacks:
        print("This needs what is not here:", *lacks, sep="\n  ", file=sys.stderr)
        return 2
    # as Ctrl-C, so that everything is taken down
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = RootFs(architecture, options.root.absolute())
    root.build()
    engines = (options.engine,) if options.engine else _ENGINES[options.arch]
    rows = []
    with root.mounted():
        root.install(["iot", *(["torch"] if "torch" in engines else [])])
        for engine in engines:
            wanted = InstallRequest(options.arch, engine, options.task, options.rounds)
            rows.append(show(root, wanted))
    heads = ("device", "machine", "Python", "engine", "rounds", "accuracy", "wall s", "versions")
    print("| " + " | ".join(heads) + " |")
    print("|" + " --- |" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return 0


def show(root: RootFs, wanted: InstallRequest) -> tuple[str, ...]:
    """Let an emulated device take part in a run; return a row for the table.

    Raises:
        AssertionError: it was not in every round.
    """
    name = f"{wanted.arch}-{wanted.engine}"
    with (
        tempfile.TemporaryDirectory(prefix="rengo-emulated-") as folder,
        Site(Path(folder)) as site,
    ):
        natives = [
            DeviceSpec(f"native-{index}", engine="numpy", index=index, count=_NATIVE + 1)
            for index in range(1, _NATIVE + 1)
        ]
        site.start_devices(natives, wanted.task)
        agent = _agent(root, wanted, name, site)
        agent.start()
        try:
            device_table, result = _run(
                site, agent, wanted, [name, *(each.name for each in natives)]
            )
        except BaseException:
            print(agent.log.read_text("utf-8", "replace")[-4000:], file=sys.stderr)
            raise
        finally:
            agent.stop()
            shutil.rmtree(root.path / _home(site).lstrip("/"))
    machine = root.ask("import platform; print(platform.machine())")
    return (name, machine, *_row(wanted, name, device_table, result))


def _run(
    site: Site, agent: Child, wanted: InstallRequest, names: list[str]
) -> tuple[DeviceTable, RunResult]:
    """Return the devices that there are and how their run went; the first name is the agent's."""
    deadline = time.monotonic() + _START_S + _RUN_S

    def look(_: object) -> None:
        site.check_processes()
        if not agent.running:
            raise TransportError(f"the emulated agent has ended: {agent.explanation()}")
        if time.monotonic() > deadline:
            raise TransportError(f"the run did not end within {_START_S + _RUN_S:.0f} s")

    with site.connect() as client:
        device_table = DeviceTable()
        wait_for_devices(client, names, _START_S, look, device_table)
        while names[0] not in device_table.infos:
            for news in client.news(_LOOK_S):
                device_table.apply(news)
            look(None)
        for key, value in device_table.infos[names[0]].model_dump().items():
            print(f"{key:14} {value}")
        sys.stdout.flush()
        return device_table, follow(client, submit(client, wanted.task, _definition(wanted)), look)


def _agent(root: RootFs, wanted: InstallRequest, name: str, site: Site) -> Child:
    """Return the process of the emulated agent, which enrols first."""
    home = _home(site)
    with site.connect() as client:
        invitation = client.call("devices_invite")
    token = root.path / home.lstrip("/") / "token"
    token.parent.mkdir(mode=0o700)
    token.touch(0o600)
    token.write_text(invitation["token"])
    kind = ["--pi"] if wanted.engine == "numpy" else ["--engine", wanted.engine]
    command = [
        *("rengo", "enroll", invitation["url"], "--token-file", f"{home}/token"),
        *("--name", name, "--task", wanted.task, "--data-dir", f"{home}/data"),
        *("--index", "0", "--count", str(_NATIVE + 1), *kind),
    ]
    argv = root.argv(*command)
    argv.insert(argv.index("-i") + 1, f"RENGO_HOME={home}")
    return Child(f"the emulated device {name}", argv, site.folder.root / "logs" / f"{name}.log")


def _home(site: Site) -> str:
    """Return where the emulated agent keeps its things, as it sees the path itself."""
    return f"/root/{site.folder.root.name}"


def _definition(wanted: InstallRequest) -> dict[str, Any]:
    everybody = _NATIVE + 1
    return {
        "rounds": wanted.rounds,
        "seed": 0,
        "cohort": {
            "size": everybody,
            "quorum": everybody,
            "deadline_s": 400.0,
            "gather_s": 10.0,
            "max_attempts": 2,
        },
        "evaluation": {"on": "devices"},
    }


def _row(
    wanted: InstallRequest, name: str, device_table: DeviceTable, result: RunResult
) -> tuple[str, ...]:
    info, report = device_table.infos[name], result.report.document()
    rounds = {row["id"]: row["rounds"] for row in report["devices"]}
    assert rounds[name] == wanted.rounds, f"{name} was in {rounds[name]} of {wanted.rounds} rounds"
    versions = {**info.versions}
    python = versions.pop("python", "?")
    return (
        python,
        info.engine,
        f"{rounds[name]}/{wanted.rounds}",
        "none" if result.accuracy is None else f"{result.accuracy:.3f}",
        f"{report['wall_s']:.0f}",
        ", ".join(f"{key} {value}" for key, value in sorted(versions.items())),
    )


if __name__ == "__main__":
    raise SystemExit(main())
