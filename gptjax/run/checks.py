"""What a run may not be, said before it begins, and the claim on its directory."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp

from gptjax.config import RunConfig, differs, to_json
from gptjax.data.objectives import Reading
from gptjax.data.store import TokenStore
from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.jobs import hosts
from gptjax.jobs.leases import Lease, hold
from gptjax.models.families import FAMILIES
from gptjax.models.model import Model
from gptjax.run.checkpoint import for_orbax
from gptjax.run.initial_weights import check_origin
from gptjax.run.result import data_digest, device_name
from gptjax.sharding import Layout
from gptjax.train.adapters import tuned


def check_shapes(config: RunConfig, layout: Layout) -> None:
    """Refuse what shapes and machine rule out, before any data is read."""
    if "wandb" in config.trackers and importlib.util.find_spec("wandb") is None:
        raise BadInput("tracker wandb is not installed; make install EXTRAS=test,track")
    rules, model, execution = layout.rules, config.model, config.execution
    model.check(layout, execution)
    stages = layout.parts(rules.layers)
    microbatches = execution.in_flight(stages)
    parts = layout.parts(rules.batch) * microbatches
    what = f"the mesh's {parts} parts" if stages == 1 else f"{parts} parts, the mesh's in {microbatches} microbatches"
    for name, rows in (("batch", config.batch // config.accumulate), ("evaluate.batch", config.evaluate.batch)):
        if rows % parts:
            near = -(-rows // parts) * parts
            raise BadInput(f"{name} of {rows} sequences is not divisible by {what}; use {near}")
    weights = tuned(model.build(execution), config.tune)
    check_reads(config, weights)
    layout.params(weights.axes, jax.eval_shape(weights.init, jax.random.key(0)))
    for axis in ("seq", "stream", "keys"):
        if (T := model.context) % (parts := layout.parts(getattr(rules, axis))):
            raise BadInput(f"context {T} is not divisible by the {parts} parts of rules.{axis}; change mesh or context")
    if layout.parts(rules.keys) > 1 and rules.keys != rules.seq:
        raise BadInput(f"rules.keys {rules.keys!r} must be None or, for ring attention, rules.seq, {rules.seq!r}")


def check_reads(config: RunConfig, model: Model) -> None:
    """Refuse a family without a row, and a batch with parts that the family would not heed."""
    family = config.model.family
    if FAMILIES.get(family) is not type(config.model):
        name = type(config.model).__name__
        raise BadInput(f'no row of FAMILIES says that {family!r} is {name}; add FAMILIES["{family}"] = {name}')
    reading = Reading(config.data.objective, 0, 1, config.data.separate_documents)
    T = config.model.context
    windows, index = jax.ShapeDtypeStruct((1, T + 1), jnp.int32), jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    batch = jax.eval_shape(lambda w, i: reading(w, i, 0), windows, index)
    for part, setting in (("segments", "data.separate_documents"), ("prefix", f"objective {reading.objective.kind!r}")):
        if getattr(batch, part) is not None and part not in model.reads:
            raise BadInput(f"family {family!r} does not heed {part}, which {setting} needs; leave that out")


def check_origins(config: RunConfig, directory: Path, stores: tuple[TokenStore, ...]) -> None:
    """Refuse a tokenizer larger than the model, and weights to begin with that are not there or are another model's."""
    vocab, own = stores[0].tokenizer.vocab_size, config.data.objective.own_ids
    if vocab + own > config.model.vocab_size:
        whose = f"the tokenizer's {vocab}" + (
            f" and {own} of the objective {config.data.objective.kind}" if own else ""
        )
        raise BadInput(f"model.vocab_size {config.model.vocab_size} is below {whose}; set it to {vocab + own} or more")
    if config.init_from and not hosts.agree(lambda: (directory / "checkpoints").is_dir()):
        check_origin(config, directory, stores[0].tokenizer)


@contextmanager
def claim(
    directory: Path, config: RunConfig, stores: tuple[TokenStore, ...], lease: Lease | None
) -> Iterator[Lease | None]:
    """Hold a directory as this run's own; refuse one that holds another run, this one on other data, or is in use.

    Gives the lease that the first process holds: the one given, or a new one.
    """
    if not hosts.is_first():
        check_shared(directory)
        yield None
        return
    for_orbax(directory)
    path, env = directory / "config.json", directory / "env.json"
    if (directory / "plan.json").is_file():
        raise BadInput(f"{directory} holds a sweep; give the run a new --dir")
    if other := differs(directory, config):
        raise BadInput(f"{directory} holds a run of another config{other}; use a new --dir")
    environment = {
        "data_digest": data_digest(stores),
        "device": device_name(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")},
    }
    begun = read_json(env) if env.is_file() else environment
    if not isinstance(begun, dict) or "data_digest" not in begun:
        raise BadInput(f"{env} is damaged: it does not say on what data the run was begun; if on this one, delete it")
    if begun["data_digest"] != environment["data_digest"]:
        raise BadInput(f"{directory} was begun on other data than {config.data.sources}; use a new --dir")
    directory.mkdir(parents=True, exist_ok=True)
    with nullcontext(lease) if lease else hold(directory / "lease", watch=True) as held:
        if held is None:
            raise BadInput(f"{directory} is being trained by another process; wait for it or use a new --dir")
        write_json(env, environment)
        stores[0].tokenizer.save(directory)
        write_json(path, to_json(config))
        check_shared(directory)
        yield held


def check_shared(directory: Path) -> None:
    """Refuse a directory that other processes of the job do not see."""
    hosts.gather(None)  # the first has written it
    for i, seen in enumerate(hosts.gather((directory / "config.json").is_file())):
        if not seen:
            raise BadInput(f"{directory} of process 0 is not there for process {i}; give a directory that all share")
