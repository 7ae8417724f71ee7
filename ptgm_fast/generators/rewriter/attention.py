"""Self-attention without materializing its whole weight matrix."""

from __future__ import annotations

from ptgm_fast.generators.rewriter.ir import ATTEND, Node, Program, aten, is_node, on_gpu, shape

# Rows at a time: the attention weights of a batch of 32 with 1,024 keys then take 16 MiB, which stay in the cache and are
# reused by the allocator; neither is true of the batch's whole 512 MiB.
ROWS = 128
PRODUCTS = (aten.bmm.default, aten.matmul.default)


def attention(program: Program) -> int:
    """softmax(q k) v, and v^T softmax(q k)^T, for q [N, M, D], k [N, D, L], v [N, L, V].

    On GPUs, one `scaled_dot_product_attention` with one head and scale 1: torch's kernels do not materialize [N, M, L],
    unless they do not support D and V (both must be multiples of 8 in bfloat16, of 4 in float32). Elsewhere, if M
    is larger than `ROWS`, that many queries at a time: the same products, row by row. Results of the second form are
    views of [N, M, V], which is an image's channels-last memory.
    """
    matched = 0
    for node in program.calls(*PRODUCTS):
        found = _match(node)
        if found is None:
            continue
        queries, keys, values, transposed = found
        whole = on_gpu(node)
        if not whole and shape(queries)[1] <= ROWS:
            continue
        if transposed:
            values = program.emit(node, aten.permute.default, values, [0, 2, 1])
        out = (_whole if whole else _by_rows)(program, node, queries, keys, values)
        if transposed:
            out = program.emit(node, aten.permute.default, out, [0, 2, 1])
        program.replace(node, out)
        matched += 1
    return matched


def _whole(program: Program, node: Node, queries: Node, keys: Node, values: Node) -> Node:
    keys = program.emit(node, aten.permute.default, keys, [0, 2, 1])
    # torch's kernels expect a dimension of heads.
    heads = [program.emit(node, aten.unsqueeze.default, x, 1) for x in (queries, keys, values)]
    out = program.emit(node, ATTEND, *heads, None, 0.0, False, scale=1.0)
    return program.emit(node, aten.squeeze.dims, out, [1])


def _by_rows(program: Program, node: Node, queries: Node, keys: Node, values: Node) -> Node:
    num_rows = shape(queries)[1]
    parts = []
    for start in range(0, num_rows, ROWS):
        end = min(start + ROWS, num_rows)
        some = program.emit(node, aten.slice.Tensor, queries, 1, start, end)
        scores = program.emit(node, aten.bmm.default, some, keys)
        weights = program.emit(node, aten.softmax.int, scores, -1)
        parts.append(program.emit(node, aten.bmm.default, weights, values))
    return program.emit(node, aten.cat.default, parts, 1)


def _match(node: Node) -> tuple[Node, Node, Node, bool] | None:
    """(queries, keys, values, whether it is the second form) of a product that ends an attention."""
    first, second = node.args[:2]
    transposed = _is_transposed(second)
    if transposed and len(second.users) > 1:
        return None
    weights, values = (second.args[0], first) if transposed else (first, second)
    if not is_node(weights) or weights.target is not aten.softmax.int or len(weights.users) > 1:
        return None
    scores, dim = weights.args[:2]
    if scores.target not in PRODUCTS or len(scores.users) > 1 or dim not in (-1, 2):
        return None
    if len(weights.args) > 2 or any(len(shape(n)) != 3 for n in (*scores.args, values)):
        return None
    num_rows = shape(scores)[1]
    if not isinstance(num_rows, int):
        return None
    return *scores.args, values, transposed


def _is_transposed(node: Node) -> bool:
    """Whether a node permutes [N, M, L] to [N, L, M]."""
    if not is_node(node) or len(shape(node)) != 3:
        return False
    if node.target is aten.permute.default:
        return [d % 3 for d in node.args[1]] == [0, 2, 1]
    return node.target is aten.transpose.int and {d % 3 for d in node.args[1:3]} == {1, 2}
