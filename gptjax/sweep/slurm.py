"""Run a sweep as SLURM jobs: one for each trunk, its branches as an array that waits for it, all others as one array.

submitit writes and requeues the jobs. DIR/slurm/ holds their logs and, in jobs.json, the job that each run was last
submitted as, so that the same command attaches to what is queued. Nodes and login node share DIR and the data's cache.
"""

import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths, pickle_load
from tqdm import tqdm

from gptjax.config import load_own, own_files
from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.jobs.hosts import join_job, together
from gptjax.jobs.leases import hold
from gptjax.jobs.process import settle
from gptjax.jobs.storage import is_remote
from gptjax.run.loop import Preempted
from gptjax.sweep.execute import begin, pending, work
from gptjax.sweep.follow import followed
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.plan import Plan, PlannedRun

TAIL = 12  # lines of a failed job's stderr that are shown
GONE = "GONE"  # what SLURM does not remember any more
ENDED = {GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}


@dataclass(frozen=True)
class Resources:
    """What each job asks SLURM for, and how often it may come back."""

    partition: str = ""  # empty: the cluster's default
    account: str = ""
    minutes: int = 60  # a run that needs longer saves, and goes on in its next turn
    nodes: int = 1
    tasks_per_node: int = 1  # processes; all of a job train one run together
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    memory_gb: float = 0.0  # of each node; 0: the partition's default
    options: dict[str, str] = field(default_factory=dict)  # more of sbatch, as {"qos": "high"}
    notice_seconds: int = 120  # before the time limit, to save in
    turns: int = 100  # time limits that one job may reach
    resubmissions: int = 2  # of a run whose job ended without a result, as one killed with its node
    poll_seconds: float = 15.0

    def __post_init__(self) -> None:
        for name in ("minutes", "nodes", "tasks_per_node", "cpus_per_task", "notice_seconds", "turns", "poll_seconds"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{name} = {getattr(self, name)} must be above 0")
        if self.notice_seconds >= 60 * self.minutes:
            raise BadInput(f"notice_seconds {self.notice_seconds} must be less than minutes = {self.minutes}")


@dataclass(frozen=True)
class Job:
    """Train one run on a node. Returns the message if its input is refused there."""

    directory: Path
    run: str
    files: tuple[str, ...] = ()  # of the user's own families

    def __call__(self) -> str | None:
        notice = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        # submitit's handler would end the process at once: the loop shall see SIGTERM instead, and save first
        requeue = signal.signal(notice, lambda number, frame: signal.raise_signal(signal.SIGTERM))
        assert callable(requeue)
        settle()
        load_own(self.files)
        plan = Plan.load(self.directory / "plan.json")
        parent = {run.name: run.parent for run in plan.runs}.get(self.run)
        try:
            join_job()
            with together():
                work(plan, self.directory, only={self.run, *([parent] if parent else [])})
        except BadInput as error:
            return str(error)
        except Preempted:
            job = submitit.JobEnvironment().job_id
            if (states() or {}).get(job) == "RUNNING":  # so neither cancelled nor requeued by SLURM itself
                requeue(notice, None)
            raise
        return None

    def checkpoint(self) -> DelayedSubmission:
        """Give submitit what to requeue: the same job, since the run's directory says how far it is."""
        return DelayedSubmission(self)


def execute(plan: Plan, directory: Path, resources: Resources) -> None:
    """Have every run that the ledger lacks trained by a job; returns when all are done or failed.

    A run whose job is queued is not submitted again; one whose job ended without a result is, a few times. Why a job
    was given up is printed with the end of its stderr, and the exit code is 1 once nothing else can be done (2 if it
    refused its input). Interrupted, this leaves the jobs as they are.
    """
    if is_remote(directory):
        raise BadInput(
            f"executor slurm keeps its jobs' files in {directory}; give a --dir on disks that the nodes share"
        )
    if shutil.which("sbatch") is None:
        raise BadInput("sbatch is not on this machine; run this on the cluster's login node, or with --executor local")
    if states() is None:
        raise BadInput("squeue cannot reach SLURM's controller; see what squeue says, or use --executor local")
    ledger = begin(plan, directory)
    queue = JobQueue(plan, ledger, directory.absolute(), resources)
    with followed(plan, ledger, directory):
        try:
            while pending(plan, ledger):
                with hold(directory / "slurm" / "lease") as mine:  # of several commands that wait, one submits
                    if mine and not queue.submit():
                        break
                time.sleep(resources.poll_seconds)
        except KeyboardInterrupt:
            end = f"scancel --name {queue.name}"
            print(f"gptjax: the jobs go on; the same command waits for them again, {end} ends them", file=sys.stderr)
            raise
    if queue.failed:
        sys.exit(max(queue.failed.values()))


class JobQueue:
    """The jobs of a sweep, and what this process has seen of them."""

    def __init__(self, plan: Plan, ledger: Ledger, directory: Path, resources: Resources) -> None:
        self.plan, self.ledger, self.directory, self.resources = plan, ledger, directory, resources
        self.folder = directory / "slurm"
        self.name = f"gptjax-{directory.name}-{zlib.crc32(str(directory).encode()):08x}"
        self.seen: set[str] = set()  # jobs that were alive
        self.losses: Counter[str] = Counter()
        self.failed: dict[str, int] = {}  # runs not submitted again, with the exit code that is due

    def submit(self) -> bool:
        """Submit what is pending and not queued; False when nothing is queued and nothing can be."""
        found = states()  # before the ledger is read: a job that has gone has written its row
        if found is None:
            return True  # the controller is away; ask again later
        rows, todo = self.ledger.rows(), pending(self.plan, self.ledger)
        record = self.folder / "jobs.json"
        jobs: dict[str, str] = read_json(record) if record.is_file() else {}
        alive = {name for name, job in jobs.items() if found.get(job, GONE) not in ENDED}
        ready = []
        for run in todo:
            if run.name in alive or run.name in self.failed:
                continue
            waits = run.parent is not None and run.parent not in rows
            if jobs.get(run.name) in self.seen and not waits:  # SLURM ends jobs that wait when their trunk is lost
                self.lose(run, jobs[run.name], found.get(jobs[run.name], GONE))
            if run.name not in self.failed and run.parent not in self.failed:
                ready.append(run)
        arrays: dict[str, list[PlannedRun]] = defaultdict(list)
        for run in ready:
            if run.role == "trunk":
                jobs |= self.send([run], "")
                write_json(record, jobs)
        for run in ready:
            if run.role != "trunk":
                arrays["" if run.parent is None or run.parent in rows else jobs[run.parent]].append(run)
        for trunk, runs in arrays.items():
            jobs |= self.send(runs, trunk)
            write_json(record, jobs)
        queued = {jobs[run.name] for run in todo if run.name in alive or run in ready}
        self.seen |= queued
        return bool(queued)

    def send(self, runs: Sequence[PlannedRun], trunk: str) -> dict[str, str]:
        """Submit a job, or an array of them, that waits for the job of a trunk; return each run's job."""
        r = self.resources
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=r.turns)
        # a job that waits for one that failed shall go; all may come back, whatever the cluster's default
        more = {"kill-on-invalid-dep": "yes", "requeue": True, **r.options}
        executor.update_parameters(
            job_name=self.name,
            partition=r.partition or None,
            account=r.account or None,
            time=r.minutes,
            nodes=r.nodes,
            ntasks_per_node=r.tasks_per_node,
            cpus_per_task=r.cpus_per_task,
            gpus_per_node=r.gpus_per_node or None,
            signal_delay_s=r.notice_seconds,
            dependency=f"afterok:{trunk}" if trunk else None,
            additional_parameters=more,
            **({"mem": r.memory_gb} if r.memory_gb else {}),
        )
        try:
            with executor.batch():
                sent = [executor.submit(Job(self.directory, run.name, own_files())) for run in runs]
        except FailedJobError as error:
            lines = str(error).strip().splitlines() or ["sbatch failed"]
            raise BadInput(f"{lines[-1]}; see --resource for what a job may ask for") from None
        return {run.name: job.job_id for run, job in zip(runs, sent, strict=True)}

    def lose(self, run: PlannedRun, job: str, state: str) -> None:
        """Take note of a job that ended without a row: say so, and decide whether its run has another chance."""
        paths = JobPaths(self.folder, job, 0)
        outcome, value = pickle_load(paths.result_pickle) if paths.result_pickle.is_file() else ("", None)
        if outcome == "success" and value is not None:
            self.failed[run.name] = 2
            tqdm.write(f"gptjax: {run.name}: {value}", sys.stderr)
            return
        log = paths.stderr.read_text(errors="replace") if paths.stderr.is_file() else ""
        self.losses[run.name] += 1
        again = self.losses[run.name] <= self.resources.resubmissions and state != "CANCELLED"
        what = f"submitted again, {self.losses[run.name]} of {self.resources.resubmissions}" if again else "given up"
        end = "".join(f"\n  {line}" for line in log.splitlines()[-TAIL:])
        tqdm.write(f"gptjax: {run.name}: job {job} ended as {state}, {what}; {paths.stderr} ends:{end}", sys.stderr)
        if not again:
            self.failed[run.name] = 1


def states() -> dict[str, str] | None:
    """Return the state of each of this user's jobs that SLURM knows of, or None if it cannot be asked."""
    command = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i %T"]
    asked = subprocess.run(command, capture_output=True, text=True)
    return None if asked.returncode else dict(line.split() for line in asked.stdout.splitlines())
