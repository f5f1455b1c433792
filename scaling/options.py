"""Makes the options of the command lines, and their page in the documentation, from the declarations of the settings.

`python -m scaling.options > docs/options.md` writes the page.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel

from scaling.config import RunConfig, option
from scaling.engines.kinds import takers_of
from scaling.methods.kinds import kind_of
from scaling.records.settings import Setting, settings_of

Command = TypeVar("Command", bound=Callable[..., None])
_BY_NAME = inspect.Parameter.KEYWORD_ONLY
_TYPED = (bool, int, float)  # types that the command line parses; other options are texts, which pydantic parses
_SHOWN = {bool: "switch", int: "whole number", float: "number", Path: "path", dict: "`key=value` pairs"}


def panel_option(help: str, panel: str, *names: str, metavar: str | None = None) -> Any:
    """A command-line option in a panel of the help.

    Args:
        help: its help text.
        panel: the heading of the panel.
        names: its spelling, if it is not that of the function's parameter.
        metavar: what the help shows for its value. It is needed for paths: they are read as texts, because an empty path
            would become the current folder.
    """
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, metavar=metavar)


def takes(model: type[BaseModel]) -> Callable[[Command], Command]:
    """A decorator that gives a command the settings of `model` as its first options, before its own.

    The command gets them as its parameter `**given`. An option that the user did not give is None.
    """

    def decorate(command: Command) -> Command:
        declared = inspect.signature(command, eval_str=True).parameters.values()
        named = [
            parameter.replace(kind=_BY_NAME)
            for parameter in declared
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = [*_parameters(model), *named]
        described: Any = command  # typer reads the options from the signature and the annotations
        described.__signature__ = inspect.Signature(parameters, return_annotation=None)
        described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {
            "return": None
        }
        return command

    return decorate


def _parameters(model: type[BaseModel]) -> Iterator[inspect.Parameter]:
    """The settings of a model as parameters of a command."""
    for name, setting in settings_of(model).items():
        field = model.model_fields[name]
        kinds = _kinds(field.annotation)
        typed = kinds[0] if len(kinds) == 1 and kinds[0] in _TYPED else str
        alone = [option(name)] if typed is bool and not field.default else []  # no --no-... option beside it
        metavar = "<path>" if kinds == [Path] else None
        shown = Annotated[typed | None, panel_option(setting.help, setting.group, *alone, metavar=metavar)]  # type: ignore[valid-type]
        yield inspect.Parameter(name, _BY_NAME, default=None, annotation=shown)


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows, and the words that it lists; without None."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if not get_args(annotation) or get_origin(annotation) is dict:
        return [] if annotation is NoneType else [get_origin(annotation) or annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]


def page() -> str:
    """The page of all options, as Markdown."""
    from scaling.probe.config import ProbeConfig
    from scaling.training.config import TrainConfig

    return "\n".join(
        [
            "# All options",
            "",
            "Each may stand in a YAML file given as `--config`, with `_` for `-`; the command line wins. The last column",
            "says what another value of the option means where a run, or a training, is there already: *another run* is",
            "refused in its folder, and gets one of its own where `--out` is not given. Beside these there are `--config`,",
            "`--json` and `--local-files-only`, and of `scale-run` `--rescore`, `--dry-run` and `--preview-data`, which",
            "cannot stand in that file.",
            "",
            "This page is made from the options' declarations, by `python -m scaling.options > docs/options.md`.",
            *_of_command("scale-run", RunConfig, "run"),
            *_of_command("scale-train", TrainConfig, "training"),
            *_of_command("scale-probe", ProbeConfig, "probe"),
        ]
    )


def _of_command(name: str, model: type[BaseModel], thing: str) -> Iterator[str]:
    """The lines of one command's section. thing: what the command makes, a "run", a "training" or a "probe"."""
    yield from ("", f"## `{name}`")
    settings = settings_of(model)
    for group in dict.fromkeys(setting.group for setting in settings.values()):
        yield from (
            "",
            f"### {group}",
            "",
            "| option | meaning | value | used by | another value |",
            "|---|---|---|---|---|",
        )
        for key, setting in settings.items():
            if setting.group == group:
                cells = (
                    setting.help,
                    _value(model, key),
                    _users(model, key, setting),
                    setting.effect.value.replace("run", thing),
                )
                yield f"| `{option(key)}` | {' | '.join(cells)} |"


def _value(model: type[BaseModel], key: str) -> str:
    """The possible values of an option, in words."""
    words = settings_of(model)[key].values or _kinds(model.model_fields[key].annotation)
    return ", ".join(f"`{word}`" if isinstance(word, str) else _SHOWN.get(word, "text") for word in words)


def _users(model: type[BaseModel], key: str, setting: Setting) -> str:
    """The methods and the engines that use an option; without the methods if all of them do."""
    if "method" not in model.model_fields:
        return ""
    methods = list(settings_of(model)["method"].values) or _kinds(model.model_fields["method"].annotation)
    users = [name for name in methods if setting.used_by and kind_of(name).has(setting.used_by)]
    engines = takers_of(key) if "engine" in model.model_fields else ()
    return "; ".join(", ".join(f"`{name}`" for name in names) for names in (users, engines) if names)


if __name__ == "__main__":
    print(page())
