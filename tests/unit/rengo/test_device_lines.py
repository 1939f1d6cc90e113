"""``rengo devices show``: words and units for a person, whatever is known of the device."""

from __future__ import annotations

import re
from typing import Any

import pytest

from broker.wire.messages import DataReport, DeviceHealth, DeviceInfo
from fl_server.operations.results.members import DeviceRow, LastDecline
from rengo.terminal.device import device_lines
from tests.messages import SAMPLES

BARE: dict[str, Any] = {
    **{"id": "d-1", "status": "enrolled", "role": "-", "tasks": [], "info": None},
}
DECLINE = LastDecline(
    run_id="r", action="train", round=3, at=1e9, reason="too hot", traceback=["KeyError: 1"]
)
# how Python writes a value that nobody turned into words
RAW = re.compile(r"\b(True|False|None)\b|[{}\[\]']")


def full() -> DeviceRow:
    info, health, data = (SAMPLES[kind] for kind in ("device_info", "health", "data_report"))
    assert isinstance(info, DeviceInfo)
    assert isinstance(health, DeviceHealth)
    assert isinstance(data, DataReport)
    values: dict[str, Any] = {
        **{"status": "ready", "role": "trainer", "tasks": ["digits"], "info": info},
        **{"health": health, "data_report": data, "last_decline": DECLINE, "boot_id": "b-1"},
        **{
            "bundles": ["digits", "watch"],
            "group": "",
            "project": "default",
            "public_key": "0" * 64,
        },
        **{"token": "join-1", "admitted_by": "main", "admitted_at": 1e9, "rotating": True},
        "operator_labels": {"room": "attic"},
    }
    assert DeviceRow.model_fields.keys() == {"id", *values}, "a field that this test leaves out"
    return DeviceRow(id="d-1", **values)


@pytest.mark.parametrize("device", [DeviceRow(**BARE), full()], ids=["bare", "full"])
def test_no_value_is_shown_as_python_writes_it(device: DeviceRow) -> None:
    told = [line for line in device_lines(device) if not line.startswith("  | ")]
    assert [line for line in told if RAW.search(line)] == []


def test_what_is_known_is_named_and_an_answer_is_a_word() -> None:
    lines = {
        line[:14].strip(): line[15:] for line in device_lines(full()) if not line.startswith(" ")
    }
    assert lines["tasks"] == "digits"
    assert lines["bundles"] == "digits, watch"
    assert lines["rotating"] == "yes, a new password is on its way"
    assert lines["admitted"].startswith("2001-09-0")
    assert lines["group"] == "-"
    assert lines["labels given"] == "room attic"


def test_the_last_order_that_was_declined_comes_last() -> None:
    *_, head, order, reason, trace = device_lines(full())
    assert head == "last declined"
    assert order.startswith("  order          round 3 of r, 2001-09-0")
    assert reason == "  reason         too hot"
    assert trace == "  | KeyError: 1"
    measured = DECLINE.model_copy(update={"action": "evaluate", "traceback": []})
    *_, order, _ = device_lines(full().model_copy(update={"last_decline": measured}))
    assert order.startswith("  order          evaluation 3 of r, ")
