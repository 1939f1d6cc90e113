"""How the tests are dealt out to workers: by what shares servers, the longest first.

pytest-xdist's own ``--dist loadgroup`` writes the group into a node's name, which pytest 9.2 no
longer lets it do: every test became a group of its own, and each worker started the servers of a
module anew.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# what takes a minute or more on one worker begins first, so that no worker is alone at the end
_LONG = (
    "tests/chaos/test_server_kills.py",
    "tests/chaos/test_power_loss.py",
    "tests/chaos/test_fitted_kills.py",
)
_FOLDERS = ("chaos", "attacks", "integration", "contract", "world", "property", "examples", "unit")
# whose tests have servers of their own, or none
_BY_TEST = frozenset(
    {
        "tests/chaos/test_power_loss.py",
        "tests/chaos/test_writes.py",
        "tests/contract/test_broker_delivery.py",
        "tests/contract/test_broker_permissions.py",
        "tests/contract/test_broker_process.py",
        "tests/contract/test_broker_tls.py",
        "tests/contract/test_engines.py",
        "tests/contract/test_replicas.py",
        "tests/integration/test_agent.py",
        "tests/integration/test_embedded_broker.py",
        "tests/integration/test_session_connection.py",
        "tests/integration/test_session_delivery.py",
        "tests/integration/test_session_mqtt5.py",
        "tests/property/test_mutants.py",
        "tests/world/test_world.py",
    }
)
# whose modules share servers: their conftest starts them for the package
_PACKAGES = ("tests/attacks", "tests/integration/server")
# what a server of a module or of more is of: the rest of the parameters are the test's own
_SERVERS = ("nats", "mosquitto", "juicefs", "seaweedfs", "memory")


def unit_of(nodeid: str) -> str:
    """Return what is done by one worker: a file, or the part of it that has one kind of server."""
    path, _, name = nodeid.partition("::")
    if path in _BY_TEST:
        return nodeid
    parameters = name.partition("[")[2].removesuffix("]").split("-")
    kind = next((each for each in _SERVERS if each in parameters), "")
    folder = PurePosixPath(path).parent.as_posix()
    shared = folder if folder in _PACKAGES else path
    return f"{shared}[{kind}]"


def order_of(nodeid: str) -> tuple[int, int]:
    """Return a key to sort tests by, so that what may take long begins early."""
    path = nodeid.partition("::")[0]
    if path in _LONG:
        return 0, _LONG.index(path)
    parts = PurePosixPath(path).parts
    folder = parts[1] if len(parts) > 2 else ""
    return 1, _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)


class Scheduling(LoadScopeScheduling):
    """Gives units to workers in the order of their first tests."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # by their number of tests
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
