import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import metrics, metrics_whole, plain_metrics
from pipeline.metrics.registry import METRICS
from pipeline.params import EvaluateParams

FAMILIES = list(dict.fromkeys(declared.family for declared in METRICS))


@pytest.fixture(scope="module")
def line():
    return metrics.measure(num_images=25, num_with_maps=18, side_px=32, draws=20, plain_draws=3, runs=1)


def contest_of(family, *, is_graded):
    batches = metrics.make_batches(18, side_px=32, is_graded=is_graded, seed=1)
    chosen = [declared for declared in METRICS if declared.family == family]
    return metrics.Contest(chosen, batches, metrics.joined(batches))


def test_every_declared_metric_has_a_plain_loop():
    assert plain_metrics.OF_IMAGE.keys() == {(one.family, one.key) for one in METRICS if one.of_image is not None}
    assert plain_metrics.OF_SET.keys() == {(one.family, one.key) for one in METRICS if one.of_set is not None}


def test_a_run_prints_every_family_and_both_ways_agree(line):
    assert json.loads(json.dumps(line)) == line
    assert line["equal"]
    measured = line["families"]
    assert {name.split(",")[0] for name in measured} == set(FAMILIES)
    assert {"continuity, bool", "continuity, graded", "deletion"} <= measured.keys()
    for of_family in measured.values():
        rates = of_family["images_per_s"]
        assert of_family["ratio"] == pytest.approx(rates["ours"] / rates["loop"], rel=0.01, abs=0.051)
    boot = line["bootstrap"]
    assert boot["ratio"] == pytest.approx(boot["seconds"]["loop, scaled"] / boot["seconds"]["ours"], rel=0.01, abs=0.06)
    assert boot["metrics"] == len(METRICS) - 3  # of which no image has a part: weights of the last layer


@pytest.mark.parametrize("is_graded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_compared_are_numbers_and_differ_between_images(family, is_graded):
    for key, values in contest_of(family, is_graded=is_graded).ours().items():
        assert np.isfinite(values).any(), key
        if is_graded and key == "salient_area":  # the same share of every graded map
            continue
        assert len(values) == 1 or len(np.unique(values[~np.isnan(values)])) > 1, key


def test_the_comparison_notices_one_other_number_and_one_that_is_missing():
    contest = contest_of("compactness", is_graded=False)
    ours = contest.ours()
    assert metrics.is_equal(ours, contest.plain())
    for wrong in (ours["local_size"][3] + 1e-3, math.nan):
        other = {**ours, "local_size": ours["local_size"].copy()}
        other["local_size"][3] = wrong
        assert not metrics.is_equal(ours, other)
    assert not metrics.is_equal(ours, {"local_size": ours["local_size"]})


def test_loops_see_what_the_metrics_see():
    contest = contest_of("complexity", is_graded=False)
    first = contest.batches[0]
    other = [replace(first, object_mask=~first.object_mask), *contest.batches[1:]]
    found = metrics.Contest(contest.metrics, other, contest.whole).plain()
    assert not metrics.is_equal(contest.ours(), found)


def test_graded_maps_are_zero_outside_of_a_box_and_never_negative():
    for batch in metrics.make_batches(18, side_px=32, is_graded=True, seed=0):
        for of_map in batch.look.maps.flatten(0, 1):
            rows, columns = torch.nonzero(of_map, as_tuple=True)
            inside = of_map[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert of_map.min() == 0
            assert (inside > 0).float().mean() > 0.95
            assert inside.numel() < of_map.numel() / 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    params = metrics_whole.make_params(
        num_images=40,
        rows=1,
        columns=2,
        size_px=32,
        evaluation=EvaluateParams(saliency=("mask",), sample_images=2, bootstrap_draws=20, map_side_px=32),
    )
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTOMASK_WORKERS", "1")
        yield metrics_whole.measure(home, params, backbone="test_efficientnet", pretrained=False, device="cpu")
    torch.use_deterministic_algorithms(False)


def test_a_whole_evaluation_has_all_rows_and_its_parts_add_up(whole):
    assert json.loads(json.dumps(whole)) == whole
    assert (whole["images"], whole["views"], whole["classes"]) == (40, 120, 20)
    assert whole["rows"] == ["protomask", "protomask_projected", "protomask_trained", "blackbox"]
    assert whole["numbers"] > len(METRICS)
    for seconds in (whole["seconds"], whole["cpu_seconds"]):
        assert all(seconds[part] > 0 for part in ("encoding", "metrics", "sanity", "intervals", "writing", "rest"))
        assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], rel=0.01)


def test_a_part_within_a_part_is_not_counted_twice():
    with metrics_whole.parts_timed() as seconds:
        inner = metrics_whole.run.write_table
        outer = metrics_whole.run.measure
        assert inner is not outer
        with pytest.raises(TypeError):
            outer()
    assert list(seconds) == ["metrics"]
    assert metrics_whole.run.measure is not outer
