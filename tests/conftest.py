"""Eight simulated CPU devices for every test, and compiled programs kept between them; set before jax is imported."""

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

DEVICES = 8
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PJRT_NPROC"] = str(4 * DEVICES)  # fewer threads than devices can deadlock their collectives
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".cache" / "tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of machine code: they take longer than tests run it

with suppress(ImportError):  # before absl's: it drops all handlers of logs, and absl's would close pytest's own stderr
    import submitit  # noqa: F401

# Files that take long, with seconds of one core. The longest begin, so that several workers end together, and `--fast`
# leaves all of them out.
SLOW = {
    "hosts": 180, "sweep": 100, "elastic": 60, "train": 60, "pack": 50, "tune": 50, "checkpoint": 45, "parity": 72,
    "harness": 47, "experiments": 45, "executors": 35, "door": 35, "objectives": 57, "model": 30, "mup": 25, "mesh": 25,
    "generate": 30, "report": 25, "follow": 25, "loss": 20, "feed": 17, "presets": 15, "splash": 15, "inspect": 12,
    "laws": 12, "python": 60, "notebooks": 60, "propose": 30, "intervals": 12, "own_form": 10, "arms": 10, "doubt": 10,
    "selftest": 10,
}  # fmt: skip


def seconds(path: Path) -> int:
    return SLOW.get(path.stem.removeprefix("test_"), 0) if path.suffix == ".py" else 0  # and no folder of that name


def pytest_addoption(parser):
    parser.addoption(
        "--fast", action="store_true", help="leave out slow files, as conftest.py says, and tests marked slow"
    )


def pytest_ignore_collect(collection_path, config):
    return True if config.getoption("--fast") and seconds(collection_path) else None


def pytest_collection_modifyitems(items, config):
    items.sort(key=lambda item: -seconds(item.path))
    if config.getoption("--fast"):
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_terminal_summary(terminalreporter):
    """Say what this machine could not prove: why tests were skipped, and how many for each cause."""
    causes: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        causes[report.longrepr[2].removeprefix("Skipped: ")].append(report.nodeid)
    if causes:
        terminalreporter.section("what this machine could not prove")
    for cause, skipped in sorted(causes.items()):
        tests = [name for name in skipped if "::" in name]
        said = [*sorted(set(skipped) - set(tests)), *([f"{len(tests)} test{'s' * (len(tests) > 1)}"] if tests else [])]
        terminalreporter.write_line(f"{', '.join(said)}: {cause}")


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
