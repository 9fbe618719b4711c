"""The exception that the command line prints as one paragraph, without a traceback."""

from __future__ import annotations


class LinscaleError(Exception):
    """A problem that the user can mend; the message names what is wrong and how to mend it."""
