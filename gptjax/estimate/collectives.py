"""The collectives of a compiled program, read from its HLO text: what kind, how often, how many bytes, between whom.

An instruction inside a loop runs as often as the loop does; XLA's own cost analysis counts it once.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

KINDS = "all-gather|all-reduce|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf" ({KINDS})(-start)?\(")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
LIMIT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
BETWEEN_SLICES = re.compile(r" send\(.*_xla_megascale_target=\"\{([\d,:]+)\}.*_xla_megascale_transfer_type=\"(\w+)\"")
BITS = re.compile(r"(?:pred|[a-z]+(\d+))")
Group = tuple[int, ...]


@dataclass(frozen=True)
class Collective:
    """One collective instruction; `runs` of it a call of the program, each over `bytes` for each group of devices.

    bytes: of the whole array that a device ends with (gather, reduce, exchange) or begins with (reduce-scatter).
    groups: partitions that exchange with each other, or (source, target) pairs of a permute; none: not understood.
    slices: that exchange over the network, chip by chip; the program is then that of one slice (TPU).
    """

    kind: str
    runs: int
    bytes: int
    groups: tuple[Group, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        return max((len(group) for group in self.groups), default=0)


def collectives(hlo: str, devices: int) -> tuple[list[Collective], int]:
    """List the collectives of a compiled program of so many partitions, and count the loops of unknown length.

    Such a loop counts as run once.
    """
    computations, runs, unknown = executed(hlo)
    found: list[Collective] = []
    chains: dict[str, Collective] = {}  # TPU: an asynchronous one is written again in each fusion that it overlaps
    for name, body in computations.items():
        for chain, collective in _in_computation(name, body, runs[name], devices):
            if not chain:
                found.append(collective)
            elif chain not in chains or collective.runs < chains[chain].runs:
                chains[chain] = collective
    return [*found, *chains.values()], unknown


def executed(hlo: str) -> tuple[dict[str, list[str]], dict[str, int], int]:
    """Return a program's computations as lines, how often each runs in a call, and the loops of unknown length."""
    computations = dict(_computations(hlo))
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    unknown = 0
    for name, body in computations.items():
        for line in body:
            if " async-done(" in line or " async-update(" in line:  # they name what their start calls
                continue
            times = _trips(line, computations) if " while(" in line else 1
            unknown += times is None
            for how, callee in CALLED.findall(line):
                callers[callee].append((name, (times or 1) if how == "body" else 1))
            for callee in (c.strip(" %") for names in BRANCHES.findall(line) for c in names.split(",")):
                callers[callee].append((name, 1))

    @cache
    def runs(name: str) -> int:
        return sum(runs(caller) * times for caller, times in callers[name]) if callers[name] else 1

    return computations, {name: runs(name) for name in computations}, unknown


