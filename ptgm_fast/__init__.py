"""Transfer learning from a frozen conditional generator and a frozen source classifier."""

__version__ = "0.1.0"
