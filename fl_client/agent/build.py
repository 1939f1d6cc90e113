"""Makes the agent of a real device: MQTT, an object store, a training process, files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from broker.session.endpoint import Endpoint
from broker.session.outbox import Outbox, OutboxDamaged
from broker.session.session import MqttSession
from fl_client.agent.agent import Agent
from fl_client.agent.messages import DeviceMessages
from fl_client.agent.orders import OrderGate
from fl_client.agent.parts import AgentParts, Inbox
from fl_client.agent.resource_policy import ResourcePolicy, Unbounded
from fl_client.agent.status.document import setup_document
from fl_client.agent.status.server import StatusServer
from fl_client.agent.worker import TrainingWorker, WorkerSetup
from fl_client.bundles.store import DeviceBundles
from fl_client.collectors.owned import OwnData
from fl_client.identity.credentials import DeviceCredentials
from fl_client.jobs.folder import DeviceFolder
from fl_client.jobs.journal import JobJournal, JobJournalDamaged
from fl_client.jobs.transfer_thread import TransferThread
from fl_client.machine.accelerators import for_orders
from fl_client.machine.hardware import available_engines
from fl_client.production.folder import ProductionFolder
from fl_client.production.follower import ProductionFollower
from fl_client.settings import AgentSettings
from fl_client.tasks.listing import resolve
from runtime.errors import ConfigError, MissingExtra
from runtime.security.identity import Identity
from runtime.sqlite import opened_or_begun_anew
from storage.transfer.files import Transfers

_LOST_OUTBOX = "results that were not receipted are sent again from the journal of jobs"
_LOST_JOBS = "what the server has no result of it asks for again"


def build_agent(
    settings: AgentSettings,
    identity: Identity,
    status: StatusServer | None = None,
    policy: ResourcePolicy | None = None,
) -> Agent:
    """Return the agent of a real device.

    Args:
        settings: the agent's own.
        identity: the device's.
        status: answers questions of this machine; without a service manager by default.
        policy: the limits of the machine; none by default.

    Raises:
        ConfigError: a task is not there, the data folder is in use or of another version.
    """
    return Agent(build_parts(settings, identity, status or StatusServer(), policy or Unbounded()))


def build_parts(
    settings: AgentSettings, identity: Identity, status: StatusServer, policy: ResourcePolicy
) -> AgentParts:
    """Return the parts of a real device's agent; see ``build_agent``."""
    if identity.role != "device":
        raise ConfigError(
            f"identity {identity.id} is a {identity.role}'s, an agent needs a device's"
        )
    specs = {reference.name: reference.spec for reference in map(resolve, settings.tasks)}
    tasks, engine = sorted(specs), _engine(settings)
    accelerators = for_orders(settings.accelerators, profile=settings.family, engine=engine)
    data, inbox = OwnData(identity.id, settings, specs), Inbox()
    folder = DeviceFolder(settings.data_dir)
    kept, journal = outbox(settings.data_dir), job_journal(settings.data_dir)
    credentials = DeviceCredentials(settings.identity, identity)
    downloads = Transfers(tls=identity.store_trust, count_bytes=policy.count_bytes)
    bundles = _bundles(settings, specs, downloads, policy)
    transfers = TransferThread(downloads, folder, bundles, frozenset(tasks), inbox.put)
    messages = DeviceMessages(identity, settings, engine, tasks, accelerators)
    session = MqttSession(
        Endpoint.of(identity),
        messages.subscriptions(),
        inbox.offer,
        will=messages.will,
        outbox=kept,
        count_bytes=policy.count_bytes,
    )
    setup = WorkerSetup(identity.id, settings, engine, accelerators)
    return AgentParts(
        inbox=inbox,
        messages=messages,
        session=session,
        worker=TrainingWorker(setup, bundles, folder, policy, inbox.put),
        transfers=transfers,
        orders=OrderGate(tasks, bundles, folder, policy, lambda: status.held),
        follower=ProductionFollower(
            ProductionFolder(settings.data_dir, credentials.server),
            credentials.server,
            tasks,
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
        data=data,
        policy=policy,
        status=status,
        description={**messages.description(), **setup_document(settings, engine, tasks)},
    )


def _engine(settings: AgentSettings) -> str:
    """Return the engine that orders run on; MissingExtra when it is not installed."""
    available = available_engines()
    if settings.engine == "auto":
        return "torch" if "torch" in available else "numpy"
    if settings.engine not in available:
        raise MissingExtra(settings.engine, settings.engine)
    return settings.engine


def outbox(folder: Path) -> Outbox:
    """Return the outbox in an agent's folder."""
    return opened_or_begun_anew(Outbox, folder / "outbox.sqlite", OutboxDamaged, _LOST_OUTBOX)


def job_journal(folder: Path) -> JobJournal:
    """Return the journal of jobs in an agent's folder."""
    return opened_or_begun_anew(JobJournal, folder / "jobs.sqlite", JobJournalDamaged, _LOST_JOBS)


def _bundles(
    settings: AgentSettings, specs: Mapping[str, str], downloads: Transfers, policy: ResourcePolicy
) -> DeviceBundles:
    folder = settings.data_dir / "bundles"
    return DeviceBundles(settings.bundles, folder, downloads, specs, policy.memory_bytes())
