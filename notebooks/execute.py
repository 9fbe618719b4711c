"""Executes notebooks and writes them, with their outputs, beside their sources: `make notebooks`.

    python notebooks/execute.py [NUMBER...]    all, or those whose names begin so: 03

    notebooks/NAME.py  (jupytext's percent format: what is edited)  ->  notebooks/NAME.ipynb

Cells run in the folder of the notebook, as in Jupyter. Cell ids are their numbers and no
times are recorded: what did not change leaves no difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def main(chosen: tuple[str, ...]) -> None:
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        if chosen and not path.name.startswith(chosen):
            continue
        notebook = jupytext.read(path)
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": path.parent}},
        ).execute()
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
        target = path.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(target.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
