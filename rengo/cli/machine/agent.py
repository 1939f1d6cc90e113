"""``rengo agent status|check-config|install-service|update``: the agent of this machine."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rengo.cli.codes import DONE, USAGE
from rengo.cli.common import Commands, add_command, print_json
from rengo.site.folder import SiteFolder, default_home
from rengo.terminal.lines import say
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from rengo.device.config_file import Checked
    from rengo.doctor.agent import AgentTarget

_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_TIME = re.compile(r"(\d{1,6})([smh])")
_MEMORY = re.compile(r"\d+(\.\d+)?[KMGT%]|infinity")
_SHARE = re.compile(r"\d+(\.\d+)?%")


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser("agent", help="look after this machine's agent")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = add_command(verbs, "status", status, "say what the agent is doing")
    _add_place(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser = add_command(verbs, "check-config", check_config, "check the agent's TOML file")
    _add_file(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    _add_install(verbs)
    parser = add_command(
        verbs,
        "update",
        update,
        "install a new version beside this one, try it, keep it if it holds",
    )
    _add_place(parser)
    parser.add_argument(
        "--to", default="", metavar="VERSION", help="a version or a wheel (default: the newest)"
    )
    parser.add_argument(
        "--wait",
        default="10m",
        metavar="TIME",
        help="how long to wait for the end of a round: 0s, 90s, 10m, 2h (default: 10m)",
    )
    parser.add_argument(
        "--find-links", type=Path, metavar="DIR", help="a folder of wheels instead of the index"
    )


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the agent's TOML file (default: agent.toml in RENGO_HOME or ~/.rengo, else "
        "/etc/rengo/agent.toml)",
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    _add_file(parser)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the agent's own folder")
    parser.add_argument("--id", help="the device's id, where several agents run on this machine")


def _add_install(verbs: Commands) -> None:
    from rengo.cli.site.roles import add_agent_options, add_engine_options  # noqa: PLC0415

    parser = add_command(
        verbs, "install-service", install_service, "have systemd run the agent, always"
    )
    add_agent_options(parser)
    add_engine_options(parser)
    parser.add_argument("--pi", action="store_true", help="the Raspberry Pi's agent, `rengo iot`")
    parser.add_argument("--id", help="which of the identities on this machine to take")
    parser.add_argument(
        "--user", action="store_true", help="a service of your own, which needs no root"
    )
    parser.add_argument("--print", action="store_true", help="print the unit and change nothing")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="write into another file system, an image's, and start nothing",
    )
    parser.add_argument(
        "--memory-max", default="75%", metavar="SIZE", help="300M or 75%% (default: 75%%)"
    )
    parser.add_argument(
        "--cpu-quota", metavar="SHARE", help="of one core (default: 100%%; client: 80%% of all)"
    )


def status(options: argparse.Namespace) -> int:
    """Print what the agents are doing."""
    from rengo.device.status import ask_status, lines  # noqa: PLC0415

    found = [ask_status(folder) for folder in agent_folders(options)]
    if options.json:
        print_json(found[0] if len(found) == 1 else {"agents": found}, "-")
        return DONE
    for each in found:
        say(*lines(each))
    return DONE


def check_config(options: argparse.Namespace) -> int:
    """Print what is wrong with the file; 2 when anything is."""
    checked = _loaded(checked_settings(options.config))
    if options.json:
        problems = [asdict(each) for each in checked.problems]
        print_json({"source": checked.source, "ok": not problems, "problems": problems}, "-")
        return USAGE if problems else DONE
    for key, variable in checked.overridden.items():
        print(f"note  {key} comes from {variable}")
    for problem in checked.problems:
        say(*problem.lines())
    count = len(checked.problems)
    print(f"{checked.source}: " + (f"{count} to mend." if count else "all well."))
    return USAGE if count else DONE


def install_service(options: argparse.Namespace) -> int:
    """Write the unit and its files, and start it."""
    from rengo.device.install import of_file, plan  # noqa: PLC0415

    wanted, identity = _wanted(options)
    if options.config is not None:
        checked = checked_settings(options.config)
        if checked.problems:
            raise ConfigError(f"{options.config} is not right; see rengo agent check-config")
        wanted = of_file(wanted, checked.values)
    installation = plan(wanted, identity)
    if options.print:
        print(installation.service.text(), end="")
        return DONE
    installation.carry_out(lambda line: print(line, flush=True))
    return DONE


def _wanted(options: argparse.Namespace) -> tuple[Any, Path | None]:
    import os  # noqa: PLC0415

    from rengo.cli.site.roles import labels_of  # noqa: PLC0415
    from rengo.device.install import InstallRequest  # noqa: PLC0415

    quota = options.cpu_quota
    if quota is None:
        quota = "100%" if options.pi else f"{80 * (os.cpu_count() or 1)}%"
    if not _MEMORY.fullmatch(options.memory_max):
        raise ConfigError(f"--memory-max {options.memory_max!r}: say 300M or 75%")
    if not _SHARE.fullmatch(quota):
        raise ConfigError(f"--cpu-quota {quota!r}: say 50% of a core, or 200% for two")
    identity = None if options.config else _identity_path(options.id)
    settings = {
        "tasks": options.task or ["digits"],
        "role": options.role,
        "engine": None if options.pi else options.engine,
        "profile": None if options.pi else options.profile,
        "accelerators": None if options.pi else options.accelerators,
        "folder": None if options.folder is None else str(options.folder.absolute()),
        "data_dir": None if options.data_dir is None else str(options.data_dir.absolute()),
        "partition": options.partition,
        "labels": labels_of(options),
        **_share(options, identity),
    }
    wanted = InstallRequest(
        "iot" if options.pi else "client",
        options.config and options.config.absolute(),
        settings,
        options.user,
        options.root.absolute(),
        options.memory_max,
        quota,
    )
    return wanted, identity


def _share(options: argparse.Namespace, identity: Path | None) -> dict[str, int | None]:
    from runtime.security.identity import read_identity  # noqa: PLC0415

    if options.index is not None or options.count is not None or identity is None:
        return {"index": options.index, "count": options.count}
    known = read_identity(identity)
    return {"index": known.index, "count": known.count}


def _identity_path(name: str | None) -> Path | None:
    """Return the device's identity of this user: the named one, else the only one."""
    folder = default_home() / "identities"
    if name is not None:
        path = folder / f"{name}.json"
        if not path.is_file():
            raise ConfigError(f"there is no identity {path}; `rengo enroll` makes one")
        return path
    if not folder.is_dir():
        return None
    found = [
        each.id for each in SiteFolder(default_home()).all_identities() if each.role == "device"
    ]
    if len(found) > 1:
        raise ConfigError(f"several identities lie in {folder}; choose by --id {'|'.join(found)}")
    return folder / f"{found[0]}.json" if found else None


