"""Runs that start from a teacher: linearizing a transformer as an ordinary, resumable run.

objectives.py             what each stage minimises, what learns, what it costs
low_rank.py, costs.py     low-rank additions of a run's model; FLOPs as closed forms
teacher.py, start.py      the teacher: found, loaded, its weights taken over; validation around it
linearization_record.py   linearization.json: counts and losses before and after each stage
baselines.py, controls.py windows alone, untrained; teacher and windows that are trained alike
window_dropout.py         masks windows while a student learns
kept_layers.py            which layers keep their softmax: by cost, by position, by divergence
tasks_beside.py           tasks of the evaluation, before and after
recipes.py                the published recipes of SUPRA and LoLCATs as RunConfigs
blockwise/                attention transfer in groups of layers, for models that fit on no device
"""
