"""The graph in dvc.yaml against what the stages do: a missing dependency is a stale result that nobody notices."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = ("dataset", "masks", "crops", "train", "project", "finetune", "evaluate", "report")
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))

# modules of the library that every stage may import without depending on them, and why
PLUMBING = {
    "pipeline/cli.py": "turns errors into exit codes; without influence on what is written",
    "pipeline/engine.py": "where work runs; its tests show that results do not hang on it",
    "pipeline/errors.py": "the class of an error that a user can mend",
    "pipeline/io.py": "how files are written (in one step), not what is in them",
    "pipeline/params.py": "types and ranges; DVC tracks the values through `params:`",
    "pipeline/runtime.py": "device and workers: how it runs and never what comes out",
    "pipeline/validation.py": "wording of an error",
}


def resolved(path):
    """Put the value of params.yaml in the place of ``${key}``."""
    if path.startswith("${"):
        value = PARAMS
        for key in path.removeprefix("${").removesuffix("}").split("."):
            value = value[key]
        return value
    return path


def names_of(entries):
    """Paths of deps or outs; an entry with options is a mapping of one path to them."""
    return [resolved(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


def deps_of(stage):
    return names_of(GRAPH["stages"][stage]["deps"])


def outs_of(stage):
    return [path for kind in ("outs", "metrics", "plots") for path in names_of(GRAPH["stages"][stage].get(kind, []))]


def lies_in(path, folder):
    return Path(path) == Path(folder) or Path(folder) in Path(path).parents


def is_covered(path, stage):
    return any(lies_in(path, dep) for dep in deps_of(stage))


@pytest.fixture(scope="module")
def imported():
    """The files of the project that each stage imports, measured in one fresh process.

    Only the project's own modules are dropped between two stages, so that torch is imported once.
    """
    script = """
import importlib, json, sys
files = {}
for stage in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] in ("pipeline", "stages")]:
        del sys.modules[name]
    importlib.import_module("stages." + stage)
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] in ("pipeline", "stages")]
    files[stage] = [module.__file__ for module in loaded]
print(json.dumps(files))
"""
    done = subprocess.run([sys.executable, "-c", script, *STAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    files = json.loads(done.stdout.splitlines()[-1])
    return {stage: {Path(file).relative_to(ROOT).as_posix() for file in files[stage]} for stage in STAGES}


def file_of(module):
    """The project's file of a module or package, or None."""
    for path in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


def named_in(file):
    """The files of the project that FILE imports anywhere, inside functions too."""
    named = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = {name for name in named if name.split(".")[0] in ("pipeline", "stages")}
    return {file_of(name) for name in ours} - {None}


def imported_sooner_or_later(files):
    """FILES and all that they import, once running, too."""
    found, waiting = set(), set(files)
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= named_in(file) - found
    return found


def only_describes(file):
    """Whether FILE is a package's ``__init__.py`` that defines nothing: no function, no class."""
    if Path(file).name != "__init__.py":
        return False
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree))


def test_the_graph_has_the_eight_stages_in_their_order():
    assert tuple(GRAPH["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name_in_script_graph_and_params(stage):
    script = ROOT / "stages" / f"{stage}.py"
    assert script.is_file()
    assert GRAPH["stages"][stage]["cmd"].startswith(f"python -m stages.{stage} ")
    assert f"stages/{stage}.py" in deps_of(stage)
    assert isinstance(PARAMS[stage], dict)
    assert stage in GRAPH["stages"][stage]["params"]
    assert f"``{stage}``" in ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))


def test_no_script_is_left_out_of_the_graph():
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_the_dependencies_of_a_stage_cover_every_module_it_imports(stage, imported):
    files = imported[stage]
    assert f"stages/{stage}.py" in files
    assert len(files) > 10
    uncovered = sorted(
        file for file in files if not is_covered(file, stage) and file not in PLUMBING and not only_describes(file)
    )
    assert uncovered == [], f"add them to the deps of {stage} in dvc.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_the_dependencies_of_a_stage_cover_what_it_imports_while_it_runs(stage, imported):
    files = imported_sooner_or_later(imported[stage])
    assert files >= imported[stage]
    uncovered = sorted(
        file for file in files if not is_covered(file, stage) and file not in PLUMBING and not only_describes(file)
    )
    assert uncovered == [], f"add them to the deps of {stage} in dvc.yaml"


