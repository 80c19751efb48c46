"""Print the JobSet of one run on TPU slices or GPU nodes of a Kubernetes cluster: pipe it into `kubectl apply -f -`.

    python launch/jobset.py tpu --topology v5p:4x4x8 --slices 2 --name run1 --image IMAGE -- gptjax train FILE --dir DIR
    python launch/jobset.py gpu --nodes 4 --gpus 8 --name run1 --image IMAGE -- gptjax train FILE --dir DIR

Who is who, GKE tells JAX itself on TPUs; on GPUs the manifest says it, in the variables that `gptjax/hosts.py` reads.
"""

import argparse
import math
import re
import sys
from typing import Any, NoReturn

import yaml

# What GKE calls a TPU, and the dimensions of its topologies: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
TPUS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
    "tpu7x": ("tpu7x", 3),
}
PORT = 12321
SAVED, WRONG = 75, 2  # exit codes of gptjax: run the same command again; the input is wrong

Manifest = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"jobset.py: {message}; see launch/jobset.py --help\n")


def parser() -> argparse.ArgumentParser:
    top = Parser("launch/jobset.py", description="Print the JobSet of a run, for kubectl apply -f -.")
    kinds = top.add_subparsers(dest="kind", required=True, parser_class=Parser, metavar="tpu|gpu")
    tpu = kinds.add_parser("tpu", help="slices of TPUs on GKE")
    tpu.add_argument("--topology", required=True, help=f"as in gptjax estimate, v5p:4x4x8; {', '.join(TPUS)}")
    tpu.add_argument("--slices", type=int, default=1, help="slices of that topology")
    tpu.add_argument("--chips", type=int, default=4, help="chips of a node: 4, or 8 on ct6e-standard-8t")
    gpu = kinds.add_parser("gpu", help="nodes with GPUs on any Kubernetes")
    gpu.add_argument("--nodes", type=int, default=1)
    gpu.add_argument("--gpus", type=int, default=8, help="GPUs of a node")
    for kind in (tpu, gpu):
        kind.add_argument("--name", required=True)
        kind.add_argument("--image", required=True, help="built from launch/Dockerfile, with its registry and tag")
        kind.add_argument("--namespace", default="default")
        kind.add_argument("--queue", help="Kueue's LocalQueue that admits the run")
        kind.add_argument("--claim", help="PersistentVolumeClaim to mount at /runs; all pods write to it")
        kind.add_argument("--service-account", help="who the pods are; on GKE, who may write to the bucket")
        kind.add_argument("--spot", action="store_true", help="on GKE's spot nodes")
        kind.add_argument("--restarts", type=int, default=10, help="restarts after failures; preemptions do not count")
        kind.add_argument("--grace", type=int, default=300, help="seconds from SIGTERM to SIGKILL, to save in")
        kind.add_argument("command", nargs="+", help="after --")
    return top


def complaint(args: argparse.Namespace) -> str:
    """Return what is wrong with the flags, in a line, or nothing."""
    # JobSet names a pod's host NAME-workers-SLICE-POD, which Kubernetes holds to 63 characters.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.name):
        return f"--name {args.name!r} must be of lower-case letters, digits and dashes, at most 40"
    for flag in ("slices", "chips", "nodes", "gpus", "grace"):
        if getattr(args, flag, 1) < 1:
            return f"--{flag} {getattr(args, flag)} must be at least 1"
    if args.restarts < 0:
        return f"--restarts {args.restarts} must be at least 0"
    if args.kind == "gpu":
        return ""
    tpu, _, shape = args.topology.partition(":")
    if tpu not in TPUS:
        return f"--topology {args.topology!r}: no TPU {tpu!r}; take one of {', '.join(TPUS)}"
    dimensions = TPUS[tpu][1]
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), shape):
        return f"--topology {args.topology!r}: write {tpu}:{'x'.join('4' * dimensions)}, its {dimensions} sides"
    chips = math.prod(map(int, shape.split("x")))
    if chips % min(chips, args.chips):
        return f"--topology {args.topology!r} has {chips} chips, which nodes of --chips {args.chips} cannot make up"
    return ""


def tpu_job(args: argparse.Namespace) -> tuple[int, Manifest, Manifest]:
    """Return the nodes of a slice, and what of the pod and of its container is a matter of TPUs."""
    tpu, _, shape = args.topology.partition(":")
    chips = math.prod(map(int, shape.split("x")))
    per_node = min(chips, args.chips)
    selector = {"cloud.google.com/gke-tpu-accelerator": TPUS[tpu][0], "cloud.google.com/gke-tpu-topology": shape}
    # The host's network is the fast way between slices; 8471 is the TPU runtime's port, 8080 that of several slices.
    pod = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", "nodeSelector": selector}
    container = {
        "env": [{"name": "GPTJAX_COORDINATOR", "value": "auto"}],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {"limits": {"google.com/tpu": per_node}},
    }
    return chips // per_node, pod, container


def gpu_job(args: argparse.Namespace) -> tuple[int, Manifest, Manifest]:
    """Return the nodes, and what of the pod and of its container is a matter of GPUs: one process has all of a node."""
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    env = [
        {"name": "GPTJAX_COORDINATOR", "value": f"{args.name}-workers-0-0.{args.name}:{PORT}"},
        {"name": "GPTJAX_PROCESSES", "value": str(args.nodes)},
        {"name": "GPTJAX_PROCESS", "valueFrom": index},
    ]
    container = {
        "env": env,
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": args.gpus}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    # NCCL shares memory between GPUs there, and a container's own 64 MiB are too few.
    pod = {"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}]}
    return args.nodes, pod, container


def jobset(args: argparse.Namespace) -> Manifest:
    """Return the manifest: a Job for each slice, or one of all GPU nodes; a pod and a process for each node."""
    nodes, pod, container = tpu_job(args) if args.kind == "tpu" else gpu_job(args)
    container = {"name": "gptjax", "image": args.image, "command": args.command, **container}
    if args.claim:
        claim = {"name": "runs", "persistentVolumeClaim": {"claimName": args.claim}}
        pod["volumes"] = [*pod.get("volumes", []), claim]
        container["volumeMounts"] = [*container.get("volumeMounts", []), {"name": "runs", "mountPath": "/runs"}]
    if args.spot:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), "cloud.google.com/gke-spot": "true"}
    if args.service_account:
        pod["serviceAccountName"] = args.service_account
    pod |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": args.grace, "containers": [container]}
    # A failing pod fails its Job at once; the Job's message then carries the exit code to the JobSet.
    codes = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [code]}} for code in (WRONG, SAVED)]
    job = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": codes},
        "template": {"spec": pod},
    }
    policy = {
        "maxRestarts": args.restarts,
        "rules": [
            rule("saved", "RestartJobSetAndIgnoreMaxRestarts", SAVED),
            rule("wrong", "FailJobSet", WRONG),
        ],
    }
    slices = getattr(args, "slices", 1)
    metadata: Manifest = {"name": args.name, "namespace": args.namespace}
    if args.kind == "tpu":  # a slice is a node pool: no two Jobs share one
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    if args.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": args.queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": policy,
            "replicatedJobs": [{"name": "workers", "replicas": slices, "template": {"spec": job}}],
        },
    }


def rule(name: str, action: str, code: int) -> Manifest:
    """Return what the JobSet does after a Job failed because a pod exited with `code`."""
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [rf"exit code {code}\b"],
    }


def main() -> None:
    top = parser()
    args = top.parse_args()
    if line := complaint(args):
        top.error(line)
    yaml.safe_dump(jobset(args), sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
