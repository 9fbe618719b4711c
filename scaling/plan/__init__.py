"""What a run costs before it starts: parameters, FLOPs, memory, time, devices.

Pure functions of configurations; nothing is written.
"""
