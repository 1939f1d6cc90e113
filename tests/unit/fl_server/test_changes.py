"""What an aggregator learns of a version's changes, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from algorithms.base import BLOCK
from fl_server.rounds.facts import RoundClosed, RoundCommitted, RoundStarted, UpdateAccepted
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.model import Model
from storage.weights import encode_header
from tests.unit.fl_server.test_run import UPDATE
from tests.unit.fl_server.test_streaming import SIZE, Bench, bench, vector, weights

__all__ = ["bench"]
HEADER = len(encode_header(weights().layout))


def round_of(bench: Bench, delta: np.ndarray) -> Model:
    """Commit the version that one device's change makes."""
    submission = bench.submit("a", delta)
    bench.fold(submission)
    bench.model = bench.aggregate(submission)
    return bench.model


def stored(bench: Bench, model: Model) -> bytes:
    with bench.store.open(model.key) as stream:
        return stream.read(1 << 30)


def test_a_head_that_alone_was_trained_is_the_one_changed_range(bench: Bench) -> None:
    before = stored(bench, bench.model)
    delta = np.zeros(SIZE, np.float32)
    delta[BLOCK:] = 0.5
    model = round_of(bench, delta)
    assert model.changed == ((HEADER + 4 * BLOCK, HEADER + 4 * SIZE),)
    after = stored(bench, model)
    ((start, end),) = model.changed
    assert after == before[:start] + after[start:end] + before[end:]


def test_training_of_everything_is_not_worth_a_list(bench: Bench) -> None:
    assert round_of(bench, vector(5)).changed is None


def test_a_change_of_nothing_is_known_to_be_none(bench: Bench) -> None:
    assert round_of(bench, np.zeros(SIZE, np.float32)).changed == ()


def test_a_header_that_is_written_anew_hides_what_changed(bench: Bench) -> None:
    data = stored(bench, bench.model)
    other = data.replace(b'"format":"pt"', b'"format":"np"', 1)
    assert other != data
    assert len(other) == len(data)
    bench.model = bench.put_model(0, other)
    assert round_of(bench, np.zeros(SIZE, np.float32)).changed is None
    assert round_of(bench, np.zeros(SIZE, np.float32)).changed == ()


def test_the_same_round_again_learns_the_same(bench: Bench) -> None:
    delta = np.zeros(SIZE, np.float32)
    delta[:100] = 1
    submission = bench.submit("a", delta)
    bench.fold(submission)
    first = bench.aggregate(submission)
    bench.restart()
    bench.fold(submission)
    assert bench.aggregate(submission) == first
    assert first.changed == ((HEADER, HEADER + 4 * 100),)


def committed(ledger: Ledger, model: Model) -> None:
    place = (ledger.round, ledger.attempt)
    ledger.apply(RoundStarted(*place, ("d",), 1))
    ledger.apply(UpdateAccepted(*place, "d", UPDATE))
    ledger.apply(RoundClosed(*place, ("d",)))
    ledger.apply(RoundCommitted(*place, model))


def test_a_ledger_knows_the_four_versions_before_the_latest() -> None:
    initial = Model(0, "k/0", "0" * 64, 1)
    ledger = Ledger(9, initial)
    assert ledger.earlier == ()
    for version in range(1, 7):
        committed(ledger, replace(initial, version=version, changed=((0, version),)))
    assert ledger.model.version == 6
    assert [model.version for model in ledger.earlier] == [2, 3, 4, 5]
