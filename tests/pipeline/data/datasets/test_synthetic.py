import pickle
from itertools import combinations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from pipeline.data.boxes import box_of_mask
from pipeline.data.datasets.bird_renderer import ALL_LAYERS, BODY, Rendering, render, render_masks
from pipeline.data.datasets.bird_species import PART_NAMES, SPECIES, Species, differing_parts
from pipeline.data.datasets.interface import DatasetError, ImageRecord
from pipeline.data.datasets.synthetic import SyntheticBirds
from pipeline.data.images import decode_image
from pipeline.params import SyntheticParams

# anti-aliasing and the photograph's blur reach one pixel each
BORDER_PX = 2
SCENE = (0, 7)
SIZE_PX = 192


@pytest.fixture
def params() -> SyntheticParams:
    return SyntheticParams(num_species=10, train_per_species=4, test_per_species=2, image_size_px=128)


def parts_of(rendering: Rendering, names: tuple[str, ...]) -> np.ndarray:
    ids = [PART_NAMES.index(name) + 1 for name in names]
    return np.isin(rendering.part_ids, ids)


def changed(one: Rendering, other: Rendering) -> np.ndarray:
    return (one.image != other.image).any(axis=2)


def with_border(mask: np.ndarray) -> np.ndarray:
    return binary_dilation(mask, np.ones((3, 3)), iterations=BORDER_PX)


def test_listing_counts_images_per_species_and_split(params):
    listing = SyntheticBirds(params, seed=0).listing()
    assert len(listing.class_names) == 10
    assert listing.class_names[1] == "Red-breasted Fieldling"
    assert listing.part_names == PART_NAMES
    counted = {}
    for record in listing.records:
        counted[record.label, record.split] = counted.get((record.label, record.split), 0) + 1
    assert counted == {(label, split): num for label in range(10) for split, num in (("train", 4), ("test", 2))}
    assert len({record.image_key for record in listing.records}) == 60
    assert listing.records[0].image_key == "bird_00_train_0000"


def test_the_same_image_whatever_the_order_the_instance_and_the_rest_of_the_data_set(params):
    birds = SyntheticBirds(params, seed=5)
    records = birds.listing().records[:6]
    forwards = [birds.image_bytes(record) for record in records]
    bigger = params.model_copy(update={"num_species": 20, "train_per_species": 9})
    for other in (birds, pickle.loads(pickle.dumps(birds)), SyntheticBirds(bigger, seed=5)):
        assert [other.image_bytes(record) for record in reversed(records)] == forwards[::-1]
    assert len(set(forwards)) == 6


def test_the_seed_changes_every_image(params):
    one, other = SyntheticBirds(params, seed=0), SyntheticBirds(params, seed=1)
    records = one.listing().records[:4]
    assert all(one.image_bytes(record) != other.image_bytes(record) for record in records)


def test_train_and_test_images_of_one_number_differ(params):
    birds = SyntheticBirds(params, seed=0)
    train, test = (birds.image_bytes(ImageRecord(f"bird_02_{split}_0001", "", 2, split)) for split in ("train", "test"))
    assert train != test


@pytest.mark.parametrize("size_px", [96, 200])
def test_images_are_square_pictures_of_the_wanted_size(params, size_px):
    birds = SyntheticBirds(params.model_copy(update={"image_size_px": size_px}), seed=0)
    record = birds.listing().records[3]
    assert decode_image(birds.image_bytes(record), record.file_name).shape == (size_px, size_px, 3)
    assert birds.object_mask(record).shape == birds.part_mask(record).shape == (size_px, size_px)


def test_boxes_and_part_locations_agree_with_the_masks(params):
    birds = SyntheticBirds(params, seed=0)
    num_parts = 0
    for record in birds.listing().records:
        object_mask, part_mask = birds.object_mask(record), birds.part_mask(record)
        assert record.object_box == box_of_mask(object_mask)
        assert not (part_mask > 0)[~object_mask].any()
        assert (object_mask & (part_mask == 0)).any()  # the body is of the object, but no part
        assert [part.part_idx + 1 for part in record.parts] == np.unique(part_mask[part_mask > 0]).tolist()
        for part in record.parts:
            assert part_mask[int(part.y), int(part.x)] == part.part_idx + 1
            num_parts += 1
    assert num_parts > 60 * 6  # nearly all parts are seen nearly always


def test_a_record_of_another_data_set_is_refused_by_name(params):
    birds = SyntheticBirds(params, seed=0)
    for key in ("cub_001", "bird_10_train_0000"):
        with pytest.raises(DatasetError, match=key):
            birds.image_bytes(ImageRecord(key, "", 0, "train"))


