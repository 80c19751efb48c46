"""Through lm-eval a model scores what `gptjax eval` gives it, and what transformers gives the same weights."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import pytest
from test_cli import call
from test_eval import write_corpus

from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.made import make_task
from gptjax.eval.tasks import Row, Task, encode_pairs, evaluate, harness_task, prompts, to_jsonl
from gptjax.models.gpt import GPTConfig
from gptjax.sharding import Layout, MeshConfig, Rules, make_mesh
from gptjax.train.weights import SavedModel

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from gptjax.eval.harness import GptJax  # noqa: E402

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("accelerate")
from lm_eval.models.huggingface import HFLM  # noqa: E402
from test_parity import from_openai, hf_openai  # noqa: E402

TEXT = "def f(self, x):\n    return self.f(x) + x\n\nfor i in range(10):\n    print(f(i), i)\n" * 20


def theirs():
    """Train a BPE of transformers' kind, that joins letters and brackets, with bos before what it encodes."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [TEXT],
        tokenizers.trainers.BpeTrainer(
            vocab_size=290, special_tokens=["<bos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    bos = bpe.token_to_id("<bos>")
    bpe.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", bos)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<bos>")


class Same(Tokenizer):
    """The same ids, as our models ask for them."""

    def __init__(self, tokenizer):
        self.tokenizer, self.vocab_size, self.bos = tokenizer, len(tokenizer), tokenizer.bos_token_id
        self.digest = "same"

    def encode(self, document):
        return np.array(self.tokenizer.encode(document.decode(), add_special_tokens=False), np.int32)

    def encode_many(self, documents):
        return [self.encode(document) for document in documents]

    def decode(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).encode()


@dataclass(frozen=True)
class InMemory(SavedModel):
    """A model that is not on disk."""

    params: object = None
    ours: object = None

    @cached_property
    def tokenizer(self):
        return self.ours

    def layout(self):
        return Layout(make_mesh(MeshConfig(data=8)), Rules())

    def read(self, layout):
        return jax.device_put(self.params, layout.replicated)


@pytest.fixture(scope="module")
def pair():
    """Return the same weights as lm-eval's own HFLM and as ours."""
    tokenizer = theirs()
    config = GPTConfig(vocab_size=len(tokenizer), context=64, d_model=32, n_layers=2, n_heads=4)
    torch.manual_seed(0)
    model = hf_openai(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    params = from_openai({name: p.detach().numpy() for name, p in model.named_parameters()}, config)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.bos_token_id
    reference = HFLM(model, tokenizer=tokenizer, add_bos_token=True, batch_size=4, device="cpu")
    return reference, GptJax(InMemory(Path("memory"), config, None, None, {}, params, Same(tokenizer)))


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
    tasks.append(Task("words", tuple(Row(f"a{i} = é\n", (" b", "c" * (i + 1), " ü é"), i % 3) for i in range(8))))
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
        here = evaluate(task, shots, ours.params, ours.config, ours.ids, ours.layout, seed=7).metrics
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
