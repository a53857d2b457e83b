"""Attention inside the groups of a pack: registered with transformers under a name of its own.

A prompt attends to itself, a completion to its prompt and itself, both causally. Nothing else is
computed but the blocks between completions of one group, which are masked.
"""

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
    shared_heads = query.shape[1] != key.shape[1]

    def attend(queries: slice, keys: slice, mask: Any) -> None:
        found = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, queries],
            key[:, :, keys],
            value[:, :, keys],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=shared_heads,
        )
        out[:, queries] = found.transpose(1, 2)

    for group in pack.groups:
        first = group.start + group.prompt
        end = group.ends[-1]
        if group.prompt:
            prompt = slice(group.start, first)
            mask = _window_mask(pack, group.prompt, sliding_window, query)
            attend(prompt, prompt, mask)
            if end > first:
                mask = _mask(pack, group, sliding_window, query)
                attend(slice(first, end), slice(group.start, end), mask)
        else:
            whole = slice(group.start, end)
            mask = _window_mask(pack, end - first, sliding_window, query)
            attend(whole, whole, mask)
    return out, None


def _window_mask(pack: Pack, length: int, window: int | None, like: "torch.Tensor") -> Any:
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


def _mask(pack: Pack, group: Group, window: int | None, like: "torch.Tensor") -> "torch.Tensor":
    """What the completions of a group may attend to: ``(completion tokens, tokens)``."""
    import torch

    name = ("group", group.start, window)
    if name not in pack.masks:
        end = group.ends[-1]
        position = torch.from_numpy(pack.positions[group.start : end]).to(like.device)
        ends = torch.tensor(group.ends, device=like.device)
        place = torch.arange(group.start, end, device=like.device)
        owner = torch.searchsorted(ends, place, right=True)
        owner[: group.prompt] = -1
        asking = slice(group.prompt, None)
        same = owner[asking, None] == owner[None, :]
        seen = (same & (place[asking, None] >= place[None, :])) | (owner == -1)[None, :]
        if window is not None:
            seen &= position[asking, None] - position[None, :] < window
        pack.masks[name] = _additive(seen, like)
    found: torch.Tensor = pack.masks[name]
    return found


def _additive(seen: "torch.Tensor", like: "torch.Tensor") -> "torch.Tensor":
    mask = like.new_zeros(seen.shape)
    return mask.masked_fill_(~seen, float("-inf"))
