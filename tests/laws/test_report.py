"""The page needs nothing else, draws exactly the rows that were fitted, and shows doubt and refusal as such."""

import csv
import json
import re
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

from gptjax.errors import BadInput
from gptjax.files import write_json
from gptjax.laws.analysis import fit_all
from gptjax.laws.checks import read_curves, read_runs
from gptjax.laws.drawing import plot, plot_doubt, report
from gptjax.laws.drawing.page import picture
from gptjax.laws.drawing.report import write_report
from gptjax.laws.drawing.style import TWINS
from gptjax.laws.fit import Choices
from gptjax.laws.forecaster import forecaster
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.predict import predict
from gptjax.laws.record import Analysis
from gptjax.laws.registered import register
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import Curve, Runs

OPTIMIZED = True
PLANTED = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
MARKUP = "<script>alert('x')</script><b>&"  # what a file says is text, and runs on no page
CHOSEN = Choices(drop_highest_loss=2, bootstrap=60, seed=3)


def write_runs(path: Path, runs: Runs) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "params", "tokens", "flops", "loss", "note"])
        writer.writerows(
            [*row, MARKUP] for row in zip(runs.run, runs.params, runs.tokens, runs.flops, runs.loss, strict=True)
        )


def words(figure: Figure) -> str:
    """Give all that a figure says: titles, labels, notes and legends."""
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    legends += [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    notes = [text for axes in figure.axes for text in (*axes.texts, axes.title, axes._left_title)]
    ticks = [text for axes in figure.axes for text in axes.get_yticklabels()]
    return " | ".join(text.get_text() for text in (*legends, *notes, *ticks))


typed = Analysis.from_json


@pytest.fixture(scope="module")
def runs() -> Runs:
    return simulate(PLANTED, *ladder(PLANTED, [1e11, 3e11, 1e12, 3e12], sizes=6), noise=0.004, seed=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory, runs: Runs) -> tuple[Path, list[Runs]]:
    """A whole report, with everything that may stand beside runs.csv, and the rows that were drawn."""
    directory = tmp_path_factory.mktemp("report")
    write_runs(directory / "runs.csv", runs)
    with (directory / "curves.csv").open("w") as file:
        file.write("run,params,tokens,flops,loss\n")
        for name, n, d in zip(runs.run, runs.params, runs.tokens, strict=True):
            for t in np.geomspace(d / 50, d, 20):
                file.write(f"{name},{n},{t},{6 * n * t},{PLANTED.loss(n, t)}\n")
    facts = {"title": f"Planted {MARKUP}", "corpus": MARKUP, "device": MARKUP, "not_run": [f"d8 has no room {MARKUP}"]}
    write_json(directory / "facts.json", facts)
    before = fit_all(runs, replace(CHOSEN, bootstrap=50), approaches=["parametric"], tables=False)
    register(predict(forecaster(before), flops=1e13), directory / "prediction.json")
    drawn: list[Runs] = []
    inner = plot.loss_against_compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "loss_against_compute", lambda rows, *rest: drawn.append(rows) or inner(rows, *rest))
        write_report(directory, CHOSEN, sweeps=4)
    return directory, drawn


@pytest.fixture(scope="module")
def law(made) -> dict:
    return json.loads((made[0] / "law.json").read_text())


def test_the_page_needs_nothing_else_and_every_name_in_it_is_its_own(made, law):
    directory, _ = made
    page = (directory / "report.html").read_text()
    assert "src=" not in page and "<script" not in page and "url(http" not in page and "<b>&" not in page
    assert page.count("&lt;b&gt;&amp;") > 25 and "<script" not in (directory / "figures" / "isoflop.svg").read_text()
    ids = re.findall(r' id="([^"]+)"', page)
    referred = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert len(ids) == len(set(ids)) and referred and set(referred) == set(ids)
    assert len(re.findall("href=", page)) == len(re.findall('href="#', page))
    pictures = {path.stem for path in (directory / "figures").glob("*.png")}
    assert {"isoflop", "optimum", "loss_compute", "contours", "residuals", "training"} < pictures
    assert {"bootstrap", "profile", "influence", "choices", "extrapolation", "forecast", "prediction"} < pictures
    for drawing in ("<figure>", '<svg class="narrow"', '<svg class="wide"'):
        assert page.count(drawing) == len(pictures) == 13
        assert "&lt;sup" not in page and "&amp;times" not in page  # a table's cells are text
    assert f"{law['approaches']['isoflop']['a']:.3f}" in page and "d8 has no room" in page and len(page) < 1.5e6
    assert not list(directory.glob(".*"))  # no half-written file left behind


