"""Linearizing pretrained transformers: softmax attention is exchanged for linear attention.

`surgery.linearize` takes a LLaMA model apart and gives back an ordinary model of ours whose
architecture is `supra` or `lolcats`; every weight that both have is kept.
"""
