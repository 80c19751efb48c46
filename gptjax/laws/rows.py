"""What is said of rows: which are of one training run, which stand twice, and which lie far from the others."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gptjax.laws.law import Floats, Ints
from gptjax.laws.table import RECIPE, SAME_TOKENS, Runs

STEP_COLUMNS = ("step", "checkpoint", "ckpt", "iteration", "iter", "global_step")
STEP_IN_NAME = re.compile(
    r"[-_/@.: ]*(?:step|ckpt|checkpoint|iter(?:ation)?)s?[-_=/: ]?\d[\d.eE+_kKmM]*$", re.IGNORECASE
)
MIN_POINTS = 3  # rows of a curve that is known by the steps in names or columns
ALIKE_POINTS, ALIKE_SIZES = 5, 6  # a size, and sizes, at least, before errors are compared
FAR, LEAST_SCALE = 6.0, 0.002  # an outlier is so many robust standard deviations off; these are at least .2 % of a loss
MOST_FAR = 0.05  # of the rows: if more are far, the table does not follow the law
SAME_LOSS, DIGITS = 1e-6, 4  # losses that agree so far are one loss, if they are written to so many decimals
ALIKE = "errors that rows of one size share and other sizes do not"
NAMED = 3  # rows that a warning names
EXPONENTS = np.linspace(0.05, 1.2, 24)
FITTED = 1000  # rows


def curves_of(runs: Runs, names: Sequence[str]) -> tuple[Ints | None, str]:
    """Number the training run that each row is of, with the evidence in words; None where each row is its own run.

    `names` are the runs' as the table has them, empty where it has none. Several rows are of one run if they share its
    name; if their names differ in a step alone, or a column counts steps that rise with D, and size, seed and recipe
    are the same; or if losses along D of one size err together and neighbouring sizes do not, and the table names no
    runs or names that differ in a number that rises with D. A size at many D is else a size of many runs.
    """
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        keys = [name or f"\0{i}" for i, name in enumerate(names)]
        return np.unique(keys, return_inverse=True)[1], "column run"
    for groups, evidence in (_by_step(runs, names), _by_name(runs, names)):
        if groups is not None:
            return groups, evidence
    if err_alike(runs):
        if not known:
            return _numbered(runs, [""] * len(runs)), ALIKE
        ends = [re.fullmatch(r"(.*?\D)(\d+)", name) for name in names]
        if all(ends):
            numbers = np.array([float(end[2]) for end in ends if end])
            groups = _sound(runs, _numbered(runs, [end[1] for end in ends if end]), numbers)
            return groups, f"the numbers in their names and {ALIKE}"
    return None, ""


def said_of_rows(path: str, runs: Runs, evidence: str, named: bool) -> list[str]:
    """Give the warnings: rows that are of one run, copies, outliers, and sizes whose rows err together."""
    found = []
    if runs.curve is not None:
        of_several = np.bincount(runs.curve)[runs.curve] > 1
        many, count = int(of_several.sum()), len(np.unique(runs.curve[of_several]))
        of = f"{path}: {many} rows are of {count} runs, by {evidence}"
        found.append(f"{of}; they err together, so the bootstrap draws whole runs (--cluster rows draws rows)")
    elif named and err_alike(runs):
        found.append(
            f"{path}: rows of one size err alike, and other sizes otherwise; if they are of one training run, give "
            "them its name in column run; --cluster params draws whole sizes"
        )
    if copies := _copies(runs):
        repeat = "row repeats" if len(copies) == 1 else "rows repeat"
        found.append(
            f"{path}: {len(copies)} {repeat} the loss of another row of the same cell to six digits: "
            f"{_listed(copies)}; delete copies, since each counts"
        )
    return found + _outliers(path, runs)


def err_alike(runs: Runs) -> bool:
    """Say whether rows of one size, seed and recipe err together about a law, and those of the next size otherwise.

    A law that fits badly errs smoothly over sizes; the runs of two sizes do not.
    """
    of_one = _numbered(runs, [""] * len(runs))
    count = np.bincount(of_one)
    if len(count) < ALIKE_SIZES or np.median(count) < ALIKE_POINTS:
        return False
    errors = law_errors(runs)
    mean = np.bincount(of_one, errors) / count
    within = float(((errors - mean[of_one]) ** 2).sum() / (len(runs) - len(count)))
    by_size = np.argsort(np.bincount(of_one, runs.params) / count)
    rough = float(np.mean(np.diff(mean[by_size], 2) ** 2) / 6)  # of independent means these have 6 variances
    return rough > within and rough > (LEAST_SCALE / 2) ** 2


def law_errors(runs: Runs) -> Floats:
    """Give log(measured / predicted) of each row about L = E + A/N^alpha + B/D^beta, fitted by least absolute errors.

    E, A and B are linear, so they are solved for at each alpha and beta of a grid, which is then refined. Of many rows,
    a thousand are fitted.
    """
    n, d = (np.log(column / np.median(column)) for column in (runs.params, runs.tokens))
    order = np.lexsort((runs.tokens, runs.params))
    some = order[np.linspace(0, len(runs) - 1, min(len(runs), FITTED)).astype(int)]
    errors, grids = np.ones(len(runs)), [EXPONENTS, EXPONENTS]
    for turn in range(10):
        size = np.abs(errors[some])
        weights = 1 / np.maximum(size, 0.2 * np.median(size) + 1e-12)
        alpha, beta, (floor, a, b) = _best_law(n[some], d[some], runs.loss[some], weights, grids)
        predicted = floor + a * np.exp(-alpha * n) + b * np.exp(-beta * d)
        errors = np.log(runs.loss / np.maximum(predicted, 1e-9 * runs.loss))
        if turn == 4:
            step = EXPONENTS[1] - EXPONENTS[0]
            grids = [np.maximum(middle + np.linspace(-step, step, 21), 0.01) for middle in (alpha, beta)]
    return errors


def _best_law(
    n: Floats, d: Floats, loss: Floats, weights: Floats, grids: Sequence[Floats]
) -> tuple[float, float, Floats]:
    """Find the alpha and beta of the grids, and E, A and B, of least weighted squares; n and d are logs."""
    f, g = np.exp(-np.outer(grids[0], n)), np.exp(-np.outer(grids[1], d))  # (exponents, rows)
    by_loss, by_square = weights / loss, weights / loss**2
    moments, pull = np.empty((len(f), len(g), 3, 3)), np.empty((len(f), len(g), 3))
    moments[..., 0, 0] = by_square.sum()
    moments[..., 0, 1] = moments[..., 1, 0] = (f @ by_square)[:, None]
    moments[..., 0, 2] = moments[..., 2, 0] = (g @ by_square)[None]
    moments[..., 1, 1], moments[..., 2, 2] = (f**2 @ by_square)[:, None], (g**2 @ by_square)[None]
    moments[..., 1, 2] = moments[..., 2, 1] = (f * by_square) @ g.T
    pull[..., 0], pull[..., 1], pull[..., 2] = by_loss.sum(), (f @ by_loss)[:, None], (g @ by_loss)[None]
    ridge = 1e-12 * np.trace(moments, axis1=2, axis2=3)[..., None, None] * np.eye(3)
    found = np.linalg.solve(moments + ridge, pull[..., None])[..., 0]
    gain = np.where((found[..., 1:] >= 0).all(axis=-1), (found * pull).sum(axis=-1), -np.inf)
    i, j = np.unravel_index(int(gain.argmax()), gain.shape)
    return float(grids[0][i]), float(grids[1][j]), found[i, j]


def _outliers(path: str, runs: Runs) -> list[str]:
    """Name the rows far from the law of most, in each arm, among the best of each cell; too many are no outliers."""
    far: dict[str, float] = {}
    z_of: dict[str, float] = {}
    for rows in runs.arms("arm").values() if "arm" in runs.cells else [runs]:
        rows = rows.tuned()
        if len(rows) < 3 * ALIKE_POINTS:
            continue
        errors = law_errors(rows)
        scale = max(1.4826 * float(np.median(np.abs(errors))), LEAST_SCALE)
        off = np.flatnonzero(np.abs(errors) > FAR * scale)
        if len(off) <= max(1, MOST_FAR * len(rows)):
            far |= {rows.run[i]: float(np.expm1(errors[i])) for i in off}
            z_of |= {rows.run[i]: abs(float(errors[i])) / scale for i in off}
    if not far:
        return []
    worst = sorted(far, key=lambda run: -z_of[run])
    said = _listed([f"{run!r} ({far[run]:+.1%}, {z_of[run]:.0f} robust standard deviations)" for run in worst])
    lie = "row lies" if len(far) == 1 else "rows lie"
    return [f"{path}: {len(far)} {lie} far from the law of the others, and no row is left out for it: {said}"]


def _copies(runs: Runs) -> list[str]:
    """Name the rows that have the loss of another row of their cell, to more digits than chance gives."""
    order = np.lexsort((runs.tokens, runs.loss, runs.params))
    found = []
    for one, other in pairwise(order):
        same = runs.params[one] == runs.params[other] and abs(runs.loss[other] / runs.loss[one] - 1) < SAME_LOSS
        if same and abs(np.log(runs.tokens[other] / runs.tokens[one])) < SAME_TOKENS:
            written = round(float(runs.loss[one]), DIGITS - 1) != float(runs.loss[one])
            if written or runs.seed[one] == runs.seed[other] != "":
                found.append(f"{runs.run[other]!r} that of {runs.run[one]!r}")
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _by_name(runs: Runs, names: Sequence[str]) -> tuple[Ints | None, str]:
    """Group rows whose names differ in a step alone, as of one/step100 and one/step200."""
    stems = [STEP_IN_NAME.sub("", name) if name else "" for name in names]
    if stems == list(names):
        return None, ""
    keys = [f"{stem}\0" if stem != name else f"\0{i}" for i, (stem, name) in enumerate(zip(stems, names, strict=True))]
    return _sound(runs, _numbered(runs, keys)), "the steps in their names"


def _by_step(runs: Runs, names: Sequence[str]) -> tuple[Ints | None, str]:
    """Group rows that a column of steps tells apart, in tables that name no runs or whose names hold that step."""
    for column in STEP_COLUMNS:
        texts = runs.cells.get(column)
        if texts is None or not all(re.fullmatch(r"\d+(\.\d*)?(e\+?\d+)?", text, re.IGNORECASE) for text in texts):
            continue
        keys = []
        for i, (name, text) in enumerate(zip(names, texts, strict=True)):
            stem = re.sub(rf"(?<!\d){re.escape(str(text))}(?!\d)", "", name)
            keys.append(f"{stem}\0" if stem != name or not name else f"\0{i}")
        groups = _sound(runs, _numbered(runs, keys), np.array([float(text) for text in texts]))
        if groups is not None:
            return groups, f"column {column}"
    return None, ""


def _numbered(runs: Runs, keys: Sequence[str]) -> Ints:
    """Number the rows that share a key, size, seed, recipe, and all columns of words."""
    words = [
        column
        for name, column in runs.cells.items()
        if name not in STEP_COLUMNS and any(re.search("[A-Za-z]", text) for text in column)
    ]
    recipe = [np.char.mod("%.9g", runs.fact(name)) for name in RECIPE]
    columns = (keys, np.char.mod("%.12g", runs.params), runs.seed, *recipe, *words)
    joined = ["\1".join(map(str, row)) for row in zip(*columns, strict=True)]
    return np.unique(joined, return_inverse=True)[1]


def _sound(runs: Runs, groups: Ints, steps: Floats | None = None) -> Ints | None:
    """Keep groups of three rows or more at as many D, steps rising with these; None where none is left."""
    kept, next_one = np.full(len(groups), -1), 0
    for group in range(int(groups.max()) + 1):
        rows = np.flatnonzero(groups == group)
        d = runs.tokens[rows]
        rising = steps is None or bool((np.diff(steps[rows[np.argsort(d)]]) > 0).all())
        if len(rows) >= MIN_POINTS and len(np.unique(d)) == len(rows) and rising:
            kept[rows] = next_one
            next_one += 1
    if not next_one:
        return None
    alone = np.flatnonzero(kept < 0)
    kept[alone] = next_one + np.arange(len(alone))
    return kept
