"""A batch of training as columns of records, from tensors, arrays or lists.

The numbers of a PyTorch tensor are computed on its device, so that a few numbers a row cross over
and not its logits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.scoring.training_records import Records, records_of
from tamis.storage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

#: Columns of `Batch.numbers`.
NUMBERS = ("label_logit", "other_logit", "loss", "label_prob", "entropy", "el2n")
#: A label that losses leave out, as PyTorch's cross_entropy does: rows with it are not recorded.
IGNORED = -100
#: Logits worked on at a time on a processor: more leave its cache.
_CACHED = 1 << 18
#: Fewer logits take PyTorch on a processor longer to begin with than a kernel to end with.
_FEW = 1 << 15


@dataclass(frozen=True)
class Batch:
    """Records of n rows; on a device until `fetched`.

    Attributes:
        classes: how many logits each row had.
        ids: ``(n,)`` Arrow array of int64 or large_string, or integers on a device.
        label: int32 ``(n,)``.
        other: int32 ``(n,)``.
        numbers: float32 ``(n, 6)``, by column as in `NUMBERS`.
        logits: float32 ``(n, classes)``, if they are kept.
        step: int64 ``(n,)``, or one for all while on a device; -1 if it is not known.
    """

    classes: int
    ids: Any
    label: Any
    other: Any
    numbers: Any
    logits: Any
    step: Any

    def __len__(self) -> int:
        return len(self.label)

    @property
    def on_device(self) -> bool:
        return not isinstance(self.label, np.ndarray)


def batch_of(row_ids: Any, logits: Any, labels: Any, step: int = -1, *, keep_logits: bool) -> Batch:
    """The records of a batch.

    Args:
        row_ids: n integers or n strings; a tensor, an array or a list.
        logits: ``(n, classes)`` or, of a single row, ``(classes,)``.
        labels: ``(n,)`` integers.

    Raises:
        UserError: where these do not fit together. Labels on a device are checked when fetched.
    """
    if _is_tensor(logits):
        logits = logits.detach()
        if logits.is_complex():
            raise _no_logits(logits.dtype)
        if logits.device.type == "cpu" and logits.numel() < _FEW:
            logits = logits.float().numpy()
    else:
        logits = _numbers(logits)
    labels = _labels(labels)
    if logits.shape == labels.shape == (0,):
        logits = logits.reshape(0, 2)  # a list of no rows does not say how many classes
    _check(logits.shape, labels.shape)
    logits = logits.reshape(-1, logits.shape[-1])
    labels = labels.reshape(-1)
    ids = row_ids_of(row_ids)
    if len(ids) != len(labels):
        raise UserError(
            f"{len(ids)} row ids for {len(labels)} rows of logits",
            mend="give the ids of the rows of this batch, in its order",
        )
    if isinstance(logits, np.ndarray):
        return _of_arrays(ids, logits, _on_host(labels), step, keep_logits)
    return _of_tensors(ids, logits, labels, step, keep_logits)


def _numbers(logits: Any) -> npt.NDArray[Any]:
    """Logits as an array of real numbers."""
    try:
        found = np.asarray(logits)
        if found.dtype == object:  # of numbers, perhaps
            found = found.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"logits are no rows of as many numbers each ({error})", mend="give (rows, classes)"
        ) from error
    if found.dtype.kind in "cUSmM":
        raise _no_logits(found.dtype)
    return found


def _no_logits(kind: Any) -> UserError:
    return UserError(f"logits of type {kind}; expected real numbers", mend="give (rows, classes)")


def _check(logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    single = len(logits) == 1 and labels in ((), (1,))
    if not single and (len(logits) != 2 or labels != logits[:1]):
        raise UserError(
            f"logits of shape {tuple(logits)} with labels of shape {tuple(labels)}; expected "
            "(rows, classes) and (rows,)",
            mend="records are of rows with one label each, as of sequence classification; labels "
            "of tokens, several labels a row and soft labels cannot be recorded",
        )
    if logits[-1] < 2:
        raise UserError(
            "one logit a row; a margin needs at least two classes",
            mend="give logits (0, z) for a binary output z; a regression has no classes",
        )


def _labels(labels: Any) -> Any:
    if _is_tensor(labels):
        labels = labels.detach()
        whole = not (labels.is_floating_point() or labels.is_complex()) or not labels.numel()
    else:
        labels = np.asarray(labels)
        whole = labels.dtype.kind in "iub" or not labels.size
        labels = labels.astype(np.int64) if whole else labels
    if not whole:
        raise UserError(
            f"labels of type {labels.dtype}; expected integers",
            mend="give the number of each row's class",
        )
    return labels


def row_ids_of(row_ids: Any) -> Any:
    """Row ids as an Arrow array of int64 or large_string; on a device as they are.

    Raises:
        UserError: for anything but integers that fit, or strings.
    """
    if _is_tensor(row_ids):
        row_ids = row_ids.detach().reshape(-1)
        if row_ids.device.type != "cpu" and not row_ids.is_floating_point():
            return row_ids.clone()
        row_ids = row_ids.cpu().numpy()
    if isinstance(row_ids, str | int):
        row_ids = [row_ids]
    if isinstance(row_ids, list | tuple):  # as collators make them of numbers of other libraries
        row_ids = [one.item() if hasattr(one, "item") else one for one in row_ids]
    else:
        row_ids = np.array(row_ids).reshape(-1)  # the caller's memory may change
        row_ids = row_ids.tolist() if row_ids.dtype == object else row_ids
    try:
        ids = pa.array(row_ids)
        if not len(ids) or (pa.types.is_integer(ids.type) and not ids.null_count):
            return ids.cast(pa.int64())
        if pa.types.is_string(ids.type) and not ids.null_count:
            return ids.cast(pa.large_string())
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise UserError(f"row ids: {error}", mend="give integers or strings") from error
    raise UserError(f"row ids of type {ids.type}", mend="give integers or strings, none null")


def _of_arrays(ids: Any, logits: Any, labels: Any, step: int, keep_logits: bool) -> Batch:
    ids = ids_on_host(ids)
    used = np.flatnonzero(labels != IGNORED)
    if len(used) < len(labels):
        ids, logits, labels = ids.take(pa.array(used)), logits[used], labels[used]
    found: Records = records_of(logits, labels)
    return Batch(
        logits.shape[1],
        ids,
        labels.astype(np.int32),
        found.other,
        np.stack([getattr(found, name) for name in NUMBERS], axis=1),
        np.array(logits, np.float32) if keep_logits else None,
        np.full(len(labels), step, np.int64),
    )


def _of_tensors(ids: Any, logits: "Tensor", labels: Any, step: int, keep_logits: bool) -> Batch:
    import torch

    # What surrounds the call may compute in bfloat16.
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        given = torch.as_tensor(labels, device=logits.device).to(torch.int32, copy=True)
        logits = logits.to(torch.float32, copy=keep_logits)
        label = given.clamp(0, logits.shape[1] - 1).to(torch.int64)
        numbers, other = tensor_records(logits, label)
        batch = Batch(
            logits.shape[1],
            ids,
            given,
            other.to(torch.int32),
            numbers,
            logits if keep_logits else None,
            step,
        )
    return batch if logits.device.type != "cpu" else fetched([batch])


def tensor_records(logits: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
    """As `training_records.records_of`, in float32 on the tensors' device.

    Args:
        logits: float32 ``(n, classes)``.
        labels: int64 ``(n,)`` within them.

    Returns:
        float32 ``(n, 6)`` with the columns of `NUMBERS`, and int64 ``(n,)``, the other class; of
        a row with a nan that is a class whose logit is one.
    """
    import torch
    from torch.nn.functional import softplus

    label = labels[:, None]
    own = logits.gather(1, label)
    best, other, log_total, length, mean = _without_label(logits, label)
    other = torch.where(best == -torch.inf, (label == 0).to(torch.int64), other)
    # The odds of the label against the rest keep their digits where one of the two is almost all
    # there is.
    odds = own - log_total
    loss = softplus(-odds)
    prob, missing = torch.sigmoid(odds), torch.sigmoid(-odds)
    entropy = prob * loss + missing * (softplus(odds) + log_total - mean)
    el2n = missing * torch.sqrt(1 + length * length)
    numbers = torch.cat([own, best, loss, prob, entropy.clamp_min_(0), el2n], 1)
    numbers[:, 2:].masked_fill_(~(own.isfinite() & best.isfinite()), torch.nan)
    return numbers, other[:, 0]


def _without_label(logits: "Tensor", label: "Tensor") -> "tuple[Tensor, ...]":
    """Of the classes but the label, each ``(n, 1)``: the largest logit, where it is, the logarithm
    of the sum of exponentials, and of their softmax the length and the mean logit."""
    import torch

    rows, classes = logits.shape
    if logits.device.type == "cpu":
        rows = max(1, min(rows, _CACHED // classes))
    rest, q = logits.new_empty((rows, classes)), logits.new_empty((rows, classes))
    least = torch.finfo(logits.dtype).min
    found: list[tuple[Tensor, ...]] = []
    for begin in range(0, len(logits), max(1, rows)):
        block = slice(begin, begin + rows)
        z = rest[: len(label[block])]
        p = q[: len(z)]
        z.copy_(logits[block]).scatter_(1, label[block], -torch.inf)
        other = _argmax(z)[:, None]
        best = z.gather(1, other)
        torch.softmax(z, 1, out=p)
        # What the softmax's own sum over many classes is wrong by, as this one is in pairs.
        whole = p.sum(1, keepdim=True)
        log_total = best - (p.gather(1, other) / whole).log()
        length = torch.linalg.vector_norm(p, dim=1, keepdim=True) / whole
        # Minus infinity times probability 0 would be nan.
        mean = p.mul_(z.clamp_min_(least)).sum(1, keepdim=True) / whole
        found.append((best, other, log_total, length, mean))
    if len(found) == 1:
        return found[0]
    if not found:
        none = logits.new_empty((0, 1))
        return none, label, none, none, none
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def _argmax(rest: "Tensor") -> "Tensor":
    import torch

    if rest.device.type != "cpu":
        return rest.argmax(1)
    return torch.from_numpy(rest.numpy().argmax(1))  # ten times as fast as PyTorch's own


def fetched(batches: list[Batch]) -> Batch:
    """Batches with as many classes, all of one device, as one batch of arrays.

    Raises:
        UserError: naming the row, for a label outside of the classes.
    """
    logits = [batch.logits for batch in batches]
    columns: list[Any] = [
        _joined([batch.label for batch in batches]),
        _joined([batch.other for batch in batches]),
        _joined([batch.numbers for batch in batches]),
        None if logits[0] is None else _joined(logits),
        np.concatenate([np.broadcast_to(batch.step, len(batch)) for batch in batches]),
    ]
    ids = pa.concat_arrays([ids_on_host(batch.ids) for batch in batches])
    label, classes = columns[0], batches[0].classes
    wrong = (label < 0) | (label >= classes)
    if wrong.any():
        used = label != IGNORED
        bad = np.flatnonzero(wrong & used)
        if len(bad):
            raise UserError(
                f"label {label[bad[0]]} of row {ids[int(bad[0])].as_py()}, but the logits have "
                f"classes 0 to {classes - 1}",
                mend="the model needs an output for every class that occurs",
            )
        ids = ids.filter(pa.array(used))
        columns = [column if column is None else column[used] for column in columns]
    return Batch(classes, ids, *columns)


def _joined(columns: list[Any]) -> npt.NDArray[Any]:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    import torch

    joined: npt.NDArray[Any] = torch.cat(columns).cpu().numpy()
    return joined


def ids_on_host(ids: Any) -> pa.Array:
    """What `row_ids_of` gives as an Arrow array."""
    return ids if isinstance(ids, pa.Array) else pa.array(ids.cpu().numpy()).cast(pa.int64())


def _on_host(values: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.cpu().numpy() if _is_tensor(values) else values
    return array


def _is_tensor(value: Any) -> bool:
    # Without importing PyTorch: what is a tensor was made by it.
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
