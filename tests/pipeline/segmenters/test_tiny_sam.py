import dataclasses
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import binary_erosion
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score, is_box_near_crop_edge
from torchvision.ops.boxes import batched_nms
from typer.testing import CliRunner

from pipeline.data.datasets.bird_backdrop import draw_backdrop
from pipeline.data.datasets.bird_renderer import render
from pipeline.data.datasets.bird_species import PART_NAMES, SPECIES
from pipeline.errors import PipelineError
from pipeline.segmenters import train_tiny_sam
from pipeline.segmenters.tiny_sam import TINY_SAM_WEIGHTS, build_tiny_sam, load_tiny_sam, save_tiny_sam
from pipeline.segmenters.tiny_sam_scenes import Scene, draw_scene
from pipeline.segmenters.train_tiny_sam import (
    Lesson,
    ask,
    best_iou,
    build_classifier,
    draw_bare_points,
    draw_prompts,
    learning_rate,
    look_at_the_point,
    losses,
    mask_loss,
    train,
    whiten,
)

UNSEEN = [(990_001, scene_idx) for scene_idx in range(6)]
"""Seeds of scenes that are neither trained on nor in a data set."""


@pytest.fixture(scope="module")
def model() -> Sam:
    return load_tiny_sam()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene((990_002, 0, 7))


def unseen(scene_idx: int):
    return render(SPECIES[3 * scene_idx], UNSEEN[scene_idx], 256)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def unpacked(scene: Scene) -> np.ndarray:
    return np.unpackbits(scene.things, axis=1).reshape(-1, 256, 256).astype(bool)


def test_the_weights_are_small_and_hold_every_parameter_and_the_positional_matrix():
    state = load_file(TINY_SAM_WEIGHTS)
    assert state.keys() == build_tiny_sam().state_dict().keys()
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in state
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())
    assert TINY_SAM_WEIGHTS.stat().st_size < 5e6


def test_two_networks_with_the_weights_are_equal_and_ready_to_predict(model):
    other = load_tiny_sam()
    assert not other.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)


def test_a_point_on_the_bird_gives_the_bird_among_three_masks(model):
    predictor = SamPredictor(model)
    best = []
    for scene_idx in range(len(UNSEEN)):
        truth = unseen(scene_idx)
        predictor.set_image(truth.image)
        rows, columns = np.nonzero(binary_erosion(truth.part_ids == PART_NAMES.index("wing") + 1, iterations=4))
        middle = np.array([[columns[len(columns) // 2], rows[len(rows) // 2]]])
        masks, scores, _ = predictor.predict(middle, np.array([1]))
        assert masks.shape == (3, 256, 256)
        assert scores.shape == (3,)
        best.append(max(iou(mask, truth.object_mask) for mask in masks))
    assert np.mean(best) > 0.65
    assert min(best) > 0.55


def test_the_automatic_generator_finds_dozens_of_distinct_masks_and_the_bird(model):
    generator = SamAutomaticMaskGenerator(
        model, points_per_side=16, pred_iou_thresh=0.4, stability_score_thresh=0.6, box_nms_thresh=0.7
    )
    found_bird = []
    for scene_idx in range(3):
        truth = unseen(scene_idx)
        masks = [record["segmentation"] for record in generator.generate(truth.image)]
        assert 12 <= len(masks) <= 60
        assert len({mask.tobytes() for mask in masks}) == len(masks)
        found_bird.append(max(iou(mask, truth.object_mask) for mask in masks))
    assert min(found_bird) > 0.75


def test_every_filter_of_the_generator_has_something_to_remove(model):
    predictor = SamPredictor(model)
    image = unseen(1).image
    predictor.set_image(image[:176, :176])  # as a crop of the picture
    places = (np.arange(16) + 0.5) * 16
    points = torch.tensor([[[x, y]] for y in places for x in places], dtype=torch.float32)
    with torch.no_grad():
        logits, scores, _ = predictor.predict_torch(points, torch.ones(256, 1), return_logits=True)
    logits, scores = logits.flatten(0, 1), scores.flatten()
    counts = [len(scores)]
    for keep_of in (
        lambda logits, scores, boxes: scores > 0.4,
        lambda logits, scores, boxes: calculate_stability_score(logits, 0.0, 1.0) >= 0.6,
        lambda logits, scores, boxes: ~is_box_near_crop_edge(boxes, [0, 0, 176, 176], [0, 0, 256, 256]),
        lambda logits, scores, boxes: batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), 0.7),
    ):
        keep = keep_of(logits, scores, batched_mask_to_box(logits > 0))
        logits, scores = logits[keep], scores[keep]
        counts.append(len(scores))
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] >= 5


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"damaged", "is no whole safetensors file"), ({"a": 1}, "does not hold the weights")],
)
def test_weights_that_cannot_be_used_are_named_in_one_line(tmp_path, content, message):
    weights = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        weights.write_bytes(content)
    elif content is not None:
        save_file({"a": torch.zeros(1)}, weights)
    with pytest.raises(PipelineError, match=rf"weights\.safetensors {message}.*train_tiny_sam") as error:
        load_tiny_sam(weights)
    assert "\n" not in str(error.value)


