"""The rooms of the house import downwards only (docs/design.md draws the levels)."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gptjax"
LEVELS = [
    [
        "errors",
        "storage",
        "files",
        "hosts",
        "leases",
        "question",
        "fields",
        "params",
        "sharding",
        "devices",
        "allocator",
    ],
    ["models", "data"],
    [
        "train.optim",
        "train.mup",
        "train.tune",
        "train.state",
        "train.loss",
        "train.step",
        "laws.law",
        "laws.forms",
        "laws.published",
        "laws.table",
    ],
    [
        "config",
        "train.checkpoint",
        "train.result",
        "train.validation",
        "train.metrics",
        "train.pack",
        "train.profile",
        "train.signals",
        "laws",
    ],
    [
        "generate",
        "eval",
        "train.loop",
        "train.weights",
        "train.origin",
        "train.export",
        "train.checks",
        "train.coord_check",
        "sweep.rules",
        "sweep.plan",
        "sweep.ledger",
        "laws.plot",
        "laws.plot_doubt",
        "laws.drawn",
        "laws.page",
        "laws.methods",
        "laws.report",
    ],
    [
        "sweep.execute",
        "sweep.follow",
        "sweep.local",
        "sweep.slurm",
        "sweep.ray",
        "sweep.loop",
        "sweep.advice",
        "selftest",
        "estimate",
        "hf",
        "inspect",
    ],
    ["commands"],
    ["cli"],
]


def level(module: str) -> int:
    """Return the level of a module: of its own name, or of its room."""
    for name in (module, module.partition(".")[0]):
        for i, names in enumerate(LEVELS):
            if name in names:
                return i
    raise AssertionError(f"{module} has no level: add it to LEVELS and to docs/design.md")


def is_room(name: str) -> bool:
    return (PACKAGE.parent / name.replace(".", "/")).is_dir()


def imports() -> list[tuple[str, str]]:
    pairs = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.endswith("__init__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names += [f"{node.module}.{a.name}" if is_room(node.module) else node.module for a in node.names]
            pairs += [(module, name.removeprefix("gptjax.")) for name in names if name.startswith("gptjax.")]
    return pairs


def test_imports_go_down():
    upward = [(a, b) for a, b in imports() if level(b) > level(a)]
    assert not upward, f"these import upwards: {upward}"


def test_models_and_data_do_not_know_each_other():
    crossed = [pair for pair in imports() if {name.partition(".")[0] for name in pair} == {"models", "data"}]
    assert not crossed


def test_laws_know_nothing_of_training():
    below = {"errors", "files"}
    foreign = [(a, b) for a, b in imports() if a.startswith("laws") and not b.startswith("laws") and b not in below]
    assert not foreign
