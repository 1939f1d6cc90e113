"""A server on a real broker and store: what operators ask, rightly and wrongly."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from broker.session.publication import Publication
from broker.wire.messages import DeviceInfo, DeviceState
from rengo.operator.client import OperatorClient
from runtime.errors import ConfigError, RunNotCompleted
from storage.weights import Weights, write_safetensors
from tests.integration.broker_fixtures import eventually
from tests.integration.server.site import TOPICS, Site, model, put, said
from tests.messages import SAMPLES


@pytest.mark.parametrize(
    ("operation", "arguments", "said"),
    [
        ("no_such_thing", {}, "no operation 'no_such_thing'; there are: server_info, devices_ls"),
        ("call", {}, "no operation 'call'"),
        ("__init__", {}, "no operation '__init__'"),
        ("server_info", {"more": 1}, "server_info: unknown key 'more'"),
        ("runs_show", {}, "runs_show: 'run_id': Field required"),
        ("runs_show", {"run_id": "A B"}, "'run_id': String should match pattern"),
        ("runs_show", {"run_id": "none"}, "no run 'none'; `rengo runs ls` lists them"),
        ("runs_stop", {"run_id": "none"}, "no run 'none'"),
        ("models_url", {"name": "none"}, "no version"),
        ("devices_ls", {"after": "x" * 65}, "devices_ls: 'after' is no place in a list"),
        (
            "runs_submit",
            {"run_id": "none", "sha256": "0" * 64},
            "run none was not prepared, or too long ago",
        ),
        ("runs_submit", {"run_id": "none"}, "'sha256': Field required"),
        ("runs_prepare", {"definition": {}}, "'size_bytes': Field required"),
        (
            "runs_prepare",
            {"definition": {}, "size_bytes": 1},
            "run definition: 'task': Field required",
        ),
        ("runs_submit", {"run_id": "none", "sha256": "0" * 63}, "'sha256': "),
        (
            "runs_prepare",
            {"definition": {"task": "t"}, "size_bytes": 1 << 40},
            "'size_bytes': ",
        ),
        (
            "runs_prepare",
            {
                "definition": {"task": "t", "algorithm": {"name": "x"}},
                "size_bytes": 1,
            },
            "no algorithm 'x' (`rengo algorithms` lists them)",
        ),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_wrong(
    operation: str, arguments: dict[str, Any], said: str, site: Site
) -> None:
    with pytest.raises(ConfigError) as caught:
        site.call(operation, **arguments)
    assert said in str(caught.value)


def test_a_version_0_that_is_not_there(site: Site) -> None:
    prepared = site.prepare(model())
    with pytest.raises(ConfigError, match=r"000000\.safetensors"):
        site.submit_prepared(prepared, model())
    put(prepared["url"], model())
    assert site.submit_prepared(prepared, model()) == prepared["run_id"]
    assert site.submit_prepared(prepared, model()) == prepared["run_id"]
    assert len(site.call("runs_ls")["runs"]) == 1


def empty_model() -> bytes:
    out = io.BytesIO()
    write_safetensors(Weights.from_arrays({"steps": np.array([1], np.int64)}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("promised", "given", "said"),
    [
        (model(0), model(1), "has sha256"),
        (model(), model()[:-1], "bytes, expected"),
        (model(), model() + b"\0", "bytes, expected"),
        (b"no safetensors at all", None, "weights: "),
        (model()[:-4], None, "its tensors end elsewhere"),
        (model() + b"\0" * 4, None, "its tensors end elsewhere"),
        (empty_model(), None, "no float parameters"),
    ],
)
def test_a_version_0_that_is_damaged(
    promised: bytes, given: bytes | None, said: str, site: Site
) -> None:
    prepared = site.prepare(promised)
    put(prepared["url"], promised if given is None else given)
    with pytest.raises((RunNotCompleted, ConfigError), match=said):
        site.submit_prepared(prepared, promised)
    assert site.call("runs_ls") == {"runs": []}


def test_a_run_that_has_ended_is_not_steered(site: Site) -> None:
    run_id = site.submit()
    assert site.call("runs_pause", run_id=run_id)["status"] == "paused"
    assert site.call("runs_resume", run_id=run_id)["status"] == "running"
    stopped = site.call("runs_stop", run_id=run_id)
    assert (stopped["status"], stopped["reason"]) == ("stopped", "stopped by the operator")
    for operation in ("runs_pause", "runs_resume", "runs_stop"):
        with pytest.raises(ConfigError, match=f"run {run_id} has ended: stopped"):
            site.call(operation, run_id=run_id)


def test_the_devices_come_in_pages(site: Site) -> None:
    session, _ = site.peer()
    info = SAMPLES["device_info"]
    assert isinstance(info, DeviceInfo)
    big = info.model_copy(update={"labels": {str(n): "x" * 100 for n in range(10)}})
    huge = info.model_copy(update={"labels": {str(n): "x" * 2000 for n in range(60)}})
    names = [f"d-{number:03d}" for number in range(150)]
    site.admit(*names)
    for name in names:
        about = huge if name == "d-007" else big
        state = DeviceState(status="ready", boot_id="b", tasks=["digits"])
        for leaf, message in (("info", about), ("state", state)):
            topic = TOPICS.device(name, leaf)
            session.publish(Publication(topic, said(topic, message, name)))
    eventually(lambda: site.call("server_info")["devices_online"] == len(names))
    with OperatorClient(site.place.operator) as client:
        rows = client.devices()
    assert [row.id for row in rows] == names
    assert rows[0].info == big
    assert rows[7].info is None, "one device must not fill the message"
