"""The fused ops of the hot path, one folder each, and `class_mix` (installed as ``ptgm_fast.kernels``)."""

if __name__ == "kernels":
    # With the repository root on sys.path, this folder shadows Hugging Face's package `kernels`.
    raise ImportError("this folder is installed as ptgm_fast.kernels; import it by that name")

from .class_mix import class_mix
from .cond_norm_act import cond_norm_act, phase_weight
from .consistency import consistency
from .latents import class_labels, latents, uniforms
from .pseudo_label import PseudoLabel, pseudo_label
from .views import ViewParameters, ViewSpec, apply_views, view_parameters, view_preset, views

__all__ = [
    "PseudoLabel",
    "ViewParameters",
    "ViewSpec",
    "apply_views",
    "class_labels",
    "class_mix",
    "cond_norm_act",
    "consistency",
    "latents",
    "phase_weight",
    "pseudo_label",
    "uniforms",
    "view_parameters",
    "view_preset",
    "views",
]
