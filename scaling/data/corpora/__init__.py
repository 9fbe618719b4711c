"""The kinds of corpora: one file each, listed in `registry`.

A kind says how its `data.corpus` is written, what is known of it before any text is read, and how
it becomes training data. Nothing here needs numpy or torch until documents are read.
"""
