"""Checkpoints: the same bits on any mesh, damage named, failures said, retention, export, memory of the host."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.cli import main
from gptjax.config import EvalConfig, RunConfig, SaveConfig, to_json
from gptjax.data.tokenizer import ByteTokenizer
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.files import read_json, write_json
from gptjax.fingerprint import fingerprint
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.run.checkpoint import Checkpoints, _digests, damage, kept, restore
from gptjax.run.checks import claim
from gptjax.sharding import Layout, MeshConfig, Rules
from gptjax.train.optim import OptimConfig
from gptjax.train.programs import make_programs

MODEL = GPTConfig(vocab_size=250, context=16, d_model=32, n_layers=2, n_heads=4, bias=False)
PADDED = Execution(vocab_multiple=16)
SAVE = SaveConfig()
W = {"w": np.arange(8.0, dtype=np.float32)}
CPU = jax.sharding.SingleDeviceSharding(jax.devices()[0])
ABSTRACT = {"w": jax.ShapeDtypeStruct((8,), np.float32, sharding=CPU)}


def programs(mesh: MeshConfig, devices: int, rules: Rules):
    layout = Layout(make_mesh(mesh, jax.devices()[:devices]), rules)
    return make_programs(MODEL, PADDED, OptimConfig(), layout, 0.0, 1)


def assert_same_bits(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(saved), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory with one step, saved on (2, 2, 2), and its state."""
    directory = tmp_path_factory.mktemp("checkpoint") / "run"
    made = programs(MeshConfig(data=2, fsdp=2, tensor=2), 8, Rules())
    state = made.init(jax.random.key(0))
    noise = jax.tree.map(lambda x: (jnp.arange(x.size) % 251).reshape(x.shape).astype(x.dtype), state.opt)
    state = replace(
        state, step=state.step + 7, opt=jax.device_put(noise, jax.tree.map(lambda x: x.sharding, made.abstract.opt))
    )
    with Checkpoints(directory / "checkpoints", SAVE) as checkpoints:
        checkpoints.save(7, state)
    write_json(directory / "config.json", to_json(RunConfig(model=MODEL, execution=PADDED)))
    ByteTokenizer().save(directory)
    return directory, state


