"""Kinds of corpora: one list that everything asks, and imports that run one way."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scaling
from linscale.errors import LinscaleError
from models.config import Arch, ConfigError, ModelConfig, toy_config
from scaling.config.linearize import LinearizeConfig
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig
from scaling.data.corpora.corpus import Corpus
from scaling.data.corpora.registry import KINDS, kind_of, open_corpus

ROOM = Path(scaling.__file__).parent
EXAMPLES = {
    "kjv": "kjv",
    "stdlib": "stdlib",
    "text": "text:*.txt",
    "jsonl": "jsonl:a.jsonl",
    "parquet": "parquet:a.parquet",
    "hf": "hf:owner/name:config",
    "task": "task:mqar:pairs=4,vocab=32",
    "instructions": "instructions:hf:owner/name",
    "mix": "mix:0.7 kjv + 0.3 text:b.txt",
}


def test_every_kind_is_found_by_its_prefix() -> None:
    assert set(EXAMPLES) == set(KINDS)
    for prefix, corpus in EXAMPLES.items():
        assert kind_of(corpus) is KINDS[prefix]
        data = DataConfig(corpus=corpus, sequence_length=32)
        assert data.kind is KINDS[prefix]


def test_what_the_kinds_say() -> None:
    masked = {prefix for prefix, kind in KINDS.items() if kind.masked}
    packed = {prefix for prefix, kind in KINDS.items() if kind.packed}
    readable = {prefix for prefix, kind in KINDS.items() if kind.documents is not None}
    assert masked == {"task", "instructions"}
    assert packed == {"instructions"}
    assert readable == {"kjv", "stdlib", "text", "jsonl", "parquet", "hf"}
    assert {prefix for prefix, kind in KINDS.items() if kind.tokenizer} == {"task"}
    assert {prefix for prefix, kind in KINDS.items() if kind.not_text} == masked


@pytest.mark.parametrize(
    "corpus", ["", "text", "text:", "kjv:2", "stdlib:", "hf:", "jsonl:", "x:y"]
)
def test_a_corpus_that_is_none_is_refused_by_name(corpus: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.corpus={corpus!r}: must be"):
        DataConfig(corpus=corpus)


def test_an_unknown_kind_is_told_all_forms() -> None:
    with pytest.raises(ConfigError) as error:
        DataConfig(corpus="csv:a.csv")
    for kind in KINDS.values():
        assert kind.form in str(error.value)


def test_a_kind_of_the_users_own_is_asked_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new kind is one entry: its rules hold wherever a rule about corpora is."""

    def check(settings: str, data: object) -> None:
        raise ConfigError(f"no {settings}")

    mine = dataclasses.replace(KINDS["instructions"], prefix="mine", form="mine:X", check=check)
    monkeypatch.setitem(KINDS, "mine", mine)
    with pytest.raises(ConfigError, match=r"data\.corpus='mine:': must be written instr"):
        DataConfig(corpus="mine:")
    with pytest.raises(ConfigError, match="no words"):
        DataConfig(corpus="mine:words")
    with pytest.raises(ConfigError, match="mine:words cannot be mixed"):
        DataConfig(corpus="mix:1 kjv + 1 mine:words")
    monkeypatch.setitem(KINDS, "mine", dataclasses.replace(KINDS["instructions"], prefix="mine"))
    data = DataConfig(corpus="mine:words", sequence_length=32, batch_sequences=4)
    assert data.masked
    values: dict[str, Any] = {"name": "a", "data": data, "budget": BudgetConfig(tokens=1280)}

    def model(arch: Arch) -> ModelConfig:
        return toy_config(arch, 32, layers=2, vocab_size=257)

    with pytest.raises(ConfigError, match="rows packed with several examples cannot be split"):
        RunConfig(**values, model=model("tnl"), parallel=ParallelConfig(devices=2, sequence=2))
    with pytest.raises(ConfigError, match=r"fit_sequences=4 .*rows of this corpus are packed"):
        RunConfig(
            **values,
            model=model("hgrn2"),
            linearize=LinearizeConfig(teacher="a-teacher", fit_sequences=4),
        )


def test_only_documents_can_be_opened() -> None:
    with pytest.raises(LinscaleError, match="task:NAME is not made of documents"):
        open_corpus(DataConfig(corpus="task:mqar", sequence_length=64))


def test_no_prefix_is_known_outside_the_list() -> None:
    """No ladder of `startswith` grows back: prefixes are looked up, never compared."""
    found: list[str] = []
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr not in ("startswith", "removeprefix"):
                    continue
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                if any(text in {f"{prefix}:" for prefix in KINDS} for text in texts):
                    found.append(f"{path.relative_to(ROOM)}:{node.lineno}")
    assert found == []


def _imports(path: Path, known: set[str]) -> set[str]:
    """Modules that a file imports anywhere, in functions and for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known


def test_imports_of_the_data_run_one_way() -> None:
    """No circle, for types neither; and the configuration, which asks the kinds, is asked by none
    of them."""
    paths = {
        ".".join(("scaling", *path.relative_to(ROOM).with_suffix("").parts)): path
        for path in (ROOM / "data").rglob("*.py")
        if path.stem != "__init__"
    }
    assert len(paths) > 25
    graph = {name: _imports(path, set(paths)) for name, path in paths.items()}
    assert graph["scaling.data.corpora.registry"] > {"scaling.data.corpora.text"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    configuration = {"scaling.config.run", "scaling.config.parts"}
    asking = {name for name, path in paths.items() if _imports(path, configuration)}
    assert asking == {"scaling.data.loader"}


def test_configurations_need_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from scaling.config.run import DataConfig\n"
        f"for corpus in {list(EXAMPLES.values())!r}:\n"
        "    DataConfig(corpus=corpus, sequence_length=64).masked\n"
        "heavy = {'torch', 'numpy', 'lightning', 'datasets', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kinds_are_of_one_type() -> None:
    for prefix, kind in KINDS.items():
        assert isinstance(kind, Corpus)
        assert kind.prefix == prefix
        assert kind.form.partition(":")[0] == prefix
