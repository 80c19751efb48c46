"""Where a fine-tune gets its weights: a step of any run, or a folder of weights; and whether they fit it."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jax
import tensorstore as ts

from gptjax import hosts, storage
from gptjax.config import InitFrom, RunConfig, load_config
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import BadInput
from gptjax.models.gpt import GPTConfig, gpt
from gptjax.params import Params, divide, join, named
from gptjax.question import fingerprint
from gptjax.train.checkpoint import damage, read_tree, sealed_steps
from gptjax.train.weights import MARK, SavedModel, saved_model

# Settings that no weight's shape shows. Others are free: dtype, initialization, a context that the positions allow.
UNSEEN = ("norm", "norm_eps", "norm_place", "positions", "activation", "logit_cap", "mup_width", "mup_depth",
          "depth_alpha")  # fmt: skip
STRETCHED = ("rope_theta", "rope_scaling")  # free where the context grows


def place_of(init: InitFrom, directory: Path) -> Path:
    """Return the directory that a run begins from."""
    return storage.folder(init.run) if "://" in init.run else directory.parent / init.run


def identified(config: RunConfig, directory: Path) -> RunConfig:
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
    check_fit(saved, config.model)
    if saved.has_tokenizer and saved.tokenizer.digest != tokenizer.digest:
        raise BadInput(f"init_from: {origin} reads with another tokenizer; set data.tokenizer to {origin}")


def _opened(init: InitFrom, directory: Path) -> SavedModel:
    """Open the weights that a run begins with; BadInput where they are no longer those that it was begun with."""
    if hosts.agree(lambda: _identity(init, directory)[1]) != init.trajectory:
        raise BadInput(f"init_from: {place_of(init, directory)} has changed since this run was begun; use a new --dir")
    return saved_model(place_of(init, directory), init.step or None)


def check_fit(saved: SavedModel, model: GPTConfig) -> None:
    """Refuse weights that are not those of a model, naming the first that is not, or the setting that differs."""
    wanted = {name: leaf.shape for name, leaf in named(_shapes(model)).items()}
    found = {name: array.shape for name, array in fitted(saved, model).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            here, there = (f"of shape {shapes[name]}" if name in shapes else "absent" for shapes in (wanted, found))
            raise BadInput(f"init_from: {name} is {here} in this model, {there} in {saved.directory}; take its model")
    stretched = STRETCHED if model.positions == "rope" and model.context <= saved.config.context else ()
    for name in (*UNSEEN, *stretched):
        ours, theirs = getattr(model, name), getattr(saved.config, name)
        if ours != theirs:
            raise BadInput(f"init_from: model.{name} is {ours!r} and {theirs!r} in {saved.directory}; take that")


def fitted(saved: SavedModel, model: GPTConfig) -> dict[str, ts.TensorStore]:
    """Return saved weights as a model of another context takes them: of learned positions, the first that it has."""
    arrays = dict(saved.arrays)
    if "positions" in arrays and model.context < arrays["positions"].shape[0]:
        arrays["positions"] = arrays["positions"][: model.context]
    return arrays


def read_weights(config: RunConfig, directory: Path, params: Params) -> Params:
    """Put the origin's weights in the place of new ones, each on the devices that hold it; adapters stay."""
    assert config.init_from is not None
    saved = _opened(config.init_from, directory)
    taken, _ = divide(params, _shapes(config.model))
    abstract = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), taken)
    return join(params, read_tree(fitted(saved, config.model), abstract, str(saved.directory)))


def _shapes(model: GPTConfig) -> Params:
    return jax.eval_shape(gpt(model).init, jax.random.key(0))
