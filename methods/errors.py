"""The one exception this package raises for what a caller can put right."""


class MethodError(ValueError):
    """A configuration, target or schedule that can not work; the message says what would."""
