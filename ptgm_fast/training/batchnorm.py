"""Which statistics batch norm uses, for labelled and pseudo images in one step and for several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ptgm_fast.models import TargetNetwork
from ptgm_fast.training.distributed import ProcessGroup


def joint_features(
    network: TargetNetwork,
    labelled: Tensor,
    pseudo: Tensor,
    policy: str,
    features: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of the labelled and of the pseudo images under a batch-norm policy.

    concat: one forward of both; batch and running statistics mix them.
    split: two forwards; each is normalized by its own batch, running statistics follow the labelled images only.
    target-only: the pseudo images are normalized by the running statistics of the labelled images.
    features: the network's forward as the run executes it (`execution.wrap`); defaults to `network.features`.
    Returns [N, D] and [M, D]. Gradients flow through both.
    """
    features = features or network.features
    if policy == "concat":
        both = features(torch.cat([labelled, pseudo]))
        return both[: len(labelled)], both[len(labelled) :]
    first = features(labelled)
    with frozen_statistics(network, use_running=policy == "target-only"):
        return first, features(pseudo)


@contextmanager
def frozen_statistics(module: nn.Module, *, use_running: bool) -> Iterator[None]:
    """Within the block, batch norm does not update its running statistics; it normalizes by them if `use_running`."""
    layers = [
        m
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for layer in layers:
        if use_running:
            layer.eval()
        else:
            layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
            layer.track_running_stats = True


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) for m in module.modules())


class SynchronizedBatchNorm(TorchFunctionMode):
    """Within the block, batch norm in training mode uses the statistics of all processes' samples.

    With n_r samples (times positions) on rank r, n = sum n_r: mean = sum n_r mean_r / n,
    var = sum n_r (var_r + (mean_r - mean)^2) / n (Chan, Golub and LeVeque 1983, eq. 2.1), with one exchange per layer and
    direction. As in torch, the running variance follows n / (n - 1) var. Ranks may hold different numbers of samples.
    It intercepts `torch.nn.functional.batch_norm`, so it works in every architecture that calls that function, on CPUs and
    GPUs (torch.nn.SyncBatchNorm supports GPUs only, and replaces modules that may be more than a batch norm).
    """

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, False, momentum, eps
            )
        output, mean, variance, count = _Normalise.apply(input, weight, bias, eps, self.group)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1).clamp(min=1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return output


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over all ranks; also mean, var [C] and the count n, float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        others = [d for d in range(x.ndim) if d != 1]
        wide = x.double() if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, others, correction=0)
        count = torch.full_like(mean[:1], x.numel() // channels)
        parts = group.gather(torch.cat([mean, variance, count]))
        means, variances, counts = parts.split([channels, channels, 1], dim=1)
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        shape = [1, channels] + [1] * (x.ndim - 2)
        inverse = (variance + eps).rsqrt()
        normalized = (wide - mean.view(shape)) * inverse.view(shape)
        output = normalized if weight is None else normalized * weight.view(shape)
        if bias is not None:
            output = output + bias.view(shape)
        ctx.save_for_backward(normalized, inverse, weight, total)
        ctx.group, ctx.shape, ctx.others = group, shape, others
        ctx.mark_non_differentiable(mean, variance, total)
        return output.to(x.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, *others: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        normalized, inverse, weight, total = ctx.saved_tensors
        wide = grad.to(normalized.dtype)
        # From this rank's samples only: all parameters' gradients are summed over ranks after the backward.
        grad_bias = wide.sum(ctx.others)
        grad_weight = (wide * normalized).sum(ctx.others)
        sums = ctx.group.sum(torch.cat([grad_bias, grad_weight])) / total
        mean_grad, mean_product = sums.chunk(2)
        scale = inverse if weight is None else inverse * weight
        grad_input = (
            wide - mean_grad.view(ctx.shape) - normalized * mean_product.view(ctx.shape)
        ) * scale.view(ctx.shape)
        return (
            grad_input.to(grad.dtype),
            grad_weight if ctx.needs_input_grad[1] else None,
            grad_bias if ctx.needs_input_grad[2] else None,
            None,
            None,
        )
