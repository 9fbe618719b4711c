"""The error of a configuration that cannot work."""

from __future__ import annotations

from linscale.errors import LinscaleError


class ConfigError(LinscaleError, ValueError):
    """A configuration value that cannot work; the message names field, value and remedy."""
