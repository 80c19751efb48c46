"""From a predicted (N, D, C) to what one would train: shapes near N, learning rate and batch, time and money."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gptjax.devices import Device
from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws.hyper import evaluate
from gptjax.laws.table import Runs, short
from gptjax.models.presets import ROWS, Published
from gptjax.sweep.rules import (
    deepseek_batch_tokens,
    deepseek_lr,
    porian_batch_tokens,
    porian_lr,
    step_law_batch_tokens,
    step_law_lr,
)

Json = dict[str, Any]
FAR = 10.0  # times outside the fitted range from which a fitted rule is called extrapolated
NEAREST = 3
ROUGH = 0.1  # in log: how far a sweep's rates may lie off a power of N
MOST_DEVICES = 1_000_000


def advise(
    params: float,
    tokens: float,
    flops: float,
    *,
    devices: dict[str, Device],
    names: Sequence[str] | None = None,
    count: int = 8,
    hyper: Json | None = None,
    runs: Runs | None = None,
    non_embedding: float | None = None,
) -> Json:
    """Gather what training N parameters on D tokens for C FLOPs asks for, as a JSON object that `describe` prints.

    `hyper` is fit_hyper's object, and `runs` are those of the law's own sweep. `non_embedding` is N without vocabulary
    and positions, which two of the rules want; else it is taken from the share that the nearest preset has. Each device
    of the table, or each named, trains at its assumed MFU, `count` of them together. BadInput for a device that the
    table lacks, and for sizes that are not above 0.
    """
    given = {"params": params, "tokens": tokens, "flops": flops, "count": count}
    for name, value in given.items():
        if not 0 < float(value) < np.inf:
            raise BadInput(f"{name} {value} must be a finite number above 0")
    if count > MOST_DEVICES:
        raise BadInput(f"count {count} is above {MOST_DEVICES:,} devices; give fewer")
    names = list(devices) if names is None else names
    if unknown := [name for name in names if name not in devices]:
        raise BadInput(f"no device is named {unknown[0]!r}; the table has {', '.join(devices)}")
    nearest = nearest_presets(params)
    source = ""
    if non_embedding is None:
        non_embedding = params * layers_share(nearest[0])
        source = f" (share of {nearest[0].name})"
    source = f"{short(non_embedding)} without embeddings{source}"
    return plain(
        {
            **given,
            "tokens_per_param": tokens / params,
            "presets": [{"name": row.name, "params": row.params, "ratio": row.params / params} for row in nearest],
            "rules": [
                *_fitted(hyper, params, tokens),
                *_as_swept(runs, params),
                *_published(params, tokens, non_embedding, source),
            ],
            "costs": [cost(devices[name], flops, count) for name in names],
        }
    )


def nearest_presets(params: float, rows: Iterable[Published] = ROWS) -> list[Published]:
    """Give the three published shapes whose N is nearest by ratio; of shapes with one N, the first."""
    by_size = {row.params: row for row in reversed(list(rows))}
    return sorted(by_size.values(), key=lambda row: abs(np.log(row.params / params)))[:NEAREST]


def layers_share(row: Published) -> float:
    """Give the share of a shape's parameters that lies in its layers, not in vocabulary or positions."""
    counted = row.config.cost(row.config.context)
    return counted.non_embedding / counted.total


def cost(device: Device, flops: float, count: int) -> Json:
    """Give seconds, device-hours and USD of so many FLOPs on so many devices, each at its assumed MFU."""
    seconds = flops / (count * device.flops_per_s)
    hours = seconds * count / 3600
    known = {"device": device.name, "mfu": device.mfu, "usd_per_hour": device.usd_per_hour}
    return known | {"seconds": seconds, "device_hours": hours, "usd": hours * device.usd_per_hour}


def _published(params: float, tokens: float, non_embedding: float, source: str) -> list[Json]:
    """Apply the published rules, each to the N that its paper counts, or as near as one has it."""
    n = non_embedding
    c = f"C = 6ND = {short(6 * n * tokens)}, N = {source}; theirs has attention"
    rows = (
        ("porian", porian_lr(params, tokens), porian_batch_tokens(params, tokens), f"N = {short(params)} as given"),
        ("step-law", step_law_lr(n, tokens), step_law_batch_tokens(n, tokens), f"N = {source}, D = {short(tokens)}"),
        ("deepseek", deepseek_lr(n, tokens), deepseek_batch_tokens(n, tokens), c),
    )
    keys = ("rule", "lr", "batch_tokens", "put_in")
    return [dict(zip(keys, row, strict=True)) | {"extrapolated": False} for row in rows]


