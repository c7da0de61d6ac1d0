import json

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.files import load_model, save_model
from pipeline.model.protomask import ProtoMask

ONE_EACH = torch.tensor([1, 1])
CLASS_NAMES = ["Gull", "Wren", "Ölkäfer"]


@pytest.fixture(scope="module")
def protomask():
    torch.manual_seed(0)
    network = ProtoMask(
        Backbone("test_efficientnet"), dim=6, prototype_labels=torch.tensor([0, 2, 1, 1]), num_classes=3, epsilon=1e-3
    )
    network.train()(torch.rand(4, 3, 64, 64), torch.tensor([3, 1]))  # normalisation statistics that are not the start's
    return network.eval()


@pytest.fixture(scope="module")
def blackbox():
    torch.manual_seed(0)
    network = BlackBox(Backbone("test_efficientnet"), num_classes=3)
    torch.nn.init.normal_(network.classifier.weight)
    return network.eval()


def save(folder, network):
    save_model(folder, network, class_names=CLASS_NAMES, size_px=64)
    return folder


def test_a_protomask_comes_back_with_the_same_outputs(tmp_path, protomask):
    loaded, description = load_model(save(tmp_path, protomask))
    views, lengths = torch.rand(5, 3, 64, 64), torch.tensor([2, 3])
    with torch.no_grad():
        expected, output = protomask(views, lengths), loaded(views, lengths)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.distance, expected.distance)
    assert loaded.prototype_labels.tolist() == [0, 2, 1, 1]
    assert not any(module.training for module in loaded.modules())
    assert (description["class_names"], description["size_px"]) == (CLASS_NAMES, 64)


def test_a_black_box_comes_back_with_the_same_outputs(tmp_path, blackbox):
    loaded, description = load_model(save(tmp_path, blackbox))
    views = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(
            loaded.logits_of(loaded.encode(views), ONE_EACH), blackbox.logits_of(blackbox.encode(views), ONE_EACH)
        )
    assert description["class_names"] == CLASS_NAMES


def test_saving_twice_gives_equal_bytes_and_so_does_saving_what_was_loaded(tmp_path, protomask):
    first, second = save(tmp_path / "first", protomask), save(tmp_path / "second", protomask)
    third = save(tmp_path / "third", load_model(first)[0])
    names = sorted(path.name for path in first.iterdir())
    assert names == ["model.json", "model.safetensors"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()


def test_loading_leaves_the_random_generator_to_the_seed(tmp_path, protomask):
    """A model is built with random weights before they are replaced; that must not decide anything."""
    save(tmp_path, protomask)
    torch.manual_seed(1)
    one, _ = load_model(tmp_path)
    torch.manual_seed(2)
    other, _ = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def one_line_from(folder):
    with pytest.raises(PipelineError) as raised:
        load_model(folder)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-100]), id="truncated"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:5]), id="nearly-empty"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 4000), id="garbage"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, protomask, name, damage):
    damage(save(tmp_path, protomask) / name)
    assert one_line_from(tmp_path).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    "change",
    [{"backbone": "test_resnet"}, {"settings": {"dim": 7}}, {"settings": {"prototype_labels": [0, 1]}}],
)
def test_tensors_that_do_not_fit_their_description_are_one_line(tmp_path, protomask, change):
    description = save(tmp_path, protomask) / "model.json"
    content = json.loads(description.read_text())
    if "settings" in change:
        change = {"settings": content["settings"] | change["settings"]}
    description.write_text(json.dumps(content | change))
    assert one_line_from(tmp_path).startswith(str(tmp_path / "model.safetensors"))


def test_settings_that_lack_something_are_one_line(tmp_path, protomask):
    description = save(tmp_path, protomask) / "model.json"
    content = json.loads(description.read_text())
    del content["settings"]["pooling"]
    description.write_text(json.dumps(content))
    assert "pooling" in one_line_from(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '"protomask"', '{"head": "protomask"}'])
def test_a_description_that_lacks_what_is_needed_is_one_line(tmp_path, protomask, content):
    (save(tmp_path, protomask) / "model.json").write_text(content)
    assert one_line_from(tmp_path).startswith(str(tmp_path / "model.json"))
