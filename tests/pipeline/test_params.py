"""params.yaml and its model: in step, and every mistake named by its key."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import PipelineError
from pipeline.params import Params, check_params, load_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def _all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Sections and fields, depth first, in declaration order."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")


def _keys_with_line_before(text: str) -> list[tuple[str, str]]:
    """Each key of a two-space indented YAML text, with the stripped line above it."""
    found, path = [], []
    lines = text.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            depth = (len(line) - len(line.lstrip())) // 2
            path[depth:] = [stripped.partition(":")[0]]
            found.append((".".join(path), above.strip()))
    return found


def _content() -> dict[str, Any]:
    return Params().model_dump(mode="json")


def test_the_shipped_file_says_the_defaults_of_the_code():
    assert yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) == Params().model_dump(mode="json")
    assert load_params(SHIPPED) == Params()


def test_the_shipped_file_has_every_key_in_declaration_order_below_a_comment():
    found = _keys_with_line_before(SHIPPED.read_text(encoding="utf-8"))
    assert [key for key, _ in found] == list(_all_keys(Params))
    assert len(found) > 100
    assert [key for key, above in found if not above.startswith("# ")] == []


def test_the_shipped_file_separates_its_sections_by_blank_lines():
    text = SHIPPED.read_text(encoding="utf-8")
    num_sections = sum(isinstance(getattr(Params(), name), BaseModel) for name in Params.model_fields)
    assert text.count("\n\n") == num_sections + 1  # one below the header
    assert "\n\n\n" not in text


def test_every_key_is_explained_in_the_code():
    def unexplained(section: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from unexplained(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                yield f"{prefix}{name}"

    assert list(unexplained(Params, "")) == []


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        (("crops",), "max_veiws", 3, "unknown key `crops.max_veiws`"),
        (("masks", "sam"), "pred_iou", 0.9, "unknown key `masks.sam.pred_iou`"),
        ((), "cropss", {}, "unknown key `cropss`"),
        (("crops",), "max_views", 0, "`crops.max_views`"),
        (("dataset",), "val_frac", 1.0, "`dataset.val_frac`"),
        (("model",), "dim", "wide", "`model.dim`"),
        (("model",), "dim", 1.5, "`model.dim`"),
        (("train", "joint"), "lr_backbone", float("nan"), "`train.joint.lr_backbone`"),
        (("train", "joint"), "augmentation", "strong", "`train.joint.augmentation`"),
        (("train", "joint"), "trainable_layers", 0, "trainable_layers must be at least 1"),
        ((), "crops", None, "`crops`"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(section, name, value, said):
    content = inner = _content()
    for key in section:
        inner = inner[key]
    inner[name] = value
    with pytest.raises(PipelineError) as raised:
        check_params(content, Path("some.yaml"))
    message = str(raised.value)
    assert said in message
    assert message.startswith("some.yaml: ")
    assert "\n" not in message


@pytest.mark.parametrize("key", list(_all_keys(Params)))
def test_a_missing_key_is_named_and_not_filled_in(key):
    content = inner = _content()
    *sections, name = key.split(".")
    for section in sections:
        inner = inner[section]
    del inner[name]
    with pytest.raises(PipelineError, match=f"key `{key}` is missing"):
        check_params(content, Path("params.yaml"))


def test_a_run_in_which_nothing_would_learn_is_refused():
    content = _content()
    content["train"]["warmup"]["epochs"] = content["train"]["joint"]["epochs"] = 0
    with pytest.raises(PipelineError, match="nothing would be learned"):
        check_params(content, Path("params.yaml"))


def test_a_number_that_yaml_1_1_reads_as_text_is_a_number(tmp_path):
    path = tmp_path / "params.yaml"
    text, num_replaced = re.subn(r"lr_backbone: .*", "lr_backbone: 125e-6", SHIPPED.read_text(encoding="utf-8"))
    assert num_replaced == 1
    assert yaml.safe_load(text)["train"]["joint"]["lr_backbone"] == "125e-6"
    path.write_text(text, encoding="utf-8")
    assert load_params(path).train.joint.lr_backbone == 0.000125


@pytest.mark.parametrize("content", ["a: [1\n", "- a\n", "", "just words", b"\xff\xfe\x00"])
def test_a_file_that_holds_no_params_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PipelineError) as raised:
        load_params(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"absent.yaml does not exist"):
        load_params(tmp_path / "absent.yaml")


def test_params_cannot_be_changed_after_they_were_read():
    params = Params()
    with pytest.raises(ValidationError, match="frozen"):
        params.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        params.crops.max_views = 1
