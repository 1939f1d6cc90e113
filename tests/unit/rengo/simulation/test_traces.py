"""Traces: availability read from a CSV file, and each way in which a file can be wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rengo.simulation.virtual.availability import Period
from rengo.simulation.virtual.traces import TracedAvailability, read_traces
from runtime.errors import ConfigError

HEADER = "device,from_s,to_s,online,charging"


def read(folder: Path, *lines: str, header: str = HEADER) -> TracedAvailability:
    path = folder / "trace.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return read_traces(path)


def test_periods_follow_the_rows_and_begin_again(tmp_path: Path):
    traced = read(tmp_path, "a,0,60,1,0", "b,0,100,1,1", "a,60,90,0,1")
    assert traced.devices == 2
    assert traced.period(0, 0, 0.0) == Period(60, online=True, charging=False)
    assert traced.period(0, 1, 60.0) == Period(90, online=False, charging=True)
    assert traced.period(0, 2, 90.0) == Period(150, online=True, charging=False)
    # the third client follows the first trace again
    assert traced.period(2, 1, 60.0) == traced.period(0, 1, 60.0)


def test_rows_that_say_the_same_are_one_period_and_one_alone_has_no_end(tmp_path: Path):
    traced = read(tmp_path, "a,0,60,1,0", "a,60,90,1,0", "b,0,10,1,0", "b,10,20,0,0", "b,20,30,0,0")
    assert traced.period(0, 0, 0.0) == Period(math.inf, online=True)
    assert traced.period(1, 1, 10.0) == Period(30, online=False)


def test_charging_may_be_left_out(tmp_path: Path):
    traced = read(tmp_path, "a,0,60,1", "a,60,90,0", header="device, from_s, to_s, online")
    assert traced.period(0, 0, 0.0) == Period(60, online=True)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["a,0,60,1,0", "a,70,90,1,0"], "line 3: device a has a gap after line 2: nothing is said"),
        (["a,0,60,1,0", "b,0,9,1,0", "a,50,90,1,0"], "line 4: the rows of device a overlap"),
        (["a,0,60,1,0", "a,10,20,1,0"], "begins at 10 s, and line 2 ends at 60 s"),
        (["a,0,0,1,0"], "line 2: to_s 0 is not after from_s 0"),
        (["a,60,0,1,0"], "line 2: to_s 0 is not after from_s 60"),
        (["a,5,60,1,0"], "line 2: the first row of device a begins at 5 s, not at 0"),
        (["a,0,soon,1,0"], "line 2: to_s 'soon' is not a number of seconds"),
        (["a,-1,60,1,0"], "line 2: from_s '-1' is not a number of seconds"),
        (["a,0,nan,1,0"], "line 2: to_s 'nan' is not a number of seconds"),
        (["a,0,60,yes,0"], "line 2: online 'yes' is neither 0 nor 1"),
        (["a,0,60,1,2"], "line 2: charging '2' is neither 0 nor 1"),
        ([",0,60,1,0"], "line 2: it names no device"),
        (["a,0,60,1"], "line 2: it has 4 values for 5 columns"),
        (['a,0,60,1,"0'], "line 2: it is not CSV: "),
        (["a,0,60,0,0"], "no device is ever online in it"),
        ([], "no device is ever online in it"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path: Path, lines: list[str], told: str):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, *lines)
    assert told in str(error.value)
    assert str(tmp_path / "trace.csv") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("device,from_s,to_s", "line 1: it has no column online; the first line names device,"),
        ("device,from_s,to_s,online,power", "line 1: 'power' is unknown; the columns are device,"),
        ("device,from_s,to_s,online,online", "line 1: a column is named twice"),
    ],
)
def test_a_wrong_header_is_told(tmp_path: Path, header: str, told: str):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, header=header)
    assert told in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.csv does not exist"):
        read_traces(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_traces(tmp_path / "bytes.csv")
