"""Consistency losses on a GPU: loss and gradient in one kernel.

With up to `MAX_TILE` classes, a program holds its rows in registers: each logit is read once, and the strong logits of
rows that do not count are not read. With more, a program walks a row in blocks, twice (three times for the gradient of
``mse``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import on_device, unit_of

# Logits per program, the most classes held in registers, and the block size beyond that.
TILE, MAX_TILE, BLOCK = 1024, 8192, 4096
# The soft-target methods differ only in temperature and threshold.
METHOD_CODES = {"uda": 0, "soft-pseudo-label": 0, "fixmatch": 1, "mse": 2}
SOFT, HARD = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def _base(peak):
    # The value subtracted before the exponential: 0 for a row of only -inf (so far), which avoids NaN.
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def _argmax(x, AXIS: tl.constexpr):
    # With NaN replaced by -inf, an index past the end of the row is never the first maximum.
    return tl.argmax(tl.where(x == x, x, float("-inf")), AXIS)


@triton.jit
def _counts(peak, total, label, class_thresholds, threshold):
    """Whether a row counts, and its loss if not: 0, or NaN if the weak logits have a NaN or no finite maximum."""
    least = threshold
    if class_thresholds is not None:
        least = tl.load(class_thresholds + label).to(tl.float32)
    confidence = tl.where(peak == float("-inf"), float("nan"), 1.0 / total)
    return confidence >= least, confidence * 0.0


@triton.jit
def tile_kernel(
    weak,
    strong,
    class_thresholds,
    sample_weight,
    loss,
    gradient,
    counts,
    num,
    units,
    weak_units,
    strong_units,
    inverse_temperature,
    threshold,
    METHOD: tl.constexpr,
    FILL: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (row blocks,). Rows have units * UNIT <= COLUMNS classes and a stride of weak_units or strong_units times UNIT."""
    classes = units * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    in_rows = row < num
    inside = in_rows[:, None] & (column < classes)
    source = weak + row[:, None] * (tl.cast(weak_units, tl.int64) * UNIT) + column
    w = tl.load(source, mask=inside, other=float("-inf")).to(tl.float32)
    weak_peak, label = tl.max(w, 1), _argmax(w, 1)
    w -= _base(weak_peak)[:, None]
    total = tl.sum(tl.exp(w), 1)
    count, value = _counts(weak_peak, total, label, class_thresholds, threshold)

    source = strong + row[:, None] * (tl.cast(strong_units, tl.int64) * UNIT) + column
    s = tl.load(source, mask=inside & count[:, None], other=float("-inf")).to(tl.float32)
    strong_peak = tl.max(s, 1)
    s -= strong_peak[:, None]
    p = tl.exp(s)
    strong_total = tl.sum(p, 1)
    p = p / strong_total[:, None]
    if METHOD == SOFT:
        a = w * inverse_temperature
        q = tl.exp(a)
        weak_total = tl.sum(q, 1)
        q = q / weak_total[:, None]
        # 0 log 0 = 0, also where the strong view excludes the class.
        row_loss = tl.sum(tl.where(q > 0.0, q * (a - s), 0.0), 1) + tl.log(
            strong_total / weak_total
        )
        g = p - q
    elif METHOD == HARD:
        at_label = column == label[:, None]
        row_loss = tl.log(strong_total) - tl.sum(tl.where(at_label, s, 0.0), 1)
        g = tl.where(at_label, p - 1.0, p)
    else:
        d = tl.where(inside, p - tl.exp(w) / total[:, None], 0.0)
        row_loss = tl.sum(d * d, 1) / classes
        g = p * (d - tl.sum(p * d, 1)[:, None]) * (2.0 / classes)
    if sample_weight is not None:
        v = tl.load(sample_weight + row, mask=in_rows, other=0.0).to(tl.float32)
        row_loss *= v
        value *= v
        g *= v[:, None]
    tl.store(loss + row, tl.where(count, row_loss, value), mask=in_rows)
    tl.store(counts + row, count, mask=in_rows)
    if gradient is not None:
        target = gradient + row[:, None] * classes + column
        if FILL:
            tl.store(target, tl.where(count[:, None], g, 0.0), mask=inside)
        else:
            tl.store(target, g, mask=inside & count[:, None])


