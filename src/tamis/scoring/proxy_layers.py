"""The layers of a proxy with their gradients written out, for speed on a processor.

What PyTorch would do in a dozen passes over memory is done in few, matrix products go to oneDNN,
and in bfloat16 the scores of short contexts are kept whole, which there costs less than reckoning
them twice. The numbers are those of PyTorch's own functions but for rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tamis.scoring.onednn import product

#: Longest context whose scores are kept whole: tokens squared of them a head.
KEPT_CONTEXT = 512
#: Numbers of logits in memory at once.
_BLOCK = 1 << 23
_TINY = torch.finfo(torch.float32).tiny


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, matrix: Tensor) -> Tensor:
        same = matrix.to(states.dtype)
        ctx.save_for_backward(states, same)
        return product(states, same)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        states, matrix = ctx.saved_tensors
        return product(gradient, matrix.t()), product(gradient.t(), states.t()).float()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, gain: Tensor, epsilon: float, kind: torch.dtype
    ) -> Tensor:
        square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_()
        scale = square.div_(states.shape[-1]).add_(epsilon).rsqrt_()
        normed = states * scale
        ctx.save_for_backward(normed, scale, gain)
        found: Tensor = (normed * gain).to(kind)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, gain = ctx.saved_tensors
        gradient = gradient.float()
        both = gradient * normed
        along = torch.mv(both, gain).div_(len(gain))
        found = (gradient * gain).addcmul_(normed, along[:, None], value=-1).mul_(scale)
        return found, both.sum(0), None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        found = torch.empty_like(both)
        of_gate, of_up = found.chunk(2, -1)
        torch.mul(gradient, F.silu(gate), out=of_up)
        of_gate.copy_(torch.ops.aten.silu_backward(gradient * up, gate))
        return found


class _Attention(torch.autograd.Function):
    """Rotary positions and causal attention, the scores kept whole."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        rows, length, _, heads, size = parts.shape
        inside = parts.permute(2, 0, 3, 1, 4)
        laid = torch.empty(inside.shape, dtype=parts.dtype, device=parts.device)
        _turn(inside[:2], cosine, sine, laid[:2])
        laid[2].copy_(inside[2])
        query, key, value = laid.view(3, rows * heads, length, size)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=size**-0.5)
        share = torch.softmax(scores, -1)
        ctx.save_for_backward(query, key, value, share, cosine, sine)
        mixed = torch.bmm(share, value).view(rows, heads, length, size)
        return mixed.transpose(1, 2).reshape(rows * length, heads * size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, share, cosine, sine = ctx.saved_tensors
        together, length, size = query.shape
        heads = gradient.shape[1] // size
        rows = together // heads
        shape = (rows, heads, length, size)
        gradient = gradient.view(rows, length, heads, size).transpose(1, 2)
        gradient = gradient.reshape(together, length, size)
        found = torch.empty((rows, length, 3, heads, size), dtype=query.dtype, device=query.device)
        inside = found.permute(2, 0, 3, 1, 4)
        inside[2].copy_(torch.bmm(share.transpose(1, 2), gradient).view(shape))
        of_share = torch.bmm(gradient, value.transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_share, share, -1, share.dtype)
        turned = torch.empty((2, together, length, size), dtype=query.dtype, device=query.device)
        torch.bmm(of_scores, key, out=turned[0])
        torch.bmm(of_scores.transpose(1, 2), query, out=turned[1])
        _turn(turned.mul_(size**-0.5).view(2, *shape), cosine, -sine, inside[:2])
        return found, None, None, None


class _MeanLoss(torch.autograd.Function):
    """The gradient is had with the loss, block by block, so that no logits are kept."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        matrix = embedding.to(states.dtype)
        of_states = torch.empty_like(states)
        of_matrix = torch.zeros_like(embedding)
        total = torch.zeros((), device=states.device)
        for here in blocks(len(states), len(matrix)):
            some, wanted = states[here], targets[here]
            share = torch.softmax(product(some, matrix), -1)
            at = torch.arange(len(wanted), device=states.device)
            # What underflows is a finite loss still, as that of PyTorch's own function.
            total -= share[at, wanted].float().clamp_min(_TINY).log().sum()
            share[at, wanted] -= 1
            of_states[here] = product(share, matrix.t())
            of_matrix += product(share.t(), some.t())
        ctx.save_for_backward(of_states, of_matrix)
        return total / len(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_matrix = ctx.saved_tensors
        scale = gradient / len(of_states)
        return of_states * scale.to(of_states.dtype), of_matrix * scale, None


def blocks(tokens: int, vocabulary: int) -> list[slice]:
    """Tokens whose logits are in memory together."""
    size = max(1, _BLOCK // vocabulary)
    return [slice(begin, begin + size) for begin in range(0, tokens, size)]


def _turn(states: Tensor, cosine: Tensor, sine: Tensor, out: Tensor) -> None:
    """Turn states by the angles of their positions; a pair is half a head apart."""
    first, second = states.chunk(2, -1)
    one, other = out.chunk(2, -1)
    torch.mul(first, cosine, out=one)
    one.addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=other)
    other.addcmul_(first, sine)


def linear(states: Tensor, matrix: Tensor) -> Tensor:
    """``states @ matrix.T`` in the numbers of `states`.

    Args:
        states: float32 or bfloat16 [tokens, inside].
        matrix: float32 [out, inside].
    """
    found: Tensor = _Linear.apply(states, matrix)  # type: ignore[no-untyped-call]
    return found


def norm(states: Tensor, gain: Tensor, epsilon: float, kind: torch.dtype) -> Tensor:
    """States over their root mean square, times a gain: `kind` [tokens, width].

    Args:
        states: float32 [tokens, width].
    """
    found: Tensor = _Norm.apply(states, gain, epsilon, kind)  # type: ignore[no-untyped-call]
    return found


def gated(both: Tensor) -> Tensor:
    """``silu(gate) * up`` of the two halves: [tokens, hidden] from [tokens, 2 hidden]."""
    found: Tensor = _Gated.apply(both)  # type: ignore[no-untyped-call]
    return found


def attention(parts: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
    """Causal attention with rotary positions: [rows * length, heads * size].

    Args:
        parts: queries, keys and values, [rows, length, 3, heads, size].
        cosine, sine: of the angles, [length, size / 2].
        mask: [length, length], minus infinity above the diagonal.
    """
    if parts.dtype == torch.bfloat16 and mask.shape[0] <= KEPT_CONTEXT and not parts.is_cuda:
        found: Tensor = _Attention.apply(parts, cosine, sine, mask)  # type: ignore[no-untyped-call]
        return found
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    query, key = (_turned(states, cosine, sine) for states in (query, key))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def _turned(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def mean_loss(states: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of targets in nats, of logits ``states @ embedding.T``.

    Args:
        states: [tokens, width]. targets: int64 [tokens].
    """
    found: Tensor = _MeanLoss.apply(states, embedding, targets)  # type: ignore[no-untyped-call]
    return found
