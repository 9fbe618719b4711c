"""The error that invalid configurations raise."""

from __future__ import annotations

from linscale.errors import LinscaleError


class ConfigError(LinscaleError, ValueError):
    """A configuration value that cannot work; the message names field, value and remedy."""
