"""What a path holds is said without loading it, and what is none of ours is refused."""

import json

import pytest

from gptjax.cli import main
from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source, open_stores
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.run.loop import train
from gptjax.sharding import MeshConfig
from gptjax.train.optim import OptimConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on (data 2, fsdp 2, tensor 2) with two checkpoints, and its config."""
    folder = tmp_path_factory.mktemp("inspect")
    config = RunConfig(
        model=GPTConfig(vocab_size=257, context=16, d_model=8, n_layers=1, n_heads=2, bias=False),
        execution=Execution(vocab_multiple=4),
        data=DataConfig((Source("markov:states=4,documents=100,length=200"),), "bytes", cache=str(folder / "cache")),
        optim=OptimConfig(warmup=2),
        batch=8,
        steps=8,
        evaluate=EvalConfig(sequences=8, batch=8),
        save=SaveConfig(every=4),
        trackers=(),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    )
    train(config, folder / "run")
    return folder, config


def said(capsys, *args):
    main(["inspect", *map(str, args)])
    return capsys.readouterr().out


def test_a_run_and_its_checkpoint(run, tmp_path, capsys):
    folder, config = run
    out = said(capsys, folder / "run", "--json", tmp_path / "run.json")
    assert out.startswith("run\n") and f"parameters: {config.model.cost(16).total:,}" in out
    assert "status: done" in out and out.count("bytes, sealed") == 2
    assert "layers.mlp.up.kernel" in out and "(1, 8, 32)" in out and "split (-, fsdp=2, tensor=2)" in out
    found = json.loads((tmp_path / "run.json").read_text())
    arrays = {array["name"]: array for array in found["arrays"]}
    assert arrays["opt.1.0.mu.embedding"]["shape"] == [260, 8] and arrays["step"]["dtype"] == "int32"
    step = folder / "run" / "checkpoints" / "8"
    assert "state: intact" in said(capsys, step)
    next((step / "default" / "d").iterdir()).write_bytes(b"x")
    assert "state: is damaged" in said(capsys, step)
    next((step / "default" / "d").iterdir()).unlink()
    assert "state: is damaged" in said(capsys, step)


def test_weights_a_transformers_model_and_a_token_store(run, tmp_path, capsys):
    folder, config = run
    main(["export", str(folder / "run"), str(tmp_path / "weights"), "--format", "orbax", "--step", "4"])
    main(["export", str(folder / "run"), str(tmp_path / "hf"), "--step", "4"])
    capsys.readouterr()
    weights, hf = said(capsys, tmp_path / "weights"), said(capsys, tmp_path / "hf")
    assert weights.startswith("weights\n") and "step: 4" in weights and "tokenizer: 257 ids" in weights
    assert "opt." not in weights and "embedding             " in weights
    assert hf.startswith("transformers model\n") and "GPT2LMHeadModel" in hf and "transformer.h.0.mlp.c_fc.weight" in hf
    (store,) = open_stores(config.data)
    assert store.digest in said(capsys, next((folder / "cache" / "tokens").iterdir()))


def test_a_sweep(tmp_path, capsys):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "a.json").write_text("{}")
    (tmp_path / "plan.json").write_text(json.dumps({"runs": [{"name": "a"}, {"name": "b"}]}))
    assert "runs: 2\n  done: 1" in said(capsys, tmp_path)


def test_anything_else_is_refused(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SystemExit) as stop:
            main(["inspect", str(path)])
        assert stop.value.code == 2 and "is no run" in capsys.readouterr().err
