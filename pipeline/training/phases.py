"""One phase of training as a Lightning module: what learns, at which rates, against which loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pipeline.model.network import Network, PrototypeNetwork, Terms
from pipeline.training.augment import Augmentation
from pipeline.training.batches import PackedBags

Rates = Sequence[tuple[Sequence[nn.Parameter], float]]


class Phase(L.LightningModule, ABC):  # type: ignore[misc]  # untyped here
    """Trains some parameters of a network and validates after every epoch.

    Logs ``train/<term>`` for every term of the loss, ``val/loss`` and ``val/accuracy``; all are means over images,
    not over batches (of a class-weighted cross entropy, each batch's weighted mean counts by its images).

    Attributes:
        network: what learns.
        num_steps: of the optimiser, so far.
    """

    network: Network
    num_steps: Tensor

    def __init__(
        self,
        network: Network,
        *,
        rates: Rates,
        class_weights: Float[Tensor, " class"] | None,
        augmentation: Augmentation | None = None,
        draw_mirror: bool = False,
        lr_step_epochs: int | None = None,
        lr_gamma: float = 1.0,
        bfloat16: bool = False,
        drops_last_window: bool = False,
        is_first: bool = True,
    ) -> None:
        """Set up one phase.

        Args:
            network: changed in place; only the parameters in ``rates`` learn.
            rates: groups of parameters with their Adam learning rates.
            class_weights: of the classification term; None weighs classes equally.
            augmentation: applied to training views; for batches of pictures.
            draw_mirror: take each view or its mirror image by chance; for batches of encoded views.
            lr_step_epochs: rates are multiplied by ``lr_gamma`` after every so many epochs; None keeps them.
            lr_gamma: factor of the step decay.
            bfloat16: the backbone computes in it; weights, and all behind the backbone, stay in float32.
            drops_last_window: do not step a last, incomplete window of accumulated batches (``compat.dropped_window``).
            is_first: no other phase came before.
        """
        super().__init__()
        self.network = network
        self._rates = [(list(parameters), rate) for parameters, rate in rates]
        self.register_buffer("_class_weights", class_weights, persistent=False)
        self._augmentation = augmentation
        self._draw_mirror = draw_mirror
        self._lr_step_epochs = lr_step_epochs
        self._lr_gamma = lr_gamma
        self._bfloat16 = bfloat16
        self._drops_last_window = drops_last_window
        self._is_first = is_first
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    @abstractmethod
    def losses(self, encoded: Tensor, batch: PackedBags, other_version: Tensor | None) -> tuple[Terms, Tensor]:
        """Compute the terms of the loss and the logits.

        Args:
            encoded: the views of the batch behind the backbone: [view, channel, *place].
            batch: gives lengths and labels.
            other_version: the same in other colours; None in validation, and for networks that do not ask for it.
        """

    def configure_optimizers(self) -> Any:
        """Adam, a group per rate, with step decay by epoch."""
        optimizer = torch.optim.Adam(
            [{"params": parameters, "lr": rate} for parameters, rate in self._rates if parameters]
        )
        if self._lr_step_epochs is None:
            return optimizer
        decay = torch.optim.lr_scheduler.StepLR(optimizer, self._lr_step_epochs, self._lr_gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "epoch"}}

    def on_fit_start(self) -> None:
        """Freeze everything that has no rate."""
        learning = {id(parameter) for parameters, _ in self._rates for parameter in parameters}
        for parameter in self.network.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        self.network.train()

    def on_train_batch_start(self, batch: PackedBags, batch_idx: int) -> None:
        """Let schedules know of a new epoch."""
        if batch_idx == 0:
            self.network.start_epoch(self.current_epoch, is_first_phase=self._is_first)

    def training_step(self, batch: PackedBags, batch_idx: int) -> Tensor:
        """Compute the loss on views that are augmented, or mirrored, by chance."""
        encoded, other_version = self._training_versions(batch)
        terms, _ = self.losses(encoded, batch, other_version)
        self._log_mean("train", terms, len(batch.labels))
        # Lightning divides by the full window; a last one with fewer batches is averaged over those
        scale = int(self.trainer.accumulate_grad_batches) / self._window(batch_idx)
        return terms["loss"] * scale

    def validation_step(self, batch: PackedBags, batch_idx: int) -> None:
        """Measure loss and accuracy on views as they are."""
        encoded = self._encode(batch.views) if batch.views.dtype == torch.uint8 else batch.views[:, 0]
        terms, logits = self.losses(encoded, batch, None)
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        self._log_mean("val", {"loss": terms["loss"], "accuracy": accuracy}, len(batch.labels))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any]) -> None:
        """Step; without the last window where that is dropped: the next window starts from zero gradients."""
        if self._drops_last_window and self._window(batch_idx) < self.trainer.accumulate_grad_batches:
            optimizer_closure()
            return
        optimizer.step(closure=optimizer_closure)
        self.num_steps += 1
        self.network.after_step()

    def _window(self, batch_idx: int) -> int:
        """Count the batches whose gradients make one step together with this one's."""
        accumulated, num_batches = int(self.trainer.accumulate_grad_batches), int(self.trainer.num_training_batches)
        rest = num_batches % accumulated
        return rest if rest and batch_idx >= num_batches - rest else accumulated

    def _training_versions(self, batch: PackedBags) -> tuple[Tensor, Tensor | None]:
        wants_two = self.network.num_versions == 2
        if batch.views.dtype != torch.uint8:
            if wants_two:
                return batch.views[:, 0], batch.views[:, -1]
            return self._one_version(batch.views), None
        if self._augmentation is None:
            encoded = self._encode(batch.views)
            return encoded, encoded if wants_two else None
        if wants_two:
            versions = self._augmentation.two_versions(batch.views, batch.lengths)
            encoded, other = self._encode(torch.cat(versions)).chunk(2)
            return encoded, other
        return self._encode(self._augmentation(batch.views, batch.lengths)), None

    def _encode(self, views: Shaped[Tensor, "view 3 side_px side_px"]) -> Float[Tensor, "view channel *place"]:
        with torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            encoded: Tensor = self.network.encode(views)
        return encoded.float()

    def _one_version(self, views: Float[Tensor, "view version channel *place"]) -> Tensor:
        if not self._draw_mirror:
            return views[:, 0]
        version = torch.randint(views.shape[1], (len(views),), device=views.device)
        return views[torch.arange(len(views), device=views.device), version]

    def _log_mean(self, split: str, terms: dict[str, Tensor], num_images: int) -> None:
        named = {f"{split}/{name}": term.detach() for name, term in terms.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=num_images)


class TrainingPhase(Phase):
    """Warm-up or joint phase: everything learns but the last layer of networks with prototypes."""

    def losses(self, encoded: Tensor, batch: PackedBags, other_version: Tensor | None) -> tuple[Terms, Tensor]:
        """See ``training_terms`` of the network."""
        return self.network.training_terms(
            encoded, batch.lengths, batch.labels, class_weights=self._class_weights, other_version=other_version
        )


class FinetunePhase(Phase):
    """Fine-tune phase of a network with prototypes: only the last layer learns."""

    network: PrototypeNetwork

    def __init__(
        self, network: PrototypeNetwork, *, l1: float, moving_statistics: bool = False, **settings: Any
    ) -> None:
        """Set up the phase.

        Args:
            network: rests, but for its last layer.
            l1: weight of the absolute weights to other classes.
            moving_statistics: the backbone's normalisation statistics move on (``compat.moving_finetune``).
            settings: see :class:`Phase`.
        """
        super().__init__(network, **settings)
        self._l1 = l1
        self._moving_statistics = moving_statistics

    def on_fit_start(self) -> None:
        """Freeze everything else; a frozen network is one in evaluation mode."""
        super().on_fit_start()
        self.network.eval()
        if self._moving_statistics:
            for module in self.network.backbone.modules():
                module.training = True

    def losses(self, encoded: Tensor, batch: PackedBags, other_version: Tensor | None) -> tuple[Terms, Tensor]:
        """See ``tuning_terms`` of the network."""
        network = self.network
        lengths = batch.lengths * network.elements_per_view(encoded)
        output = network.classify(network.features_of(encoded), lengths)
        terms = network.tuning_terms(output, batch.labels, class_weights=self._class_weights, l1=self._l1)
        return terms, output.logits
