"""The three forms of a condition, distinguished by dtype and shape, never by guessing."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

ConditionKind = Literal["class", "soft-label", "embedding"]
CONDITION_KINDS: tuple[ConditionKind, ...] = get_args(ConditionKind)


def condition_kind(
    condition: Tensor,
    *,
    num_classes: int,
    embedding_dim: int | None,
    kind: ConditionKind | None = None,
) -> ConditionKind:
    """Which form a condition has.

    class: class indices int64 [N] in [0, num_classes).
    soft-label: a distribution over the classes, floating point [N, num_classes], rows summing to 1.
    embedding: a (mixed) class embedding, floating point [N, embedding_dim]; none if embedding_dim is None.

    The dtype and the shape decide; `kind` states the form, and is checked against them. It is needed only
    if num_classes == embedding_dim, where a floating-point [N, num_classes] could be either. Values are not
    read (that would synchronize a GPU). Raises ValueError for any other tensor, and for an ambiguous one.
    """
    if kind is not None and kind not in CONDITION_KINDS:
        raise ValueError(
            f"condition kind {kind!r} is unknown; accepted: {', '.join(CONDITION_KINDS)}"
        )
    fitting = _fitting(condition, num_classes, embedding_dim)
    if kind is not None and kind in fitting:
        return kind
    accepted = f"class indices int64 [N], soft labels float [N, {num_classes}]"
    if embedding_dim is not None:
        accepted += f" or embeddings float [N, {embedding_dim}]"
    given = f"{condition.dtype} {list(condition.shape)}".removeprefix("torch.")
    if kind is not None:
        raise ValueError(f"condition {given} cannot be of kind {kind!r}; accepted: {accepted}")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(
            f"condition {given} may be a soft label or an embedding, as both have {num_classes} entries here; "
            "pass kind='soft-label' or kind='embedding'"
        )
    raise ValueError(f"condition {given} is none of: {accepted}")


def _fitting(condition: Tensor, num_classes: int, embedding_dim: int | None) -> list[ConditionKind]:
    if condition.dtype == torch.int64:
        return ["class"] if condition.dim() == 1 else []
    if not condition.is_floating_point() or condition.dim() != 2:
        return []
    sizes: dict[ConditionKind, int | None] = {"soft-label": num_classes, "embedding": embedding_dim}
    return [kind for kind, size in sizes.items() if condition.shape[1] == size]
