"""The laws that every transform keeps; a new file in algorithms/transforms/ is found by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import algorithms
from algorithms.base import BLOCK, STATISTICS, UPDATE, Mean
from algorithms.ditto import Ditto
from algorithms.transforms import TRANSFORMS, bound_of, load_all
from algorithms.transforms.base import At
from fl_client.models.layers import Layers, Linear, ReLU
from fl_client.training.work import perform
from fl_server.aggregation.aggregator import Refused
from runtime.errors import ConfigError
from storage.weights import read_safetensors
from tests.contract.test_algorithms import Rows
from tests.in_process import InProcessRun

Floats = NDArray[np.float32]
NAMES = TRANSFORMS.names()
NORM = 0.05
"""Less than an update's."""
# each with settings that make it do something, and what must stand before it
USED: dict[str, list[dict[str, Any]]] = {
    "clip": [{"name": "clip", "norm": NORM}],
    "noise": [{"name": "clip", "norm": NORM}, {"name": "noise", "multiplier": 0.1}],
    "sparsify": [{"name": "sparsify", "share": 0.2}],
}
# each with settings that make it do nothing
IDENTITY: dict[str, list[dict[str, Any]]] = {
    "clip": [{"name": "clip", "norm": 1e6}],
    "noise": [{"name": "clip", "norm": 1e6}, {"name": "noise", "multiplier": 0.0}],
    "sparsify": [{"name": "sparsify", "share": 1.0}],
}


class NoStatistics(Rows):
    """The same without running statistics, which noise cannot be with."""

    def model(self) -> Layers:
        return [Linear(5, 7), ReLU(), Linear(7, 3)]


def random(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_of(folder: Path, transforms: list[dict[str, Any]], **more: Any) -> InProcessRun:
    folder.mkdir(exist_ok=True)
    task, algorithm = more.pop("task", NoStatistics()), more.pop("algorithm", "fedavg")
    return InProcessRun(
        folder, task, algorithm, engines=["numpy"] * 3, transforms=transforms, **more
    )


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_with_settings_that_do_nothing_a_run_is_the_same_to_the_last_bit(
    name: str, tmp_path: Path
) -> None:
    plain, same = run_of(tmp_path / "a", []), run_of(tmp_path / "b", IDENTITY[name])
    other = run_of(tmp_path / "c", USED[name])
    for _ in range(2):
        for run in (plain, same, other):
            run.round()
    assert plain.models[-1].sha256 == same.models[-1].sha256
    assert plain.models[-1].sha256 != other.models[-1].sha256


def test_the_order_of_updates_and_restarts_of_the_server_change_no_bit(
    name: str, tmp_path: Path
) -> None:
    plain, other = run_of(tmp_path / "a", USED[name]), run_of(tmp_path / "b", USED[name])
    for taking_part in ([0, 1, 2], [0, 2], [0, 1, 2]):
        plain.round(taking_part)
        other.round(taking_part[::-1], restarts=True)
    assert [model.sha256 for model in plain.models] == [model.sha256 for model in other.models]


def test_what_a_transform_is_given_stays_as_it_is(name: str) -> None:
    transform = load_all(USED[name])[-1]
    sent = {UPDATE: random(1, 500), STATISTICS: random(2, 500)}
    state = {UPDATE: random(3, 500)} if name == "sparsify" else {}
    mean = random(4, 500).astype(np.float64)
    for array in (*sent.values(), *state.values(), mean):
        array.flags.writeable = False
    found, kept = transform.outgoing(sent, state)
    assert {each: vector.shape for each, vector in found.items()} == {
        each: vector.shape for each, vector in sent.items()
    }
    assert all(each.dtype == np.float32 for each in (*found.values(), *kept.values()))
    assert transform.combined(Mean({UPDATE: mean}), At(1, 2, 0, 0.5)).vectors[UPDATE].shape == (
        500,
    )


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "ditto", "fedbn", "fedadam", "lora"])
@pytest.mark.parametrize("name", ["clip", "sparsify"])
def test_it_goes_around_an_algorithm_with_a_state_of_its_own(
    name: str, algorithm: str, tmp_path: Path
) -> None:
    run = run_of(tmp_path, USED[name], algorithm=algorithm, task=Rows())
    for _ in range(3):
        run.round()
    assert np.isfinite(run.weights.vector).all()
    assert run.models[-1].sha256 != run.models[-2].sha256
    assert run.evaluate(0).metrics["loss"] > 0


# --- clip ---------------------------------------------------------------------------------------


def test_a_long_update_is_scaled_to_the_bound_over_all_its_vectors() -> None:
    sent = {UPDATE: random(1, 700_000), STATISTICS: random(2, 9)}
    found, _ = TRANSFORMS.load("clip", {"norm": 2.5}).outgoing(sent, {})
    whole = np.concatenate([found[each].astype(np.float64) for each in sent])
    before = np.concatenate([sent[each].astype(np.float64) for each in sent])
    assert np.linalg.norm(whole) == pytest.approx(2.5, rel=1e-6)
    np.testing.assert_allclose(whole, before * 2.5 / np.linalg.norm(before), rtol=1e-5)


def test_a_device_that_does_not_clip_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, USED["clip"])
    run.round()
    honest = run.train(0)
    run.transforms = []
    hostile = run.train(1)
    run.server.verify(honest, run.models[-1])
    with pytest.raises(Refused, match=r"norm is .*, and at most 0.05 is sent"):
        run.server.verify(hostile, run.models[-1])


# --- noise --------------------------------------------------------------------------------------


