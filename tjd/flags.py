"""Derive a command's flags from its config dataclasses, so that a default and its help text live in one place."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

WIDEST = 12  # characters of a choice that are not broken


def flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is annotated with a config dataclass by one option per field.

    The command is called with the dataclasses built from the options, and with its other parameters unchanged.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    configs: dict[str, type[Any]] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        if name in configs:
            parameters |= {p.name: p for p in _options(configs[name])}
        else:
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters[name] = parameter.replace(annotation=hints[name], kind=keyword)

    def run(**values: Any) -> None:
        built = {}
        for name, config in configs.items():
            own = {field.name: values.pop(field.name) for field in fields(config)}
            built[name] = config(**{key: tuple(v) if isinstance(v, list) else v for key, v in own.items()})
        command(**values, **built)

    run.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    return run


def _options(config: type) -> list[inspect.Parameter]:
    hints = get_type_hints(config)
    options = []
    for field in fields(config):
        kind, default = hints[field.name], field.default
        if get_origin(kind) is tuple:
            kind, default = list[get_args(kind)[0]], list(default) if default is not MISSING else []  # type: ignore[arg-type]
        names = (f"--{field.name.replace('_', '-')}", *field.metadata.get("names", ()))
        choices = _choices(get_args(kind)) if get_origin(kind) is Literal else None
        option = typer.Option(*names, help=field.metadata.get("help"), metavar=choices)
        options.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
            )
        )
    return options


def _choices(values: tuple[str, ...]) -> str:
    """A choice a line, so that the column of types leaves room for the names of options in a terminal of 80 columns."""
    return "\n|".join(value if len(value) <= WIDEST else value.replace("_", "_\n") for value in values)
