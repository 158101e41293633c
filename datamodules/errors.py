"""Errors of the data, whose messages a person can act on."""


class DataError(Exception):
    """The data cannot be had or cannot be used; the message names the thing and the remedy."""


class UnreachableError(DataError):
    """No mirror delivered the archive, and nothing else is wrong."""
