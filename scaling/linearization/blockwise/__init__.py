"""Block-wise attention transfer: LoLCATs' first stage for models that no device can hold.

Every layer's loss needs the teacher's hidden states before it and that layer alone, so that the
layers can learn in groups, apart from each other (arXiv 2410.10254, section 3.3):

    activations  the teacher's hidden states before each group, on disk  (`hidden_cache`)
    groups       each learns by itself, its own layers in memory         (`train_groups`)
    assembly     teacher and learned tensors become one checkpoint

Weights are read from the teacher's safetensors files, group by group (`teacher_layers`);
what it takes on a device is worked out without it (`transfer_plan`).
"""
