"""Exchange a LLaMA's attentions for linear ones, keeping every other weight.

    student = linearize(model, LoLCATs())                        # all layers
    student = linearize(model, Supra(softmax_layers=(0, 15)))    # some keep their softmax

1. The student's configuration is the model's with another `arch` and the method's options.
2. The student is built without memory and takes over the model's tensors: embedding, norms,
   projections, channel mixers and head, name by name.
3. What is new (feature maps, decays, window factors) is materialised and initialised.

The two models share the tensors: training one changes the other. `copy.deepcopy` the model first
to keep it; LoLCATs' attention transfer does not need it (`models.linearize.transfer`).
"""

from __future__ import annotations

from torch import nn

from models.language_model import LanguageModel, build, init_module
from models.linearize.options import Linearized, linearized_config


def linearize(model: LanguageModel, options: Linearized) -> LanguageModel:
    """A linearized model on the tensors of a softmax model; see the module docstring.

    Fresh weights come from torch's global random state. The mode (training or evaluation), dtype
    and device are the model's.

    Raises:
        ConfigError: as `models.linearize.options.linearized_config`.
    """
    config = linearized_config(model.config, options)
    dtype = model.embedding.weight.dtype
    student = build(config, device="meta", dtype=dtype)
    if not model.embedding.weight.is_meta:
        take_over(student, model, config.std)
    return student.train(model.training)


def take_over(student: nn.Module, teacher: nn.Module, std: float) -> None:
    """Give a module on the meta device the tensors of another by name, and fresh ones elsewhere.

    Args:
        student: a model or a block of it, on the meta device.
        teacher: the same of the softmax model, in memory.
        std: standard deviation of fresh weight matrices.
    """
    tensors = teacher.state_dict()
    device = next(iter(tensors.values())).device
    names = student.state_dict().keys()
    taken = {name: tensor for name, tensor in tensors.items() if name in names}
    student.load_state_dict(taken, strict=False, assign=True)
    for module in student.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in own):
            module.to_empty(device=device, recurse=False)
            init_module(module, std)
