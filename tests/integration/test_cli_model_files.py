"""``rengo models get|export|import`` and ``rengo run --from`` against a real site."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from fl_client.datasets.device import Device
from fl_client.engines.base import load_engine
from fl_client.engines.torch import TorchEngine
from fl_client.tasks.registry import load_task
from rengo.cli.common import operator_of
from rengo.operator.models import manifest_path, verify_file
from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from runtime.errors import Corrupt, Mismatch
from storage.weights import Weights, read_safetensors, write_safetensors
from tests.examples import pages
from tests.integration.commands import Told, rengo, surroundings, without
from tests.integration.test_cli_runs import document, submitted

DONE, USAGE, INTERRUPTED = 0, 2, 130
DEVICES = ("device-1", "device-2", "device-3")
BIG = """
from rengo import Linear, Task

class Big(Task):
    def model(self):
        return [Linear(1500, 1500)]

    def data(self, device):
        return None, None
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site with two devices that train the digits and one that measures them."""
    folder = tmp_path_factory.mktemp("home")
    with Site(folder) as site:
        specs = [
            DeviceSpec(name, engine="numpy", index=index, count=2)
            for index, name in enumerate(DEVICES[:2])
        ]
        evaluator = DeviceSpec(DEVICES[2], engine="numpy", role="evaluator")
        site.start_devices([*specs, evaluator], "digits")
        with site.connect() as client:
            wait_for_devices(client, DEVICES, 60.0)
        yield folder


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("output")
    return document(home, "run", "digits", "--rounds", "3", "--output", str(output))


@pytest.fixture(scope="module")
def model(home: Path, finished: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's last version, fetched."""
    path = tmp_path_factory.mktemp("got") / "model.safetensors"
    assert rengo("models", "get", finished["run_id"], "--output", path, home=home).code == DONE
    return path


def run_ids(home: Path) -> list[str]:
    """Return the site's runs; those that other tests began may go on meanwhile."""
    return [run["run_id"] for run in document(home, "runs", "ls")["runs"]]


def accuracy(weights: Weights) -> float:
    """Return what the evaluator measures."""
    task = load_task("digits")
    _, held_out = task.data(Device("device-3", role="evaluator"))
    return load_engine("numpy", task).evaluate(weights, held_out).metrics["accuracy"]


def weights_of(home: Path, name: str, folder: Path) -> Weights:
    got = document(home, "models", "get", name, "--output", str(folder / "got.safetensors"))
    return read_safetensors(Path(got["path"]))


# --- get --------------------------------------------------------------------------------------


def test_a_version_is_fetched_and_verified(
    home: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    name = f"{finished['run_id']}:3"
    told = rengo("models", "get", name, "--output", tmp_path, home=home)
    assert told.code == DONE, told
    path = tmp_path / f"{finished['run_id']}-3.safetensors"
    assert told.out.splitlines() == [
        f"{name}, as this site's server signed it, is in {path}: 10.0 kB",
        f"Its manifest lies beside it: {path}.manifest.json",
    ]
    assert path.read_bytes() == Path(finished["model_path"]).read_bytes()
    operator = operator_of(home)
    assert operator is not None
    manifest = verify_file(path, manifest_path(path), operator.believed)
    assert manifest.name == name
    assert manifest.sha256 == finished["model_sha256"]
    assert manifest.cohort == ["device-1", "device-2"]
    again = document(home, "models", "get", name, "--output", str(path))
    assert again["moved_bytes"] == 0


def test_a_version_that_is_not_there(home: Path, finished: dict[str, Any], tmp_path: Path) -> None:
    told = rengo("models", "get", f"{finished['run_id']}:99", "--output", tmp_path, home=home)
    assert told.code == USAGE
    assert finished["run_id"] in told.line
    assert "99" in told.line
    assert list(tmp_path.iterdir()) == []


# a signal at a certain byte: the transfer of a test's model is over in no time
SIGNALLED = """
import os, signal, sys
from storage.transfer.files import _PartFile
from rengo.cli.main import main

add = _PartFile.add

def add_and_signal(self, block):
    add(self, block)
    if self.done >= 2_000_000:
        os.kill(os.getpid(), int(sys.argv[1]))

_PartFile.add = add_and_signal
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def big(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The version 0, 9 MB, of a run that waits for devices which nobody starts."""
    file = tmp_path_factory.mktemp("task") / "big.py"
    file.write_text(BIG)
    run_id = submitted(rengo("run", f"{file}:Big", home=home))
    yield f"{run_id}:0"
    rengo("runs", "stop", run_id, home=home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_get_that_is_ended_goes_on_where_it_was(
    number: signal.Signals, home: Path, big: str, tmp_path: Path
) -> None:
    command = ["models", "get", big, "--output", str(tmp_path / "m.safetensors")]
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(int(number)), *command],
        capture_output=True,
        text=True,
        env=surroundings(home),
        check=False,
    )
    part = tmp_path / "m.safetensors.part"
    assert list(tmp_path.iterdir()) == [part], ended
    come = part.stat().st_size
    assert come >= 2_000_000
    if number == signal.SIGKILL:
        assert ended.returncode == -signal.SIGKILL
    else:
        assert ended.returncode == INTERRUPTED
        assert f"are in {part}; the same command goes on from there." in ended.stdout
    got = document(home, *command)
    assert got["moved_bytes"] == got["size_bytes"] - come
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("m.safetensors", "m.safetensors.manifest.json")
    ]