@triton.jit
def loop_kernel(
    weak,
    strong,
    class_thresholds,
    sample_weight,
    loss,
    gradient,
    counts,
    num,
    units,
    weak_units,
    strong_units,
    inverse_temperature,
    threshold,
    METHOD: tl.constexpr,
    FILL: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (rows,). Walks a row in blocks of COLUMNS classes; otherwise like `tile_kernel`. ROWS is 1."""
    classes = units * UNIT
    row = tl.program_id(0).to(tl.int64)
    weak += row * (tl.cast(weak_units, tl.int64) * UNIT)
    strong += row * (tl.cast(strong_units, tl.int64) * UNIT)
    offset = tl.arange(0, COLUMNS)
    weak_peak = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    weak_total = tl.zeros((), tl.float32)
    label = tl.zeros((), tl.int32)
    for first in range(0, classes, COLUMNS):
        column = first + offset
        w = tl.load(weak + column, mask=column < classes, other=float("-inf")).to(tl.float32)
        peak = tl.max(w, 0)
        label = tl.where(peak > weak_peak, first + _argmax(w, 0), label)
        peak = tl.maximum(peak, weak_peak)
        shrink, w = weak_peak - _base(peak), w - _base(peak)
        total = total * tl.exp(shrink) + tl.sum(tl.exp(w), 0)
        if METHOD == SOFT:
            weak_total *= tl.exp(shrink * inverse_temperature)
            weak_total += tl.sum(tl.exp(w * inverse_temperature), 0)
        weak_peak = peak
    count, value = _counts(weak_peak, total, label, class_thresholds, threshold)
    v = tl.full((), 1.0, tl.float32)
    if sample_weight is not None:
        v = tl.load(sample_weight + row).to(tl.float32)
    if gradient is not None:
        gradient += row * classes

    if count:
        strong_peak = tl.full((), float("-inf"), tl.float32)
        strong_total = tl.zeros((), tl.float32)
        for first in range(0, classes, COLUMNS):
            column = first + offset
            s = tl.load(strong + column, mask=column < classes, other=float("-inf")).to(tl.float32)
            peak = tl.maximum(tl.max(s, 0), strong_peak)
            shrink = strong_peak - _base(peak)
            strong_total = strong_total * tl.exp(shrink) + tl.sum(tl.exp(s - _base(peak)), 0)
            strong_peak = peak
        mean = tl.zeros((), tl.float32)
        value = tl.zeros((), tl.float32)
        for first in range(0, classes, COLUMNS):
            column = first + offset
            inside = column < classes
            w = tl.load(weak + column, mask=inside, other=float("-inf")).to(tl.float32) - weak_peak
            s = (
                tl.load(strong + column, mask=inside, other=float("-inf")).to(tl.float32)
                - strong_peak
            )
            p = tl.exp(s) / strong_total
            if METHOD == SOFT:
                a = w * inverse_temperature
                q = tl.exp(a) / weak_total
                value += tl.sum(tl.where(q > 0.0, q * (a - s), 0.0), 0)
                if gradient is not None:
                    tl.store(gradient + column, (p - q) * v, mask=inside)
            elif METHOD == HARD:
                at_label = column == label
                value -= tl.sum(tl.where(at_label, s, 0.0), 0)
                if gradient is not None:
                    tl.store(gradient + column, tl.where(at_label, p - 1.0, p) * v, mask=inside)
            else:
                d = tl.where(inside, p - tl.exp(w) / total, 0.0)
                value += tl.sum(d * d, 0) / classes
                mean += tl.sum(p * d, 0)
        if METHOD == SOFT:
            value += tl.log(strong_total / weak_total)
        elif METHOD == HARD:
            value += tl.log(strong_total)
        elif gradient is not None:
            for first in range(0, classes, COLUMNS):
                column = first + offset
                inside = column < classes
                w = tl.load(weak + column, mask=inside, other=float("-inf")).to(tl.float32)
                s = tl.load(strong + column, mask=inside, other=float("-inf")).to(tl.float32)
                p = tl.exp(s - strong_peak) / strong_total
                d = p - tl.exp(w - weak_peak) / total
                tl.store(gradient + column, p * (d - mean) * (2.0 / classes) * v, mask=inside)
    elif FILL:
        for first in range(0, classes, COLUMNS):
            column = first + offset
            tl.store(gradient + column, tl.zeros((COLUMNS,), tl.float32), mask=column < classes)
    tl.store(loss + row, value * v)
    tl.store(counts + row, count)


@triton.jit
def scale_kernel(
    gradient,
    counts,
    grad,
    out,
    num,
    units,
    grad_stride,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (row blocks, column blocks). out[i, :] = gradient[i, :] * grad[i], or 0 where row i does not count."""
    classes = units * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    in_rows = row < num
    count = tl.load(counts + row, mask=in_rows, other=0) != 0
    factor = tl.load(grad + row * grad_stride, mask=in_rows, other=0.0)
    inside = in_rows[:, None] & (column < classes)
    place = row[:, None] * classes + column
    g = tl.load(gradient + place, mask=inside & count[:, None], other=0.0)
    g = tl.where(count[:, None], g * factor[:, None], 0.0)
    tl.store(out + place, g.to(out.dtype.element_ty), mask=inside)


def consistency(
    weak_logits: Tensor,
    strong_logits: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
    gradient: bool,
    fill: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `cpu_impl.consistency`."""
    if weak_logits.stride(1) != 1:
        weak_logits = weak_logits.contiguous()
    if strong_logits.stride(1) != 1:
        strong_logits = strong_logits.contiguous()
    num, classes = strong_logits.shape
    loss = strong_logits.new_empty(num, dtype=torch.float32)
    shape = (num, classes) if gradient else (0,)
    grad = strong_logits.new_empty(shape, dtype=torch.float32)
    counts = strong_logits.new_empty(num, dtype=torch.bool)
    if num == 0:
        return loss, grad, counts
    pitches = weak_logits.stride(0), strong_logits.stride(0)
    unit = unit_of(classes, *pitches)
    kernel, columns, rows = loop_kernel, BLOCK, 1
    if classes <= MAX_TILE:
        kernel, columns = tile_kernel, triton.next_power_of_2(classes)
        rows = max(1, TILE // columns)
    with on_device(strong_logits.device):
        kernel[(triton.cdiv(num, rows),)](
            weak_logits,
            strong_logits,
            None if class_thresholds is None else class_thresholds.contiguous(),
            None if sample_weight is None else sample_weight.contiguous(),
            loss,
            grad if gradient else None,
            counts,
            num,
            classes // unit,
            pitches[0] // unit,
            pitches[1] // unit,
            1.0 / temperature,
            threshold,
            METHOD=METHOD_CODES[method],
            FILL=fill and gradient,
            UNIT=unit,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=min(16, max(4, rows * columns // 512)),
        )
    return loss, grad, counts


def scale(gradient: Tensor, counts: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient[i, :] * grad[i] as `dtype`, 0 where sample i does not count."""
    num, classes = gradient.shape
    out = torch.empty_like(gradient, dtype=dtype)
    if num == 0:
        return out
    columns = min(triton.next_power_of_2(classes), TILE)
    rows = TILE // columns
    unit = unit_of(classes)
    with on_device(gradient.device):
        scale_kernel[(triton.cdiv(num, rows), triton.cdiv(classes, columns))](
            gradient,
            counts,
            grad,
            out,
            num,
            classes // unit,
            grad.stride(0),
            UNIT=unit,
            ROWS=rows,
            COLUMNS=columns,
        )
    return out
