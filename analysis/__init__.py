"""Run records or any CSV to laws, intervals, comparisons and figures. Needs no torch.

Each sub-package opens with what lives in it.
"""