def axes_of(groups: tuple[Group, ...], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Name the mesh axes along which the devices of a group differ."""
    coordinates = np.array(np.unravel_index(np.arange(math.prod(mesh.values())), tuple(mesh.values())))
    crossed = [np.ptp(coordinates[:, list(group)], axis=1) > 0 for group in groups]
    return tuple(axis for axis, over in zip(mesh, np.any(crossed, axis=0), strict=True) if over) if crossed else ()


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    name = ""
    body: list[str] = []
    for line in hlo.splitlines():
        if not line.startswith(" ") and (match := COMPUTATION.match(line)):
            name, body = match[2], []
        elif line.startswith("}") and name:
            yield name, body
            name = ""
        elif name:
            body.append(line)


def _trips(line: str, computations: Mapping[str, list[str]]) -> int | None:
    """Return how often a loop runs: as the compiler notes it, else the one constant that ends its counter."""
    if match := TRIPS.search(line):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    limits = [m[1] for text in computations.get(condition[1], []) if (m := LIMIT.search(text))] if condition else []
    return int(limits[0]) if len(limits) == 1 else None


def _in_computation(name: str, body: list[str], runs: int, devices: int) -> Iterator[tuple[str, Collective]]:
    """Give the collectives written in a computation, and the label of the chain that an asynchronous one is part of."""
    for text in body:
        if match := BETWEEN_SLICES.search(text):
            yield "", _between_slices(text, match, runs)
        match = COLLECTIVE.search(text)
        if not match:
            continue
        kind, start = match[1], bool(match[2])
        shapes = text[text.index(" = ") + 3 : match.start()]
        sizes = [_bytes(*array) for array in ARRAY.findall(shapes)]
        size, groups = sum(sizes), _groups(text, devices)
        members = max((len(group) for group in groups), default=1)
        if kind in ("all-gather", "reduce-scatter") and start:  # (inputs, outputs), the whole and a share of it
            size = size * members // (members + 1)
        elif kind == "all-reduce" and shapes.startswith("(("):  # from jax 0.11 on: (inputs, outputs)
            size //= 2
        elif kind == "collective-permute" and start:  # (input, output, contexts)
            size = sizes[0]
        elif kind == "reduce-scatter":
            size *= members
        elif name.startswith("all-reduce-scatter"):  # TPU: an all-reduce of which each device keeps a share
            kind = "reduce-scatter"
        chain, channel = re.search(r'chain_id="(\d+)"', text), re.search(r"channel_id=(\d+)", text)
        yield f"{chain[1]}/{channel and channel[1]}" if chain else "", Collective(kind, runs, size, groups)


def _between_slices(text: str, match: re.Match[str], runs: int) -> Collective:
    """Read a transfer that each chip of a slice hands to its host, for the slices written as 1,2 or 0:3."""
    first, _, last = match[1].partition(":")
    slices = int(last) - int(first) + 1 if last else len(first.split(","))
    kind = match[2].lower().replace("_", "-").replace("one-to-one", "collective-permute")
    size = _bytes(*ARRAY.findall(text[text.index(" = ") : match.start()])[0])
    return Collective(kind, runs, size * slices if kind == "all-gather" else size, (), slices)


def _bytes(kind: str, shape: str) -> int:
    match = BITS.match(kind)
    bits = int(match[1] or 8) if match else 0
    return math.ceil(bits * math.prod(int(n) for n in shape.split(",") if n) / 8)


def _groups(text: str, devices: int) -> tuple[Group, ...]:
    """Read replica groups in any of the four ways that XLA writes them, or the pairs of a permute."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}", text):
        listed = re.findall(r"\{([\d,]+)\}", match[1])
        return tuple(tuple(int(n) for n in group.split(",")) for group in listed) or (tuple(range(devices)),)
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        members = int(match[1].rpartition(",")[2])
        return tuple(map(tuple, _ids(match[2]).reshape(-1, members).tolist()))
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? ?\{([^}]*)\}"
    if match := re.search(mesh, text):
        return _mesh_groups(match[1], match[2], match[3])
    return ()


def _ids(order: str) -> np.ndarray:
    """Return the partitions in the order that "[4,2]T(1,0)" writes down: counted over (4, 2), then transposed."""
    dims, _, axes = order.partition("T")
    shape = [int(n) for n in dims.strip("[]").split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(n) for n in axes.strip("()").split(",")]) if axes else ids


def _mesh_groups(mesh: str, order: str | None, axes: str) -> tuple[Group, ...]:
    """Read groups along axes of a named mesh: 'a'=8,'b'=2 and 'a', or 'a':(2)4 for the 4 within its 2 outer parts."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    shape: list[int] = []
    along: list[int] = []
    wanted = {name: (outer, size) for name, outer, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    for name, size in sizes.items():
        outer, inner = wanted.get(name, ("", ""))
        parts = [int(outer), int(inner), size // (int(outer) * int(inner))] if outer else [size]
        if name in wanted:
            along.append(len(shape) + bool(outer))
        shape += parts
    given = _ids(order) if order else np.arange(math.prod(shape))
    ids = np.moveaxis(given.reshape(shape), along, range(-len(along), 0))
    members = math.prod(shape[i] for i in along)
    return tuple(map(tuple, ids.reshape(-1, members).tolist()))
