"""Scores are those of a plain forward pass, however batched or sharded; a task has one right answer a row."""

import ast
import csv
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.commands import evaluation
from gptjax.config import EvalConfig
from gptjax.data.loader import Source
from gptjax.data.tokenizer import ByteTokenizer, train_sentencepiece
from gptjax.errors import BadInput
from gptjax.eval import score as scoring
from gptjax.eval import tasks as tasking
from gptjax.eval.estimates import mean, ratio
from gptjax.eval.perplexity import doubling, measure, stores_for
from gptjax.eval.score import Request, Scores, score
from gptjax.eval.synthetic_tasks import FROM_TEXT, NAMES, SYNTHETIC, brackets, make_task
from gptjax.eval.tasks import BETWEEN, Task, TaskRow, encode_pairs, evaluate_task, prompts, read_task, to_jsonl
from gptjax.kernels import loss as kernels
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.run.loop import train
from gptjax.run.weights import saved_model
from gptjax.sharding import Layout, MeshConfig, Rules
from gptjax.train import loss
from helpers import PADDED, ROOT, RUN, call, logits_of, refused, write_corpus

GPT2 = GPTConfig(vocab_size=257, context=48, d_model=32, n_layers=2, n_heads=4, init_std=0.3)
MODEL = GPT2.build(PADDED)
ALONE = Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1]), Rules())


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(1))


@pytest.fixture
def requests():
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (3, 9), (20, 2), (40, 8), (31, 17), (1, 30), (5, 5), (2, 46), (48, 1), (12, 4)]
    found = [Request(rng.integers(257, size=a), rng.integers(257, size=b)) for a, b in sizes]
    return [*found, Request(rng.integers(257, size=5), np.array([7]))]


@cache
def whole(config):
    """Return the whole model, compiled for one row of the whole context; what follows a token does not change it."""
    model = jax.jit(lambda params, ids: logits_of(config, params, ids, execution=PADDED))

    def log_p(params, ids):
        padded = np.pad(ids, (0, config.context - len(ids)))[None]
        return np.asarray(jax.nn.log_softmax(model(params, padded)[0, : len(ids)]), np.float64)

    return log_p


def plainly(params, config, request):
    """Score a request by the whole model and nothing else."""
    ids = np.append(request.context, request.continuation)[-(config.context + 1) :]
    log_p = whole(config)(params, ids[:-1])[-len(request.continuation) :]
    said = log_p[np.arange(len(log_p)), request.continuation]
    return said.sum(), (log_p.argmax(-1) == request.continuation).all()


def likeliest(params, config, request):
    """Return a request whose one token is what the model says."""
    return Request(request.context, whole(config)(params, request.context)[-1:].argmax(-1))


@pytest.mark.slow
def test_a_score_is_that_of_a_plain_forward(params, requests):
    requests = [*requests, likeliest(params, GPT2, requests[1]), likeliest(params, GPT2, requests[6])]
    found = score(params, MODEL, requests, ALONE)
    expected = [plainly(params, GPT2, request) for request in requests]
    np.testing.assert_allclose(found.log_p, [log_p for log_p, _ in expected], rtol=1e-5)
    assert found.greedy.tolist() == [greedy for _, greedy in expected]
    assert found.greedy[-2:].all() and not found.greedy[:-2].all()
    assert not found.truncated.any()


def test_neither_order_nor_company_nor_size_of_batches_changes_a_score(params, requests, monkeypatch):
    whole = score(params, MODEL, requests, ALONE)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    again = score(params, MODEL, [requests[i] for i in order], ALONE)
    np.testing.assert_allclose(again.log_p, whole.log_p[order], rtol=1e-5)
    assert (again.greedy == whole.greedy[order]).all()
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 64)
    np.testing.assert_allclose(score(params, MODEL, requests[2:5], ALONE).log_p, whole.log_p[2:5], rtol=1e-5)


def test_few_programs_are_compiled():
    lengths = {scoring.padded_length(n, GPT2.context, ALONE) for n in range(1, 49)}
    assert lengths == {16, 32, 48}
    assert {scoring.rows_of(16, n, MODEL, ALONE) for n in range(1, 10_000)} == {1 << i for i in range(10)}


