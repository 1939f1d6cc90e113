"""Domains: what is below one, and where it stands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from broker.wire.messages.base import Id, KeyText, Message, Round, Size, Total, WireModel

TREE_VERSION = 1
"""What a domain and its parent must have in common: how sums travel, and what orders say."""

MAX_TREE_DEPTH = 8
MAX_TREE_MEMBERS = 512


class TreeMember(WireModel):
    """A member below a domain: a device, or a domain, which its owner lets be named.

    ``path`` leads to it from the domain: the names of the domains in between, and its own.
    """

    path: Annotated[list[Id], Field(min_length=1, max_length=MAX_TREE_DEPTH)]
    status: Literal["ready", "training", "draining", "asked", "late", "offline", "lost"]
    domain: bool = False


class TreeRun(WireModel):
    """How far a domain is with a run of its parent's."""

    run_id: Id
    round: Round
    phase: Annotated[str, Field(max_length=32)]
    cohort: Size
    answered: Size


class TreeSummary(WireModel):
    """What is below a domain, on all its levels together.

    ``server`` is the public key of the domain's own server. ``devices`` are the members that are no
    domains, ``online`` those of them that are, ``depth`` the levels: 1 where only devices are below
    it. ``versions`` counts devices by their version of Rengo. ``refused`` counts the messages that
    were refused. ``members`` is empty unless the domain's owner lets names be told.
    """

    server: KeyText
    devices: Size = 0
    online: Size = 0
    domains: Size = 0
    depth: Annotated[int, Field(ge=1, le=MAX_TREE_DEPTH)] = 1
    versions: Annotated[dict[Annotated[str, Field(max_length=64)], Size], Field(max_length=16)] = {}
    refused: Total = 0
    runs: Annotated[list[TreeRun], Field(max_length=16)] = []
    members: Annotated[list[TreeMember], Field(max_length=MAX_TREE_MEMBERS)] = []


class Ancestor(WireModel):
    """A domain above another: its name, and the public key of its server."""

    domain: Id
    server: KeyText


class TreePosition(Message):
    """The server tells a domain where it stands, each time that the domain says that it is there.

    ``ancestors`` are the domains above, from the sender's own up to the root. ``names``: whether
    the owners above let devices be named.
    """

    kind = "tree_position"
    channel = ("dev", "task")
    version: Annotated[int, Field(ge=1, le=1_000_000)]
    ancestors: Annotated[list[Ancestor], Field(min_length=1, max_length=MAX_TREE_DEPTH)]
    names: bool = True
