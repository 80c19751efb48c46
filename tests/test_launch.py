"""What `launch/` prints and refuses: commands are read back word by word; manifests are in test_jobset.py."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TRAIN = ["gptjax", "train", "a file.py", "--dir", "$HOME/x", "--set", "optim.peak=[1, 2]"]  # words a shell would change


def run(script: str, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    interpreter = [sys.executable] if script.endswith(".py") else []
    argv = [*interpreter, str(LAUNCH / script), *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=os.environ | env)


def printed(script: str, *words: object, **env: str) -> str:
    done = run(script, *words, **env)
    assert done.returncode == 0 and done.stderr == "", done
    return done.stdout


def commands(text: str) -> list[list[str]]:
    """Read printed commands as bash would: each as its words."""
    assert "$(" not in text and "`" not in text  # nothing that reading would run
    reader = r"""while IFS= read -r line; do eval "words=($line)"; printf '%s\0' "${words[@]}"; printf '\1'; done"""
    words = subprocess.run(["bash", "-c", reader], input=text, capture_output=True, text=True, check=True).stdout
    return [line.split("\0")[:-1] for line in words.split("\1")[:-1]]


def flags(command: list[str]) -> dict[str, str]:
    return {w.partition("=")[0]: w.partition("=")[2] for w in command if w.startswith("--")}


# every script


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert tool, "shellcheck comes with the test extra"
    done = subprocess.run([tool, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    "script, words, says",
    [
        ("slurm.sh", "--node 2 -- x", "--node is not a flag"),
        ("slurm.sh", "--nodes -- x", "--nodes needs a value"),
        ("slurm.sh", "--nodes 0 -- x", "--nodes 0 must be"),
        ("slurm.sh", "--nodes 2", "no command"),
        ("slurm.sh", "--per-gpu -- x", "--per-gpu needs --gpus"),
        ("slurm.sh", "--processes 2 --gpus 2 -- x", "--processes is for"),
        ("slurm.sh", "--time soon -- x", "--time soon"),
        ("slurm.sh", "--name a;b -- x", "--name 'a;b'"),
        ("gpu_node.sh", "--gpus none -- x", "--gpus needs a whole number"),
        ("gpu_node.sh", "--gpu 2 -- x", "--gpu is not a flag"),
        ("gpu_node.sh", "--gpus 2", "no command"),
        ("tpu_pod.sh", "make t --zone z", "'make' is not"),
        ("tpu_pod.sh", "create T --zone z", "name 'T'"),
        ("tpu_pod.sh", "create t --type v4-8", "no --zone"),
        ("tpu_pod.sh", "create t --zone z --type tpu7x-8", "launch/jobset.py"),
        ("tpu_pod.sh", "create t --zone z --type v4-8 --slices none", "--slices none"),
        ("tpu_pod.sh", "run t --zone z", "no command"),
        ("tpu_pod.sh", "delete t --zone z -- x", "delete takes no command"),
        ("jobset.py", "tpu --topology v5p:4x4 --name r --image i -- x", "write v5p:4x4x4"),
        ("jobset.py", "tpu --topology v9:4x4 --name r --image i -- x", "no TPU 'v9'"),
        ("jobset.py", "tpu --topology v5e:3x5 --name r --image i -- x", "15 chips"),
        ("jobset.py", "gpu --nodes 0 --name r --image i -- x", "--nodes 0"),
        ("jobset.py", "gpu --name R --image i -- x", "--name 'R'"),
        ("jobset.py", "gpu --name r --image i", "command"),
        ("jobset.py", "gpu --name r --image i --restarts -1 -- x", "--restarts -1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, words, says):
    done = run(script, *words.split())
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{script}: ") and says in done.stderr, done.stderr


def test_the_readme_names_every_script_and_no_other():
    table = {m[1] for m in re.finditer(r"^\| `([^`]+)`", (LAUNCH / "README.md").read_text(), re.M)}
    assert table == {path.name for path in LAUNCH.iterdir() if path.is_file()} - {"README.md"}


# tpu_pod.sh


def tpu(verb: str, *words: object) -> list[list[str]]:
    return commands(printed("tpu_pod.sh", verb, "t1", "--dry-run", "--zone", "z", *words))


@pytest.mark.parametrize(
    "kind, runtime",
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_tpu_create_asks_for_a_slice_with_the_software_of_its_kind(kind, runtime):
    [command] = tpu("create", "--type", kind)
    assert command[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "t1"]
    want = {"--zone": "z", "--node-id": "t1", "--accelerator-type": kind, "--runtime-version": runtime}
    assert flags(command) == want


def test_tpu_create_asks_for_several_spot_slices():
    words = ("--type", "v5p-8", "--slices", 4, "--spot", "--project", "p", "--runtime", "r")
    [command] = tpu("create", *words)
    assert flags(command) == {
        "--zone": "z",
        "--project": "p",
        "--node-count": "4",
        "--node-prefix": "t1",
        "--accelerator-type": "v5p-8",
        "--runtime-version": "r",
        "--spot": "",
    }


def test_tpu_run_gives_every_worker_of_every_slice_the_same_words(tmp_path):
    [command] = tpu("run", "--", *TRAIN)
    assert command[4:6] == ["ssh", "t1"]
    assert flags(command)["--node"] == flags(command)["--worker"] == "all"
    remote = next(w for w in command if w.startswith("--command=")).removeprefix("--command=")
    tool = tmp_path / "gptjax" / ".venv" / "bin" / "gptjax"
    tool.parent.mkdir(parents=True)
    tool.write_text('#!/bin/bash\nprintf "%s\\0" "$GPTJAX_COORDINATOR" "$@"\n')
    tool.chmod(0o755)
    heard = subprocess.run(["bash", "-c", remote], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert heard.split("\0")[:-1] == ["auto", *TRAIN[1:]]  # hosts.py leaves the rest to jax


def test_tpu_install_status_and_delete():
    archive, copy, install = tpu("install")
    assert archive[0] == "git" and "archive" in archive
    sent = next(w for w in archive if w.startswith("--output=")).removeprefix("--output=")
    assert copy[4:7] == ["scp", sent, "t1:gptjax.tar.gz"] and flags(copy)["--worker"] == flags(copy)["--node"] == "all"
    assert not Path(sent).exists()  # it was a dry run
    assert flags(install)["--worker"] == "all"
    remote = next(w for w in install if w.startswith("--command=")).removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0
    assert {"constraints.txt", ".[tpu,gcs]"} <= set(shlex.split(remote))
    [status] = tpu("status")
    assert status[4:6] == ["describe", "t1"]
    [delete] = tpu("delete")
    assert delete[4:6] == ["delete", "t1"] and "--force" in delete


def test_gcloud_knows_every_verb_and_flag():
    tool = shutil.which("gcloud")
    table = Path(tool).resolve().parents[1] / "data" / "cli" / "gcloud_completions.py" if tool else None
    if not table or not table.exists():
        pytest.skip("the Google Cloud CLI, whose table of flags this reads, is not installed")
    spec = importlib.util.spec_from_file_location("gcloud_completions", table)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known: Any = module.STATIC_COMPLETION_CLI_TREE
    for name in ("compute", "tpus", "queued-resources"):
        known = known["commands"][name]
    everywhere = set(module.STATIC_COMPLETION_CLI_TREE["flags"])
    create = tpu("create", "--type", "v4-8", "--slices", 2, "--spot", "--project", "p")
    rest = [tpu(verb) for verb in ("install", "status", "delete")]
    for command in [
        *create,
        *(c for each in rest for c in each if c[0] == "gcloud"),
        *tpu("run", "--", "x"),
    ]:
        assert set(flags(command)) <= everywhere | set(known["commands"][command[4]]["flags"]), command


# slurm.sh


def batch(*words: object) -> tuple[dict[str, str], str]:
    """Return what a dry run asks of SLURM, and the script's body."""
    text = printed("slurm.sh", *words, "--dry-run", "--", *TRAIN)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.M))
    return asked, "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def test_slurm_asks_for_nodes_and_a_warning():
    asked, body = batch("--nodes", 4, "--time", "2:00:00", "--grace", 600, "--cpus", 6, "--name", "n")
    assert asked == {
        "job-name": "n",
        "nodes": "4",
        "ntasks-per-node": "1",
        "cpus-per-task": "6",
        "time": "2:00:00",
        "signal": "TERM@600",
        "requeue": "",
        "open-mode": "append",
        "output": "%x-%j.out",
    }
    [srun] = commands(next(line for line in body.splitlines() if line.startswith("srun")) + "\n")
    assert srun == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=6", *TRAIN]


