"""First contact with a GPU, in order and in pieces: `python -m experiments.gpu` (`make gpu`).

    first    versions; every operation at 128 in bfloat16 against float64; repeats; sanitizer;
             assemblers
    check    `make gpu-check`: every kernel and model against float64, the most telling first
    speed    kernels against flash-linear-attention, six shapes
    train    whole models 70M to 1B beside their peers; profile; compiled; killed and gone on
    tune     launch constants of the families that `speed` shows to be slow
    serve    decoding by context, prefill, a step in a CUDA graph
    ladder   a forecast that is sealed before the run it is about, and then that run

`steps` lists the pieces, each a process of its own with a time limit; `__main__` runs them in order
and writes down at once what they print and how they ended. Needs PyTorch, Triton, Lightning,
transformers and pytest, and no installation: it runs from the source tree.
"""