def test_the_plumbing_is_there_and_is_imported(imported):
    assert set(PLUMBING) <= set.union(*imported.values())


@pytest.mark.parametrize("stage", STAGES)
def test_every_dependency_is_a_file_of_the_project_or_the_out_of_an_earlier_stage(stage):
    earlier = [out for other in STAGES[: STAGES.index(stage)] for out in outs_of(other)]
    for dep in deps_of(stage):
        assert dep in earlier or (ROOT / dep).exists(), dep
    assert len(deps_of(stage)) == len(set(deps_of(stage)))


@pytest.mark.parametrize("stage", STAGES)
def test_no_dependency_is_listed_that_no_import_needs(stage, imported):
    """A superfluous one would run hours of work again for nothing."""
    files = imported_sooner_or_later(imported[stage])
    code = [dep for dep in deps_of(stage) if dep.startswith(("pipeline/", "stages/"))]
    templated = [resolved(dep) for dep in GRAPH["stages"][stage]["deps"] if dep.startswith("${")]
    for dep in code:
        assert dep in templated or any(lies_in(file, dep) for file in files), dep


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_names_what_the_stage_reads_and_writes(stage):
    arguments = GRAPH["stages"][stage]["cmd"].split()[3:]
    read = [
        resolved(dep)
        for dep in GRAPH["stages"][stage]["deps"]
        if not dep.startswith(("${", "pipeline/", "stages/"))  # templated ones reach the stage through params.yaml
    ]
    assert outs_of(stage)
    for path in read + outs_of(stage):
        assert any(lies_in(path, argument) for argument in arguments), path
    for argument in arguments:
        assert any(lies_in(path, argument) for path in read + outs_of(stage)), argument


def test_every_param_is_a_key_of_params_yaml():
    num_params = 0
    for stage in STAGES:
        for key in GRAPH["stages"][stage]["params"]:
            value = PARAMS
            for part in key.split("."):
                assert part in value, f"{stage}: {key}"
                value = value[part]
            num_params += 1
    assert num_params >= len(STAGES)


def test_every_key_of_params_yaml_reruns_a_stage():
    tracked = {key.split(".")[0] for stage in STAGES for key in GRAPH["stages"][stage]["params"]}
    assert tracked == set(PARAMS)


def test_paths_in_the_params_are_dependencies():
    assert "${dataset.source}" in GRAPH["stages"]["dataset"]["deps"]
    assert "${masks.weights}" in GRAPH["stages"]["masks"]["deps"]


def test_how_it_runs_is_no_dependency():
    for stage in STAGES:
        assert not is_covered("runtime.yaml", stage)
        assert not any("runtime.yaml" in str(entry) for entry in GRAPH["stages"][stage]["params"])


def mappings_in(node):
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from mappings_in(child)


def test_nothing_switches_off_the_run_cache():
    mappings = list(mappings_in(GRAPH["stages"]))
    assert len(mappings) > len(STAGES)
    for mapping in mappings:
        assert "persist" not in mapping
        assert mapping.get("cache", True)
        assert "always_changed" not in mapping
        assert not mapping.get("frozen", False)


def test_no_out_is_written_by_two_stages_or_lies_in_another():
    outs = [out for stage in STAGES for out in outs_of(stage)]
    assert len(outs) >= 2 * len(STAGES) - 1
    for i, out in enumerate(outs):
        for j, other in enumerate(outs):
            assert i == j or not lies_in(out, other), f"{out} lies in {other}"


def test_the_store_of_finished_masks_is_no_out_and_no_dependency():
    for stage in STAGES:
        assert not is_covered(".cache/masks.sqlite", stage)
        assert not any(lies_in(".cache/masks.sqlite", out) for out in outs_of(stage))


def test_git_ignores_every_out_and_the_store_and_nothing_that_a_stage_depends_on(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)

    def ignored(path):
        return subprocess.run(["git", "-C", tmp_path, "check-ignore", "--quiet", "--no-index", path]).returncode == 0

    outs = [out for stage in STAGES for out in outs_of(stage)]
    for path in [*outs, ".cache/masks.sqlite"]:
        assert ignored(path), path
    code = {dep for stage in STAGES for dep in deps_of(stage)} - set(outs)
    assert len(code) > 10
    for path in [*code, "dvc.yaml", "dvc.lock", "params.yaml", "runtime.yaml"]:
        assert not ignored(path), path