def test_half_a_file_of_weights_is_refused(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(TINY_SAM_WEIGHTS.read_bytes()[:-1000])
    with pytest.raises(PipelineError, match="is no whole safetensors file"):
        load_tiny_sam(weights)


def test_the_things_of_a_scene_are_the_birds_own_and_what_stands_around_it(scene):
    seed, species = (990_002, 0, 7), SPECIES[7]
    truth = render(species, seed, 256)
    things = unpacked(scene)
    np.testing.assert_array_equal(scene.image, truth.image)
    (bird,) = things[[kind == "object" for kind in scene.kinds]]
    np.testing.assert_array_equal(bird, truth.object_mask)
    parts = things[[kind == "part" for kind in scene.kinds]]
    wanted = [truth.part_ids == part_id for part_id in range(1, 8)]
    wanted = [mask for mask in wanted if mask.sum() >= 24]
    assert len(parts) == len(wanted) >= 5
    assert all(any((part == mask).all() for part in parts) for mask in wanted)
    assert things[~np.isin(scene.kinds, ("object", "part"))].any(axis=(1, 2)).sum() >= 10
    assert (things.sum(axis=(1, 2)) >= 24).all()
    np.testing.assert_array_equal(scene.coverage.sum(axis=(1, 2), dtype=int), things.sum(axis=(1, 2)))


def test_the_backdrop_that_things_are_found_in_is_the_one_in_the_picture():
    seed = (990_002, 0, 7)
    picture = render(SPECIES[7], seed, 256).image.astype(float)
    free = ~np.isin(draw_scene(seed).classes, (2, 3, *range(4, 13))).repeat(4, axis=0).repeat(4, axis=1)
    own, other = (draw_backdrop(np.random.default_rng([*scene_seed, 0]), 256) for scene_seed in (seed, (5, 0, 7)))
    agreement = [np.corrcoef(picture[free].ravel(), drawn[free].ravel())[0, 1] for drawn in (own, other)]
    assert agreement[0] > 0.9 > 0.7 > agreement[1]


def test_points_lie_on_their_targets_and_know_what_covers_them(scene):
    targets = np.arange(len(scene.things))
    prompts = draw_prompts(scene, targets, np.random.default_rng(0))
    columns, rows = prompts.points.T
    np.testing.assert_array_equal(prompts.under, unpacked(scene)[:, rows, columns].T)
    assert prompts.under[targets, targets].all()


def test_the_mask_loss_is_that_of_the_mask_that_fits_best():
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.random((2, 8, 8)) > 0.5).float()
    right, wrong = 30 * (2 * target - 1), -30 * (2 * target - 1)
    focal, dice = mask_loss(torch.stack([wrong, right, wrong], dim=1), target)
    assert focal < 1e-6
    assert dice < 1e-3
    focal, dice = mask_loss(torch.stack([wrong, wrong, wrong], dim=1), target)
    assert focal > 1
    assert dice > 0.9