def update(options: argparse.Namespace) -> int:
    """Update the agent."""
    from rengo.device.config_file import usual_file  # noqa: PLC0415
    from rengo.device.update import AgentUpdate  # noqa: PLC0415

    match = _TIME.fullmatch(options.wait)
    if match is None:
        raise ConfigError(f"--wait {options.wait!r} is no time: say 0s, 90s, 10m or 2h")
    (folder,) = one_of(agent_folders(options))
    job = AgentUpdate(
        options.to,
        options.config or usual_file(),
        folder,
        float(int(match[1]) * _UNITS_S[match[2]]),
        options.find_links,
    )
    job.carry_out(lambda line: print(line, flush=True))
    return DONE


def checked_settings(path: Path | None) -> Checked:
    """Return the agent's settings, checked: the file's, and the environment's over them."""
    from iot.settings import DeviceSettings  # noqa: PLC0415
    from rengo.device.config_file import check, usual_file  # noqa: PLC0415

    checked = check(path or usual_file(), DeviceSettings)
    found = _identity_path(None) if "identity" not in checked.values else None
    usual = {} if found is None else {"identity": str(found)}
    named = checked.values.get("identity") or usual.get("identity")
    if named is not None:
        # where the agent puts its data when nothing says another place
        usual["data_dir"] = str(default_home() / "devices" / Path(named).stem)
    missing = usual.keys() - checked.values.keys()
    return replace(
        checked,
        values={**usual, **checked.values},
        problems=[
            each
            for each in checked.problems
            if each.key not in missing or each.what != "is missing"
        ],
    )


def _loaded(checked: Checked) -> Checked:
    """Return the same with what the agent would refuse when it loads what the settings name."""
    from iot.settings import DeviceSettings  # noqa: PLC0415
    from rengo.device.loadable import load_problems  # noqa: PLC0415

    if checked.problems:
        return checked
    settings = DeviceSettings.model_validate(checked.values)
    return replace(checked, problems=list(load_problems(settings)))


def agent_target(options: argparse.Namespace) -> AgentTarget:
    """Return the agent to diagnose, with the settings that it runs with or would start with."""
    from rengo.device.config_file import Checked, usual_file  # noqa: PLC0415
    from rengo.doctor.agent import AgentTarget  # noqa: PLC0415

    place = argparse.Namespace(config=options.config, data_dir=None, id=options.id)
    (folder,) = one_of(agent_folders(place))
    if options.id is None and (options.config or usual_file()):
        return AgentTarget(checked_settings(options.config), folder)
    # started without a file: by an identity of this user
    path = default_home() / "identities" / f"{folder.name}.json"
    return AgentTarget(Checked("started without a file", {"identity": str(path)}, {}, []), folder)


def agent_folders(options: argparse.Namespace) -> list[Path]:
    """Return the data folders of the agents that are meant: the named one, else those that run.

    Raises:
        ConfigError: no agent was ever started here.
    """
    devices = default_home() / "devices"
    if options.data_dir is not None:
        return [options.data_dir]
    if options.id is not None:
        return [devices / options.id]
    found = [] if options.config else list(_running(devices))
    if found:
        return found
    folder = checked_settings(options.config).values.get("data_dir")
    if folder:
        return [Path(folder)]
    started = sorted(devices.glob("*")) if devices.is_dir() else []
    if started:
        return started[:1]
    raise ConfigError(
        f"no agent was started here: nothing lies in {devices}, and there is no agent.toml; "
        "name one by --config or --id"
    )


def _running(devices: Path) -> Iterator[Path]:
    from fl_client.agent.status.question_socket import SOCKET  # noqa: PLC0415

    if devices.is_dir():
        yield from (path.parent for path in sorted(devices.glob(f"*/{SOCKET}")))


def one_of(folders: list[Path]) -> list[Path]:
    """Return the only agent's folder; ConfigError when several agents run here."""
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigError(f"several agents run here ({names}); choose one by --id")
    return folders
