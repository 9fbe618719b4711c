"""Triton kernels of linear attention: tensors in, tensors out, no autograd.

`models.kernels.launch` says which module runs a call: `scalar_launch` (no decay, decays a head or
a token and head), `vector_launch` (decays per channel, HGRN2's gate), `phase_launch` (the cosine
form), `decode` (one token, and per-channel prompts of up to `launch.PREFILL`). Each has `forward`,
`backward` and `empty_states` on a `Call`.
"""
