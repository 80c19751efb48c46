"""gptjax: a scaling lab for GPTs in JAX. From Python it offers what the verbs of the command line do.

    import gptjax

    law = gptjax.fit(frame)                 # pandas, polars, pyarrow, a dict, a CSV or parquet file, a sweep
    law.approaches["isoflop"].a             # typed results, with .table(), .plot.isoflop(), .save(path)
    law.predict(flops=1e21).loss
    model = gptjax.load("runs/tiny")
    model.generate("def ", tokens=20)

The import is cheap: what is offered is read when it is first asked for. docs/python.md has each verb's twin.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptjax.errors import BadInput as BadInput
    from gptjax.lab.comparing import compare as compare
    from gptjax.lab.evaluation import evaluate as evaluate
    from gptjax.lab.fitted import read_fitted as read_law
    from gptjax.lab.forecasts import predict as predict
    from gptjax.lab.laws import fit as fit
    from gptjax.lab.laws import read as read
    from gptjax.lab.laws import report as report
    from gptjax.lab.laws import score as score
    from gptjax.lab.models import export as export
    from gptjax.lab.models import generate as generate
    from gptjax.lab.models import load as load
    from gptjax.lab.planning import plan as plan
    from gptjax.lab.training import sweep as sweep
    from gptjax.lab.training import train as train

_OFFERED = {  # where each name is found
    "BadInput": "gptjax.errors:BadInput",
    "compare": "gptjax.lab.comparing:compare",
    "evaluate": "gptjax.lab.evaluation:evaluate",
    "export": "gptjax.lab.models:export",
    "fit": "gptjax.lab.laws:fit",
    "generate": "gptjax.lab.models:generate",
    "load": "gptjax.lab.models:load",
    "plan": "gptjax.lab.planning:plan",
    "predict": "gptjax.lab.forecasts:predict",
    "read": "gptjax.lab.laws:read",
    "read_law": "gptjax.lab.fitted:read_fitted",
    "report": "gptjax.lab.laws:report",
    "score": "gptjax.lab.laws:score",
    "sweep": "gptjax.lab.training:sweep",
    "train": "gptjax.lab.training:train",
}
_ROOMS = ("generate", "sweep", "train")  # rooms of the package that have the name of what is offered
__all__ = [
    "BadInput",
    "compare",
    "evaluate",
    "export",
    "fit",
    "generate",
    "load",
    "plan",
    "predict",
    "read",
    "read_law",
    "report",
    "score",
    "sweep",
    "train",
]


def _found(name: str) -> Any:
    module, _, attribute = _OFFERED[name].partition(":")
    return getattr(import_module(module), attribute)


class _Room(ModuleType):
    """A room that can be called: `gptjax.train(...)` trains a run, and `gptjax.train.step` is a file of that room."""

    @property
    def _offered(self) -> Any:
        return _found(self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._offered(*args, **settings)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self._offered.__doc__

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._offered)


class _Package(ModuleType):
    """This package. Python sets a room as its attribute once it is imported; those of `_ROOMS` become callable then."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and type(value) is ModuleType:
            value.__class__ = _Room
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"gptjax.{name}")
    if name in _OFFERED:
        return _found(name)
    raise AttributeError(f"module 'gptjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})


sys.modules[__name__].__class__ = _Package
