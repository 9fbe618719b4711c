"""`linscale fit`, `linscale report`, `linscale tables`; also `python -m analysis`.

Needs no torch; nothing else imports from here.
"""
