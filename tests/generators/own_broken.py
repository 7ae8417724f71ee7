"""A module whose import fails otherwise than for what it imports."""

raise OSError("weights.pt is not there")
