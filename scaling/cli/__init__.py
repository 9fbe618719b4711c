"""The `linscale` command: one file a group of commands, and the words that they share.

`main` joins them, with those of `analysis`; no other package imports from here.
"""
