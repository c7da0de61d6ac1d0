"""Small networks with prototypes, of every head, and bags as their backbone might encode them."""

import torch

from pipeline.model.backbone import Backbone
from pipeline.model.pipnet import PipNet
from pipeline.model.protomask import ProtoMask
from pipeline.model.protopnet import ProtoPNet
from pipeline.model.protopool import ProtoPool

HEADS_WITH_PROTOTYPES = ("protomask", "protopnet", "pipnet", "protopool")
LENGTHS = [3, 1, 4, 2]


def network_of(head):
    """Build a network of HEAD with six prototypes for three classes, untrained."""
    torch.manual_seed(0)
    backbone = Backbone("test_efficientnet")
    labels = torch.arange(3).repeat_interleave(2)
    if head == "protomask":
        network = ProtoMask(backbone, dim=5, prototype_labels=labels, num_classes=3, epsilon=1e-4)
    elif head == "protopnet":
        network = ProtoPNet(backbone, dim=5, prototype_labels=labels, num_classes=3, epsilon=1e-4)
    elif head == "pipnet":
        network = PipNet(backbone, num_prototypes=6, num_classes=3)
    else:
        network = ProtoPool(backbone, dim=5, num_prototypes=6, num_classes=3, slots_per_class=2, epsilon=1e-4)
    return network.eval()


def encoded_of(network):
    """Encoded views of bags of LENGTHS."""
    generator = torch.Generator().manual_seed(1)
    shape = (sum(LENGTHS), network.backbone.num_channels, *((2, 2) if network.grid else ()))
    return torch.rand(shape, generator=generator)
