"""What a process that waits for months does not keep."""

from __future__ import annotations

import gc
import subprocess
import sys
import urllib.parse
import weakref
from collections.abc import Iterator

import pytest

from runtime.processes.memory import give_back
from storage.transfer.http import redacted


class Circle:
    """Holds itself, so that no count of references ends it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_what_circles_hold_is_given_back() -> None:
    held = weakref.ref(Circle())
    assert held() is not None
    give_back()
    assert held() is None


def test_what_a_start_left_is_not_looked_through_again() -> None:
    code = """
import gc, weakref
from runtime.processes.memory import give_back, freeze_heap
class Circle:
    def __init__(self):
        self.own = self
lasting = Circle()
freeze_heap()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
assert len(gc.get_objects()) < 1000, len(gc.get_objects())
later = weakref.ref(Circle())
give_back()
assert later() is None
assert lasting.own is lasting
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_presigned_url_is_kept_for_having_been_named() -> None:
    urllib.parse.clear_cache()  # type: ignore[attr-defined]
    for number in range(5):
        assert (
            redacted(f"http://store/bucket/key?X-Amz-Signature={number}")
            == "http://store/bucket/key"
        )
    info = urllib.parse.urlsplit.cache_info()  # type: ignore[attr-defined]
    assert info.currsize == 1