def test_the_mask_loss_leaves_the_other_two_masks_alone():
    logits = torch.zeros(1, 3, 8, 8)
    target = torch.zeros(1, 8, 8)
    target[:, :4] = 1
    logits[:, 1] = 4 * target - 2
    logits.requires_grad_()
    sum(mask_loss(logits, target)).backward()
    assert logits.grad[:, 1].any()
    assert not logits.grad[:, [0, 2]].any()


def test_in_the_lesson_on_single_shapes_all_three_masks_are_held_to_the_target():
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    target = torch.zeros(1, 8, 8)
    target[:, :4] = 1
    sum(mask_loss(logits, target, every_mask=True)).backward()
    assert (logits.grad.flatten(2).abs().sum(dim=2) > 0).all()


def test_that_lesson_asks_about_parts_and_other_single_shapes_only(scene, monkeypatch):
    asked = []

    def spy(scene, targets, rng):
        asked.extend(scene.kinds[target] for target in targets)
        return draw_prompts(scene, targets, rng)

    monkeypatch.setattr(train_tiny_sam, "draw_prompts", spy)
    for single_shapes in (True, False):
        lesson = Lesson("", 1, 60, single_shapes)
        with torch.no_grad():
            losses(build_tiny_sam(), build_classifier(), [scene], lesson, np.random.default_rng(0))
    assert set(asked[:60]) == {"part", "shape"}
    assert set(asked[60:]) == {"object", "part", "shape", "other"}


def test_bare_points_lie_on_nothing(scene):
    columns, rows = draw_bare_points(scene, 50, np.random.default_rng(0)).T
    assert len(set(zip(columns.tolist(), rows.tolist(), strict=True))) > 40
    assert not unpacked(scene)[:, rows, columns].any()


def test_a_scene_without_bare_pixels_has_no_bare_points(scene):
    full = dataclasses.replace(scene, things=scene.things | np.uint8(255))
    assert draw_bare_points(full, 5, np.random.default_rng(0)).shape == (0, 2)


def test_best_iou_is_that_with_the_best_fitting_thing_under_the_point():
    things = torch.zeros(3, 4, 4)
    things[0, :2] = 1  # 8 pixels
    things[1, :1] = 1  # 4 pixels
    things[2, 3:] = 1
    logits = torch.full((1, 2, 4, 4), -1.0)
    logits[0, 0, :2] = 1  # thing 0
    logits[0, 1, 3:] = 1  # thing 2, which does not cover the point
    under = torch.tensor([[True, True, False]])
    torch.testing.assert_close(best_iou(logits, things, under), torch.tensor([[1.0, 0.0]]))
    under = torch.tensor([[False, True, True]])
    torch.testing.assert_close(best_iou(logits, things, under), torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(best_iou(logits, things, torch.zeros(1, 3, dtype=torch.bool)), torch.zeros(1, 2))


def test_each_term_of_the_loss_gives_a_gradient_where_it_belongs(scene):
    torch.manual_seed(0)
    network, classifier = build_tiny_sam(), build_classifier()
    terms = losses(network, classifier, [scene], Lesson("", 1, 4), np.random.default_rng(0))
    assert set(terms) == {"classes", "focal", "dice", "iou"}
    iou_head = network.mask_decoder.iou_prediction_head.layers[-1].weight
    upscaling = network.mask_decoder.output_upscaling[0].weight
    patches = network.image_encoder.patch_embed.proj.weight
    for name, reached in (
        ("classes", (patches, classifier[0].weight)),
        ("focal", (patches, upscaling)),
        ("dice", (patches, upscaling)),
        ("iou", (patches, iou_head)),
    ):
        gradients = torch.autograd.grad(terms[name], reached, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients), name


def test_without_points_only_the_classifier_is_asked(scene):
    terms = losses(build_tiny_sam(), build_classifier(), [scene], Lesson("", 1, 0), np.random.default_rng(0))
    assert set(terms) == {"classes"}


def test_mirrored_scenes_are_asked_about_at_mirrored_points_for_mirrored_targets(scene, monkeypatch):
    drawn, asked, wanted = [], [], []

    def spying_draw(*arguments):
        drawn.append(draw_prompts(*arguments))
        return drawn[-1]

    def spying_ask(model, embedding, points):
        asked.append(points)
        return ask(model, embedding, points)

    def spying_loss(logits, target, every_mask):
        wanted.append(target)
        return mask_loss(logits, target, every_mask)

    monkeypatch.setattr(train_tiny_sam, "draw_prompts", spying_draw)
    monkeypatch.setattr(train_tiny_sam, "ask", spying_ask)
    monkeypatch.setattr(train_tiny_sam, "mask_loss", spying_loss)
    with torch.no_grad():
        losses(build_tiny_sam(), build_classifier(), [scene] * 6, Lesson("", 1, 5), np.random.default_rng(0))
    asked = [points[:5] for points in asked]  # bare ones come behind
    mirrored = [bool((points != prompts.points).any()) for points, prompts in zip(asked, drawn, strict=True)]
    assert sorted(set(mirrored)) == [False, True]
    for points, prompts, flip in zip(asked, drawn, mirrored, strict=True):
        columns = 255 - prompts.points[:, 0] if flip else prompts.points[:, 0]
        np.testing.assert_array_equal(points, np.stack([columns, prompts.points[:, 1]], axis=1))
    columns, rows = np.concatenate(asked).T // 4
    assert (wanted[0][np.arange(30), rows, columns] > 0).all()


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [learning_rate(step, 200) for step in range(200)]
    peak = int(np.argmax(rates))
    assert 5 <= peak <= 15
    assert rates[0] < rates[peak] / 5
    assert rates[-1] < rates[peak] / 1000
    assert all(later < earlier for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))


