"""Two real devices of very different speed in one run whose orders are fitted."""

from __future__ import annotations

import json
from pathlib import Path

from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from tests.integration.commands import rengo

FAST, SLOW, STEPS = "fast", "slow", 60
TASK = f"""
import time
from dataclasses import replace

import numpy as np

from fl_client.models.layers import Linear
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task


class Uneven(Task):
    training = TrainingSettings(batch_size=4)

    def model(self):
        return [Linear(4, 2)]

    def data(self, device):
        x = np.random.default_rng(device.index).normal(size=({STEPS} * 4, 4)).astype(np.float32)
        return (x, (x[:, 0] > 0).astype(np.int64)), (x, (x[:, 0] > 0).astype(np.int64))

    def local_update(self, weights, context):
        if context.device.index:
            slowly = replace(context.round, progress=lambda *_: time.sleep(0.05))
            context = replace(context, round=slowly)
        return context.train()
"""


def test_a_slow_device_is_asked_for_fewer_steps_once_its_speed_is_known(tmp_path: Path) -> None:
    file = tmp_path / "uneven.py"
    file.write_text(TASK)
    task, home = f"{file}:Uneven", tmp_path / "home"
    with Site(home) as site:
        specs = [
            DeviceSpec(name, engine="numpy", index=index, count=2)
            for index, name in enumerate((FAST, SLOW))
        ]
        site.start_devices(specs, task)
        with site.connect() as client:
            wait_for_devices(client, (FAST, SLOW), 60.0)
        ran = rengo(
            *("run", task, "--rounds", "3", "--set", "cohort.fit=time", "--json", "-"), home=home
        )
        assert ran.code == 0, ran
        run_id = json.loads(ran.out)["run_id"]
        run = json.loads(rengo("runs", "show", run_id, "--json", "-", home=home).out)
        table = rengo("runs", "show", run_id, home=home).out
    first, *later = [row["ordered_steps"] for row in run["history"]]
    assert first == {FAST: 8, SLOW: 8}
    for ordered in later:
        # the target lies between the two: who is faster does all, 0, and who is slower does less
        assert ordered[FAST] == 0
        assert 1 <= ordered[SLOW] < STEPS
    did = {row["id"]: (row["steps"], row["full_steps"]) for row in run["devices"]}
    assert did == {FAST: (STEPS, STEPS), SLOW: (later[-1][SLOW], STEPS)}
    assert "orders fitted to the devices' speed" in table
    assert f"{STEPS} of {STEPS}, " in table