def test_every_colour_of_a_figure_has_a_twin_on_a_dark_page(made):
    page = (made[0] / "report.html").read_text()
    light, dark = (dict(re.findall(r"(--c\d+): (#\w+)", part)) for part in page.split("scheme: dark) { :root { --c0"))
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    used = set(re.findall(r"var\((--c\d+)\)", drawings))
    assert used and all(light[name] in TWINS and dark.get(name, "--c0") in (*TWINS.values(), "--c0") for name in used)
    strangers = {c for c in re.findall(r"#[0-9a-f]{6}\b", drawings)} - {"#000000", "#ffffff"}
    assert not strangers, strangers


def test_what_is_drawn_and_written_is_what_was_fitted_with_the_choices_made(made, law):
    directory, drawn = made
    raw = read_runs(directory / "runs.csv")
    assert law["settings"] == {**vars(CHOSEN)} and law["rows"] == len(raw) - 2
    for rows in drawn:
        assert rows.run == tuple(law["approaches"]["parametric"]["used"]) and len(rows) == len(raw) - 2
    page = (directory / "report.html").read_text()
    assert "the 2 highest losses, by choice" in page and "is one of the 2 highest, left out" in page
    assert law["approaches"]["envelope"]["method"] == "finished runs" and "finished runs only" in page


def test_methods_answer_the_checklist(made, law):
    page = (made[0] / "report.html").read_text()
    text = page[page.index("<h2>Methods</h2>") :]
    for said in ("C = column flops", "Huber errors of log loss (&delta; = 0.001)", "unweighted", "4500 starts",
                 "60 bootstrap draws, seed 3", "rows drawn with replacement", "3 on either side", "Kent 1982",
                 "Not recorded beside the table: tokenizer, optimizer", "not an entropy", "Table 2",
                 "The table names no seeds", "Bias of the design"):  # fmt: skip
        assert said in text, said
    akima = deepcopy(law)
    akima["settings"] |= {"interp": "akima"}
    akima["approaches"]["parametric"] |= {"estimator": "lad"}
    akima["approaches"]["isoflop"]["interval"] |= {"resample": "params"}
    rows = CHOSEN.rows(read_runs(made[0] / "runs.csv"))
    text = " ".join(report.methods(rows, typed(akima), {}))
    assert "Akima spline" in text and "sum of absolute errors" in text and "whole sizes drawn" in text


def test_a_degenerate_law_says_so_on_every_figure_of_it(runs, law):
    rows = CHOSEN.rows(runs)
    bad = deepcopy(law)
    bad["approaches"]["parametric"] |= {"status": "degenerate", "reasons": ["alpha = 3 is outside (0, 2]"]}
    bad["approaches"]["isoflop"] |= {"status": "refused", "band": None, "a": None}
    said = {"flops": 1e13, "params": 2e5, "tokens": 8e6, "loss": 2.7, "loss_interval": None}
    for draw in (
        lambda law: plot.loss_against_compute(rows, law, []),
        lambda law: plot.optimum_against_compute(rows, law, None),
        lambda law: plot.loss_contours(rows, law),
        lambda law: plot.residuals(rows, law),
        lambda law: plot.prediction_against_outcome(rows, law, said, None),
        lambda law: plot_doubt.bootstrap_clouds(law, narrow=True),
        lambda law: plot_doubt.profiles(law),
        lambda law: plot_doubt.influence_of_each(rows, law),
    ):
        assert "degenerate" in words(draw(typed(bad))) and "degenerate" not in words(draw(typed(law)))
    assert "isoFLOP (refused)" in words(plot.optimum_against_compute(rows, typed(bad), None))
    assert "predicted, no interval" in words(plot.prediction_against_outcome(rows, typed(law), said, None))


