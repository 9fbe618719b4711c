"""What checkpoints can do: perplexity, the harness's tasks, needles, and recall probes.

    linscale evaluate runs/quickstart --tasks perplexity,sliding

1. `targets` turns a path into checkpoints: one, those of a run, or those of a sweep.
2. `evaluate` gives runs that lack something to workers (`work`), claimed as a `request`.
3. `tasks` knows every task by name and runs it on a loaded model; `harness` those of
   lm-evaluation-harness, from local files too (`local_tasks`, `scrolls`).
4. `results` keeps the numbers in the run's evals.jsonl and knows what is there already.
"""
