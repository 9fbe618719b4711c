"""The contract of `models.contract` with what takes a compiler, which is slow."""

from __future__ import annotations

import pytest

from models import contract


class MixerContract(contract.MixerContract):
    """Checks of one configuration; subclass it and set `config`."""

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own
    def test_compiles_with_inductor(self) -> None:
        self.check_compiled("inductor")
