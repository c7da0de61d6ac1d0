"""What watches a phase: the best state on validation images, running means, progress, curves, the way to go on."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from dvclive import Live
from torch import Tensor
from tqdm import tqdm

from pipeline.io import new_file, progress_bar

State = dict[str, Tensor]


class KeepBest(L.Callback):  # type: ignore[misc]  # untyped here
    """Keeps the state of the epoch with the best validation accuracy and puts it back at the end.

    Of equal accuracies the lower validation loss wins, then the earlier epoch. The state before the first epoch
    takes part when :meth:`start_from` was called.

    Attributes:
        accuracy: the best so far, 0..1.
        epoch: when it was reached, 1 for the first; 0 is the start.
        last_epoch: how many epochs there were.
        last_accuracy: of the last one.
    """

    def __init__(self, *, patience_epochs: int | None = None, hands_on_last: bool = False) -> None:
        """Set up the choice.

        Args:
            patience_epochs: end the phase after so many epochs without a better one; None lets it run.
            hands_on_last: leave the network as the last epoch left it (``compat.last_epoch``).
        """
        self.accuracy = -1.0
        self.epoch = -1
        self.last_epoch = 0
        self.last_accuracy = -1.0
        self._loss = float("inf")
        self._state: State = {}
        self._patience_epochs = patience_epochs
        self._hands_on_last = hands_on_last

    def start_from(self, network: Any, *, accuracy: float, loss: float) -> None:
        """Let the state before training take part."""
        self.last_accuracy = accuracy
        self._offer(network, accuracy, loss, epoch=0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End at once what had ended before it was taken up again."""
        self._stop_if_out_of_patience(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the epoch that just ended."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self.last_epoch = trainer.current_epoch + 1
            self.last_accuracy = float(metrics["val/accuracy"])
            self._offer(pl_module.network, self.last_accuracy, float(metrics["val/loss"]), self.last_epoch)
            self._stop_if_out_of_patience(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best state back."""
        if not self._hands_on_last:
            pl_module.network.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides between epochs."""
        return {
            "accuracy": self.accuracy,
            "epoch": self.epoch,
            "last_accuracy": self.last_accuracy,
            "last_epoch": self.last_epoch,
            "loss": self._loss,
            "state": self._state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.accuracy, self.epoch = state_dict["accuracy"], state_dict["epoch"]
        self.last_accuracy, self.last_epoch = state_dict["last_accuracy"], state_dict["last_epoch"]
        self._loss, self._state = state_dict["loss"], state_dict["state"]

    def _offer(self, network: Any, accuracy: float, loss: float, epoch: int) -> None:
        if (accuracy, -loss) > (self.accuracy, -self._loss):
            self.accuracy, self._loss, self.epoch = accuracy, loss, epoch
            self._state = _copy_of(network)

    def _stop_if_out_of_patience(self, trainer: L.Trainer) -> None:
        if self._patience_epochs is not None and self.last_epoch - max(self.epoch, 0) >= self._patience_epochs:
            trainer.should_stop = True


class RunningMean(L.Callback):  # type: ignore[misc]  # untyped here
    """Keeps an exponential running mean of the network's state; validation, and who keeps the best, see that.

    It has to come after :class:`KeepBest` in the list of callbacks: at the end of a validation it takes its state back.
    """

    def __init__(self, decay: float, *, hands_on: bool = False) -> None:
        """Start without a mean; the first step sets it.

        Args:
            decay: share of the mean that stays at every step of the optimiser.
            hands_on: leave the network at the mean, where :class:`KeepBest` hands on the last epoch.
        """
        self._decay = decay
        self._hands_on = hands_on
        self._mean: State = {}
        self._own: State = {}
        self._num_steps = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the newest state in, after batches that ended with a step."""
        num_steps = int(pl_module.num_steps)
        if num_steps == self._num_steps:
            return
        self._num_steps = num_steps
        for key, value in pl_module.network.state_dict().items():
            if key in self._mean and value.is_floating_point():
                self._mean[key] = self._mean[key].to(value.device).lerp(value, 1 - self._decay)
            else:  # the first state, and counters
                self._mean[key] = value.detach().clone()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the mean."""
        if trainer.state.fn == "fit" and self._mean:
            self._own = _copy_of(pl_module.network)
            pl_module.network.load_state_dict(self._mean)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the network's own state."""
        if self._own:
            pl_module.network.load_state_dict(self._own)
            self._own = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the mean, where that is what the last validation saw."""
        if self._hands_on and self._mean:
            pl_module.network.load_state_dict(self._mean)

    def state_dict(self) -> dict[str, Any]:
        """The mean, and after how many steps."""
        return {"mean": self._mean, "num_steps": self._num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._mean, self._num_steps = state_dict["mean"], state_dict["num_steps"]


class PhaseProgress(L.Callback):  # type: ignore[misc]  # untyped here
    """One bar for all steps of a phase, with the remaining time and the last validation accuracy."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: tqdm[Any] | None = None
        self._start: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        num_batches = int(trainer.num_training_batches)
        total, done = num_batches * int(trainer.max_epochs or 1), num_batches * trainer.current_epoch
        self._bar = progress_bar(what=self._what, total=total, unit="batch", initial=done)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        assert self._bar is not None
        self._bar.update()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a bar for the validation before the first epoch; the others belong to their epoch."""
        if trainer.state.fn == "validate":
            what = f"{self._what}, start"
            self._start = progress_bar(what=what, total=sum(map(int, trainer.num_val_batches)), unit="batch")

    def on_validation_batch_end(self, *_: Any) -> None:
        """Count a batch of it."""
        if self._start is not None:
            self._start.update()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the accuracy."""
        if self._start is not None:
            self._start.close()
            self._start = None
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
        self._rows: dict[int, dict[str, float]] = {}  # by epoch

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write again what was written before the phase was stopped."""
        for _, row in sorted(self._rows.items()):
            self._write(row)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a row for each metric."""
        if trainer.current_epoch not in self._rows:
            row = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
            self._rows[trainer.current_epoch] = row
            self._write(row)

    def state_dict(self) -> dict[str, Any]:
        """The rows of this phase."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._rows = state_dict["rows"]

    def _write(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            self._live.log_metric(name, value)
        self._live.next_step()


class Checkpoint(L.Callback):  # type: ignore[misc]  # untyped here
    """Writes after every epoch all that it takes to go on: weights, optimiser, random generators, callbacks.

    It has to be the last in the list of callbacks, so that it sees what the others made of the epoch. A phase that was
    taken up again ends with the same weights, to the bit, as one that was never stopped.
    """

    def __init__(self, path: Path, order: Any) -> None:
        """Set up the file.

        Args:
            path: of the checkpoint.
            order: sampler of the training batches; told by ``set_epoch``, if it has that, which epoch comes next.
        """
        self._path = path
        self._order = order
        self._generators: dict[str, Any] | None = None  # to be restored

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Choose the order of the next epoch before decoding processes ask for it: Lightning does so after."""
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw on from where the stopped run was."""
        if self._generators is not None:
            torch.set_rng_state(self._generators["cpu"])
            if self._generators["cuda"]:
                torch.cuda.set_rng_state_all(self._generators["cuda"])
            self._generators = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file in one step: a kill leaves the last one or this one."""
        with new_file(self._path) as work:
            trainer.save_checkpoint(work, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until the first batch: what comes before draws nothing that counts."""
        self._generators = state_dict


def _copy_of(network: Any) -> State:
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
