"""Writes docs/protocol.md from the code: python -m tests.protocol_page > docs/protocol.md"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from broker.wire.access import RULES, Role, grants
from broker.wire.messages import (
    KINDS,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    SCHEMA_VERSION,
    Ancestor,
    Envelope,
    Message,
    ModelRef,
    PartsRef,
    TreeMember,
    TreeRun,
    TreeSummary,
    UpdateRef,
    UploadRef,
    Usage,
    WireModel,
)
from broker.wire.topics import LEAVES, MAX_LEVELS, RETAINED, Area, Topics
from fl_server.operations.paging import AFTER, NEXT
from runtime.security.signing import SIGNATURE_BYTES
from tests.schema_text import type_text

_WRITER = {
    ("server", "state"): "server",
    ("run", "state"): "server",
    ("run", "events"): "server",
    ("model", "state"): "server",
    ("dev", "task"): "server",
    ("dev", "receipt"): "server",
    ("op", "reply"): "server",
    ("op", "request"): "operator",
    ("enroll", ""): "claimant",
    ("enroll", "result"): "server",
}
_PARTS: tuple[type[WireModel], ...] = (
    *(ModelRef, UploadRef, PartsRef, UpdateRef, Usage),
    *(TreeSummary, TreeMember, TreeRun, Ancestor),
)
_INTRO = f"""\
# Protocol

This page is written from the code by `python -m tests.protocol_page`; a test compares the two.

Everything travels at quality of service 1, on MQTT 3.1.1 or 5, over persistent sessions. A message
is msgpack, at most {MAX_MESSAGE_BYTES // 1024} KB, nested at most {MAX_NESTING} deep, and no map
holds a key twice. A message that breaks a rule of this page is refused and counted, as a whole.
Weights never travel here: messages carry references to objects in the store.

A topic level is an id: it matches `[a-z0-9_-]{{1,64}}`. A topic has at most {MAX_LEVELS} levels.
"""
_PAGES = f"""\
## Lists in pages

The result of an operation that lists something may have a key `{NEXT}`: then there is more. The
next page is asked for with the same operation, the same `request_id`, the same arguments and
`{AFTER}`, whose value is that of `{NEXT}`. The last page has no `{NEXT}`. All pages are of one
moment, unless other lists of several pages are asked for in between.
"""
_ENVELOPE = f"""\
## Signature and envelope

A message begins with {SIGNATURE_BYTES} bytes: its writer's Ed25519 signature over the topic, a zero
byte and the rest. The rest is the envelope, in msgpack. So a broker can delay or drop a message,
but nobody can forge one, alter one, or bring it to another topic. The server knows the devices',
operators' and tokens' keys; everybody else knows the server's, from the identity file. An
operator's command line shows what devices say of themselves without checking their signatures.

The envelope is a map with these keys. `v` is {SCHEMA_VERSION}. `sender` is compared with the id in
the topic, where the topic belongs to its writer. `boot_id` is new at every start of the sender, and
`seq` counts its messages. `sent_ms` is the sender's clock, for people; nothing is decided by it.
"""


def topic_of(area: Area, leaf: str) -> str:
    """Return a topic as a pattern, for example ``rengo/v1/{domain}/dev/{id}/state``."""
    topics = Topics("domain")
    built = {
        "server": lambda: topics.server_state,
        "dev": lambda: topics.device("id", leaf),
        "run": lambda: topics.run("run", leaf),
        "model": lambda: topics.model("task"),
        "op": lambda: topics.operator("id", leaf),
        "enroll": lambda: topics.enroll("nonce", leaf),
    }[area]()
    levels = built.split("/")
    variable = {2: "{domain}", 4: f"{{{levels[4]}}}"} if area != "server" else {2: "{domain}"}
    return "/".join(variable.get(index, level) for index, level in enumerate(levels))


def render() -> str:
    """Return the whole page."""
    parts = [_INTRO, *_topics(), _ENVELOPE, _fields(Envelope), "## Messages\n"]
    for message in KINDS.values():
        parts += _message(message)
    parts.append("## Parts of messages\n")
    for part in _PARTS:
        parts += [f"### {part.__name__}\n", _doc(part), _fields(part)]
    parts.append(_PAGES)
    parts += _access()
    return "\n".join(parts)


def _topics() -> Iterator[str]:
    yield "## Topics\n"
    lines = ["| topic | retained | written by | messages |", "| --- | --- | --- | --- |"]
    kinds: dict[tuple[str, str], list[str]] = {}
    for kind, message in KINDS.items():
        kinds.setdefault(message.channel, []).append(f"`{kind}`")
    for area, leaves in LEAVES.items():
        for leaf in sorted(leaves):
            retained = "yes" if (area, leaf) in RETAINED else ""
            writer = _WRITER.get((area, leaf), "device")
            said = ", ".join(kinds.get((area, leaf), ["reserved"]))
            lines.append(f"| `{topic_of(area, leaf)}` | {retained} | {writer} | {said} |")
    yield "\n".join(lines) + "\n"


def _message(message: type[Message]) -> Iterator[str]:
    area, leaf = message.channel
    yield f"### `{message.kind}`\n"
    yield f"On `{topic_of(area, leaf)}`.\n"  # type: ignore[arg-type]
    yield _doc(message)
    yield _fields(message)


def _doc(model: type[Any]) -> str:
    return (inspect.getdoc(model) or "").replace("``", "`") + "\n"


def _fields(model: type[Any]) -> str:
    schema = model.model_json_schema()
    required = set(schema.get("required", ()))
    lines = ["| key | value | |", "| --- | --- | --- |"]
    for name, field in schema["properties"].items():
        presence = "" if name in required else f"default `{field.get('default')!r}`"
        lines.append(f"| `{name}` | {type_text(field)} | {presence} |")
    return "\n".join(lines) + "\n"


def _access() -> Iterator[str]:
    yield "## Who may publish and subscribe to what\n"
    yield (
        "The broker enforces this, wills included. `me` is the identity's own name; all else is "
        "denied.\n"
    )
    for role in Role:
        if role not in RULES:
            continue
        allowed = grants(role, "domain", "me")
        yield f"### {role.value}\n"
        lines = ["| may publish | may subscribe |", "| --- | --- |"]
        rows = max(len(allowed.publish), len(allowed.subscribe))
        for index in range(rows):
            cells = [
                f"`{side[index].replace('/domain/', '/{domain}/', 1)}`" if index < len(side) else ""
                for side in (allowed.publish, allowed.subscribe)
            ]
            lines.append(f"| {cells[0]} | {cells[1]} |")
        yield "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
