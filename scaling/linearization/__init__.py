"""Runs that start from a teacher: linearizing a transformer as an ordinary, resumable run.

config.py      the `linearize` part of a RunConfig: teacher, stages, LoRA
teacher.py     finds, checks and loads the teacher; what it cost
start.py       the teacher's weights into a fresh model; losses before and after each stage
stages.py      which parameters learn in a stage, its loss, merged weights
costs.py       training FLOPs of each stage
record.py      linearization.json: counts and validation losses before and after each stage
selection.py   which layers keep their softmax, by measured loss
tasks.py       the evaluation harness's tasks before and after
recipes.py     the published recipes of SUPRA and LoLCATs as RunConfigs
cli.py         `linscale linearize`
"""
