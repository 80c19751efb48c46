"""Weights out and in without transformers: names, shards, multipliers, memory, and every mistake in one line."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from gptjax.cli import main
from gptjax.config import RunConfig, SaveConfig, to_json
from gptjax.data.json_tokenizer import JsonTokenizer, packed
from gptjax.data.tokenizer import ByteTokenizer, train_sentencepiece
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.files import write_json
from gptjax.fingerprint import fingerprint
from gptjax.generate import generate
from gptjax.hf.architectures import Settings, architecture_of, multipliers, tensors_of, without_mup
from gptjax.hf.export import export_hf
from gptjax.hf.load import import_hf, open_hf, read_params
from gptjax.hf.tensor_files import CODES, INDEX, SINGLE, Outgoing, open_tensors, write_tensors
from gptjax.hf.tokenizer import tokenizer_files
from gptjax.models.gpt import GPTConfig
from gptjax.models.layers import ACTIVATIONS
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.export import export
from gptjax.run.weights import saved_model
from gptjax.sharding import MeshConfig
from helpers import logits_of, saved_run

GPT2 = GPTConfig(vocab_size=257, context=16, d_model=24, n_layers=3, n_heads=3)
LLAMA = replace(
    GPT2, norm="rmsnorm", bias=False, positions="rope", activation="silu", gated=True, tied=False, n_kv_heads=1
)
CONFIGS = {
    "gpt1": replace(GPT2, norm_place="post"),
    "gpt2": GPT2,
    "gpt2 without biases": replace(GPT2, bias=False),
    "llama": LLAMA,
    "mup": replace(LLAMA, bias=True, mup_width=8, mup_depth=2),
    "mup, tied and normed": replace(LLAMA, tied=True, qk_norm=True, mup_width=12, mup_depth=1, depth_alpha=0.5),
    "mup, gpt2": replace(GPT2, mup_width=8, mup_depth=1),
}


def logits(saved, params, ids):
    found = jax.jit(lambda params: logits_of(saved.config, params, ids, execution=saved.execution))(params)
    return np.asarray(found)[..., : saved.config.vocab_size]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_export_is_the_model_and_comes_back(config, tmp_path):
    params = saved_run(tmp_path / "run", config)
    saved = saved_model(tmp_path / "run")
    proof = export_hf(saved, tmp_path / "hf", shard_bytes=20_000)
    assert proof.largest < 1e-4 and len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    model = import_hf(tmp_path / "hf", tmp_path / "back")
    back = saved_model(tmp_path / "back")
    assert model.family is architecture_of(config) is architecture_of(back.config) and multipliers(back.config) == {}
    ids = jnp.asarray(np.random.default_rng(0).integers(257, size=(2, 16)))
    ours = logits(saved, params, ids)
    theirs = logits(back, back.read(back.layout()), ids)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert ours.std() > 0.1 and back.tokenizer.decode(range(257)) == ByteTokenizer().decode(range(257))
    if back.config.bias == config.bias and not multipliers(config):
        for name, array in back.arrays.items():
            whole = saved.arrays[name][tuple(map(slice, array.shape))]
            np.testing.assert_array_equal(array.read().result(), whole.read().result())
        export_hf(back, tmp_path / "again", shard_bytes=20_000, verified=False)
        for path in (tmp_path / "hf").glob("*.safetensors*"):
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=16), MeshConfig(data=2, pipeline=2, tensor=2)], ids=str)
def test_a_run_is_exported_whatever_mesh_it_had(mesh, tmp_path):
    config = replace(GPT2, n_layers=2, n_heads=4, d_head=8)
    saved_run(tmp_path / "run", replace(config, norm="rmsnorm", positions="rope"), mesh)
    assert export_hf(saved_model(tmp_path / "run"), tmp_path / "hf").largest < 1e-4


def test_weights_whose_bytes_have_changed_are_refused(tmp_path, capsys):
    write_hf(tmp_path / "hf", LLAMA)
    import_hf(tmp_path / "hf", tmp_path / "weights")
    (file,) = (path for path in (tmp_path / "weights" / "params" / "d").iterdir() if path.stat().st_size > 1000)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(tmp_path / "weights"), "a"])
    assert stop.value.code == 2 and f"d/{file.name} is not as it was written" in capsys.readouterr().err


def test_a_model_of_transformers_is_to_be_imported_first(tmp_path):
    write_hf(tmp_path / "hf", LLAMA)
    with pytest.raises(BadInput, match="gptjax import it first"):
        saved_model(tmp_path / "hf")


@pytest.mark.slow
def test_an_export_that_says_something_else_is_not_kept(tmp_path, monkeypatch):
    saved_run(tmp_path / "run", CONFIGS["mup"])
    monkeypatch.setattr("gptjax.hf.export.multipliers", lambda config: {})
    with pytest.raises(BadInput, match="logits that differ"):
        export_hf(saved_model(tmp_path / "run"), tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_command_line_exports_and_imports(dtype, tmp_path, capsys):
    params = saved_run(tmp_path / "run", LLAMA)
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf"), "--dtype", dtype])
    assert "logits within" in capsys.readouterr().out
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "LlamaForCausalLM" in card and "logits within" in card and '"mup_width": 0' in card
    main(["import", str(tmp_path / "hf"), str(tmp_path / "weights")])
    assert f"LlamaForCausalLM, {dtype}, with its tokenizer" in capsys.readouterr().out
    arrays = saved_model(tmp_path / "weights").arrays
    whole = np.asarray(params["layers"]["mlp"]["up"]["kernel"].astype(dtype), np.float32)
    stored = arrays["layers.mlp.up.kernel"].read().result()
    assert stored.dtype.name == dtype
    np.testing.assert_array_equal(stored.astype(np.float32), whole)


def write_hf(folder, config, dtype="float32", rename=str, **others):
    """Save random weights as transformers would, or nearly so."""
    family, kind = architecture_of(config), jnp.dtype(dtype)
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {t.name: rng.normal(size=t.shape).astype(kind) for t in tensors_of(config, family)}
    arrays = {rename(name): array for name, array in arrays.items()} | others
    write_json(
        folder / "config.json",
        {"architectures": [family.architecture], **family.write(config), "bos_token_id": 256},
    )
    outgoing = [Outgoing(name, array.shape, lambda array=array: iter([array])) for name, array in arrays.items()]
    write_tensors(folder, [t for t in outgoing if t.shape], kind, 10**9)
    return arrays


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_header(path, change):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + n :])


UP = "model.layers.1.mlp.up_proj.weight"
SHARD = "one.safetensors"


def raw_header(path, head, length=None):
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head)


def sharded(folder, index):
    (folder / SINGLE).rename(folder / SHARD)
    write_json(folder / INDEX, index)


def setting(folder, **changes):
    edit(folder / "config.json", lambda c: c.update(changes))


def swap(header, name, **to):
    header[name] |= to


BROKEN = {
    "architecture 'BloomForCausalLM' is not one of": lambda f: edit(
        f / "config.json", lambda c: c.update(architectures=["BloomForCausalLM"])
    ),
    "has no 'hidden_size'": lambda f: edit(f / "config.json", lambda c: c.pop("hidden_size")),
    "names no architectures": lambda f: edit(f / "config.json", lambda c: c.pop("architectures")),
    "hidden_act = 'mish' is not one of": lambda f: edit(f / "config.json", lambda c: c.update(hidden_act="mish")),
    "rope_type = 'yarn'": lambda f: edit(f / "config.json", lambda c: c["rope_parameters"].update(rope_type="yarn")),
    "mlp_bias = True and gptjax has only False": lambda f: edit(f / "config.json", lambda c: c.update(mlp_bias=True)),
    "n_heads 5": lambda f: edit(f / "config.json", lambda c: c.update(num_attention_heads=5, num_key_value_heads=2)),
    f"has no tensor {UP} of shape (96, 24); its weights": lambda f: edit_header(f / SINGLE, lambda h: h.pop(UP)),
    "tensor other of shape (0,) has no place": lambda f: edit_header(
        f / SINGLE, lambda h: h.update(other={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    ),
    f"{UP} has shape (24, 96), and config.json asks (96, 24)": lambda f: edit_header(
        f / SINGLE, lambda h: swap(h, UP, shape=[24, 96])
    ),
    f"{UP} is float16 and model.embed_tokens.weight float32": lambda f: edit_header(
        f / SINGLE, lambda h: swap(h, UP, dtype="F16", data_offsets=[(start := h[UP]["data_offsets"][0]), start + 4608])
    ),
    f"{UP} of shape (96, 24) and type F16 has 9216 bytes": lambda f: edit_header(
        f / SINGLE, lambda h: swap(h, UP, dtype="F16")
    ),
    f"{UP} is of type I64": lambda f: edit_header(f / SINGLE, lambda h: swap(h, UP, dtype="I64")),
    "is truncated: lm_head.weight ends at byte": lambda f: os.truncate(f / SINGLE, (f / SINGLE).stat().st_size - 1),
    "is truncated: its header alone": lambda f: os.truncate(f / SINGLE, 100),
    "cannot be read as JSON (Expecting": lambda f: raw_header(f / SINGLE, b"no header"),
    "cannot be read as JSON (maximum": lambda f: raw_header(f / SINGLE, b"[" * 100_000),
    "has no safetensors header": lambda f: raw_header(f / SINGLE, b"[]"),
    "is truncated: its header alone has 1152921504606846976": lambda f: raw_header(f / SINGLE, b"{}", 2**60),
    "the header gives no type, shape and place for a": lambda f: raw_header(f / SINGLE, b'{"a": 1}'),
    f"place for {UP}; save": lambda f: edit_header(f / SINGLE, lambda h: swap(h, UP, data_offsets=["0", "9216"])),
    f"gives no type, shape and place for {UP}": lambda f: edit_header(
        f / SINGLE, lambda h: swap(h, UP, shape=[-96, -24])
    ),
    f"header gives no type, shape and place for {UP}": lambda f: edit_header(
        f / SINGLE, lambda h: swap(h, UP, data_offsets=[9216, 0])
    ),
    f"{UP} of shape (1152921504606846976, 16)": lambda f: edit_header(
        f / SINGLE, lambda h: swap(h, UP, shape=[2**60, 16])
    ),
    "overlap in the file": lambda f: edit_header(f / SINGLE, lambda h: swap(h, UP, data_offsets=[0, 96 * 24 * 4])),
    "has neither model.safetensors nor": lambda f: (f / SINGLE).unlink(),
    "missing and model.safetensors.index.json names it": lambda f: sharded(f, {"weight_map": {UP: "gone"}}),
    f"has no tensor {UP}.gone and": lambda f: sharded(f, {"weight_map": {f"{UP}.gone": SHARD}}),
    "both hold": lambda f: (
        sharded(f, {"weight_map": {UP: SHARD, "x": "two.safetensors"}}),
        (f / "two.safetensors").write_bytes((f / SHARD).read_bytes()),
    ),
    "index.json has no weight_map that": lambda f: sharded(f, {"metadata": {}}),
    "has no weight_map": lambda f: sharded(f, []),
    "no weight_map that names a file": lambda f: sharded(f, None),
    f"{UP} is in '../hf/one.safetensors', and a file beside": lambda f: sharded(
        f, {"weight_map": {UP: f"../hf/{SHARD}"}}
    ),
    f"{UP} is in '/etc/passwd'": lambda f: sharded(f, {"weight_map": {UP: "/etc/passwd"}}),
    f"{UP} is in None": lambda f: sharded(f, {"weight_map": {UP: None}}),
    "num_hidden_layers = 3.0 is not a whole number": lambda f: setting(f, num_hidden_layers=3.0),
    "num_hidden_layers = True is not a whole number": lambda f: setting(f, num_hidden_layers=True),
    "layers of 1000000000, and the files": lambda f: setting(f, num_hidden_layers=10**9),
    "hidden_size = 1152921504606846976 is not": lambda f: setting(f, hidden_size=2**60),
    "width of 1000000000, and the files": lambda f: setting(f, hidden_size=10**9, head_dim=8),
    "rms_norm_eps = '1e-5' is not a number": lambda f: setting(f, rms_norm_eps="1e-5"),
    "rms_norm_eps = nan is not a number": lambda f: setting(f, rms_norm_eps=float("nan")),
    "tie_word_embeddings = 0 is not true or false": lambda f: setting(f, tie_word_embeddings=0),
    "hidden_act = ['silu'] is not one of": lambda f: setting(f, hidden_act=["silu"]),
    "bos_token_id = [1] is not an id": lambda f: setting(f, bos_token_id=[1]),
    "bos_token_id = '<s>' is not an id": lambda f: setting(f, bos_token_id="<s>"),
    "eos_token_id = [2, 'x'] is not an id": lambda f: setting(f, eos_token_id=[2, "x"]),
    "eos_token_id = True is not an id": lambda f: write_json(f / "generation_config.json", {"eos_token_id": True}),
    "model_type 'mistral' is not that of LlamaForCausalLM": lambda f: setting(f, model_type="mistral"),
    "rope_type = 'linear' of rope_scaling": lambda f: setting(f, rope_scaling={"type": "linear", "factor": 2.0}),
    "rope_scaling = {'full_attention'": lambda f: setting(f, rope_scaling={"full_attention": {"rope_type": "default"}}),
    "rope_parameters = 'default' is not": lambda f: setting(f, rope_parameters="default"),
    "has no 'rope_scaling.factor'": lambda f: setting(f, rope_scaling={"rope_type": "llama3"}),
    "config.json holds a list": lambda f: (f / "config.json").write_text("[]"),
    "give the folder that save_pretrained wrote": lambda f: (f / "config.json").unlink(),
    "config.json:2 cannot be read as JSON": lambda f: (f / "config.json").write_text('{\n"a": }'),
    "tokenizer.json has 300 ids and the model 257": lambda f: add_tokenizer(f, 300),
    "a decoder of ByteLevel": lambda f: add_tokenizer(f, 257, decoder={"type": "WordPiece"}),
}


def add_tokenizer(folder, size, **changes):
    content = json.loads(tokenizer_files(ByteTokenizer(), 16)["tokenizer.json"]) | changes
    content["model"]["vocab"] |= {f"more {i}": i for i in range(257, size)}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("words", BROKEN)
def test_what_is_no_model_of_ours_is_refused_in_one_line(words, tmp_path, capsys):
    write_hf(tmp_path / "hf", LLAMA)
    BROKEN[words](tmp_path / "hf")
    with pytest.raises(SystemExit) as stop:
        main(["import", str(tmp_path / "hf"), str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and said.count("\n") == 1 and str(tmp_path / "hf") in said
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_one_file_counts_and_not_the_index_of_another_model_beside_it(tmp_path):
    arrays = write_hf(tmp_path / "hf", LLAMA)
    write_json(tmp_path / "hf" / INDEX, {"weight_map": {UP: "gone"}})
    assert open_hf(tmp_path / "hf").tensors.keys() == arrays.keys()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ((8.0, 1.0, 4.0, 16), 10000.0)),
        ({"rope_scaling": {"type": "llama3", "factor": 8, "rope_theta": 7}}, ((8.0, 1.0, 4.0, 16), 7.0)),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "rope_theta": 9.0}, ((8.0, 1.0, 4.0, 16), 9.0)),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 5.0}}, (None, 5.0)),
        ({"rope_scaling": None, "rope_parameters": None, "rope_theta": 5.0}, (None, 5.0)),
        (
            {
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 4},
                "original_max_position_embeddings": 8,
            },
            ((8.0, 1.0, 4.0, 8), 10000.0),
        ),
    ],
)
def test_rope_scaling_stands_for_rope_parameters(given, expected):
    content = architecture_of(LLAMA).write(LLAMA)
    del content["rope_theta"]
    if scaling := given.get("rope_scaling"):
        given["rope_scaling"] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **scaling}
    read = architecture_of(LLAMA).read(Settings({**content, "rope_parameters": {"rope_theta": 3.0}, **given}))
    assert (read.rope_scaling, read.rope_theta) == expected


def test_what_a_config_leaves_out_is_what_transformers_takes():
    arcee = replace(LLAMA, gated=False, activation="relu")
    content = architecture_of(arcee).write(arcee)
    del content["rms_norm_eps"]
    assert architecture_of(arcee).read(Settings(content)).norm_eps == 1e-5
    del content["hidden_act"]
    with pytest.raises(BadInput, match="'relu2' is not one of"):
        architecture_of(arcee).read(Settings(content))
    qwen = replace(LLAMA, qk_norm=True)
    content = architecture_of(qwen).write(qwen)
    del content["head_dim"]
    assert architecture_of(qwen).read(Settings(content)).d_head == 128


def test_masks_of_any_type_are_left_out_and_a_head_may_stand_for_its_embedding(tmp_path):
    write_hf(tmp_path / "hf", GPT2)

    def with_masks(header):
        for code, name in (("U8", "h.0.attn.bias"), ("BOOL", "h.1.attn.masked_bias"), ("I64", "position_ids")):
            header[f"transformer.{name}"] = {"dtype": code, "shape": [0], "data_offsets": [0, 0]}
        header["lm_head.weight"] = header.pop("transformer.wte.weight")

    whole = read_params(open_hf(tmp_path / "hf"))
    edit_header(tmp_path / "hf" / SINGLE, with_masks)
    again = read_params(open_hf(tmp_path / "hf"))
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_every_activation_is_exported_or_refused_in_a_line(monkeypatch):
    choices = tuple(ACTIVATIONS)
    monkeypatch.setitem(ACTIVATIONS, "a new one", ACTIVATIONS["relu"])
    for activation in (*choices, "a new one"):
        for config in CONFIGS.values():
            try:
                architecture_of(replace(config, activation=activation))
            except BadInput as refused:
                assert "use --format orbax" in str(refused) and "\n" not in str(refused)
    for activation in choices:
        assert architecture_of(replace(GPT2, activation=activation)).architecture == "GPT2LMHeadModel"


EOS = {
    "of config.json": ({"bos_token_id": 1, "eos_token_id": 2}, None, [2]),
    "several": ({"bos_token_id": 1, "eos_token_id": [2, 3, 999]}, None, [2, 3]),
    "of generation_config.json": ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [4, 5]}, [4, 5]),
    "taken back there": ({"bos_token_id": None, "eos_token_id": 2, "pad_token_id": -1}, {}, []),
}


@pytest.mark.parametrize(("config", "generation", "stops"), EOS.values(), ids=EOS)
def test_the_ids_that_end_a_text_stay_with_the_weights(config, generation, stops, tmp_path):
    write_hf(tmp_path / "hf", LLAMA)
    setting(tmp_path / "hf", **config)
    add_tokenizer(tmp_path / "hf", 257)
    if generation is not None:
        write_json(tmp_path / "hf" / "generation_config.json", generation)
    import_hf(tmp_path / "hf", tmp_path / "weights")
    saved = saved_model(tmp_path / "weights")
    assert saved.stops == stops and saved.tokenizer.bos == (1 if config["bos_token_id"] else 2)
    export(saved, tmp_path / "copied")
    assert saved_model(tmp_path / "copied").stops == stops
    export_hf(saved, tmp_path / "back", verified=False)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: written[name] for name in config} == config
    expected = config if generation is None else generation
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == expected


def test_weights_from_before_and_of_runs_end_where_the_next_document_begins(tmp_path):
    saved_run(tmp_path / "run", LLAMA)
    export(saved_model(tmp_path / "run"), tmp_path / "weights")
    assert saved_model(tmp_path / "run").stops == saved_model(tmp_path / "weights").stops == [256]


BEFORE = {"vocab_multiple": 8, "remat": "full", "attention": "auto", "microbatches": 0, "scan": None}  # of a model


def test_files_from_when_a_model_said_how_it_is_computed_are_read(tmp_path):
    """The config.json of a run and the weights.json of an export, as they were until 2027."""
    params = saved_run(tmp_path / "run", GPT2, MeshConfig())
    export(saved_model(tmp_path / "run"), tmp_path / "weights")
    of_run, of_weights = tmp_path / "run" / "config.json", tmp_path / "weights" / "weights.json"
    run, weights = (json.loads(path.read_text()) for path in (of_run, of_weights))
    assert weights.pop("vocab_multiple") == 8 and not {*BEFORE} & {*weights["model"]}
    del run["execution"], run["data"]["objective"], run["rules"]["hidden"], run["rules"]["experts"]
    for content, path in ((run, of_run), (weights, of_weights)):
        del content["model"]["family"]
        write_json(path, content | {"model": content["model"] | BEFORE})
    saved = saved_model(tmp_path / "run")
    assert saved.run == RunConfig(model=GPT2, execution=Execution(vocab_multiple=8, remat="full"))
    assert fingerprint(saved.run) == "8179a961b44144a5"  # as the code of then computed it
    for folder, remat in (("run", "full"), ("weights", "none")):
        saved = saved_model(tmp_path / folder)
        assert (saved.config, saved.execution) == (GPT2, Execution(vocab_multiple=8, remat=remat))
        read = saved.read(saved.layout())
        assert read["embedding"].shape == (264, 24)
        jax.tree.map(np.testing.assert_array_equal, read, params)
        assert saved.speaker.execution.padded(saved.speaker.config.vocab_size) == 264
        export(saved, tmp_path / f"{folder} again")
        again = json.loads((tmp_path / f"{folder} again" / "weights.json").read_text())
        assert again["vocab_multiple"] == 8 and again["model"] == to_json(GPT2)


def test_an_id_beyond_the_vocabulary_leads_no_document(tmp_path):
    write_hf(tmp_path / "hf", LLAMA)
    setting(tmp_path / "hf", bos_token_id=50256, eos_token_id=[50256, 7])
    add_tokenizer(tmp_path / "hf", 257)
    assert open_hf(tmp_path / "hf").tokenizer.bos == 7
    setting(tmp_path / "hf", bos_token_id=None, eos_token_id=50256)
    with pytest.raises(BadInput, match="names no token that leads a document; set bos_token_id"):
        open_hf(tmp_path / "hf")


@pytest.mark.slow
def test_ids_that_only_pad_the_vocabulary_are_not_drawn(tmp_path):
    config = replace(GPT2, vocab_size=500)
    write_hf(tmp_path / "hf", config)
    add_tokenizer(tmp_path / "hf", 257)
    setting(tmp_path / "hf", eos_token_id=None)
    import_hf(tmp_path / "hf", tmp_path / "weights")
    saved = saved_model(tmp_path / "weights")
    assert saved.tokenizer.decode([65, 499]) == b"A"
    prompts, settings = [np.array([256, 65])] * 8, {"new_tokens": 14, "layout": saved.layout()}
    params = saved.read(settings["layout"])
    assert max(np.concatenate(generate(params, saved.model, prompts, **settings)).tolist()) > 256
    assert max(np.concatenate(generate(params, saved.speaker, prompts, **settings)).tolist()) <= 256


ARGUMENTS = [
    ("--temperature", "nan"),
    ("--temperature", "1e-40"),
    ("--tokens", "-5"),
    ("--tokens", "0"),
    ("--tokens", "1000000000"),
    ("--seed", str(2**63)),
    ("--seed", "-1"),
    ("--top-k", "-1"),
    ("--top-p", "nan"),
    ("--repetition-penalty", "inf"),
    ("--count", "0"),
    ("--count", "1000000000"),
    ("--step", "3"),
]


def test_numbers_that_generate_cannot_take_are_one_line(tmp_path, capsys, monkeypatch):
    saved_run(tmp_path / "run", GPT2)
    monkeypatch.setattr("sys.stdin", None)
    for given in [*ARGUMENTS, ("-",)]:
        with pytest.raises(SystemExit) as stop:
            main(["generate", str(tmp_path / "run"), *(["a"] if len(given) > 1 else []), *given])
        out, said = capsys.readouterr()
        assert stop.value.code == 2 and not out and said.count("\n") == 1, (given, said)


@pytest.mark.slow
def test_what_the_terminal_cannot_show_is_marked(tmp_path):
    saved_run(tmp_path / "run", GPT2)
    program = [sys.executable, "-m", "gptjax.cli", "generate", str(tmp_path / "run"), "\u00e9", "--tokens", "2"]
    ran = subprocess.run(program, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=300)
    assert ran.returncode == 0 and ran.stdout.startswith(b"?"), ran.stderr


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_and_is_no_mistake_of_the_user(tmp_path):
    write_hf(tmp_path / "hf", GPT2)
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2); from gptjax.cli import main; "
    for way in (["import", "hf", "out"], ["export", "weights", "out", "--no-verify"]):
        given = [sys.executable, "-c", f"{program}main({way})"]
        ran = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 1 and ran.stderr.startswith("gptjax: ") and "out" in ran.stderr, ran.stderr
        assert ran.stderr.count("\n") == 1 and not list(tmp_path.glob("*out*"))
        import_hf(tmp_path / "hf", tmp_path / "weights") if way[0] == "import" else None


def test_what_a_killed_import_left_is_removed_by_the_next(tmp_path):
    write_hf(tmp_path / "hf", GPT2)
    (tmp_path / ".weights.partial" / "params").mkdir(parents=True)
    (tmp_path / ".weights.partial.lock").touch()
    import_hf(tmp_path / "hf", tmp_path / "weights")
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "weights"}
    (tmp_path / ".weights.partial").mkdir()
    with pytest.raises(BadInput, match="weights exists and is not overwritten"):
        import_hf(tmp_path / "hf", tmp_path / "weights")
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "weights"}


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", "[" * 100_000, '{"model": 1}', '{"model": {"n_layers": "x"}}', "MARKS", "HUGE"]
)
def test_a_weights_json_that_says_too_little_is_one_line(content, tmp_path):
    write_hf(tmp_path / "hf", GPT2)
    import_hf(tmp_path / "hf", tmp_path / "weights")
    whole = json.loads((tmp_path / "weights" / "weights.json").read_text())
    changed = {"MARKS": {"marks": {"config": {"eos_token_id": "x"}}}, "HUGE": {"model": {"d_model": 10**400}}}
    text = json.dumps(whole | changed[content]) if content in changed else content
    (tmp_path / "weights" / "weights.json").write_text(text)
    with pytest.raises(BadInput, match=r"weights\.json"):
        saved_model(tmp_path / "weights")


ODD = st.sampled_from(
    [None, True, 0, -1, 1, 2**31, 2**60, 10**400, 2.0, float("nan"), "", "x", "\ud800", [], [[]], ["a"], {}, {"a": 1}]
)


@st.composite
def altered(draw, whole):
    """Draw a JSON value with some of its parts replaced or taken away."""
    whole = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        part = whole
        while isinstance(part, dict | list) and part:
            key = draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
            if draw(st.booleans()) or not isinstance(part[key], dict | list) or not part[key]:
                if draw(st.booleans()):
                    part[key] = copy.deepcopy(draw(ODD))
                else:
                    del part[key]
                break
            part = part[key]
    return whole


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_an_altered_file_is_refused_in_a_line_or_read(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "altered"
    if not folder.exists():
        folder.mkdir()
        write_hf(folder / "hf", LLAMA)
        add_tokenizer(folder / "hf", 257)
        write_json(folder / "hf" / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [1, 2]})
        import_hf(folder / "hf", folder / "weights")
        setting(folder / "hf", num_hidden_layers=3)
    names = ("config.json", "generation_config.json", "tokenizer.json", SINGLE, "weights.json", "seal.json")
    name = data.draw(st.sampled_from(names))
    path = folder / ("weights" if name in names[4:] else "hf") / name
    whole = path.read_bytes()
    try:
        if name == SINGLE:
            n = int.from_bytes(whole[:8], "little")
            head = json.dumps(data.draw(altered(json.loads(whole[8 : 8 + n])))).encode()
            path.write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + n :])
        else:
            path.write_text(json.dumps(data.draw(altered(json.loads(whole)))))
        if name in names[4:]:
            saved = saved_model(folder / "weights")
            assert saved.arrays and saved.stops is not None and saved.speaker
        else:
            open_hf(folder / "hf")
    except BadInput as refused:
        assert "\n" not in str(refused)
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logit_cap": 5.0}, "no transformers architecture has logit_cap = 5.0"),
        ({"positions": "none"}, "no transformers architecture has positions = 'none'"),
        ({"d_head": 10, "n_heads": 5, "n_kv_heads": 5}, "needs a d_model divisible by n_heads"),
        ({"norm": "layernorm"}, "no transformers architecture has"),
    ],
)
def test_a_model_that_transformers_lacks_is_refused_with_the_reason(change, words, tmp_path, capsys):
    saved_run(tmp_path / "run", replace(LLAMA, **change))
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and "--format orbax" in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_tokenizer_larger_than_its_model_is_refused(tmp_path):
    saved_run(tmp_path / "run", replace(GPT2, vocab_size=200))
    with pytest.raises(BadInput, match="tokenizer of 257 ids, its model 200"):
        export_hf(saved_model(tmp_path / "run"), tmp_path / "hf")


def test_files_of_older_versions_are_read(tmp_path):
    def old(name):
        return name.removeprefix("transformer.")

    masks = {"h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32), "h.0.attn.masked_bias": np.ones(1, np.float32)}
    config = without_mup(replace(GPT2, d_mlp=96, n_kv_heads=3))
    arrays = write_hf(tmp_path / "hf", config, rename=old, **masks)
    table = {"lm_head.weight": arrays["wte.weight"]}
    write_hf(tmp_path / "with_head", config, rename=old, **table)
    for folder in ("hf", "with_head"):
        params = read_params(open_hf(tmp_path / folder))
        q, k, v = (params["layers"]["attention"][part]["kernel"][2] for part in ("query", "key", "value"))
        joined = np.concatenate([q.reshape(24, 24), k.reshape(24, 24), v.reshape(24, 24)], axis=1)
        np.testing.assert_array_equal(joined, arrays["h.2.attn.c_attn.weight"])
    write_hf(tmp_path / "other_head", config, rename=old, **{"lm_head.weight": arrays["wte.weight"] + 1})
    with pytest.raises(BadInput, match="tie_word_embeddings"):
        open_hf(tmp_path / "other_head")


def test_llama_files_of_older_versions_are_read(tmp_path):
    scaled = replace(LLAMA, rope_theta=5e5, rope_scaling=(8.0, 1.0, 4.0, 8))
    write_hf(tmp_path / "hf", scaled)
    assert open_hf(tmp_path / "hf").config.rope_scaling == (8.0, 1.0, 4.0, 8)

    def older(c):
        del c["rope_parameters"]
        c["rope_scaling"]["type"] = c["rope_scaling"].pop("rope_type")

    edit(tmp_path / "hf" / "config.json", older)
    config = open_hf(tmp_path / "hf").config
    assert config.rope_scaling == (8.0, 1.0, 4.0, 8) and config.rope_theta == 5e5


def test_shards_hold_every_tensor_once(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.normal(size=(i + 1, 7)).astype(np.float32) for i in range(9)}
    tensors = [Outgoing(n, a.shape, lambda a=a: iter(np.array_split(a, 2))) for n, a in arrays.items()]
    for kind in CODES:
        folder = tmp_path / kind.name
        folder.mkdir()
        write_tensors(folder, tensors, kind, 300)
        sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
        assert len(sizes) > 2 and max(sizes) < 300 + 1000
        found = open_tensors(folder)
        assert list(found) == sorted(found, key=lambda n: int(n[1:])) and found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name].read(), array.astype(kind))


def test_our_tokenizers_are_the_same_as_json():
    text = b"def f(a, b):\n    return a + b\n" * 40 + "\u65e5\u672c \u00e9".encode()
    for ours in (ByteTokenizer(), train_sentencepiece([text], 300)):
        files = tokenizer_files(ours, 64)
        theirs = JsonTokenizer(packed(files, ours.bos))
        assert theirs.vocab_size == ours.vocab_size and theirs.bos == ours.bos and theirs.files == files
        np.testing.assert_array_equal(theirs.token_bytes, ours.token_bytes)
        assert theirs.decode(range(ours.vocab_size)) == ours.decode(range(ours.vocab_size))


MEASURE = """
import sys
from pathlib import Path
from gptjax.hf.export import export_hf
from gptjax.hf.architectures import Settings, architecture_of, tensors_of
from gptjax.models.gpt import GPTConfig
from gptjax.models.layers import ACTIVATIONS
from gptjax.hf.load import import_hf
from gptjax.run.export import export
from gptjax.run.weights import saved_model

