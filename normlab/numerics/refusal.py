"""The error of a datapath that can't compute a norm's rows."""


class DoesNotFit(ValueError):
    """A datapath was asked of rows or of a norm that it can't serve; the message says why."""
