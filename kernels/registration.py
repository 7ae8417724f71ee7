"""How an op becomes a ``torch.library`` op: one schema, one kernel for CPU and CUDA, a fake kernel, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("ptgm_fast", "FRAGMENT")


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Define ``ptgm_fast::<schema>`` and return the op, ready to call.

    kernel: runs on real tensors, with autograd off; chooses the implementation. fake: the outputs' shapes, strides and
    dtypes from the inputs', without data. backward and setup_context: as `torch.library.register_autograd` takes them;
    without them the op gives no gradient.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"ptgm_fast::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"ptgm_fast::{name}", backward, setup_context=setup_context, lib=_LIBRARY
        )
    # The overload itself: the packet torch.ops.ptgm_fast.<name> would resolve it again at every call.
    return getattr(torch.ops.ptgm_fast, name).default
