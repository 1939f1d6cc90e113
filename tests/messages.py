"""One message of every kind and where it travels, for tests of the wire."""

from __future__ import annotations

from typing import Any

import msgpack

from broker.wire.messages import (
    Ancestor,
    Bar,
    Claim,
    ClaimAnswer,
    Compute,
    DataReport,
    Decline,
    DeviceHealth,
    DeviceInfo,
    DeviceState,
    IdentityNotice,
    Message,
    ModelOffer,
    ModelRef,
    ModelRequest,
    NewPassword,
    OperatorReply,
    OperatorRequest,
    Order,
    PasswordKept,
    Patch,
    ProductionDocument,
    Progress,
    Quantity,
    Receipt,
    Request,
    Result,
    RunDocument,
    RunEvent,
    ServerState,
    TaskData,
    TreeMember,
    TreePosition,
    TreeRun,
    TreeSummary,
    UpdateRef,
    UploadRef,
    Usage,
    encode,
)
from broker.wire.topics import Address
from runtime.security.signing import SIGNATURE_BYTES, SecretKey

SHA = "ab" * 32
KEY = SecretKey("5e" * 32)

SAMPLES: dict[str, Message] = {
    message.kind: message
    for message in (
        ServerState(status="online", epoch=3),
        DeviceState(status="ready", boot_id="b-1", role="evaluator", tasks=["digits"]),
        DeviceInfo(
            role="trainer",
            profile="pi",
            engine="numpy",
            cpus=4,
            ram_bytes=1 << 30,
            accelerators=[],
            versions={"numpy": "2.0"},
            tasks=["digits"],
            labels={"room": "Küche"},
            compute=[Compute(name="cuda:0", model="T4", memory_bytes=1 << 34, capability="7.5")],
        ),
        DeviceHealth(
            temperature_c=61.5,
            throttled=["arm-capped"],
            under_voltage=False,
            memory_available_bytes=1 << 28,
            link="wlan0",
            paused="the processor is at 76 °C",
        ),
        DataReport(
            tasks=[
                TaskData(
                    task="pump",
                    min_count=20,
                    examples=400,
                    held_out=80,
                    refused=0,
                    quantities=[
                        Quantity(
                            name="rms",
                            bars=[Bar(name="below 3", count=380), Bar(name="from 3", count=20)],
                            psi_reference=0.31,
                            psi_previous=0.02,
                            by_chance=0.1,
                        )
                    ],
                )
            ]
        ),
        Order(
            epoch=3,
            action="train",
            run_id="digits-1",
            round=2,
            attempt=1,
            task="digits",
            algorithm="fedprox",
            algorithm_settings={"mu": 0.1},
            training={"local_epochs": 5},
            seed=(1 << 63) - 1,
            model=ModelRef(
                url="http://s/m?x=1",
                key="k/m",
                sha256=SHA,
                size_bytes=10,
                patches=[Patch(base_sha256="cd" * 32, changed=[(0, 4), (8, 1 << 40)])],
            ),
            upload=UploadRef(url="http://s/u?x=1", key="k/u"),
            time_left_s=119.5,
        ),
        Decline(action="train", run_id="r", round=1, attempt=1, reason="draining"),
        Progress(run_id="r", round=1, attempt=1, fraction=0.5, loss=None),
        Result(
            action="train",
            run_id="r",
            round=1,
            attempt=2,
            num_examples=100,
            metrics={"loss": 0.25},
            update=UpdateRef(key="k/u", size_bytes=10, header_sha256=SHA),
            usage=Usage(train_s=0.5, bytes_down=1, bytes_up=2, peak_rss_bytes=3),
        ),
        Request(action="evaluate", run_id="r", round=1, attempt=1),
        Receipt(action="train", run_id="r", round=1, attempt=1, status="late", reason="too late"),
        NewPassword(rotation=2, sealed=b"\x00\xff" * 24),
        PasswordKept(rotation=2),
        IdentityNotice(problem="shared"),
        Claim(public_key=KEY.public.text, name="attic"),
        ClaimAnswer(public_key=KEY.public.text, admitted=True, sealed=b"\x01" * 64),
        RunDocument(
            run_id="r",
            task="digits",
            algorithm="fedavg",
            status="running",
            round=1,
            attempt=1,
            rounds=15,
            epoch=3,
            phase="collecting",
            deadline_s=120.0,
            cohort=["d-1", "d-2"],
            answered=["d-1"],
            model_sha256=SHA,
            accuracy=0.9,
            loss=None,
        ),
        RunEvent(run_id="r", name="RoundStarted", round=1, attempt=1, detail={"cohort": ["d-1"]}),
        ProductionDocument(task="digits", manifest=b"{\xff}", promotion=4, epoch=3),
        ModelRequest(task="digits", sha256=SHA),
        ModelOffer(
            task="digits",
            model=ModelRef(url="http://s/m?x=1", key="k/m", sha256=SHA, size_bytes=10),
        ),
        OperatorRequest(request_id="q", operation="runs_ls", arguments={"a": [1, {"b": None}]}),
        OperatorReply(request_id="q", result={"runs": []}, error="no", exit_code=2),
        TreePosition(version=1, ancestors=[Ancestor(domain="lab", server=KEY.public.text)]),
    )
}

