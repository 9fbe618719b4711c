"""The root of exceptions, under the name by which `scaling` raises it."""

from linscale.errors import LinscaleError

__all__ = ["LinscaleError"]
