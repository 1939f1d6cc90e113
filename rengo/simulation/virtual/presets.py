"""Kinds of devices by name, each with where its figures come from. Pure.

Shared by all. A figure that is called an estimate was not measured by anybody we can name.

- Arithmetic: the published Linpack results in double precision of ``top500-benchmark``
  (https://github.com/geerlingguy/top500-benchmark, in 2025), with the power that was measured at
  the wall meanwhile. Training in single precision with small batches reached 0.7 to 1.6 times a
  machine's rate of double-precision products with Rengo's numpy engine (2NN, batches of 10 and 50,
  one thread of an x86 server, measured in November 2026), so the factor is taken as 1.
- Links: the means of the Speedtest Global Index of September 2020: fixed 85.73 Mbit/s down, 45.74
  up, 21 ms; mobile 35.96 down, 11.22 up, 40 ms. Half a round trip is the latency.
- Energy of links: Huang et al., "A Close Examination of Performance and Power Characteristics of 4G
  LTE Networks", MobiSys 2012, table 4: Wi-Fi 137.01 mW per Mbit/s down and 283.17 up, LTE 51.97 and
  438.39; 1 mW per Mbit/s is 8e-9 J a byte.
- How devices of a kind differ is an estimate throughout.
"""

from __future__ import annotations

from rengo.simulation.virtual.devices import DeviceModel

_MBIT = 1e6 / 8
_MW_PER_MBPS = 8e-9
_WIFI = {"down_j_per_byte": 137.01 * _MW_PER_MBPS, "up_j_per_byte": 283.17 * _MW_PER_MBPS}
_LTE = {"down_j_per_byte": 51.97 * _MW_PER_MBPS, "up_j_per_byte": 438.39 * _MW_PER_MBPS}
_FIXED = {
    "down_bytes_per_s": 85.73 * _MBIT,
    "up_bytes_per_s": 45.74 * _MBIT,
    "latency_s": 0.0105,
}
_VARIED = {"speed_sigma": 0.1, "link_sigma": 0.5, "jitter_sigma": 0.1}

PI_ZERO_2 = DeviceModel(
    flops_per_s=0.37e9,
    step_s=0.003,
    start_s=2.0,
    **{**_FIXED, "down_bytes_per_s": 40 * _MBIT, "up_bytes_per_s": 40 * _MBIT},
    train_w=2.1,
    **_WIFI,
    **_VARIED,
)
"""Raspberry Pi Zero 2 W: 0.370 Gflop/s at 2.1 W, published. Its Wi-Fi, on 2.4 GHz alone, limits the
link to 40 Mbit/s; that, ``step_s`` and ``start_s`` are estimates."""

PI_4 = DeviceModel(
    flops_per_s=11.889e9 / 4,
    step_s=0.001,
    start_s=1.0,
    **_FIXED,
    train_w=7.2,
    **_WIFI,
    **_VARIED,
)
"""Raspberry Pi 4 at 1.8 GHz: 11.889 Gflop/s at 7.2 W on four cores, published; it trains on one, as
the runner's profile has it. ``step_s`` and ``start_s`` are estimates."""

PHONE = DeviceModel(
    flops_per_s=30.249e9 / 4,
    step_s=0.0005,
    start_s=1.0,
    down_bytes_per_s=35.96 * _MBIT,
    up_bytes_per_s=11.22 * _MBIT,
    latency_s=0.020,
    train_w=3.0,
    **_LTE,
    battery_j=69_300,
    recharge_w=10.0,
    online_s=1800.0,
    offline_s=7200.0,
    **{**_VARIED, "speed_sigma": 0.5, "link_sigma": 0.8},
)
"""A phone on LTE: one Cortex-A76 core, of which four did 30.249 Gflop/s in a Raspberry Pi 5,
published. 5,000 mAh at 3.85 V. It is there for half an hour at the mean, so that about 8% leave
within 150 s: Bonawitz et al., "Towards Federated Learning at Scale", 2019, section 9, saw 6 to 10%
drop out of rounds of 2 to 3 minutes. Power, ``step_s``, ``start_s``, ``offline_s`` and charging are
estimates."""

EDGE_CPU = DeviceModel(
    flops_per_s=37.224e9,
    step_s=0.0002,
    start_s=0.5,
    **_FIXED,
    train_w=16.0,
    **_VARIED,
)
"""A small x86 computer with an Intel N100: 37.224 Gflop/s at 16 W on all four cores (Radxa X4),
published. ``step_s`` and ``start_s`` are estimates."""

GPU = DeviceModel(
    flops_per_s=1.27e12,
    step_s=0.0005,
    start_s=2.0,
    **_FIXED,
    train_w=170.0,
    **_VARIED,
)
"""A GeForce RTX 3060: 12.7 Tflop/s in single precision at 170 W by its vendor. That small batches
reach a tenth of it, ``step_s`` and ``start_s`` are estimates."""

PRESETS: dict[str, DeviceModel] = {
    "pi-zero-2": PI_ZERO_2,
    "pi-4": PI_4,
    "phone": PHONE,
    "edge-cpu": EDGE_CPU,
    "gpu": GPU,
}