@pytest.mark.slow
def test_where_logits_are_large_they_are_made_in_parts(params, requests, monkeypatch):
    whole = score(params, MODEL, requests, ALONE)
    monkeypatch.setitem(kernels.LOGITS_BYTES, "cpu", 1 << 12)
    model = replace(GPT2, init_std=0.31).build(PADDED)  # traced anew; the weights are given
    parts = []
    counted = loss.head_parts
    monkeypatch.setattr(loss, "head_parts", lambda shape: parts.append(counted(shape)) or parts[-1])
    found = score(params, model, requests, ALONE)
    assert min(parts) > 1
    np.testing.assert_allclose(found.log_p, whole.log_p, rtol=1e-5)
    assert (found.greedy == whole.greedy).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        (MeshConfig(data=8), Rules()),
        (MeshConfig(data=1, fsdp=2, tensor=4), Rules()),
        (MeshConfig(data=2, context=4), Rules(keys="context")),
        (MeshConfig(data=2, pipeline=2, tensor=2), Rules()),
    ],
    ids=["data", "fsdp-tensor", "ring", "pipeline"],
)
def test_eight_devices_say_what_one_says(params, requests, mesh, rules):
    alone = score(params, MODEL, requests, ALONE)
    layout = Layout(make_mesh(mesh), rules)
    placed = jax.device_put(params, layout.params(MODEL.axes, params))
    found = score(placed, MODEL, requests, layout)
    np.testing.assert_allclose(found.log_p, alone.log_p, rtol=1e-5)
    assert (found.greedy == alone.greedy).all()


def test_the_left_of_a_long_context_is_cut_off_and_counted(params):
    ids = np.random.default_rng(1).integers(257, size=90)
    long, fitting = Request(ids[:80], ids[80:]), Request(ids[41:80], ids[80:])
    found = score(params, MODEL, [long, fitting], ALONE)
    assert found.log_p[0] == pytest.approx(found.log_p[1], rel=1e-6)
    assert found.truncated.tolist() == [True, False]
    shorter = score(params, MODEL, [Request(ids[42:80], ids[80:])], ALONE)
    assert shorter.log_p[0] != pytest.approx(found.log_p[1], rel=1e-6)


@pytest.mark.parametrize(
    ("context", "continuation", "words"),
    [(0, 1, "no token before"), (1, 0, "adds no token"), (3, 49, "49 tokens exceeds the context of 48")],
)
def test_what_has_no_score_is_refused(params, context, continuation, words):
    with pytest.raises(BadInput, match=f"request 0.*{words}"):
        score(params, MODEL, [Request(np.zeros(context, int), np.zeros(continuation, int))], ALONE)


