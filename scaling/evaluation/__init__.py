"""What checkpoints can do: perplexity, the harness's tasks, needles, and recall probes.

    linscale evaluate runs/quickstart --tasks perplexity,sliding

1. `targets` turns a path into checkpoints: one, those of a run, or those of a sweep.
2. `tasks` knows every task by name and runs it on a loaded model.
3. `results` keeps the numbers in the run's evals.jsonl and knows what is there already.
"""
