import pytest
import yaml

from pipeline.dvc_lock import DamagedLockError, StageRecord, parse_lock, read_lock
from pipeline.errors import PipelineError

LOCK = {
    "schema": "2.0",
    "stages": {
        "crops": {
            "cmd": "python -m stages.crops",
            "deps": [{"path": "data/masks", "hash": "md5", "md5": "1.dir", "nfiles": 2}],
            "params": {"params.yaml": {"crops.max_views": 5, "seed": 0}},
            "outs": [{"path": "data/crops", "hash": "md5", "md5": "2.dir"}],
        },
        "bare": {"cmd": "true"},
    },
}


def test_a_stage_has_its_command_params_and_hashes(tmp_path):
    path = tmp_path / "dvc.lock"
    path.write_text(yaml.safe_dump(LOCK))
    assert read_lock(path) == {
        "crops": StageRecord(
            command="python -m stages.crops",
            params={"crops.max_views": 5, "seed": 0},
            deps={"data/masks": "1.dir"},
            outs={"data/crops": "2.dir"},
        ),
        "bare": StageRecord("true", {}, {}, {}),
    }


@pytest.mark.parametrize("text", ["", "{}", "stages: [1]", "stages: {a: 3}", "stages: {a: {outs: [{md5: 1}]}}", "a: ["])
def test_another_text_is_refused(text, tmp_path):
    with pytest.raises(DamagedLockError):
        parse_lock(text)
    path = tmp_path / "dvc.lock"
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"dvc\.lock is damaged"):
        read_lock(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"dvc\.lock does not exist: `dvc repro`"):
        read_lock(tmp_path / "dvc.lock")