# ---- perplexity


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a run that was trained for a dozen steps."""
    from gptjax.cli import main

    place = tmp_path_factory.mktemp("eval")
    text = f"CACHE = {str(place / 'cache')!r}\n{RUN}".replace("context=16, d_model=8", "context=64, d_model=16")
    text = text.replace("sequences=8, batch=8", "sequences=40, batch=8").replace("documents=50", "documents=400")
    (place / "tiny.py").write_text(text)
    main(["train", str(place / "tiny.py"), "--dir", str(place / "run")])
    return place / "run"


@pytest.fixture(scope="module")
def opened(run):
    saved = saved_model(run)
    layout = saved.layout()
    return saved, layout, saved.read(layout)


@pytest.mark.slow
def test_the_loss_is_trainings_own(run, opened):
    saved, layout, params = opened
    said = json.loads((run / "result.json").read_text())
    (store,) = stores_for(saved, None)
    found = measure(params, saved.model, store, layout, sequences=40, batch=8)
    assert found.loss.value == pytest.approx(said["loss"], rel=1e-5)
    assert found.loss.se == pytest.approx(said["loss_se"], rel=1e-3)
    assert found.bits_per_byte.value == pytest.approx(said["bits_per_byte"], rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(said["loss"]), rel=1e-4)
    assert found.tokens == found.sequences * 64 and found.sequences % 8 == 0
    assert stores_for(saved, saved.run.data.sources[0].corpus)[0].digest == store.digest


@pytest.mark.slow
def test_of_pairs_the_answers_alone_count_as_in_training(run, opened, tmp_path):
    base = opened[0].run
    pairs = [{"prompt": f"{i}" + "ab" * (i % 7 + 1), "answer": "ba" * (i % 5 + 1)} for i in range(2000)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = replace(
        base,
        data=replace(base.data, sources=(Source(f"pairs:{tmp_path / 'pairs.jsonl'}"),), separate_documents=True),
        evaluate=EvalConfig(sequences=4, batch=4),
        mesh=MeshConfig(data=1, fsdp=4, context=2),
    )
    said = train(config, tmp_path / "run")
    saved = saved_model(tmp_path / "run")
    (store,) = stores_for(saved, None)
    layout = saved.layout()
    found = measure(saved.read(layout), saved.model, store, layout, sequences=4, batch=4, separate_documents=True)
    assert found.loss.value == pytest.approx(said.loss, rel=1e-5)
    assert found.loss.se == pytest.approx(said.loss_se, rel=1e-3)
    assert found.bits_per_byte.value == pytest.approx(said.bits_per_byte, rel=1e-5)
    assert 0 < found.tokens < found.sequences * 64 / 2


@pytest.mark.slow
def test_positions_average_to_the_loss_and_are_the_plain_ones(opened):
    saved, layout, params = opened
    (store,) = stores_for(saved, None)
    found = measure(params, saved.model, store, layout, sequences=24, batch=8)
    assert found.position_loss.mean() == pytest.approx(found.loss.value, rel=1e-9)
    sizes = [b.last - b.first + 1 for b in found.bins]
    assert np.dot(sizes, [b.loss.value for b in found.bins]) / 64 == pytest.approx(found.loss.value, rel=1e-9)
    n = (store.n_tokens("validation") - 1) // 64
    windows = store.windows("validation", np.arange(24) * n // 24 * 64, 65)
    log_p = jax.nn.log_softmax(
        logits_of(saved.config, saved.read(ALONE), jnp.asarray(windows[:, :-1]), execution=saved.execution)
    )
    nats = -np.take_along_axis(np.asarray(log_p, np.float64), windows[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(found.position_loss, nats.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.position_se, nats.std(0, ddof=1) / math.sqrt(24), rtol=1e-3)
    assert found.bins[3].name == "5-8"
    assert found.bins[3].loss.se == pytest.approx(nats[:, 4:8].mean(1).std(ddof=1) / math.sqrt(24), rel=1e-3)
    n_bytes = (windows[:, 1:] != 256).sum()  # all but bos is a byte
    assert found.bytes == n_bytes
    assert found.bits_per_byte.value == pytest.approx(nats.sum() / n_bytes / math.log(2), rel=1e-5)


@pytest.mark.parametrize("T", [1, 2, 3, 8, 64, 100])
def test_bins_double_and_cover_every_position_once(T):
    bins = doubling(T)
    assert [t for first, last in bins for t in range(first, last + 1)] == list(range(1, T + 1))
    assert [first for first, _ in bins] == [1, *(2**i + 1 for i in range(len(bins) - 1))]


def test_standard_errors_are_those_of_repeated_samples():
    rng = np.random.default_rng(0)
    a, b = rng.gamma(2, 1, (2000, 50)), rng.gamma(3, 1, (2000, 50))
    found = [ratio(x + y, y) for x, y in zip(a, b, strict=True)]
    assert np.mean([f.se for f in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.05)
    assert np.mean([mean(x).se for x in a]) == pytest.approx(a.mean(1).std(), rel=0.05)


# ---- tasks


LETTERS = Task("letters", tuple(TaskRow(f"Q{i}:", (f" a{i}", f" b{i}", f" c{i}"), i % 3, f"row {i}") for i in range(9)))


def test_prompts_are_answered_examples_with_blank_lines_between():
    assert prompts(LETTERS, 0, seed=0) == [row.context for row in LETTERS.rows]
    answered = {f"Q{i}: {'abc'[i % 3]}{i}" for i in range(9)}
    for row, prompt in zip(LETTERS.rows, prompts(LETTERS, 3, seed=5), strict=True):
        *examples, question = prompt.split("\n\n")
        assert question == row.context and len(set(examples)) == 3
        assert set(examples) <= answered - {row.text}
    assert prompts(LETTERS, 3, seed=5) == prompts(LETTERS, 3, seed=5) != prompts(LETTERS, 3, seed=6)
    assert prompts(LETTERS, 3, seed=5, examples=4) == prompts(LETTERS, 3, seed=5)[:4]
    assert len({p.split("\n\n")[0] for p in prompts(LETTERS, 1, seed=5)}) > 3


def test_an_example_is_never_the_row_nor_its_like():
    twice = Task("twice", tuple(replace(row, where=f"{i}") for i, row in enumerate(LETTERS.rows[:4] * 3)))
    for seed in range(20):
        for row, prompt in zip(twice.rows, prompts(twice, 8, seed), strict=True):
            assert row.text not in prompt.split(BETWEEN)
    with pytest.raises(BadInput, match="too few for 10 shots"):
        prompts(twice, 10, 0)


def test_accuracy_is_by_sum_by_byte_and_by_token(params, monkeypatch):
    """The right answer wins in one way alone; its log p is the same everywhere."""
    log_p = [[-4.0, -4.4, -9.9], [-4.5, -4.0, -9.9], [-4.0, -3.9, -9.9]]
    rows = (
        TaskRow("q:", (" abcdefg", " hijk", " z"), 0),  # by sum, and a byte; by tokens of a byte the same
        TaskRow("q:", (" abcdefgh", " xy", " z"), 0),  # a byte alone
        TaskRow("q:", (" éééé", " abcdefg", " z"), 1),  # by sum, while " éééé" has 9 bytes
    )
    task = Task("planted", rows)
    flat = np.array([p for each in log_p for p in each])
    asked = []

    def fake(params, config, requests, layout, progress):
        asked.extend(requests)
        return Scores(flat, np.array([False, True] + [False] * 7), np.array([True] * 2 + [False] * 7))

    monkeypatch.setattr(tasking, "score", fake)
    found = evaluate_task(task, 0, params, MODEL, ByteTokenizer(), ALONE)
    assert [found.metrics[m].value for m in ("acc", "acc_bytes")] == pytest.approx([2 / 3, 2 / 3])
    assert found.metrics["nats"].value == pytest.approx(-np.mean([-4.0, -4.5, -3.9]))
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(found.metrics["nats"].value))
    assert found.metrics["exact"].value == 0 and found.truncated == 1 and found.merged == 0
    assert found.chance == pytest.approx(1 / 3) and found.examples == 3
    tokens = np.array([len(r.continuation) for r in asked])
    chosen = [int(np.argmax(part)) for part in np.split(flat / tokens, [3, 6])]
    assert found.metrics["acc_tokens"].value == pytest.approx(np.mean(np.array(chosen) == [0, 0, 1]))


@pytest.mark.slow
def test_a_cloze_is_exact_where_greedy_decoding_says_it(params):
    tokenizer = ByteTokenizer()
    asked = ((context, encode_pairs(tokenizer, [(context, "x")])[0][0]) for context in map("q{}".format, range(99)))
    heard = ((context, likeliest(params, GPT2, request).continuation) for context, request in asked)
    context, said = next((context, ids) for context, ids in heard if 1 < ids[0] < 128)  # a text, in UTF-8
    answers = [chr(said[0]), "\x01"]
    task = Task("cloze", tuple(TaskRow(context, (answer,), 0) for answer in answers))
    found = evaluate_task(task, 0, params, MODEL, tokenizer, ALONE)
    assert found.chance is None and set(found.metrics) == {"exact", "nats", "perplexity"}
    assert found.metrics["exact"].value == 0.5
    pairs, _ = encode_pairs(tokenizer, [(context, answer) for answer in answers])
    assert found.metrics["nats"].value == pytest.approx(
        -np.mean([plainly(params, GPT2, p)[0] for p in pairs]), rel=1e-5
    )


@pytest.mark.slow
def test_both_sides_of_a_border_are_tokenized_as_one():
    tokenizer = train_sentencepiece([b"def f(self): return self.name\n" * 50, b"x = f()\n" * 50], 300)
    pairs = [
        ("def f(self):", " return"),
        ("def f(self): ", "return"),
        ("", " x"),
        (" \n", "x"),
        ("f(", ")"),
        ("f", "()"),
    ]
    requests, merged = encode_pairs(tokenizer, pairs)
    for (context, continuation), request in zip(pairs, requests, strict=True):
        assert request.context[0] == tokenizer.bos
        whole = np.append(np.int32(tokenizer.bos), tokenizer.encode((context + continuation).encode()))
        n = len(tokenizer.encode(context.rstrip().encode())) + 1
        np.testing.assert_array_equal(request.continuation, whole[n:])
    assert (requests[0].context == requests[1].context).all() and (
        requests[0].continuation == requests[1].continuation
    ).all()
    assert merged[4] and not merged[0]  # "()" is a token of its own


GOOD = {"context": "a", "choices": [" b", " c"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "expected the keys context, answer.*found list"),
        (json.dumps(GOOD | {"shots": 1}), "expected the keys"),
        (json.dumps(GOOD | {"context": 3}), "expected a text as context, found 3"),
        (json.dumps(GOOD | {"answer": 2}), "0 to 1, as answer, found 2"),
        (json.dumps(GOOD | {"answer": True}), "found True"),
        (json.dumps(GOOD | {"answer": " b"}), "found ' b'"),
        (json.dumps(GOOD | {"choices": [" b"]}), "two choices or more"),
        (json.dumps(GOOD | {"choices": [" b", ""]}), "not empty"),
        (json.dumps(GOOD | {"choices": [" b", " b"]}), "expected choices that differ"),
        (json.dumps({"context": "a", "answer": ""}), "found ''"),
        (json.dumps({"context": "a", "answer": "b"}), "is cloze; expected multiple choice"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line, words):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(BadInput, match=rf"t\.jsonl line 2.*{words}") as refusal:
        read_task(path)
    assert "\n" not in str(refusal.value)


# ---- tasks made here


def sources():
    """Return this package's own sources: what the corpus leaves out, and no corpus of a machine."""
    return [path.read_text() for path in sorted((ROOT / "gptjax").rglob("*.py"))]


