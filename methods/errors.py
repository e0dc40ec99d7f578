"""The exception for wrong use of this package."""


class MethodError(ValueError):
    """A configuration, target or schedule that cannot work; the message names a remedy.

    Every function of `methods` may raise it, so docstrings mention it only where its condition is
    surprising.
    """
