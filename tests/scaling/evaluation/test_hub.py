"""Data sets of the Hugging Face hub: loaded from a hub, and from its cache when that is gone.

The hub is a small server of this machine that answers as the hub's interface does for one data set.
It runs in a process of its own, since the libraries read their settings when they are imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

HUB = """
import http.server, json, os, threading
from urllib.parse import urlsplit

NAME, REVISION, BLOB = "Rowan/hellaswag", "0" * 40, "1" * 40
ROW = {"activity_label": "Cats", "ctx_a": "A cat", "ctx_b": "it", "label": "1",
       "endings": ["runs.", "sleeps."]}
FILES = {f"{split}.jsonl": (json.dumps(ROW) + "\\n").encode() * 2
         for split in ("train", "validation")}
asked = []

class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def answer(self):
        path = urlsplit(self.path).path
        asked.append(path)
        api, file = f"/api/datasets/{NAME}", path.rsplit("/", 1)[-1]
        if path.startswith(f"{api}/tree/"):
            body = json.dumps([{"type": "file", "path": name, "size": len(content), "oid": BLOB}
                               for name, content in FILES.items()]).encode()
        elif path.startswith(api):
            body = json.dumps({"id": NAME, "sha": REVISION, "tags": [], "private": False,
                               "siblings": [{"rfilename": name} for name in FILES]}).encode()
        elif path.startswith(f"/datasets/{NAME}/resolve/") and file in FILES:
            body = FILES[file]
        else:
            body = None
        self.send_response(404 if body is None else 200)
        headers = {"Content-Length": len(body or b""), "ETag": BLOB.join(2 * [chr(34)]),
                   "X-Repo-Commit": REVISION}
        if body is None:
            headers["X-Error-Code"] = "EntryNotFound"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = answer

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from scaling.evaluation import harness
from scaling.evaluation.results import EvaluationError
from scaling.evaluation.settings import Settings

def prompts():
    harness._offline_without_hub.cache_clear()
    (task,) = harness.build("hellaswag", Settings()).values()
    task.build_all_requests(limit=1)
    return [instance.args for instance in task.instances]

found = [prompts()]
downloads = sum("/resolve/" in path and path.endswith(".jsonl") for path in asked)
server.shutdown(); server.server_close()
found.append(prompts())
try:
    harness.build("winogrande", Settings())
except EvaluationError as error:
    missing = str(error)
print(json.dumps({"found": found, "downloads": downloads, "missing": missing}))
"""


def test_a_task_comes_from_the_hub_and_then_from_its_cache(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("datasets")
    other = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in other and not name.lower().endswith("_proxy")
    }
    environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    asked = [["Cats: A cat It", " runs."], ["Cats: A cat It", " sleeps."]]
    assert said["found"] == [asked, asked]
    assert said["downloads"] >= 2
    assert "neither in --data nor in the cache of the Hugging Face hub" in said["missing"]
    assert "which cannot be reached" in said["missing"]
