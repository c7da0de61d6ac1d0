import errno
import io
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from pipeline.artifacts import VIEWS, write_table
from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.runtime import Runtime
from pipeline.training import embedding, feature_store
from pipeline.training.batches import EncodedBags, EpochOrder, ImageBags, PackedBags, loader, pack
from pipeline.training.embedding import decoding_workers, encoded_views, iterate_encoded

SIDE_PX = 32
LENGTHS = [3, 1, 2, 4, 1, 2, 3, 1, 2]
CPU = Runtime(device="cpu")


def write_crops(folder, seed=0):
    """Bags of the train split, LENGTHS views each, the last view the whole image; pictures of noise."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
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


class OnGrids(BlackBox):
    """Asks for the places of the grid."""

    grid = True


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return BlackBox(Backbone("test_efficientnet"), num_classes=3)


@pytest.fixture(scope="module")
def on_grids(network):
    return OnGrids(network.backbone, num_classes=3)


@pytest.fixture
def cached(tmp_path):
    return Runtime(device="cpu", cache=tmp_path / "cache")


def numbered_bags():
    """Encoded views that say which bag, view and version they belong to: [bag, view, version]."""
    versions = [
        torch.tensor([[bag, view, version] for bag, length in enumerate(LENGTHS) for view in range(length)]).float()
        for version in (0, 1)
    ]
    return EncodedBags(versions, LENGTHS, list(range(len(LENGTHS))))


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


def test_encoded_bags_cut_the_packed_views_where_bags_end():
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


def epochs_of(batches, num):
    """The orders of the first epochs, asked for as Lightning does."""
    orders = []
    for epoch in range(num):
        if batches.sampler is not None and hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(epoch)
        orders.append(order_of(batches))
    return orders


def test_a_shuffled_loader_gives_every_bag_once_in_a_new_order_each_epoch():
    epochs = epochs_of(loader(numbered_bags(), 4, order=EpochOrder([0] * 9, 5)), 3)
    assert all(sorted(order) == list(range(9)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


@pytest.mark.parametrize("seed", [None, 5])
def test_the_order_depends_on_seed_and_epoch_only_and_loading_draws_from_no_other_generator(seed):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = loader(numbered_bags(), 4, order=None if seed is None else EpochOrder([0] * 9, seed))
    epochs = epochs_of(first, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = loader(numbered_bags(), 3, order=None if seed is None else EpochOrder([0] * 9, seed))
    assert epochs_of(again, 3) == epochs
    if seed is not None:
        again.sampler.set_epoch(1)  # an epoch that is run again is the same
        assert order_of(again) == epochs[1]
        other = loader(numbered_bags(), 3, order=EpochOrder([0] * 9, seed + 1))
        assert epochs_of(other, 3) != epochs


@pytest.mark.parametrize("seed", [None, 5])
def test_decoding_processes_change_neither_batches_nor_their_order(reader, seed):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    epochs = []
    for num_workers in (0, 2):
        order = None if seed is None else EpochOrder(reader.labels, seed)
        batches = loader(ImageBags(reader), 4, num_workers=num_workers, order=order)
        found = []
        for epoch in range(2):
            if order is not None:
                order.set_epoch(epoch)
            found.append(list(batches))
        epochs.append(found)
    assert torch.equal(torch.get_rng_state(), state)
    for alone, in_processes in zip(*epochs, strict=True):
        for one, other in zip(alone, in_processes, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


RARE = [0] * 12 + [1] * 2 + [2] * 5  # class of each bag


def test_balanced_orders_draw_every_class_equally_often_and_no_bag_again_before_all_of_its_class():
    order = EpochOrder(RARE, 3, "class_balanced")
    one_more = set()
    for epoch in range(20):
        order.set_epoch(epoch)
        drawn = list(order)
        assert len(drawn) == len(order) == len(RARE)
        counts = np.bincount([RARE[idx] for idx in drawn], minlength=3)
        assert sorted(counts.tolist()) == [6, 6, 7]  # 19 draws of 3 classes
        one_more.add(int(counts.argmax()))
        for label, num in enumerate(counts):
            of_bag = [drawn.count(idx) for idx, known in enumerate(RARE) if known == label]
            assert sum(of_bag) == num
            assert max(of_bag) - min(of_bag) <= 1
    assert one_more == {0, 1, 2}  # the remainder goes to all of them by turns of chance


def test_balanced_orders_of_equal_classes_take_every_bag_once():
    order = EpochOrder([0, 1] * 6, 0, "class_balanced")
    assert sorted(order) == list(range(12))


@pytest.mark.parametrize("where", ["memory", "files"])
def test_encoded_views_are_the_backbones_of_every_view_in_the_readers_order(reader, network, cached, where):
    runtime = CPU if where == "memory" else cached
    views = torch.cat([torch.from_numpy(reader.views(bag_idx)) for bag_idx in range(len(reader))]).permute(0, 3, 1, 2)
    plain, mirrored = encoded_views(network, reader, runtime=runtime, what="views", mirror=True)
    assert plain.shape == (sum(LENGTHS), network.backbone.num_channels)
    with torch.no_grad():
        torch.testing.assert_close(plain, network.backbone.pooled(views), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mirrored, network.backbone.pooled(views.flip(3)), atol=1e-5, rtol=1e-5)
    (alone,) = encoded_views(network, reader, runtime=runtime, what="views")
    assert torch.equal(alone, plain)


def test_mirror_images_on_a_grid_are_mirrored_back_so_that_places_correspond(reader, on_grids):
    views = torch.cat([torch.from_numpy(reader.views(bag_idx)) for bag_idx in range(len(reader))]).permute(0, 3, 1, 2)
    plain, mirrored = encoded_views(on_grids, reader, runtime=CPU, what="views", mirror=True)
    assert plain.dim() == 4
    with torch.no_grad():
        torch.testing.assert_close(plain, on_grids.backbone(views), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mirrored, on_grids.backbone(views.flip(3)).flip(3), atol=1e-5, rtol=1e-5)


def count_encoding(monkeypatch, network):
    """The number of views that each call of the backbone sees, from now on."""
    seen = []
    encode = type(network).encode
    monkeypatch.setattr(type(network), "encode", lambda self, views: (seen.append(len(views)), encode(self, views))[1])
    return seen


def test_with_a_cache_nothing_is_encoded_twice_and_the_bits_are_those_without(reader, network, cached, monkeypatch):
    without = encoded_views(network, reader, runtime=CPU, what="views", mirror=True)
    seen = count_encoding(monkeypatch, network)
    first = encoded_views(network, reader, runtime=cached, what="views", mirror=True)
    assert sum(seen) == 2 * sum(LENGTHS)
    second = encoded_views(network, reader, runtime=cached, what="views", mirror=True)
    (alone,) = encoded_views(network, reader, runtime=cached, what="views")
    chunks = [chunk for (chunk,) in iterate_encoded(network, reader, runtime=cached, what="views")]
    assert sum(seen) == 2 * sum(LENGTHS)
    assert len(chunks) > 1
    for found in (first, second, (alone,), (torch.cat(chunks),)):
        assert all(torch.equal(one, other) for one, other in zip(found, without, strict=False))


def test_going_through_views_for_the_first_time_keeps_them_too(reader, network, cached, monkeypatch):
    seen = count_encoding(monkeypatch, network)
    chunks = [chunk for (chunk,) in iterate_encoded(network, reader, runtime=cached, what="views")]
    (found,) = encoded_views(network, reader, runtime=cached, what="views")
    assert sum(seen) == sum(LENGTHS)
    assert torch.equal(found, torch.cat(chunks))


def test_stopping_half_way_keeps_nothing(reader, network, cached, monkeypatch):
    chunks = iterate_encoded(network, reader, runtime=cached, what="views")
    next(chunks)
    chunks.close()
    assert list((cached.cache / "features").iterdir()) == []
    seen = count_encoding(monkeypatch, network)
    encoded_views(network, reader, runtime=cached, what="views")
    assert sum(seen) == sum(LENGTHS)


@pytest.mark.parametrize("what", ["weights", "normalisation statistics", "views", "grid"])
def test_what_decides_the_content_decides_the_file(reader, network, on_grids, cached, monkeypatch, what, tmp_path):
    encoded_views(network, reader, runtime=cached, what="views")
    torch.manual_seed(0)
    other = BlackBox(Backbone("test_efficientnet"), num_classes=3)
    other.backbone.load_state_dict(network.backbone.state_dict())
    if what == "weights":
        with torch.no_grad():
            next(other.backbone.parameters()).mul_(1.01)
    elif what == "normalisation statistics":
        other.backbone.state_dict()["_network.bn1.running_mean"] += 1e-3
    elif what == "grid":
        other = on_grids
    else:
        write_crops(tmp_path / "crops", seed=1)
        reader = BagReader(tmp_path / "crops", "train")
    expected = encoded_views(other, reader, runtime=CPU, what="views")
    seen = count_encoding(monkeypatch, other)
    found = encoded_views(other, reader, runtime=cached, what="views")
    assert sum(seen) == sum(LENGTHS)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty"])
def test_a_damaged_file_is_computed_again(reader, network, cached, damage):
    (expected,) = encoded_views(network, reader, runtime=CPU, what="views")
    encoded_views(network, reader, runtime=cached, what="views")
    (path,) = (cached.cache / "features").glob("*.npy")
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-5] ^= 1
    path.write_bytes(
        bytes(content)
        if damage == "flipped bit"
        else bytes(content[: len(content) // 2 if damage == "cut short" else 0])
    )
    (found,) = encoded_views(network, reader, runtime=cached, what="views")
    assert torch.equal(found, expected)


def test_files_beyond_the_limit_are_deleted_those_used_least_recently_first(reader, network, on_grids, cached):
    (plain,) = encoded_views(network, reader, runtime=cached, what="views")
    (path,) = (cached.cache / "features").glob("*.npy")
    os.utime(path, (1, 1))
    small = Runtime(device="cpu", cache=cached.cache, cache_gib=path.stat().st_size / 2**30)
    encoded_views(on_grids, reader, runtime=cached, what="views")  # twice as large, or more
    assert path.exists()
    encoded_views(on_grids, reader, runtime=small, what="views", mirror=True)
    assert not path.exists()
    assert torch.isfinite(plain).all()  # mapped files live on until they are let go


def test_a_full_disk_is_one_line_and_leaves_nothing(reader, network, cached, monkeypatch):
    def full(self, versions):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_store.Writer, "add", full)
    with pytest.raises(
        PipelineError, match=r"features: cannot be written \(No space left on device\); free some space"
    ):
        encoded_views(network, reader, runtime=cached, what="views")
    assert list((cached.cache / "features").iterdir()) == []


def test_an_array_that_cannot_be_mapped_is_not_taken_for_a_damaged_one(reader, network, cached, monkeypatch):
    encoded_views(network, reader, runtime=cached, what="views")

    def no_room(path, *, mmap_mode):
        assert mmap_mode == "r"  # another mode asks for as much memory as the file is long
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(np, "load", no_room)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        encoded_views(network, reader, runtime=cached, what="views")
    assert len(list((cached.cache / "features").glob("*.npy"))) == 1


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(reader, network, cached):
    folder = cached.cache / "features"
    with subprocess.Popen(["true"]) as process:
        process.wait()
    host = feature_store._host()
    leftover, running, old = (
        folder / f".writing.{name}" for name in (f"{host}.{process.pid}.x", f"{host}.{os.getppid()}.x", "abc.1.x")
    )
    for work in (leftover, running, old):
        work.mkdir(parents=True)
        (work / "0.npy").write_bytes(b"half")
    os.utime(old, (1, 1))
    encoded_views(network, reader, runtime=cached, what="views")
    assert [work.exists() for work in (leftover, running, old)] == [False, True, False]


def _gone(folder, what):
    """A file that was there when the folder was listed."""
    return [folder / f"{what.split('*')[0]}gone.npy"] if what.endswith(".npy") else []


def test_a_file_that_another_process_deletes_meanwhile_does_not_stop_a_writer(reader, network, cached, monkeypatch):
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, what: [*glob(self, what), *_gone(self, what)])
    encoded_views(network, reader, runtime=cached, what="views")


def test_features_come_a_few_whole_bags_at_a_time(reader, network):
    chunks = [chunk for (chunk,) in iterate_encoded(network, reader, runtime=CPU, what="views")]
    assert len(chunks) > 1
    stops = np.cumsum(LENGTHS).tolist()
    assert set(np.cumsum([len(chunk) for chunk in chunks]).tolist()) <= set(stops)
    assert all(chunk.shape[1:] == (network.backbone.num_channels,) for chunk in chunks)


@pytest.mark.parametrize(("images", "views"), [(1, 1), (2, 3), (9, 64)])
def test_features_do_not_depend_on_how_many_views_go_through_at_once(reader, network, monkeypatch, images, views):
    (expected,) = encoded_views(network, reader, runtime=CPU, what="views")
    monkeypatch.setattr(embedding, "_IMAGES_PER_BATCH", images)
    monkeypatch.setattr(embedding, "VIEWS_PER_STEP", {"cpu": views})
    (found,) = encoded_views(network, reader, runtime=CPU, what="views")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_embedding_leaves_a_training_backbones_statistics_alone(reader, network):
    backbone = network.backbone
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    encoded_views(network, reader, runtime=CPU, what="views")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_beside_a_network_on_the_cpu_nothing_else_decodes():
    assert decoding_workers(Runtime(device="cpu", workers=7)) == 0
