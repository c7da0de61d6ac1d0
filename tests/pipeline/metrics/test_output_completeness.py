import torch

from pipeline.metrics.interface import Evidence, Look
from pipeline.metrics.output_completeness import METRICS

NUM_PROTOTYPES = 4


def a_look(similarity, maps):
    num_images, num_ranks = maps.shape[:2]
    return Look(
        logits=torch.zeros(*similarity.shape[:-1], 2),
        similarity=similarity,
        elements=similarity.reshape(num_images, -1, NUM_PROTOTYPES)[:, :1].expand(-1, num_ranks, -1),
        centre=torch.zeros(num_images, num_ranks, 2),
        maps=maps,
        salient=maps,
    )


def test_each_rank_is_compared_with_the_image_that_was_noised_for_it():
    similarity = torch.tensor([[4.0, 1.0, 2.0, 3.0]])
    maps = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    maps[:, :, 0] = True
    noised = similarity.repeat(2, 1)[None].clone()
    noised[0, 1, 3] = 0.0  # only in the image of the second rank, only for the prototype of that rank
    noised_maps = maps.clone()
    noised_maps[0, 0, 0, 0] = False
    evidence = Evidence(
        labels=torch.zeros(1, dtype=torch.long),
        look=a_look(similarity, maps),
        top=torch.tensor([[0, 3]]),
        noised=a_look(noised, noised_maps),
    )
    found = {declared.key: declared.of_image(evidence).item() for declared in METRICS}
    assert found["similarity_change"] == (0 + 1) / 2
    assert found["rank_change"] == (0 + 2) / 2  # from the second place to the last
    assert found["saliency_location_change"] == found["saliency_value_change"] == (0.5 + 0) / 2
    assert found["location_change"] == 0


def test_less_change_is_better_and_noise_is_needed():
    assert {declared.direction for declared in METRICS} == {"lower"}
    assert {declared.family for declared in METRICS} == {"completeness"}
    assert all("noised" in declared.needs for declared in METRICS)
