"""A module whose import fails for another reason than a missing import."""

raise OSError("weights.pt is not there")
