"""Tasks on a shared data set: every partition and every model of each, by their settings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fl_client.datasets.device import Device
from fl_client.datasets.public import images
from fl_client.datasets.public.shakespeare import VOCABULARY
from fl_client.engines.base import load_engine
from fl_client.tasks import mnist, shakespeare
from fl_client.tasks._shared_data import SharedDataTask
from fl_client.tasks.listing import built_in, is_named, resolve
from fl_client.tasks.registry import load_task
from runtime.errors import ConfigError
from tests.unit.fl_client.test_published_data import small_files


def shared() -> list[str]:
    return [name for name in built_in() if isinstance(load_task(name), SharedDataTask)]


def with_models() -> list[str]:
    found = [(name, load_task(name)) for name in shared()]
    return [
        f"{name}-{model}" for name, task in found for model in getattr(task, "models", ()) or ()
    ]


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    images._read_images.cache_clear()
    monkeypatch.setattr(mnist.Mnist, "dataset", small_files(tmp_path))
    return tmp_path


def rows(task: SharedDataTask, count: int, partition: str) -> Counter[bytes]:
    """Every example of every trainer, as often as it occurs."""
    found: Counter[bytes] = Counter()
    for index in range(count):
        for split in task.data(Device(f"d{index}", index, count, partition=partition)):
            if split is not None:
                found.update(row.tobytes() for row in split[0])
    return found


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.1", "shards:2", "quantity:0.3"])
@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_every_partition_has_every_example_once(name: str, partition: str) -> None:
    task = load_task(name)
    assert isinstance(task, SharedDataTask)
    assert rows(task, 4, partition) == rows(task, 1, "iid")


@pytest.mark.parametrize("shift", ["turned", "inverted", "tinted", "domains"])
def test_a_shift_changes_what_devices_see_and_nothing_of_the_labels(shift: str) -> None:
    task = load_task("digits")
    plain = [task.data(Device("d", index, 4, partition="iid"))[0] for index in range(4)]
    seen = [task.data(Device("d", index, 4, partition=f"iid+{shift}"))[0] for index in range(4)]
    for (inputs, labels), (shown, again) in zip(plain, seen, strict=True):
        assert inputs.shape == shown.shape
        assert labels.tolist() == again.tolist()
    changed = [not np.array_equal(one[0], other[0]) for one, other in zip(plain, seen, strict=True)]
    assert sum(changed) >= 2
    judge = Device("judge", count=4, role="evaluator", partition=f"iid+{shift}")
    usual = Device("judge", count=4, role="evaluator")
    differing = (task.data(judge)[1][0] != task.data(usual)[1][0]).any(1).mean()
    assert 0.4 < differing <= 1


def test_images_are_shown_as_floats_and_turned(small_mnist: Path) -> None:
    task = load_task("mnist")
    device = Device("d", 1, 4, folder=small_mnist, partition="iid+turned")
    (inputs, labels), _ = task.data(device)
    assert inputs.shape == (10, 1, 28, 28) if len(labels) == 10 else len(labels) == 9
    assert inputs.dtype == np.float32
    assert 0.9 < inputs.max() <= 1
    plain, _ = task.data(Device("d", 1, 4, folder=small_mnist, partition="iid"))
    assert np.array_equal(inputs, np.rot90(plain[0], 1, axes=(2, 3)))


ROLES = {
    role: "".join(np.random.default_rng(length).choice(list(VOCABULARY), length))
    for role, length in (("hamlet/Ham", 2345), ("hamlet/Osr", 1281), ("lear/Fool", 399))
}


def test_a_role_s_windows_follow_each_other_and_its_end_is_the_evaluators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shakespeare, "load_roles", lambda _: ROLES)
    task = load_task("shakespeare")
    spoken = set()
    for index in range(2):
        train, held_out = task.data(Device("d", index, 2))
        inputs, targets = (np.concatenate(each) for each in zip(train, held_out, strict=True))
        # a target is the next character of its input
        assert np.array_equal(inputs[:, 1:], targets[:, :-1])
        said = {"".join(VOCABULARY[number] for number in row) for row in inputs}
        of = [role for role, text in ROLES.items() if all(row in text for row in said)]
        assert len(of) == 1
        spoken |= {of[0]}
        # nine tenths of four fifths are trained on, and the last fifth by nobody
        windows = (len(ROLES[of[0]]) - 1) // 80
        assert len(inputs) == windows * 4 // 5
        last = ROLES[of[0]][(windows - 1) * 80 : windows * 80]
        assert last not in said
    assert spoken == {"hamlet/Ham", "hamlet/Osr"}
    _, unseen = task.data(Device("judge", role="evaluator"))
    # of 29 windows 23 and of 16 windows 12 are the devices'; the fool has fewer than five
    assert len(unseen[0]) == 6 + 4


def test_what_has_no_images_has_no_shift() -> None:
    with pytest.raises(ConfigError, match="task synthetic has no images"):
        load_task("synthetic").data(Device("d", partition="natural+turned"))


def test_what_has_no_owners_is_told() -> None:
    with pytest.raises(ConfigError, match="does not say whose an example is"):
        load_task("digits").data(Device("d", partition="natural"))


@pytest.mark.parametrize("spec", with_models())
def test_every_model_of_a_task_trains_on_examples_of_its_shape(spec: str) -> None:
    task = load_task(spec)
    assert isinstance(task, SharedDataTask)
    assert task.name == spec
    assert is_named(spec)
    assert resolve(spec).name == spec
    random = np.random.default_rng(0)
    if spec.startswith("shakespeare"):
        numbers = random.integers(0, task.classes, (2, 81))
        data = numbers[:, :-1], numbers[:, 1:]
    elif spec.startswith("digits_anomaly"):
        images = random.random((4, 64))
        data = images, images
    else:
        flat = spec.startswith("digits") and spec.endswith("mlp")
        shape = (64,) if flat else task.example
        data = random.random((4, *shape)).astype(np.float32), np.arange(4)
    engine = "torch" if spec.endswith(("resnet18", "transformer")) else "numpy"
    weights = task.initial_weights(0)
    loss, gradients = load_engine(engine, task).gradients(weights, data)
    assert 0 < loss < 8
    # an adapter's A is multiplied by its B, which is zeros at first
    unused = {name for name in gradients if np.abs(gradients[name]).max() == 0}
    assert unused == {name for name in gradients if name.endswith("lora_a")}


@pytest.mark.parametrize(
    ("spec", "weights"),
    # as the FedAvg paper counts them; 784 * 10 + 10; of ResNet-18 with a stem of 3 x 3: 11,172,810
    [("mnist-2nn", 199_210), ("mnist-cnn", 1_663_370), ("mnist-logistic", 7_850)],
)
def test_models_have_the_size_that_their_papers_say(spec: str, weights: int) -> None:
    assert load_task(spec).initial_weights(0).vector.size == weights


def test_resnet_18_has_its_size() -> None:
    # counted by hand: stem, four stages of convolutions, the shortcuts, the norms and the head
    convolutions = 9 * (
        1 * 64
        + 4 * 64 * 64
        + 64 * 128
        + 3 * 128 * 128
        + 128 * 256
        + 3 * 256 * 256
        + 256 * 512
        + 3 * 512 * 512
    )
    shortcuts = 64 * 128 + 128 * 256 + 256 * 512
    norms = 2 * (64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
    head = 512 * 10 + 10
    found = load_task("mnist-resnet18").initial_weights(0).vector.size
    assert found == convolutions + shortcuts + norms + head


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mnist-rnn", "mnist has no model 'rnn'; it has: 2nn, logistic, cnn, resnet18"),
        ("mnist-", "mnist has no model ''"),
        ("watch-cnn", "watch has no model 'cnn'; it has but one"),
        ("mnst-cnn", "no task 'mnst-cnn'; there are: digits"),
    ],
)
def test_a_model_that_a_task_has_not_is_told_with_the_choices(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_task(spec)
