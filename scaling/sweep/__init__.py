"""Many runs: launching them on a pool or SLURM, and showing how they stand.

`launch` is the way in; runs are claimed one by one.
"""
