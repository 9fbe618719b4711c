"""Runs that start from a teacher: linearizing a transformer as an ordinary, resumable run.

config.py      the `linearize` part of a RunConfig: teacher, stage 1, LoRA
teacher.py     finds, checks and loads the teacher; what it cost
start.py       the teacher's weights into a fresh model; losses before and after stage 1
stages.py      which parameters learn in a stage, its loss, merged weights
costs.py       training FLOPs of each stage
record.py      linearization.json: counts and validation losses before and after each stage
recipes.py     the published recipes of SUPRA and LoLCATs as RunConfigs
cli.py         `linscale linearize`
"""