EXCHANGE = Order(
    epoch=3,
    action="exchange",
    run_id="sum-1",
    round=2,
    attempt=1,
    phase="share-keys",
    seq=(1 << 31) - 1,
    task="digits",
    algorithm="fedavg",
    algorithm_settings={},
    training={},
    seed=7,
    time_left_s=30.0,
    payload=b"\x00\xff" * 100,
)
EXCHANGED = Result(
    action="exchange",
    run_id="sum-1",
    round=2,
    attempt=1,
    phase="share-keys",
    seq=(1 << 31) - 1,
    num_examples=0,
    metrics={"norm": 0.5},
    update=None,
    usage=Usage(train_s=0.5),
    payload=b"\xff\x00",
)
DOMAIN_INFO = DeviceInfo(
    role="trainer",
    profile="domain",
    engine="none",
    cpus=2,
    ram_bytes=1 << 30,
    accelerators=[],
    versions={},
    tasks=["digits"],
    tree=TreeSummary(
        server=KEY.public.text,
        devices=2,
        online=1,
        domains=1,
        depth=2,
        versions={"0.1": 2},
        refused=3,
        runs=[TreeRun(run_id="r", round=1, phase="collecting", cohort=2, answered=1)],
        members=[
            TreeMember(path=["floor"], status="ready", domain=True),
            TreeMember(path=["floor", "d-1"], status="late"),
        ],
    ),
)
EVERY = (*SAMPLES.values(), EXCHANGE, EXCHANGED, DOMAIN_INFO)


def address_of(message: Message, identity: str = "d-1") -> Address:
    """Return the address at which a message of this kind travels."""
    area, leaf = message.channel
    return Address("home", area, "" if area == "server" else identity, leaf)  # type: ignore[arg-type]


def wire(message: Message, sender: str = "d-1", key: SecretKey = KEY) -> bytes:
    """Return the message as ``sender`` would send it."""
    return encode(
        message,
        address_of(message),
        key,
        sender=sender,
        boot_id="boot",
        seq=7,
        sent_ms=1_700_000_000_000,
    )


def content(message: Message, sender: str = "d-1") -> bytes:
    """Return the envelope on the wire, without the signature before it."""
    return wire(message, sender)[SIGNATURE_BYTES:]


def signed(data: bytes, address: Address, key: SecretKey = KEY) -> bytes:
    """Return what somebody with ``key`` could send in place of an envelope."""
    return key.sign(address.topic.encode() + b"\0" + data) + data


def envelope(message: Message, **changes: Any) -> dict[str, Any]:
    """Return the envelope as plain data, with changes."""
    plain: dict[str, Any] = msgpack.unpackb(content(message))
    return {**plain, **changes}
