"""Pages and terminal text: a sweep's report, run pages, the paper's tables.

`report` is the way in.
"""
