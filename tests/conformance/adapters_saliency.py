"""Adapters of saliency: the segment of the nearest view, un-cropping, the distance rule of relevance."""

import numpy as np
import torch

from pipeline.data.boxes import Box
from pipeline.model.prototypes import log_similarity, nearest_view, squared_distance
from pipeline.saliency.frame import paste, uncrop
from pipeline.saliency.prp import distance_shares
from tests.conformance.adapters_model import AUTHORS_EPSILON
from tests.conformance.answers import Answer, adapter
from tests.conformance.vectors import Case


@adapter("explanations/mask/models/protomask.py", "ProtoMaskMask.saliency_maps")
def segments(case: Case) -> Answer:
    """Views are whole pictures with their surroundings in black, so that the mask is where one is not."""
    by_view, pictures, top = torch.from_numpy(case.inputs["d2"]), case.inputs["crops"], case.inputs["topk"]
    num_bags, num_views, _ = by_view.shape
    _, nearest = nearest_view(by_view.flatten(0, 1), torch.full((num_bags,), num_views))
    view = (nearest - num_views * torch.arange(num_bags)[:, None]).numpy()
    masks = pictures.any(axis=2)  # [bag, view, height, width]
    height, width = masks.shape[2:]
    whole = Box(0, 0, width, height)
    maps = [
        [paste(masks[bag, view[bag, prototype]], whole, (width, height), height) for prototype in top[bag]]
        for bag in range(num_bags)
    ]
    return {"out": np.array(maps, dtype=np.float32), "crop_index": view}


@adapter("explanations/prp/models/protomask.py", "ProtoMaskPRP.invert_cropping")
def uncropping(case: Case) -> Answer:
    height, width = map(int, case.inputs["mask_size"])
    x0, y0, x1, y1 = map(float, case.inputs["mask_bbox"])
    relevance = torch.from_numpy(case.inputs["mask"])
    return {"out": uncrop(relevance, (x0, y0, x1, y1), (width, height), case.params["input_size"])}


@adapter("explanations/prp/utils/lrp_general6.py", "L2Conv2dLRPFunction")
def distance_rule(case: Case) -> Answer:
    """Each place of the grid is one feature, compared with the one prototype."""
    z, prototype = (torch.from_numpy(case.inputs[name]) for name in ("z", "prototype"))
    features = z.permute(0, 2, 3, 1)  # [view, height, width, channel]
    places = features.flatten(0, 2)
    vectors = prototype.flatten(1).expand_as(places)
    distance = squared_distance(places, prototype.flatten(1))
    return {
        "similarity": log_similarity(distance, AUTHORS_EPSILON).view(len(z), 1, *z.shape[2:]),
        "relevance": distance_shares(places, vectors).view_as(features).permute(0, 3, 1, 2),
    }
