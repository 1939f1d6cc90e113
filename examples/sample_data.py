"""Writes small data for the examples of the page "Write a task": a folder for each device.

python examples/sample_data.py images data
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

DEVICES = ("alice", "bob", "evaluator")


def first(folder: Path, random: np.random.Generator) -> None:
    """Write what a pump's sensor said, and the state that a person found it in."""
    worn = random.random(200) < 0.5
    rms, peak = random.normal(1 + 2 * worn, 0.5), random.normal(4 - 2 * worn, 0.5)
    states = np.where(worn, "worn", "ok").tolist()
    rows = [list(row) for row in zip(rms.round(3), peak.round(3), states, strict=True)]
    write_table(folder / "log.csv", ["rms", "peak", "state"], rows)


def images(folder: Path, random: np.random.Generator) -> None:
    """Write pictures of 16 x 16 pixels into sub-folders named as their classes."""
    from PIL import Image  # noqa: PLC0415  for pictures alone

    for number in range(120):
        kind = ("circle", "cross", "square")[number % 3]
        place = folder / kind
        place.mkdir(exist_ok=True)
        pixels = random.integers(0, 60, (16, 16)) + 190 * shape(kind, random)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:03}.png")


def shape(kind: str, random: np.random.Generator) -> np.ndarray:
    """Return a shape of a random size at a random place, as ones in a square of zeros."""
    x, y = random.integers(6, 10, 2)
    size = random.integers(3, 6)
    across, down = np.abs(np.arange(16) - x)[:, None], np.abs(np.arange(16) - y)[None]
    if kind == "circle":
        return (np.abs(np.hypot(across, down) - size) < 1).astype(int)
    if kind == "square":
        return (np.maximum(across, down) == size).astype(int)
    return ((np.minimum(across, down) == 0) & (np.maximum(across, down) <= size)).astype(int)


def regression(folder: Path, random: np.random.Generator) -> None:
    """Write what houses needed for heating: area, degrees outside, and kWh in a day."""
    area, degrees = random.uniform(40, 200, 300), random.uniform(-10, 18, 300)
    kwh = 0.025 * area * (20 - degrees) + random.normal(0, 3, 300)
    rows = np.stack([area, degrees, kwh], 1).round(2)
    write_table(folder / "heating.csv", ["area", "degrees", "kwh"], rows.tolist())


def table(folder: Path, random: np.random.Generator) -> None:
    """Write measurements of flowers, as Parquet."""
    import pyarrow  # noqa: PLC0415  for this alone
    from pyarrow import parquet  # noqa: PLC0415

    kinds = random.integers(0, 3, 240)
    means = np.array([[1.5, 0.3], [4.3, 1.3], [5.6, 2.0]])[kinds]
    length, width = (means + random.normal(0, 0.3, (240, 2))).T
    names = np.array(["setosa", "versicolor", "virginica"])[kinds]
    columns = {"length": length, "width": width, "kind": names}
    parquet.write_table(pyarrow.table(columns), folder / "flowers.parquet")


def multi_label(folder: Path, random: np.random.Generator) -> None:
    """Write sensors of machines, and which faults each has: none, some, or all."""
    faults = (random.random((300, 3)) < 0.4).astype(int)
    mixed = faults @ np.array([[2.0, 0.5, 0], [0, 2.0, 0.5], [0.5, 0, 2.0]])
    sensors = (mixed + random.normal(0, 0.3, (300, 3))).round(3)
    rows = [
        [*values, *found] for values, found in zip(sensors.tolist(), faults.tolist(), strict=True)
    ]
    names = ["vibration", "noise", "heat", "bearing", "belt", "seal"]
    write_table(folder / "machines.csv", names, rows)


def text(folder: Path, random: np.random.Generator) -> None:
    """Write short messages, each behind what it is about."""
    words = {
        "delivery": "parcel late courier tracking address lost arrived box",
        "payment": "card invoice charged refund twice bank amount paid",
        "account": "password login email locked reset name profile delete",
    }
    filler = "please my the a was is not help and i with to"
    lines = []
    for _ in range(240):
        topic = list(words)[random.integers(3)]
        said = [*random.choice(words[topic].split(), 3), *random.choice(filler.split(), 5)]
        random.shuffle(said)
        lines.append(f"{topic}\t{' '.join(said)}\n")
    (folder / "messages.tsv").write_text("".join(lines), encoding="utf-8")


def anomalies(folder: Path, random: np.random.Generator) -> None:
    """Write eight readings that depend on two hidden numbers: what is usual."""
    hidden = random.normal(0, 1, (400, 2))
    mixing = np.random.default_rng(0).normal(0, 1, (2, 8))
    readings = np.tanh(hidden @ mixing) + random.normal(0, 0.05, (400, 8))
    names = [f"sensor{number}" for number in range(8)]
    write_table(folder / "readings.csv", names, readings.round(4).tolist())


def write_table(path: Path, names: list[str], rows: list[list]) -> None:
    """Write a CSV file whose first line names the columns."""
    lines = [",".join(names), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


KINDS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    each.__name__: each for each in (first, images, regression, table, multi_label, text, anomalies)
}


def write(kind: str, data: Path) -> None:
    """Write data of one kind for all devices."""
    for number, device in enumerate(DEVICES):
        folder = data / device
        folder.mkdir(parents=True, exist_ok=True)
        KINDS[kind](folder, np.random.default_rng(number))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("data", type=Path, help="a folder, which gets one for each device")
    options = parser.parse_args()
    write(options.kind, options.data)
    print(f"{options.data} has a folder for each of {', '.join(DEVICES)}")
