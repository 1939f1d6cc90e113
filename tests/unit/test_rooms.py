"""Who holds what in memory, seen from a fresh interpreter; import-linter checks the arrows."""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The agent's process: everything on the device but what the training child alone loads.
TRAINING_CHILD = (
    "fl_client.engines.torch",
    "fl_client.engines._torch",
    "fl_client.tasks.torch_module",
    "fl_client.torch_models.",
)
EXTRAS = (
    *("boto3", "botocore", "matplotlib", "onnx", "onnxruntime", "onnxscript", "psycopg", "scipy"),
    *("sqlalchemy", "torch"),
)
BASE_ROOMS = ("algorithms", "broker", "fl_client", "iot", "rengo", "runtime", "storage")
# Modules of base rooms that belong to an extra; importing one without it says which.
NEEDS_AN_EXTRA = (*TRAINING_CHILD, "rengo.export.torch", "rengo.domain.")

LOADED = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""

HELD = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules.keys() & set(json.loads(sys.argv[2])))))
"""
# What `rengo iot` imports, and what an agent has no use for before something comes: a transfer, a
# bundle, a production model, what a start finds of an earlier one.
WAITING = (
    "rengo.cli.main",
    "rengo.cli.site.roles",
    "iot.runner",
    "iot.settings",
    "fl_client.agent.build",
    "fl_client.agent.status.server",
)
NOT_YET = {
    *("numpy", "urllib3", "venv", "packaging", "xml.sax.saxutils", "pydantic.type_adapter"),
    *(
        "storage.bundles.archive",
        "storage.bundles.bundle",
        "storage.updates.header",
        "storage.versions.manifest",
    ),
    *("storage.updates.info", "storage.weights", "fl_client.bundles.environment"),
    *(
        "fl_client.datasets.settings",
        "fl_client.models.layers",
        "fl_client.tasks.base",
        "fl_client.training.process",
        "rengo.site.folder",
    ),
}

BLOCKED = """
import importlib, json, sys
for name in json.loads(sys.argv[2]):
    sys.modules[name] = None
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
"""


def modules(room: str) -> list[str]:
    """Return every module of a room by its dotted name, those that are programs left out."""
    folder = str(ROOT / room)
    found = (info.name for info in pkgutil.walk_packages([folder], prefix=f"{room}."))
    return [room, *sorted(name for name in found if not name.endswith("__main__"))]


def python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *(json.dumps(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(names: list[str]) -> set[str]:
    return set(json.loads(python(LOADED, names)))


def test_an_agent_that_waits_holds_nothing_for_later() -> None:
    assert json.loads(python(HELD, WAITING, sorted(NOT_YET))) == []


@pytest.mark.parametrize("room", ["fl_server", "iot", "broker", "storage", "algorithms", "runtime"])
def test_a_room_never_loads_torch(room: str) -> None:
    assert "torch" not in loaded_by(modules(room))


def test_the_agent_never_loads_torch() -> None:
    agent = [name for name in modules("fl_client") if not name.startswith(TRAINING_CHILD)]
    assert {"fl_client.agent.agent", "fl_client.tasks.base"} <= set(agent)
    loaded = loaded_by(agent)
    assert "torch" not in loaded
    assert loaded.isdisjoint({"boto3", "botocore", "sqlalchemy"})


def test_the_torch_engine_does_load_torch() -> None:
    assert "torch" in loaded_by(["fl_client.engines.torch"])


@pytest.mark.parametrize("room", BASE_ROOMS)
def test_the_base_install_is_enough_to_import(room: str) -> None:
    python(BLOCKED, [name for name in modules(room) if not name.startswith(NEEDS_AN_EXTRA)], EXTRAS)


def test_a_blocked_extra_is_noticed() -> None:
    with pytest.raises(AssertionError, match="torch"):
        python(BLOCKED, ["fl_client.engines.torch"], EXTRAS)


def classes() -> dict[str, list[str]]:
    """Return the files that define each class of the product, by the class's name."""
    found: dict[str, list[str]] = {}
    for room in ("fl_server", *BASE_ROOMS):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    return found


def test_no_two_classes_share_a_name() -> None:
    found = classes()
    assert found["Child"] == ["runtime/processes/child.py"]
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


# One breach of each contract; the contract's name is what lint-imports prints.
BREACHES = {
    "Imports go down": ("runtime/planted.py", "import broker.wire.topics"),
    "holds nothing of the server": ("iot/planted.py", "import fl_server.rounds.events"),
    "An algorithm knows weights": ("algorithms/planted.py", "import broker.wire.topics"),
    "Pure rooms": ("fl_server/selection/planted.py", "import time"),
    "never import torch": ("storage/planted.py", "import torch"),
    "storage: every module has its layer": ("storage/nowhere.py", "x = 1"),
    "No circles": ("storage/store/objects.py", "import storage.store.s3"),
    "needs neither boto3": ("broker/planted.py", "import boto3"),
}


def lint_imports(folder: Path) -> list[str]:
    """Return the verdicts on the contracts, one a line, as lint-imports words them."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-cache"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "400"},
        check=False,
    )
    lines = (re.sub(r" \(.* ignored imports?\)$", "", line) for line in done.stdout.splitlines())
    verdicts = [line for line in lines if line.endswith((" KEPT", " BROKEN"))]
    assert verdicts, done.stdout + done.stderr
    return verdicts


def test_the_contracts_hold() -> None:
    assert [line for line in lint_imports(ROOT) if line.endswith("BROKEN")] == []


def test_the_contracts_can_be_broken(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for room in ("fl_server", *BASE_ROOMS):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path, line in BREACHES.values():
        with (tmp_path / path).open("a") as module:
            module.write(line + "\n")
    verdicts = lint_imports(tmp_path)
    for name in BREACHES:
        assert any(name in line and line.endswith("BROKEN") for line in verdicts), name
