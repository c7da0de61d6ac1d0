"""Train the tiny SAM on synthetic birds: ``python -m pipeline.segmenters.train_tiny_sam``.

The things of every scene are known. A prompt is a point drawn inside one of them, and the network answers with three
masks, because a point on an eye may mean the eye, the head or the bird. Only the mask that fits best is held to the
thing that the point was drawn for; the predicted IoU of every mask is held to its IoU with the thing under the point
that it fits best, whichever that is. Points on the bare backdrop teach the predicted IoU only: it should be 0 there.

Two lessons come before, because that one starts slowly: the encoder learns alone what each pixel shows; then all three
masks answer with the single shape under the point, which nobody can without looking where the point is.
"""

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy.typing import NDArray
from scipy.stats import spearmanr
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from pipeline.cli import command_line
from pipeline.io import progress
from pipeline.runtime import Runtime, keep_freed_memory
from pipeline.segmenters.tiny_sam import TINY_SAM_DIM, TINY_SAM_SIZE_PX, TINY_SAM_WEIGHTS, build_tiny_sam, save_tiny_sam
from pipeline.segmenters.tiny_sam_scenes import CLASSES, EVALUATION, TRAINING, Scene, draw_scenes

_LOG = logging.getLogger(__name__)


# The paper weighs the focal loss 20: with a network this young, everything then starts by calling every mask empty.
_WEIGHTS = {"focal": 2.0, "dice": 1.0, "iou": 1.0, "classes": 0.5}
_FOCAL_GAMMA = 2.0
_SCENES_PER_STEP = 4
_BARE_POINTS = 2  # per scene and step
_WHITENING_SCENES = 64
_POSITION_SCALE = 2.0  # of the package's random frequencies, which hardly tell neighbouring cells apart
_ATTENTION_GAIN = 1.5
_LEARNING_RATE = 2.5e-3
_WARM_UP_FRAC = 0.05
_LOG_EVERY = 100  # steps


@dataclass(frozen=True, slots=True)
class Lesson:
    """A stretch of the training.

    Attributes:
        name: for the log.
        steps: of four scenes each.
        prompts_per_scene: points on things; with 0 only the encoder learns.
        single_shapes: ask about parts and other single shapes only, and hold all three masks to the target.
    """

    name: str
    steps: int
    prompts_per_scene: int
    single_shapes: bool = False


@dataclass(frozen=True, slots=True)
class Prompts:
    """Points on the things of one scene, one thing per point.

    Attributes:
        points: x, y of a pixel, in image pixels.
        targets: position of the thing that the point was drawn for.
        under: True where a thing covers the point.
    """

    points: Int[np.ndarray, "prompt 2"]
    targets: Int[np.ndarray, " prompt"]
    under: Bool[np.ndarray, "prompt thing"]


