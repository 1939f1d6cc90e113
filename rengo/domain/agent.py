"""Makes a domain's agent: a device's, with the domain's server in the place of training."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from broker.session.endpoint import Endpoint
from broker.session.session import MqttSession
from broker.wire.messages import TreePosition
from fl_client.agent.agent import Agent
from fl_client.agent.build import job_journal, outbox
from fl_client.agent.parts import AgentParts, Inbox
from fl_client.agent.resource_policy import Unbounded
from fl_client.agent.status.server import StatusServer
from fl_client.bundles.policy import BundleSettings
from fl_client.bundles.store import DeviceBundles
from fl_client.collectors.owned import OwnData
from fl_client.identity.credentials import DeviceCredentials
from fl_client.jobs.folder import DeviceFolder
from fl_client.jobs.transfer_thread import TransferThread
from fl_client.production.folder import ProductionFolder
from fl_client.production.follower import ProductionFollower
from fl_client.settings import AgentSettings
from fl_server.server import Server
from rengo.domain.runs import DomainRuns
from rengo.domain.settings import ParentSection
from rengo.domain.worker import DomainMessages, DomainOrders, DomainWorker, WorkerParts
from runtime.security.identity import Identity
from storage.transfer.files import Transfers

_NO_ENGINE, _PROFILE = "none", "domain"


class _Every(Container[str]):
    """Every task: the devices below have it, and the domain needs no bundle of it."""

    def __contains__(self, _: object) -> bool:
        return True


@dataclass(frozen=True)
class DomainAgent:
    """A domain's agent, and its parts that the domain talks to."""

    agent: Agent
    inbox: Inbox
    runs: DomainRuns
    worker: DomainWorker


def domain_agent(
    settings: ParentSection,
    identity: Identity,
    server: Server,
    stand_at: Callable[[TreePosition], None],
    status: StatusServer,
) -> DomainAgent:
    """Return the agent of a domain; the thread that calls this must run it.

    Args:
        settings: what the domain is below its parent.
        identity: its own, as a device of the parent's.
        server: the domain's.
        stand_at: is told where the domain stands.
        status: answers questions of this machine.

    Raises:
        ConfigError: the data folder is in use or of another version.
    """
    own = AgentSettings(
        identity=settings.identity,
        data_dir=settings.data_dir,
        profile=_PROFILE,
        labels=settings.labels,
    )
    inbox, folder = Inbox(), DeviceFolder(settings.data_dir)
    kept, journal = outbox(settings.data_dir), job_journal(settings.data_dir)
    credentials = DeviceCredentials(settings.identity, identity)
    downloads, policy = Transfers(tls=identity.store_trust), Unbounded()
    bundles = DeviceBundles(BundleSettings(), settings.data_dir / "bundles", downloads, {})
    transfers = TransferThread(downloads, folder, bundles, _Every(), inbox.put)
    messages = DomainMessages(identity, own, _NO_ENGINE, [])
    orders = DomainOrders([], bundles, folder, policy, lambda: status.held)
    runs = DomainRuns(server, settings.cohort, settings.local_rounds, identity.id, inbox.put)
    session = MqttSession(
        Endpoint.of(identity),
        messages.subscriptions(),
        inbox.offer,
        will=messages.will,
        outbox=kept,
    )
    worker = DomainWorker(WorkerParts(server, runs, folder, messages, orders, session))
    parts = AgentParts(
        inbox=inbox,
        messages=messages,
        session=session,
        worker=worker,
        transfers=transfers,
        orders=orders,
        follower=ProductionFollower(
            ProductionFolder(settings.data_dir, credentials.server),
            credentials.server,
            [],
            downloads,
            lambda task, sha256: session.publish(messages.model_request(task, sha256)),
            transfers.run,
            policy.download_refusal,
        ),
        credentials=credentials,
        bundles=bundles,
        folder=folder,
        journal=journal,
        outbox=kept,
        data=OwnData(identity.id, own, {}),
        policy=policy,
        status=status,
        description={**messages.description(), "profile": _PROFILE},
        stand_at=stand_at,
    )
    return DomainAgent(Agent(parts), inbox, runs, worker)
