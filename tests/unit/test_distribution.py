"""How tests are dealt out: what shares servers goes to one worker, the long ones first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import distribution
from tests.distribution import order_of, unit_of
from tests.nested import run_tests

ROOT = Path(__file__).parents[2]


def test_a_module_that_shares_servers_is_done_by_one_worker() -> None:
    path = "tests/chaos/test_heat.py"
    assert unit_of(f"{path}::test_a[hot]") == unit_of(f"{path}::test_b")


@pytest.mark.parametrize("folder", distribution._PACKAGES)
def test_modules_that_share_servers_are_done_by_one_worker(folder: str) -> None:
    on_nats = {unit_of(f"{folder}/test_{each}.py::test_x[nats]") for each in "ab"}
    assert len(on_nats) == 1
    assert unit_of(f"{folder}/test_a.py::test_x[mosquitto]") not in on_nats
    assert unit_of(f"{folder}/test_a.py::test_x") == unit_of(f"{folder}/test_b.py::test_y[1]")
    assert 'scope="package"' in (ROOT / folder / "conftest.py").read_text()


def test_the_kinds_of_a_module_s_store_may_go_to_two_workers() -> None:
    path = "tests/contract/test_stores.py"
    units = {unit_of(f"{path}::test_x[{kind}-a-b]") for kind in ("juicefs", "seaweedfs", "memory")}
    assert len(units) == 3
    assert unit_of(f"{path}::test_y[a-juicefs]") == unit_of(f"{path}::test_x[juicefs-a-b]")


@pytest.mark.parametrize("path", sorted(distribution._BY_TEST))
def test_what_is_dealt_out_by_test_shares_nothing(path: str) -> None:
    text = (ROOT / path).read_text()
    assert 'scope="' not in text
    assert unit_of(f"{path}::test_a") != unit_of(f"{path}::test_b")


def test_the_long_ones_come_first_and_what_needs_no_server_last() -> None:
    ids = [f"tests/unit/{Path(__file__).name}::x", "tests/chaos/test_heat.py::x"]
    ids += [f"{path}::x" for path in distribution._LONG]
    ordered = sorted(ids, key=order_of)
    assert [each.partition("::")[0] for each in ordered[:-2]] == [*distribution._LONG]
    assert ordered[-1] == ids[0]


@pytest.mark.parametrize("path", [*distribution._LONG, *sorted(distribution._BY_TEST)])
def test_what_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()


WHERE = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    with pathlib.Path(__file__).with_suffix(".workers").open("a") as out:
        print(os.environ["PYTEST_XDIST_WORKER"], file=out)
"""


def test_a_real_run_keeps_each_file_on_one_worker(tmp_path: Path) -> None:
    """Not so with xdist's own groups, of which no word was said when they ceased to work."""
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(WHERE)
    done = run_tests(tmp_path, workers=2)
    assert done.returncode == 0, done.stdout + done.stderr
    workers = [set(path.read_text().split()) for path in tmp_path.glob("*.workers")]
    assert sorted(map(len, workers)) == [1, 1]
    assert workers[0] != workers[1]
