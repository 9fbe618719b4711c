"""Long texts in pieces: the tokens of the whole, in memory that does not grow with the text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from scaling.data import json_tokenizer, tokenizers
from scaling.data.text_pieces import ANYWHERE, BEFORE_SPACES, cut
from tests.support.small_corpora import sample_documents

ROOT = Path(__file__).resolve().parents[3]
HARD = ("  two  spaces \n\n lines\t tab x123 don't", "état 数 \U0001f600")
TEXT = "\n".join([*sample_documents(40), *HARD])


@pytest.mark.parametrize("rule", [ANYWHERE, BEFORE_SPACES, None])
def test_pieces_are_the_text(rule: object) -> None:
    pieces = list(cut(TEXT, rule, 100))  # pyright: ignore[reportArgumentType]
    assert "".join(pieces) == TEXT
    assert (len(pieces) > 5) == (rule is not None)
    assert list(cut("short", rule, 100)) == ["short"]  # pyright: ignore[reportArgumentType]


def test_training_on_pieces_is_training_on_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words and their counts are the same, so are the merges."""
    whole = tokenizers.train_bpe("bpe:300", [TEXT]).to_json()
    for size in (50, 1000):
        monkeypatch.setattr(tokenizers, "_TRAINING_PIECE", size)
        assert tokenizers.train_bpe("bpe:300", [TEXT]).to_json() == whole


def test_a_batch_in_groups_has_the_tokens_of_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the library, a text at a time."""
    tokenizer = tokenizers.train_bpe("bpe:300", [TEXT])
    plain = Tokenizer.from_str(tokenizer.to_json())
    texts = [*cut(TEXT, tokenizer.cut_rule, 100), "", "last"]
    right = [plain.encode(text, add_special_tokens=False).ids for text in texts]
    for size in (1, 150, 10**9):
        monkeypatch.setattr(json_tokenizer, "_GROUP", size)
        assert [tokens.tolist() for tokens in tokenizer.encode_batch(texts)] == right
    assert tokenizer.encode_batch([]) == []
    whole = plain.encode(TEXT, add_special_tokens=False).ids
    assert [token for tokens in right[:-2] for token in tokens] == whole


PREPARE = """
import sys
from pathlib import Path
from scaling.config.run import DataConfig
from scaling.data.prepare import prepare
data = DataConfig(corpus=f"jsonl:{sys.argv[1]}", tokenizer=sys.argv[2], sequence_length=16,
                  validation_fraction=0.05, validation_blocks=2)
prepare(data, Path(sys.argv[3]), workers=1)
(line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:4096"])
def test_one_huge_document_takes_less_than_three_times_its_size(
    tmp_path: Path, tokenizer: str
) -> None:
    """200 MB in one document of 200,000 different words, the interpreter and libraries included."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(draw.choice(letters, size=size)) for size in draw.integers(2, 11, 200_000)]
    path = tmp_path / "one.jsonl"
    size = 0
    with path.open("w") as file:
        file.write('{"text": "')
        while size < 200 * 10**6:
            picked = (len(words) ** draw.random(100_000)).astype(int)
            size += file.write(" ".join(words[i] for i in picked) + ". ")
        file.write('"}\n')
        for number in range(3000):
            file.write(json.dumps({"text": f"small document {number} with some words"}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(path), tokenizer, str(tmp_path / "cache")],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 3 * size
