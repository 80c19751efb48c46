"""The one switch that turns fast kernels off, and what they ask about the machine."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import jax

from gptjax.execution import Execution
from gptjax.sharding import current

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_kernels(on: bool = True) -> Iterator[None]:
    """Use the plain form of everything that is traced inside; with `on` false, the fast ones."""
    token = _plain.set(on)
    try:
        yield
    finally:
        _plain.reset(token)


def kernels_of(execution: Execution) -> AbstractContextManager[None]:
    """Use the kernels that an execution asks for, where the code around has not turned the fast ones off already."""
    return plain_kernels(_plain.get() or execution.kernels == "plain")


def target() -> str:
    """Return what fast forms are chosen for: "cpu", "gpu" or "tpu", and "plain" where they are turned off.

    It is the devices of the layout in use, which need not be those of this machine; else jax's default.
    """
    if _plain.get():
        return "plain"
    layout = current()
    return jax.default_backend() if layout is None else layout.platform
