"""What a law shows of itself as a table and in a notebook."""

from collections.abc import Mapping
from html import escape
from typing import Any

from gptjax.laws.approaches import BY_NAME, BY_TRUST
from gptjax.laws.frames import as_html
from gptjax.laws.record import Analysis, Found


def summary(law: Analysis) -> list[dict[str, Any]]:
    """Give a row for each approach: its status, the exponents with their 95 % intervals, coefficients and rows used."""
    return [_row(name, law.approaches[name]) for name in (one.name for one in BY_TRUST) if name in law.approaches]


def _row(name: str, found: Found) -> dict[str, Any]:
    row: dict[str, Any] = {"approach": name, "status": found.status}
    for key in ("a", "b"):
        low, high = getattr(found, f"{key}_interval") or (None, None)
        row |= {key: getattr(found, key), f"{key}_low": low, f"{key}_high": high}
    return row | {
        "N_coef": found.N_coef,
        "D_coef": found.D_coef,
        "used": len(found.used),
        "left_out": len(found.dropped),
    }


def law_html(law: Analysis) -> str:
    """Show a law in a few lines: what to quote of it, and a table of its approaches with reasons."""
    from gptjax.laws.drawing.page import say_sentence  # and with it matplotlib, which a fit does without

    lines = [f"<p>{say_sentence(sentence)}</p>" for sentence in law.quote.values()]
    rows = []
    for row in summary(law):
        spans = [_span(row, key) for key in ("a", "b")]
        rows.append([BY_NAME[row["approach"]].label, *spans, f"{row['used']} of {law.rows}", row["status"]])
    reasons = [f"{BY_NAME[name].label}: {why}" for name, one in law.approaches.items() for why in one.reasons]
    said = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    table = as_html(["approach", "a (95 %)", "b (95 %)", "rows used", "status"], rows)
    return "<div>" + "".join(lines) + table + (f"<ul>{said}</ul>" if said else "") + "</div>"


def _span(row: Mapping[str, Any], key: str) -> str:
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    if value is None:
        return "none"
    return f"{value:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")
