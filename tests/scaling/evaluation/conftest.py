"""Small untrained models, and the record of a run that trained one."""

from __future__ import annotations

import pytest
import torch

from models.config import toy_config
from models.language_model import build
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.data.tokenizers import ByteTokenizer
from scaling.record.pretrained import Pretrained


def toy(arch: str, context: int = 64) -> Pretrained:
    """An untrained byte model with weights large enough for sharp predictions, float64."""
    torch.manual_seed(0)
    model = build(toy_config(arch, 32, vocab_size=256, layers=2, head_dim=16), dtype=torch.float64)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    tokenizer = ByteTokenizer()
    return Pretrained(
        name=f"{arch}-toy",
        model=model.eval(),
        tokenizer=tokenizer,
        context=context,
        eos_ids=(tokenizer.eos_id,),
        run=None,
    )


@pytest.fixture(scope="session")
def make_toy():
    """`toy`, for tests that choose the architecture."""
    return toy


@pytest.fixture(scope="module", params=["llama", "tnl", "hgrn2", "cosformer2"])
def model(request):
    """One of each architecture."""
    return toy(request.param)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep with one trained run of two milestones."""
    from scaling.training.train import train

    folder = tmp_path_factory.mktemp("evaluation")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(30):
        words = [f"word{(number * i) % 7}" for i in range(1, 90)]
        (texts / f"{number:02}.txt").write_text(" ".join(words))
    config = RunConfig(
        name="tnl-eval",
        model=toy_config("tnl", 32, vocab_size=256, layers=2, head_dim=16),
        data=DataConfig(
            corpus=f"text:{texts}/*.txt",
            sequence_length=32,
            batch_sequences=4,
            validation_blocks=6,
            validation_fraction=0.3,
        ),
        schedule=ScheduleConfig(warmup_tokens=128),
        budget=BudgetConfig(tokens=8 * 128, horizons=(5 * 128,)),
        parallel=ParallelConfig(accelerator="cpu", threads=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINSCALE_CACHE", str(folder / "cache"))
        assert train(config, folder / "sweep") == "done"
        yield folder / "sweep"
