"""One run from its first step to its last: module, session, callbacks, engines.

`train` is the way in; a session trains segment after segment.
"""
