import math

import pytest
import torch
from torch import nn

from pipeline.data.boxes import Box
from pipeline.errors import PipelineError
from pipeline.model.backbone import Backbone
from pipeline.model.pipnet import PipNet
from pipeline.model.protomask import ProtoMask
from pipeline.model.protopnet import ProtoPNet
from pipeline.model.protopool import ProtoPool
from pipeline.saliency import prp
from pipeline.saliency.prp import LARGEST_LOSS, distance_shares, prp_maps, relevance_in_views
from tests.pipeline.saliency.plain_reader import PlainReader

DIM, NUM_PROTOTYPES = 6, 4


class Planted(Backbone):
    """A backbone that is any module from normalised pixels to a grid."""

    def __init__(self, network, num_channels):
        nn.Module.__init__(self)
        self.num_channels = num_channels
        self._network = network
        self._steps = None
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.2))

    def forward(self, views):
        return self._network(self._normal(views))


class Quadrant(nn.Module):
    """Sees the upper left quadrant alone, at every place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, pixels):
        half = pixels.shape[-1] // 2
        return self.conv(pixels[:, :, :half, :half]).relu()


def protomask(backbone, seed=0):
    torch.manual_seed(seed)
    labels = torch.arange(NUM_PROTOTYPES)
    network = ProtoMask(backbone, dim=DIM, prototype_labels=labels, num_classes=NUM_PROTOTYPES, epsilon=1e-4)
    return network.eval()


def timm_backbone(name):
    torch.manual_seed(0)
    backbone = Backbone(name)
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # as if trained: some factors are negative
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return backbone


def random_views(num, side_px):
    return torch.randint(
        0, 256, (num, 3, side_px, side_px), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def relevance_of(network, views, place=None):
    pairs = torch.arange(len(views))
    place = torch.zeros_like(pairs) if place is None else place
    return relevance_in_views(network, views, place, pairs % NUM_PROTOTYPES, device="cpu")


def test_channels_share_by_the_inverse_square_of_their_difference():
    generator = torch.Generator().manual_seed(0)
    features, vectors = torch.rand(3, 5, generator=generator), torch.rand(3, 5, generator=generator)
    shares = distance_shares(features, vectors)
    for pair in range(3):
        closeness = [1 / (features[pair, channel].item() - vectors[pair, channel].item()) ** 2 for channel in range(5)]
        for channel in range(5):
            assert shares[pair, channel].item() == pytest.approx(closeness[channel] / sum(closeness), rel=1e-4)


def test_channels_that_agree_share_everything():
    features = torch.tensor([[0.2, 0.5, 0.7, 0.9], [0.2, 0.5, 0.7, 0.9]])
    vectors = torch.tensor([[0.1, 0.5, 0.7, 0.4], [0.2, 0.5, 0.7, 0.9]])
    expected = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(distance_shares(features, vectors), expected)


def plain_shares(inputs, weights, relevance, *, low=0.0, high=0.0):
    """Of one linear layer: positive contributions share; where there are none, all share equally.

    Inputs with bounds contribute what they are above the lowest that they could contribute.
    """
    shares = [0.0] * len(inputs)
    for row, own in zip(weights, relevance, strict=True):
        positive = [
            max((value - (low if weight > 0 else high)) * weight, 0.0)
            for value, weight in zip(inputs, row, strict=True)
        ]
        total = sum(positive)
        for idx in range(len(inputs)):
            shares[idx] += own * (positive[idx] / total if total > 0 else 1 / len(inputs))
    return shares


def test_relevance_is_that_of_a_plain_pass_through_every_layer():
    """Convolutions, a normalisation with factors below 0, a residual sum, an average over places: each rule by hand."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 1)
            self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

        def forward(self, pixels):
            x = self.stem(pixels)
            shortcut = x
            x = self.act(self.norm(self.branch(x)))
            x += shortcut
            return x

    torch.manual_seed(1)
    backbone = Planted(Residual(), 4)
    nn.init.normal_(backbone._network.norm.weight)
    nn.init.uniform_(backbone._network.norm.running_var, 0.5, 1.5)
    network = protomask(backbone)
    view = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = relevance_in_views(network, view, torch.tensor([0]), torch.tensor([2]), device="cpu")
    layers = backbone._network
    factor = layers.norm.weight / (layers.norm.running_var + layers.norm.eps).sqrt()
    assert (factor < 0).any()
    normal = (view - 0.4) / 0.2
    with torch.no_grad():
        stem = layers.stem(normal)
        branch = layers.norm(layers.branch(stem)).relu()
        grid = stem + branch
        pooled = grid.mean(dim=(2, 3))[0]
        z = network.add_on(pooled).sigmoid()
    start = distance_shares(z[None], network.prototypes[2:3].detach())[0].tolist()
    of_pooled = plain_shares(pooled.tolist(), network.add_on.weight.tolist(), start)
    expected = torch.zeros(4, 4)
    for row in range(2):
        for column in range(2):
            of_grid = []
            for channel in range(4):
                sizes = grid[0, channel].abs()
                of_grid.append(of_pooled[channel] * (sizes[row, column] / sizes.sum()).item())
            short, long = stem[0, :, row, column].tolist(), branch[0, :, row, column].tolist()
            to_short = [r * abs(s) / (abs(s) + abs(b)) for r, s, b in zip(of_grid, short, long, strict=True)]
            to_branch = [r * abs(b) / (abs(s) + abs(b)) for r, s, b in zip(of_grid, short, long, strict=True)]
            merged = layers.branch.weight[:, :, 0, 0] * factor[:, None]
            from_branch = plain_shares(short, merged.tolist(), to_branch)
            of_stem = [a + b for a, b in zip(to_short, from_branch, strict=True)]
            patch = normal[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten().tolist()
            weights = layers.stem.weight.flatten(1).tolist()
            of_patch = plain_shares(patch, weights, of_stem, low=-0.4 / 0.2, high=0.6 / 0.2)
            of_pixels = torch.tensor(of_patch).view(3, 2, 2).sum(dim=0)
            expected[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = of_pixels
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "side_px"),
    [
        ("tf_efficientnet_lite0", 64),
        ("test_efficientnet", 64),  # with squeeze-and-excitation
        ("resnet18", 64),
        ("test_resnet", 64),
        ("test_convnext", 64),
        ("test_vit", 64),
    ],
)
def test_what_a_view_starts_with_is_what_its_pixels_get(name, side_px):
    network = protomask(timm_backbone(name))
    relevance = relevance_of(network, random_views(5, side_px))
    assert relevance.shape == (5, side_px, side_px)
    torch.testing.assert_close(relevance.sum(dim=(1, 2)), torch.ones(5), rtol=0, atol=LARGEST_LOSS)
    assert (relevance >= 0).all()
    assert relevance[0].std() > 0


