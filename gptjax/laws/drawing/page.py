"""The look of a report: one HTML page that needs nothing else, on paper or in the dark, wide or on a phone."""

import re
from collections.abc import Callable, Sequence
from html import escape

from matplotlib.figure import Figure

from gptjax.laws.drawing.drawn import to_files, to_svg
from gptjax.laws.drawing.style import TWINS

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #62686f; --rule: #d9dce0; --paper: #fff; --tint: #f5f6f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e8; --muted: #9ba1a8; --rule: #353a40; --paper: #14161a; --tint: #1c1f24 }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, serif }
main { max-width: 44rem; margin: 0 auto; padding: 3.5rem 1.1rem 5rem }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 600; margin: 0 0 1.2rem; text-wrap: balance }
h2 { font-size: 1.2rem; font-weight: 600; margin: 3.2rem 0 .8rem }
p { margin: .7rem 0 } ul { padding-left: 1.2rem } li { margin: .3rem 0 }
.note { overflow-wrap: anywhere }
.lead { font-size: 1.12rem } .muted { color: var(--muted) }
figure { margin: 2.2rem 0 }
figure svg { display: block; width: 100%; height: auto } figure svg.narrow { display: none }
figure svg * { stroke-linejoin: round; stroke-linecap: butt }
@media (max-width: 34rem) { figure svg.wide { display: none } figure svg.narrow { display: block } }
figcaption, .note, table, summary {
  font: .82rem/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
figcaption { color: var(--muted); margin-top: .6rem } figcaption b { color: var(--ink) }
.scroll { overflow-x: auto; margin: 1.1rem 0; -webkit-overflow-scrolling: touch; position: relative; left: 50%;
  transform: translateX(-50%); width: max-content; min-width: 100%; max-width: min(72rem, calc(100vw - 2.2rem)) }
.tall { max-height: 30rem; overflow-y: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-top: 1.5px solid var(--ink);
  border-bottom: 1.5px solid var(--ink); min-width: 100% }
th { font-weight: 600; text-align: left; border-bottom: 1px solid var(--muted); background: var(--paper) }
thead th { position: sticky; top: 0 }
th, td { padding: .28rem .9rem .28rem 0; vertical-align: top; white-space: nowrap }
td.text { white-space: normal; min-width: 14rem; max-width: 30rem } td.number, th.number { text-align: right }
tbody tr + tr td { border-top: 1px solid var(--rule) }
summary { cursor: pointer; color: var(--muted) }
i { font-style: italic } sup { font-size: .75em; line-height: 0 }
"""
TOKENS = {colour: f"--c{i}" for i, colour in enumerate(TWINS)}  # a figure's colours, which the page's scheme fills in


def page(title: str, body: Sequence[str]) -> str:
    """Assemble the page; the parts are HTML, the title is text."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{_palette()}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _palette() -> str:
    light = "; ".join(f"{token}: {colour}" for colour, token in TOKENS.items())
    dark = "; ".join(f"{token}: {TWINS[colour]}" for colour, token in TOKENS.items())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def picture(
    draw: Callable[[bool], Figure], number: int, title: str, caption: str
) -> tuple[str, dict[str, str | bytes]]:
    """Draw a figure for a wide and for a narrow page; give its HTML, for either scheme, and the wide one as files."""
    figures = {"wide": draw(False), "narrow": draw(True)}
    drawings = {kind: to_svg(figure, title) for kind, figure in figures.items()}
    inside = "".join(_inside(svg, kind, f"f{number}{kind[0]}", title) for kind, svg in drawings.items())
    words = f"<figcaption><b>Figure {number}. {escape(title)}.</b> {caption}</figcaption>"
    return f"<figure>{inside}{words}</figure>", to_files(figures["wide"], title, drawings["wide"])


def _inside(text: str, kind: str, prefix: str, title: str) -> str:
    """Turn an SVG file into a part of the page: small, and its names its own."""
    view = re.search(r'viewBox="[^"]+"', text)
    assert view is not None
    text = text[text.index(">", view.end()) + 1 :]
    unseen = r"<!--.*?-->|<title>.*?</title>|<metadata>.*?</metadata>|<style.*?</style>"
    text = re.sub(unseen, "", text, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", text).replace("> <", "><").replace("xlink:href", "href")
    text = re.sub(r"(?<=[\d\"]) ?([MLCQz]) ?(?=[-\d\"])", r"\1", text)
    text = re.sub(r"scale\([^)]*\)|-?\d+\.\d{3,}", _rounded, text)
    return f'<svg class="{kind}" role="img" aria-label="{escape(title)}" {view[0]}>{_named(_merged(text), prefix)}'


def _rounded(number: re.Match[str]) -> str:
    return number[0] if number[0].startswith("scale") else f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _merged(text: str) -> str:
    """Put points in one group that each stand in a group of their own under the same clip."""
    again = r'(<g clip-path="[^"]+">)<use [^>]+/></g>(?:\1<use [^>]+/></g>)+'
    return re.sub(again, lambda groups: f"{groups[1]}{''.join(re.findall('<use [^>]+/>', groups[0]))}</g>", text)


def _named(text: str, prefix: str) -> str:
    """Shorten the ids that are referred to, drop the others, and make classes of styles, in the page's colours."""
    refers = r'(href="#|url\(#)([^")]+)'
    used = {name: f"{prefix}{i}" for i, (_, name) in enumerate(dict.fromkeys(re.findall(refers, text)))}
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{used[found[1]]}"' if found[1] in used else "", text)
    text = re.sub(refers, lambda found: found[1] + used[found[2]], text)
    styles: dict[str, str] = {}
    text = re.sub(r'style="([^"]+)"', lambda s: f'class="{styles.setdefault(s[1], f"{prefix}s{len(styles)}")}"', text)
    rules = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    rules = re.sub(r"#[0-9a-f]{6}\b", lambda c: f"var({TOKENS[c[0]]})" if c[0] in TOKENS else c[0], rules)
    return f"<style>{rules}</style>{text}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], tall: bool = False) -> str:
    """Lay out rows; a number stands right, and a text longer than a few words wraps."""

    def cell(value: object) -> str:
        if isinstance(value, int | float):
            return f"<td class=number>{_number(value)}</td>"
        text = str(value)
        return f"<td class={'text' if len(text) > 40 else 'word'}>{escape(text)}</td>"

    kinds = ["number" if isinstance(value, int | float) else "word" for value in (rows[0] if rows else header)]
    head = "".join(f"<th class={kind}>{escape(name)}</th>" for name, kind in zip(header, kinds, strict=True))
    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    box = "scroll tall" if tall else "scroll"
    return f'<div class="{box}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e10:
        return f"{int(value):,}".replace(",", "\u2009")
    return f"{value:.5g}".replace("e+", "e")


def say_sentence(text: str) -> str:
    """Write a plain sentence in HTML, with C^0.5 and 3e12 as one writes them by hand."""
    text = re.sub(r"\^(-?[\d.]*\d)", r"<sup>\1</sup>", escape(text))
    text = re.sub(r"(?<![\w.-])(\d+(?:\.\d+)?)e(-?)0*(\d+)\b", r"\1 &times; 10<sup>\2\3</sup>", text)
    return re.sub(r"(?<![\d.])1 &times; (?=10<sup>)", "", text).replace("<sup>-", "<sup>&minus;")


def say_flops(value: float) -> str:
    """Write FLOPs as 3.2 x 10^20 in HTML."""
    mantissa, power = f"{value:.1e}".split("e+")
    factor = f"{float(mantissa):g}"
    return f"10<sup>{int(power)}</sup>" if factor == "1" else f"{factor} &times; 10<sup>{int(power)}</sup>"


def say_interval(interval: Sequence[float] | None, digits: int = 3) -> str:
    """Write an interval as 0.48 to 0.55."""
    return "interval unknown" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def say_percent(share: float | None, digits: int = 0) -> str:
    """Write a share in per cent."""
    return "none" if share is None else f"{100 * share:.{digits}f} %"
