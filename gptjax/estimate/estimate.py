"""One run on hardware that is not at hand, on a page: does it fit, what does it exchange, how long, at what price."""

from dataclasses import asdict
from typing import Any

from gptjax.config import RunConfig
from gptjax.estimate.compile import Compiled, compile_step
from gptjax.estimate.footprint import Footprint, footprint
from gptjax.estimate.roofline import exchange_seconds, expected_exchanges, roofline
from gptjax.estimate.topology import Topology
from gptjax.mesh import mesh_sizes

Json = dict[str, Any]
CHINCHILLA = 20.0  # tokens per parameter (Hoffmann et al. 2022, Table 3)
DAY = 86400.0
ASSUMED = (
    "a roofline is a bound and no forecast: datasheet speeds, links busy both ways along every dimension that a "
    "collective spans, and no memory traffic but that of state, weights and matmuls"
)


def estimate(config: RunConfig, topology: Topology, tokens: float = 0.0) -> Json:
    """Compile a run's step for a topology and account for it; a state that cannot fit is not compiled.

    tokens: of the whole run; 0 is 20 for each parameter. BadInput where mesh, shapes, batch and chips do not divide,
    or where the TPU compiler is not installed; a GPU without its compiler is answered from shapes alone.
    """
    held = footprint(config, topology.chips, topology.platform)
    hopeless = held.state > memory_of(topology)
    analytic = hopeless or (topology.platform == "cuda" and topology.uncompiled)
    return account(config, topology, held, None if analytic else compile_step(config, topology), tokens)


def memory_of(topology: Topology) -> float:
    """Return the bytes that a program may use: of a GPU, the share that jax takes unless told otherwise."""
    return topology.device.hbm_gib * 2**30 * (0.75 if topology.platform == "cuda" else 1.0)


def account(
    config: RunConfig, topology: Topology, held: Footprint, compiled: Compiled | None, tokens: float = 0.0
) -> Json:
    """Gather what is known of a step, compiled or not, as a JSON object that `describe` prints."""
    n, device = config.model.cost(config.model.context).total, topology.device
    tokens = tokens or CHINCHILLA * n
    sizes = mesh_sizes(config.mesh, topology.chips)
    exchanges = compiled.exchanges if compiled and not compiled.refusal else expected_exchanges(config, sizes, topology)
    line = roofline(config, topology, sizes, held, exchanges)
    fits, why = verdict(topology, held, compiled)
    assumed = max(line.overlapped, line.mfu(1.0) / device.mfu)
    speeds = {"overlapped": line.overlapped, "serial": line.serial, "assumed": assumed}
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": sizes,
        "params": n,
        "context": config.model.context,
        "batch_tokens": config.tokens_per_step,
        "remat": config.execution.remat,
        "dtype": config.model.dtype,
        "accumulate": config.accumulate,
        "fits": fits,
        "why": why,
        "compile_seconds": compiled.seconds if compiled else None,
        "hbm": memory_of(topology),
        "bytes": {**asdict(held), **_compiled_bytes(compiled)},
        "exchanges_compiled": bool(compiled and not compiled.refusal),
        "exchanges": [
            asdict(e) | dict(zip(("link_seconds", "network_seconds"), exchange_seconds(e, topology), strict=True))
            for e in exchanges
        ],
        "unknown_loops": compiled.unknown_loops if compiled else 0,
        "flops": {"model": line.flops, "executed": line.executed},
        "seconds": {part: getattr(line, part) for part in ("compute", "hbm", "links", "network")},
        "run_tokens": tokens,
        "usd_per_hour": device.usd_per_hour,
        "speeds": {
            how: {
                "seconds": seconds,
                "mfu": line.mfu(seconds),
                "tokens_per_day": config.tokens_per_step / seconds * DAY,
                "days": (days := tokens / config.tokens_per_step * seconds / DAY),
                "usd": 24 * days * topology.chips * device.usd_per_hour,
            }
            for how, seconds in speeds.items()
        },
    }


def _compiled_bytes(compiled: Compiled | None) -> Json:
    if compiled is None:
        return {}
    if compiled.refusal:
        return {"refused": compiled.peak}
    return {name: getattr(compiled, name) for name in ("arguments", "temporaries", "outputs", "code", "peak")}


