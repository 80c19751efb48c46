"""Eight simulated CPU devices for every test, and compiled programs kept between them; set before jax is imported."""

import os
from pathlib import Path

import pytest

DEVICES = 8
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PJRT_NPROC"] = str(4 * DEVICES)  # fewer threads than devices can deadlock their collectives
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".cache" / "tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Free the programs of a file of tests when it is done; they add up to gigabytes."""
    yield
    import jax

    jax.clear_caches()
