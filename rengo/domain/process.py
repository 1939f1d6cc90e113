"""A domain as one process: its server on one thread, and on another its agent for the parent.

Neither waits for the other. While the parent is away the server goes on with what was ordered, and
its devices do not notice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.wire.messages import MAX_TREE_DEPTH, TREE_VERSION, TreePosition
from fl_client.agent.status.server import StatusServer
from fl_server.server import Server, ServerSettings
from rengo.domain.agent import DomainAgent, domain_agent
from rengo.domain.flow import FLOW, DomainKind
from rengo.domain.settings import ParentSection
from rengo.domain.tree import TreeView, hidden_name, view_of
from rengo.domain.worker import TreeChanged
from runtime.errors import ConfigError
from runtime.security.identity import Identity

_LOG = logging.getLogger(__name__)
_START_S = 30.0


@dataclass
class _Names:
    """Whether the parent may learn names: the domain's owner and all above must let it."""

    own: bool
    above: bool = True

    @property
    def shown(self) -> bool:
        return self.own and self.above


@dataclass
class DomainSeams:
    """What the server is told to do for the domain, before there is a domain.

    Attributes:
        presence_changed: see ``ServerSettings``.
    """

    server_identity: Identity
    names: _Names
    presence_changed: Callable[[], None] = lambda: None

    def settings(self, settings: ServerSettings) -> ServerSettings:
        """Return a server's settings with what makes it a domain's."""
        return ServerSettings(
            **{
                **vars(settings),
                "flow_kinds": {**settings.flow_kinds, FLOW: DomainKind()},
                "presence_changed": self._tell,
                "report_name": self._report_name,
            }
        )

    def _tell(self) -> None:
        self.presence_changed()

    def _report_name(self, run_id: str, device_id: str) -> str:
        if self.names.shown:
            return device_id
        return hidden_name(self.server_identity.secret_key, run_id, device_id)


def seams_of(server: Identity, parent: ParentSection) -> DomainSeams:
    """Return what a domain's server is to be made with."""
    return DomainSeams(server, _Names(parent.names))


@dataclass
class Domain:
    """One domain. ``run_forever`` runs its server; the agent has a thread of its own.

    Args:
        server: made with the settings of ``seams``, not started.
        parent: what the domain is below its parent.
        identity: its own, as a device of the parent's.
        status: answers questions of this machine about the agent.
    """

    server: Server
    seams: DomainSeams
    parent: ParentSection
    identity: Identity
    status: Callable[[], StatusServer]
    _agent: DomainAgent | None = None
    _ready: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None
    _stopping: bool = False
    _view: TreeView | None = None

    def __post_init__(self) -> None:
        if self.identity.server_key == self.server.members.key_text:
            raise ConfigError(
                f"domain {self.server.domain!r} is its own parent: enrol it by a token of another "
                "site"
            )

    def run_forever(self) -> None:
        """Serve the domain's devices and its parent until ``stop``.

        Raises:
            ConfigError: the parent refuses the domain, or stands below it.
        """
        thread = threading.Thread(target=self._serve_parent, name="parent")
        self.server.positions.stand_below((), names=self.seams.names.shown)
        self.server.start(_START_S)
        thread.start()
        self._ready.wait()
        try:
            if self._agent is not None:
                self._agent.runs.restore()
                self.seams.presence_changed = self._look
                self._look()
                self.server.run_forever()
        finally:
            self._stopping = True
            if self._agent is not None:
                self._agent.agent.stop()
            thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End; any thread may call it, and so may a signal handler."""
        self._stopping = True
        self.server.stop()

    # --- the agent's thread -------------------------------------------------------------------

    def _serve_parent(self) -> None:
        try:
            # what holds a database must be used by the thread that made it
            self._agent = domain_agent(
                self.parent, self.identity, self.server, self._stand_at, self.status()
            )
            self._agent.worker.await_position()
            self._ready.set()
            self._agent.agent.run_forever()
        except BaseException as error:  # noqa: BLE001 (raised again by ``run_forever``)
            self._failure = error
        finally:
            self._ready.set()
            if not self._stopping:
                self.server.stop()

    def _stand_at(self, position: TreePosition) -> None:
        """Take note where the domain stands.

        Raises:
            ConfigError: it stands below itself, too deep, or below another version.
        """
        if position.version != TREE_VERSION:
            raise ConfigError(
                f"the parent's trees are of version {position.version}, and this domain's of "
                f"version {TREE_VERSION}: install the same version of Rengo on both"
            )
        names = [each.domain for each in position.ancestors]
        if self.server.members.key_text in {each.server for each in position.ancestors}:
            way = " < ".join([self.server.domain, *names])
            raise ConfigError(
                f"domain {self.server.domain!r} stands below itself ({way}): enrol one of these "
                "with a parent that is not below it"
            )
        if len(names) >= MAX_TREE_DEPTH:
            raise ConfigError(
                f"there are {len(names)} domains above this one; a tree has at most "
                f"{MAX_TREE_DEPTH} levels"
            )
        if self._agent is not None:
            self._agent.worker.has_position()
        _LOG.info("this domain stands below %s", " < ".join(names))

        def note() -> None:
            self.seams.names.above = position.names
            shown = self.seams.names.shown
            self.server.positions.stand_below(position.ancestors, names=shown)
            self._look()

        self.server.call(note)

    # --- the server's thread ------------------------------------------------------------------

    def _look(self) -> None:
        """Tell the agent when something below has changed."""
        view = view_of(self.server, names=self.seams.names.shown)
        if view != self._view and self._agent is not None:
            self._view = view
            self._agent.inbox.put(TreeChanged(view))