def verdict(topology: Topology, held: Footprint, compiled: Compiled | None) -> tuple[bool | None, str]:
    """Say whether a step fits, and who says so; None where shapes alone cannot tell."""
    room = memory_of(topology)
    if held.state > room:
        return False, f"weights and moments alone are {gib(held.state)} of {gib(room)}"
    if compiled is None:
        return None, f"not compiled ({topology.uncompiled}); weights and moments are {gib(held.state)} of {gib(room)}"
    if compiled.refusal:
        return False, f"the compiler refuses: {compiled.refusal}"
    return compiled.peak <= room, f"peak {gib(compiled.peak)} of {gib(room)}, as compiled"


def gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def describe(e: Json) -> str:
    """Lay an estimate out on a page."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in e["mesh"].items() if size > 1) or "one chip"
    said = {True: "FITS", False: "DOES NOT FIT", None: "NOT COMPILED"}[e["fits"]]
    batch = f"{e['batch_tokens']:,} tokens a step in windows of {e['context']:,}"
    lines = [
        f"{e['params']:,} parameters on {e['topology']} ({e['chips']} chips): {mesh}",
        f"{batch}, {e['dtype']}, remat {e['remat']}, accumulate {e['accumulate']}",
        f"{said}: {e['why']}",
    ]
    if e["compile_seconds"] is not None:
        lines.append(f"traced and compiled in {e['compile_seconds']:.0f} s")
    lines += ["", *_table(["bytes on a chip", "GiB"], _memory(e))]
    rows = [
        [
            x["kind"],
            " x ".join(x["axes"]) or "?",
            f"{x['count']:,}" if e["exchanges_compiled"] else "",
            f"{x['bytes'] / 1e9:,.3f}",
            f"{1e3 * x['link_seconds']:,.1f}",
            f"{1e3 * x['network_seconds']:,.1f}",
        ]
        for x in e["exchanges"]
        if x["bytes"] >= 1e6 or not e["exchanges_compiled"]
    ]
    source = "collectives a step, as compiled" if e["exchanges_compiled"] else "collectives a step, by design"
    lines += ["", *_table([source, "over", "count", "GB", "ms, links", "ms, network"], rows)]
    if e["unknown_loops"]:
        lines.append(f"{e['unknown_loops']} loops of unknown length are counted once")
    flops, parts = e["flops"], {part: f"{1e3 * s:,.1f} ms" for part, s in e["seconds"].items()}
    lines += [
        "",
        f"FLOPs a step: model {flops['model']:.4g}, with recomputation {flops['executed']:.4g}",
        "at least: " + ", ".join(f"{part} {text}" for part, text in parts.items()),
        "",
    ]
    names = {"overlapped": "bound, all overlapped", "serial": "bound, nothing overlapped", "assumed": "table's MFU"}
    rows = [
        [names[how], f"{s['seconds']:.4g}", f"{s['mfu']:.1%}", f"{s['tokens_per_day']:.3g}", _days(s), _usd(s)]
        for how, s in e["speeds"].items()
    ]
    price = f"USD at {e['usd_per_hour']:g} a chip-hour"
    lines += _table(["", "s a step", "MFU", "tokens a day", f"days for {e['run_tokens']:.3g} tokens", price], rows)
    return "\n".join([*lines, "", ASSUMED])


def _memory(e: Json) -> list[list[str]]:
    """Give the rows of memory: what stays, then what the compiler adds to it."""
    b = e["bytes"]
    rows = [("weights", b["weights"]), ("optimizer's moments", b["moments"]), ("batch", b["batch"])]
    if "peak" in b:
        rows += [
            ("gradients and temporaries", b["temporaries"]),
            ("output beyond the donated state", b["outputs"]),
            ("program", b["code"]),
            ("peak", b["peak"]),
        ]
    else:
        rows.append(("gradients, if all are held", b["gradients"]))
    return [[name, f"{size / 2**30:,.3f}"] for name, size in [*rows, ("the chip's memory", e["hbm"])]]


def _days(speed: Json) -> str:
    return f"{speed['days']:,.3g}"


def _usd(speed: Json) -> str:
    return f"{speed['usd']:,.0f}"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in [header, *rows]
    ]
