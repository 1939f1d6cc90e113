"""The labels that operators give to devices: kept in the server's database, audited. By the owner.

They are beside those that a device says of itself, and come before them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

from fl_server.members.rules import AuditEvent
from fl_server.members.store import append_audit
from fl_server.persistence.database import Database, sa

SCHEMA_VERSION = 1
_LOG = logging.getLogger(__name__)
_metadata = sa.MetaData()
_labels = sa.Table(
    "rengo_device_labels",
    _metadata,
    sa.Column("device_id", sa.String(64), primary_key=True),
    # JSON, by label
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
)


class LabelRegistry:
    """Every device's labels of its operators, by device.

    Args:
        database: the server's.

    Raises:
        JournalUnusable: another version of Rengo wrote it.
        JournalError: as every method.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        database.prepare(_metadata, "labels_version", SCHEMA_VERSION)
        self._labels = self._read()

    def of(self, device_id: str) -> Mapping[str, str]:
        """Return a device's labels."""
        return self._labels.get(device_id, {})

    def write(self, acts: Sequence[AuditEvent], labels: Mapping[str, Mapping[str, str]]) -> None:
        """Put devices' labels in the place of those before, with what was done, all or nothing."""
        with self._database.change() as connection:
            for device_id, given in labels.items():
                connection.execute(sa.delete(_labels).where(_labels.c.device_id == device_id))
                if given:
                    text = json.dumps(dict(given), sort_keys=True)
                    row = {"device_id": device_id, "labels": text}
                    row["digest"] = _digest(device_id, text)
                    connection.execute(sa.insert(_labels), row)
            append_audit(connection, acts)
        for device_id, given in labels.items():
            self._labels[device_id] = dict(given)

    def _read(self) -> dict[str, dict[str, str]]:
        """Return the rows that are as they were written; the others are removed, and named."""
        with self._database.begin() as connection:
            rows = connection.execute(sa.select(_labels)).all()
        sound = {
            row.device_id: json.loads(row.labels)
            for row in rows
            if row.digest == _digest(row.device_id, row.labels)
        }
        damaged = [row.device_id for row in rows if row.device_id not in sound]
        if damaged:
            for device_id in damaged:
                _LOG.error(
                    "the labels of device %s are damaged in the journal, and are removed; "
                    "give them again with `rengo devices label`",
                    device_id,
                )
            acts = [AuditEvent("server", "labels damaged", f"{each}"[:64]) for each in damaged]
            with self._database.change() as connection:
                gone = sa.delete(_labels).where(_labels.c.device_id.in_(damaged))
                connection.execute(gone)
                append_audit(connection, acts)
        return sound


def _digest(device_id: object, labels: object) -> str:
    content = json.dumps([_labels.name, device_id, labels], default=repr)
    return hashlib.sha256(content.encode()).hexdigest()
