"""The members of a domain: the server's side of enrolment, rotation and revocation.

The owner's thread calls it; methods that wait for the broker say that any thread may.
A change is in the registry before the broker learns it, and whoever asked is told when the broker
has it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import msgpack

from broker.brokers.access_control import AccessControl
from broker.session.endpoint import Endpoint
from broker.wire.access import BrokerUser
from broker.wire.messages import Claim, ClaimAnswer, Message, NewPassword, PasswordKept
from broker.wire.topics import Address, Topics
from fl_server.members.broker_users import BrokerUserSync, users_of
from fl_server.members.broker_watch import BrokerWatch
from fl_server.members.rate_limit import RateLimit
from fl_server.members.rules import (
    AuditEvent,
    Claimant,
    DeviceRecord,
    NewCredentials,
    TokenRecord,
    TokenTerms,
    forgettable,
    judge,
    newcomers,
    password_kept,
    with_next_password,
)
from fl_server.members.store import MemberRegistry
from runtime.errors import ConfigError, NotFound, PeerError
from runtime.security.identity import Identity, new_client_id, new_password
from runtime.security.join_token import JoinToken
from runtime.security.signing import PublicKey

_CLAIMS_PER_S, _CLAIMS_AT_ONCE = 20.0, 200
_REFUSALS_PER_S, _REFUSALS_AT_ONCE = 0.1, 20
_NOTED_SKEW_S = 24 * 3600.0


@dataclass(frozen=True)
class SiteInfo:
    """What a device must be told of the site, beside its own credentials.

    Attributes:
        url: where devices reach the broker, ``mqtt://host:port`` or ``mqtts://host:port``.
        ca_fingerprint: sha256 of the site's own authority in hex, "" where there is none.
        store_ca: what signs the store's certificate, in PEM, where the system does not know it.
    """

    url: str
    ca_fingerprint: str = ""
    store_ca: str = ""


class Membership:
    """The devices and tokens of one domain.

    Args:
        registry: where they are kept.
        server: the server's own identity.
        operators: the identities that may steer.
        site: what devices are told.
        access: the broker's users.
        endpoint: the server's own way to the broker.
        publish: sends a message to a topic.
    """

    def __init__(
        self,
        registry: MemberRegistry,
        server: Identity,
        operators: Sequence[Identity],
        site: SiteInfo,
        access: AccessControl,
        endpoint: Endpoint,
        publish: Callable[[str, Message], None],
    ) -> None:
        self.site = site
        self.devices = {device.id: device for device in registry.devices()}
        self.tokens = {token.id: token for token in registry.tokens()}
        self._registry = registry
        self._server = server
        self._staff = {each.id: each for each in (server, *operators)}
        self._operator_keys = {each.id: each.secret_key.public for each in operators}
        self._topics = Topics(server.domain)
        self.broker = BrokerWatch(access, endpoint)
        self._publish = publish
        self._user_sync = BrokerUserSync(access, self._users())
        self._claims = RateLimit(_CLAIMS_PER_S, _CLAIMS_AT_ONCE)
        self._noted = RateLimit(_REFUSALS_PER_S, _REFUSALS_AT_ONCE)
        self._keys: dict[str, PublicKey] = {}

    # --- who may speak ------------------------------------------------------------------------

    def key_of(self, address: Address) -> PublicKey:
        """Return the public key of the sender that may write at an address.

        Raises:
            PeerError: no such sender is known, or it was revoked.
        """
        known: PublicKey | None = None
        match address.area:
            case "dev":
                device = self.devices.get(address.id)
                if device is not None and device.status in {"revoking", "revoked"}:
                    raise PeerError(f"device {address.id} was revoked", "revoked_device")
                is_active = device is not None and device.status == "active"
                known = self._key(device.public_key) if device and is_active else None
            case "op":
                known = self._operator_keys.get(address.id)
            case "enroll":
                token = self.tokens.get(address.id)
                known = None if token is None else self._key(token.public_key)
        if known is None:
            raise PeerError(f"nobody is known as {address}", f"unknown_{address.area}")
        return known

    def _key(self, text: str) -> PublicKey:
        if text not in self._keys:
            self._keys[text] = PublicKey(text)
        return self._keys[text]

    @property
    def operators(self) -> list[str]:
        """The ids of those who may steer."""
        return list(self._operator_keys)

    @property
    def key_text(self) -> str:
        """The public key of this domain's server."""
        return self._server.secret_key.public.text

    # --- enrolment ----------------------------------------------------------------------------

    def token_of(self, secret: bytes) -> JoinToken:
        """Return the join token of this site that a secret gives."""
        server_key = self._server.secret_key.public
        return JoinToken.of(secret, self._server.domain, server_key, self.site.ca_fingerprint)

    def invite(self, operator: str, token: JoinToken, terms: TokenTerms) -> None:
        """Make a join token valid; the broker knows its holder after :meth:`update_broker`.

        Raises:
            ConfigError: the broker's users are made by somebody else.
        """
        self._user_sync.require_ours("no join token can be made")
        now = time.time()
        record = TokenRecord(
            id=token.id,
            public_key=token.key.public.text,
            broker_password=token.broker_password,
            group=terms.group,
            project=terms.project,
            uses=terms.uses,
            used=0,
            expires_at=now + terms.lifetime_s,
            made_by=operator,
            made_at=now,
        )
        gone = forgettable(self.tokens.values(), now)
        act = AuditEvent(operator, "token made", token.id, asdict(terms))
        self._registry.write([act], tokens=[record], forget=gone)
        for each in gone:
            del self.tokens[each]
        self.tokens[token.id] = record
        self._users_changed()

    def claim(self, token_id: str, claim: Claim, clock_off_s: float) -> ClaimAnswer:
        """Return the answer to a claim, to be sent after :meth:`update_broker`.

        Args:
            token_id: by which topic it came; its signature is checked.
            claim: what is claimed.
            clock_off_s: how far the device's clock is from this one.

        Raises:
            PeerError: too many claims with this token, or a key for which nothing can be sealed.
        """
        now = time.time()
        if not self._claims.admits(token_id, time.monotonic()):
            raise PeerError("too many claims with one token", "rate_limited")
        name = self._fresh_name()
        fresh = NewCredentials(name, new_client_id(claim.name or name), new_password())
        verdict = judge(
            Claimant(claim.public_key, claim.name),
            self.tokens[token_id],
            self.devices,
            self._staff,
            fresh,
            now,
        )
        acts = list(verdict.acts)
        if verdict.changed and abs(clock_off_s) > _NOTED_SKEW_S:
            detail = {"off_s": round(clock_off_s)}
            acts.append(AuditEvent(token_id, "clock of a device is off", claim.name, detail))
        if verdict.device is None:
            if self._noted.admits(f"{token_id}/{verdict.refusal}", time.monotonic()):
                self._registry.write(acts)
            return ClaimAnswer(public_key=claim.public_key, admitted=False, reason=verdict.refusal)
        # sealed first: a key for which nothing can be sealed must not become a device
        sealed = PublicKey(claim.public_key).seal(self._credentials(verdict.device))
        if verdict.token is not None:
            self._registry.write(acts, devices=[verdict.device], tokens=[verdict.token])
            self._add([verdict.device])
            self.tokens[token_id] = verdict.token
            self._users_changed()
        return ClaimAnswer(public_key=claim.public_key, admitted=True, sealed=sealed)

    def _fresh_name(self) -> str:
        """Return a name that no device has."""
        while (name := f"device-{secrets.token_hex(4)}") in self.devices:
            pass
        return name

    def _credentials(self, device: DeviceRecord) -> bytes:
        packed: bytes = msgpack.packb(
            {
                "domain": self._server.domain,
                "id": device.id,
                "client_id": device.client_id,
                "password": device.password,
                "store_ca": self.site.store_ca,
                "index": device.index,
                "count": device.count,
            }
        )
        return packed

    def admit(self, operator: str, wanted: Sequence[DeviceRecord]) -> None:
        """Admit devices whose identities the operator made; those known already stay as they are.

        Raises:
            ConfigError: a name or key is taken, reserved or not usable; nobody is admitted.
        """
        new = newcomers(wanted, self.devices, self._staff)
        for device in new:
            try:
                self._key(device.public_key).seal(b"")
            except PeerError as error:
                raise ConfigError(f"the key of {device.id} is not usable: {error}") from error
        now = time.time()
        admitted = [replace(device, admitted_by=operator, admitted_at=now) for device in new]
        acts = [AuditEvent(operator, "device admitted", device.id) for device in admitted]
        self._registry.write(acts, devices=admitted)
        self._add(admitted)
        if admitted:
            self._users_changed()

    def _add(self, admitted: Sequence[DeviceRecord]) -> None:
        """Know new devices; what was left of a damaged one with the same key makes way."""
        keys = {device.public_key for device in admitted}
        for name, known in list(self.devices.items()):
            if known.status == "damaged" and known.public_key in keys:
                del self.devices[name]
        self.devices |= {device.id: device for device in admitted}

    # --- rotation -----------------------------------------------------------------------------

    def rotate(self, operator: str, device_id: str) -> None:
        """Give a device another password; the broker gets it once the device has stored it.

        :meth:`offer_password` is to follow, after :meth:`update_broker`.

        Raises:
            NotFound: no such device, or it was revoked.
            ConfigError: the broker's users are made by somebody else.
        """
        self._user_sync.require_ours("no password can be changed")
        device = self._active(device_id)
        changed = with_next_password(device, new_password())
        self._registry.write([AuditEvent(operator, "rotation begun", device_id)], devices=[changed])
        self.devices[device_id] = changed

    def awaits_password(self, device_id: str) -> bool:
        """Return whether a device is to be given a password that it has not stored yet."""
        return bool(self.devices[device_id].next_password)

    def offer_password(self, device_id: str) -> bool:
        """Send a device the password that it has not stored yet, if there is one.

        The one before it must be in use by then. It is once the broker has the latest users: from
        there on the device connects with the password in force, or not at all.

        Returns:
            False where the broker does not have the latest users yet.
        """
        if not self._user_sync.current:
            return False
        device = self.devices[device_id]
        if device.next_password:
            sealed = self._key(device.public_key).seal(device.next_password.encode())
            message = NewPassword(rotation=device.rotation, sealed=sealed)
            self._publish(self._topics.device(device_id, "task"), message)
        return True

    def password_kept(self, device_id: str, message: PasswordKept) -> bool:
        """Put a stored password in force; return whether :meth:`update_broker` is to follow."""
        changed = password_kept(self.devices[device_id], message.rotation)
        if changed is None:
            return False
        self._registry.write(
            [AuditEvent(device_id, "password rotated", device_id)], devices=[changed]
        )
        self.devices[device_id] = changed
        self._users_changed()
        return True

    def regroup(self, operator: str, device_ids: Sequence[str], group: str) -> None:
        """Put active devices into a group, "" for none, all or none of them."""
        changed = [replace(self._active(each), group=group) for each in device_ids]
        acts = [
            AuditEvent(operator, "group changed", each, {"group": group}) for each in device_ids
        ]
        self._registry.write(acts, devices=changed)
        self.devices.update({device.id: device for device in changed})

    # --- revocation ---------------------------------------------------------------------------

    def revoke(self, operator: str, device_id: str) -> DeviceRecord:
        """Revoke a device; :meth:`cut_off` makes the broker forget it.

        Raises:
            NotFound: no such device.
        """
        device = self.devices.get(device_id)
        if device is None:
            raise NotFound(f"no device {device_id!r}; `rengo devices ls` lists them")
        if device.status == "revoked":
            return device
        revoking = replace(device, status="revoking", next_password="")
        if device.status != "revoking":
            self._registry.write(
                [AuditEvent(operator, "device revoked", device_id)], devices=[revoking]
            )
        self.devices[device_id] = revoking
        self._users_changed()
        return revoking

    def withdraw(self, operator: str, token_id: str) -> None:
        """End a join token now.

        Raises:
            NotFound: no such token.
        """
        token = self.tokens.get(token_id)
        if token is None:
            raise NotFound(f"no join token {token_id!r}; `rengo audit` shows which were made")
        if not token.uses:
            return
        ended = replace(token, uses=0, expires_at=min(token.expires_at, time.time()))
        self._registry.write([AuditEvent(operator, "token withdrawn", token_id)], tokens=[ended])
        self.tokens[token_id] = ended

    def cut_off(self, device: DeviceRecord) -> None:
        """Make the broker forget a device: its user, its session and its queue. On any thread.

        Raises:
            TransportError: the broker did not do it.
        """
        self.update_broker()
        self.broker.end_sessions([device.client_id])

    def note_cut_off(self, device: DeviceRecord) -> None:
        """Note that the broker has forgotten a device."""
        if self.devices[device.id].status == "revoked":
            return
        revoked = replace(device, status="revoked")
        self._registry.write([AuditEvent("server", "device cut off", device.id)], devices=[revoked])
        self.devices[device.id] = revoked

    def client_ids(self) -> set[str]:
        """Return the client ids whose sessions the broker is to keep."""
        devices = {each.client_id for each in self.devices.values() if each.status == "active"}
        return devices | {each.client_id for each in self._staff.values()}

    def being_revoked(self) -> list[DeviceRecord]:
        """Return the devices that the broker may still know although they are revoked."""
        return [device for device in self.devices.values() if device.status == "revoking"]

    def _active(self, device_id: str) -> DeviceRecord:
        device = self.devices.get(device_id)
        if device is None or device.status != "active":
            raise NotFound(f"no active device {device_id!r}; `rengo devices ls` lists them")
        return device

    # --- the broker ---------------------------------------------------------------------------

    def update_broker(self) -> None:
        """Return when the broker has the latest users; any thread may call it.

        Raises:
            TransportError: the broker refused them.
        """
        self._user_sync.apply()

    def _users_changed(self) -> None:
        self._user_sync.set_users(self._users())

    def _users(self) -> Callable[[], list[BrokerUser]]:
        staff, devices = list(self._staff.values()), list(self.devices.values())
        return users_of(staff, devices, list(self.tokens.values()))

    # --- the log ------------------------------------------------------------------------------

    def note(self, *acts: AuditEvent) -> None:
        """Write to the audit log."""
        self._registry.write(acts)
