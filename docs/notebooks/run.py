"""Run the notebooks of this folder and write them with what they show.

    python docs/notebooks/run.py [NAME ...]

Each runs in a new folder, so that it reads nothing of yours. What libraries write to standard error, which has times in
it, is left out.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def executed(path: Path, where: str, seconds: int = 600) -> Any:
    """Run a notebook in a folder and return it with its outputs; nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{before}"  # this checkout's gptjax, for the kernel
    try:
        NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": where}}).execute()
    finally:
        os.environ["PYTHONPATH"] = before
    return notebook


def shown(notebook: Any) -> Any:
    """Leave out of a notebook what differs from run to run."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    for path in [HERE / name for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        with TemporaryDirectory() as where:
            nbformat.write(shown(executed(path, where)), path)
        print(f"{path.name}: {path.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
