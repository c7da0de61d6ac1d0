"""Presets: override files for known experiments, laid over ``params.yaml`` in place.

What is laid are the defaults of :mod:`pipeline.params`, then the chain of ``extends:``, then the preset's own keys,
then the ``-S`` overrides. The values that the file held before play no part, so a preset gives the same file whichever
was laid before it; comments, order and blank lines of the file stay.
"""

import difflib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml as yaml_1_1
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from typer import Argument, Option

from pipeline.cli import command_line
from pipeline.errors import PipelineError
from pipeline.io import new_file
from pipeline.params import Params, Section, check_params

_NO_VALUE = "(absent)"


class Change(NamedTuple):
    """One key whose value a preset replaces; values as they stand in the file."""

    key: str
    old: str
    new: str


def preset_names(presets: Path) -> list[str]:
    """List the presets in the folder PRESETS, sorted.

    Raises:
        PipelineError: the folder holds none.
    """
    names = sorted(path.stem for path in Path(presets).glob("*.yaml"))
    if not names:
        raise PipelineError(
            f"{presets} holds no presets (*.yaml): run the command in the project's folder, or give --presets"
        )
    return names


def description(path: Path) -> str:
    """Give the first comment line of the preset file PATH, without its ``#``."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def compose(name: str, overrides: Sequence[str] = (), *, presets: Path = Path("presets")) -> Params:
    """Put together the params of the preset NAME.

    Args:
        name: a preset file of the folder, without ``.yaml``.
        overrides: ``key=value`` pairs such as ``crops.max_views=4``. Values are YAML; the type of the key decides where
            YAML is ambiguous (``1e-4`` is a number for a number's key and a text for a text's key).
        presets: folder of the preset files.

    Raises:
        PipelineError: unknown preset, unknown key, or a value of a wrong type or out of range; names where it stands.
    """
    content = Params().model_dump(mode="json")
    for path in _chain(name, Path(presets)):
        layer = _read_preset(path)
        layer.pop("extends", None)
        _merge(content, layer, origin=str(path))
        check_params(content, path)
    for override in overrides:
        apply_override(content, override)
    return check_params(content, Path("-S"))  # every layer before has been checked under its own name


def lay(params: Params, path: Path, *, dry_run: bool = False) -> list[Change]:
    """Write PARAMS into the existing file PATH, in one step, and tell which keys changed.

    Comments, order and blank lines stay. A key that the file lacks is added at the end of its section.

    Args:
        params: what the file says afterwards.
        path: an existing params.yaml.
        dry_run: only tell; the file stays as it is.

    Raises:
        PipelineError: the file does not exist, is no YAML, or has keys that are none.
    """
    path = Path(path)
    try:
        old_text = path.read_text(encoding="utf-8")
        document = _round_trip().load(old_text)
    except FileNotFoundError:
        raise PipelineError(
            f"{path} does not exist: run the command in the project's folder, or give --params"
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, CommentedMap):
        raise PipelineError(f"{path}: expected `key: value` lines with sections such as `dataset:`")

    content = params.model_dump(mode="json")
    old = dict(leaves(document))
    changes = [
        Change(key, _shown(old.get(key, _NO_VALUE)), _shown(value))
        for key, value in leaves(content)
        if key not in old or old[key] != value or isinstance(old[key], bool) != isinstance(value, bool)
    ]
    _set(document, content)
    buffer = io.StringIO()
    _round_trip().dump(document, buffer)
    new_text = buffer.getvalue()
    reread = check_params(yaml_1_1.safe_load(new_text), path)
    assert reread == params, f"{path}: what was laid does not read back as it was meant"
    if not dry_run and new_text != old_text:
        with new_file(path) as work:
            work.write_text(new_text, encoding="utf-8")
    return changes


def _chain(name: str, presets: Path) -> list[Path]:
    """List the preset files from the root of ``extends:`` to NAME's own."""
    known = preset_names(presets)
    chain: list[str] = []
    asked_by = ""
    next_name: Any = name
    while next_name is not None:
        if next_name not in known:
            near = difflib.get_close_matches(str(next_name), known, n=3, cutoff=0.4)
            hint = f"; near: {', '.join(near)}" if near else "; --list shows them"
            raise PipelineError(f"{asked_by}no preset `{next_name}` in {presets}{hint}")
        if next_name in chain:
            raise PipelineError(f"{presets}: `extends` goes in a circle: {' -> '.join([*chain, next_name])}")
        chain.append(next_name)
        path = presets / f"{next_name}.yaml"
        asked_by = f"{path}: extends: "
        next_name = _read_preset(path).get("extends")
    return [presets / f"{link}.yaml" for link in reversed(chain)]


