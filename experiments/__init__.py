"""Experiments: one question a file, each with a `runs()` that lists its run configurations."""
