import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from pipeline.segmenters.sam_decoder import PointDecoder
from tests.pipeline.segmenters.random_sam import random_sam, rounds_alike


def question(model: Sam, num_points: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding of a picture, and sparse and dense prompts for points on it."""
    generator = torch.Generator().manual_seed(1)
    grid = model.prompt_encoder.image_embedding_size
    embedding = torch.randn(1, model.mask_decoder.transformer_dim, *grid, generator=generator)
    points = torch.rand(num_points, 1, 2, generator=generator) * model.image_encoder.img_size
    sparse, dense = model.prompt_encoder((points, torch.ones(num_points, 1, dtype=torch.int)), None, None)
    return embedding, sparse, dense


def packages_answer(model: Sam, embedding, sparse, dense) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and predicted IoUs of all points; of the four masks, the three that are for single points."""
    masks, iou = model.mask_decoder.predict_masks(embedding, model.prompt_encoder.get_dense_pe(), sparse, dense)
    return masks[:, 1:], iou[:, 1:]


def assert_the_packages(model: Sam, num_points: int, *, to_the_bit: bool) -> None:
    embedding, sparse, dense = question(model, num_points)
    masks, iou = packages_answer(model, embedding, sparse, dense)
    tolerance = {"rtol": 0, "atol": 0} if to_the_bit else {"rtol": 1e-4, "atol": 1e-5}
    decoder, (rows, columns) = PointDecoder(model), embedding.shape[2:]
    decoded = decoder.decode(embedding, sparse)
    torch.testing.assert_close(decoded.iou, iou, **tolerance)
    drawn = decoder.draw(decoded, torch.arange(num_points), columns=columns, rows=rows)
    torch.testing.assert_close(drawn, masks, **tolerance)
    for chosen in (torch.arange(0, num_points, 3), torch.arange(num_points)[-2:]):
        for some_rows in {1, rows // 2, rows - 1}:
            if len(chosen) == 1 < num_points:  # has a test of its own
                continue
            drawn = decoder.draw(decoded, chosen, columns=columns, rows=some_rows)
            assert drawn.shape == (len(chosen), 3, 4 * some_rows, 4 * columns)
            torch.testing.assert_close(drawn, masks[chosen, :, : 4 * some_rows], **tolerance)


@pytest.mark.parametrize(
    ("side", "dim", "depth", "num_points"),
    [
        *((64, 32, depth, num_points) for depth in (1, 2) for num_points in (2, 9, 64, 100)),
        *((128, 64, 3, num_points) for num_points in (1, 8, 23)),
    ],
)
@torch.inference_mode()
def test_masks_and_predicted_ious_are_the_packages_to_the_bit(side, dim, depth, num_points):
    model = random_sam(side, dim=dim, depth=depth)
    if not rounds_alike(model):
        pytest.skip("the package's own bits depend on the company of a point on this machine")
    assert_the_packages(model, num_points, to_the_bit=True)


@pytest.mark.parametrize("rows", [4, 3])
@torch.inference_mode()
def test_one_point_of_several_is_drawn_with_the_same_bits(rows):
    model = random_sam()
    if not rounds_alike(model):
        pytest.skip("the package's own bits depend on the company of a point on this machine")
    embedding, sparse, dense = question(model, 9)
    masks, _ = packages_answer(model, embedding, sparse, dense)
    decoder = PointDecoder(model)
    drawn = decoder.draw(decoder.decode(embedding, sparse), torch.tensor([3]), columns=4, rows=rows)
    assert torch.equal(drawn, masks[[3], :, : 4 * rows])


@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.inference_mode()
def test_masks_and_predicted_ious_are_the_packages_up_to_rounding_on_any_machine(depth):
    assert_the_packages(random_sam(depth=depth), 23, to_the_bit=False)


@torch.inference_mode()
def test_the_decoder_of_vit_b_gives_the_same_bits_too():
    torch.manual_seed(0)
    model = sam_model_registry["vit_b"]().eval()
    embedding, sparse, dense = question(model, 5)
    masks, iou = packages_answer(model, embedding, sparse, dense)
    decoder = PointDecoder(model)
    decoded = decoder.decode(embedding, sparse)
    exact = {"rtol": 0, "atol": 0} if rounds_alike(random_sam()) else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(decoded.iou, iou, **exact)
    drawn = decoder.draw(decoded, torch.tensor([1, 3, 4]), columns=64, rows=43)
    torch.testing.assert_close(drawn, masks[[1, 3, 4], :, : 4 * 43], **exact)


@torch.inference_mode()
def test_a_batch_of_points_gives_what_each_point_gives_alone():
    model = random_sam()
    embedding, sparse, _ = question(model, 20)
    decoder = PointDecoder(model)
    together = decoder.decode(embedding, sparse)
    drawn = decoder.draw(together, torch.arange(20), columns=4, rows=4)
    for point in (0, 7, 8, 19):
        alone = decoder.decode(embedding, sparse[point : point + 1])
        torch.testing.assert_close(alone.iou[0], together.iou[point], rtol=1e-4, atol=1e-5)
        drawn_alone = decoder.draw(alone, torch.tensor([0]), columns=4, rows=4)
        torch.testing.assert_close(drawn_alone[0], drawn[point], rtol=1e-4, atol=1e-5)
    assert drawn.std(dim=0).mean() > 1e-3  # points are told apart


@torch.inference_mode()
def test_points_can_be_drawn_again_and_in_any_order():
    model = random_sam()
    embedding, sparse, _ = question(model, 9)
    decoder = PointDecoder(model)
    decoded = decoder.decode(embedding, sparse)
    first = decoder.draw(decoded, torch.arange(9), columns=4, rows=4)
    backwards = decoder.draw(decoded, torch.arange(9).flip(0), columns=4, rows=4)
    torch.testing.assert_close(backwards.flip(0), first, rtol=1e-5, atol=1e-6)
    assert torch.equal(decoder.draw(decoded, torch.arange(9), columns=4, rows=4), first)


@torch.inference_mode()
def test_what_goes_in_is_not_changed():
    model = random_sam()
    embedding, sparse, _ = question(model, 9)
    before = embedding.clone(), sparse.clone(), {key: value.clone() for key, value in model.state_dict().items()}
    decoder = PointDecoder(model)
    first = decoder.decode(embedding, sparse)
    assert torch.equal(decoder.decode(embedding, sparse).image, first.image)
    assert torch.equal(embedding, before[0])
    assert torch.equal(sparse, before[1])
    assert all(torch.equal(value, before[2][key]) for key, value in model.state_dict().items())


@torch.inference_mode()
def test_in_bfloat16_masks_and_predicted_ious_stay_close():
    model = random_sam(128, dim=64)
    embedding, sparse, dense = question(model, 30)
    masks, iou = packages_answer(model, embedding, sparse, dense)
    decoder = PointDecoder(model, torch.bfloat16)
    decoded = decoder.decode(embedding.bfloat16(), sparse)
    drawn = decoder.draw(decoded, torch.arange(30), columns=8, rows=8)
    assert (decoded.iou.dtype, drawn.dtype) == (torch.float32, torch.float32)
    assert 0 < (decoded.iou - iou).abs().max() < 0.02
    assert 0 < (drawn - masks).abs().mean() < 0.05 * masks.std()
