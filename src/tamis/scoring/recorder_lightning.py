"""Records the training of a Lightning module."""

from collections.abc import Callable
from typing import Any

from tamis.scoring.recorder import DynamicsRecorder
from tamis.storage.errors import UserError

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # the same library under its other name
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        raise UserError(
            "tamis.DynamicsCallback needs the package lightning, which is not installed",
            mend="pip install lightning",
        ) from error

#: Where a batch has something: a key or place, or a function of the batch.
Part = str | int | Callable[[Any], Any]


class DynamicsCallback(Callback):
    """Records what a module says of the rows that it is trained on.

    ``training_step`` returns its logits beside the loss: ``{"loss": loss, "logits": logits}``.
    What was recorded is written whenever a checkpoint is saved, so that
    ``fit(ckpt_path=…)`` goes on without a gap.

    Args:
        recorder: where to.
        row_id: where a batch has its row ids: a key, a place, or a function of the batch.
        label: where it has its labels.
        logits: key of the logits in what ``training_step`` returns.
    """

    def __init__(
        self,
        recorder: DynamicsRecorder,
        row_id: Part = "row_id",
        label: Part = "label",
        logits: str = "logits",
    ) -> None:
        self.recorder = recorder
        self.row_id, self.label, self.logits = row_id, label, logits
        self._first = True  # epoch of this fit
        self._open = False
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._first, self._open = True, False

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        if not self._open:  # an epoch that is resumed has no on_train_epoch_start
            resumed = self._first and self._step > 0
            self.recorder.start_epoch(trainer.current_epoch, self._step if resumed else None)
            self._first, self._open = False, True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is None:  # the step was skipped
            return
        if not isinstance(outputs, dict) or self.logits not in outputs:
            raise UserError(
                f"training_step gave no {self.logits!r}",
                where="DynamicsCallback",
                mend='return {"loss": loss, "logits": logits}',
            )
        self.recorder.record(
            _part(batch, self.row_id), outputs[self.logits], _part(batch, self.label), self._step
        )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.recorder.flush()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._open:
            self.recorder.end_epoch()
        self._open = False


def _part(batch: Any, where: Part) -> Any:
    if callable(where):
        return where(batch)
    try:
        return batch[where]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"a batch has no {where!r}",
            where="DynamicsCallback",
            mend="say with row_id= and label= where it has ids and labels",
        ) from error
