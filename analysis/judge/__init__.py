"""What fits mean: comparisons, crossings, form selection, sensitivity, design, studies.

Built on `fit`; draws nothing.
"""
