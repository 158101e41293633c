"""The folder of a run: the one interface between training and everything that comes after."""
