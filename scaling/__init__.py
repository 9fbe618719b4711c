"""From a run configuration to a run directory: data, training, records, launching."""