# --- export -----------------------------------------------------------------------------------


def exported(home: Path, source: object, kind: str, path: Path, *more: str) -> Told:
    told = rengo(
        *("models", "export", source, "--format", kind, "--output", path), *more, home=home
    )
    assert told.code == DONE, told
    return told


def test_safetensors_for_the_library(home: Path, model: Path, tmp_path: Path) -> None:
    told = exported(home, model, "safetensors", tmp_path / "own.safetensors")
    assert "as this site's server signed it" in told.out
    found = safetensors.torch.load_file(tmp_path / "own.safetensors")
    for name, array in read_safetensors(model).arrays().items():
        assert np.array_equal(found[name].numpy(), array), name


def test_a_state_dict_for_torch(
    home: Path, finished: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    exported(home, f"{finished['run_id']}:3", "torch", tmp_path / "m.pt")
    module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    module.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True), strict=True)
    task = load_task("digits")
    _, (images, labels) = task.data(Device("device-3", role="evaluator"))  # type: ignore[misc]
    with torch.no_grad():
        found = module(torch.from_numpy(images)).argmax(1).numpy()
    assert float((found == labels).mean()) == pytest.approx(finished["accuracy"], abs=1e-9)


def test_onnx_for_onnxruntime(home: Path, model: Path, tmp_path: Path) -> None:
    told = exported(home, model, "onnx", tmp_path / "m.onnx")
    assert "onnxruntime differs from torch by at most " in told.out
    assert "examples of task digits" in told.out
    task = load_task("digits")
    _, (images, _) = task.data(Device("device-3", role="evaluator"))  # type: ignore[misc]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.no_grad():
        wanted = TorchEngine(task).load_module(read_safetensors(model))(torch.from_numpy(images))
    assert np.abs(found - wanted.numpy()).max() <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_onnx_of_a_task_from_a_file_by_the_readme_s_line(home: Path, tmp_path: Path) -> None:
    lines = "\n".join(pages.blocks("README.md")).splitlines()
    (words,) = (line.split() for line in lines if "--format onnx" in line)
    spec = words[words.index("--task") + 1]
    place = tmp_path / "moons.safetensors"
    with place.open("wb") as out:
        write_safetensors(load_task(spec).initial_weights(0), out)
    argv = [str(place) if word == "RUN:VERSION" else word for word in words[1:]]
    told = rengo(*argv, "--output", tmp_path / "m.onnx", home=home)
    assert told.code == DONE, told
    assert "onnxruntime differs from torch by at most " in told.out


