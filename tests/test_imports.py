"""The rooms of the house import downwards only: the picture in docs/design.md says which stands where."""

import ast
import re
from functools import cache

from helpers import ROOT

PACKAGE = ROOT / "gptjax"
CORE = "## The core, in the order to read it"


def drawn() -> list[set[str]]:
    """Return the rooms of each level of the picture, from the ground up."""
    picture = (ROOT / "docs" / "design.md").read_text().partition("```\n")[2].partition("```")[0]
    lines = [re.split(r" {5,}(?=[^ ]+ [^ ])", line)[0] for line in picture.splitlines()]
    return [{name.rstrip("/") for name in line.split()} for line in reversed(lines)]


LEVELS = drawn()


def level(module: str) -> int:
    """Return the level of a module's room."""
    room = module.partition(".")[0]
    for i, rooms in enumerate(LEVELS):
        if room in rooms:
            return i
    raise AssertionError(f"{room} has no place in the picture of docs/design.md: draw it there")


def is_room(name: str) -> bool:
    return (PACKAGE.parent / name.replace(".", "/")).is_dir()


@cache
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


def test_the_picture_has_every_room():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set.union(*LEVELS) == rooms - {"__init__"}


def test_imports_go_down():
    pairs = {(a, b) for a, b in imports() if a.partition(".")[0] != b.partition(".")[0]}
    upward = [(a, b) for a, b in sorted(pairs) if level(b) >= level(a)]
    assert not upward, f"these import upwards, or from a neighbour: {upward}"


def test_the_core_is_as_long_as_docs_say():
    section = (ROOT / "docs" / "design.md").read_text().partition(CORE)[2].partition("##")[0]
    rows = [re.match(r"\| `([\w/]+\.py)` \| (\d+) \|", line) for line in section.splitlines()]
    said = {row[1]: int(row[2]) for row in rows if row}
    assert len(said) == 11
    for name, lines in said.items():
        assert abs(len((PACKAGE / name).read_text().splitlines()) - lines) <= 10, name


def test_kernels_know_nothing_that_is_made_of_them():
    """They stand on devices, shapes and settings; of what stands there too, nothing asks for a kernel."""
    below = {"sharding", "params", "execution", "errors"}
    foreign = [(a, b) for a, b in imports() if a.startswith("kernels") and not b.startswith("kernels")]
    assert {b for _, b in foreign} <= below
    assert not [(a, b) for a, b in imports() if level(a) < level("kernels") and b.startswith("kernels")]


def test_a_family_of_models_is_known_by_its_door_alone():
    """Code outside models/ asks for no file of a family; only names of transformers are of one family."""
    door = {"models.model", "models.families", "models.presets", "models.cost"}
    inside = [(a, b) for a, b in imports() if b.startswith("models.") and b not in door]
    assert not [(a, b) for a, b in inside if not a.startswith(("models.", "hf."))]


def test_laws_know_nothing_of_training():
    below = {"errors", "files"}
    foreign = [(a, b) for a, b in imports() if a.startswith("laws") and not b.startswith("laws") and b not in below]
    assert not foreign


def test_no_test_imports_another():
    """What several use is in tests/helpers.py; programs that tests start, as strings, say so alike."""
    found = [
        (path.relative_to(ROOT / "tests").as_posix(), name)
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^\W*(?:from|import) (test_\w+)", path.read_text(), re.M)
    ]
    assert not found


def test_tests_stand_in_the_rooms_they_test():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names), "pytest imports test files by their bare names"
