"""Spectral and weight norm of a frozen module, computed once instead of at every call."""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def bake(module: nn.Module) -> int:
    """Replace, in place, every reparametrized weight by its value in evaluation mode; returns how many there were.

    Handles old-style hooks and `torch.nn.utils.parametrizations`. The value depends on the whole weight, so this comes
    before channels are trimmed. The module must be in evaluation mode: training would iterate the singular vectors.
    """
    matched = 0
    for part in module.modules():
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, SpectralNorm):
                remove_spectral_norm(part, hook.name)
                matched += 1
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
                matched += 1
    parametrized = [part for part in module.modules() if parametrize.is_parametrized(part)]
    for part in parametrized:
        # A copy shares its dynamic class, and the property that is about to be removed, with its original.
        kind = type(part)
        own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        part.__class__ = type(kind.__name__, kind.__bases__, own)
        for name in list(cast(nn.ModuleDict, part.parametrizations)):
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)
            matched += 1
    return matched


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy whose parameters require no gradients."""
    # Old-style weight norm keeps its last product as an attribute, which deepcopy refuses if it has autograd history.
    products = [
        v for part in module.modules() for v in vars(part).values() if isinstance(v, Tensor)
    ]
    own = {id(v): v.detach().clone() for v in products if not v.is_leaf}
    return copy.deepcopy(module, own).requires_grad_(False)