OTHER = replace(Rules(), embed=None, mlp=("fsdp", "tensor"), vocab="fsdp")
PLACES = {
    "one": (MeshConfig(), 1, Rules()),
    "two": (MeshConfig(data=1, fsdp=2), 2, Rules()),
    "four": (MeshConfig(data=2, fsdp=1, tensor=2), 4, Rules()),
    "eight": (MeshConfig(data=1, fsdp=8), 8, Rules()),
    "other rules": (MeshConfig(data=1, fsdp=2, tensor=4), 8, OTHER),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_state_saved_on_2_2_2_is_restored_bit_for_bit_anywhere(run, place):
    directory, state = run
    abstract = programs(*PLACES[place]).abstract
    found = restore(directory / "checkpoints", 7, abstract)
    assert_same_bits(found, state)
    for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert ours.sharding == wanted.sharding


def test_parameters_are_restored_without_the_rest(run):
    directory, state = run
    abstract = {"params": programs(*PLACES["four"]).abstract.params}
    assert_same_bits(restore(directory / "checkpoints", 7, abstract), {"params": state.params})


def test_another_model_is_refused_in_a_line(run):
    directory, _ = run
    wide = {"params": {"w": jax.ShapeDtypeStruct((8,), np.float32, sharding=CPU)}}
    with pytest.raises(BadInput, match=r"holds no params\.w"):
        restore(directory / "checkpoints", 7, wide)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reseal(directory: Path, step: int) -> None:
    """Give a step a seal that matches, whatever it holds."""
    write_json(directory / "seals" / f"{step}.json", {"files": _digests(directory / str(step)), "loss": None})


EMPTY = {"files": {}, "loss": None}
HARMS = {  # what is done to the directory, and the words that name it
    "flipped bit": (lambda d, f: flip(f), "{file} is not as it was written"),
    "cut short": (lambda d, f: f.write_bytes(f.read_bytes()[:-1]), "{file} is not as it was written"),
    "file lost": (lambda d, f: f.unlink(), "{file} is missing"),
    "emptied": (lambda d, f: [shutil.rmtree(d / "2"), (d / "2").mkdir()], "is missing"),
    "gone": (lambda d, f: shutil.rmtree(d / "2"), "is missing"),
    "unsealed": (lambda d, f: (d / "seals/2.json").unlink(), "never finished"),
    "a file in its place": (lambda d, f: [shutil.rmtree(d / "2"), (d / "2").write_text("")], "is missing"),
    "seal cut short": (lambda d, f: (d / "seals/2.json").write_text('{"files": {"a'), "seals/2.json is damaged"),
    "seal emptied": (lambda d, f: (d / "seals/2.json").write_bytes(b""), "seals/2.json is damaged"),
    "seal of nothing": (lambda d, f: write_json(d / "seals/2.json", EMPTY), "seals/2.json is damaged"),
    "seal of another kind": (lambda d, f: write_json(d / "seals/2.json", [1, 2]), "seals/2.json is damaged"),
    "seal of no text": (lambda d, f: (d / "seals/2.json").write_bytes(b"\xff\xfe"), "seals/2.json is damaged"),
    "sealed but no checkpoint": (lambda d, f: [f.write_bytes(b"x" * f.stat().st_size), reseal(d, 2)], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_named_and_the_step_before_is_taken(tmp_path, capsys, harm):
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        checkpoints.save(1, W)
        checkpoints.save(2, {"w": W["w"] + 1})
    do, words = HARMS[harm]
    file = next((tmp_path / "2" / "default" / "d").iterdir())
    do(tmp_path, file)
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        found, step = checkpoints.restore(ABSTRACT)
        said = capsys.readouterr().err
        assert step == 1 and said.count("\n") == 1
        assert f"checkpoint {tmp_path}/2 " in said and words.format(file=file.relative_to(tmp_path / "2")) in said
        assert_same_bits(found, W)
        checkpoints.save(2, {"w": W["w"] + 2})
    assert_same_bits(restore(tmp_path, 2, ABSTRACT), {"w": W["w"] + 2})


def test_a_damaged_step_asked_for_by_number_is_refused(tmp_path):
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        checkpoints.save(1, W)
    flip(next((tmp_path / "1" / "default" / "d").iterdir()))
    with pytest.raises(BadInput, match=r"1 is damaged: default/d/\w+ is not"):
        restore(tmp_path, 1, ABSTRACT)


def test_strays_and_halves_do_no_harm(tmp_path):
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        checkpoints.save(1, W)
    for stray in ("notes.txt", ".hidden", "seals/notes.json", "seals/.2.json.abc", "seals/2x.json"):
        (tmp_path / stray).write_text("stray")
    for half in ("2.orbax-checkpoint-tmp", "1.orbax-checkpoint-tmp-17"):
        (tmp_path / half / "default.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    (tmp_path / "1" / "stray").write_text("")
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        assert checkpoints.restore(ABSTRACT)[1] == 1
        checkpoints.save(2, W)
    assert damage(tmp_path, 2) is None
    assert not list(tmp_path.glob("*tmp*")) and (tmp_path / "notes.txt").exists()


def test_a_process_still_busy_with_a_half_written_step_does_no_harm(tmp_path, monkeypatch):
    half = tmp_path / "2.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    really_remove = shutil.rmtree

    def finished_meanwhile(path):
        if half.exists():
            half.rename(tmp_path / "2")
            raise FileNotFoundError(2, "No such file or directory", half.name)
        really_remove(path)

    monkeypatch.setattr(shutil, "rmtree", finished_meanwhile)
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        checkpoints.save(2, W)
    assert damage(tmp_path, 2) is None


def test_a_step_is_sealed_while_the_run_goes_on(tmp_path):
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        checkpoints.save(1, W)
        deadline = time.time() + 30
        while not (tmp_path / "seals" / "1.json").exists():
            assert time.time() < deadline
            time.sleep(0.01)


def test_a_large_file_is_not_read_whole_for_its_digest(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**27)
    tracemalloc.start()
    try:
        assert _digests(tmp_path)["large"][0] == 2**27
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


FAIL = """
import os, resource, sys
import jax
from pathlib import Path
from gptjax.cli import main
from gptjax.run import loop
from gptjax.run.checkpoint import Checkpoints

def train(config, directory, profile):
    state = {{"w": jax.random.normal(jax.random.key(0), (2**18,))}}
    with Checkpoints(directory / "checkpoints", config.save) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        if {full}:
            Path({fill!r}).write_bytes(bytes(3 * 2**20))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        checkpoints.save(2, state)
        checkpoints.save(3, state)

loop.train = train
main(["train", {file!r}, "--dir", {directory!r}])
"""


@pytest.mark.parametrize("full", [False, True], ids=["file too large", "disk full"])
def test_a_save_that_fails_ends_the_run_in_a_line_and_keeps_the_step_before(tmp_path, full):
    disk, file = tmp_path / "disk", tmp_path / "experiment.py"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4608k", "tmpfs", str(disk)]
    if full and (shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode):
        pytest.skip("a disk to fill cannot be mounted here: that takes root")
    try:
        file.write_text("from gptjax.config import RunConfig\nrun = RunConfig\n")
        values = {"file": str(file), "directory": str(disk / "run"), "fill": str(disk / "fill"), "full": full}
        program = [sys.executable, "-c", FAIL.format(**values)]
        failed = subprocess.run(program, capture_output=True, text=True, timeout=300)
        assert failed.returncode == 1 and failed.stderr.count("\n") == 1, failed.stderr
        reason = "No space left on device" if full else "File too large"
        assert f"checkpoint {disk}/run/checkpoints/2 was not saved ({reason}); step 1 is intact" in failed.stderr
        (disk / "fill").unlink(missing_ok=True)
        with Checkpoints(disk / "run" / "checkpoints", SAVE) as checkpoints:
            assert checkpoints.newest == 1
            checkpoints.save(2, W)
        assert damage(disk / "run" / "checkpoints", 2) is None
    finally:
        if full:
            subprocess.run(["umount", str(disk)], check=False)


SEVERAL = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pathlib import Path
from gptjax.jobs import hosts
from gptjax.config import SaveConfig
from gptjax.run import checkpoint

directory, address, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
hosts.join_job(address, 2, process)
digest, write, did = checkpoint._digest, checkpoint.write_json, {"digests": [], "seals": []}
checkpoint._digest = lambda path: did["digests"].append(str(path)) or digest(path)
checkpoint.write_json = lambda path, value: did["seals"].append(path.name) or write(path, value)
split = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec("all"))
with hosts.together(), checkpoint.Checkpoints(directory, SaveConfig()) as checkpoints:
    abstract = {"w": jax.ShapeDtypeStruct((8,), np.float32, sharding=split)}
    found = checkpoints.restore(abstract)
    did |= {"proved": did["digests"], "digests": []}
    w = found[0]["w"] if found else jax.make_array_from_callback((8,), split, lambda i: np.arange(8.0)[i].astype("f4"))
    first = found[1] + 1 if found else 1
    for step in (first, first + 1):
        checkpoints.save(step, {"w": w + step - 1})
    checkpoints.wait()
print(json.dumps({"newest": found and found[1], **did}))
"""


def two_processes(directory: Path) -> tuple[list[dict], str]:
    """Save two more steps by two processes of four devices; return what each did and said."""
    with socket.socket() as held:
        held.bind(("localhost", 0))
        address = f"localhost:{held.getsockname()[1]}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, str(directory), address, str(i)],
            env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        said = [program.communicate(timeout=120) for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert [program.returncode for program in programs] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said], "".join(err for _, err in said)


def test_of_two_processes_one_seals_and_both_prove_and_agree_on_the_step(tmp_path):
    did, _ = two_processes(tmp_path)
    assert [process["newest"] for process in did] == [None, None]
    assert did[0]["seals"] == ["1.json", "2.json"] and did[1]["seals"] == did[1]["digests"] == []
    written = {str(path) for path in (tmp_path / "1").rglob("*") if path.is_file()}
    assert_same_bits(restore(tmp_path, 2, ABSTRACT), {"w": W["w"] + 1})
    flip(next((tmp_path / "2" / "default" / "d").iterdir()))
    did, said = two_processes(tmp_path)
    assert [process["newest"] for process in did] == [1, 1] and said.count("taking an older one") == 1
    mine, theirs = ({name for name in process["proved"] if "/1/" in name} for process in did)
    assert mine and theirs and not mine & theirs and mine | theirs == written
    assert_same_bits(restore(tmp_path, 3, ABSTRACT), {"w": W["w"] + 2})


MEASURE = """
import sys
from pathlib import Path
import jax, numpy as np
from gptjax.run.checkpoint import open_arrays, restore
from gptjax.run.export import stored, write_params

way, run = sys.argv[1], Path(sys.argv[2])
one = jax.sharding.SingleDeviceSharding(jax.device_put(0.0).devices().pop())
def memory(kind):
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(kind)) * 1024
abstract = {"params": {f"w{i}": jax.ShapeDtypeStruct((2**23,), np.float32, sharding=one) for i in range(8)}}
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
if way == "restore":
    held = jax.block_until_ready(restore(run / "checkpoints", 1, abstract))
else:
    arrays = open_arrays(run / "checkpoints" / "1" / "default")
    write_params(stored(arrays, "bfloat16"), run / "out")
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it")
def test_the_host_holds_one_array_and_not_the_model(tmp_path):
    one, arrays = 2**25, 8
    bits = np.random.default_rng(0).integers(2**32, size=(arrays, one // 4), dtype=np.uint32).view(np.float32)
    with Checkpoints(tmp_path / "checkpoints", SAVE) as checkpoints:
        checkpoints.save(1, {"params": {f"w{i}": bits[i] for i in range(arrays)}})
    write_json(tmp_path / "config.json", to_json(RunConfig()))
    for way, own in (("restore", arrays * one), ("export", 0)):
        program = [sys.executable, "-c", MEASURE, way, str(tmp_path)]
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        peak = int(subprocess.run(program, check=True, env=os.environ | flags, capture_output=True, timeout=300).stdout)
        assert peak - own < 1.5 * one + 2**26, f"{way}: {(peak - own) / one:.1f} of the largest array"


def test_what_is_kept():
    losses = {10: 5.0, 20: 3.0, 30: None, 40: 1.0, 50: 2.0, 60: 2.5, 70: 2.6}
    assert kept(losses, SaveConfig(every=10)) == {60, 70}
    assert kept(losses, SaveConfig(every=10, keep_every=30)) == {30, 60, 70}
    assert kept(losses, SaveConfig(every=10, keep_best=2)) == {40, 50, 60, 70}
    assert kept(losses, SaveConfig(every=10, at=(20,), keep=3)) == {20, 50, 60, 70}


def test_the_best_are_remembered_by_the_run_that_resumes(tmp_path):
    save = SaveConfig(every=1, keep_best=1, keep_every=5)
    with Checkpoints(tmp_path, save) as checkpoints:
        for step, loss in {1: 3.0, 2: 1.0, 3: 2.0}.items():
            checkpoints.save(step, W, loss)
    for first, loss, left in (
        (4, None, {2, 4, 5}),
        (6, 1.5, {2, 5, 6, 7}),
        (8, 0.5, {5, 8, 9}),
        (11, None, {5, 8, 11, 12}),
    ):
        with Checkpoints(tmp_path, save) as checkpoints:
            checkpoints.save(first, W, loss)
            checkpoints.save(first + 1, W)
        steps = {int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()}
        assert steps == {int(seal.stem) for seal in (tmp_path / "seals").iterdir()} == left
    assert damage(tmp_path, 8) is None


def test_retention_that_cannot_be_is_refused():
    with pytest.raises(BadInput, match="multiple of save"):
        SaveConfig(every=10, keep_every=25)
    with pytest.raises(BadInput, match="keep_best = 1 needs a validation loss"):
        RunConfig(save=SaveConfig(every=10, keep_best=1), evaluate=EvalConfig(every=20))
    RunConfig(save=SaveConfig(every=20, keep_best=1), evaluate=EvalConfig(every=10))


READER = """
import sys
import jax, numpy as np, orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

params, out = sys.argv[1:]
assert not any(name.startswith("gptjax") for name in sys.modules)
host = ocp.PyTreeCheckpointer().restore(params)
leaves, tree = jax.tree.flatten(host)
np.savez(out, *[np.asarray(leaf, np.float32) for leaf in leaves])
for n in (1, 8):
    mesh = Mesh(np.array(jax.devices()[:n]), ("all",))

    def place(x):
        spec = PartitionSpec(*["all" if i == x.ndim - 1 and x.shape[i] % n == 0 else None for i in range(x.ndim)])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(params, jax.tree.map(place, host))
    for ours, theirs in zip(jax.tree.leaves(found), leaves, strict=True):
        assert isinstance(ours, jax.Array) and len(ours.sharding.device_set) == n and ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(ours), theirs)
print(leaves[0].dtype, str(tree))
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_exported_is_read_by_orbax_alone(run, tmp_path, dtype, capsys):
    directory, state = run
    main(["export", str(directory), str(tmp_path / "out"), "--format", "orbax", "--dtype", dtype])
    assert "step: 7" in capsys.readouterr().out
    program = [sys.executable, "-c", READER, str(tmp_path / "out" / "params"), str(tmp_path / "read.npz")]
    read = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert read.returncode == 0, read.stderr
    assert read.stdout.startswith(dtype) and str(jax.tree.structure(state.params)) in read.stdout
    arrays = np.load(tmp_path / "read.npz")
    for name, saved in zip(arrays.files, jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(arrays[name], np.asarray(saved.astype(dtype), np.float32))
    facts = read_json(tmp_path / "out" / "weights.json")
    config = RunConfig(model=MODEL)
    asked = {"step": 7, "tokens": 7 * config.tokens_per_step, "fingerprint": fingerprint(config), "dtype": dtype}
    assert facts == {"model": to_json(MODEL), "vocab_multiple": 16, **asked}


def test_an_export_is_whole_or_absent(run, tmp_path, capsys):
    directory, _ = run
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    refused = {
        "is not overwritten": [str(copy), str(copy)],
        "8 has no seal": [str(copy), str(tmp_path / "out"), "--step", "8"],
        "neither config.json nor": [str(tmp_path), str(tmp_path / "out")],
    }
    for words, given in refused.items():
        with pytest.raises(SystemExit) as stop:
            main(["export", "--format", "orbax", *given])
        assert stop.value.code == 2 and words in capsys.readouterr().err
    file = next((copy / "checkpoints" / "7" / "default" / "d").iterdir())
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(SystemExit):
        main(["export", "--format", "orbax", str(copy), str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert f"{copy}/checkpoints/7 is damaged: default/d/{file.name}" in said and "no intact checkpoint" in said
    reseal(copy / "checkpoints", 7)
    with pytest.raises(SystemExit):
        main(["export", "--format", "orbax", str(copy), str(tmp_path / "out")])
    assert f"{copy} cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["lr[3e-4]", "r*", "r?", "a**b", "{a,b} 100%41", "ключ #1\n"])
def test_a_folder_may_have_any_name_and_is_not_mixed_up_with_its_neighbours(tmp_path, name):
    stray = tmp_path / "r1" / "2.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp" / "ocdbt.process_0"
    stray.mkdir(parents=True)  # a neighbour that is being written, whose name the pattern fits
    with Checkpoints(tmp_path / name, SAVE) as checkpoints:
        checkpoints.save(2, W)
    with Checkpoints(tmp_path / name, SAVE) as checkpoints:
        found, step = checkpoints.restore(ABSTRACT)
        assert step == 2
        assert_same_bits(found, W)


@pytest.mark.parametrize("name", ["a\\b", "a\udcff"])
def test_a_name_that_tensorstore_would_write_as_another_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(BadInput, match="use another"), claim(tmp_path / name, RunConfig(model=MODEL), (), None):
        pass
    assert not list(tmp_path.iterdir())


def test_only_what_opens_is_sealed(tmp_path, monkeypatch):
    monkeypatch.setattr("gptjax.run.checkpoint.open_arrays", lambda tree: {"v": np.zeros(8)})
    with pytest.raises(OSError, match="1 was not saved"), Checkpoints(tmp_path, SAVE) as checkpoints:
        checkpoints.save(1, W)
    assert not list((tmp_path / "seals").iterdir())


@pytest.mark.parametrize("lost", ["the folder", "the seals of several"])
def test_a_run_whose_seals_were_not_copied_is_refused_and_loses_nothing(tmp_path, lost):
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        for step in range(1, 2 if lost == "the folder" else 4):
            checkpoints.save(step, W)
    for path in (tmp_path / "seals").iterdir():
        path.unlink()
    if lost == "the folder":
        (tmp_path / "seals").rmdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="without their seals"):
        Checkpoints(tmp_path, SAVE)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_proved_is_set_aside_until_its_step_is_written_anew(tmp_path):
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        checkpoints.save(1, W)
    (tmp_path / "seals" / "1.json").write_text("null")
    with Checkpoints(tmp_path, SAVE) as checkpoints:
        assert checkpoints.newest is None
        assert (tmp_path / "1.unreadable" / "default").is_dir()
        checkpoints.save(1, W)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "seals"}


def test_what_killed_processes_left_of_old_steps_is_cleared(tmp_path):
    with Checkpoints(tmp_path, replace(SAVE, at=(2,))) as checkpoints:
        for step in (2, 3, 4, 5):
            checkpoints.save(step, W)
    shutil.copytree(tmp_path / "4", tmp_path / "1")  # killed between seal and folder; then in the midst of the folder
    shutil.rmtree(tmp_path / "3", ignore_errors=True)
    (tmp_path / "3").mkdir()
    with Checkpoints(tmp_path, replace(SAVE, at=(2,))):
        assert {path.name for path in tmp_path.iterdir()} == {"2", "4", "5", "seals"}
