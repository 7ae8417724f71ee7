"""Spectral norm baked into weights as they are read: W / sigma, in place, so that nothing is held twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.errors import UserError


def bake_torch(state: dict[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """`torch.nn.utils.spectral_norm`: weight_orig, weight_u, weight_v become weight = W / (u . W v).

    W is seen as [first dimension, the rest]. Miyato et al. 2018 (arXiv:1802.05957), with the vectors as stored, as
    torch does in evaluation. Tensors of `state` are written to. Raises UserError if a vector is missing or does not fit.
    """
    baked = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if last in ("weight_u", "weight_v") and f"{stem}.weight_orig" in state:
            continue
        if last != "weight_orig":
            baked[name] = tensor.clone()
            continue
        u, v = (_vector(state, f"{stem}.weight_{side}", where) for side in "uv")
        matrix = tensor.flatten(1)
        if matrix.shape != (len(u), len(v)):
            raise UserError(
                f"{where}: spectral norm vectors of {stem!r} have lengths {len(u)} and {len(v)} "
                f"for a weight of shape {list(tensor.shape)}"
            )
        baked[f"{stem}.weight"] = tensor.div_(torch.dot(u, matrix @ v))
    return baked


def bake_power_iteration(state: dict[str, Tensor], *, eps: float, where: str) -> dict[str, Tensor]:
    """BigGAN-PyTorch's spectral norm: one power iteration from the stored u0 at every evaluation.

    v = normalise(u0 W), u = normalise(v W^T), sigma = v W^T u^T, weight = W / sigma; sv0 is a log of sigma and unused.
    Tensors of `state` are written to. Raises UserError if u0 does not fit, and for more than one singular vector.
    """
    baked = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if last in ("u1", "sv1"):
            raise UserError(
                f"{where}: {stem!r} keeps several singular vectors (num_G_SVs > 1); one is supported"
            )
        if last in ("u0", "sv0") and f"{stem}.weight" in state:
            continue
        if last == "weight" and f"{stem}.u0" in state:
            matrix, u = tensor.flatten(1), state[f"{stem}.u0"]
            if u.shape != (1, len(matrix)):
                raise UserError(
                    f"{where}: {stem}.u0 has shape {list(u.shape)} for a weight of shape {list(tensor.shape)}"
                )
            v = F.normalize(u @ matrix, eps=eps)
            u = F.normalize(v @ matrix.T, eps=eps)
            baked[name] = tensor.div_((v @ matrix.T @ u.T).squeeze())
        else:
            baked[name] = tensor.clone()
    return baked


def _vector(state: dict[str, Tensor], name: str, where: str) -> Tensor:
    vector = state.get(name)
    if vector is None or vector.dim() != 1:
        raise UserError(f"{where}: missing: {name} [n], a vector of its spectral norm")
    return vector
