import numpy as np
import pytest

from pipeline.data.datasets.bird_renderer import ALL_LAYERS, BODY, render
from pipeline.data.datasets.bird_species import PART_NAMES, SPECIES
from pipeline.data.datasets.interface import DatasetError, ImageRecord
from pipeline.data.datasets.scenes import NO_PARTS, differing, only_part, picture_bytes, without_part
from pipeline.data.datasets.synthetic import SyntheticBirds
from pipeline.data.images import decode_image
from pipeline.params import SyntheticParams

SIZE_PX = 96


def test_the_picture_of_the_whole_bird_is_that_of_the_data_set():
    birds = SyntheticBirds(SyntheticParams(num_species=10, image_size_px=SIZE_PX), seed=3)
    for key in ("bird_02_test_0001", "bird_09_train_0000"):
        record = ImageRecord(key, f"{key}.jpg", int(key[5:7]), "test")
        assert picture_bytes(*birds.scene(record), SIZE_PX) == birds.image_bytes(record)


@pytest.mark.parametrize("layers", [NO_PARTS, without_part(3), only_part(4)], ids=["none", "without", "only"])
def test_a_picture_shows_the_layers_that_are_asked_for(layers):
    scene = (0, 1, 0, 5)
    shown = decode_image(picture_bytes(SPECIES[1], scene, 192, layers), "picture").astype(int)
    drawn, whole = (render(SPECIES[1], scene, 192, chosen).image.astype(int) for chosen in (layers, ALL_LAYERS))
    assert np.abs(shown - drawn).mean() < 0.5 * np.abs(shown - whole).mean()


def test_layers_are_named_by_part():
    for part_idx, name in enumerate(PART_NAMES):
        assert without_part(part_idx) == {BODY, *PART_NAMES} - {name}
        assert only_part(part_idx) == {BODY, name}
    assert set(NO_PARTS) == {BODY}


def test_species_differ_in_the_parts_whose_variants_differ():
    names = [species.name for species in SPECIES[8:3:-1]]  # any choice, in any order
    table = differing(names)
    assert table.shape == (5, 5, len(PART_NAMES))
    for one, first in zip(table, SPECIES[8:3:-1], strict=True):
        for other, second in zip(one, SPECIES[8:3:-1], strict=True):
            assert other.tolist() == [getattr(first, part) != getattr(second, part) for part in PART_NAMES]


def test_a_class_that_is_no_species_is_refused_by_name():
    with pytest.raises(DatasetError, match="Laysan Albatross"):
        differing([SPECIES[0].name, "Laysan Albatross"])
