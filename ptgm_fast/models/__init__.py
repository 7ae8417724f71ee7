"""Source classifiers and target networks by name, their heads, and their weights."""

from ptgm_fast.models.build import NETWORKS, build
from ptgm_fast.models.target import TargetNetwork
from ptgm_fast.models.weights import load_weights, save_weights, sha256

__all__ = ["NETWORKS", "TargetNetwork", "build", "load_weights", "save_weights", "sha256"]
