"""class_mix on a GPU: an online softmax whose weights stay in registers, like attention over the class table."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..launch import on_device, unit_of

# Rows a program: the least that a matrix product takes, so that few rows still fill many multiprocessors.
BLOCK_ROWS = 16
BLOCK_CLASSES = 32
# Up to this width a program holds whole rows of the result, and the logits are read once.
MAX_BLOCK_DIM = 128
NUM_WARPS = 4


@triton.jit
def class_mix_kernel(
    logits_ptr,
    least_ptr,
    embedding_ptr,
    out_ptr,
    num,
    class_units,
    stride_units,
    dim,
    inverse_temperature,
    UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Grid (row blocks, blocks of the dimension). Classes and the logits' row stride are counted in UNITs of elements,
    which tells the compiler how wide it may load. least_ptr: the least logit of each row that takes part, or None.
    """
    num_classes = class_units * UNIT
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_rows, in_columns = row < num, column < dim
    logits_row = logits_ptr + (row * (tl.cast(stride_units, tl.int64) * UNIT))[:, None]
    if least_ptr is not None:
        least = tl.load(least_ptr + row, mask=in_rows, other=0.0).to(tl.float32)
    most = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    mixed = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    for first in range(0, num_classes, BLOCK_CLASSES):
        k = first + tl.arange(0, BLOCK_CLASSES)
        in_classes = k < num_classes
        inside = in_rows[:, None] & in_classes[None, :]
        x = tl.load(logits_row + k[None, :], mask=inside, other=-float("inf")).to(tl.float32)
        if least_ptr is not None:
            # NaN is not below anything: it stays, and makes the row NaN.
            x = tl.where(x < least[:, None], -float("inf"), x)
        new_most = tl.maximum(most, tl.max(x, 1))
        # As long as every logit is -inf the difference would be NaN instead of -inf.
        origin = tl.where(new_most == -float("inf"), 0.0, new_most)
        weight = tl.exp((x - origin[:, None]) * inverse_temperature)
        shrink = tl.exp((most - origin) * inverse_temperature)
        total = total * shrink + tl.sum(weight, 1)
        table = tl.load(
            embedding_ptr + k.to(tl.int64)[:, None] * dim + column[None, :],
            mask=in_classes[:, None] & in_columns[None, :],
            other=0.0,
        ).to(tl.float32)
        # TF32 would keep 10 bits of weight and table.
        mixed = tl.dot(weight, table, mixed * shrink[:, None], input_precision="ieee")
        most = new_most
    out = out_ptr + row[:, None] * dim + column[None, :]
    value = tl.math.div_rn(mixed, tl.broadcast_to(total[:, None], (BLOCK_ROWS, BLOCK_DIM)))
    tl.store(out, value.to(out_ptr.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


def class_mix(logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """softmax(logits / temperature) @ embedding; with top_k, torch.topk finds each row's least logit first."""
    num, num_classes = logits.shape
    dim = embedding.shape[1]
    out = embedding.new_empty(num, dim)
    if out.numel() == 0:
        return out
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    least = None
    if top_k is not None and top_k < num_classes:
        least = logits.topk(top_k, dim=1).values[:, -1].contiguous()
    block_dim = min(MAX_BLOCK_DIM, max(16, triton.next_power_of_2(dim)))
    unit = unit_of(num_classes, logits.stride(0))
    with on_device(logits.device):
        class_mix_kernel[(triton.cdiv(num, BLOCK_ROWS), triton.cdiv(dim, block_dim))](
            logits,
            least,
            embedding.contiguous(),
            out,
            num,
            num_classes // unit,
            logits.stride(0) // unit,
            dim,
            1.0 / temperature,
            UNIT=unit,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_CLASSES=BLOCK_CLASSES,
            BLOCK_DIM=block_dim,
            num_warps=NUM_WARPS,
        )
    return out
