"""Functions of the reference that this project has no counterpart of, and why.

A family that is yet to come says so; whoever writes it replaces its lines here by an adapter.
"""

from tests.conformance.answers import without_counterpart

# yet to come
for module, name in (
    ("explanations/mask/models/protomask.py", "ProtoMaskMask.saliency_maps"),
    ("explanations/prp/models/protomask.py", "ProtoMaskPRP.invert_cropping"),
    ("explanations/prp/utils/lrp_general6.py", "L2Conv2dLRPFunction"),
):
    without_counterpart("no saliency yet", module, name)
without_counterpart(
    "no complexity metrics yet",
    "metrics/complexity.py",
    "mask_intersection_over_union",
    "mask_overlap",
    "background_overlap",
    "outside_inside_relevance_ratio",
    "inside_outside_relevance",
    "boundingbox_consistency",
    "map_consistency",
)
without_counterpart("no complexity metrics yet", "techniques/complexity.py", "evaluate_complexity")
without_counterpart(
    "no continuity metrics yet",
    "metrics/continuity.py",
    "classification_activation_change",
    "classification_rank_change",
    "stability_score_bb",
    "stability_score_mask",
)
without_counterpart("no continuity metrics yet", "techniques/continuity.py", "evaluate_continuity")
without_counterpart(
    "no output completeness metrics yet",
    "metrics/output_completeness.py",
    "add_gaussian_noise",
    "gaussian_noise_mask",
    "bb_location_change",
    "activation_change",
    "max_activation_change",
    "max_activation_location_change",
    "mask_location_change",
    "rank_change",
)
without_counterpart(
    "no output completeness metrics yet", "techniques/output_completeness.py", "evaluate_output_completeness"
)
without_counterpart(
    "no location and activation metrics of contrastivity yet",
    "metrics/contrastivity.py",
    "intra_mask_location_change",
    "intra_bb_location_change",
    "intra_mask_activation_change",
    "max_activation_location_change",
)
without_counterpart("no feature distances of contrastivity yet", "metrics/contrastivity.py", "get_feature_vectors")
without_counterpart("no activation entropy yet", "metrics/contrastivity.py", "activation_entropy")
without_counterpart(
    "no thresholds of saliency maps yet",
    "metrics/helpers.py",
    "percentile_mask",
    "binary_mask",
    "min_max_norm_mask",
    "bounding_box_mask",
)

# not planned
without_counterpart(
    "one class per image, the one with the highest score: labels are not predicted apart from the metrics",
    "metrics/helpers.py",
    "label_prediction",
)
without_counterpart(
    "no weights per image: balanced accuracy is a mean over classes (DEVIATIONS.md accuracy)",
    "metrics/general.py",
    "get_sample_weights",
)
without_counterpart("no ROC curves", "metrics/general.py", "roc_auc_score", "roc_curve")
without_counterpart(
    "no mean logits of the right and the wrong classes",
    "metrics/general.py",
    "mean_tp_activation",
    "mean_tn_activation",
)
without_counterpart(
    "draws are made class by class from seed and names, not by scikit-learn's shuffle (DEVIATIONS.md A6)",
    "datasets/functional.py",
    "train_test_split",
    "k_fold_split",
    "create_splits",
)
without_counterpart(
    "no copies of images to balance classes: the loss is weighted",
    "datasets/interfaces/dataset_interface.py",
    "balance_classes",
)
without_counterpart(
    "no union of boxes: a data set's reader merges integer corners as it reads them",
    "datasets/functional.py",
    "combine_bounding_boxes",
)
