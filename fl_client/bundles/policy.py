"""Which task bundles a device runs: its settings, and the decision by them. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.wire.messages import Order
from runtime.config import AbsolutePath

if TYPE_CHECKING:
    from storage.bundles.bundle import SignedManifest

KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Allowed = Annotated[str, Field(pattern=r"^(\*|[a-z0-9_-]{1,64})$")]


class BundleSettings(BaseModel):
    """Which bundles are accepted; by default none, because no key is trusted.

    Attributes:
        trust: the public keys of the signers whose bundles may run here.
        allow: the names of the tasks that are accepted as bundles, or "*".
        install: how missing packages are installed into the bundle's environment: not at all, from
            ``wheels`` only, or as pip is configured.
        wheels: the folder of packages for "offline".
        max_bytes: of a bundle, both packed and unpacked.
        keep: how many of the bundles used last stay unpacked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trust: Annotated[list[KeyText], Field(max_length=64)] = []
    allow: Annotated[list[Allowed], Field(max_length=64)] = ["*"]
    install: Literal["never", "offline", "pip"] = "never"
    wheels: AbsolutePath | None = None
    max_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 16 << 20
    keep: Annotated[int, Field(ge=2, le=64)] = 4

    @property
    def offered(self) -> list[str]:
        """The tasks that the device announces as accepted: none if it trusts no key."""
        return list(self.allow) if self.trust else []


@dataclass(frozen=True)
class BundleHost:
    """What a bundle's requirements are compared with, beside the settings.

    Attributes:
        rengo: the version that is installed here.
        memory_bytes: what a training process may hold; 0 for no limit.
        clock: returns this machine's time in ms if it is known to be right, else None.
    """

    rengo: str
    memory_bytes: int
    clock: Callable[[], int | None]


def refusal_of_order(order: Order, settings: BundleSettings) -> str:
    """Return why an order's bundle is not fetched, "" if it may be."""
    task, bundle = order.task, order.bundle
    if bundle is None:
        return "and the order brings no bundle"
    if not settings.trust:
        return "and this device trusts nobody's bundles ([bundles] trust is empty)"
    if {task, "*"}.isdisjoint(settings.allow):
        return f"and this device does not allow it as a bundle (allowed: {_listed(settings.allow)})"
    if bundle.size_bytes > settings.max_bytes:
        return (
            f"and its bundle of {bundle.size_bytes} bytes is too large for this device "
            f"(at most {settings.max_bytes})"
        )
    return ""


def refusal_of_bundle(
    signed: SignedManifest, settings: BundleSettings, machine: BundleHost, server_ms: int
) -> str:
    """Return why a bundle must not run here now, "" if it may.

    Expiry is checked by the server's time, which is signed with the order, so that it does not
    depend on a clock that is off by years. If this machine's clock is known to be right, it is
    checked by that as well, so that the server alone cannot extend a bundle's life.

    Args:
        server_ms: when the server signed the order.
    """
    manifest, signer = signed.manifest, signed.signer
    if signer is None:
        return "nobody has signed it"
    if signer.text not in settings.trust:
        return f"this device does not trust the key {signer.text} that signed it"
    if {manifest.name, "*"}.isdisjoint(settings.allow):
        return f"this device does not allow it (allowed: {_listed(settings.allow)})"
    if manifest.size_bytes > settings.max_bytes:
        return f"its files are {manifest.size_bytes} bytes, at most {settings.max_bytes} fit here"
    own_ms = machine.clock()
    now_ms = server_ms if own_ms is None else max(server_ms, own_ms)
    if manifest.expires_ms and now_ms >= manifest.expires_ms:
        return f"it expired {_days((now_ms - manifest.expires_ms) / 86_400_000)} ago"
    if _version(manifest.rengo) > _version(machine.rengo):
        return f"it needs Rengo {manifest.rengo}, here is {machine.rengo}"
    if 0 < machine.memory_bytes < manifest.memory_bytes:
        return (
            f"it needs {manifest.memory_bytes} bytes of memory, a training may have "
            f"{machine.memory_bytes} here"
        )
    return ""


def _version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _days(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
