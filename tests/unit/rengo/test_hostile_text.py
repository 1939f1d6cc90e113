"""What a peer says is data: it moves no cursor, turns no text, begins no line, and has an end."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import types
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from broker.wire.messages import DeviceInfo, DeviceState, RunDocument, RunEvent
from broker.wire.topics import Address
from fl_server.operations.catalogue import DEVICES_LS, Operation
from fl_server.operations.results.base import OperationResult
from rengo.cli.main import build_parser, main, one_line
from rengo.operator.client import News
from rengo.terminal.event_lines import SiteEventLines
from rengo.terminal.view import PlainView
from runtime.errors import RunNotCompleted
from runtime.text import MAX_CHARS, LogFormatter, printable

HOSTILE = "a\x1b[2J\x1b]0;b\x07\rroot\n2026 INFO forged\x85\u2028\u202eevil\x00\x7f\u200b\ud83d"
HARMLESS = "a harmless text"
COMMANDS = (
    *("devices ls", "devices show x", "runs ls", "runs show x", "runs pause x", "models ls"),
    *("models show x", "models promote x", "models gc", "task ls", "task rm x"),
    *("audit", "audit --verify", "status"),
)


def _filled(kind: Any, text: str) -> Any:
    """Return a value of a type, each text in it this one, whatever the type forbids."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _filled(inner[0], text)
    if origin in {Union, types.UnionType}:
        return _filled(next(each for each in inner if each is not type(None)), text)
    if origin is Literal:
        return inner[0]
    if origin is list or origin is tuple:
        return [_filled(inner[0], text)]
    if origin in {dict, Mapping}:
        return {_filled(inner[0], text): _filled(inner[1], text)}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields.items()
        return kind.model_construct(
            **{name: _filled(field.annotation, text) for name, field in fields}
        )
    return {str: text, int: 1, float: 1.0, bool: True, bytes: b"1"}.get(kind, text)


class _Server:
    """Answers every operation with one text wherever a text may be."""

    def __init__(self, text: str) -> None:
        self._text = text

    def request(self, operation: Operation[Any, Any], *_: Any, **__: Any) -> OperationResult:
        answer: OperationResult = _filled(operation.result, self._text)
        return answer

    def devices(self) -> list[Any]:
        (row,) = self.request(DEVICES_LS).devices  # type: ignore[attr-defined]
        return [row.model_copy(update={"id": "x"})]

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None: ...


def _printed(words: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    build_parser()  # loads every command
    for name, module in list(sys.modules.items()):
        if name.startswith("rengo.cli.operator.") and hasattr(module, "connect"):
            monkeypatch.setattr(module, "connect", lambda _: _Server(text))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["--debug", *words.split()]) == 0
    return out.getvalue()


def _dangerous(text: str) -> set[str]:
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {each for each in text if unicodedata.category(each) in kinds} - {"\n"}


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_prints_what_a_terminal_acts_upon(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, hostile = (_printed(words, text, monkeypatch) for text in (HARMLESS, HOSTILE))
    assert not _dangerous(hostile)
    assert hostile.count("\n") == plain.count("\n"), "a text has begun a line of its own"


def test_most_commands_would_have_printed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    showing = [each for each in COMMANDS if HARMLESS in _printed(each, HARMLESS, monkeypatch)]
    assert set(COMMANDS) - set(showing) <= {"runs pause x"}, "these commands prove nothing"


def test_what_happens_in_a_site_is_told_in_lines_of_its_own() -> None:
    story, out = SiteEventLines(), io.StringIO()
    view = PlainView(out)
    state = _filled(DeviceState, HOSTILE).model_copy(update={"status": "ready"})
    for leaf, message in (
        ("info", _filled(DeviceInfo, HOSTILE)),
        ("state", state),
    ):
        for line in story.take(News(Address("main", "dev", "pi", leaf), message)):  # type: ignore[arg-type]
            view.note(line)
    run = _filled(RunDocument, HOSTILE).model_copy(update={"run_id": "r", "status": "running"})
    ended = run.model_copy(update={"status": "failed"})
    for message in (run, ended):
        for line in story.take(News(Address("main", "run", "r", "state"), message)):
            view.note(line)
    assert not _dangerous(out.getvalue())
    assert out.getvalue().count("\n") == 3, out.getvalue()


def test_an_error_of_a_peers_is_one_line() -> None:
    assert not _dangerous(one_line(RunNotCompleted(HOSTILE)))
    assert "\n" not in one_line(RunNotCompleted(HOSTILE))


def test_a_log_record_is_one_line_and_a_traceback_looks_like_none() -> None:
    formatter = LogFormatter("%(levelname)s %(name)s: %(message)s")

    def logged(act: Callable[[logging.Logger], None]) -> list[str]:
        out = io.StringIO()
        handler = logging.StreamHandler(out)
        handler.setFormatter(formatter)
        logger = logging.Logger("x")
        logger.addHandler(handler)
        act(logger)
        assert not _dangerous(out.getvalue())
        return out.getvalue().splitlines()

    assert len(logged(lambda log: log.warning("device %s", HOSTILE))) == 1

    def fail(log: logging.Logger) -> None:
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            log.exception("it failed")

    first, *rest = logged(fail)
    assert first == "ERROR x: it failed"
    assert rest
    assert all(line.startswith("  ") for line in rest)


def test_a_long_text_is_cut() -> None:
    assert len(printable("x" * 10 * MAX_CHARS)) == MAX_CHARS
    assert printable("x" * 30, 10) == "x" * 9 + "…"
    assert printable("José 李雷 🍓 12 °C") == "José 李雷 🍓 12 °C"


def test_events_of_a_run() -> None:
    from rengo.terminal.format import trouble  # noqa: PLC0415

    event = _filled(RunEvent, HOSTILE).model_copy(
        update={"name": "OrderDeclined", "detail": {"device_id": "a", "reason": HOSTILE}}
    )
    out = io.StringIO()
    PlainView(out).note(trouble(event) or "")
    assert HARMLESS not in out.getvalue()
    assert out.getvalue().count("\n") == 1
    assert not _dangerous(out.getvalue())