def test_training_gives_the_same_weights_for_a_seed_and_others_for_another(scene, tmp_path):
    lessons = [Lesson("a", 1, 0), Lesson("b", 1, 2, single_shapes=True), Lesson("c", 1, 2)]

    def weights(name: str, seed: int) -> bytes:
        network = train([scene, scene], lessons, seed=seed, device="cpu")
        assert not network.training
        save_tiny_sam(tmp_path / name, network)
        return (tmp_path / name).read_bytes()

    first = weights("first", 0)
    assert weights("again", 0) == first
    assert weights("other", 1) != first
    load_tiny_sam(tmp_path / "first")


def test_the_command_writes_weights_that_load_and_logs_how_good_they_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PROTOMASK_WORKERS", "1")
    monkeypatch.setattr("pipeline.cli.start_logging", lambda: None)
    caplog.set_level("INFO")
    out = tmp_path / "weights.safetensors"
    options = ["--encoder-steps=1", "--shape-steps=1", "--steps=1", "--scenes=2", "--prompts=2", "--test-scenes=1"]
    result = CliRunner().invoke(train_tiny_sam.app, ["--out", str(out), "--device", "cpu", *options])
    assert result.exit_code == 0, result.output
    load_tiny_sam(out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert re.search(r"not trained on: object 0\.\d+, part 0\.\d+, .*, rank -?\d\.\d+, error", caplog.text)


def test_the_decoder_starts_by_looking_at_the_point():
    torch.manual_seed(0)
    network = build_tiny_sam()
    network.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(2)
    look_at_the_point(network)
    attention = network.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    positions = network.prompt_encoder.get_dense_pe().flatten(2)[0].T  # (cell, dim)
    with torch.no_grad():
        match = attention.q_proj(positions) @ attention.k_proj(positions).T
    assert (match.argmax(dim=1) == torch.arange(256)).float().mean() > 0.9


def test_the_patch_embedding_starts_whitened(scene):
    network = build_tiny_sam()
    whiten(network, [scene, draw_scene((990_002, 0, 8)), draw_scene((990_002, 0, 9))])
    images = torch.from_numpy(
        np.stack([scene.image, draw_scene((990_002, 0, 8)).image, draw_scene((990_002, 0, 9)).image])
    )
    with torch.no_grad():
        tokens = network.image_encoder.patch_embed(network.preprocess(images.permute(0, 3, 1, 2)))
    covariance = torch.cov(tokens.flatten(0, 2).T, correction=0)
    torch.testing.assert_close(covariance, torch.eye(len(covariance)), rtol=0, atol=0.02)
