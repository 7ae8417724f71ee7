"""Make bfloat16 in Triton's interpreter behave as on devices.

The interpreter keeps bfloat16 as uint16: a cast from float32 truncates, a dot product multiplies the bit patterns, and so
does any arithmetic. The patch rounds to nearest even (through torch), widens the operands of a dot product, and refuses
other arithmetic: the kernels compute in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


class NativeBfloat16Error(AssertionError):
    """A kernel computes on bfloat16 values that it did not cast to float32."""


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


def _to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounding(convert: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def patched(
        self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype, *args: Any
    ) -> TensorHandle:
        source, target = src.dtype.scalar, dst_type.scalar
        if target == tl.bfloat16 and source in (tl.float32, tl.float16):
            return TensorHandle(_to_bfloat16(src.data), tl.bfloat16)
        if source == tl.bfloat16 and target == tl.float32:
            return TensorHandle(_to_float32(src.data), tl.float32)
        if tl.bfloat16 in (source, target) and source != target:
            raise NativeBfloat16Error(f"cast {source} -> {target} does not go through float32")
        return convert(self, src, dst_type, *args)

    return patched


def _widening(dot: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def widen(operand: TensorHandle) -> TensorHandle:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle(_to_float32(operand.data), tl.float32)

    def patched(
        self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *args: Any
    ) -> TensorHandle:
        return dot(self, widen(a), widen(b), *args)

    return patched


def _refusing(operation: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def patched(self: InterpreterBuilder, *args: Any) -> TensorHandle:
        if any(isinstance(a, TensorHandle) and a.dtype.scalar == tl.bfloat16 for a in args):
            raise NativeBfloat16Error(
                "arithmetic on bfloat16 values: cast to float32 after the load"
            )
        return operation(self, *args)

    return patched


def _chosen(
    self: InterpreterBuilder, choose: np.ufunc, a: TensorHandle, b: TensorHandle
) -> TensorHandle:
    return self.binary_op(a, b, choose)


def _numbering(patch_tensor: Callable[..., None]) -> Callable[..., None]:
    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    return patched


@contextmanager
def patch() -> Iterator[None]:
    """Active inside the block. Needs TRITON_INTERPRET=1 from before triton's import."""
    assert hasattr(tl.sum, "rewrite") or not hasattr(tl.sum, "device_caches"), (
        "triton was imported without TRITON_INTERPRET=1"
    )
    wrappers = {
        "cast_impl": _rounding,
        "create_fp_to_fp": _rounding,
        "create_dot": _widening,
        "binary_op": _refusing,
        "unary_op": _refusing,
    }
    with ExitStack() as stack:
        for name, wrap in wrappers.items():
            original = getattr(InterpreterBuilder, name)
            stack.enter_context(mock.patch.object(InterpreterBuilder, name, wrap(original)))
        for name, choose in {"create_minnumf": np.fmin, "create_maxnumf": np.fmax}.items():
            chosen = partialmethod(_chosen, choose)
            stack.enter_context(mock.patch.object(InterpreterBuilder, name, chosen))
        tensors = _numbering(interpreter._patch_lang_tensor)
        stack.enter_context(mock.patch.object(interpreter, "_patch_lang_tensor", tensors))
        yield
