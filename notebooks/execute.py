"""Executes every notebook and writes it, with its outputs, beside its source: `make notebooks`.

    notebooks/NAME.py  (jupytext's percent format: what is edited)  ->  notebooks/NAME.ipynb

Cells run in the repository's root, so that the paths in a notebook are those of a fresh clone. Cell
ids are their numbers and no times are recorded: what did not change leaves no difference.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        notebook = jupytext.read(path)
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": ROOT}},
        ).execute()
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
        target = path.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(target.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
