"""Records the training of a transformers `Trainer`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tamis.scoring.recorder import DynamicsRecorder
from tamis.storage.errors import UserError

if TYPE_CHECKING:
    from transformers import Trainer


def record_trainer(trainer: "Trainer", recorder: DynamicsRecorder, row_id: str = "row_id") -> None:
    """Have a `Trainer` record what its model says of the rows that it is trained on.

    The logits are those of the loss that is computed anyway. The column of ids travels with the
    batches of training and does not reach the model. Epochs begin and end as the trainer's do;
    what was recorded is written whenever a checkpoint is saved, so that
    ``train(resume_from_checkpoint=…)`` goes on without a gap.

    Args:
        trainer: of a model with one label a row (sequence classification), its `train_dataset`
            with a column of row ids. Its `compute_loss` may be its own if it can give the outputs
            (``return_outputs=True``).
        row_id: that column, integers or strings.

    Raises:
        UserError: if the training set has no such column; in training, for labels of tokens.
    """
    columns = getattr(trainer.train_dataset, "column_names", None)
    if columns is not None and row_id not in columns:
        raise UserError(
            f"no column {row_id!r} in the training set ({', '.join(columns)})",
            where="record_trainer",
            mend="add one that tells its rows apart, or name yours with row_id=",
        )
    trainer.get_train_dataloader = _with_ids(trainer, row_id)  # type: ignore[method-assign]
    trainer.compute_loss = _recording(trainer, recorder, row_id)  # type: ignore[method-assign]
    trainer.add_callback(_epochs(recorder))


class _Collator:
    """Collates all but the row ids, and adds them."""

    def __init__(self, inner: Callable[..., Any], row_id: str) -> None:
        self.inner, self.row_id = inner, row_id

    def __call__(self, features: list[Any]) -> Any:
        import torch

        if not isinstance(features[0], Mapping) or self.row_id not in features[0]:
            raise UserError(
                f"a row of the training set has no {self.row_id!r}",
                where="record_trainer",
                mend="rows must be dictionaries with an id each",
            )
        ids = [row[self.row_id] for row in features]
        batch = self.inner([{k: v for k, v in row.items() if k != self.row_id} for row in features])
        # Text is no tensor; on a host it is carried as it is.
        batch[self.row_id] = ids if isinstance(ids[0], str) else torch.tensor([int(i) for i in ids])
        return batch


def _with_ids(trainer: "Trainer", row_id: str) -> Callable[[], Any]:
    """The trainer's own `get_train_dataloader`, for which the row ids are of use."""
    inner = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:
        trainer._set_signature_columns_if_needed()
        now: Any = trainer
        columns, collator = now._signature_columns, now.data_collator
        now._signature_columns = [*columns, row_id]
        now.data_collator = _Collator(collator, row_id)
        try:
            return inner()
        finally:
            now._signature_columns, now.data_collator = columns, collator

    return get_train_dataloader


def _recording(trainer: "Trainer", recorder: DynamicsRecorder, row_id: str) -> Callable[..., Any]:
    """The trainer's own `compute_loss`, that records the batch if it is one of training."""
    inner = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        if not model.training:
            return inner(model, inputs, return_outputs=return_outputs, **more)
        ids, labels = inputs.pop(row_id, None), _labels(trainer, inputs)
        if ids is None or labels is None:
            raise UserError(
                f"a batch without {row_id if ids is None else 'labels'!r}",
                where="record_trainer",
                mend="the trainer's data loader must use its `data_collator`, and its rows have "
                "a label each",
            )
        loss, outputs = inner(model, inputs, return_outputs=True, **more)
        if isinstance(outputs, Mapping) or hasattr(outputs, "logits"):
            logits = outputs["logits"]
        else:  # a tuple, that begins with the loss if the model was given the labels
            logits = outputs[0 if _labels(trainer, inputs) is None else 1]
        recorder.record(ids, logits, labels, step=trainer.state.global_step)
        return (loss, outputs) if return_outputs else loss

    return compute_loss


def _labels(trainer: "Trainer", inputs: Any) -> Any:
    return next((inputs[name] for name in trainer.label_names if name in inputs), None)


def _epochs(recorder: DynamicsRecorder) -> Any:
    from transformers import TrainerCallback

    class Epochs(TrainerCallback):
        """Begins and ends the recorder's epochs with the trainer's."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.step = state.global_step or None
            self.next = int(state.epoch or 0)
            loader: Any = more.get("train_dataloader")
            if self.step and hasattr(loader, "__len__"):
                # As the trainer counts, of which state.epoch differs if the batch size has changed.
                updates = max(1, -(-len(loader) // args.gradient_accumulation_steps))
                self.next = self.step // updates

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            recorder.start_epoch(self.next, self.step)
            self.next, self.step = self.next + 1, None

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if control.should_save:
                recorder.flush()

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            recorder.flush()  # a save that was decided on after the step's end

        def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            recorder.end_epoch()

    return Epochs()