def _read_preset(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:  # only comments: the defaults themselves
        return {}
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: expected `key: value` lines with sections such as `dataset:`")
    return content


def _merge(base: dict[str, Any], layer: Mapping[str, Any], *, origin: str, prefix: str = "") -> None:
    """Lay LAYER over BASE, which has every key; ORIGIN is for messages."""
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if name not in base:
            raise _unknown_key(key, origin)
        if isinstance(base[name], dict):
            if not isinstance(value, Mapping):
                raise PipelineError(
                    f"{origin}: `{key}` is a section: name the key, such as `{key}.{next(iter(base[name]))}`"
                )
            _merge(base[name], value, origin=origin, prefix=f"{key}.")
        else:
            base[name] = value


def apply_override(content: dict[str, Any], override: str) -> None:
    """Lay one ``key=value`` over CONTENT."""
    origin = f"-S {override}"
    key, equals, text = override.partition("=")
    if not equals:
        raise PipelineError(f"{origin}: expected key=value, such as crops.max_views=4")
    *sections, name = key.strip().split(".")
    inner: dict[str, Any] = content
    section: type[Section] = Params
    for outer in sections:
        annotation = section.model_fields[outer].annotation if outer in section.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            raise _unknown_key(key, origin)
        inner, section = inner[outer], annotation
    value = _typed(text, section.model_fields[name].annotation) if name in section.model_fields else None
    _merge(inner, {name: value}, origin=origin, prefix="".join(f"{outer}." for outer in sections))


def _typed(text: str, annotation: Any) -> Any:
    """Read TEXT as YAML, or as it stands where only that fits the key's type."""
    try:
        parsed = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text
    adapter = TypeAdapter(annotation)
    for value in (parsed, text):
        try:
            adapter.validate_python(value)
        except ValidationError:
            continue
        return value
    return parsed  # fits neither way; the check of the whole says why


def _unknown_key(key: str, origin: str) -> PipelineError:
    known = [known_key for known_key, _ in leaves(Params().model_dump(mode="json"))]
    same_name = [known_key for known_key in known if known_key.endswith(f".{key.rpartition('.')[2]}")]
    near = same_name or difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {' or '.join(f'`{match}`' for match in near[:3])}?" if near else ""
    return PipelineError(f"{origin}: unknown key `{key}`{hint}")


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List nested values under dotted keys."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _set(document: CommentedMap, content: Mapping[str, Any]) -> None:
    """Give DOCUMENT the values of CONTENT, each in one canonical writing, without losing a comment."""
    for name, value in content.items():
        old = document.get(name)
        if isinstance(value, Mapping):
            if not isinstance(old, CommentedMap):
                document[name] = old = CommentedMap()
            _set(old, value)
        elif isinstance(value, list):
            if isinstance(old, CommentedSeq) and list(old) == value:
                continue
            document[name] = new = CommentedSeq(_scalar(item) for item in value)
            new.fa.set_flow_style()
            if isinstance(old, CommentedSeq) and len(old) - 1 in old.ca.items:
                # ruamel keeps what stands between a block list and the next key with the list's last item
                document.ca.items.setdefault(name, [None] * 4)[2] = old.ca.items[len(old) - 1][0]
        else:
            document[name] = _scalar(value)


def _scalar(value: Any) -> Any:
    """Quote a text that readers of YAML 1.1 would take for something else, such as ``no``."""
    if isinstance(value, str) and _read_plain(value) != value:
        return DoubleQuotedScalarString(value)
    return value


def _read_plain(text: str) -> Any:
    try:
        return yaml_1_1.safe_load(text)
    except yaml_1_1.YAMLError:
        return None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return "null" if value is None else str(value)


class _Representer(RoundTripRepresenter):
    """Writes null in full, and floats so that YAML 1.1 readers see a number as well (``6.0e-05``, not ``6e-05``)."""


def _represent_float(representer: RoundTripRepresenter, value: float) -> Any:
    mantissa, exponent_sign, exponent = repr(value).partition("e")
    if exponent_sign and "." not in mantissa:
        mantissa += ".0"
    return representer.represent_scalar("tag:yaml.org,2002:float", f"{mantissa}{exponent_sign}{exponent}")


def _represent_none(representer: RoundTripRepresenter, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(float, _represent_float)
_Representer.add_representer(type(None), _represent_none)


def _round_trip() -> YAML:
    yaml = YAML(typ="rt")
    yaml.Representer = _Representer
    yaml.width = 2**16  # a long value stays on its line
    return yaml


def _print_list(presets: Path) -> None:
    table = Table("preset", "what it is")
    for name in preset_names(presets):
        table.add_row(Text(name, no_wrap=True), Text(description(presets / f"{name}.yaml")))
    Console().print(table)


def _print_changes(changes: Iterable[Change]) -> None:
    table = Table("key", "old", "new")
    for change in changes:
        table.add_row(Text(change.key, no_wrap=True), *(Text(value, overflow="fold") for value in change[1:]))
    Console().print(table)


def main(
    name: str | None = Argument(
        None, help="A preset: a file of the folder --presets, without .yaml.", show_default=False
    ),
    overrides: list[str] = Option(
        [], "-S", metavar="KEY=VALUE", help="Override one key, such as `-S crops.max_views=4`; can be repeated."
    ),
    list_presets: bool = Option(False, "--list", help="List the presets and stop (as without NAME)."),
    dry_run: bool = Option(False, "--dry-run", help="Show what would change; write nothing."),
    params: Path = Option(Path("params.yaml"), help="The file to lay the preset over."),
    presets: Path = Option(Path("presets"), help="The folder of presets."),
) -> None:
    """Lay the preset NAME over params.yaml: the defaults, then the preset, then the -S overrides.

    Whatever was laid or edited before is replaced; comments and order of the file stay.
    """
    if name is None or list_presets:
        if overrides:
            raise PipelineError("-S needs a preset to lie over: name one (`demo` is the defaults)")
        _print_list(presets)
        return
    changes = lay(compose(name, overrides, presets=presets), params, dry_run=dry_run)
    if not changes:
        print(f"{params}: nothing changes")
        return
    _print_changes(changes)
    number = "1 value" if len(changes) == 1 else f"{len(changes)} values"
    print(f"{params}: {number} {'would change (dry run)' if dry_run else 'changed'}")


app = command_line(main)

if __name__ == "__main__":
    app()
