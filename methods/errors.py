"""The one exception that this package raises for errors of its caller."""


class MethodError(ValueError):
    """A configuration, target or schedule that cannot work; the message says what would."""
