"""Running one phase: epochs on a device, the best of them kept, and the way to go on after a kill."""

import logging
import shutil
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
from dvclive import Live
from torch.utils.data import DataLoader

from pipeline.runtime import Runtime
from pipeline.training.batches import PackedBags
from pipeline.training.callbacks import Checkpoint, Curves, KeepBest, PhaseProgress, RunningMean
from pipeline.training.phases import Phase

_log = logging.getLogger(__name__)

_MONTH_S = 30 * 86_400


class Checkpoints:
    """How far a training run is: a folder with a file per phase. Kept until the run is finished and published."""

    def __init__(self, folder: Path | None) -> None:
        """Use FOLDER, which is of this run alone; None keeps nothing."""
        self._folder = folder

    def path(self, name: str) -> Path | None:
        """Where a phase's checkpoint lies, or will lie; a damaged one is deleted."""
        if self._folder is None:
            return None
        path = self._folder / f"{name}.ckpt"
        if path.exists() and not _is_whole(path):
            _log.warning("%s is damaged: the phase starts anew", path)
            path.unlink()
        return path

    def has(self, name: str) -> bool:
        """Whether a phase was begun."""
        path = self.path(name)
        return path is not None and path.exists()

    def remove_abandoned(self) -> None:
        """Remove the runs beside this one that nobody took up for a month."""
        if self._folder is None or not self._folder.parent.exists():
            return
        for folder in self._folder.parent.iterdir():
            newest = max((path.stat().st_mtime for path in folder.glob("*")), default=0.0)
            if folder != self._folder and time.time() - newest > _MONTH_S:
                shutil.rmtree(folder, ignore_errors=True)

    def discard(self) -> None:
        """Forget the run."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Whether every part of a checkpoint, which is a zip archive, has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def fit(
    phase: Phase,
    training: DataLoader[PackedBags],
    validation: DataLoader[PackedBags],
    *,
    name: str,
    epochs: int,
    runtime: Runtime,
    live: Live | None = None,
    accumulate_batches: int = 1,
    patience_epochs: int | None = None,
    ema_decay: float | None = None,
    hands_on_last: bool = False,
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Run one phase and leave the network at its best epoch on the validation images, the start included.

    Args:
        phase: holds the network.
        training: batches to learn from.
        validation: batches to choose on.
        name: of the phase; names its bar.
        epochs: passes over the training images.
        runtime: device.
        live: gets the curves.
        accumulate_batches: batches per step.
        patience_epochs: end after so many epochs without a better one; None runs all.
        ema_decay: validate and keep a running mean of the weights; None does without.
        hands_on_last: leave the network at its last epoch instead (``compat.last_epoch``).
        checkpoint: written after every epoch; where it exists, the phase goes on from it. None does neither.

    Returns:
        ``epochs`` that were run; ``best_epoch``, the one that is handed on (0 is the start), and its ``val_accuracy``.
    """
    best = KeepBest(patience_epochs=patience_epochs, hands_on_last=hands_on_last)
    callbacks: list[L.Callback] = [best, PhaseProgress(name)]
    if ema_decay is not None:
        callbacks.append(RunningMean(ema_decay, hands_on=hands_on_last))
    if live is not None:
        callbacks.append(Curves(live))
    if checkpoint is not None:
        callbacks.append(Checkpoint(checkpoint, training.sampler))
    trainer = make_trainer(runtime, epochs=epochs, callbacks=callbacks, accumulate_grad_batches=accumulate_batches)
    if checkpoint is not None and checkpoint.exists():
        _log.info("%s: goes on from %s", name, checkpoint)
        trainer.fit(phase, training, validation, ckpt_path=checkpoint, weights_only=False)
    else:
        start = trainer.validate(phase, validation, verbose=False)[0]
        best.start_from(phase.network, accuracy=start["val/accuracy"], loss=start["val/loss"])
        trainer.fit(phase, training, validation)
    accuracy, epoch = (best.last_accuracy, best.last_epoch) if hands_on_last else (best.accuracy, best.epoch)
    _log.info("%s: validation accuracy %.4f, epoch %d of %d", name, accuracy, epoch, best.last_epoch)
    return {"epochs": best.last_epoch, "best_epoch": epoch, "val_accuracy": round(accuracy, 6)}


def make_trainer(runtime: Runtime, *, epochs: int, **settings: Any) -> L.Trainer:
    """Set Lightning up: one device, deterministic, silent, nothing written."""
    warnings.filterwarnings("ignore", module=r"lightning\..*")  # hints on loader workers, missing loggers
    device = runtime.torch_device
    kind, _, number = device.partition(":")
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(kind, kind),
        devices=[int(number)] if number else 1,
        max_epochs=epochs,
        deterministic="warn",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tempfile.gettempdir(),  # nothing is written there without a logger and checkpoints
        **settings,
    )
