"""What watches a phase: the best state on validation images, the progress bar, the curves."""

from typing import Any

import lightning as L
from dvclive import Live
from tqdm import tqdm

from pipeline.io import progress_bar


class KeepBest(L.Callback):  # type: ignore[misc]  # untyped here
    """Keeps the state of the epoch with the best validation accuracy and puts it back at the end.

    Of equal accuracies the lower validation loss wins, then the earlier epoch. The state before the first epoch
    takes part when :meth:`start_from` was called.

    Attributes:
        accuracy: the best so far, 0..1.
        epoch: when it was reached, 1 for the first; 0 is the start.
    """

    def __init__(self) -> None:
        self.accuracy = -1.0
        self.epoch = -1
        self._loss = float("inf")
        self._state: dict[str, Any] = {}

    def start_from(self, network: Any, *, accuracy: float, loss: float) -> None:
        """Let the state before training take part."""
        self._offer(network, accuracy, loss, epoch=0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the epoch that just ended."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self._offer(
                pl_module.network, float(metrics["val/accuracy"]), float(metrics["val/loss"]), trainer.current_epoch + 1
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best state back."""
        pl_module.network.load_state_dict(self._state)

    def _offer(self, network: Any, accuracy: float, loss: float, epoch: int) -> None:
        if (accuracy, -loss) > (self.accuracy, -self._loss):
            self.accuracy, self._loss, self.epoch = accuracy, loss, epoch
            self._state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}


class PhaseProgress(L.Callback):  # type: ignore[misc]  # untyped here
    """One bar for all steps of a phase, with the remaining time and the last validation accuracy."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        total = int(trainer.num_training_batches) * int(trainer.max_epochs or 1)
        self._bar = progress_bar(what=self._what, total=total, unit="batch")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        assert self._bar is not None
        self._bar.update()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the accuracy."""
        if self._bar is not None:
            accuracy = float(trainer.callback_metrics["val/accuracy"])
            self._bar.set_postfix_str(f"val accuracy {accuracy:.3f}", refresh=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        assert self._bar is not None
        self._bar.close()


class Curves(L.Callback):  # type: ignore[misc]  # untyped here
    """Writes the means of every epoch to DVCLive; steps count on over the phases of a run."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a row for each metric."""
        for name, value in sorted(trainer.callback_metrics.items()):
            self._live.log_metric(name, float(value))
        self._live.next_step()
