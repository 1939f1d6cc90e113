"""What a device says of itself."""

from __future__ import annotations

from pathlib import Path

from broker.session.outbox import Outbox
from broker.session.publication import Publication
from broker.wire.messages import Decline, DeviceInfo, DeviceState, Request, Result, decode
from broker.wire.topics import parse
from fl_client.agent.messages import DeviceMessages
from fl_client.machine.accelerators import CPU, Accelerator
from fl_client.session.events import Job, JobKey, JobOutcome, SendDecline
from fl_client.settings import AgentSettings
from fl_server.members.presence import PresenceTable
from runtime.security.identity import new_identity
from tests.messages import EXCHANGE

IDENTITY = new_identity("device", "home", "d-1", "127.0.0.1", 1)


def messages_of(folder: Path, *accelerators: Accelerator) -> DeviceMessages:
    settings = AgentSettings(identity=folder / "d.json", data_dir=folder)
    return DeviceMessages(IDENTITY, settings, "numpy", ["digits"], accelerators or (CPU,))


def state_of(publication: Publication) -> DeviceState:
    _, message = decode(publication.payload, parse(publication.topic), IDENTITY.secret_key.public)
    assert isinstance(message, DeviceState)
    return message


def test_each_connection_has_a_boot_id_that_its_will_and_its_states_share(tmp_path: Path) -> None:
    messages = messages_of(tmp_path)
    first = state_of(messages.will())
    assert state_of(messages.state("ready")).boot_id == first.boot_id
    second = state_of(messages.will())
    assert second.boot_id != first.boot_id
    assert state_of(messages.state("ready")).boot_id == second.boot_id


def test_the_will_of_an_older_connection_does_not_make_a_device_lost(tmp_path: Path) -> None:
    messages, presence = messages_of(tmp_path), PresenceTable()
    late = state_of(messages.will())
    presence.apply_state("d-1", state_of(messages.state("ready")))
    messages.will()
    presence.apply_state("d-1", state_of(messages.state("ready")))
    assert presence.apply_state("d-1", late) is None
    assert presence.devices["d-1"].online


def test_the_outbox_tells_which_jobs_were_reported(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite")
    keys = {JobKey("digits-1", "train", 3, 1), JobKey("digits-1", "evaluate", 2, 1)}
    for key in keys:
        outbox.put(DeviceMessages.outbox_key(key), "t", b"x", until="confirm")
    outbox.put("state", "t", b"x", until="puback")
    assert DeviceMessages.keys_in(outbox) == keys
    outbox.close()


def test_it_names_every_accelerator_that_an_order_runs_on(tmp_path: Path) -> None:
    new, old = (
        Accelerator("cuda:0", "NVIDIA H100", 80 << 30, "9.0"),
        Accelerator("cuda:1", "Tesla T4", 16 << 30, "7.5"),
    )
    publication = messages_of(tmp_path, new, old).info()
    public = IDENTITY.secret_key.public
    _, message = decode(publication.payload, parse(publication.topic), public)
    assert isinstance(message, DeviceInfo)
    # both train in what the older one is made for as well
    assert [(on.name, on.model, on.precision) for on in message.compute] == [
        ("cuda:0", "NVIDIA H100", "float16"),
        ("cuda:1", "Tesla T4", "float16"),
    ]


def test_the_result_of_an_exchange_carries_its_answer_and_is_found_in_the_outbox(
    tmp_path: Path,
) -> None:
    key = JobKey.of(EXCHANGE)
    outcome = JobOutcome(0, {"norm": 1.0}, payload=b"\xff\x00")
    sent = messages_of(tmp_path).result(Job(key, EXCHANGE, "reporting", outcome), None)
    _, message = decode(sent.payload, parse(sent.topic), IDENTITY.secret_key.public)
    assert isinstance(message, Result)
    assert (message.phase, message.seq, message.payload) == (key.phase, key.seq, b"\xff\x00")
    assert message.update is None
    outbox = Outbox(tmp_path / "outbox.sqlite")
    outbox.put(DeviceMessages.outbox_key(key), sent.topic, sent.payload, until="confirm")
    assert DeviceMessages.keys_in(outbox) == {key}
    outbox.close()


def test_what_a_device_says_of_an_exchange_names_its_phase(tmp_path: Path) -> None:
    key, messages = JobKey.of(EXCHANGE), messages_of(tmp_path)
    for publication in (messages.request(key), messages.decline(SendDecline(key, "no"))):
        _, message = decode(
            publication.payload, parse(publication.topic), IDENTITY.secret_key.public
        )
        assert isinstance(message, Request | Decline)
        assert (message.action, message.phase, message.seq) == ("exchange", key.phase, key.seq)
