"""From a run's data configuration to its data, whatever the kind of the corpus.

The cache is `data_cache/` in the working directory, beside `runs/`; LINSCALE_CACHE names another.
What happens there is up to the kind (`scaling.data.corpora`): texts are tokenised once and stored
(`scaling.data.tokenised`); recall tasks and instructions store nothing.
"""

from __future__ import annotations

from pathlib import Path

from scaling.data.corpora.registry import kind_of
from scaling.data.prepared import PreparedData
from scaling.data.settings import DataSettings, Work, default_cache


def prepare(
    data: DataSettings,
    cache_dir: Path | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> PreparedData:
    """Make the data of a run, or open what was made before.

    Args:
        data: corpus, tokenizer, split and sequence length.
        cache_dir: where prepared corpora lie; None for `default_cache()`.
        progress: show a progress bar on standard error.
        workers: processes that tokenise; None for one on each core where it is worth it.

    Raises:
        LinscaleError: the corpus or tokenizer is missing or unreadable, there is too little text
            for one training or validation block, the disk is full, or shards are damaged.
        ConfigError: a tokenizer that cannot exist, or does not go with the corpus.
    """
    kind = kind_of(data.corpus)
    work = Work(cache=cache_dir or default_cache(), progress=progress, workers=workers)
    return kind.prepare(kind.parse(data.corpus), data, work)
