"""What each approach says of itself: in a quoted sentence, against itself, and under the methods of a report (HTML)."""

from collections.abc import Iterator

from gptjax.laws.envelope import LATE
from gptjax.laws.minima import SIDE
from gptjax.laws.record import Analysis, EnvelopeFound, Found, IsoflopFound, ParametricFound

CHINCHILLA_HTML = "<i>L</i> = <i>E</i> + <i>A</i>/<i>N</i><sup>&alpha;</sup> + <i>B</i>/<i>D</i><sup>&beta;</sup>"
ESTIMATORS = {
    "huber": "the least sum of Huber errors of log loss (&delta; = {delta:g})",
    "lad": "the least sum of absolute errors of log loss",
    "lsq-log": "least squares of log loss",
    "lsq": "least squares of loss",
}
FEW_BUDGETS = 2  # a line through so few points has no errors to be seen


def form_words(found: ParametricFound) -> str:
    """Write the form of a parametric fit, as a sentence has it."""
    if found.form == "chinchilla":
        return "L = E + A/N^alpha + B/D^beta"
    further = f" at {', '.join(f'{name} = {value:.4g}' for name, value in found.held.items())}" if found.held else ""
    return f"the form {found.form!r}{further}"


def isoflop_how(found: Found) -> str:
    return f"isoFLOP minima at {found.budgets_kept} budgets"


def parametric_how(found: Found) -> str:
    assert isinstance(found, ParametricFound)
    return f"the parametric fit of {form_words(found)}"


def envelope_how(found: Found) -> str:
    assert isinstance(found, EnvelopeFound)
    return f"the envelope of {found.method}"


def isoflop_against(found: Found) -> Iterator[str]:
    assert isinstance(found, IsoflopFound)
    kept = found.budgets_kept
    if kept < len(found.budgets):
        yield f"{len(found.budgets) - kept} of {len(found.budgets)} budgets were refused"
    if kept <= FEW_BUDGETS:
        yield f"the line goes through {kept} budgets only"


def reasons_against(found: Found) -> Iterator[str]:
    if found.reasons:
        yield "; ".join(found.reasons)


def envelope_against(found: Found) -> Iterator[str]:
    assert isinstance(found, EnvelopeFound)
    yield from reasons_against(found)
    if found.edge_share:
        yield f"{found.edge_share:.0%} of the frontier lies at the least or largest size tried"


def isoflop_methods(law: Analysis) -> str:
    if law.settings.interp == "akima":
        how = (
            "The minimum of an Akima spline of log loss in log <i>N</i> through the best run of each size, with errors "
            "from 1000 draws of one loss's noise (Porian et al. 2024); a budget is refused with fewer than four sizes, "
            "or its least loss at an end there or in half of the draws"
        )
    else:
        seen = f"{law.settings.window or SIDE} on either side"
        if not law.settings.window:
            seen += ", or where a budget has more sizes those within 4 to 10 times it, as the noise asks"
        how = (
            f"Least squares of loss on log <i>N</i>, quadratic, over the size of least loss and {seen}; a budget is "
            "refused with fewer than four sizes, its least loss at "
            "an end, or no clear curvature"
        )
    return f"{how}; then weighted regression of log <i>N</i>* and log <i>D</i>* on log <i>C</i>."


def parametric_methods(law: Analysis) -> str:
    fit = law.parametric
    assert fit
    equal = law.settings.weights == "equal"
    weighed = "unweighted" if equal else "weighted by 1/se² of each loss's evaluation noise"
    form = CHINCHILLA_HTML if fit.form == "chinchilla" else f"The form {fit.form} of {', '.join(fit.columns)}"
    text = (
        f"{form}, by {ESTIMATORS[fit.estimator].format(delta=fit.delta)}, {weighed}; Levenberg&ndash;Marquardt in "
        "float64 until a step gains less than 1e-13 of the sum"
    )
    if fit.objective is None or fit.share_at_best is None:
        return f"{text}. These rows were refused."
    text += f", from {fit.starts} starts, of which {100 * fit.share_at_best:.0f} % reached the best"
    text += f" ({fit.objective:.6g})"
    if fit.held:
        held = "; ".join(f"{name} = {value:.4g}" for name, value in fit.held.items())
        text += f". Optima and forecasts hold {held}, the median of the rows"
    if fit.noise is not None:
        text += f". One run scatters about the law by {100 * fit.noise:.2f} % of its loss"
    return f"{text}. At small compute <i>E</i> is a coefficient of the fit and not an entropy of text."


def envelope_methods(law: Analysis) -> str:
    found = law.envelope
    assert found
    share = "none" if found.edge_share is None else f"{100 * found.edge_share:.0f} %"
    edges = f"Where the best size is the smallest or largest that reaches the budget: {share} of the frontier."
    if found.method == "training curves":
        return (
            "Each training curve smoothed over 10 points; the run of least loss at each of 1500 budgets; and a line "
            f"through these, without edges; points before the last {100 * (1 - LATE):.0f} % of a run count, by choice. "
            + edges
        )
    return (
        "The loss of each size, straight in logs along <i>C</i> through its finished runs; the best size at 1500 "
        "budgets; and a line through the places where the best size changes, at the geometric mean of the two. " + edges
    )
