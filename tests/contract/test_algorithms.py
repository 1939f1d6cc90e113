"""The laws that every algorithm keeps; a new file in ``algorithms/`` is found by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import BLOCK, STATISTICS, Algorithm, Mean, Report, initial
from fl_client.datasets.device import Device
from fl_client.models.layers import BatchNorm, Layers, Linear, Tanh
from fl_client.models.local_round import LocalRound, LocalUpdate
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from fl_client.training.participant import PERSONAL, Participant
from fl_client.training.work import perform
from fl_server.aggregation.aggregator import Refused
from storage.weights import Weights
from tests.contract.test_engine_steps import Kept, PowerCutError
from tests.in_process import InProcessRun

Array = np.ndarray[Any, Any]
NAMES = algorithms.names()
ENGINES = ["numpy", "torch"]
ON_BOTH = [name for name in NAMES if "loss" not in algorithms.load(name).needs]
# what makes an algorithm FedAvg, to the last bit
DEGENERATE: dict[str, dict[str, Any]] = {
    "apfl": {},
    "ditto": {},
    "fedala": {"mixing_rate": 0.0},
    "fedavg": {},
    "fedavgm": {"server_momentum": 0.0},
    "fedcm": {"alpha": 1.0},
    "fedlc": {"tau": 0.0},
    "fedntd": {"beta": 0.0},
    "fedprox": {"mu": 0.0},
    "fedrod": {"balance": 0.0},
    "fedsam": {"rho": 0.0},
    "finetune": {},
    "mimelite": {"beta": 0.0},
    "moon": {"mu": 0.0},
    "qfedavg": {"q": 0.0},
    "fjord": {},
    "fedrolex": {"widths": {"nobody": 0.5}},
    "heterofl": {"widths": {"nobody": 0.5}},
    "term": {"t": 0.0},
    "ifca": {"clusters": 1},
    "perfedavg": {"alpha": 0.0},
}

NARROW = {"widths": {"d-0": 0.5, "d-1": 0.25}}
# what makes an algorithm differ from FedAvg from the first round on
EARLY: dict[str, dict[str, Any]] = {
    "cfl": {"first_split": 1, "ratio": 1.0, "moving": 0.0, "across": 1.0},
    "fedrolex": NARROW,
    "fjord": NARROW,
    "heterofl": NARROW,
}

# what only changes with which weights a client predicts, or where clients differ more than here
IS_FEDAVG = {"fedavg", "finetune", "ditto", "apfl", "fedexp"}


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Rows(Task):
    """Rows of one random data set, a slice for each device."""

    training = TrainingSettings(local_epochs=2, batch_size=8, learning_rate=0.05)

    def model(self) -> Layers:
        # smooth: at the kink of a ReLU the engines' rounding decides which way a step goes
        return [Linear(5, 7, rank=2), BatchNorm(7), Tanh(), Linear(7, 3)]

    def data(self, device: Device) -> tuple[Split, Split]:
        x = random(0, 90, 5)
        y = (x @ random(1, 5, 3)).argmax(1)
        # unequal parts, so that a mean that forgets the weights is seen
        cuts = np.linspace(0, 1, device.count + 1) ** 2 * 90
        low, high = (round(cuts[device.index + step]) for step in (0, 1))
        held_out = random(2, 30, 5)
        return (x[low:high], y[low:high]), (held_out, (held_out @ random(1, 5, 3)).argmax(1))


class Plain(Rows):
    """The same without statistics, trained on the whole data at once."""

    training = TrainingSettings(local_epochs=1, batch_size=10_000, learning_rate=0.2)

    def model(self) -> Layers:
        return [Linear(5, 7), Tanh(), Linear(7, 3)]


def run_of(folder: Path, name: str, engine: str = "", **more: Any) -> InProcessRun:
    engine = engine or ("numpy" if name in ON_BOTH else "torch")
    folder.mkdir(exist_ok=True)
    more.setdefault("settings", EARLY.get(name, {}))
    return InProcessRun(folder, more.pop("task", Rows()), name, engines=(engine,) * 3, **more)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- the server half ----------------------------------------------------------------------------


def server_round(algorithm: Algorithm, weights: Array, seed: int) -> tuple[Array, dict[str, Any]]:
    """Return what one round makes of random updates, cut into blocks as the server cuts."""
    size = len(weights)
    vectors = {name: 0.1 * random(seed + n, size) for n, name in enumerate(algorithm.sends)}
    scalars = {name: 0.5 + n for n, name in enumerate(algorithm.reports)}
    reports = [Report("a", 3, scalars), Report("b", 5, scalars)]
    cuts = [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
    state = initial(algorithm, weights, seed)
    for array in (weights, *vectors.values(), *state.values()):
        array.flags.writeable = False
    means = [Mean({n: v[cut] for n, v in vectors.items()}, scalars, 2, 3) for cut in cuts]
    states = [{n: v[cut] for n, v in state.items()} for cut in cuts]
    measured: dict[str, float] = {}
    for cut, mean, its in zip(cuts, means, states, strict=True):
        for key, value in algorithm.measure(weights[cut], mean, its).items():
            measured[key] = measured.get(key, 0.0) + float(value)
    server = algorithm.advance(Mean({}, scalars, 2, 3), reports, {}, measured)
    found = [
        algorithm.aggregate(weights[cut], mean, its, server)
        for cut, mean, its in zip(cuts, means, states, strict=True)
    ]
    kept = {key: np.concatenate([each[1][key] for each in found]) for key in found[0][1]}
    return np.concatenate([each[0] for each in found]), kept


def test_the_server_half_works_by_block_and_mutates_nothing(name: str) -> None:
    algorithm = algorithms.load(name)
    weights = random(1, BLOCK + 5)
    after, state = server_round(algorithm, weights, 7)
    assert after.dtype == weights.dtype
    assert after.shape == weights.shape
    assert np.isfinite(after).all()
    assert state.keys() == initial(algorithm, weights, 7).keys()
    # a block knows nothing of the others: what is measured aside, which these have alike
    if type(algorithm).measure is Algorithm.measure:
        first, its = server_round(algorithm, weights[:BLOCK].copy(), 7)
        assert first.dtype == after.dtype
        assert {key: len(value) for key, value in its.items()} == dict.fromkeys(its, BLOCK)


def test_no_name_is_both_a_vector_and_a_scalar(name: str) -> None:
    algorithm = algorithms.load(name)
    names = [*algorithm.sends, *algorithm.reports, STATISTICS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1e-45])
@pytest.mark.parametrize("name", [name for name in NAMES if algorithms.load(name).reports])
def test_no_scalar_that_a_device_may_send_is_an_error_of_ours(name: str, value: float) -> None:
    algorithm, weights = algorithms.load(name), np.ones(4, np.float32)
    state = initial(algorithm, weights, 0)
    scalars = dict.fromkeys(algorithm.reports, value)
    reports = [Report("a", 5, scalars), Report("b", 2, dict.fromkeys(algorithm.reports, 1.0))]
    mean = Mean({each: np.ones(4) for each in algorithm.sends}, scalars, 2, 3)
    with np.errstate(all="ignore"):  # what is not finite is found by the server
        try:
            algorithm.weight(reports[0], {})
        except ArithmeticError:
            return  # the server refuses the update
        measured = algorithm.measure(weights, mean, state)
        after = algorithm.advance(replace(mean, vectors={}), reports, {}, measured)
        algorithm.aggregate(weights, mean, state, after)


# --- whole runs ---------------------------------------------------------------------------------


def test_the_order_of_updates_and_restarts_of_the_server_change_no_bit(
    name: str, tmp_path: Path
) -> None:
    plain, other = run_of(tmp_path / "a", name), run_of(tmp_path / "b", name)
    for taking_part in ([0, 1, 2], [0, 2], [0, 1, 2]):
        plain.round(taking_part)
        other.round(taking_part[::-1], restarts=True)
    assert [model.sha256 for model in plain.models] == [model.sha256 for model in other.models]
    assert plain.models[-1].scalars == other.models[-1].scalars
    assert plain.models[-1].state_sha256 == other.models[-1].state_sha256
    start, end = plain.models[0].sha256, plain.models[-1].sha256
    assert start != end


@pytest.mark.parametrize("name", [name for name in NAMES if algorithms.load(name).reports])
def test_an_update_without_the_algorithms_scalars_is_refused(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, name)
    run.algorithm, run.settings = "fedavg", {}
    submitted = run.train(0)
    with pytest.raises(Refused, match="the algorithm's updates have"):
        run.server.verify(submitted, run.models[-1])


def test_a_client_gets_the_server_s_scalars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, "cfl")
    run.round()
    job, seen = run.job(0, "train", 2), list[LocalRound]()
    train = Participant.train

    def watched(self: Participant, weights: Weights, plan: LocalRound) -> LocalUpdate:
        seen.append(plan)
        return train(self, weights, plan)

    monkeypatch.setattr(Participant, "train", watched)
    perform(run.devices[0], job)
    assert job.scalars
    assert seen[0].scalars == job.scalars


@pytest.mark.parametrize("name", ON_BOTH)
def test_torch_and_numpy_train_the_same(name: str, tmp_path: Path) -> None:
    found = []
    for engine in ENGINES:
        run = run_of(tmp_path / engine, name, engine)
        for _ in range(2):
            run.round()
        found.append((run.weights.vector, run.evaluate(1).metrics))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=2e-3, atol=2e-4)
    assert found[0][1].keys() == found[1][1].keys()
    for key, value in found[0][1].items():
        assert value == pytest.approx(found[1][1][key], rel=1e-2, abs=2e-2), key


def test_a_device_tells_what_its_own_model_is_worth(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, name)
    run.round()
    run.round()
    metrics = run.evaluate(0).metrics
    own = {key for key in metrics if key.startswith(PERSONAL)}
    if not algorithms.load(name).is_personal:
        assert not own
        return
    assert own == {f"{PERSONAL}loss", f"{PERSONAL}accuracy"}
    assert metrics[f"{PERSONAL}loss"] != metrics["loss"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_that_was_cut_off_comes_to_the_same_bits(
    name: str, engine: str, tmp_path: Path
) -> None:
    if engine == "numpy" and name not in ON_BOTH:
        pytest.skip("it changes the loss, which the numpy engine has no derivative of")
    run = run_of(tmp_path, name, engine)
    run.round()
    device, plan, kept = run.devices[1], run.plan(1), Kept(3)
    weights = run.weights_of(1)
    whole = device.train(weights, plan)
    with pytest.raises(PowerCutError):
        device.train(weights, replace(plan, checkpoint=kept))
    kept.steps = 3  # no second cut
    resumed = device.train(weights, replace(plan, checkpoint=kept))
    assert kept.loads == [False, True]
    assert_same(whole, resumed)


def assert_same(one: LocalUpdate, other: LocalUpdate) -> None:
    assert one.scalars == other.scalars
    assert (one.vector is None) == (other.vector is None)
    if one.vector is not None and other.vector is not None:
        assert one.vector.tobytes() == other.vector.tobytes()
    for mine, theirs in ((one.vectors, other.vectors), (one.state, other.state)):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert np.asarray(mine[key]).tobytes() == np.asarray(theirs[key]).tobytes()


@pytest.mark.parametrize("name", sorted(DEGENERATE))
def test_with_its_term_off_it_is_fedavg_to_the_last_bit(name: str, tmp_path: Path) -> None:
    engine = "numpy" if name in ON_BOTH else "torch"
    fedavg = run_of(tmp_path / "fedavg", "fedavg", engine)
    same = run_of(tmp_path / "same", name, engine, settings=DEGENERATE[name])
    for _ in range(2):
        fedavg.round()
        same.round()
    assert same.weights.vector.tobytes() == fedavg.weights.vector.tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IS_FEDAVG])
def test_it_is_another_algorithm_than_fedavg(name: str, tmp_path: Path) -> None:
    fedavg, other = (
        run_of(tmp_path / "fedavg", "fedavg", "torch"),
        run_of(tmp_path / "o", name, "torch"),
    )
    for _ in range(2):
        fedavg.round()
        other.round()
    assert other.weights.vector.tobytes() != fedavg.weights.vector.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_full_batch_fedavg_is_centralised_training(
    engine: str, groups: int, tmp_path: Path
) -> None:
    central = InProcessRun(tmp_path, Plain(), "fedavg", engines=[engine])
    before = central.weights.vector
    central.round()
    weights = central.weights.with_vector(before)
    clients = []
    for index in range(6):
        participant = Participant(Plain(), Device(f"d{index}", index, 6), engine)
        plan = LocalRound(algorithms.load("fedavg"), Plain.training, 0, 1, f"d{index}")
        clients.append(participant.train(weights, plan))
    assert sum(client.num_examples for client in clients) == 90
    # a tree: each group's mean first, then the mean of the groups
    tops = []
    for start in range(groups):
        group = clients[start::groups]
        examples = sum(client.num_examples for client in group)
        tops.append(LocalUpdate(mean(group), examples, {}))
    assert np.abs(central.weights.vector - before).max() > 1e-3
    np.testing.assert_allclose(before + mean(tops), central.weights.vector, atol=1e-6)


def mean(updates: list[LocalUpdate]) -> Array:
    total = sum(update.num_examples for update in updates)
    vectors = [(u.vector, u.num_examples) for u in updates if u.vector is not None]
    return np.sum([v.astype(np.float64) * (count / total) for v, count in vectors], axis=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_training_leaves_the_global_weights_and_what_came_with_them_alone(
    name: str, engine: str, tmp_path: Path
) -> None:
    if engine == "numpy" and name not in ON_BOTH:
        pytest.skip("it changes the loss, which the numpy engine has no derivative of")
    run = run_of(tmp_path, name, engine)
    run.round()
    weights, plan = run.weights_of(0), run.plan(0)
    arrays = [weights.vector, *plan.vectors.values(), *plan.state.values()]
    before = [array.copy() for array in arrays]
    run.devices[0].train(weights, plan)
    run.devices[0].evaluate(run.weights, replace(plan, width=1.0))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
