"""What a virtual device is: how fast it computes and sends, what it draws, when it is there. Pure.

A model is the median device of its kind; ``speed_sigma`` and ``link_sigma`` say how the devices of
a kind differ, and ``jitter_sigma`` how one device's training differs from order to order.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Rate: TypeAlias = Annotated[float, Field(gt=0, le=1e18)]
Amount: TypeAlias = Annotated[float, Field(ge=0, le=1e12)]
Sigma: TypeAlias = Annotated[float, Field(ge=0, le=5)]


class DeviceModel(BaseModel):
    """One kind of device.

    Attributes:
        flops_per_s: floating-point operations a second in training; a product and its sum are two.
        step_s: what a training step takes beside its arithmetic.
        start_s: what an order takes before the first step: reading the model and the data.
        examples_per_s: how many examples it trains a second, where that was measured; 0: it is
            worked out of the three above.
        down_bytes_per_s, up_bytes_per_s: of its link.
        latency_s: one way, between the device and the server.
        train_w: what the whole device draws while it trains.
        down_j_per_byte, up_j_per_byte: what its link draws.
        battery_j: a full battery; 0 where it has none.
        battery_floor: below this part of a full battery it declines orders for now.
        recharge_w: how fast the battery fills while it is charged, which is while the device is
            offline, or when the trace says so.
        online_s: the mean time that it is online at a stretch; 0: it always is.
        offline_s: the mean time that it is then offline.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    flops_per_s: Rate = 1e9
    step_s: Amount = 0.0
    start_s: Amount = 0.0
    examples_per_s: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    down_bytes_per_s: Rate = 1e7
    up_bytes_per_s: Rate = 1e7
    latency_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    train_w: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    down_j_per_byte: Annotated[float, Field(ge=0, le=1)] = 0.0
    up_j_per_byte: Annotated[float, Field(ge=0, le=1)] = 0.0
    battery_j: Amount = 0.0
    battery_floor: Annotated[float, Field(ge=0, lt=1)] = 0.2
    recharge_w: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    online_s: Amount = 0.0
    offline_s: Annotated[float, Field(gt=0, le=1e12)] = 3600.0
    speed_sigma: Sigma = 0.0
    link_sigma: Sigma = 0.0
    jitter_sigma: Sigma = 0.0
