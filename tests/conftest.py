"""Eight simulated CPU devices for every test, and compiled programs kept between them; set before jax is imported."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

DEVICES = 8
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PJRT_NPROC"] = str(4 * DEVICES)  # fewer threads than devices can deadlock their collectives
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".cache" / "tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of machine code: they take longer than tests run it

with suppress(ImportError):  # before absl's: it drops all handlers of logs, and absl's would close pytest's own stderr
    import submitit  # noqa: F401

LONGEST = ("sweep", "model", "train", "mup", "mesh", "pack", "elastic", "hosts", "generate")  # minutes, not seconds


def pytest_collection_modifyitems(items):
    """Begin with the longest files, so that several workers end together."""
    rank = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def programs(request):
    """Optimize the programs of a file that says OPTIMIZED, its processes' too; and free them when the file is done.

    Training's do so for their bits, the laws' fits because they run longer than they compile. Together, the programs
    of all files would take gigabytes.
    """
    import jax

    optimized = getattr(request.module, "OPTIMIZED", False)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not optimized))
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    """Give a folder for the tokens of a file's runs."""
    return str(tmp_path_factory.mktemp("cache"))
