"""A Raspberry Pi trains and downloads a slice of the model that torch edges train whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import algorithms
from fl_client.models.layers import Linear, ReLU, initial_weights
from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.store.s3 import S3Store
from storage.versions.keys import RunKeys
from storage.weights import stored_size
from tests.chaos.arena import wait_for
from tests.integration.commands import rengo
from tests.objects import beside_in

PI, EDGES, ROUNDS, WIDTH = "pi-1", ("edge-1", "edge-2"), 3, 0.25
LAYERS = [Linear(64, 256), ReLU(), Linear(256, 256), ReLU(), Linear(256, 10)]
TASK = f"""
from fl_client.models.layers import Linear, ReLU
from fl_client.tasks.digits import Digits


class WideDigits(Digits):
    def model(self):
        return {LAYERS!r}
"""


def test_a_pi_trains_a_quarter_of_each_layer(tmp_path: Path) -> None:
    file = tmp_path / "wide.py"
    file.write_text(TASK)
    task, home = f"{file}:WideDigits", tmp_path / "home"
    with Site(home) as site:
        specs = [
            DeviceSpec(PI, profile="pi", engine="numpy", index=0, count=3),
            *(
                DeviceSpec(name, engine="torch", index=index, count=3)
                for index, name in enumerate(EDGES, 1)
            ),
        ]
        site.start_devices(specs, task)
        with site.connect() as client:
            wait_for_devices(client, (PI, *EDGES), 60.0)
        settings = ("algorithm.name=heterofl", f"algorithm.widths.pi={WIDTH}")
        options = [f"--set={each}" for each in (*settings, "training.learning_rate=0.1")]
        ran = rengo("run", task, "--rounds", str(ROUNDS), *options, "--json", "-", home=home)
        assert ran.code == 0, ran
        told = json.loads(ran.out)
        table = rengo("runs", "show", told["run_id"], home=home).out
        store, keys = S3Store(site.store.settings), RunKeys("default", told["run_id"])
        versions = range(ROUNDS - 2, ROUNDS + 1)
        wait_for(lambda: not beside_in(store, keys, versions), "only versions are left")
    devices = {each["id"]: each for each in told["devices"]}
    assert_narrow(devices)
    assert f"{WIDTH} of the model" in table
    assert told["accuracy"] > 0.8


def assert_narrow(devices: dict[str, dict[str, Any]]) -> None:
    """See that the Pi moved a part of the model's size, and the edges all of it."""
    layout = initial_weights(LAYERS, 0).layout
    part = algorithms.load("heterofl", {"widths": {"pi": WIDTH}}).part(WIDTH, 1, layout)
    assert part is not None
    whole, small = stored_size(layout), stored_size(part.part)
    assert small < 0.11 * whole
    pi = devices[PI]
    assert (pi["profile"], pi["engine"], pi["width"], pi["rounds"]) == (
        "pi",
        "numpy",
        WIDTH,
        ROUNDS,
    )
    assert pi["bytes_down"] == ROUNDS * small
    # a run of zeros is not sent
    assert 0 < pi["bytes_up"] < ROUNDS * (small + 2000)
    for name in EDGES:
        edge = devices[name]
        assert (edge["engine"], edge["width"], edge["rounds"]) == ("torch", 1.0, ROUNDS)
        # it fetches the last version too, to measure it
        assert edge["bytes_down"] == (ROUNDS + 1) * whole
        assert pi["bytes_up"] < 0.12 * edge["bytes_up"]
