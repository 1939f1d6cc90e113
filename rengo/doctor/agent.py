"""What keeps a device's agent from its work, and how to mend it."""

from __future__ import annotations

import secrets
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from broker.session.endpoint import Endpoint
from broker.session.session import MqttSession
from fl_client.collectors.mqtt import read_password
from fl_client.collectors.places import data_places, unread_sensors
from fl_client.machine.hardware import available_engines
from fl_client.tasks.listing import resolve
from iot.settings import DeviceSettings
from rengo.device.config_file import Checked
from rengo.device.status import ask_status
from rengo.device.systemd import UNIT
from rengo.doctor.checks import Check, diagnose_device
from rengo.doctor.machine import MachineFacts
from rengo.terminal.format import duration
from runtime.errors import AccessDenied, ConfigError, RengoError, TransportError
from runtime.security.identity import Identity, read_identity
from runtime.security.tls import Tls, tls_error

_REACH_S = 10.0
_DAY_S = 24 * 3600.0
_SOON_S = 14 * _DAY_S
_CLOCK_OFF_S = 300.0


@dataclass(frozen=True)
class AgentTarget:
    """What is looked at: the agent's settings, checked, and where its data lies."""

    settings: Checked
    data_dir: Path


def diagnose_agent(target: AgentTarget, machine: MachineFacts | None = None) -> list[Check]:
    """Return what was looked at, in the order to read it."""
    status, running = _running(target.data_dir)
    identity, found = _identity(target, status)
    checks = [*_settings(target.settings), found, *_service(), running]
    if identity is not None:
        checks += _broker(identity, status)
    checks += _store(identity, status)
    checks += _engine(target.settings.values)
    checks += _data({"data_dir": target.data_dir, **target.settings.values})
    return [*checks, *diagnose_device(target.data_dir, machine)]


def _settings(checked: Checked) -> Iterator[Check]:
    if not checked.problems:
        yield Check("settings", True, f"{checked.source} is understood")
    for problem in checked.problems:
        where = ", ".join(part for part in (problem.place, problem.key) if part)
        detail = f"{checked.source}: {where}: {problem.what}"
        yield Check("settings", False, detail, problem.mend)


def _identity(target: AgentTarget, status: dict[str, Any] | None) -> tuple[Identity | None, Check]:
    path = target.settings.values.get("identity")
    if status is not None and (not path or not Path(path).exists()):
        detail = f"{status['device']} of {status['domain']}, which the running agent was told"
        return None, Check("identity", True, detail)
    if not path:
        return None, Check("identity", False, "none is named", "rengo enroll URL --token TOKEN")
    try:
        identity = read_identity(Path(path))
    except ConfigError as error:
        text = str(error)
        _, _, mend = text.partition("; run: ")
        return None, Check(
            "identity", False, text, mend or "enrol this machine again: rengo enroll URL"
        )
    if identity.role != "device":
        detail = f"{path} is a {identity.role}'s, an agent needs a device's"
        return None, Check("identity", False, detail, "name a device's file as identity")
    return identity, Check("identity", True, f"{identity.id} of {identity.domain}, mode 0600")


def _running(data_dir: Path) -> tuple[dict[str, Any] | None, Check]:
    try:
        status = ask_status(data_dir)
    except AccessDenied as error:
        return None, Check("agent", False, str(error), "sudo rengo doctor agent", required=False)
    except TransportError as error:
        mend = "start it: systemctl start rengo-agent, `rengo client` or `rengo iot`"
        return None, Check("agent", False, str(error), mend, required=False)
    detail = f"runs as process {status['pid']} for {duration(status['up_s'])}"
    return status, Check("agent", True, detail, required=False)


def _service() -> Iterator[Check]:
    systemctl = shutil.which("systemctl")
    if systemctl is None or not Path("/run/systemd/system").is_dir():
        yield Check("service", True, "systemd does not run here", required=False)
        return
    known = [
        each
        for each in ([systemctl, "is-active", UNIT], [systemctl, "--user", "is-active", UNIT])
        if _output_of(each) not in {"", "inactive"}
    ]
    if not known:
        mend = "rengo agent install-service, so that it starts with the machine"
        yield Check("service", False, "not installed or not started", mend, required=False)
        return
    state = _output_of(known[0])
    scope = "--user " if "--user" in known[0] else ""
    mend = "" if state == "active" else f"journalctl {scope}-u {UNIT} -n 50 says why"
    yield Check("service", state == "active", f"{UNIT} is {state}", mend)


