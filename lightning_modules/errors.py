"""What can go wrong with a network, as messages a person can act on."""


class ModelError(Exception):
    """A network, its checkpoint or its schedule cannot be used as asked; the message names the remedy."""
