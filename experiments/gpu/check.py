"""`make gpu-check`: the GPU tests of the kernels, going on after those that passed before.

    python -m experiments.gpu.check OUT

OUT/passed.txt holds the tests that passed. The compilers run in up to 14 processes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from experiments.gpu.steps import ROOT, from_source

WORKERS = 14


def main(out: Path, tests: str = "tests/models/kernels") -> int:
    """pytest's exit status; 5, that nothing was left, counts as well."""
    out.mkdir(parents=True, exist_ok=True)
    passed, done = out / "passed.txt", out / "done.txt"
    # What the processes leave out must not change while they collect.
    done.write_text(passed.read_text() if passed.exists() else "")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", tests]
    if importlib.util.find_spec("xdist"):
        workers = min(WORKERS, os.cpu_count() or 1)
        command += ["-n", str(workers), "--maxschedchunk", "1"]
    environment = from_source(LINSCALE_GPU_DONE=str(done), LINSCALE_GPU_RECORD=str(passed))
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    return 0 if status == 5 else status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