def test_no_choice_is_silently_absent(law):
    entries = [{**entry, "status": "ok"} for entry in deepcopy(law["choices"]) if entry["a_interval"]]
    entries[1] |= {"status": "refused", "a": None, "a_interval": None}
    entries[2] |= {"status": "degenerate", "a": 40.0, "a_interval": [-3.0, 90.0]}
    for narrow in (False, True):
        figure = plot_doubt.choices_forest(typed({**law, "choices": entries}), narrow)
        assert len(figure.axes[0].get_yticklabels()) == len(entries)
        assert words(figure).count("refused") == 1 and words(figure).count("degenerate") == 1
        assert figure.axes[0].get_xlim()[1] < 5  # a wild entry does not flatten the others
    nothing = [{**entry, "status": "refused", "a": None, "a_interval": None} for entry in entries]
    assert words(plot_doubt.choices_forest(typed({**law, "choices": nothing}))).count("refused") == len(entries)
    text = " ".join(map(str, report._choices(typed({**law, "choices": entries}))))
    assert f"2 of {len(entries)} fits are refused" in text and "2 refused or degenerate, with reasons" in text


def test_cuts_whose_fit_was_refused_or_degenerate_are_marked(law):
    cuts = [{**law["extrapolation"][0], "max_flops": c, "isoflop_N_ratio": None} for c in (1e11, 1e12, 1e13)]
    cuts[1] |= {"status": "degenerate", "rmse": 1e9, "bias": 1e9, "parametric_N_ratio": 1e30}
    figure = plot_doubt.extrapolation_by_cut(typed({**law, "extrapolation": cuts}))
    assert "isoFLOP: refused" in words(figure) and "degenerate" in words(figure)
    errors, ratio = figure.axes
    assert errors.get_ylim()[1] < 100 and ratio.get_ylim()[1] <= plot_doubt.FAR**1.3


def test_regions_hold_the_share_of_draws_they_claim(law):
    rng = np.random.default_rng(0)
    theta = np.array([4.0, 6.0, 0.5, 0.37, 0.42]) + 0.02 * rng.standard_normal((2000, 5)) * [1, 1, 1, 1, 2]
    theta[:20, 3:] *= 30  # a few far draws, as from a bootstrap that lost the law
    many = deepcopy(law)
    many["approaches"]["parametric"]["theta_draws"] = theta.tolist()
    axes = plot_doubt.bootstrap_clouds(typed(many)).axes[0]
    (regions,) = (artist for artist in axes.collections if isinstance(artist, ContourSet))
    for path, share in zip(regions.get_paths(), (0.95, 0.68), strict=True):
        inside = np.zeros(len(theta), dtype=int)
        for polygon in path.to_polygons():
            inside += [*map(int, path.__class__(polygon).contains_points(theta[:, 3:]))]
        assert np.mean(inside % 2) == pytest.approx(share, abs=0.025)
    shown = sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == ".")
    assert shown <= plot_doubt.CLOUD


@pytest.mark.parametrize("interp", ["parabola", "akima"])
def test_the_line_through_a_budget_has_its_minimum_where_the_diamond_is(runs, interp):
    choices = Choices(interp=interp, bootstrap=50)
    law = fit_all(runs, choices, tables=False)
    axes = plot.isoflop_parabolas(runs, law).axes[0]
    budgets = [budget for budget in law.isoflop.budgets if budget.N]
    assert budgets
    lines = [line for line in axes.lines if len(line.get_xdata()) == 80]
    for budget in budgets:
        assert any(
            abs(np.min(line.get_ydata()) / budget.loss - 1) < 1e-4
            and abs(np.log(line.get_xdata()[np.argmin(line.get_ydata())] / budget.N)) < 0.06
            for line in lines
        ), budget.C
    captions = [plate.caption for plate in report._optima(runs, law, None)]
    assert ("An Akima spline" if interp == "akima" else "A parabola") in captions[0]


