"""What an operator can do with the server and its members: look, invite, admit, rotate, revoke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fl_server.members.rules import DeviceRecord, TokenTerms
from fl_server.operations import catalogue
from fl_server.operations.arguments import (
    Invitation,
    LatestEntries,
    NewDevices,
    NoArguments,
    OneDevice,
)
from fl_server.operations.call import Binding, Call, Deferred
from fl_server.operations.context import OperationsContext
from fl_server.operations.results.members import (
    Admitted,
    AuditLog,
    AuditRow,
    AuditVerified,
    DeviceList,
    DeviceRow,
    LastDecline,
    NewToken,
    Revoked,
    Rotation,
    ServerInfo,
)
from runtime.errors import ConfigError
from runtime.security.join_token import CLAIM_PREFIX


class DeviceOperations:
    """The operations on the server and its members."""

    def __init__(self, context: OperationsContext) -> None:
        self._context = context
        self._members = context.members
        self._presence = context.presence

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries out each operation."""
        return (
            Binding(catalogue.SERVER_INFO, self.server_info),
            Binding(catalogue.DEVICES_LS, self.devices_ls),
            Binding(catalogue.DEVICES_INVITE, self.devices_invite),
            Binding(catalogue.DEVICES_ADMIT, self.devices_admit),
            Binding(catalogue.DEVICES_ROTATE, self.devices_rotate),
            Binding(catalogue.DEVICES_REVOKE, self.devices_revoke),
            Binding(catalogue.AUDIT_LS, self.audit_ls),
            Binding(catalogue.AUDIT_VERIFY, self.audit_verify),
        )

    # --- reading ------------------------------------------------------------------------------

    def server_info(self, _: NoArguments, __: Call) -> ServerInfo:
        """Return what this server is and what it has refused."""
        return ServerInfo(
            domain=self._context.domain,
            epoch=self._context.runs.epoch,
            runs=len(self._context.runs.submitted()),
            devices_online=sum(each.online for each in self._presence.devices.values()),
            refused_messages=dict(self._context.refused_messages()),
        )

    def devices_ls(self, _: NoArguments, __: Call) -> DeviceList:
        """Return every device that was ever admitted or is present, by id."""
        ids = sorted(self._members.devices.keys() | self._presence.devices.keys())
        return DeviceList(devices=[self._row(device_id) for device_id in ids])

    def _row(self, device_id: str) -> DeviceRow:
        values: dict[str, Any] = {"status": "enrolled", "role": "-", "tasks": [], "info": None}
        present = self._presence.devices.get(device_id)
        if present is not None:
            values |= present.state.model_dump(exclude={"epoch"})
            values |= {"status": present.status, "info": present.info}
        member = self._members.devices.get(device_id)
        if member is not None:
            values |= _membership(member)
        declined = self._presence.last_decline(device_id)
        if declined is not None:
            values["last_decline"] = LastDecline.of(*declined)
        labels = self._context.labels.of(device_id)
        if labels:
            values["operator_labels"] = dict(labels)
        reports = self._presence.reports(device_id)
        return DeviceRow(id=device_id, **values, **reports)

    def audit_ls(self, wanted: LatestEntries, _: Call) -> AuditLog:
        """Return what was done, the latest first."""
        entries = self._context.audit.audit(limit=wanted.last)
        return AuditLog(entries=[AuditRow(**asdict(entry)) for entry in entries])

    def audit_verify(self, _: NoArguments, __: Call) -> AuditVerified:
        """Return how many entries the audit log has; AuditAltered when somebody changed one."""
        return AuditVerified(entries=self._context.audit.verify_audit())

    # --- changing -----------------------------------------------------------------------------

    def devices_invite(self, wanted: Invitation, call: Call) -> Deferred[NewToken]:
        """Make a join token; answered when the broker admits its holder.

        The token follows from the request's salt, which is written with the token's record; so it
        is stored nowhere, and a request that comes again gets the same one.
        """
        members = self._members
        token = members.token_of(call.derive("invite"))
        if not call.repeated:
            terms = TokenTerms(wanted.group, wanted.project, wanted.uses, wanted.lifetime_s)
            with call.identified():
                members.invite(call.caller, token, terms)
        elif token.id not in members.tokens:
            raise ConfigError(f"join token {token.id} of this request has ended long ago")
        made = NewToken(token=token.text, token_id=token.id, url=members.site.url)
        return Deferred(members.update_broker, lambda _: made)

    def devices_admit(self, wanted: NewDevices, call: Call) -> Deferred[Admitted]:
        """Admit devices by their identities; says which of them are (still) revoked.

        Who is a member already is not admitted again, so that this may be done twice.
        """
        members = self._members
        members.admit(call.caller, [DeviceRecord(**each.model_dump()) for each in wanted.devices])
        revoked = [
            each.id for each in wanted.devices if members.devices[each.id].status != "active"
        ]
        return Deferred(members.update_broker, lambda _: Admitted(revoked=revoked))

    def devices_rotate(self, wanted: OneDevice, call: Call) -> Rotation:
        """Give a device another password, now or when it is there again.

        The answer is written with the new password; a device that the kill kept from it is offered
        the password when it is next ready.
        """
        present = self._presence.devices.get(wanted.device_id)
        done = Rotation(device_id=wanted.device_id, online=present is not None and present.online)
        with call.together(lambda: done):
            self._members.rotate(call.caller, wanted.device_id)
        self._context.offer_password(wanted.device_id)
        return done

    def devices_revoke(self, wanted: OneDevice, call: Call) -> Deferred[Revoked]:
        """Take a device or a join token out; answered when the broker has cut it off.

        What is revoked stays so: doing it twice changes nothing, and adds nothing to the audit log.
        """
        members, device_id = self._members, wanted.device_id
        done = Revoked(revoked=device_id)
        if device_id.startswith(CLAIM_PREFIX):
            members.withdraw(call.caller, device_id)
            return Deferred(members.update_broker, lambda _: done)
        device = members.revoke(call.caller, device_id)

        def forget(_: object) -> Revoked:
            self._context.forget_device(device)
            return done

        return Deferred(lambda: members.cut_off(device), forget)


def _membership(member: DeviceRecord) -> dict[str, Any]:
    values: dict[str, Any] = {
        "group": member.group,
        "project": member.project,
        "public_key": member.public_key,
        "token": member.token_id,
        "admitted_by": member.admitted_by,
        "admitted_at": member.admitted_at,
        "rotating": bool(member.next_password),
    }
    if member.status == "active":
        return values
    return {**values, "status": "damaged" if member.status == "damaged" else "revoked"}
