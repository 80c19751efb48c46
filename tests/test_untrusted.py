"""A file from anybody runs no code, is no reason to write elsewhere, and takes no memory that it only claims to need.

Files of Python are the exception: an experiment is a program, and `gptjax train FILE.py` runs it.
"""

import io
import json
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from gptjax.cli import main
from gptjax.commands.arguments import load
from gptjax.config import to_json
from gptjax.data.corpora import read_corpus
from gptjax.data.tokenizer import load_tokenizer
from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.hf.architectures import architecture_of, tensors_of
from gptjax.hf.load import import_hf
from gptjax.hf.tensor_files import INDEX, Outgoing, open_tensors, write_tensors
from gptjax.models.gpt import GPTConfig
from gptjax.run.checkpoint import damage
from gptjax.run.validation import WINDOWS, read_shares
from gptjax.run.weights import saved_model
from gptjax.sweep.plan import Plan, SweepConfig, make_plan
from helpers import ROOT

QUICK = ROOT / "experiments" / "chinchilla" / "quick.py"


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def read_anything(path: Path) -> None:
    """Give a file to every reader that takes one of any name; what they say of it is tested elsewhere."""
    folder = path.parent
    readers = (
        lambda: read_shares(path), lambda: list(read_corpus(str(path))), lambda: load_tokenizer(folder),
        lambda: open_tensors(folder), lambda: saved_model(folder), lambda: read_json(path), lambda: damage(folder, 1),
    )  # fmt: skip
    for read in readers:
        with suppress(BadInput):
            read()
    for verb in (["fit", path], ["predict", path, "--flops", 1e20], ["inspect", folder], ["status", folder],
                 ["import", folder, folder / "out"], ["report", folder]):  # fmt: skip
        with suppress(SystemExit):
            main(list(map(str, verb)))


NAMES = ("model.safetensors", "tokenizer.model", "tokenizer.json", WINDOWS, "runs.csv", "runs.parquet", "law.json",
         "config.json", "weights.json", "manifest.json", "plan.json", "pytorch_model.bin")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_is_never_loaded(name, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    made = tmp_path / "made"
    arrays = io.BytesIO()
    np.save(arrays, np.array([Bomb(made)], object), allow_pickle=True)
    for content in (pickle.dumps(Bomb(made)), arrays.getvalue()):
        (tmp_path / "in" / name).write_bytes(content)
        read_anything(tmp_path / "in" / name)
        assert not made.exists() and "Traceback" not in capsys.readouterr().err
    pickle.loads(pickle.dumps(Bomb(made)))
    assert made.exists()  # it is what it says


def test_a_folder_of_transformers_that_brings_code_does_not_run_it(tmp_path, capsys):
    made = tmp_path / "made"
    code = f"open({str(made)!r}, 'w')\n"
    classes = {
        "AutoConfig": "theirs.Config",
        "AutoModelForCausalLM": "theirs.Model",
        "AutoTokenizer": ["theirs.T", None],
    }
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "theirs.py").write_text(code)
    write_json(tmp_path / "hf" / "config.json", {"architectures": ["LlamaForCausalLM"], "auto_map": classes})
    write_json(tmp_path / "hf" / "tokenizer_config.json", {"auto_map": classes, "chat_template": "{{ cycler }}"})
    read_anything(tmp_path / "hf" / "config.json")
    assert not made.exists()


# ---- nothing is written elsewhere


def test_runs_of_a_plan_lie_in_its_folder(tmp_path, capsys):
    plan = make_plan(load(str(QUICK), SweepConfig, "sweep"))
    content = to_json(plan)
    trunk, branch = plan.runs[0], next(run for run in plan.runs if run.parent)
    at = plan.runs.index(branch)
    for name in ("../out", "/out", ".hidden", "a/b", ""):
        for field in ("name", "parent"):
            changed = json.loads(json.dumps(content))
            changed["runs"][at][field] = name
            write_json(tmp_path / "plan.json", changed)
            with pytest.raises(BadInput, match=r"plan\.json"):
                Plan.load(tmp_path / "plan.json")
    changed = json.loads(json.dumps(content))
    changed["runs"][at]["config"]["init_from"]["run"] = str(tmp_path)  # whose checkpoints a damaged trunk would lose
    write_json(tmp_path / "plan.json", changed)
    with pytest.raises(BadInput, match=f"begins at {tmp_path} and its parent is {trunk.name}"):
        Plan.load(tmp_path / "plan.json")
    write_json(tmp_path / "plan.json", content)
    assert Plan.load(tmp_path / "plan.json") == plan


def test_shards_of_an_index_lie_beside_it(tmp_path):
    (tmp_path / "hf").mkdir()
    for name in ("../a.safetensors", "/etc/passwd", "sub/a.safetensors"):
        write_json(tmp_path / "hf" / INDEX, {"weight_map": {"wte.weight": name}})
        with pytest.raises(BadInput, match="a file beside the index is needed"):
            open_tensors(tmp_path / "hf")


# ---- memory is what is there, and not what is claimed

