import pytest

from pipeline.params import Params
from pipeline.report.splits import images_of, kept_epochs, part_of_test_images


def params(*, patience_epochs=None, **compat):
    content = Params().model_dump()
    content["compat"] |= compat
    content["train"]["patience_epochs"] = patience_epochs
    return Params.model_validate(content)


@pytest.mark.parametrize(
    ("validate_on_test", "last_epoch", "kept"),
    [
        (False, False, "was best on validation images"),
        (True, False, "was best on test images (compat.validate_on_test)"),
        (False, True, "its last epoch (compat.last_epoch)"),
        (True, True, "its last epoch (compat.last_epoch)"),
    ],
)
def test_it_is_said_which_epoch_is_kept_and_by_which_images(validate_on_test, last_epoch, kept):
    sentence = kept_epochs(params(validate_on_test=validate_on_test, last_epoch=last_epoch))
    assert sentence.startswith("Each phase hands on ")
    assert sentence.endswith(f"{kept}.")


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, None),
        ({"last_epoch": True}, None),
        ({"patience_epochs": 3}, None),
        ({"validate_on_test": True}, "the epoch that each phase hands on"),
        ({"validate_on_test": True, "patience_epochs": 3}, "the epoch that each phase hands on"),
        ({"validate_on_test": True, "last_epoch": True}, None),
        ({"validate_on_test": True, "last_epoch": True, "patience_epochs": 3}, "the epoch after which training stops"),
    ],
)
def test_test_images_choose_something_only_where_they_are_validated_on(changes, chosen):
    sentence = part_of_test_images(params(**changes))
    if chosen is None:
        assert sentence == "Test images took no part in training or in choosing anything."
    else:
        assert f"but they chose {chosen} (compat.validate_on_test), so numbers about them flatter." in sentence


def test_splits_are_called_what_they_are():
    assert [images_of(split) for split in ("train", "val", "test")] == [
        "training images",
        "validation images",
        "test images",
    ]