ROOMS = {"docstring": 240}  # our heads name their types


@pytest.fixture(scope="module")
def made():
    return {name: make_task(name, 60, 0, ROOMS.get(name, 96), sources()) for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_the_same_again_and_its_answers_stand_anywhere(name, made):
    task = made[name]
    assert len(task.rows) >= (40 if name in FROM_TEXT else 60)
    room = ROOMS.get(name, 96)
    again = make_task(name, 60, 0, room, sources() if name in FROM_TEXT else ())
    assert again == task != make_task(name, 60, 1, room, sources())
    for row in task.rows:
        assert len(set(row.choices)) == len(row.choices) and all(choice.startswith(" ") for choice in row.choices)
        assert not any(a != b and b.startswith(a) for a in row.choices for b in row.choices)
        assert max(len((row.context + choice).encode()) for choice in row.choices) <= room
        assert row.context == row.context.rstrip() or name == "copy"
    if not task.is_cloze:
        places = Counter(row.answer for row in task.rows)
        assert len(places) == len(task.rows[0].choices) and max(places.values()) < 0.6 * len(task.rows)


def test_what_is_right_is_what_the_text_says(made):
    texts = "\0".join(sources())
    for name in ("identifier", "bracket"):
        for row in made[name].rows:
            assert row.context + row.choices[row.answer] in texts
    for row in made["identifier"].rows:
        name = re.search(r"\w+$", row.choices[row.answer])[0]
        assert re.search(rf"\b{name}\b", row.context)


def test_a_bracket_closes_what_is_open(made):
    pairs = {")": "(", "]": "[", "}": "{"}
    for row in made["bracket"].rows:
        right = row.choices[row.answer]
        assert sorted(choice[-1] for choice in row.choices) == [")", "]", "}"]
        assert pairs[right[-1]] in row.context + right
    for text in sources():  # of each text, exactly as many of each kind: a task draws its rows from these
        kinds = Counter(row.choices[row.answer][-1] for row in brackets(random.Random(0), text, 96))
        assert len(set(kinds.values())) <= 1 and len(kinds) in (0, 3)


def test_a_docstring_is_its_functions_own(made):
    known = set()
    for text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (said := ast.get_docstring(node)):
                head = f"def {node.name}({ast.unparse(node.args)}):"  # methods of two classes may share the name alone
                known.add((head, said.partition("\n")[0].strip()))
    for row in made["docstring"].rows:
        assert [(row.context, choice[4:]) in known for choice in row.choices].count(True) == 1
        assert (row.context, row.choices[row.answer][4:]) in known


def test_synthetic_answers_follow_from_their_rules(made):
    for row in made["copy"].rows:
        assert [choice for choice in row.choices if choice[1:] == row.context[:-2]] == [row.choices[row.answer]]
    for row in made["reverse"].rows:
        assert [c for c in row.choices if c[:0:-1] == row.context[:-2]] == [row.choices[row.answer]]
    for row in made["addition"].rows:
        a, b = row.context.removesuffix(" =").split(" + ")
        assert row.choices == (f" {int(a) + int(b)}",)
    for row in made["lookup"].rows:
        *pairs, asked = row.context.removesuffix(" =").split("\n")
        table = dict(pair.split(" = ") for pair in pairs)
        assert row.choices[row.answer] == f" {table[asked]}" and len(table) == 4
        assert sorted(row.choices) == sorted(f" {value}" for value in table.values())


def test_a_task_survives_its_file(made, tmp_path):
    for name, task in made.items():
        (tmp_path / f"{name}.jsonl").write_text(to_jsonl(task))
        assert read_task(tmp_path / f"{name}.jsonl") == task
    assert set(SYNTHETIC) | set(FROM_TEXT) == set(made)


# ---- the command line


def test_the_help_knows_the_tasks():
    assert evaluation.MADE == ", ".join(NAMES)
    code = "import gptjax.cli, sys; gptjax.cli.parser(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_eval_prints_and_writes_every_score(capsys, run, tmp_path):
    files = tmp_path / "e.json", tmp_path / "e.csv"
    tasks = ("--task", "lookup", "--task", "addition", "--shots", "0,2", "--examples", 8, "--context-bytes", 48)
    code, out, err = call(capsys, "eval", run, run, *tasks, "--json", files[0], "--csv", files[1])
    assert code == 0 and err == "" and out.count(str(run)) == 2 * (2 + 4)
    assert "by position" in out and "lookup, 2 shots, 8 examples, chance 0.500" in out
    first, second = json.loads(files[0].read_text())["models"]
    assert first == second and len(first["corpora"][0]["position_loss"]) == 64
    assert first["flops"] == 6 * first["params"] * first["tokens"]
    rows = list(csv.DictReader(files[1].open()))
    said = {(r["on"], r["shots"], r["metric"]): float(r["value"]) for r in rows}
    assert said["addition", "2", "nats"] == first["tasks"][3]["metrics"]["nats"]["value"]
    loss = json.loads((run / "result.json").read_text())["loss"]
    assert next(v for (_, shots, metric), v in said.items() if metric == "loss") == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_weights_alone_are_evaluated_on_a_named_corpus(capsys, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "export", run, "weights", "--format", "orbax")[0] == 0
    assert "give --corpus" in refused(capsys, "eval", "weights")
    corpus = "markov:documents=60,length=200,seed=3"
    found = []
    for model in ("weights", run):
        code, _, _ = call(
            capsys, "eval", model, "--corpus", corpus, "--split", "train", "--sequences", 9, "--json", "e"
        )
        assert code == 0
        found.append(json.loads(Path("e").read_text())["models"][0]["corpora"])
    assert found[0] == found[1] and found[0][0]["sequences"] == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--task", "nothing"), "'nothing' is neither a file nor one of identifier"),
        (("--task", "copy", "--shots", "1,x"), "--shots '1,x'"),
        (("--task", "copy", "--shots", "9", "--examples", "5"), "5 rows, too few for 9 shots"),
        (("--task", "LONG"), "long.jsonl line 1: .*100 tokens exceeds the context of 64"),
        (("--sequences", "0"), "nothing to evaluate"),
        (("--sequences", "1"), "no standard error"),
        (("--task", "copy", "--examples", "0"), "--examples 0"),
        (("--task", "copy", "--context-bytes", "9"), "48 or more"),
        (("--corpus", "nowhere"), "nowhere"),
        (("--step", "3"), "checkpoint"),
        (("--csv", "/no/such/e.csv"), "not a directory"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, run, tmp_path, given, words):
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"context": "a", "answer": "b" * 100}))
    given = [str(long) if word == "LONG" else word for word in given]
    before = sorted(tmp_path.iterdir())
    line = refused(capsys, "eval", run, *given, "--json", tmp_path / "e.json")
    assert re.search(words, line)
    assert sorted(tmp_path.iterdir()) == before


def test_tasks_are_written_whole_or_not(capsys, tmp_path):
    out, given = tmp_path / "tasks", ("--from", write_corpus(tmp_path / "c.jsonl"), "--examples", 4)
    code, said, err = call(capsys, "tasks", out, *given)
    assert (code, err) == (0, "")
    assert said.count("\n") == len(NAMES) == len(list(out.glob("*.jsonl"))) == len(list(out.glob("*.yaml")))
    assert "exists" in refused(capsys, "tasks", out, *given)
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert "none of 1 documents" in refused(capsys, "tasks", tmp_path / "none", "--from", bare)
    assert not (tmp_path / "none").exists()
