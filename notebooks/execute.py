"""Executes every notebook into build/notebooks/*.ipynb: `make notebooks`.

Cells run in the repository's root, so that the paths in a notebook are those of a fresh clone.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    out = ROOT / "build" / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        notebook = jupytext.read(path)
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}
        ).execute()
        target = out / f"{path.stem}.ipynb"
        nbformat.write(notebook, target)
        print(target.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