def _fitted(hyper: Json | None, params: float, tokens: float) -> list[Json]:
    """Apply the fitted laws; one that was refused gives nothing and its reason."""
    if hyper is None:
        return []
    row: Json = {"rule": "fitted", "put_in": f"N = {short(params)}, D = {short(tokens)}"}
    far = []
    for name, what in (("lr", "rate"), ("batch_tokens", "batch")):
        law = hyper[name]
        row[name], row[f"{name}_log_se"] = None, None
        if law["status"] != "ok":
            row["put_in"] += f"; no law of the {what}: {law['reasons'][0]}"
            continue
        row[name], row[f"{name}_log_se"] = evaluate(law, params, tokens)
        for letter, key, value in (("N", "params", params), ("D", "tokens", tokens)):
            low, high = law["ranges"][key]
            times = max(value / high, low / value)
            side = "above" if value > high else "below"
            if times > FAR:
                far.append(f"{letter} {times:.0f}x {side}")
    note = f"; EXTRAPOLATED, {' and '.join(dict.fromkeys(far))} the cells fitted" if far else ""
    return [row | {"put_in": row["put_in"] + note, "extrapolated": bool(far)}]


def _as_swept(runs: Runs | None, params: float) -> list[Json]:
    """Go on with the rate and the batch of a sweep's own runs, as powers of N; nothing where they are none."""
    if runs is None:
        return []
    lr, batch_tokens = runs.fact("lr"), runs.tokens / runs.fact("steps")
    known = np.isfinite(lr) & np.isfinite(batch_tokens) & (lr > 0)
    sizes = runs.params[known]
    if len(np.unique(sizes)) < 2:
        return []
    row: Json = {"rule": "this sweep", "put_in": f"N = {short(params)}", "extrapolated": False}
    for name, values in (("lr", np.log(lr[known])), ("batch_tokens", np.log(batch_tokens[known]))):
        slope, start = np.polyfit(np.log(sizes), values, 1)
        if np.abs(values - start - slope * np.log(sizes)).max() > ROUGH:
            return []
        row[name] = float(np.exp(start + slope * np.log(params)))
        if name == "lr":
            row["put_in"] += f"; its rates go as N^{slope:.2f}, from {short(sizes.min())} to {short(sizes.max())}"
    if (times := params / sizes.max()) > FAR:
        row |= {"extrapolated": True, "put_in": f"{row['put_in']}; EXTRAPOLATED, N {times:.0f}x above"}
    return [row]


def describe(advice: Json) -> str:
    """Lay an advice out for the terminal."""
    a = advice
    presets = [[p["name"], short(p["params"]), f"{p['ratio']:.2f} N"] for p in a["presets"]]
    rules = []
    for r in a["rules"]:
        steps = f"{a['tokens'] / r['batch_tokens']:,.0f}" if r["batch_tokens"] else "-"
        lr, batch = _number(r, "lr", f"{r['lr'] or 0:.2e}"), _number(r, "batch_tokens", short(r["batch_tokens"] or 0))
        rules.append([r["rule"], lr, batch, steps, r["put_in"]])
    costs = [
        [c["device"], f"{c['mfu']:.0%}", _time(c["seconds"]), f"{c['device_hours']:,.4g}", _money(c["usd"])]
        for c in a["costs"]
    ]
    together = f"on {a['count']} device{'s' * (a['count'] > 1)}"
    lines = [
        *_columns(["nearest shapes", "N", "ratio"], presets),
        "",
        *_columns(["rule", "rate", "batch", "steps", "of"], rules, last_left=True),
        "",
        *_columns([together, "MFU", "time", "device-hours", "USD"], costs),
    ]
    return "\n".join(lines)


def _columns(header: list[str], rows: list[list[str]], last_left: bool = False) -> list[str]:
    """Align a table: the first column left, the others right, a last one of words left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join([*cells[:-1], row[-1] if last_left else cells[-1]]))
    return lines


def _number(row: Json, name: str, text: str) -> str:
    """Write a value with its standard error in per cent, or nothing where its law was refused."""
    if not row[name]:
        return "-"
    log_se = row.get(f"{name}_log_se")
    return text if log_se is None else f"{text} ± {100 * np.expm1(log_se):.0f}%"


def _time(seconds: float) -> str:
    for unit, name in ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.3g} {name}"
    return f"{seconds:.3g} s"


def _money(usd: float) -> str:
    return f"{usd:,.0f}" if usd >= 100 else f"{usd:.2g}" if usd < 1 else f"{usd:.2f}"
