"""Reads from mosquitto's own file of its state which sessions it keeps.

mosquitto lists its sessions to nobody. It writes all of its state to a file, whole or not at all.

Source: https://github.com/eclipse/mosquitto, ``src/persist.h`` of 2.0 (format 6).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import TransportError

_MAGIC = b"\x00\xb5\x00mosquitto db"
_HEADER = struct.Struct(">15sII")  # magic, unused, format
_CHUNK = struct.Struct(">II")  # kind, bytes that follow
# expiry, expiry interval, last message id, bytes of the client id, port, bytes of the name; padding
_CLIENT = struct.Struct(">qIHHHHxxxx")
_CLIENT_KIND = 6
_FORMAT = 6


def lasting_sessions(state: Path) -> list[str]:
    """Return the client ids of the sessions that outlive their connections.

    Raises:
        TransportError: the file is of another version of mosquitto, or damaged.
    """
    try:
        data = state.read_bytes()
    except FileNotFoundError:
        return []  # nothing is kept yet
    try:
        return list(_client_ids(data))
    except (struct.error, ValueError) as error:
        raise TransportError(
            f"the sessions of the MQTT broker cannot be read from {state}: {error}"
        ) from error


def _client_ids(data: bytes) -> Iterator[str]:
    magic, _, version = _HEADER.unpack_from(data)
    if (magic, version) != (_MAGIC, _FORMAT):
        raise ValueError(f"format {version}, this version of Rengo reads {_FORMAT}")
    place = _HEADER.size
    while place < len(data):
        kind, size = _CHUNK.unpack_from(data, place)
        place += _CHUNK.size
        if kind == _CLIENT_KIND:
            id_bytes = _CLIENT.unpack_from(data, place)[3]
            begin = place + _CLIENT.size
            yield data[begin : begin + id_bytes].decode("utf-8", "replace")
        place += size
