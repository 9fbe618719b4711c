"""The language models of the suite, their kernels and their accounting.

Nothing in this package knows about Lightning, data sets or run directories.
"""
