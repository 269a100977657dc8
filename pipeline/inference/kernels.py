"""The few Triton kernels of a decode step, one token per row. Heavy; for CUDA.

At one token a row a model is bound by how fast its weights are read, and by how many kernels follow each other: so one
kernel stands for each stage that transformers does in up to ten. What is rounded where follows transformers' modules
(norms, rotary embedding and gated activation round to the model's type after every operation), so that answers stay
those of the plain forward up to the order of sums.
"""

# Triton's language has types of its own, and its launch takes options that the kernel's signature does not name.
# pyright: reportMissingParameterType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl

# Positions of one row that one program of the attention reads.
CHUNK = 128
BLOCK = 64
# Outputs and inputs that one program multiplies at once, and its warps. The fastest of 45 on an H200, for a model's
# matrices (3.3 to 4.5 TB/s) and for LoRA's A, of few outputs; and for LoRA's B, of few inputs.
PLAIN, LOW, UP = (2, 2048, 2), (1, 4096, 8), (64, 128, 4)
FEW = 512


@triton.jit
def _add_norm(delta, stream, weight, out, width, eps, HAS_DELTA: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, SIZE)
    inside = at < width
    x = tl.load(stream + row * width + at, mask=inside, other=0.0)
    kind = x.dtype
    x = x.to(tl.float32)
    if HAS_DELTA:
        x += tl.load(delta + row * width + at, mask=inside, other=0.0).to(tl.float32)
        x = x.to(kind).to(tl.float32)
        tl.store(stream + row * width + at, x.to(kind), mask=inside)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    normed = (x * scale).to(kind).to(tl.float32) * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, normed.to(kind), mask=inside)


