"""What a machine says of itself."""

from __future__ import annotations

import importlib.util

import msgpack
import numpy as np
import pytest

from fl_client.machine import hardware


def test_it_describes_this_machine_in_plain_data() -> None:
    found = hardware.describe()
    assert found.cpus >= 1
    assert found.ram_bytes > 64 << 20
    assert found.engines[-1] == "numpy"
    assert found.versions["numpy"] == np.__version__
    assert msgpack.unpackb(msgpack.packb(found.as_dict())) == found.as_dict()


def test_a_missing_library_takes_its_engine_away(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else real(name)
    )
    assert hardware.available_engines() == ["numpy"]