CLAIMS = """
import json, resource, sys
from pathlib import Path
import gptjax.cli, gptjax.generate, gptjax.run.weights
from gptjax.data.corpora import read_corpus
from gptjax.data.json_tokenizer import JsonTokenizer, packed
from gptjax.errors import BadInput
from gptjax.hf.load import open_hf
from gptjax.hf.tensor_files import open_tensors
from gptjax.run.validation import read_shares
from gptjax.run.weights import saved_model

folder = Path(sys.argv[1])
readers = {
    "header": lambda path: open_tensors(path), "tensor": lambda path: open_tensors(path),
    "layers": lambda path: open_hf(path), "wide": lambda path: open_hf(path),
    "windows": lambda path: read_shares(path / "windows.npy"),
    "ids": lambda path: JsonTokenizer(packed({"tokenizer.json": (path / "tokenizer.json").read_bytes()}, 0)),
    "list": lambda path: sum(map(len, read_corpus(str(path / "a.json.gz")))),
    "line": lambda path: sum(map(len, read_corpus(str(path / "a.jsonl.gz")))),
    "zst": lambda path: sum(map(len, read_corpus(str(path / "a.jsonl.zst")))),
    "text": lambda path: sum(map(len, read_corpus(str(path / "a.txt.gz")))),
    "weights": lambda path: saved_model(path).arrays,
}
list(read_corpus(sys.argv[2]))  # begins the threads of every library, whose stacks count as memory
saved_model(Path(sys.argv[3])).arrays
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29,) * 2)
for path in sorted(folder.iterdir()):
    try:
        said = readers[path.name.split("-")[0]](path)
    except BadInput as error:
        said = str(error)
    except BaseException as error:
        said = f"!!! {type(error).__name__}: {error}"
    print(path.name, "|", said, flush=True)
"""
GIB = 2**30


def header(content: dict, claimed: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text


def compressed(path: Path, kind: str, begin: bytes, size: int) -> None:
    """Write `size` letters, which take a few thousand times less."""
    import pyarrow as pa

    with pa.output_stream(str(path), compression=kind) as out:
        out.write(begin)
        for _ in range(size >> 20):
            out.write(b"a" * (1 << 20))


def claims(folder: Path, weights: Path) -> dict[str, str]:
    """Write files that claim far more than they hold; return what must be said of each."""
    said = {}

    def claim(name: str, words: str, **files: bytes) -> Path:
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            (folder / name / file.replace("__", ".")).write_bytes(content)
        said[name] = words
        return folder / name

    claim("header", "truncated", model__safetensors=header({}, 2**62))
    tensor = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    claim("tensor-long", "truncated", model__safetensors=header({"a": tensor}))
    tensor["data_offsets"] = [0, 4]
    claim("tensor-short", "has 4 bytes", model__safetensors=header({"a": tensor}) + bytes(4))
    llama = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 16}
    llama |= {"intermediate_size": 16, "num_attention_heads": 2, "max_position_embeddings": 8, "rms_norm_eps": 1e-6}
    small = header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4)
    for name, field in (("layers", "num_hidden_layers"), ("wide", "hidden_size"), ("wide-mlp", "intermediate_size")):
        config = json.dumps(llama | {field: 10**9}).encode()
        claim(name, "and the files beside it hold 1 tensors of 1", config__json=config, model__safetensors=small)
    shape = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624,), }"
    array = b"\x93NUMPY\x01\x00v\x00" + shape.ljust(117) + b"\n"
    claim("windows", "is not what gptjax wrote there", windows__npy=array)
    ids = {"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 2**31 - 2}, "merges": []}}
    claim("ids", "no vocabulary of ids", tokenizer__json=json.dumps(ids).encode())
    compressed(claim("list", "longer than") / "a.json.gz", "gzip", b'[{"text": "', GIB)
    compressed(claim("line", "longer than") / "a.jsonl.gz", "gzip", b'{"text": "', GIB)
    compressed(claim("zst", "longer than") / "a.jsonl.zst", "zstd", b'{"text": "', 2 * GIB)
    compressed(claim("text", str(GIB)) / "a.txt.gz", "gzip", b"", GIB)
    for name, field in (("weights-deep", "n_layers"), ("weights-wide", "vocab_size")):
        shutil.copytree(weights, folder / name)
        facts = json.loads((weights / "weights.json").read_text())
        facts["model"][field] = 2**30
        write_json(folder / name / "weights.json", facts)
        said[name] = "it is another model's"
    return said


def imported(folder: Path) -> Path:
    """Make a small folder of weights."""
    shape = {"d_model": 8, "n_layers": 2, "n_heads": 2, "norm": "rmsnorm", "bias": False, "positions": "rope"}
    config = GPTConfig(vocab_size=16, context=8, activation="silu", gated=True, tied=False, **shape)
    family = architecture_of(config)
    (folder / "hf").mkdir()
    write_json(folder / "hf" / "config.json", {"architectures": [family.architecture], **family.write(config)})
    ones = {t.name: np.ones(t.shape, np.float32) for t in tensors_of(config, family)}
    tensors = [Outgoing(name, array.shape, lambda array=array: iter([array])) for name, array in ones.items()]
    write_tensors(folder / "hf", tensors, np.dtype("float32"), GIB)
    import_hf(folder / "hf", folder / "weights")
    return folder / "weights"


@pytest.mark.slow
def test_no_more_memory_is_taken_than_there_is_to_read(tmp_path):
    weights = imported(tmp_path)
    said = claims(tmp_path / "claims", weights)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    given = [str(tmp_path / name) for name in ("claims", "a.jsonl", "weights")]
    done = subprocess.run([sys.executable, "-c", CLAIMS, *given], capture_output=True, text=True, check=True, cwd=ROOT)
    found = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert found.keys() == said.keys()
    assert not [(name, found[name]) for name in said if said[name] not in found[name]]
