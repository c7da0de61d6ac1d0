"""One phase of training as a Lightning module: what learns, at which rates, against which loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.losses import finetune_loss, joint_loss
from pipeline.model.network import BlackBox, ProtoMask
from pipeline.params import LossParams
from pipeline.training.batches import PackedBags

Rates = Sequence[tuple[Sequence[nn.Parameter], float]]


class Phase(L.LightningModule, ABC):  # type: ignore[misc]  # untyped here
    """Trains some parameters of a network and validates after every epoch.

    Logs ``train/<term>`` for every term of the loss, ``val/loss`` and ``val/accuracy``; all are means over images,
    not over batches (of a class-weighted cross entropy, each batch's weighted mean counts by its images).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rates: Rates,
        class_weights: Float[Tensor, " class"] | None,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        draw_mirror: bool = False,
        lr_step_epochs: int | None = None,
        lr_gamma: float = 1.0,
    ) -> None:
        """Set up one phase.

        Args:
            network: changed in place; only the parameters in ``rates`` learn.
            rates: groups of parameters with their Adam learning rates.
            class_weights: of the cross entropy; None weighs classes equally.
            augmentation: applied to training views; for batches of pictures.
            draw_mirror: take each view or its mirror image by chance; for batches of pooled features.
            lr_step_epochs: rates are multiplied by ``lr_gamma`` after every so many epochs; None keeps them.
            lr_gamma: factor of the step decay.
        """
        super().__init__()
        self.network = network
        self._rates = [(list(parameters), rate) for parameters, rate in rates]
        self.register_buffer("_class_weights", class_weights, persistent=False)
        self._augmentation = augmentation
        self._draw_mirror = draw_mirror
        self._lr_step_epochs = lr_step_epochs
        self._lr_gamma = lr_gamma

    @abstractmethod
    def losses(self, batch: PackedBags) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the terms of the loss (``loss`` is their sum) and the logits of a batch whose views are final."""

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

    def training_step(self, batch: PackedBags, batch_idx: int) -> Tensor:
        """Compute the loss on views that are augmented, or mirrored, by chance."""
        views = batch.views
        if views.dtype == torch.uint8:
            if self._augmentation is not None:
                views = self._augmentation(views)
        else:
            views = self._one_version(views)
        terms, _ = self.losses(batch._replace(views=views))
        self._log_mean("train", terms, len(batch.labels))
        return terms["loss"]

    def validation_step(self, batch: PackedBags, batch_idx: int) -> None:
        """Measure loss and accuracy on views as they are."""
        views = batch.views if batch.views.dtype == torch.uint8 else batch.views[:, 0]
        terms, logits = self.losses(batch._replace(views=views))
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        self._log_mean("val", {"loss": terms["loss"], "accuracy": accuracy}, len(batch.labels))

    def _one_version(self, views: Float[Tensor, "view version channel"]) -> Float[Tensor, "view channel"]:
        if not self._draw_mirror:
            return views[:, 0]
        version = torch.randint(views.shape[1], (len(views),), device=views.device)
        return views[torch.arange(len(views), device=views.device), version]

    def _log_mean(self, split: str, terms: dict[str, Tensor], num_images: int) -> None:
        named = {f"{split}/{name}": term.detach() for name, term in terms.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=num_images)


class JointPhase(Phase):
    """Warm-up and joint phase of ProtoMask: the last layer rests, prototypes and embedding learn."""

    network: ProtoMask

    def __init__(self, network: ProtoMask, *, loss: LossParams, **settings: Any) -> None:
        super().__init__(network, **settings)
        self._loss = loss

    def losses(self, batch: PackedBags) -> tuple[dict[str, Tensor], Tensor]:
        """See :func:`pipeline.model.losses.joint_loss`."""
        network = self.network
        if batch.views.dim() == 4:
            features = network.features(batch.views)
        else:
            features = network.features_of_pooled(batch.views)
        output = network.classify(features, batch.lengths)
        terms = joint_loss(
            output.logits,
            output.distance,
            network.prototypes,
            batch.labels,
            network.prototype_labels,
            class_weights=self._class_weights,
            weights=self._loss,
        )
        return terms, output.logits


class FinetunePhase(Phase):
    """Fine-tune phase of ProtoMask: only the last layer learns, on pooled features of the frozen backbone."""

    network: ProtoMask

    def __init__(self, network: ProtoMask, *, l1: float, **settings: Any) -> None:
        super().__init__(network, **settings)
        self._l1 = l1

    def losses(self, batch: PackedBags) -> tuple[dict[str, Tensor], Tensor]:
        """See :func:`pipeline.model.losses.finetune_loss`."""
        network = self.network
        output = network.classify(network.features_of_pooled(batch.views), batch.lengths)
        terms = finetune_loss(
            output.logits,
            network.last_layer.weight,
            batch.labels,
            network.prototype_labels,
            class_weights=self._class_weights,
            l1=self._l1,
        )
        return terms, output.logits


class BlackBoxPhase(Phase):
    """Warm-up and joint phase of the black box: cross entropy only."""

    network: BlackBox

    def losses(self, batch: PackedBags) -> tuple[dict[str, Tensor], Tensor]:
        """Cross entropy of whole images."""
        pooled = self.network.backbone.pooled(batch.views) if batch.views.dim() == 4 else batch.views
        logits = self.network.classifier(pooled)
        return {"loss": functional.cross_entropy(logits, batch.labels, weight=self._class_weights)}, logits
