"""Enrolment, pure: what a claim, an invitation, a rotation or a revocation changes.

Nothing here reads a clock or makes random values: times and new secrets are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from runtime.errors import ConfigError
from runtime.security.join_token import CLAIM_PREFIX

# how long the server can still say why a token is refused: later the broker refuses its holder
TOKEN_MEMORY_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class DeviceRecord:
    """A device that may take part, or might once. Times are the wall clock's Unix time.

    Attributes:
        next_password: sent to the device and not yet stored there, or empty.
        rotation: how often its password was changed.
        status: "revoking" until the broker has forgotten it too; "damaged" where the database no
            longer says who it was: it is not admitted, and may enrol again.
        token_id: the join token it came with, empty when an operator admitted it.
    """

    id: str
    public_key: str
    client_id: str
    password: str = field(repr=False)
    next_password: str = field(default="", repr=False)
    rotation: int = 0
    group: str = ""
    project: str = "default"
    index: int = 0
    count: int = 1
    status: Literal["active", "revoking", "revoked", "damaged"] = "active"
    token_id: str = ""
    admitted_by: str = ""
    admitted_at: float = 0.0


@dataclass(frozen=True)
class TokenRecord:
    """A join token, as far as the server knows it: not the token itself.

    Attributes:
        uses: how many devices it is for; 0 once it was withdrawn.
    """

    id: str
    public_key: str
    broker_password: str = field(repr=False)
    group: str
    project: str
    uses: int
    used: int
    expires_at: float
    made_by: str
    made_at: float


@dataclass(frozen=True)
class TokenTerms:
    """For whom a join token is, how many devices may use it, and for how long."""

    group: str
    project: str
    uses: int
    lifetime_s: float


@dataclass(frozen=True)
class AuditEvent:
    """What somebody did: an operator, a device, a token's holder or the server itself."""

    actor: str
    act: str
    subject: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewCredentials:
    """New secrets, made by the shell."""

    name: str
    client_id: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Verdict:
    """What came of a claim: the device, or why there is none; and what is to be written."""

    acts: tuple[AuditEvent, ...]
    device: DeviceRecord | None = None
    token: TokenRecord | None = None
    refusal: str = ""

    @property
    def changed(self) -> bool:
        """Whether there is a new device that the broker must learn."""
        return self.token is not None


@dataclass(frozen=True)
class Claimant:
    """A device that claims: its key, and the name that it asks for, if any."""

    public_key: str
    name: str


def judge(
    claimant: Claimant,
    token: TokenRecord,
    devices: Mapping[str, DeviceRecord],
    reserved: Iterable[str],
    fresh: NewCredentials,
    now: float,
) -> Verdict:
    """Return what a claim gives; the same device asking again gets the same answer.

    Args:
        claimant: whose claim it is, proven by the token's signature.
        token: the token.
        devices: all that were ever admitted, by id.
        reserved: names that no device may have.
        fresh: secrets for a new device.
        now: Unix time.
    """
    devices = _without_damaged(devices)
    known = next(
        (each for each in devices.values() if each.public_key == claimant.public_key), None
    )
    if known is not None and known.token_id == token.id and known.status == "active":
        return Verdict((), known)
    refusal = _refusal(claimant, known, token, devices, reserved, now)
    if refusal:
        act = AuditEvent(token.id, "claim refused", claimant.name, {"reason": refusal})
        return Verdict((act,), refusal=refusal)
    device = DeviceRecord(
        id=claimant.name or fresh.name,
        public_key=claimant.public_key,
        client_id=fresh.client_id,
        password=fresh.password,
        group=token.group,
        project=token.project,
        token_id=token.id,
        admitted_by=token.made_by,
        admitted_at=now,
    )
    act = AuditEvent(token.id, "device enrolled", device.id, {"key": device.public_key})
    return Verdict((act,), device, replace(token, used=token.used + 1))


def _without_damaged(devices: Mapping[str, DeviceRecord]) -> dict[str, DeviceRecord]:
    """Return the devices by id but for those whose name and key may be taken again."""
    return {name: each for name, each in devices.items() if each.status != "damaged"}


def _refusal(
    claimant: Claimant,
    known: DeviceRecord | None,
    token: TokenRecord,
    devices: Mapping[str, DeviceRecord],
    reserved: Iterable[str],
    now: float,
) -> str:
    if known is not None and known.status != "active":
        return f"device {known.id} was revoked; it needs a new identity and a new token"
    if not token.uses:
        return "the token was withdrawn; ask for a new one"
    if now >= token.expires_at:
        return "the token has expired; ask for a new one"
    if token.used >= token.uses:
        return "the token is used up; ask for a new one"
    if known is not None:
        return f"this device is enrolled already, as {known.id}"
    problem = _name_problem(claimant.name, devices, reserved)
    return f"{problem}; choose another by --name" if problem else ""


def _name_problem(name: str, devices: Mapping[str, DeviceRecord], reserved: Iterable[str]) -> str:
    if name in devices:
        return f"the name {name} is taken"
    if name in set(reserved) or name.startswith(CLAIM_PREFIX):
        return f"the name {name} is reserved"
    return ""


def newcomers(
    wanted: Iterable[DeviceRecord], devices: Mapping[str, DeviceRecord], reserved: Iterable[str]
) -> list[DeviceRecord]:
    """Return those of the wanted devices that are not members yet, if all can be.

    Raises:
        ConfigError: a name or a key is taken by another device, or the name is reserved.
    """
    known = _without_damaged(devices)
    keys = {device.public_key: device.id for device in known.values()}
    new = []
    for device in wanted:
        if device.id in known and known[device.id].public_key == device.public_key:
            continue
        problem = _name_problem(device.id, known, reserved)
        if not problem and device.public_key in keys:
            problem = f"the key of {device.id} is another device's, {keys[device.public_key]}"
        if problem:
            raise ConfigError(problem)
        known[device.id] = device
        keys[device.public_key] = device.id
        new.append(device)
    return new


def forgettable(tokens: Iterable[TokenRecord], now: float) -> list[str]:
    """Return the ids of tokens that ended so long ago that no refusal needs to explain it."""
    return [token.id for token in tokens if now >= token.expires_at + TOKEN_MEMORY_S]


def with_next_password(device: DeviceRecord, password: str) -> DeviceRecord:
    """Return the device with a next password, in place of one that it has not stored yet."""
    return replace(device, next_password=password, rotation=device.rotation + 1)


def password_kept(device: DeviceRecord, rotation: int) -> DeviceRecord | None:
    """Return the device with its new password in force; None where there is none."""
    if not device.next_password or rotation != device.rotation:
        return None
    return replace(device, password=device.next_password, next_password="")
