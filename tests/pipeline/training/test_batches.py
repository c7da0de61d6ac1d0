import io
import tarfile

import numpy as np
import pytest
import simplejpeg
import torch

from pipeline.artifacts import VIEWS, write_table
from pipeline.data.bags import BagReader
from pipeline.model.backbone import Backbone
from pipeline.runtime import Runtime
from pipeline.training import embedding
from pipeline.training.batches import ImageBags, PackedBags, PooledBags, loader, pack
from pipeline.training.embedding import decoding_workers, iterate_pooled, pooled_features

SIDE_PX = 32
LENGTHS = [3, 1, 2, 4, 1, 2, 3, 1, 2]
CPU = Runtime(device="cpu")


def write_crops(folder):
    """Bags of the train split, LENGTHS views each, the last view the whole image; pictures of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    with tarfile.open(folder / "train-00000.tar", "w") as tar:
        for bag_idx, length in enumerate(LENGTHS):
            for view_idx in range(length):
                pixels = rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
                content = simplejpeg.encode_jpeg(pixels, 95, "RGB", "444")
                member = tarfile.TarInfo(f"image-{bag_idx}.{view_idx:02d}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                rows.append(
                    {
                        "image_key": f"image-{bag_idx}",
                        "view_idx": view_idx,
                        "split": "train",
                        "label": bag_idx % 3,
                        "mask_idx": -1 if view_idx == length - 1 else view_idx,
                        "mask_box": [0, 0, 9, 9],
                        "box": [0, 0, 9, 9],
                        "area_px": 81,
                        "shard": "train-00000.tar",
                        "jpeg_offset": member.name,
                        "jpeg_size": len(content),
                        "mask_offset": None,
                        "mask_size": None,
                        "in_bag": True,
                    }
                )
    with tarfile.open(folder / "train-00000.tar") as tar:
        offsets = {member.name: member.offset_data for member in tar}
    rows = [{**row, "jpeg_offset": offsets[row["jpeg_offset"]]} for row in rows]
    write_table(folder / "views.parquet", rows, VIEWS, class_names=["a", "b", "c"], size_px=SIDE_PX)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "crops"
    write_crops(folder)
    return folder


@pytest.fixture
def reader(crops):
    return BagReader(crops, "train")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone("test_efficientnet")


def numbered_bags():
    """Pooled features that say which bag, view and version they belong to: [bag, view, version]."""
    pooled = torch.tensor(
        [[[bag, view, version] for version in (0, 1)] for bag, length in enumerate(LENGTHS) for view in range(length)]
    ).float()
    return PooledBags(pooled, LENGTHS, list(range(len(LENGTHS))))


def order_of(batches):
    return [label for batch in batches for label in batch.labels.tolist()]


def test_image_bags_are_the_readers_bags_in_its_order(reader):
    bags = ImageBags(reader)
    assert len(bags) == len(reader) == len(LENGTHS)
    for bag_idx in range(len(bags)):
        bag = bags[bag_idx]
        assert bag.views.dtype == torch.uint8
        assert torch.equal(bag.views, torch.from_numpy(reader.views(bag_idx)).permute(0, 3, 1, 2))
        assert bag.lengths.tolist() == [LENGTHS[bag_idx]]
        assert bag.labels.tolist() == [reader.labels[bag_idx]]


def test_pooled_bags_cut_the_packed_features_where_bags_end():
    bags = numbered_bags()
    assert len(bags) == len(LENGTHS)
    for bag_idx, length in enumerate(LENGTHS):
        bag = bags[bag_idx]
        assert bag.views[:, 0].tolist() == [[bag_idx, view, 0] for view in range(length)]
        assert bag.views[:, 1].tolist() == [[bag_idx, view, 1] for view in range(length)]
        assert (bag.lengths.tolist(), bag.labels.tolist()) == ([length], [bag_idx])


def test_packing_puts_bags_behind_one_another():
    bags = numbered_bags()
    packed = pack([bags[3], bags[0]])
    assert isinstance(packed, PackedBags)
    assert packed.views[:, 0].tolist() == [[3, 0, 0], [3, 1, 0], [3, 2, 0], [3, 3, 0], [0, 0, 0], [0, 1, 0], [0, 2, 0]]
    assert (packed.lengths.tolist(), packed.labels.tolist()) == ([4, 3], [3, 0])


@pytest.mark.parametrize("batch_images", [1, 2, 4, 9, 20])
def test_an_unshuffled_loader_keeps_the_order_and_leaves_nothing_out(batch_images):
    batches = list(loader(numbered_bags(), batch_images))
    assert order_of(batches) == list(range(9))
    assert [len(batch.labels) for batch in batches][:-1] == [batch_images] * (len(batches) - 1)
    assert torch.cat([batch.lengths for batch in batches]).tolist() == LENGTHS
    assert all(len(batch.views) == batch.lengths.sum() for batch in batches)


def test_a_shuffled_loader_gives_every_bag_once_in_a_new_order_each_epoch():
    shuffled = loader(numbered_bags(), 4, shuffle_seed=5)
    epochs = [order_of(shuffled) for _ in range(3)]
    assert all(sorted(order) == list(range(9)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_the_order_depends_on_the_seed_only_and_loading_draws_from_no_other_generator(shuffle_seed):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = loader(numbered_bags(), 4, shuffle_seed=shuffle_seed)
    epochs = [order_of(first) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = loader(numbered_bags(), 3, shuffle_seed=shuffle_seed)
    assert [order_of(again) for _ in range(3)] == epochs


@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_decoding_processes_change_neither_batches_nor_their_order(reader, shuffle_seed):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    epochs = []
    for num_workers in (0, 2):
        batches = loader(ImageBags(reader), 4, num_workers=num_workers, shuffle_seed=shuffle_seed)
        epochs.append([list(batches) for _ in range(3)])
    assert torch.equal(torch.get_rng_state(), state)
    for alone, in_processes in zip(*epochs, strict=True):
        for one, other in zip(alone, in_processes, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_pooled_features_are_the_backbones_of_every_view_in_the_readers_order(reader, backbone):
    pooled = pooled_features(backbone, reader, runtime=CPU, what="views", mirror=True)
    assert pooled.shape == (sum(LENGTHS), 2, backbone.num_channels)
    views = torch.cat([torch.from_numpy(reader.views(bag_idx)) for bag_idx in range(len(reader))]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.stack([backbone.pooled(views), backbone.pooled(views.flip(3))], dim=1)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)
    without = pooled_features(backbone, reader, runtime=CPU, what="views")
    torch.testing.assert_close(without, pooled[:, :1], atol=1e-5, rtol=1e-5)


def test_features_come_a_few_whole_bags_at_a_time(reader, backbone):
    chunks = list(iterate_pooled(backbone, reader, runtime=CPU, what="views"))
    assert len(chunks) > 1
    stops = np.cumsum(LENGTHS).tolist()
    assert set(np.cumsum([len(chunk) for chunk in chunks]).tolist()) <= set(stops)
    assert all(chunk.shape[1:] == (1, backbone.num_channels) for chunk in chunks)


@pytest.mark.parametrize(("images", "views"), [(1, 1), (2, 3), (9, 64)])
def test_features_do_not_depend_on_how_many_views_go_through_at_once(reader, backbone, monkeypatch, images, views):
    expected = pooled_features(backbone, reader, runtime=CPU, what="views")
    monkeypatch.setattr(embedding, "_IMAGES_PER_BATCH", images)
    monkeypatch.setattr(embedding, "_VIEWS_PER_STEP", {"cpu": views})
    torch.testing.assert_close(
        pooled_features(backbone, reader, runtime=CPU, what="views"), expected, atol=1e-5, rtol=1e-5
    )


def test_embedding_leaves_a_training_backbones_statistics_alone(reader, backbone):
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    pooled_features(backbone, reader, runtime=CPU, what="views")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_beside_a_network_on_the_cpu_nothing_else_decodes():
    assert decoding_workers(Runtime(device="cpu", workers=7)) == 0