def test_the_noise_has_the_size_that_one_device_can_move_the_mean_by(tmp_path: Path) -> None:
    plain, noisy = run_of(tmp_path / "a", USED["clip"]), run_of(tmp_path / "b", USED["noise"])
    plain.round()
    noisy.round()
    noise = noisy.weights.vector - plain.weights.vector
    examples = [len(device.train_split[0]) for device in plain.devices]
    expected = 0.1 * NORM * max(examples) / sum(examples)
    assert float(np.std(noise)) == pytest.approx(expected, rel=0.3)
    assert abs(float(np.mean(noise))) < 4 * expected / math.sqrt(noise.size)


def test_the_noise_depends_on_the_seed_the_round_and_the_place_alone() -> None:
    noise = TRANSFORMS.load("noise", {"multiplier": 2.0})

    def drawn(seed: int = 1, number: int = 1, start: int = 0) -> NDArray[np.float64]:
        mean = Mean({UPDATE: np.zeros(1000)})
        return np.asarray(noise.combined(mean, At(seed, number, start, 0.25)).vectors[UPDATE])

    assert (drawn() == drawn()).all()
    assert float(np.std(drawn())) == pytest.approx(0.5, rel=0.1)
    for other in (drawn(seed=2), drawn(number=2), drawn(start=BLOCK)):
        assert abs(float(np.corrcoef(drawn(), other)[0, 1])) < 0.2


# --- sparsify -----------------------------------------------------------------------------------


def test_the_largest_are_sent_and_the_others_are_not_lost() -> None:
    sparsify = TRANSFORMS.load("sparsify", {"share": 0.1})
    state: dict[str, Floats] = {}
    total, arrived = np.zeros(1000), np.zeros(1000)
    for seed in range(20):
        update = random(seed, 1000)
        total += update
        before = state.get(UPDATE, np.zeros(1000, np.float32))
        found, kept = sparsify.outgoing({UPDATE: update}, state)
        state = dict(kept)
        places = np.flatnonzero(found[UPDATE])
        expected = np.argsort(-np.abs(update + before))[:100]
        assert set(places) == set(expected)
        arrived += found[UPDATE]
        np.testing.assert_allclose(arrived + state[UPDATE], total, atol=1e-4)


def test_running_statistics_are_sent_whole() -> None:
    sent = {UPDATE: random(1, 100), STATISTICS: random(2, 100)}
    found, kept = TRANSFORMS.load("sparsify").outgoing(sent, {})
    assert found[STATISTICS].tobytes() == sent[STATISTICS].tobytes()
    assert set(kept) == {UPDATE}


def test_a_device_that_was_killed_before_its_receipt_sends_the_same_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, USED["sparsify"])
    run.round()
    state = tmp_path / "state-0.safetensors"
    before = state.read_bytes()
    job = run.job(0, "train", 2)
    assert job.update_path is not None
    first = perform(run.devices[0], job)
    written = Path(job.update_path).read_bytes()
    again = perform(run.devices[0], job)
    assert first.header_sha256 == again.header_sha256
    assert written == Path(job.update_path).read_bytes()
    assert state.read_bytes() == before, "what is left out is kept once the update counts"
    run.train(0)
    assert state.read_bytes() != before


def test_an_algorithm_does_not_see_what_transforms_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, USED["sparsify"], algorithm="ditto")
    run.round()
    seen: list[set[str]] = []
    for method in ("start", "personal"):
        own = getattr(Ditto, method)

        def watched(
            self: Ditto, got: Any, state: Any, local: Any, own: Callable[..., Any] = own
        ) -> Any:
            seen.append(set(state))
            return own(self, got, state, local)

        monkeypatch.setattr(Ditto, method, watched)
    run.train(0)
    run.evaluate(0)
    assert seen == [{"own"}, {"own"}]
    kept = read_safetensors(tmp_path / "state-0.safetensors").arrays()
    assert {name.split("/")[0] for name in kept} == {"own", "transforms"}


def test_a_sparse_update_takes_little_on_the_wire(tmp_path: Path) -> None:
    class Wide(NoStatistics):
        def model(self) -> Layers:
            return [Linear(5, 3000), ReLU(), Linear(3000, 3)]

    sizes = []
    for label, transforms in (("whole", []), ("sparse", [{"name": "sparsify", "share": 0.01}])):
        run = run_of(tmp_path / label, transforms, task=Wide())
        run.round()
        sizes.append((tmp_path / label / "update-0").stat().st_size)
    print(f"\nbytes of an update: whole {sizes[0]}, 1% {sizes[1]}")
    assert sizes[0] > 4 * 27_000
    assert sizes[0] / sizes[1] > 40


# --- which go together --------------------------------------------------------------------------


def test_bounds_follow_the_order() -> None:
    clip, sparsify = {"name": "clip", "norm": 2.0}, {"name": "sparsify"}
    assert bound_of(load_all([clip])) == 2
    assert bound_of(load_all([sparsify, clip])) == 2
    assert bound_of(load_all([clip, sparsify])) == math.inf
    assert bound_of(load_all([])) == math.inf


def test_a_name_or_a_setting_that_is_wrong_is_told_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"no transform 'clop'; did you mean 'clip'\?"):
        load_all([{"name": "clop"}])
    with pytest.raises(ConfigError, match="transform clip, setting norm: must be above 0"):
        load_all([{"name": "clip", "norm": 0}])
    with pytest.raises(ConfigError, match="no transform ''"):
        load_all([{"norm": 0}])
    with pytest.raises(ConfigError, match="transform sparsify has no setting 'shares'"):
        load_all([{"name": "sparsify", "shares": 0.1}])


def test_the_listing_of_algorithms_has_no_transform() -> None:
    assert not {"transforms", *NAMES}.intersection(algorithms.names())