def test_an_envelope_of_training_curves_is_said_to_be_one(runs, law, tmp_path):
    curves = [
        Curve(name, n, t := np.geomspace(d / 50, d, 40), 6 * n * t, PLANTED.loss(n, t))
        for name, n, d in zip(runs.run, runs.params, runs.tokens, strict=True)
    ]
    chosen = Choices(unfinished=True, bootstrap=50)
    by_curves = fit_all(runs, chosen, approaches=["envelope"], curves=curves, tables=False).envelope
    said = report._envelope_words(by_curves)
    assert "training curves" in said and f"{100 * min(by_curves.run_share):.0f} %" in said
    drawn = typed(law)
    drawn = replace(drawn, approaches={**drawn.approaches, "envelope": by_curves})
    legend = words(plot.loss_against_compute(runs, drawn, curves))
    assert "envelope of the training curves" in legend and "before the last 15 % of a run" in legend
    write_runs(tmp_path / "runs.csv", runs)
    with pytest.raises(BadInput, match=r"has no curves\.csv"):
        write_report(tmp_path, chosen, sweeps=0)


def test_curves_are_drawn_as_the_rows_count_them_and_only_theirs(runs):
    rows = replace(runs.take(np.arange(3)), flops=2 * runs.flops[:3], params=runs.params[:3] / 4)
    tokens = np.array([10.0, 100.0])
    curves = [Curve(name, n, tokens, 6 * n * tokens, tokens) for name, n in zip(runs.run, runs.params, strict=True)]
    kept = report._counted(curves, rows)
    assert [curve.run for curve in kept] == list(rows.run)
    assert kept[0].params == rows.params[0] and kept[0].flops == pytest.approx(12 * runs.params[0] * tokens)


def cut_or_crossed(figure: Figure) -> list[str]:
    """Give the legends that leave the figure and the tick labels that lie over their neighbour."""
    figure.draw_without_rendering()
    page = figure.bbox
    trouble = []
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        box = legend.get_window_extent()
        if box.x0 < 0 or box.x1 > page.x1 or box.y0 < 0 or box.y1 > page.y1:
            trouble.append(f"legend {[text.get_text() for text in legend.get_texts()]} is cut")
    for axes in figure.axes:
        for axis, low, high in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
            ends = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if ends[0] <= tick.get_loc() <= ends[1]]
            labels = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
            boxes = sorted(
                ((label.get_window_extent(), label.get_text()) for label in labels if label.get_text()),
                key=lambda found: getattr(found[0], low),
            )
            for (first, text), (second, other) in pairwise(boxes):
                if getattr(first, high) > getattr(second, low):
                    trouble.append(f"ticks {text} and {other} overlap")
    return trouble


@pytest.mark.parametrize("narrow", [False, True])
def test_no_legend_is_cut_and_no_tick_lies_on_another(made, law, runs, narrow):
    rows = CHOSEN.rows(runs)
    bad = deepcopy(law)
    for fit in bad["approaches"].values():
        fit |= {"status": "degenerate", "reasons": ["alpha = 3 is outside (0, 2]"]}
    bad["approaches"]["envelope"]["method"] = "training curves"
    points = len(bad["approaches"]["envelope"]["run_share"])
    bad["approaches"]["envelope"]["run_share"] = np.linspace(0.5, 1, points).tolist()
    theta = np.array(bad["approaches"]["parametric"]["theta_draws"])
    wide = theta + np.random.default_rng(0).standard_normal(theta.shape) * [0, 0, 0.05, 0.1, 0.1]  # over the published
    bad["approaches"]["parametric"]["theta_draws"] = wide.tolist()
    cuts = [{**law["extrapolation"][0], "max_flops": c} for c in (1e11, 3.3e11, 1.2e12, 3.3e12, 1.2e13, 3.3e13)]
    bad["extrapolation"] = [*cuts[:-1], {**cuts[-1], "status": "degenerate", "isoflop_N_ratio": None}]
    curves = report._counted(read_curves(made[0] / "curves.csv"), rows)
    record = json.loads((made[0] / "prediction.json").read_text())
    for found in map(typed, (law, bad)):
        plates = (
            *report._optima(rows, found, record["prediction"]),
            *report._law(rows, found, curves),
            *report._doubt(rows, found),
            *report._choices(found),
            *report._extrapolation(found),
            *report._prediction(rows, found, record, None),
        )
        trouble = {plate.name: cut_or_crossed(plate.draw(narrow)) for plate in plates if not isinstance(plate, str)}
        assert len(trouble) == 12 and not any(trouble.values()), {k: v for k, v in trouble.items() if v}


