"""Attention inside the groups of a pack: registered with transformers under a name of its own.

A prompt attends to itself, a completion to its prompt and itself, both causally. Nothing else is
computed but the blocks between completions of one group, which are masked.
"""

import atexit
import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tamis.scoring.packing import Group, Pack

if TYPE_CHECKING:
    import torch

PACKED = "tamis_packed"
#: What a model may hand to attention that changes nothing here.
_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


class _Current(threading.local):
    """The pack that this thread's forward is about, and windows that its layers asked for."""

    pack: Pack | None = None
    windows: set[int] | None = None


_CURRENT = _Current()


class UnsupportedAttentionError(Exception):
    """A model asks attention for something that is not built here."""


def register() -> None:
    """Make the attention known to transformers; doing so again changes nothing."""
    from transformers import AttentionInterface

    # No mask is registered under the name: a model then makes none.
    AttentionInterface.register(PACKED, _attend)
    # PyTorch keeps transformers, and so this package with all it imports, beyond the end of the
    # interpreter; of which DuckDB's binding complains at length.
    atexit.register(AttentionInterface.register, PACKED, None)  # type: ignore[arg-type]


@contextlib.contextmanager
def attending(pack: Pack) -> Iterator[set[int]]:
    """Forwards of this thread are about a pack; gives the sliding windows that were asked for."""
    _CURRENT.pack, _CURRENT.windows = pack, set()
    try:
        yield _CURRENT.windows
    finally:
        _CURRENT.pack = _CURRENT.windows = None


def _attend(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple["torch.Tensor", None]:
    """``(1, heads, tokens, d)`` each, fewer heads of key and value allowed; gives
    ``(1, tokens, heads, d)``.
    """
    import torch

    pack, windows = _CURRENT.pack, _CURRENT.windows
    assert pack is not None
    assert windows is not None
    asked = {name for name, given in more.items() if given is not None and given is not False}
    if asked - _HARMLESS:
        raise UnsupportedAttentionError(", ".join(sorted(asked - _HARMLESS)))
    if sliding_window is not None:
        windows.add(sliding_window)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    fewer = query.shape[1] != key.shape[1]

    def attend(queries: slice, keys: list[slice], mask: Any) -> None:
        several = [[each[:, :, part] for part in keys] for each in (key, value)]
        k, v = (parts[0] if len(parts) == 1 else torch.cat(parts, 2) for parts in several)
        found = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, queries],
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=fewer,
        )
        out[:, queries] = found.transpose(1, 2)

    for group in pack.groups:
        if not group.prompt:
            whole = slice(group.start, group.ends[-1])
            length = group.ends[-1] - group.start
            attend(whole, [whole], _sequence_mask(pack, length, sliding_window, query))
            continue
        first = group.start + group.prompt
        prompt = slice(group.start, first)
        attend(prompt, [prompt], _sequence_mask(pack, group.prompt, sliding_window, query))
        for edges in group.runs():
            own = slice(edges[0], edges[-1])
            keys = [slice(group.start, own.stop)] if own.start == first else [prompt, own]
            attend(own, keys, _run_mask(pack, group, edges, sliding_window, query))
    return out, None


def _sequence_mask(pack: Pack, length: int, window: int | None, like: "torch.Tensor") -> Any:
    """What a plain sequence may attend to; None where that is all that comes before."""
    import torch

    if window is None or length <= window:
        return None
    name = ("sequence", length, window)
    if name not in pack.masks:
        place = torch.arange(length, device=like.device)
        apart = place[:, None] - place[None, :]
        pack.masks[name] = _additive((apart >= 0) & (apart < window), like)
    return pack.masks[name]


def _run_mask(
    pack: Pack, group: Group, edges: tuple[int, ...], window: int | None, like: "torch.Tensor"
) -> "torch.Tensor":
    """What a run of completions may attend to: ``(their tokens, the prompt's and theirs)``."""
    import torch

    name = ("run", edges[0], window)
    if name not in pack.masks:
        own = torch.arange(edges[0], edges[-1], device=like.device)
        owner = torch.searchsorted(torch.tensor(edges[1:], device=like.device), own, right=True)
        seen = (owner[:, None] == owner[None, :]) & (own[:, None] >= own[None, :])
        seen = torch.nn.functional.pad(seen, (group.prompt, 0), value=True)
        if window is not None:
            place = torch.from_numpy(pack.positions[edges[0] : edges[-1]]).to(like.device)
            other = torch.cat([torch.arange(group.prompt, device=like.device), place])
            seen &= place[:, None] - other[None, :] < window
        pack.masks[name] = _additive(seen, like)
    found: torch.Tensor = pack.masks[name]
    return found


def _additive(seen: "torch.Tensor", like: "torch.Tensor") -> "torch.Tensor":
    mask = like.new_zeros(seen.shape)
    return mask.masked_fill_(~seen, float("-inf"))
