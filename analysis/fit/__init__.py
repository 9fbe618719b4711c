"""Estimating laws: one problem, its solver, intervals by refits, the three approaches.

`fitting` is the way in.
"""
