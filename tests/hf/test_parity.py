"""With the same weights we say, learn and generate what Hugging Face's models do; docs/interop.md shows the matrix."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.cli import main
from gptjax.data.json_tokenizer import JsonTokenizer, packed
from gptjax.data.tokenizer import ByteTokenizer, load_tokenizer
from gptjax.errors import BadInput
from gptjax.generate import Sampling, allowed, generate
from gptjax.hf.architectures import architecture_of, tensors_of
from gptjax.hf.export import export_hf
from gptjax.hf.load import import_hf, open_hf, read_params
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.models.presets import PRESETS
from gptjax.run.weights import saved_model
from gptjax.sharding import Layout, MeshConfig, Rules
from helpers import ROOT, batch_of, needed, saved_run

torch = needed("torch", "hf")
transformers = needed("transformers", "hf")
safetensors = needed("safetensors.numpy", "hf")

B, T = 3, 11  # of a context of 16 and a vocabulary of 97, so that no two sizes agree by accident

GPT2 = GPTConfig(vocab_size=97, context=16, d_model=42, n_layers=3, n_heads=3)
GPT3 = replace(GPT2, context=20, d_mlp=54, activation="gelu_exact")
LLAMA = replace(
    GPT2,
    d_model=48,
    d_mlp=70,
    n_heads=6,
    norm="rmsnorm",
    norm_eps=1e-6,
    bias=False,
    positions="rope",
    rope_theta=50.0,
    activation="silu",
    gated=True,
    tied=False,
)
QUICK = replace(LLAMA, activation="gelu", gated=False, tied=True, norm_eps=1e-5)
CASES = {
    "GPT-1": replace(GPT2, norm_place="post"),
    "GPT-2": GPT2,
    "GPT-2, its own head": replace(GPT2, tied=False, activation="relu"),
    "GPT-3 (as GPT-2)": GPT3,
    "LLaMA 1": LLAMA,
    "LLaMA 2, grouped queries": replace(LLAMA, n_kv_heads=2),
    "LLaMA 3.1, stretched rope": replace(LLAMA, n_kv_heads=2, context=64, rope_scaling=(8.0, 1.0, 4.0, 32)),
    "LLaMA 3.2, tied": replace(LLAMA, n_kv_heads=3, d_head=12, tied=True),
    "LLaMA with biases": replace(LLAMA, bias=True),
    "Chinchilla": replace(QUICK, bias=True, d_head=10),
    "the quick sweep": QUICK,
    "with QK-norm": replace(LLAMA, n_kv_heads=2, d_head=14, qk_norm=True),
}


@pytest.fixture(scope="module", params=CASES, ids=CASES)
def pair(request, tmp_path_factory):
    """A model of transformers with random weights, and ours, imported from it: (name, theirs, ours, folder)."""
    config = CASES[request.param]
    family = architecture_of(config)
    torch.manual_seed(0)
    settings = {**family.write(config), "bos_token_id": None, "eos_token_id": None}
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(family.model_type, **settings)
    ).float()
    assert type(theirs).__name__ == family.architecture
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and scales too stand at no special value
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder / "theirs")
    import_hf(folder / "theirs", folder / "ours")
    return request.param, theirs, saved_model(folder / "ours"), folder


def read(saved):
    return saved.read(Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1]), Rules()))


def test_logits_gradients_and_greedy_answers_are_those_of_transformers(pair):
    name, theirs, saved, folder = pair
    config = saved.config
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(B, T))
    theirs.zero_grad()
    logits = theirs(torch.tensor(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(ids[:, 1:]).flatten())
    loss.backward()

    params, model = read(saved), saved.model

    def our_loss(params):
        ours = model.logits(params, batch_of(jnp.asarray(ids)))
        log_p = jax.nn.log_softmax(ours[:, :-1])
        return -jnp.take_along_axis(log_p, jnp.asarray(ids)[:, 1:, None], axis=-1).mean(), ours

    (our_value, ours), our_gradient = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(params)
    gradient = in_our_names({key: p.grad.numpy() for key, p in theirs.named_parameters()}, folder)
    worst = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), our_gradient, gradient)))
    off = float(np.abs(ours - logits.detach().numpy()).max())
    apart = abs(float(our_value) - loss.item())
    print(f"{name}: logits {off:.1e} of {float(ours.std()):.2f}, loss {apart:.1e}, gradient {worst:.1e}")
    assert off < 1e-4 and apart < 1e-5 and worst < 1e-4

    new = 16 - T
    greedy = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
    theirs.generation_config.eos_token_id = None
    with torch.no_grad():
        continued = theirs.generate(torch.tensor(ids), attention_mask=torch.ones(B, T), **greedy)[:, T:].numpy()
    np.testing.assert_array_equal(np.stack(generate(params, model, list(ids), new, Sampling(temperature=0))), continued)


def in_our_names(tensors, folder):
    """Return what stands in the names of a saved model as our nested dicts: it takes the place of its weights."""
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other" / "config.json").write_bytes((folder / "theirs" / "config.json").read_bytes())
    safetensors.save_file(tensors, folder / "other" / "model.safetensors")
    return read_params(open_hf(folder / "other"))


def test_a_round_trip_changes_no_bit(pair):
    _, theirs, saved, folder = pair
    proof = export_hf(saved, folder / "back")
    assert "transformers" in proof.by and proof.largest < 1e-4
    original = safetensors.load_file(folder / "theirs" / "model.safetensors")
    back = safetensors.load_file(folder / "back" / "model.safetensors")
    assert back.keys() == original.keys() - ({"lm_head.weight"} if saved.config.tied else set())
    for key, array in back.items():
        np.testing.assert_array_equal(array, original[key])
    again = transformers.AutoConfig.from_pretrained(folder / "back")
    assert type(again) is type(theirs.config)


def matrix():
    columns = ("import", "export", "logits", "gradients", "greedy", "round trip")
    head = [f"| model | in transformers | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    rows = [f"| {name} | {architecture_of(c).architecture} |" + " yes |" * len(columns) for name, c in CASES.items()]
    return "\n".join(head + rows)


def test_the_documents_show_the_matrix_that_is_tested_here():
    assert matrix() in (ROOT / "docs" / "interop.md").read_text(), matrix()


@pytest.mark.parametrize("group", ["gpt", "chinchilla", "gopher", "llama"])
def test_presets_have_the_names_and_shapes_of_transformers(group):
    for name, preset in PRESETS.items():
        if not name.startswith(group):
            continue
        if preset.d_model % preset.n_heads:
            with pytest.raises(BadInput, match="divisible by n_heads"):
                architecture_of(preset)
            continue
        family, short = architecture_of(preset), replace(preset, n_layers=2)
        with torch.device("meta"):
            theirs = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(family.model_type, **family.write(short))
            )
        expected = {key: tuple(p.shape) for key, p in theirs.named_parameters()}
        assert {tensor.name: tensor.shape for tensor in tensors_of(short, family)} == expected, name
        whole = {tensor.name for tensor in tensors_of(preset, family)}
        layers = {name for name in whole if any(part.isdecimal() for part in name.split("."))}
        assert len(layers) % preset.n_layers == 0 and len(whole - layers) == len(
            [key for key in expected if not any(part.isdecimal() for part in key.split("."))]
        )


def test_a_byte_tokenizer_is_one_of_transformers_too(tmp_path):
    from gptjax.hf.tokenizer import tokenizer_files

    for name, data in tokenizer_files(ByteTokenizer(), 16).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("", "a", "\u65e5\n <s>\0", "\U0001d11e "):
        assert theirs.encode(text) == [256, *text.encode()]
        assert theirs.decode(theirs.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(top_p=0.6),
        Sampling(1.3, top_k=20, top_p=0.8, repetition_penalty=1.4),
        Sampling(repetition_penalty=0.8),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_of_transformers(sampling):
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(scale=3, size=(B, 97)).astype(np.float32), rng.integers(97, size=(B, T))
    seen = np.zeros((B, 97), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    processors = transformers.LogitsProcessorList()
    processors.append(transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(transformers.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    theirs = torch.softmax(processors(torch.tensor(ids), torch.tensor(logits)), -1).numpy()
    ours = jax.nn.softmax(allowed(jnp.asarray(logits), jnp.asarray(seen), sampling))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_was_imported_says_what_the_run_says(tmp_path, capsys):
    saved_run(tmp_path / "run", replace(QUICK, vocab_size=257))
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    main(["import", str(tmp_path / "hf"), str(tmp_path / "weights")])
    capsys.readouterr()
    said = []
    for model in ("run", "weights"):
        main(["generate", str(tmp_path / model), "ab", "--tokens", "9", "--temperature", "0"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and len(said[0]) > 5


TEXTS = ["def f(a):\n    return a  # \u65e5\u672c \u00e9\0", "  two  spaces", "", "\U0001d11e<|end|>x"]


def test_byte_level_tokenizers_are_read_as_their_library_reads_them(tmp_path):
    library = needed("tokenizers", "tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    made.train_from_iterator(["def f(a):\n    return a\n" * 9], trainer)
    ours = JsonTokenizer(packed({"tokenizer.json": made.to_str().encode()}, 0))
    assert ours.bos == 0 and ours.vocab_size == made.get_vocab_size()
    for text in TEXTS:
        ids = made.encode(text).ids
        assert ours.encode(text.encode()).tolist() == ids
        assert ours.decode(ids).decode() == made.decode(ids)
        assert ours.token_bytes[ids].sum() == len(text.replace("<|end|>", "").encode())
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path).digest == ours.digest


def test_sentencepiece_tokenizers_of_llama_are_read_as_their_library_reads_them():
    library = needed("tokenizers", "tokenizers")
    letters = {f"<0x{b:02X}>": b + 1 for b in range(256)}
    vocab = {"<unk>": 0, **letters, "\u2581": 257, "a": 258, "\u2581a": 259, "b": 260}
    made = library.Tokenizer(
        library.models.BPE(vocab, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    decoders = library.decoders
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    ours = JsonTokenizer(packed({"tokenizer.json": made.to_str().encode()}, None))
    for text in ("a ab\n\u00e9", "b  a"):
        ids = made.encode(text).ids
        assert ours.encode(text.encode()).tolist() == ids and ours.decode(ids).decode() == made.decode(ids)