way, folder = sys.argv[1], Path(sys.argv[2])
c = GPTConfig(d_model=24)
tensors_of(c, architecture_of(c))  # whatever jax needs to be at work
def memory(kind):
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(kind)) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
if way == "export":
    export_hf(saved_model(folder / "run"), folder / "hf", verified=False)
else:
    import_hf(folder / "hf", folder / "back")
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it")
def test_the_host_holds_one_array_and_not_the_model(tmp_path):
    largest = 2**25  # the embedding's bytes, and a stacked MLP kernel's
    config = GPTConfig(vocab_size=2**15, context=8, d_model=256, n_layers=16, n_heads=4, d_mlp=2048, tied=False)
    shapes = jax.eval_shape(config.build().init, jax.random.key(0))
    size = sum(4 * s.size for s in jax.tree.leaves(shapes))
    assert max(4 * s.size for s in jax.tree.leaves(shapes)) == largest and size > 4.5 * largest
    bits = np.random.default_rng(0).integers(2**32, size=largest // 4, dtype=np.uint32).view(np.float32)
    with Checkpoints(tmp_path / "run" / "checkpoints", SaveConfig()) as checkpoints:
        checkpoints.save(1, {"params": jax.tree.map(lambda s: bits[: s.size].reshape(s.shape), shapes)})
    write_json(tmp_path / "run" / "config.json", to_json(RunConfig(model=config)))
    ByteTokenizer().save(tmp_path / "run")
    for way in ("export", "import"):
        program = [sys.executable, "-c", MEASURE, way, str(tmp_path)]
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        (tmp_path / "hf" / "tokenizer.json").unlink(missing_ok=True)  # transformers, which would read it, is larger
        ran = subprocess.run(program, env=os.environ | flags, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert int(ran.stdout) < 1.5 * largest + 2**26, f"{way}: {int(ran.stdout) / largest:.1f} of the largest array"
