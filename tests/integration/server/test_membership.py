"""The server's members on the wire: what an operator may ask, and what never fells the server."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

import fl_server.members.presence
import fl_server.shell.devices
from broker.brokers.access_control import ManualAccess, RefusedConnection
from broker.session.publication import Publication
from broker.wire.messages import DeviceState, IdentityNotice, Message, ServerState
from runtime.errors import ConfigError, RunNotCompleted, TransportError
from tests.integration.broker_fixtures import Owner, eventually
from tests.integration.server.site import TOPICS, Site, key_of, message_of, said


def device(name: str, **changes: Any) -> dict[str, Any]:
    values = {
        "id": name,
        "public_key": key_of(name).public.text,
        "client_id": f"{name}-1",
        "password": f"secret-of-{name}",
    }
    return {**values, **changes}


def test_an_altered_log_is_told_and_does_not_fell_the_server(site: Site) -> None:
    site.admit("d-1", "d-2")
    assert site.call("audit_verify") == {"entries": 2}
    engine = sa.create_engine(site.journal_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE rengo_audit SET actor = 'nobody' WHERE number = 2"))
    engine.dispose()
    with pytest.raises(RunNotCompleted, match="was altered at entry 2"):
        site.call("audit_verify")
    assert site.statuses() == {"d-1": "enrolled", "d-2": "enrolled"}


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([device("d-1"), device("d-1", public_key=key_of("x").public.text)], "d-1 is taken"),
        ([device("d-1"), device("d-2", public_key=key_of("d-1").public.text)], "another device's"),
        ([device("d-1"), device("server")], "server is reserved"),
        ([device("d-1"), device("operator")], "operator is reserved"),
        ([device("d-1"), device("join-1")], "join-1 is reserved"),
        ([device("d-1"), device("d-2", public_key="00" * 32)], "the key of d-2 is not usable"),
    ],
)
def test_what_cannot_be_admitted_leaves_all_out_and_the_server_standing(
    devices: list[dict[str, Any]], said: str, site: Site
) -> None:
    with pytest.raises(ConfigError, match=said):
        site.call("devices_admit", devices=devices)
    assert site.statuses() == {}
    site.admit("d-1")
    assert site.statuses() == {"d-1": "enrolled"}


def test_a_known_name_or_key_is_not_admitted_as_another(site: Site) -> None:
    site.admit("d-1")
    site.admit("d-1")
    for other in (
        device("d-1", public_key=key_of("x").public.text),
        device("d-2", public_key=key_of("d-1").public.text),
    ):
        with pytest.raises(ConfigError, match=r"taken|another device's"):
            site.call("devices_admit", devices=[other])


def test_where_others_make_the_users_no_token_and_no_password_is_promised(site: Site) -> None:
    site.admit("d-1")
    for operation, arguments in (("devices_invite", {}), ("devices_rotate", {"device_id": "d-1"})):
        with pytest.raises(ConfigError, match="made by the broker's operator"):
            site.call(operation, **arguments)
    acts = [row["act"] for row in site.call("audit_ls")["entries"]]
    assert acts == ["device admitted"]


class Forgetful(ManualAccess):
    """Cannot tell whom the broker refused, and then can."""

    def __init__(self) -> None:
        self.looks = 0

    def refused_connections(self) -> list[RefusedConnection]:
        self.looks += 1
        if self.looks == 1:
            raise TransportError("the log cannot be read")
        return [RefusedConnection("stranger", "192.0.2.7")] if self.looks == 2 else []


def test_a_look_at_the_broker_that_failed_is_not_the_last(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fl_server.shell.devices, "_POLL_BROKER_EVERY_S", 0.05)
    site.stop()
    site.access = Forgetful()
    site.start()
    eventually(lambda: site.refused() == {"connection": 1})
    (noted,) = [e for e in site.call("audit_ls")["entries"] if e["act"] == "connection refused"]
    assert (noted["actor"], noted["subject"], noted["detail"]) == (
        *("stranger", "192.0.2.7"),
        {"times": 1},
    )


# --- what a gap hides -----------------------------------------------------------------------------


def present(boot_id: str, **changes: Any) -> bytes:
    state = DeviceState.model_validate(
        {"status": "ready", "boot_id": boot_id, "tasks": ["digits"], **changes}
    )
    return said(TOPICS.device("d-1", "state"), state)


def say(site: Site, payload: bytes) -> None:
    session, _ = site.peer()
    session.publish(Publication(TOPICS.device("d-1", "state"), payload, retain=True))
    assert session.flush(10)
    session.stop()


def test_a_device_that_left_while_the_site_was_down_is_late_then_offline(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last word stays at the broker: a power cut publishes no will."""
    site.admit("d-1")
    say(site, present("a-1"))
    eventually(lambda: site.statuses() == {"d-1": "ready"})
    monkeypatch.setattr(fl_server.members.presence, "LATE_S", 0.5)
    monkeypatch.setattr(fl_server.members.presence, "OFFLINE_S", 3.0)
    site.restart()
    eventually(lambda: site.statuses() == {"d-1": "late"})
    assert site.call("server_info")["devices_online"] == 0
    eventually(lambda: site.statuses() == {"d-1": "offline"})
    say(site, present("a-2"))
    eventually(lambda: site.statuses() == {"d-1": "ready"})


def test_a_server_below_the_epoch_of_its_devices_goes_above_it(site: Site) -> None:
    site.admit("d-1")
    before = site.call("server_info")["epoch"]
    _, devices = site.peer("anyone", TOPICS.server_state)
    say(site, present("a-1", epoch=before + 50))
    eventually(lambda: site.call("server_info")["epoch"] == before + 51)
    eventually(lambda: ServerState(status="online", epoch=before + 51) in heard(devices))
    site.restart()
    assert site.call("server_info")["epoch"] == before + 52, "it is on disk"


def test_a_device_that_the_server_forgot_is_told_so(site: Site) -> None:
    _, device = site.peer("anyone", TOPICS.device("d-1", "task"))
    say(site, present("a-1"))
    eventually(lambda: IdentityNotice(problem="unknown") in heard(device))
    site.admit("d-1")
    site.call("devices_revoke", device_id="d-1")
    say(site, present("a-1"))
    eventually(lambda: IdentityNotice(problem="revoked") in heard(device))


def heard(owner: Owner) -> list[Message]:
    return [message_of(each) for each in owner.deliveries if each.payload]
