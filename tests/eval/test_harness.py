"""Through lm-eval a model scores what `gptjax eval` gives it, and what transformers gives its export."""

import json

import numpy as np
import pytest

from gptjax.data.tokenizer import train_sentencepiece
from gptjax.eval.synthetic_tasks import make_task
from gptjax.eval.tasks import Task, TaskRow, encode_pairs, evaluate_task, harness_task, prompts, to_jsonl
from gptjax.hf.export import export_hf
from gptjax.models.gpt import GPTConfig
from gptjax.run.weights import saved_model
from helpers import call, needed, saved_run, write_corpus

lm_eval = needed("lm_eval", "eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from gptjax.eval.harness import GptJax  # noqa: E402

for package in ("torch", "transformers", "accelerate"):
    needed(package, "eval,hf")
from lm_eval.models.huggingface import HFLM  # noqa: E402

TEXT = "def f(self, x):\n    return self.f(x) + x\n\nfor i in range(10):\n    print(f(i), i)\n" * 20
LLAMA = {"norm": "rmsnorm", "bias": False, "positions": "rope", "activation": "silu", "gated": True, "n_kv_heads": 2}


@pytest.fixture(scope="module", params=[{}, LLAMA], ids=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    """Return a run's export as lm-eval's own HFLM, and the run as ours."""
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = train_sentencepiece([TEXT.encode()], 300)
    config = GPTConfig(vocab_size=300, context=64, d_model=32, n_layers=2, n_heads=4, **request.param)
    no_text = [i for i in range(300) if not tokenizer.decode([i]).isascii()]  # alone, such bytes are no UTF-8
    saved_run(folder / "run", config, silent=no_text)
    tokenizer.save(folder / "run")
    export_hf(saved_model(folder / "run"), folder / "hf")
    reference = HFLM(str(folder / "hf"), add_bos_token=True, batch_size=4, device="cpu", dtype="float32")
    return reference, GptJax(folder / "run")


def asked(kind, *args):
    return Instance(request_type=kind, doc={}, arguments=args, idx=0)


PAIRS = [
    ("def f(self,", " x):"),
    ("def f(self, ", "x):"),
    ("", " return"),
    (" \n", "x"),
    ("f(", ")"),
    ("print(f", "(i)"),
    ("é\u2581", " ü"),
    ("word " * 90, "x + x"),  # longer than the context
    ("x = f(1)\n\n", "print"),
]


def test_log_likelihoods_are_those_of_the_exported_model(pair):
    requests = [asked("loglikelihood", *texts) for texts in PAIRS]
    expected, found = (lm.loglikelihood(requests, disable_tqdm=True) for lm in pair)
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], rtol=1e-4)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert pair[1].truncated == 1


def test_contexts_are_cut_as_lm_eval_cuts_them(pair):
    ours = pair[1]
    requests, _ = encode_pairs(ours.ids, PAIRS)
    for (context, continuation), request in zip(PAIRS, requests, strict=True):
        if context:
            expected = ours._encode_pair(context, continuation)
            assert (request.context.tolist(), request.continuation.tolist()) == tuple(expected)


def test_rolling_log_likelihoods_are_those_of_the_exported_model(pair):
    requests = [asked("loglikelihood_rolling", text) for text in ("x", TEXT[:80], TEXT[:700])]
    expected, found = (lm.loglikelihood_rolling(requests, disable_tqdm=True) for lm in pair)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_greedy_answers_are_those_of_the_exported_model(pair):
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    requests = [asked("generate_until", text, settings) for text in ("def f(", "print", TEXT[:300])]
    expected, found = (lm.generate_until(requests, disable_tqdm=True) for lm in pair)
    assert found == expected


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Write tasks with their YAML; return them, and the harness's manager of them."""
    place = tmp_path_factory.mktemp("tasks")
    tasks = [make_task(name, 12, 3) for name in ("lookup", "addition", "copy")]
    tasks.append(Task("words", tuple(TaskRow(f"a{i} = é\n", (" b", "c" * (i + 1), " ü é"), i % 3) for i in range(8))))
    for task in tasks:
        (place / f"{task.name}.jsonl").write_text(to_jsonl(task))
        described = harness_task(task, place / f"{task.name}.jsonl")
        (place / f"{task.name}.yaml").write_text(json.dumps(described))
    return tasks, TaskManager(include_path=str(place), include_defaults=False)


@pytest.mark.parametrize("shots", [0, 2])
def test_local_tasks_score_the_same_here_there_and_exported(pair, local, shots, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tasks, manager = local
    reference, ours = pair
    names = [f"gptjax_{task.name}" for task in tasks]
    settings = {"num_fewshot": shots, "task_manager": manager, "fewshot_random_seed": 7, "bootstrap_iters": 0}
    exported, through = (lm_eval.simple_evaluate(lm, tasks=names, **settings) for lm in (reference, ours))
    for task, name in zip(tasks, names, strict=True):
        here = evaluate_task(task, shots, ours.params, ours.saved.model, ours.ids, ours.layout, seed=7).metrics
        sent = through["samples"][name]
        contexts = [sample["arguments"]["gen_args_0"]["arg_0"] if isinstance(sample["arguments"], dict)
                    else sample["arguments"][0][0] for sample in sorted(sent, key=lambda s: s["doc_id"])]  # fmt: skip
        assert contexts == prompts(task, shots, seed=7)
        for scores in (through["results"][name], exported["results"][name]):
            if task.is_cloze:
                assert scores["perplexity,none"] == pytest.approx(here["perplexity"].value, rel=1e-3)
                assert scores["acc,none"] == here["exact"].value
            else:
                assert scores["acc,none"] == here["acc"].value
                assert scores["acc_bytes,none"] == here["acc_bytes"].value
                if task.name != "words":  # whose characters are of several bytes
                    assert scores["acc_norm,none"] == here["acc_bytes"].value


def test_written_tasks_are_the_harnesss(capsys, tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl")
    assert call(capsys, "tasks", tmp_path / "out", "--from", corpus, "--examples", 3)[0] == 0
    found = TaskManager(include_path=str(tmp_path / "out"), include_defaults=False)
    assert {f"gptjax_{path.stem}" for path in (tmp_path / "out").glob("*.jsonl")} == set(found.all_tasks)
