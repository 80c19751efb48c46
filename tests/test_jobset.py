"""The manifests of `launch/jobset.py`: what they ask of a cluster, and that the published schemas know all of it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import kubernetes_validate
import pydantic
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from helpers import ROOT

LAUNCH = ROOT / "launch"
TRAIN = ["gptjax", "train", "a file.py", "--dir", "$HOME/x", "--set", "optim.peak=[1, 2]"]


def lint(manifest: dict[str, Any]) -> None:
    """Raise if the published schemas of JobSet and of Job do not know a field, miss one, or want another type.

    JobSet's own schema lists no allowed values, and drops what it does not know: so what comes back is compared. Its
    Job templates are held against Kubernetes' schema instead, which knows quantities such as `4` chips.
    """
    outer = deepcopy(manifest)
    for job in outer["spec"]["replicatedJobs"]:
        template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        kubernetes_validate.validate(template, "1.37", strict=True)
        job["template"] = {"spec": {"template": {}}}
    back = JobsetV1alpha2JobSet.model_validate(outer).to_dict()
    assert not list(lost(outer, back)), list(lost(outer, back))


def lost(given: Any, back: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of `given` that `back` lacks or changes."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            yield from lost(value, back.get(key), f"{path}/{key}")
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for i, pair in enumerate(zip(given, back, strict=True)):
            yield from lost(*pair, f"{path}/{i}")
    elif given != back:
        yield path


ALL = ("--queue", "q", "--claim", "c", "--spot", "--service-account", "s", "--namespace", "n", "--restarts", 3)


def jobset(kind: str, *words: object) -> dict[str, Any]:
    flags = [*map(str, words), "--name", "r1", "--image", "i:1"]
    argv = [sys.executable, LAUNCH / "jobset.py", kind, *flags, "--", *TRAIN]
    return yaml.safe_load(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)


def parts(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the one replicated job's Job spec, pod spec and container."""
    [replicated] = manifest["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    return replicated["template"]["spec"], pod, container


@pytest.mark.parametrize(
    "topology, label, nodes, chips",
    [
        ("v4:2x2x2", "tpu-v4-podslice", 2, 4),
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
        ("v5p:8x8x8", "tpu-v5p-slice", 128, 4),
        ("v6e:16x16", "tpu-v6e-slice", 64, 4),
        ("tpu7x:4x4x4", "tpu7x", 16, 4),
    ],
)
def test_tpu_slices_get_a_pod_for_each_host(topology, label, nodes, chips):
    manifest = jobset("tpu", "--topology", topology, "--slices", 2, *ALL)
    lint(manifest)
    job, pod, container = parts(manifest)
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", nodes, nodes)
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
    exclusive = manifest["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    assert container["command"] == TRAIN
    assert container["env"] == [{"name": "GPTJAX_COORDINATOR", "value": "auto"}]


def test_an_eight_chip_host_is_one_pod():
    job, _, container = parts(jobset("tpu", "--topology", "v6e:2x4", "--chips", 8))
    assert job["completions"] == 1 and container["resources"]["limits"] == {"google.com/tpu": 8}


def test_gpu_nodes_learn_who_they_are():
    manifest = jobset("gpu", "--nodes", 4, "--gpus", 8, *ALL)
    lint(manifest)
    job, pod, container = parts(manifest)
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 4)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    env = {e["name"]: e.get("value") or e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"]}
    # JobSet's host name of a pod is JOBSET-REPLICATEDJOB-JOB-POD.SUBDOMAIN, and its subdomain the JobSet's name.
    name = manifest["metadata"]["name"]
    host = f"{name}-{manifest['spec']['replicatedJobs'][0]['name']}-0-0.{name}"
    assert env == {
        "GPTJAX_COORDINATOR": f"{host}:{container['ports'][0]['containerPort']}",
        "GPTJAX_PROCESSES": "4",
        "GPTJAX_PROCESS": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    }
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounted == {"shm": "/dev/shm", "runs": "/runs"} and {v["name"] for v in pod["volumes"]} == set(mounted)


@pytest.mark.parametrize("code, action", [(75, "RestartJobSetAndIgnoreMaxRestarts"), (2, "FailJobSet"), (134, None)])
def test_what_a_jobset_does_after_an_exit_code(code, action):
    manifest = jobset("gpu")
    job, pod, container = parts(manifest)
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # podFailurePolicy asks for the first
    rules = job["podFailurePolicy"]["rules"]
    hit = [i for i, r in enumerate(rules) if code in r["onExitCodes"]["values"]]
    assert bool(hit) == (action is not None)
    if hit:  # the message of Kubernetes' Job controller, pkg/controller/job/pod_failure_policy.go
        message = f"Container {container['name']} for pod n/r1-workers-0-2-x75 failed with exit code {code} matching "
        message += f"FailJob rule at index {hit[0]}"
        policy = manifest["spec"]["failurePolicy"]["rules"]
        first = next(r for r in policy if any(re.search(p, message) for p in r["onJobFailureMessagePatterns"]))
        assert first["action"] == action and first["onJobFailureReasons"] == ["PodFailurePolicy"]


PLANTED = {
    "a misspelt field of the JobSet": ("spec failurePolicyy", {}),
    "a misspelt field of its policy": ("spec failurePolicy maxRestart", 3),
    "a misspelt field of a rule": ("spec failurePolicy rules 0 onJobFailureReason", ["x"]),
    "a word for a number": ("spec failurePolicy maxRestarts", "three"),
    "a number for a word": ("spec failurePolicy rules 0 action", 3),
    "no action": ("spec failurePolicy rules 0 action", None),
    "a word for a yes": ("spec network enableDNSHostnames", "yes"),
    "replicas as a word": ("spec replicatedJobs 0 replicas", "2"),
    "a misspelt field of the Job": ("spec replicatedJobs 0 template spec backofLimit", 1),
    "a misspelt field of the pod": ("spec replicatedJobs 0 template spec template spec nodeSelectors", {}),
    "a misspelt field of the container": (
        "spec replicatedJobs 0 template spec template spec containers 0 comand",
        ["x"],
    ),
    "a number as restartPolicy": ("spec replicatedJobs 0 template spec template spec restartPolicy", 3),
    "a number as an environment value": (
        "spec replicatedJobs 0 template spec template spec containers 0 env 1 value",
        4,
    ),
    "an exit code as a word": (
        "spec replicatedJobs 0 template spec podFailurePolicy rules 0 onExitCodes values",
        ["2"],
    ),
    "no containers": ("spec replicatedJobs 0 template spec template spec containers", None),
}
# What only a server, or the tests above, would find: the schemas list no allowed values and read no meaning.
MISSED = {
    "an unknown action": ("spec failurePolicy rules 0 action", "Restart"),
    "an unknown completionMode": ("spec replicatedJobs 0 template spec completionMode", "Idx"),
    "an unknown restartPolicy": ("spec replicatedJobs 0 template spec template spec restartPolicy", "Sometimes"),
    "a resource that no node has": (
        "spec replicatedJobs 0 template spec template spec containers 0 resources limits",
        {"google.com/tpus": 4},
    ),
    "an unknown label of a node": (
        "spec replicatedJobs 0 template spec template spec nodeSelector",
        {"cloud.google.com/gke-tpu-acelerator": "tpu-v5p-slice"},
    ),
    "no replicated jobs": ("spec replicatedJobs", []),
    "an API version of tomorrow": ("apiVersion", "jobset.x-k8s.io/v1"),
}


def plant(place: str, value: Any) -> dict[str, Any]:
    manifest = jobset("gpu", "--nodes", 2)
    at: Any = manifest
    *path, last = (int(word) if word.isdigit() else word for word in place.split())
    for step in path:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return manifest


@pytest.mark.parametrize("mistake", PLANTED)
def test_the_schemas_catch_typos_and_wrong_types(mistake):
    manifest = plant(*PLANTED[mistake])
    with pytest.raises((kubernetes_validate.ValidationError, pydantic.ValidationError, AssertionError)):
        lint(manifest)


@pytest.mark.parametrize("mistake", MISSED)
def test_the_schemas_miss_what_launch_readme_says_they_miss(mistake):
    lint(plant(*MISSED[mistake]))
    assert mistake in (LAUNCH / "README.md").read_text()
