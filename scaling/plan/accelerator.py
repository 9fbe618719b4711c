"""The kind of device that a run trains on, on this machine."""

from __future__ import annotations

from typing import Literal

from models.config import ConfigError
from scaling.config.run import RunConfig


def native_precision(kind: str) -> Literal["fp32", "bf16"]:
    """What `parallel.precision=auto` is on a device of this machine, `cpu` or `cuda`."""
    import torch

    native = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def accelerator(config: RunConfig) -> str:
    """`cpu` or `cuda`.

    Raises:
        ConfigError: this machine does not have what the run asks for.
    """
    import torch

    wanted, devices = config.parallel.accelerator, config.parallel.devices
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not found):
        return "cpu"
    if not found:
        raise ConfigError(
            "parallel.accelerator='cuda': there is no CUDA device here; choose "
            "parallel.accelerator=cpu or auto."
        )
    if devices > found:
        raise ConfigError(f"parallel.devices={devices}: this machine has {found} CUDA devices.")
    if config.parallel.asked_precision == "bf16" and native_precision("cuda") != "bf16":
        raise ConfigError(
            f"parallel.precision='bf16': {torch.cuda.get_device_name()} cannot compute in bf16; "
            "choose parallel.precision=fp32."
        )
    return "cuda"
