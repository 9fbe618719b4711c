"""What the rest stands on: files, locks, processes, random states, devices.

Knows nothing of runs, models or data.
"""
