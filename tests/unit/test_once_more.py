"""How often a run of the suite may try a test once more: its own settings, on a tiny suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nested import run_tests
from tests.repeat import failures

TINY = """
import pathlib
import pytest

@pytest.mark.flaky(reruns=1)
def test_fails_at_first():
    tried = pathlib.Path(__file__).with_suffix(".tried")
    first = not tried.exists()
    tried.touch()
    assert not first, f"the first failure of {tried.stem}"

@pytest.mark.parametrize("number", range(2))
def test_holds(number):
    pass
"""


@pytest.mark.parametrize(("failing", "workers", "status"), [(2, 2, 0), (3, 2, 1), (3, 0, 1)])
def test_two_tests_may_pass_at_the_second_try_and_a_third_makes_the_run_red(
    tmp_path: Path, failing: int, workers: int, status: int
) -> None:
    # a file of its own for each, so that both workers have some
    for number in range(failing):
        (tmp_path / f"test_{number}.py").write_text(TINY)
    done = run_tests(tmp_path, workers)
    said = done.stdout
    assert done.returncode == status, said + done.stderr
    first, failed = failures(said)
    assert (len(first), len(failed)) == (2, failing - 2)
    assert ("1 failed" in said) == (status == 1)
    assert "2 failed at first, 2 may" in said
    for number in range(failing):
        assert f"the first failure of test_{number}" in said