def test_slurm_gives_one_process_all_gpus_of_its_node_or_each_its_own():
    asked, _ = batch("--nodes", 2, "--gpus", 8)
    assert (asked["ntasks-per-node"], asked["gpus-per-node"]) == ("1", "8")
    asked, _ = batch("--nodes", 2, "--gpus", 8, "--per-gpu")
    assert (asked["ntasks-per-node"], asked["gpus-per-node"]) == ("8", "8")


@pytest.mark.parametrize("code", [0, 1, 2, 75, 134, 137])
def test_slurm_requeues_after_75_alone_and_keeps_the_exit_code(code, tmp_path):
    for name, line in {"srun": f"exit {code}", "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    _, body = batch()
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", "-c", body], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "requeue 17\n" if code == 75 else "")


# gpu_node.sh


def test_gpu_node_prints_one_process_or_one_for_each_gpu():
    [one] = commands(printed("gpu_node.sh", "--gpus", 4, "--dry-run", "--", *TRAIN))
    assert one == ["env", "CUDA_VISIBLE_DEVICES=0,1,2,3", *TRAIN]
    text = printed("gpu_node.sh", "--gpus", 2, "--per-gpu", "--port", 999, "--dry-run", "--", *TRAIN)
    assert text.endswith(" &\nwait\n")
    for i, command in enumerate(commands(text.removesuffix("wait\n").replace(" &\n", "\n"))):
        places = [f"CUDA_VISIBLE_DEVICES={i}", "GPTJAX_COORDINATOR=localhost:999", "GPTJAX_PROCESSES=2"]
        assert command == ["env", *places, f"GPTJAX_PROCESS={i}", *TRAIN]


def per_gpu(line: str, *words: object) -> list[str]:
    return [*map(str, (LAUNCH / "gpu_node.sh", "--gpus", 3, "--per-gpu", *words)), "--", "bash", "-c", line]


def test_gpu_node_ends_the_others_when_one_fails():
    stubborn = 'trap "" TERM; for i in $(seq 40); do sleep 0.5; done'
    for rest, grace in (("exec sleep 20", 30), (stubborn, 1)):
        before = time.monotonic()
        argv = per_gpu(f"[ $GPTJAX_PROCESS = 1 ] && exit 7; {rest}", "--grace", grace)
        done = subprocess.run(argv, capture_output=True)
        assert done.returncode == 7 and time.monotonic() - before < 10


def test_gpu_node_passes_sigterm_on_and_returns_their_code():
    line = 'trap "exit 75" TERM; echo up; while :; do sleep 0.1; done'
    with subprocess.Popen(per_gpu(line), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(3)] == ["up\n"] * 3
        process.terminate()
        assert process.wait(20) == 75
