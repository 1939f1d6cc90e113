"""``rengo broker | store``: one part of a site that was prepared, in the foreground."""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from rengo.cli.codes import DONE
from rengo.cli.common import Commands, add_command, begin_role, serve
from rengo.site.components import BrokerPart, StorePart
from rengo.site.supervisor import SupervisedService, Supervisor
from runtime.config import load

_LOG = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the commands."""
    for name, action, summary in (
        ("broker", run_broker, "run the MQTT broker of a site that `rengo up --prepare` wrote"),
        ("store", run_store, "run the S3 store of a site that `rengo up --prepare` wrote"),
    ):
        parser = add_command(commands, name, action, summary)
        parser.add_argument("--config", type=Path, required=True, help=f"the {name}'s TOML file")


def run_broker(options: argparse.Namespace) -> int:
    """Keep the broker alive until SIGINT or SIGTERM; who it serves stands in its folder."""
    begin_role(debug=options.debug)
    part = load(BrokerPart, options.config, "RENGO_BROKER")
    broker = part.broker()
    return _keep("the MQTT broker", part, broker, lambda: broker.start(None), broker.fault)


def run_store(options: argparse.Namespace) -> int:
    """Keep the store alive until SIGINT or SIGTERM."""
    begin_role(debug=options.debug)
    part = load(StorePart, options.config, "RENGO_STORE")
    store = part.store()
    return _keep("the store", part, store, store.start, store.fault)


def _keep(
    name: str,
    part: BrokerPart | StorePart,
    service: SupervisedService,
    start: Callable[[], None],
    fault: Callable[[], str],
) -> int:
    stopped = threading.Event()
    supervisor = Supervisor()

    def run() -> None:
        supervisor.add(name, service, start, fault, part.folder)
        _LOG.info("%s (%s) serves %s:%d", name, part.kind, part.host, part.port)
        stopped.wait()

    supervisor.start()
    try:
        serve(run, stopped.set)
    finally:
        supervisor.stop()
    return DONE
