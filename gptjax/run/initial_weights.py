"""Where a fine-tune gets its weights: a step of any run, or a folder of weights; and whether they fit it."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jax
import tensorstore as ts

from gptjax.config import InitFrom, RunConfig, load_config
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import BadInput
from gptjax.fingerprint import fingerprint
from gptjax.jobs import hosts, storage
from gptjax.params import Params, divide, named, united
from gptjax.run.checkpoint import damage, read_tree, sealed_steps
from gptjax.run.weights import MARK, SavedModel, saved_model


def place_of(init: InitFrom, directory: Path) -> Path:
    """Return the directory that a run begins from."""
    return storage.folder(init.run) if "://" in init.run else directory.parent / init.run


def with_resolved_origin(config: RunConfig, directory: Path) -> RunConfig:
    """Fill in which weights a run begins with, so that its fingerprint tells them from any others.

    A run that has begun keeps what it began with, whether or not its origin is still there. BadInput where there are no
    such weights, or others than `trajectory` says.
    """
    init = config.init_from
    if init is None or init.what == "state":
        return config
    step, trajectory = hosts.agree(lambda: _begun_with(init, directory) or _identity(init, directory))
    if init.trajectory not in ("", trajectory):
        raise BadInput(
            f"init_from: {place_of(init, directory)} holds weights {trajectory}, not {init.trajectory}; leave "
            "trajectory out to take what is there"
        )
    return replace(config, init_from=replace(init, step=step, trajectory=trajectory))


def _begun_with(init: InitFrom, directory: Path) -> tuple[int, str] | None:
    """Return step and identity of the weights that the run in a directory began with, if it did at the same place."""
    if not (directory / "config.json").is_file():
        return None
    begun = load_config(directory / "config.json").init_from
    if begun and (begun.run, begun.what) == (init.run, init.what) and init.step in (0, begun.step):
        return begun.step, begun.trajectory
    return None


def _identity(init: InitFrom, directory: Path) -> tuple[int, str]:
    """Return the step of an origin and what tells its weights from others: a run's fingerprint, or a folder's digest.

    The digest is of the seal, and so of every byte.
    """
    origin = place_of(init, directory)
    if (origin / MARK).is_file() and (origin / "seal.json").is_file():
        return 0, sha256((origin / "seal.json").read_bytes()).hexdigest()[:16]
    if not (origin / "config.json").is_file():
        raise BadInput(f"init_from: {origin} is neither a run nor a folder of weights; train or import it first")
    step = init.step or next(iter(sealed_steps(origin / "checkpoints")), 0)
    if not step:
        raise BadInput(f"init_from: {origin} has no checkpoint; train it first")
    return step, fingerprint(load_config(origin / "config.json"))


def check_origin(config: RunConfig, directory: Path, tokenizer: Tokenizer) -> None:
    """Refuse what a run is to begin with where it is missing, damaged, of another shape or of another tokenizer."""
    init = config.init_from
    if init is None:
        return
    origin = place_of(init, directory)
    if init.what == "state":
        if wrong := damage(origin / "checkpoints", init.step):
            path = origin / "checkpoints" / str(init.step)
            raise BadInput(f"init_from: checkpoint {path} {wrong}; train that run first")
        return
    saved = _opened(init, directory)
    check_fit(saved, config)
    if saved.has_tokenizer and saved.tokenizer.digest != tokenizer.digest:
        raise BadInput(f"init_from: {origin} reads with another tokenizer; set data.tokenizer to {origin}")


def _opened(init: InitFrom, directory: Path) -> SavedModel:
    """Open the weights that a run begins with; BadInput where they are no longer those that it was begun with."""
    if hosts.agree(lambda: _identity(init, directory)[1]) != init.trajectory:
        raise BadInput(f"init_from: {place_of(init, directory)} has changed since this run was begun; use a new --dir")
    return saved_model(place_of(init, directory), init.step or None)


def check_fit(saved: SavedModel, config: RunConfig) -> None:
    """Refuse weights that are not those of a run's model, naming the first, or the setting that differs."""
    model = config.model
    if model.family != saved.config.family:
        raise BadInput(f"init_from: {saved.directory} is a {saved.config.family}, this model a {model.family}")
    wanted = {name: leaf.shape for name, leaf in named(_shapes(config)).items()}
    found = {name: array.shape for name, array in fitted(saved, config).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            here, there = (f"of shape {shapes[name]}" if name in shapes else "absent" for shapes in (wanted, found))
            raise BadInput(f"init_from: {name} is {here} in this model, {there} in {saved.directory}; take its model")
    for name in model.unseen(saved.config):
        ours, theirs = getattr(model, name), getattr(saved.config, name)
        if ours != theirs:
            raise BadInput(f"init_from: model.{name} is {ours!r} and {theirs!r} in {saved.directory}; take that")


def fitted(saved: SavedModel, config: RunConfig) -> dict[str, ts.TensorStore]:
    """Return saved weights as a model of a shorter context takes them: of learned positions, the first that it has."""
    arrays, context = dict(saved.arrays), config.model.context
    for name, axes in named(saved.model.axes).items():
        if axes[0] == "positions" and name in arrays and context < arrays[name].shape[0]:
            arrays[name] = arrays[name][:context]
    return arrays


def read_weights(config: RunConfig, directory: Path, params: Params) -> Params:
    """Put the origin's weights in the place of new ones, each on the devices that hold it; adapters stay."""
    assert config.init_from is not None
    saved = _opened(config.init_from, directory)
    taken, _ = divide(params, _shapes(config))
    abstract = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), taken)
    return united(params, read_tree(fitted(saved, config), abstract, str(saved.directory)))


def _shapes(config: RunConfig) -> Params:
    return jax.eval_shape(config.model.build(config.execution).init, jax.random.key(0))
