"""How figures and facts read to a person, the same in every view. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.wire.messages import RunEvent
    from rengo.operator.progress import DeviceTable, RoundProgress, RunProgress

_BARS = "▁▂▃▄▅▆▇█"


def size(count: int) -> str:
    """Return a number of bytes in a unit that fits.

    >>> size(9968), size(0), size(2_500_000_000)
    ('10.0 kB', '0 B', '2.5 GB')
    """
    if count < 1000:
        return f"{count} B"
    for unit, bytes_ in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.95 * bytes_:
            return f"{count / bytes_:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """Return a time span as a person says it.

    >>> duration(7.26), duration(75), duration(7322)
    ('7.3 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def figure(value: float | None) -> str:
    """Return a metric to four digits, a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "round"), count(3, "round")
    ('1 round', '3 rounds')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the latest values as bars from the smallest to the largest of them.

    >>> sparkline([0.1, 0.5, 0.9], 8)
    '▁▅█'
    """
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high == low:
        return _BARS[-1] * len(shown)
    top = len(_BARS) - 1
    return "".join(_BARS[round(top * (value - low) / (high - low))] for value in shown)


def device(device_table: DeviceTable, device_id: str) -> str:
    """Return what a device is: its profile and engine, or what of them is known."""
    info = device_table.infos.get(device_id)
    if info is None:
        return device_table.states[device_id].role
    kind = f"{info.profile}, {info.engine}"
    return kind if info.role == "trainer" else f"{info.role}, {info.engine}"


def target_text(target: Sequence[str], where: Sequence[str]) -> str:
    """Return whom a run addresses, "" for everybody.

    >>> target_text(["domain-b", "group:lab"], ["ram>=4GB", "profile=pi"])
    'domain-b or group:lab, with ram>=4GB and profile=pi'
    """
    if not target and not where:
        return ""
    names = " or ".join(target) or "everybody"
    return f"{names}, with {' and '.join(where)}" if where else names


def waiting_for(follower: RunProgress) -> str:
    """Return which devices a run waits for."""
    document = follower.document
    task = "" if document is None else document.task
    of = f" of {follower.cohort_size}" if follower.cohort_size else ""
    way = " or take its bundle" if follower.bundled else ""
    some = "" if document is None else target_text(document.target, document.where)
    whom = f", of {some}" if some else ""
    return f"waiting for devices that have task {task!r}{way}{whom}: {follower.here}{of}"


def round_line(each: RoundProgress, rounds: int, metrics: str) -> str:
    """Return a committed round in one line, with what ``metrics_line`` says of it."""
    width = len(str(rounds))
    of = f"/{each.invited}" if each.invited else ""
    took = "-" if each.seconds is None else f"{each.seconds:.1f} s"
    return (
        f"round {each.number:>{width}}/{rounds}  {each.updates}{of} updates  {took:>7}"
        f"  {size(each.bytes_up):>8} up  {size(each.bytes_down):>8} down"
        f"  {metrics}"
    )


def metrics_line(headline: str, value: float | None, loss: float | None) -> str:
    """Return the headline metric and the loss."""
    also = "" if headline == "loss" else f"  loss {figure(loss)}"
    return f"{headline} {figure(value)}{also}"


def trouble(event: RunEvent) -> str | None:
    """Return an event that a person should see as a line of its own, None for all others."""
    detail = event.detail
    match event.name:
        case "RoundAbandoned":
            attempt = f"round {event.round}, attempt {event.attempt}"
            return f"{attempt}, was abandoned and is tried again: {detail['reason']}"
        case "RequestFailed":
            return f"the parent's round was given up: {detail['reason']}"
        case "UpdateRefused" | "UpdateWithdrawn":
            return (
                f"round {event.round}: update of {detail['device_id']} refused: {detail['reason']}"
            )
        case "OrderDeclined":
            return f"round {event.round}: {detail['device_id']} declined: {detail['reason']}"
        case "RunPaused":
            return "paused; `rengo runs resume` lets it go on"
        case "RunResumed":
            return "resumed"
    return None
