"""Matrix products by oneDNN, where PyTorch would have them done by MKL.

In float32 MKL leaves the wide registers of other makers' processors unused: on an AMD EPYC (Zen 5)
oneDNN took half its time. In bfloat16 PyTorch calls oneDNN by itself.
"""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def converted(linear: "nn.Linear") -> Any:
    """The same product by oneDNN, with a matrix laid out for it."""
    with warnings.catch_warnings():  # PyTorch's own use of what it calls old
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.utils.mkldnn import to_mkldnn

        return to_mkldnn(linear)  # type: ignore[no-untyped-call]


def is_converted(module: "nn.Module") -> bool:
    """Whether a module is one that `converted` made."""
    return type(module).__name__ == "MkldnnLinear"


def convert_inside(model: "nn.Module") -> None:
    """Convert every linear layer of a model in place, one after the other."""
    from torch import nn

    for name, part in model.named_children():
        if type(part) is nn.Linear:
            setattr(model, name, converted(part))
        else:
            convert_inside(part)


def product(states: "Tensor", matrix: "Tensor") -> "Tensor":
    """``states @ matrix.T``; by oneDNN where PyTorch would take MKL.

    Args:
        states: float32 or bfloat16 [tokens, inside].
        matrix: of the same numbers, [out, inside].
    """
    import torch

    if states.dtype == torch.float32 and not states.is_cuda and torch._C._has_mkldnn:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states, matrix, None, "none", [], "")
        return found
    return torch.mm(states, matrix.t())