def draw_prompts(scene: Scene, targets: Int[np.ndarray, " prompt"], rng: np.random.Generator) -> Prompts:
    """Draw a pixel inside each of TARGETS, positions in the things of SCENE."""
    pixels = np.array([rng.choice(np.flatnonzero(np.unpackbits(scene.things[target]))) for target in targets])
    rows, columns = np.divmod(pixels, TINY_SAM_SIZE_PX)
    under = (scene.things[:, pixels // 8] >> (7 - pixels % 8).astype(np.uint8)) & 1
    return Prompts(np.stack([columns, rows], axis=1), targets, under.T.astype(bool))


def draw_bare_points(scene: Scene, count: int, rng: np.random.Generator) -> Int[np.ndarray, "prompt 2"]:
    """Draw the x, y of COUNT pixels that nothing covers; none where there are no such pixels."""
    bare = np.flatnonzero(np.unpackbits(~np.bitwise_or.reduce(scene.things)))
    if len(bare) == 0:
        return np.empty((0, 2), dtype=np.int64)
    rows, columns = np.divmod(rng.choice(bare, count), TINY_SAM_SIZE_PX)
    return np.stack([columns, rows], axis=1)


def ask(
    model: Sam, embedding: Float[Tensor, "dim side side"], points: Int[np.ndarray, "prompt 2"]
) -> tuple[Float[Tensor, "prompt 3 low low"], Float[Tensor, "prompt 3"]]:
    """Give the logits of the three masks for each of POINTS (pixels of the network's input), and their predicted IoU.

    Args:
        model: on the device of EMBEDDING.
        embedding: of one image.
        points: x, y.
    """
    coordinates = torch.as_tensor(points, dtype=torch.float32, device=embedding.device)[:, None]
    labels = torch.ones(coordinates.shape[:2], dtype=torch.int, device=embedding.device)
    sparse, dense = model.prompt_encoder(points=(coordinates, labels), boxes=None, masks=None)
    logits, predicted_iou = model.mask_decoder(
        image_embeddings=embedding[None],
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return logits, predicted_iou


def mask_loss(
    logits: Float[Tensor, "prompt 3 low low"], target: Float[Tensor, "prompt low low"], every_mask: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Give the focal loss and the dice loss of the mask that fits best, mean over prompts.

    Args:
        logits: of the three masks.
        target: covered share of each pixel, 0-1.
        every_mask: mean over all three masks instead.
    """
    wanted = target[:, None].expand_as(logits)
    probability = logits.sigmoid()
    # for a target between 0 and 1, the distance to it takes the place of 1 - p_t
    surprise = (probability - wanted).abs() ** _FOCAL_GAMMA
    unweighted = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = (surprise * unweighted).mean(dim=(2, 3))
    overlap = (probability * wanted).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(2, 3)) + wanted.sum(dim=(2, 3)) + 1)
    if every_mask:
        return focal.mean(), dice.mean()
    best = (_WEIGHTS["focal"] * focal + _WEIGHTS["dice"] * dice).argmin(dim=1, keepdim=True)
    return focal.gather(1, best).mean(), dice.gather(1, best).mean()


def best_iou(
    logits: Float[Tensor, "prompt mask low low"],
    coverage: Float[Tensor, "thing low low"],
    under: Bool[Tensor, "prompt thing"],
) -> Float[Tensor, "prompt mask"]:
    """Give the IoU of each mask with the thing that it fits best, of those that UNDER names for its prompt, or 0.

    Args:
        logits: a mask is where they are above 0.
        coverage: covered share of each pixel, 0-1; a thing is where half of the pixel or more is covered.
        under: True where a thing covers the point.
    """
    masks, things = (logits > 0).float().flatten(2), (coverage >= 0.5).float().flatten(1)
    overlap = masks @ things.T  # (prompt, mask, thing)
    union = masks.sum(dim=2)[..., None] + things.sum(dim=1) - overlap
    return torch.where(under[:, None], overlap / union.clamp(min=1), 0).amax(dim=2)


def losses(
    model: Sam, classifier: nn.Module, scenes: Sequence[Scene], lesson: Lesson, rng: np.random.Generator
) -> dict[str, Float[Tensor, ""]]:
    """Ask MODEL about points on SCENES, each mirrored and recoloured at random; the terms of the loss by name.

    Large things are asked about more often, in proportion to the root of their area.

    Args:
        model: in any mode.
        classifier: see :func:`build_classifier`.
        scenes: of one step.
        lesson: without prompts there is only the classifier's term.
        rng: draws points and augmentation.
    """
    mirrored = (rng.random(len(scenes)) < 0.5).tolist()
    images = np.stack(
        [_recoloured(_flipped(scene.image, flip, 1), rng) for scene, flip in zip(scenes, mirrored, strict=True)]
    )
    classes = np.stack([_flipped(scene.classes, flip, 1) for scene, flip in zip(scenes, mirrored, strict=True)])
    batch = torch.from_numpy(images).to(model.device).permute(0, 3, 1, 2)
    embeddings = model.image_encoder(model.preprocess(batch))
    wanted_classes = torch.from_numpy(classes).to(model.device, torch.long)
    terms = {"classes": cross_entropy(classifier(embeddings), wanted_classes)}
    if lesson.prompts_per_scene == 0:
        return terms
    logits, targets, predicted, true = [], [], [], []
    for scene, flip, embedding in zip(scenes, mirrored, embeddings, strict=True):
        weights = np.sqrt(scene.coverage.sum(axis=(1, 2), dtype=np.float64))
        if lesson.single_shapes:
            weights *= np.isin(scene.kinds, ("part", "shape"))
        chosen = rng.choice(len(weights), lesson.prompts_per_scene, p=weights / weights.sum())
        prompts = draw_prompts(scene, chosen, rng)
        bare = draw_bare_points(scene, _BARE_POINTS, rng)
        points = np.concatenate([prompts.points, bare])
        if flip:
            points = points * (-1, 1) + (TINY_SAM_SIZE_PX - 1, 0)
        answer, predicted_iou = ask(model, embedding, points)
        coverage = torch.from_numpy(_flipped(scene.coverage, flip, 2) / np.float32(16)).to(model.device)
        under = torch.from_numpy(np.pad(prompts.under, ((0, len(bare)), (0, 0)))).to(model.device)
        logits.append(answer[: len(prompts.targets)])
        targets.append(coverage[torch.from_numpy(prompts.targets).to(model.device)])
        predicted.append(predicted_iou)
        true.append(best_iou(answer.detach(), coverage, under))
    terms["focal"], terms["dice"] = mask_loss(torch.cat(logits), torch.cat(targets), lesson.single_shapes)
    terms["iou"] = mse_loss(torch.cat(predicted), torch.cat(true))
    return terms


def _flipped(array: NDArray[np.uint8], flip: bool, axis: int) -> NDArray[np.uint8]:
    return np.flip(array, axis) if flip else array


def _recoloured(
    image: UInt8[np.ndarray, "size size 3"], rng: np.random.Generator
) -> Float32[np.ndarray, "size size 3"]:
    gains, offsets = rng.uniform(0.85, 1.15, 3), rng.uniform(-15, 15, 3)
    recoloured = image * gains.astype(np.float32) + offsets.astype(np.float32)
    return np.clip(recoloured, 0, 255, out=recoloured)


def build_classifier() -> nn.Module:
    """Build a 1x1 convolution from the image embedding to the class of each of the 4 x 4 pixels of a cell.

    It is thrown away after training. Every pixel teaches the encoder through it, where the mask loss, whose gradients
    pass through a decoder that knows nothing yet, takes thousands of steps to begin.
    """
    return nn.Sequential(nn.Conv2d(TINY_SAM_DIM, len(CLASSES) * 16, kernel_size=1), nn.PixelShuffle(4))


@torch.no_grad()
def whiten(model: Sam, scenes: Sequence[Scene]) -> None:
    """Start the patch embedding at the principal components of the patches of SCENES, each with unit variance.

    Random filters see little but a patch's mean colour.
    """
    projection = model.image_encoder.patch_embed.proj
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).to(model.device)
    pixels = model.preprocess(images.permute(0, 3, 1, 2).float())
    patches = nn.functional.unfold(pixels, projection.kernel_size, stride=projection.stride)
    flat = patches.transpose(1, 2).flatten(0, 1)  # (scene patch, channel row column)
    mean = flat.mean(dim=0)
    _, scales, components = torch.linalg.svd(flat - mean, full_matrices=False)
    kept = components[: projection.out_channels] * len(flat) ** 0.5 / scales[: projection.out_channels, None]
    projection.weight.copy_(kept.view_as(projection.weight))
    projection.bias.copy_(-kept @ mean)


@torch.no_grad()
def look_at_the_point(model: Sam) -> None:
    """Start all attention between tokens and image with equal projections of queries and keys.

    Both carry positions, so what is at the point starts by attending to the point, and the other way round.
    """
    for module in model.mask_decoder.transformer.modules():
        if isinstance(module, Attention) and module.internal_dim < module.embedding_dim:
            nn.init.orthogonal_(module.q_proj.weight, _ATTENTION_GAIN)
            module.k_proj.weight.copy_(module.q_proj.weight)
            nn.init.zeros_(module.q_proj.bias)
            nn.init.zeros_(module.k_proj.bias)


def train(scenes: Sequence[Scene], lessons: Sequence[Lesson], *, seed: int, device: str) -> Sam:
    """Train a tiny SAM on SCENES, in one of LESSONS after the other, each with its own AdamW and learning rate.

    Args:
        scenes: at least one; in every pass over them their order is drawn anew.
        lessons: see :class:`Lesson`.
        seed: of weights, order, points and augmentation.
        device: torch's name of it.

    Returns:
        The network, in evaluation mode on DEVICE.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, classifier = build_tiny_sam().to(device).train(), build_classifier().to(device)
    model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(_POSITION_SCALE)
    look_at_the_point(model)
    whiten(model, scenes[:_WHITENING_SCENES])
    order = itertools.chain.from_iterable(rng.permutation(len(scenes)).tolist() for _ in itertools.count())
    for lesson in lessons:
        optimizer = torch.optim.AdamW([*model.parameters(), *classifier.parameters()], lr=0.0, weight_decay=0.02)
        totals: dict[str, float] = {}
        for step in progress(range(lesson.steps), what=f"training: {lesson.name}", total=lesson.steps, unit="step"):
            chosen = [scenes[scene_idx] for scene_idx in itertools.islice(order, _SCENES_PER_STEP)]
            terms = losses(model, classifier, chosen, lesson, rng)
            _take_step(optimizer, terms, learning_rate(step, lesson.steps))
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.item()
            if (step + 1) % _LOG_EVERY == 0:
                means = ", ".join(f"{name} {total / _LOG_EVERY:.4f}" for name, total in totals.items())
                _LOG.info("%s, step %d: %s", lesson.name, step + 1, means)
                totals = {}
    return model.eval()


def learning_rate(step: int, num_steps: int) -> float:
    """Give the rate at STEP of NUM_STEPS: a linear warm-up, then half a cosine down to nearly 0."""
    warm_up = max(1, round(_WARM_UP_FRAC * num_steps))
    return _LEARNING_RATE * min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def _take_step(optimizer: torch.optim.Optimizer, terms: Mapping[str, Float[Tensor, ""]], rate: float) -> None:
    (group,) = optimizer.param_groups
    group["lr"] = rate
    optimizer.zero_grad()
    loss = torch.stack([_WEIGHTS[name] * term for name, term in terms.items()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


@torch.no_grad()
def evaluate(model: Sam, scenes: Sequence[Scene], seed: int) -> dict[str, float]:
    """Ask MODEL about one point on every thing of SCENES.

    Returns:
        For each kind of thing, the mean IoU with the thing of the best of the three masks, at low resolution.
        ``rank``: Spearman correlation, over all masks, of the predicted IoU with the best IoU with a thing under the
        point. ``error``: mean absolute difference of the two.
    """
    rng = np.random.default_rng(seed)
    of_kind: dict[str, list[float]] = {"object": [], "part": [], "shape": [], "other": []}
    all_predicted, all_true = [], []
    for scene in scenes:
        num_things = len(scene.things)
        prompts = draw_prompts(scene, np.arange(num_things), rng)
        image = torch.from_numpy(scene.image).to(model.device).permute(2, 0, 1)[None]
        logits, predicted_iou = ask(model, model.image_encoder(model.preprocess(image))[0], prompts.points)
        shares = torch.from_numpy(scene.coverage.astype(np.float32) / 16).to(model.device)
        own = best_iou(logits, shares, torch.eye(num_things, dtype=torch.bool, device=model.device)).amax(dim=1)
        for kind, iou in zip(scene.kinds, own.tolist(), strict=True):
            of_kind[kind].append(iou)
        all_predicted.append(predicted_iou.flatten())
        under = torch.from_numpy(prompts.under).to(model.device)
        all_true.append(best_iou(logits, shares, under).flatten())
    predicted, true = torch.cat(all_predicted).cpu().numpy(), torch.cat(all_true).cpu().numpy()
    return {
        **{kind: float(np.mean(ious)) for kind, ious in of_kind.items()},
        "rank": float(spearmanr(predicted, true).statistic),
        "error": float(np.abs(predicted - true).mean()),
    }


def main(
    out: Annotated[Path, typer.Option(help="The weights, a safetensors file.")] = TINY_SAM_WEIGHTS,
    encoder_steps: Annotated[int, typer.Option(min=0, help="Steps of four scenes for the encoder alone.")] = 600,
    shape_steps: Annotated[int, typer.Option(min=0, help="Steps on single shapes.")] = 800,
    steps: Annotated[int, typer.Option(min=1, help="Steps on everything.")] = 2000,
    num_scenes: Annotated[int, typer.Option("--scenes", min=1, help="Scenes to train on.")] = 800,
    prompts: Annotated[int, typer.Option(min=1, help="Points per scene and step.")] = 12,
    test_scenes: Annotated[int, typer.Option(min=1, help="Scenes for the evaluation at the end.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of scenes, weights and points.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
) -> None:
    """Train the tiny SAM on synthetic birds and write its weights: half an hour on a core or two.

    Equal options give equal bytes on one machine with one number of threads (``OMP_NUM_THREADS``).
    """
    keep_freed_memory()
    torch.use_deterministic_algorithms(True, warn_only=True)
    runtime = Runtime(device=device)
    scenes = draw_scenes(TRAINING, seed, num_scenes, runtime)
    lessons = (
        Lesson("pixels", encoder_steps, prompts_per_scene=0),
        Lesson("single shapes", shape_steps, prompts, single_shapes=True),
        Lesson("everything", steps, prompts),
    )
    model = train(scenes, lessons, seed=seed, device=runtime.torch_device)
    save_tiny_sam(out, model)
    result = evaluate(model, draw_scenes(EVALUATION, seed, test_scenes, runtime), seed)
    _LOG.info("on scenes it was not trained on: %s", ", ".join(f"{key} {value:.3f}" for key, value in result.items()))


app = command_line(main)

if __name__ == "__main__":
    app()
