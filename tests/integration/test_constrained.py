"""A device in a cage, at full length; `pytest -m constrained` as root (see docs/constrained.md)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import cage, constrained

LACKS = cage.missing(Path("/proc/self/cgroup").read_text(), root=os.geteuid() == 0)

pytestmark = [
    pytest.mark.constrained,
    pytest.mark.skipif(bool(LACKS), reason=f"needs {'; '.join(LACKS)}"),
]


def test_96_mib_a_quarter_of_a_core_and_a_bad_link_are_enough_to_take_part() -> None:
    (case,) = (each for each in constrained.CASES if each.name == "numpy, CNN")
    with constrained.recordings(), constrained.device_python() as python:
        row = constrained.show(case, python, rounds=2)
    print(constrained.table([row]))
    assert row.finished, row.why
    assert row.oom_kills == 0
    assert row.group_peak_mib <= case.memory_mib
    assert row.accuracy is not None
