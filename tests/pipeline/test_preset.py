"""Presets: what they lay, what they leave alone, and what they refuse."""

import shutil
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline.errors import PipelineError
from pipeline.params import Params, load_params
from pipeline.preset import app, compose, description, lay, preset_names

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "presets"
SHIPPED = ROOT / "params.yaml"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(SHIPPED, tmp_path / "params.yaml"))


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What each preset of the project makes of the shipped file."""
    path = tmp_path_factory.mktemp("laid") / "params.yaml"
    contents = {}
    for name in NAMES:
        shutil.copy(SHIPPED, path)
        lay(compose(name, presets=PRESETS), path)
        contents[name] = path.read_bytes()
    return contents


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    """A folder of small presets: base <- middle <- top, and demo."""
    folder = tmp_path / "presets"
    folder.mkdir()
    for name, text in {
        "demo": "# Nothing\n",
        "base": "# The base\ncrops:\n  max_views: 91\n  square: true\nmodel:\n  dim: 1016\n",
        "middle": "extends: base\ncrops:\n  max_views: 92\n",
        "top": "extends: middle\nmodel:\n  dim: 1032\n",
    }.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def _run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def _run_here(params_file: Path, presets: Path, *args: object):
    return _run(*args, "--params", params_file, "--presets", presets)


# the presets that ship


def test_the_authors_preset_turns_every_departure_on():
    assert all(compose("cub200-sam2-authors", presets=PRESETS).compat.model_dump().values())


def test_every_preset_of_the_project_validates_and_says_what_it_is():
    assert len(NAMES) >= 14
    assert {"demo", "paper"} < set(NAMES)
    for dataset in ("cub200", "dogs", "cars196"):
        for segmenter in ("superpixel", "sam", "sam2", "slit"):
            params = compose(f"{dataset}-{segmenter}", presets=PRESETS)
            assert (params.dataset.name, params.masks.segmenter) == (dataset, segmenter)
            assert params.dataset.source.startswith("raw/")
    for name in NAMES:
        assert isinstance(compose(name, presets=PRESETS), Params)
        assert len(description(PRESETS / f"{name}.yaml")) > 20


def test_a_laid_preset_reads_back_as_it_was_composed(tmp_path, laid):
    assert len(set(laid.values())) == len(NAMES) >= 14
    for name, content in laid.items():
        (tmp_path / "params.yaml").write_bytes(content)
        assert load_params(tmp_path / "params.yaml") == compose(name, presets=PRESETS)


@pytest.mark.parametrize("before", NAMES)
def test_laying_a_preset_gives_the_same_file_whatever_was_laid_before(params_file, laid, before):
    for after in NAMES:
        params_file.write_bytes(laid[before])
        lay(compose(after, presets=PRESETS), params_file)
        assert params_file.read_bytes() == laid[after], after


@pytest.mark.parametrize("name", NAMES)
def test_demo_restores_the_shipped_file_byte_for_byte(params_file, name):
    lay(compose(name, presets=PRESETS), params_file)
    lay(compose("demo", presets=PRESETS), params_file)
    assert params_file.read_bytes() == SHIPPED.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_laid_preset_keeps_every_line_but_those_of_changed_values(params_file, name):
    num_changes = len(lay(compose(name, presets=PRESETS), params_file))
    before = SHIPPED.read_text(encoding="utf-8").splitlines()
    after = params_file.read_text(encoding="utf-8").splitlines()
    assert len(before) == len(after)
    differing = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(differing) == num_changes
    assert all(a.partition(":")[0] == b.partition(":")[0] for a, b in differing)


@pytest.mark.parametrize(
    ("name", "max_views", "lr_backbone", "lr_prototypes", "lr_step_epochs"),
    [  # the parameter table of the authors' code
        ("cub200-sam2", 11, 0.00006, 0.003, 35),
        ("cub200-slit", 8, 0.000094, 0.0027, 35),
        ("dogs-sam2", 13, 0.00001, 0.003, 30),
        ("dogs-slit", 10, 0.000029, 0.003, 30),
        ("cars196-sam2", 16, 0.00006, 0.002, 35),
        ("cars196-slit", 11, 0.000073, 0.0035, 35),
        ("cub200-sam", 11, 0.00006, 0.003, 35),
        ("dogs-sam", 13, 0.00001, 0.003, 30),
        ("cars196-sam", 16, 0.00006, 0.002, 35),
    ],
)
def test_the_published_runs_have_their_published_values(name, max_views, lr_backbone, lr_prototypes, lr_step_epochs):
    params = compose(name, presets=PRESETS)
    joint = params.train.joint
    assert params.crops.max_views == max_views
    assert (joint.lr_backbone, joint.lr_prototypes) == (lr_backbone, lr_prototypes)
    assert (joint.lr_step_epochs, joint.lr_gamma, joint.epochs) == (lr_step_epochs, 0.5, 100)
    assert (params.train.batch_images, params.train.accumulate_batches, params.train.warmup.epochs) == (16, 4, 0)
    assert (params.finetune.epochs, params.finetune.lr, params.finetune.l1) == (10, 0.0003, 0.001)
    assert (params.model.dim, params.model.prototypes_per_class, params.model.similarity_epsilon) == (1280, 10, 1e-14)
    assert (params.crops.order, params.crops.whole_image, params.crops.padding_frac) == ("area", False, 0)


# composing


def test_extends_is_laid_before_the_own_keys_of_each_preset(presets):
    params = compose("top", presets=presets)
    assert (params.crops.max_views, params.crops.square, params.model.dim) == (92, True, 1032)
    assert params.train == Params().train


def test_overrides_are_laid_last_and_in_their_order(presets):
    params = compose("top", ["model.dim=64", "crops.max_views=5", "model.dim=8"], presets=presets)
    assert (params.crops.max_views, params.model.dim, params.crops.square) == (5, 8, True)


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("finetune.lr=1e-4", "finetune", "lr", 0.0001),
        ("finetune.epochs=1e1", "finetune", "epochs", 10),
        ("crops.square=yes", "crops", "square", True),
        ("crops.square=false", "crops", "square", False),
        ("model.weights=null", "model", "weights", None),
        ("model.weights=1e-4", "model", "weights", "1e-4"),  # a text's key: the text as it stands
        ("model.weights='null'", "model", "weights", "null"),
        ("dataset.source=2024-01-01", "dataset", "source", "2024-01-01"),
        ("dataset.source=C: [data", "dataset", "source", "C: [data"),
        ("dataset.source=a=b", "dataset", "source", "a=b"),
        ("dataset.classes=[no, '7', Black Tern]", "dataset", "classes", ("no", "7", "Black Tern")),
        ("crops={max_views: 2}", "crops", "max_views", 2),
    ],
)
def test_an_override_is_read_as_the_type_of_its_key_wants(params_file, presets, override, section, name, value):
    params = compose("demo", [override], presets=presets)
    found = getattr(getattr(params, section), name)
    assert found == value
    assert type(found) is type(value)
    lay(params, params_file)
    # what YAML 1.1 (PyYAML) and YAML 1.2 (DVC) read from the file is the same
    text = params_file.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == YAML(typ="safe", pure=True).load(text) == params.model_dump(mode="json")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("crops.max_view=3", r"unknown key `crops.max_view`; did you mean `crops.max_views`\?"),
        ("dim=3", r"unknown key `dim`; did you mean `model.dim`\?"),
        ("corps.max_views=3", r"unknown key `corps.max_views`; did you mean `crops.max_views`\?"),
        ("seed.more=3", r"unknown key `seed.more`"),
        ("=3", r"unknown key ``"),
        ("crops.max_views", r"expected key=value"),
        ("crops=3", r"`crops` is a section"),
        ("crops.max_views=many", r"`crops.max_views`: .*'many'"),
        ("crops.max_views=0", r"`crops.max_views`: .*it is 0"),
        ("dataset.classes=Tern", r"`dataset.classes`: "),
    ],
)
def test_a_bad_override_is_one_line_that_names_the_key(params_file, presets, override, said):
    with pytest.raises(PipelineError, match=said):
        compose("demo", [override], presets=presets)
    result = _run_here(params_file, presets, "demo", "-S", override)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: -S")
    assert result.stderr.count("\n") == 1
    assert params_file.read_bytes() == SHIPPED.read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crops:\n  max_veiws: 3\n", r"bad.yaml: unknown key `crops.max_veiws`; did you mean `crops.max_views`"),
        ("crops:\n", r"bad.yaml: `crops` is a section"),
        ("crops:\n  max_views: 0\n", r"bad.yaml: `crops.max_views`"),
        ("crops:\n  max_views: {a: 1}\n", r"bad.yaml: `crops.max_views`"),
        ("crops:\n  max_views: 3\n  max_views: 4\n", r"bad.yaml: not valid YAML.*duplicate key"),
        ("- crops\n", r"bad.yaml: expected `key: value`"),
        ("extends: bsae\n", r"bad.yaml: extends: no preset `bsae` in .*; near: base"),
        ("extends: bad\n", r"`extends` goes in a circle: bad -> bad"),
        ("extends: [base, top]\n", r"no preset `\['base', 'top'\]`"),
    ],
)
def test_a_bad_preset_file_is_one_line_that_names_the_file_and_the_key(presets, text, said):
    (presets / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(PipelineError, match=said) as raised:
        compose("bad", presets=presets)
    assert "\n" not in str(raised.value)


def test_an_unknown_preset_is_one_line_with_the_nearest_names(params_file):
    result = _run_here(params_file, PRESETS, "cub200sam")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "no preset `cub200sam`" in result.stderr
    assert "cub200-sam, cub200-sam2" in result.stderr


def test_a_folder_without_presets_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="holds no presets"):
        preset_names(tmp_path)


# laying


def test_a_users_own_comments_order_and_blank_lines_stay(tmp_path):
    path = tmp_path / "params.yaml"
    text = SHIPPED.read_text(encoding="utf-8")
    text = text.replace("\nseed: 0\n", "\nseed: 7  # my lucky one\n\n\n# a remark of mine\n")
    assert "a remark of mine" in text
    path.write_text(text, encoding="utf-8")
    lay(compose("paper", presets=PRESETS), path)
    lay(compose("demo", presets=PRESETS), path)
    assert path.read_text(encoding="utf-8") == text.replace("seed: 7", "seed: 0")


def test_what_follows_a_list_written_on_many_lines_stays(tmp_path):
    path = tmp_path / "params.yaml"
    shipped = SHIPPED.read_text(encoding="utf-8")
    assert "  classes: []\n" in shipped
    path.write_text(shipped.replace("  classes: []\n", "  classes:\n  - Tern\n  - Gull\n"), encoding="utf-8")
    assert load_params(path).dataset.classes == ("Tern", "Gull")
    lay(Params(), path)
    assert path.read_text(encoding="utf-8") == shipped


def test_the_same_list_written_on_many_lines_stays_as_it_is(tmp_path, presets):
    path = tmp_path / "params.yaml"
    shipped = SHIPPED.read_text(encoding="utf-8")
    text = shipped.replace("  classes: []\n", "  classes:\n  - Tern\n  - Gull\n")
    path.write_text(text, encoding="utf-8")
    assert lay(compose("demo", ["dataset.classes=[Tern, Gull]"], presets=presets), path) == []
    assert path.read_text(encoding="utf-8") == text


def test_a_key_the_file_lacks_is_added_with_its_section(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("# mine\nseed: 1\ncrops:\n  max_views: 1 # few\n", encoding="utf-8")
    changes = lay(Params(), path)
    assert load_params(path) == Params()
    assert {change.key: change.old for change in changes}["model.dim"] == "(absent)"
    assert path.read_text(encoding="utf-8").startswith("# mine\nseed: 0\ncrops:\n")
    assert "# few" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 0\nextra: 1\n", "unknown key `extra`"),
        ("seed: [\n", "not valid YAML"),
        ("- seed\n", "expected `key: value`"),
        ("", "expected `key: value`"),
    ],
)
def test_a_file_that_cannot_be_laid_over_is_named_and_stays(tmp_path, text, said):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PipelineError, match=said) as raised:
        lay(Params(), path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert path.read_text(encoding="utf-8") == text


def test_a_file_that_does_not_exist_is_named_and_not_made(tmp_path):
    with pytest.raises(PipelineError, match=r"params.yaml does not exist"):
        lay(Params(), tmp_path / "params.yaml")
    assert list(tmp_path.iterdir()) == []


# the command


def test_the_command_writes_the_file_and_shows_old_and_new_of_what_changed(params_file, presets):
    result = _run_here(params_file, presets, "top", "-S", "finetune.lr=1.25e-7")
    assert result.exit_code == 0, result.output
    assert load_params(params_file) == compose("top", ["finetune.lr=1.25e-7"], presets=presets)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.stdout.splitlines() if "│" in line]
    default = Params()
    assert rows == [
        ["crops.max_views", str(default.crops.max_views), "92"],
        ["crops.square", "false", "true"],
        ["model.dim", str(default.model.dim), "1032"],
        ["finetune.lr", str(default.finetune.lr), "1.25e-07"],
    ]
    assert "4 values changed" in result.stdout
    assert sorted(path.name for path in params_file.parent.iterdir()) == ["params.yaml", "presets"]


def test_a_dry_run_shows_the_same_and_writes_nothing(params_file, presets):
    dry = _run_here(params_file, presets, "top", "--dry-run")
    assert dry.exit_code == 0
    assert params_file.read_bytes() == SHIPPED.read_bytes()
    wet = _run_here(params_file, presets, "top")
    assert [line for line in dry.stdout.splitlines() if "│" in line] == [
        line for line in wet.stdout.splitlines() if "│" in line
    ]
    assert params_file.read_bytes() != SHIPPED.read_bytes()


def test_laying_twice_says_that_nothing_changes(params_file, presets):
    assert _run_here(params_file, presets, "top").exit_code == 0
    again = _run_here(params_file, presets, "top")
    assert again.exit_code == 0
    assert "nothing changes" in again.stdout


@pytest.mark.parametrize("args", [[], ["--list"], ["top", "--list"]])
def test_without_a_name_the_presets_are_listed_with_their_first_comment(params_file, presets, args):
    result = _run_here(params_file, presets, *args)
    assert result.exit_code == 0, result.output
    assert [name for name in ("base", "demo", "middle", "top") if name in result.stdout] == preset_names(presets)
    assert "The base" in result.stdout
    assert params_file.read_bytes() == SHIPPED.read_bytes()


def test_overrides_without_a_preset_are_refused_rather_than_ignored(params_file, presets):
    result = _run_here(params_file, presets, "-S", "model.dim=3")
    assert result.exit_code == 1
    assert "-S needs a preset" in result.stderr
