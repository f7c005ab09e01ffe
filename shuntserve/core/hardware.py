"""What a machine is made of: GPUs, the links between them, and the EC2 instance types that carry them.

Rates are *peak* here as the vendor states them for dense arithmetic; the fraction a kernel reaches is a separate,
measured number beside each. All fields are plain numbers in base units (bytes, seconds, FLOP/s), so that a row of a
table is all it takes to add a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from shuntserve.errors import InvalidInput

GIB = 1024**3
GBIT_PER_S = 1e9 / 8
HOURS_PER_MONTH = 730.0
MONTHLY_LOSS = {"<5%": 0.025, "5-10%": 0.075, "10-15%": 0.125, "15-20%": 0.175, ">20%": 0.3}
"""Spot Advisor buckets as the share of machines reclaimed in a month: their middles, 0.3 for the open one."""

# One TCP flow between two instances, outside a cluster placement group (EC2 user guide): 5 Gbit/s.
SINGLE_FLOW_BYTES_PER_S = 5 * GBIT_PER_S


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as a process sees it.

    `flops` maps an arithmetic type (fp16, bf16, fp8, int8, fp4) to dense peak FLOP/s; a missing type is not in the
    tensor cores. `weight_dtypes` are the checkpoint types that the pinned vLLM runs on this GPU.
    """

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flops: Mapping[str, float]
    sms: int
    compute_capability: tuple[int, int]
    bandwidth_efficiency: float
    gemm_efficiency: float
    weight_dtypes: frozenset[str]
    kv_dtypes: frozenset[str]
    tdp_w: float = 0.0
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for label in ("memory_bytes", "bandwidth_bytes_per_s", "bandwidth_efficiency", "gemm_efficiency"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"GPU {self.name}", f"{label} is {value}", "give a positive, finite number")

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def achieved_bandwidth(self) -> float:
        """Bytes per second a streaming kernel reaches."""
        return self.bandwidth_bytes_per_s * self.bandwidth_efficiency


@dataclass(frozen=True, slots=True)
class Link:
    """How the GPUs of one instance reach each other in a ring all-reduce of `n` GPUs.

    NCCL has two ways: LL sends 4 flag bytes with 4 data bytes (half the bandwidth, low latency per hop), Simple uses
    the whole bandwidth and pays more per hop; it takes the faster by its own tables. `bus_bytes_per_s` maps a number
    of GPUs to the bus bandwidth (NCCL's definition: S/t × 2(n-1)/n) that large messages reach.
    """

    name: str
    bus_bytes_per_s: Mapping[int, float]
    hop_ll_s: float
    hop_simple_s: float

    def __hash__(self) -> int:
        return hash(self.name)

    def bus(self, n: int) -> float:
        """Bus bandwidth of an `n`-GPU ring: the entry for the smallest listed count that covers `n`."""
        covering = [count for count in self.bus_bytes_per_s if count >= n]
        return self.bus_bytes_per_s[min(covering) if covering else max(self.bus_bytes_per_s)]

    def all_reduce_s(self, message_bytes: float, n: int) -> float:
        """Seconds of one all-reduce of `message_bytes` over `n` GPUs."""
        if n <= 1 or message_bytes <= 0:
            return 0.0
        hops = 2 * (n - 1)
        wire_s = message_bytes * hops / n / self.bus(n)
        return min(hops * self.hop_ll_s + 2 * wire_s, hops * self.hop_simple_s + wire_s)

    def all_gather_s(self, total_bytes: float, n: int) -> float:
        """Seconds to gather `total_bytes` (all shards together) over `n` GPUs: half an all-reduce."""
        return 0.5 * self.all_reduce_s(total_bytes, n)


@dataclass(frozen=True, slots=True)
class Instance:
    """An EC2 instance type: its GPUs, its network and its price.

    `gpus` may be a fraction (g6f); `gpu` is that part then, as one small GPU.
    """

    name: str
    gpu: Gpu
    gpus: float
    link: Link
    vcpus: int
    memory_bytes: float
    network_bytes_per_s: float
    network_burst_bytes_per_s: float
    ondemand_usd_per_h: float | None = None
    spot_usd_per_h: float | None = None
    interruption: str | None = None
    quota_ondemand: str | None = None
    quota_spot: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def losses_per_h(self) -> float:
        """Rate at which one spot machine is reclaimed, from the Spot Advisor's share reclaimed in a trailing month.

        A lower bound in bad weeks: the Advisor averages over a Region and over machines that were hardly running.
        """
        share = MONTHLY_LOSS.get(self.interruption or "", MONTHLY_LOSS[">20%"])
        return -math.log1p(-share) / HOURS_PER_MONTH

    @property
    def usable_gpus(self) -> int:
        """Number of `gpu`s: a part of a GPU counts as one small GPU."""
        return max(1, int(self.gpus))

    @property
    def flow_bytes_per_s(self) -> float:
        """What one pipeline connection to another instance reaches for a moment: one TCP flow, on network credits.

        "Up to" types earn credits while they send less than their baseline and spend them at the burst rate; stages
        hand over short messages with pauses between. Over an hour `network_bytes_per_s` is all they get.
        """
        return min(SINGLE_FLOW_BYTES_PER_S, max(self.network_bytes_per_s, self.network_burst_bytes_per_s))
