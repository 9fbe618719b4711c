"""The record of a run: its files, its checkpoints, and how they become models again.

The run directory is all that `analysis` reads.
"""
