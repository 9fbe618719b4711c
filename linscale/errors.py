"""The root of the suite's exceptions. Imports nothing, so that every package can build on it."""

from __future__ import annotations


class LinscaleError(Exception):
    """A problem that the user can mend; the message names what is wrong and how to mend it.

    `ConfigError` (a configuration), `AnalysisError` (data to analyse) and the errors of the
    training half are its subclasses. The command line prints one as a paragraph, no traceback.
    """