def _output_of(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip()


# --- the network --------------------------------------------------------------------------------


def _broker(identity: Identity, status: dict[str, Any] | None) -> Iterator[Check]:
    place = f"{identity.host}:{identity.port}"
    if identity.trust is not None:
        yield _certificate("broker's certificate", identity.host, identity.port, identity.trust)
    link = {} if status is None else status["connection"]
    if link.get("connected"):
        yield Check("broker", True, f"{place}, connected for {duration(link['for_s'])}")
        return
    try:
        _log_in(identity)
    except RengoError as error:
        mend = "is the site up (`rengo up`), the address right, and port open from here?"
        yield Check("broker", False, f"{place}: {error}", mend)
    else:
        yield Check("broker", True, f"{place} lets this device in")


def _log_in(identity: Identity) -> None:
    """Log in beside the agent, under another client id, and leave nothing."""
    endpoint = Endpoint(
        identity.host,
        identity.port,
        identity.id,
        identity.password.get_secret_value(),
        f"{identity.id[:40]}-doctor-{secrets.token_hex(8)}",
        tls=identity.trust,
        persistent=False,
    )
    _reach(endpoint)


def _reach(endpoint: Endpoint) -> None:
    """Connect and leave; TransportError where that is not possible."""
    session = MqttSession(endpoint, [], lambda _: True)
    session.start()
    try:
        session.wait_connected(_REACH_S)
    finally:
        session.stop()


def _store(identity: Identity | None, status: dict[str, Any] | None) -> Iterator[Check]:
    url = "" if status is None else status["store"]
    if not url:
        detail = "not known before the agent's first order"
        yield Check("store", True, detail, required=False)
        return
    place = urlsplit(url)
    trust = None if identity is None else identity.store_trust
    port = place.port or (443 if place.scheme == "https" else 80)
    host = place.hostname or ""
    if place.scheme == "https":
        yield _certificate("store's certificate", host, port, trust or Tls())
    try:
        date = _date_of(host, port, trust or Tls() if place.scheme == "https" else None)
    except (OSError, RengoError) as error:
        mend = "is it running, and may this machine reach that address?"
        yield Check("store", False, f"{url}: {error}", mend)
        return
    yield Check("store", True, f"{url} answers")
    if date is not None:
        yield _store_clock(time.time() - date)


def _store_clock(off_s: float) -> Check:
    where = "ahead of" if off_s > 0 else "behind"
    detail = f"{duration(abs(off_s))} {where} the store's"
    if abs(off_s) <= _CLOCK_OFF_S:
        return Check("clock against the store", True, detail, required=False)
    mend = "sudo timedatectl set-ntp true; rounds go on, but certificates may look out of date"
    return Check("clock against the store", False, detail, mend, required=False)


def _date_of(host: str, port: int, trust: Tls | None) -> float | None:
    """Return the clock of an HTTP server; OSError or TransportError when it gives no answer."""
    with socket.create_connection((host, port), _REACH_S) as plain:
        link = plain if trust is None else trust.context().wrap_socket(plain, server_hostname=host)
        with link:
            link.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            head = link.recv(8192).decode("latin-1")
    if not head.startswith("HTTP/"):
        raise TransportError("what answers there speaks no HTTP")
    for line in head.splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            return parsedate_to_datetime(value.strip()).timestamp()
    return None


def _certificate(name: str, host: str, port: int, trust: Tls) -> Check:
    """Return whether a certificate is right, and for how long."""
    try:
        with (
            socket.create_connection((host, port), _REACH_S) as plain,
            trust.context().wrap_socket(plain, server_hostname=host) as link,
        ):
            shown = link.getpeercert() or {}
    except OSError as error:
        problem = tls_error(error, host) or error
        mend = "compare the clocks, or enrol this machine again when the site has a new authority"
        return Check(name, False, f"{host}:{port}: {problem}", mend)
    left_s = ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()
    detail = f"{host}:{port}, good for {left_s / _DAY_S:.0f} days more"
    if left_s > _SOON_S:
        return Check(name, True, detail)
    return Check(name, False, detail, "renew it on the site", required=False)


def _engine(values: dict[str, Any]) -> Iterator[Check]:
    wanted, here = str(values.get("engine", "auto")), available_engines()
    if wanted == "auto" or wanted in here:
        yield Check("engine", True, f"{', '.join(here)} (the agent's is {wanted})")
        return
    extra = "torch" if wanted == "torch" else "iot"
    yield Check("engine", False, f"{wanted} is not installed", f"pip install 'rengo[{extra}]'")


def _data(values: dict[str, Any]) -> Iterator[Check]:
    """Look at the sections ``[data.<task>]``; what else is wrong with the file is told with it."""
    try:
        settings = DeviceSettings.model_validate(values)
    except ValidationError:
        return
    if not settings.data:
        return
    try:
        tasks = [resolve(spec).name for spec in settings.tasks]
        found = data_places(settings, tasks)
    except ConfigError as error:
        yield Check("data", False, str(error), "name a task of this device, or remove the section")
        return
    for task in unread_sensors(settings, tasks):
        yield Check(
            f"data of {task}",
            False,
            "its sensor is not read: the task is not installed here, and code of a bundle runs for "
            "orders alone",
            "install the task here, or have the site's own program publish the readings "
            '(kind = "mqtt") or write them ("csv", "sqlite", "folder")',
            required=False,
        )
    gathered = ", ".join(f"{each.task} ({each.settings.source.kind})" for each in found)
    yield Check("data", True, gathered)
    for each in found:
        if each.settings.source.kind == "mqtt":
            yield _topics(each.task, each.settings.source)


def _topics(task: str, source: Any) -> Check:
    """Return whether the broker of the site's sensors lets this device in."""
    place = f"{source.host}:{source.port}"
    try:
        trust = None if source.ca is None else Tls.trusting(source.ca)
        _reach(
            Endpoint(
                source.host,
                source.port,
                source.username,
                read_password(source.password_file),
                f"{source.client_id[:40]}-doctor-{secrets.token_hex(8)}",
                tls=trust,
                persistent=False,
            )
        )
    except RengoError as error:
        mend = "is that broker up, and are host, user, password_file and ca of the section right?"
        return Check(f"data of {task}", False, f"{place}: {error}", mend)
    return Check(f"data of {task}", True, f"{place} lets this device in")
