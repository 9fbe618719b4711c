"""The forms of scaling laws: values, gradients, optima.

`registry` finds a form by its name.
"""