def test_a_figure_stands_beside_the_page_in_every_form_with_its_numbers(made, law):
    directory, _ = made
    figures = directory / "figures"
    names = {path.stem for path in figures.glob("*.png")}
    for ending in ("svg", "pdf", "csv"):
        assert {path.stem for path in figures.glob(f"*.{ending}")} == names
    assert (figures / "optimum.pdf").read_bytes().startswith(b"%PDF") and b"CreationDate" not in (
        figures / "optimum.pdf"
    ).read_bytes()
    rows = list(csv.DictReader((figures / "choices.csv").open()))
    for entry in law["choices"]:
        name = f"{entry['approach']}: {entry['choice']}"
        if entry["status"] == "ok":
            ends = [float(row["x"]) for row in rows if row["series"] == f"{name}, 95 % interval"]
            assert ends == pytest.approx(entry["a_interval"])
    minima = [row for row in csv.DictReader((figures / "isoflop.csv").open()) if row["series"].endswith("minimum")]
    points = [float(row["x"]) for row in minima if row["kind"] == "points" and row["x"]]
    assert points[: len(points)] and {f"{b['N']:.6g}" for b in law["approaches"]["isoflop"]["budgets"] if b["N"]} <= {
        f"{x:.6g}" for x in points
    }
    curves = {row["series"] for row in csv.DictReader((figures / "training.csv").open()) if row["series"]}
    assert curves == set(law["approaches"]["parametric"]["used"])


def test_a_figure_is_drawn_the_same_twice(runs, law):
    rows = CHOSEN.rows(runs)
    first, second = (picture(lambda narrow: plot.residuals(rows, typed(law), narrow), 1, "T", "") for _ in range(2))
    assert first == second


def test_many_curves_are_bounded_and_that_is_said(runs, law):
    rows = CHOSEN.rows(runs)
    t = np.geomspace(1e4, 1e6, 30)
    curves = [Curve(str(i), 1e4 + i, t, 6e4 * t, 2 + t**-0.1) for i in range(1000)]
    plates = {plate.name: plate for plate in report._law(rows, typed(law), curves) if not isinstance(plate, str)}
    assert "300 of 1000 runs, picked at random" in plates["loss_compute"].caption
    lines = plates["training"].draw(False).axes[0].lines
    assert len(lines) == report.CURVES


def test_a_title_can_be_set_and_a_wide_table_shows_what_counts(tmp_path, runs):
    write_runs(tmp_path / "runs.csv", runs.take(np.arange(3)))
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    more = [",".join(f"fact{i}" for i in range(20)), *[",".join(["7"] * 20)] * (len(lines) - 1)]
    text = "".join(f"{a},{b}\n" for a, b in zip(lines, more, strict=True))
    (tmp_path / "runs.csv").write_text(text)
    write_json(tmp_path / "facts.json", {"title": "Old"})
    page = write_report(tmp_path, Choices(bootstrap=50), sweeps=0, title="Mine & <new>").read_text()
    assert "<h1>Mine &amp; &lt;new&gt;</h1>" in page and ">Old<" not in page
    assert "3 of 3 rows and 5 of 26 columns" in page and "fact7" not in page


def test_a_report_of_too_few_rows_says_so(tmp_path, runs):
    write_runs(tmp_path / "runs.csv", runs.take(np.arange(3)))
    page = write_report(tmp_path, Choices(bootstrap=50), sweeps=0).read_text()
    assert "every approach refused" in page and "add" in page and "These rows were refused" in page
