"""Source classifiers and target networks by name, their heads, and their weights."""

from ptgm_fast.models.build import NETWORKS, build
from ptgm_fast.models.exported import are_probabilities, check_exported, class_scores, rehearse
from ptgm_fast.models.preprocessing import Preprocessing, stated_preprocessing
from ptgm_fast.models.target import TargetNetwork
from ptgm_fast.models.weights import load_weights, read_state, save_weights, sha256

__all__ = [
    "NETWORKS",
    "Preprocessing",
    "TargetNetwork",
    "are_probabilities",
    "build",
    "check_exported",
    "class_scores",
    "load_weights",
    "read_state",
    "rehearse",
    "save_weights",
    "sha256",
    "stated_preprocessing",
]
