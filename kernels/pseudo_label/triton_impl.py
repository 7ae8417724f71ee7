"""Labels, confidence and mask on a GPU: one program per block of rows, with an online softmax over blocks of classes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import on_device, unit_of

# Logits per step of a program, and the maximum number of them from one row.
TILE, MAX_BLOCK = 1024, 4096


@triton.jit
def pseudo_label_kernel(
    logits,
    labels,
    confidence,
    mask,
    num,
    units,
    stride_units,
    inverse_temperature,
    threshold,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (row blocks,). Rows have units * UNIT classes and start stride_units * UNIT elements apart."""
    classes = units * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    source = logits + row[:, None] * (tl.cast(stride_units, tl.int64) * UNIT)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    label = tl.zeros((ROWS,), tl.int32)
    for first in range(0, classes, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        inside = (row < num)[:, None] & (column < classes)
        x = tl.load(source + column, mask=inside, other=float("-inf")).to(tl.float32)
        peak = tl.max(x, 1)
        # With NaN replaced by -inf, an index past the end of the row is never the first maximum.
        best = tl.argmax(tl.where(x == x, x, float("-inf")), 1)
        label = tl.where(peak > largest, first + best, label)
        peak = tl.maximum(peak, largest)
        # A row of only -inf so far adds nothing; subtracting 0 avoids exp(-inf + inf).
        base = tl.where(peak == float("-inf"), 0.0, peak)
        total *= tl.exp((largest - base) * inverse_temperature)
        total += tl.sum(tl.exp((x - base[:, None]) * inverse_temperature), 1)
        largest = peak
    # The confidence is NaN if there is no finite maximum, or if a NaN has made the total NaN.
    confident = tl.where(largest == float("-inf"), float("nan"), 1.0 / total)
    tl.store(labels + row, label.to(tl.int64), mask=row < num)
    tl.store(confidence + row, confident, mask=row < num)
    tl.store(mask + row, confident >= threshold, mask=row < num)


def pseudo_label(
    logits: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.pseudo_label` in a single pass over the logits."""
    num, classes = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    labels = logits.new_empty(num, dtype=torch.int64)
    confidence = logits.new_empty(num, dtype=torch.float32)
    mask = logits.new_empty(num, dtype=torch.bool)
    if num:
        unit = unit_of(classes, logits.stride(0))
        block = min(triton.next_power_of_2(classes), MAX_BLOCK)
        rows = max(1, TILE // block)
        with on_device(logits.device):
            pseudo_label_kernel[(triton.cdiv(num, rows),)](
                logits,
                labels,
                confidence,
                mask,
                num,
                classes // unit,
                logits.stride(0) // unit,
                1.0 / temperature,
                threshold,
                UNIT=unit,
                ROWS=rows,
                BLOCK=block,
                num_warps=4 if rows * block <= 2048 else 8,
            )
    return labels, confidence, mask