def add_norm(delta: torch.Tensor | None, stream: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of the residual stream (rows, width) after `delta` is added to it, in place."""
    rows, width = stream.shape
    out = torch.empty_like(stream)
    size = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        stream if delta is None else delta, stream, weight, out, width, eps, delta is not None, size,
        num_warps=min(16, max(1, size // 512)),
    )  # fmt: skip
    return out


@triton.jit
def _normed(x1, x2, weight, at, half, inside, eps, kind: tl.constexpr):
    scale = tl.rsqrt((tl.sum(x1 * x1, 0) + tl.sum(x2 * x2, 0)) / (2 * half) + eps)
    w1 = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    w2 = tl.load(weight + half + at, mask=inside, other=0.0).to(tl.float32)
    return ((x1 * scale).to(kind).to(tl.float32) * w1).to(kind), ((x2 * scale).to(kind).to(tl.float32) * w2).to(kind)


@triton.jit
def _store_heads(
    qkv, q_weight, k_weight, cos, sin, position, queries, keys, values, q_heads, kv_heads, half, length, eps,
    HAS_NORM: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, SIZE)
    inside = at < half
    place = tl.load(position + row)
    width = 2 * half
    source = qkv + (row * (q_heads + 2 * kv_heads) + head) * width
    x1, x2 = tl.load(source + at, mask=inside, other=0.0), tl.load(source + half + at, mask=inside, other=0.0)
    kind: tl.constexpr = x1.dtype
    if head < q_heads + kv_heads:
        if HAS_NORM:
            weight = q_weight if head < q_heads else k_weight
            x1, x2 = _normed(x1.to(tl.float32), x2.to(tl.float32), weight, at, half, inside, eps, kind)
        c = tl.load(cos + place * width + at, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + place * width + at, mask=inside, other=0.0).to(tl.float32)
        y1 = (x1 * c).to(kind).to(tl.float32) - (x2 * s).to(kind).to(tl.float32)
        y2 = (x2 * c).to(kind).to(tl.float32) + (x1 * s).to(kind).to(tl.float32)
        x1, x2 = y1.to(kind), y2.to(kind)
    if head < q_heads:
        target = queries + (row * q_heads + head) * width
    elif head < q_heads + kv_heads:
        target = keys + ((row * kv_heads + head - q_heads) * length + place) * width
    else:
        target = values + ((row * kv_heads + head - q_heads - kv_heads) * length + place) * width
    tl.store(target + at, x1, mask=inside)
    tl.store(target + half + at, x2, mask=inside)


def store_heads(
    qkv: torch.Tensor, norms: tuple[torch.Tensor, torch.Tensor, float] | None, table: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Norms and rotates the heads in `qkv` (rows, heads · width) and puts this token's keys and values at `position`.

    `norms` are the weights over a query's and a key's head and their epsilon, or None; `table` cosines and sines,
    (tokens, width); keys and values (rows, heads, tokens, width). Returns the queries, (rows, heads, width).
    """
    rows, kv_heads, length, width = keys.shape
    heads = qkv.shape[1] // width
    q_heads = heads - 2 * kv_heads
    queries = torch.empty(rows, q_heads, width, dtype=qkv.dtype, device=qkv.device)
    q_weight, k_weight, eps = norms or (qkv, qkv, 0.0)
    half = width // 2
    _store_heads[(rows, heads)](
        qkv, q_weight, k_weight, *table, position, queries, keys, values, q_heads, kv_heads, half, length, eps,
        norms is not None, triton.next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    return queries


# The number of chunks grows with the room: specialized to it, a longer prompt would wait for a compilation.
@triton.jit(do_not_specialize=["chunks"])
def _attend(
    queries, keys, values, position, partial, weights, scale, group, kv_heads, length, chunks, width,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, kv_head = pair // kv_heads, pair % kv_heads
    last = tl.load(position + row).to(tl.int32)
    begin = chunk * CHUNK
    if begin > last:
        return
    g, d = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    head = row * kv_heads * group + kv_head * group + g
    is_head, is_number = g < group, d < width
    q = tl.load(queries + head[:, None] * width + d[None], mask=is_head[:, None] & is_number[None], other=0.0)
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, WIDTH], tl.float32)
    for start in range(begin, min(begin + CHUNK, last + 1), BLOCK):
        n = start + tl.arange(0, BLOCK)
        there = n <= last
        place = (pair * length + n[:, None]) * width + d[None]
        read = there[:, None] & is_number[None]
        k = tl.load(keys + place, mask=read, other=0.0)
        score = tl.dot(q, tl.trans(k)) * scale
        score = tl.where(there[None], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        old = tl.exp(highest - higher)
        likely = tl.exp(score - higher[:, None])
        total = total * old + tl.sum(likely, 1)
        v = tl.load(values + place, mask=read, other=0.0)
        mixed = mixed * old[:, None] + tl.dot(likely.to(v.dtype), v)
        highest = higher
    slot = head * chunks + chunk
    tl.store(partial + slot[:, None] * width + d[None], mixed / total[:, None], mask=is_head[:, None] & is_number[None])
    tl.store(weights + slot, highest + tl.log(total), mask=is_head)


@triton.jit(do_not_specialize=["chunks"])
def _merge(partial, weights, position, out, heads, chunks, width, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, WIDTH)
    inside = d < width
    slot = (row * heads + head) * chunks
    highest = float("-inf")
    total = 0.0
    mixed = tl.zeros([WIDTH], tl.float32)
    for chunk in range(0, tl.load(position + row).to(tl.int32) // CHUNK + 1):
        weight = tl.load(weights + slot + chunk)
        higher = tl.maximum(highest, weight)
        old, new = tl.exp(highest - higher), tl.exp(weight - higher)
        mixed = mixed * old + tl.load(partial + (slot + chunk) * width + d, mask=inside, other=0.0) * new
        total = total * old + new
        highest = higher
    tl.store(out + (row * heads + head) * width + d, (mixed / total).to(out.dtype.element_ty), mask=inside)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor, scale: float
) -> torch.Tensor:
    """What each query (rows, heads, width) finds in its row's keys and values up to `position`, (rows, heads · width).

    In two passes, so that one long row keeps the whole card busy: chunks on their own, then their weighted mean.
    """
    rows, heads, width = queries.shape
    _, kv_heads, length, _ = keys.shape
    group, chunks = heads // kv_heads, triton.cdiv(length, CHUNK)
    partial = torch.empty(rows, heads, chunks, width, dtype=torch.float32, device=queries.device)
    weights = torch.empty(rows, heads, chunks, dtype=torch.float32, device=queries.device)
    out = torch.empty(rows, heads * width, dtype=queries.dtype, device=queries.device)
    # tl.dot wants 16 lines at least.
    size, wide = max(16, triton.next_power_of_2(group)), max(16, triton.next_power_of_2(width))
    _attend[(rows * kv_heads, chunks)](
        queries, keys, values, position, partial, weights, scale, group, kv_heads, length, chunks, width,
        size, wide, CHUNK, BLOCK, num_warps=4,
    )  # fmt: skip
    _merge[(rows, heads)](partial, weights, position, out, heads, chunks, width, wide, CHUNK, num_warps=1)
    return out


@triton.jit
def _silu_mul(gate_up, out, width, SIZE: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=inside, other=0.0)
    g = gate.to(tl.float32)
    activated = (g / (1 + tl.exp(-g))).to(gate.dtype)
    tl.store(out + row * width + at, activated * up, mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up of (rows, 2 · width)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(rows, triton.cdiv(width, 1024))](gate_up, out, width, 1024, num_warps=4)
    return out


@triton.jit
def _project(
    x, weight, bias, a, b, out, outputs, inputs, rank, HAS_BIAS: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_output = n < outputs
    line = n.to(tl.int64)[:, None] * inputs
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inputs, COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        is_input = k < inputs
        number = tl.load(x + k, mask=is_input, other=0.0).to(tl.float32)
        w = tl.load(weight + line + k[None], mask=is_output[:, None] & is_input[None], other=0.0)
        products += w.to(tl.float32) * number[None]
    y = tl.sum(products, 1)
    if HAS_BIAS:
        y += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)
    if RANK > 0:
        r = tl.arange(0, RANK)
        is_rank = r < rank
        low = tl.load(a + r, mask=is_rank, other=0.0).to(tl.float32)
        up = tl.load(b + n[:, None] * rank + r[None], mask=is_output[:, None] & is_rank[None], other=0.0)
        y += tl.sum(up.to(tl.float32) * low[None], 1)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=is_output)


def project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None,
    lora: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """`x` (1, inputs) through a linear layer, `weight` (outputs, inputs), with LoRA beside it: A (rank, inputs) and B
    with its scale (outputs, rank).
    """
    outputs, inputs = weight.shape
    out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    a, b = (project(x, lora[0]), lora[1]) if lora else (x, x)
    rank = b.shape[1] if lora else 0
    rows, columns, warps = UP if inputs <= FEW else LOW if outputs <= FEW else PLAIN
    _project[(triton.cdiv(outputs, rows),)](
        x, weight, x if bias is None else bias, a, b, out, outputs, inputs, rank, bias is not None,
        triton.next_power_of_2(rank) if rank else 0, rows, min(columns, triton.next_power_of_2(inputs)),
        num_warps=warps,
    )  # fmt: skip
    return out
