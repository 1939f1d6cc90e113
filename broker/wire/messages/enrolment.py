"""How a device joins, and how its password is changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from broker.wire.messages.base import Id, KeyText, Message, Text

MAX_SEALED_BYTES = 8192
Sealed = Annotated[bytes, Field(max_length=MAX_SEALED_BYTES)]


class NewPassword(Message):
    """The server gives a device a new password, sealed for its key; ``rotation`` counts them."""

    kind = "new_password"
    channel = ("dev", "task")
    rotation: Annotated[int, Field(ge=1, le=1_000_000)]
    sealed: Sealed


class PasswordKept(Message):
    """A device has the new password on disk: the broker may require it from now on."""

    kind = "password_kept"
    channel = ("dev", "ack")
    rotation: Annotated[int, Field(ge=1, le=1_000_000)]


class IdentityNotice(Message):
    """The server tells a device what is wrong with its identity.

    ``shared``: two processes use it at once. ``unknown``: this server has no such device, or has
    another key for it. ``revoked``: it was taken out.
    """

    kind = "identity_notice"
    channel = ("dev", "task")
    problem: Literal["shared", "unknown", "revoked"]


class Claim(Message):
    """The holder of a join token asks to become a device; signed by the token's key.

    ``public_key`` is the new device's own, ``name`` the id that it asks for, if any.
    """

    kind = "claim"
    channel = ("enroll", "")
    public_key: KeyText
    name: Id | Literal[""]


class ClaimAnswer(Message):
    """The server's answer to the claim of ``public_key``, which alone can read ``sealed``."""

    kind = "claim_answer"
    channel = ("enroll", "result")
    public_key: KeyText
    admitted: bool
    reason: Text = ""
    sealed: Sealed = b""