@pytest.mark.parametrize("value", [0, 255])
def test_views_of_one_extreme_colour_lose_nothing(value):
    relevance = relevance_of(
        protomask(timm_backbone("test_efficientnet")), torch.full((2, 3, 64, 64), value, dtype=torch.uint8)
    )
    torch.testing.assert_close(relevance.sum(dim=(1, 2)), torch.ones(2), rtol=0, atol=LARGEST_LOSS)


def test_a_backbone_that_looks_at_one_quadrant_has_all_relevance_there():
    torch.manual_seed(0)
    relevance = relevance_of(protomask(Planted(Quadrant(), 8)), random_views(4, 32))
    torch.testing.assert_close(relevance[:, :16, :16].sum(dim=(1, 2)), torch.ones(4))
    assert relevance.sum().item() == pytest.approx(4.0)


@pytest.mark.parametrize("head", ["protopnet", "protopool", "pipnet"])
def test_heads_that_compare_places_start_from_the_place(head):
    """Places that see patches of their own: all relevance lies in the patch of the place."""
    torch.manual_seed(0)
    backbone = Planted(nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU()), 8)
    common = {"num_classes": NUM_PROTOTYPES}
    if head == "protopnet":
        network = ProtoPNet(backbone, dim=DIM, prototype_labels=torch.arange(NUM_PROTOTYPES), epsilon=1e-4, **common)
    elif head == "protopool":
        network = ProtoPool(backbone, dim=DIM, num_prototypes=NUM_PROTOTYPES, slots_per_class=2, epsilon=1e-4, **common)
    else:
        network = PipNet(backbone, num_prototypes=NUM_PROTOTYPES, **common)
    place = torch.tensor([0, 5, 11, 15])
    relevance = relevance_of(network.eval(), random_views(4, 32), place)
    for idx, own in enumerate(place.tolist()):
        top, left = 8 * (own // 4), 8 * (own % 4)
        assert relevance[idx, top : top + 8, left : left + 8].sum().item() == pytest.approx(1.0, abs=1e-5)
        assert relevance[idx].sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("step", [1, 3])
def test_relevance_does_not_depend_on_how_views_are_batched(monkeypatch, step):
    network, views = protomask(timm_backbone("test_efficientnet")), random_views(7, 64)
    at_once = relevance_of(network, views)
    monkeypatch.setitem(prp._PAIRS_PER_STEP, "cpu", step)
    torch.testing.assert_close(relevance_of(network, views), at_once, rtol=1e-3, atol=1e-7)


def test_bytes_and_floats_are_the_same_views():
    network, views = protomask(timm_backbone("test_resnet")), random_views(2, 64)
    torch.testing.assert_close(relevance_of(network, views.float() / 255), relevance_of(network, views))


def snapshot(network):
    return (
        {key: value.clone() for key, value in network.state_dict().items()},
        [module.training for module in network.modules()],
        [(value.requires_grad, value.grad) for value in network.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()],
        [getattr(module, "inplace", None) for module in network.modules()],
    )


def assert_same(found, expected):
    assert found[0].keys() == expected[0].keys()
    for key, value in expected[0].items():
        assert torch.equal(found[0][key], value), key
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_the_network_stays_as_it_was(monkeypatch, is_interrupted):
    network, views = protomask(timm_backbone("test_efficientnet")).train(), random_views(2, 64)
    network.backbone.train_last(2)
    before = snapshot(network)
    if is_interrupted:

        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(prp, "_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            relevance_of(network, views)
    else:
        relevance_of(network, views)
    assert_same(snapshot(network), before)


class Odd(nn.Module):
    """Does something in the middle that has no rule."""

    def __init__(self, change):
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, 8, 4, stride=4), change

    def forward(self, pixels):
        return self.change(self.conv(pixels))


def squared(grid):
    return grid**2


def added_in_place(grid):
    summed = grid.relu() + 1
    summed.add_(grid)
    return summed


@pytest.mark.parametrize(("change", "why"), [(squared, "lacks"), (added_in_place, "in place")])
def test_what_relevance_cannot_be_followed_through_is_refused_with_a_way_out(change, why):
    torch.manual_seed(0)
    with pytest.raises(PipelineError, match=f"{why}.*leave prp out of evaluate.saliency"):
        relevance_of(protomask(Planted(Odd(change), 8)), random_views(2, 32))


def test_maps_have_the_relevance_of_each_rank_s_view_in_its_box():
    network = protomask(timm_backbone("test_efficientnet"))
    boxes = [[Box(0, 0, 40, 30), Box(10, 5, 20, 25)], [Box(3, 3, 30, 30)]]
    reader, sizes = PlainReader(boxes, 32), [(40, 30), (30, 33)]
    pixels = random_views(4, 32).unflatten(0, (2, 2))
    prototype, element = torch.tensor([[2, 0], [1, 3]]), torch.tensor([[1, 0], [0, 0]])
    maps = prp_maps(network, reader, [0, 1], sizes, pixels, prototype, element, 1, 24, device="cpu")
    assert maps.shape == (2, 2, 24, 24)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 2), rtol=0, atol=LARGEST_LOSS)
    outside = torch.ones(24, 24, dtype=torch.bool)
    outside[4:20, 6:12] = False  # the second view of the first image
    assert (maps[0, 0][outside] == 0).all()
    assert math.isclose(maps[0, 0, 4:20, 6:12].sum().item(), 1.0, abs_tol=LARGEST_LOSS)
    alone = prp_maps(network, reader, [1], sizes[1:], pixels[1:], prototype[1:], element[1:], 1, 24, device="cpu")
    torch.testing.assert_close(alone[0], maps[1], rtol=1e-3, atol=1e-7)