def test_a_tampered_file_is_not_exported(home: Path, model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    manifest_path(bad).write_bytes(manifest_path(model).read_bytes())
    told = rengo("models", "export", bad, "--format", "torch", home=home)
    assert told.code != DONE
    assert "its sha256 is" in told.line
    assert len(list(tmp_path.iterdir())) == 2


def test_a_model_is_not_written_over(home: Path, model: Path) -> None:
    before = model.read_bytes()
    told = rengo(
        *("models", "export", model, "--format", "safetensors", "--output", model), home=home
    )
    assert told.code == USAGE
    assert "holds a model already" in told.line
    assert model.read_bytes() == before


def test_without_the_extra_it_is_named(home: Path, model: Path, tmp_path: Path) -> None:
    told = rengo(
        *("models", "export", model, "--format", "onnx", "--output", tmp_path / "m.onnx"),
        home=home,
        environment=without(tmp_path / "site", ["onnxruntime"]),
    )
    assert told.code == USAGE
    assert told.line == (
        "onnxruntime is not installed; install it with: pip install 'rengo[export]'"
    )
    assert not (tmp_path / "m.onnx").exists()


# --- import -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exported_file_begins_a_run_as_good_as_it_was(
    dtype: torch.dtype, home: Path, finished: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    exported(home, model, "safetensors", tmp_path / "own.safetensors")
    found = safetensors.torch.load_file(tmp_path / "own.safetensors")
    foreign = {name: tensor.to(dtype) for name, tensor in reversed(found.items())}
    safetensors.torch.save_file(foreign, tmp_path / "foreign.safetensors")
    run = document(
        home,
        *("models", "import", str(tmp_path / "foreign.safetensors"), "digits"),
        *("--rounds", "1", "--set", "models.keep=5", "--output", str(tmp_path)),
    )
    first = weights_of(home, f"{run['run_id']}:0", tmp_path)
    assert np.array_equal(first.vector, read_safetensors(model).vector)
    assert accuracy(first) == pytest.approx(finished["accuracy"], abs=1e-9)
    shown = document(home, "models", "show", f"{run['run_id']}:0")
    assert shown["manifest"]["parent"] is None, "nothing says where a foreign file comes from"
    assert run["accuracy"] > finished["accuracy"] - 0.1


def test_half_precision_is_taken(home: Path, model: Path, tmp_path: Path) -> None:
    own = {name: torch.from_numpy(a.copy()) for name, a in read_safetensors(model).arrays().items()}
    kinds = (torch.float16, torch.bfloat16, torch.float16, torch.bfloat16)
    foreign = {name: own[name].to(kind) for name, kind in zip(own, kinds, strict=True)}
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file(foreign, path)
    run_id = submitted(rengo("run", "digits", "--from", path, "--rounds", "1", home=home))
    first = weights_of(home, f"{run_id}:0", tmp_path)
    for name, array in first.arrays().items():
        assert np.array_equal(array, foreign[name].float().numpy()), name
    assert first.layout == read_safetensors(model).layout


@pytest.mark.parametrize("source", ["a name", "a fetched file"])
def test_a_version_of_this_site_is_the_parent_of_what_begins_with_it(
    source: str, home: Path, finished: dict[str, Any], model: Path
) -> None:
    name = f"{finished['run_id']}:3" if source == "a name" else str(model)
    run_id = submitted(rengo("run", "digits", "--from", name, "--rounds", "1", home=home))
    shown = document(home, "models", "show", f"{run_id}:0")
    assert shown["manifest"]["parent"] == {
        "run_id": finished["run_id"],
        "version": 3,
        "sha256": finished["model_sha256"],
    }
    assert shown["manifest"]["sha256"] == finished["model_sha256"]


def test_what_does_not_match_is_listed_and_no_run_begins(
    home: Path, model: Path, tmp_path: Path
) -> None:
    arrays = read_safetensors(model).arrays()
    other = {
        "0.weight": arrays["0.weight"].T,
        "0.bias": np.zeros(32, np.int64),
        "2.weight": arrays["2.weight"],
        "3.bias": arrays["2.bias"],
    }
    path = tmp_path / "other.safetensors"
    with path.open("wb") as file:
        write_safetensors(Weights.from_arrays(other), file)
    before = run_ids(home)
    for command in (("models", "import", path, "digits"), ("run", "digits", "--from", path)):
        told = rengo(*command, home=home)
        assert told.code == USAGE
        assert told.lines == [
            f"rengo: {path} does not fit the model of task digits:",
            "  missing     2.bias: F32 [10]",
            "  unexpected  3.bias: F32 [10]",
            "  shape       0.weight: F32 [64, 32], the model has F32 [32, 64]",
            "  type        0.bias: I64 [32], the model has F32 [32]",
        ]
    assert run_ids(home) == before


def test_a_file_that_is_not_safetensors(home: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "m.pt")
    told = rengo("models", "import", tmp_path / "m.pt", "digits", home=home)
    assert told.code == USAGE
    assert told.line.startswith("not a safetensors file that can be taken: ")


def test_from_python_a_model_of_another_site(
    finished: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(model.read_bytes())
    wrong = tmp_path / "wrong.safetensors"
    with wrong.open("wb") as file:
        write_safetensors(Weights.from_arrays({"w": np.zeros(3, np.float32)}), file)
    with Site(tmp_path / "site") as site:
        with pytest.raises(Corrupt, match=r"not signed by this site's server.* taken unverified"):
            site.run("digits", initial=model)
        with pytest.raises(Mismatch, match="does not fit the model of task digits"):
            site.run("digits", initial=wrong)
        result = site.run("digits", rounds=1, devices=1, initial=copy, output=tmp_path)
        with site.connect() as client:
            answer = client.call("models_show", {"name": f"{result.run_id}:0"})
    assert answer["manifest"]["sha256"] == finished["model_sha256"]
