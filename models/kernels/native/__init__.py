"""Compiled kernels of the CPU: C++ that the machine's own compiler builds on first use.

`recurrence.cpp` holds the arithmetic, `library` builds and loads it, `problem` lays out its
arguments, `recurrence` has the functions that `models.kernels.launch` names.
"""
