"""From a run configuration to a run directory: data, training, records, sweeps.

Each sub-package opens with what lives in it.
"""
