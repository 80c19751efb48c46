"""Bounds on the time of a step: arithmetic, memory and links, each at its datasheet's full speed.

A roofline is a bound and not a forecast: no kernel reaches the peak, and nothing here waits for anything else. The
step takes at least the longest of its parts, if everything overlaps; their sum, if nothing does.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gptjax.config import RunConfig
from gptjax.estimate.compile import Exchange
from gptjax.estimate.footprint import Footprint
from gptjax.estimate.topology import Topology
from gptjax.mesh import outermost


@dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a step takes at least; `flops` are the model's, `executed` those with recomputation."""

    flops: float
    executed: float
    compute: float
    hbm: float
    links: float
    network: float
    mfu_per_second: float  # MFU of a step that takes a second

    @property
    def overlapped(self) -> float:
        return max(self.compute, self.hbm, self.links, self.network)

    @property
    def serial(self) -> float:
        return self.compute + self.hbm + self.links + self.network

    def mfu(self, seconds: float) -> float:
        """Model FLOPs per second as a share of the peak (Chowdhery et al. 2022, App. B)."""
        return self.mfu_per_second / seconds


def roofline(
    config: RunConfig,
    topology: Topology,
    sizes: Mapping[str, int],
    held: Footprint,
    exchanges: Iterable[Exchange],
) -> Roofline:
    """Bound the time of a step on a mesh of these sizes."""
    tokens, device = config.tokens_per_step, topology.device
    model, executed = step_flops(config)
    stages = sizes["pipeline"]
    micro = config.execution.in_flight(stages)
    bubbles = (micro + stages - 1) / micro  # ticks in which a stage works on nothing (Huang et al. 2019, section 2.2)
    links = network = 0.0
    for exchange in exchanges:
        here, there = exchange_seconds(exchange, topology)
        links, network = links + here, network + there
    peak = topology.chips * device.peak_flops_per_s
    return Roofline(
        flops=model * tokens,
        executed=executed * tokens,
        compute=executed * tokens / peak * bubbles,
        hbm=least_traffic(config, sizes, held) / (1e9 * device.hbm_gb_per_s),
        links=links,
        network=network,
        mfu_per_second=model * tokens / peak,
    )


def step_flops(config: RunConfig) -> tuple[float, float]:
    """Return the FLOPs of a token: the model's, and what is computed: all scores of attention, and remat's second time.

    What only the residual sum reads, as an MLP's last matrix in a pre-norm layer, is not repeated.
    """
    c, cost = config.model, config.model.cost(config.model.context, config.execution)
    w = cost.widths
    scores = 4.0 * w.layers * c.context * w.attention
    whole = 6.0 * cost.with_head + 3.0 * scores
    again = {"none": 0.0, "dots": scores, "full": 2.0 * (cost.non_embedding - w.layers * w.unrepeated) + scores}
    return cost.useful, whole + again[config.execution.remat]


def least_traffic(config: RunConfig, sizes: Mapping[str, int], held: Footprint) -> float:
    """Count the bytes that must pass a chip's memory: state, gathered weights, and what matmuls read and write.

    Scores of attention are left out, as a fused kernel keeps them on the chip; so are norms and activations.
    """
    c, cost = config.model, config.model.cost(config.model.context, config.execution)
    w, padded = cost.widths, config.execution.padded(c.vocab_size)
    width = 2 if c.dtype == "bfloat16" else 4
    passes = 3 if config.execution.remat == "full" else 2
    split = sizes["tensor"] * sizes["pipeline"]
    weights = width * cost.with_head / split * passes * config.accumulate
    layer = 6 * w.stream + w.inner + w.activated
    tokens = config.tokens_per_step / math.prod(sizes[axis] for axis in ("data", "fsdp", "context"))
    split_tokens = tokens / split
    activations = width * split_tokens * w.layers * layer * (passes + 1) + 4 * split_tokens * padded * 2
    return 2 * held.state + 2 * held.gradients + weights + activations


def exchange_seconds(e: Exchange, topology: Topology) -> tuple[float, float]:
    """Return the seconds that an exchange needs of a chip's links, and of its share of the network between slices.

    Both ways of every link are in use along each dimension of the torus that the group extends over, and tori are
    taken to close. Between slices a group's chips each carry their share: reduced or gathered inside, then across.
    """
    link = 1e9 * topology.device.link_gb_per_s / 2  # out of a chip; the table has both directions together
    if topology.platform == "tpu":
        link *= max(e.dimensions, 1) / len(topology.shape)
    network = 1e9 * topology.device.network_gb_per_s / 2
    if e.kind == "collective-permute":
        return (0.0, e.bytes / network) if e.slices > 1 else (e.bytes / link, 0.0)
    inside = max(1, (e.devices or topology.chips) / e.slices)  # whose groups are not understood: among all
    twice = 2 if e.kind == "all-reduce" else 1
    here = twice * e.bytes * (inside - 1) / inside / link
    there = twice * e.bytes / inside * (e.slices - 1) / e.slices / network if e.slices > 1 else 0.0
    return here, there


def expected_exchanges(config: RunConfig, sizes: Mapping[str, int], topology: Topology) -> list[Exchange]:
    """List what a layout exchanges by its design, before anything is compiled: to order layouts, not to report them."""
    cost = config.model.cost(config.model.context, config.execution)
    w, width = cost.widths, 2 if config.model.dtype == "bfloat16" else 4
    passes = 3 if config.execution.remat == "full" else 2
    n, split = cost.stored, sizes["tensor"] * sizes["pipeline"]
    rows = config.tokens_per_step // (sizes["data"] * sizes["fsdp"] * sizes["context"])
    stream = rows * w.stream * width * w.layers // sizes["pipeline"]
    keys = rows * sizes["context"] * w.keys * width * w.layers // split
    slices = dict(zip(sizes, outermost(tuple(sizes.values()), topology.slices), strict=True))
    calls = config.accumulate
    ways = (
        (
            "all-gather",
            "fsdp",
            2 * width * n // split * calls,
        ),  # the recomputed forward pass reuses the backward's gather
        ("reduce-scatter", "fsdp", 4 * n // split * calls),
        ("all-reduce", "data", 4 * n // split // sizes["fsdp"]),
        ("all-reduce", "tensor", (4 + 2 * (passes - 2)) * stream),
        ("all-gather", "context", (passes + 1) * keys),
        ("collective-permute", "pipeline", 2 * passes * rows * w.stream * width),
    )
    return [
        Exchange(kind, (axis,), 1, size, sizes[axis], slices[axis], len(topology.shape))
        for kind, axis, size in ways
        if sizes[axis] > 1
    ]
