"""Log-probability, entropy and hit of tokens, from logits that come in parts of the vocabulary.

A running maximum, sum of exponentials and moment take the place of a tensor of all logits.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Words of the vocabulary that a head is applied to at once: with as many positions as the caller
#: takes, what a processor's cache holds.
HEAD_WORDS = 4096
#: Its exponential is 0 in float32.
_NO_WEIGHT = -1e4


def token_stats(
    logits: Callable[[int, int], Iterator[tuple[int, Any]]], targets: Any, chunk: int
) -> tuple[Float32s, Float32s, Bools]:
    """Log-probability, entropy and hit of every position, from logits that come in blocks.

    Args:
        logits: of positions from a first to a last, block after block of the vocabulary with the
            word each begins with.
        targets: the words asked for.
        chunk: positions looked at together.
    """
    import torch

    total = len(targets)
    logps, entropy = (torch.empty(total, dtype=torch.float32) for _ in range(2))
    top1 = torch.empty(total, dtype=torch.bool)
    for first in range(0, total, chunk):
        last = min(first + chunk, total)
        wanted = targets[first:last]
        # By the largest logit so far: the sum of exponentials, and that of each times its logit.
        most = torch.full((last - first,), float("-inf"), device=targets.device)
        mass, moment, target = (torch.zeros_like(most) for _ in range(3))
        for word, block in logits(first, last):
            block = block.float()
            here = torch.maximum(most, block.amax(1)).clamp_(min=torch.finfo(torch.float32).min)
            inside = (wanted >= word) & (wanted < word + block.shape[1])
            place = (wanted - word).clamp_(0, block.shape[1] - 1)
            found = block.gather(1, place[:, None])[:, 0]
            target = torch.where(inside, found, target)
            shift = torch.exp(most - here)
            shift = torch.where(most == here, torch.ones_like(shift), shift)
            # Words that are ruled out have logits of -inf: no weight, and no moment either.
            block = (block - here[:, None]).clamp_(min=_NO_WEIGHT)
            weight = torch.exp(block)
            now = weight.sum(1)
            moment = (moment + mass * torch.where(mass > 0, most - here, 0.0)) * shift + (
                weight.mul_(block).sum(1)
            )
            mass = mass * shift + now
            most = here
        logps[first:last] = (target - most) - torch.log(mass)
        entropy[first:last] = torch.log(mass) - moment / mass
        top1[first:last] = target >= most
    return logps.numpy(), entropy.numpy(), top1.numpy()


def head_blocks(head: Any) -> Iterator[Any]:
    """The head of a model in parts of so many words."""
    import torch

    for word in range(0, head.weight.shape[0], HEAD_WORDS):
        some = slice(word, word + HEAD_WORDS)
        block = torch.nn.Linear(1, 1, bias=False, device="meta")
        block.weight = torch.nn.Parameter(head.weight[some], requires_grad=False)
        if head.bias is not None:
            block.bias = torch.nn.Parameter(head.bias[some], requires_grad=False)
        yield block