def test_masks_without_the_image_are_those_of_the_image():
    rendering = render(SPECIES[13], SCENE, SIZE_PX)
    part_ids, object_mask = render_masks(SPECIES[13], SCENE, SIZE_PX)
    assert (part_ids == rendering.part_ids).all()
    assert (object_mask == rendering.object_mask).all()


def test_any_two_species_differ_in_more_than_eyes_and_legs_and_have_names_of_their_own():
    pairs = list(combinations(SPECIES, 2))
    assert len(pairs) == 190
    for one, other in pairs:
        assert set(differing_parts(one, other)) - {"eye", "leg"}
        assert differing_parts(one, other) == differing_parts(other, one)
    assert len({species.name for species in SPECIES}) == 20


def test_every_species_has_a_neighbour_that_differs_in_one_or_two_parts_among_the_first_ones():
    for label in range(1, len(SPECIES)):
        assert min(len(differing_parts(SPECIES[label], other)) for other in SPECIES[:label]) <= 2
    near = [len(differing_parts(one, other)) <= 2 for one, other in combinations(SPECIES[:10], 2)]
    assert np.mean(near) > 0.5


def test_differing_parts_are_in_the_order_of_part_names():
    assert differing_parts(Species("a", tail="long", beak="long"), Species("b")) == ("beak", "tail")


@pytest.mark.parametrize("scene", [SCENE, (1, 2, 3)])
def test_two_species_in_one_scene_differ_at_the_pixels_of_the_parts_in_which_they_differ_and_nowhere_else(scene):
    renderings = [render(species, scene, SIZE_PX) for species in SPECIES]
    for one, other in combinations(range(20), 2):
        names = differing_parts(SPECIES[one], SPECIES[other])
        known = parts_of(renderings[one], names) | parts_of(renderings[other], names)
        difference = changed(renderings[one], renderings[other])
        assert not (difference & ~with_border(known)).any(), (SPECIES[one].name, SPECIES[other].name)


@pytest.mark.parametrize("scene", [SCENE, (1, 2, 3)])
def test_some_differing_part_of_any_two_species_covers_a_visible_share_of_the_bird(scene):
    renderings = [render(species, scene, SIZE_PX) for species in SPECIES]
    for one, other in combinations(range(20), 2):
        strong = np.abs(renderings[one].image.astype(int) - renderings[other].image).max(axis=2) > 40
        assert strong.sum() > 0.01 * renderings[one].object_mask.sum(), (SPECIES[one].name, SPECIES[other].name)


@pytest.mark.parametrize("species", [SPECIES[0], SPECIES[9], SPECIES[14], SPECIES[17]], ids=lambda s: s.name)
@pytest.mark.parametrize("part", PART_NAMES)
def test_leaving_a_part_out_changes_that_parts_pixels_and_no_others(species, part):
    whole = render(species, SCENE, SIZE_PX)
    without = render(species, SCENE, SIZE_PX, ALL_LAYERS - {part})
    own = parts_of(whole, (part,))
    assert not parts_of(without, (part,)).any()
    assert (whole.part_ids == without.part_ids)[~own].all()
    difference = changed(whole, without)
    assert difference[own].mean() > 0.5
    assert not (difference & ~with_border(own)).any()


def test_a_part_alone_stands_before_the_same_scenery():
    whole = render(SPECIES[14], SCENE, SIZE_PX)
    alone = render(SPECIES[14], SCENE, SIZE_PX, {"wing"})
    wing = parts_of(alone, ("wing",))
    assert (alone.object_mask == wing).all()
    assert (wing == parts_of(whole, ("wing",))).all()  # nothing of the bird lies before its wing
    empty = render(SPECIES[14], SCENE, SIZE_PX, ())
    assert not empty.object_mask.any()
    assert not (changed(alone, empty) & ~with_border(wing)).any()
    assert not (changed(whole, empty) & ~with_border(whole.object_mask)).any()


def test_what_lies_behind_comes_to_light_when_the_body_is_left_out():
    whole = render(SPECIES[6], SCENE, SIZE_PX)
    without = render(SPECIES[6], SCENE, SIZE_PX, ALL_LAYERS - {BODY})
    tail, tail_behind = parts_of(whole, ("tail",)), parts_of(without, ("tail",))
    assert (tail_behind & ~tail).any()
    assert not (tail & ~tail_behind).any()
