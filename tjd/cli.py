"""The command line: puts the groups of commands together; the only place that exits.

Answers go to standard output, everything else to standard error, so that commands can be piped. Heavy imports live inside
the commands, so that `tjd --help` stays instant.
"""

import logging
import os
import signal
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tjd.commands import agreement, bench, benchmarks, cache, compare, concat, data, judges, policy, rules, trust
from tjd.commands.terminal import require_known, say
from tjd.errors import ConfigError, TjdError
from tjd.redaction import Formatter, redacted

UsageError: Any = typer.BadParameter.__base__  # what the parser raises; typer has no other name for it


class Terminated(KeyboardInterrupt):
    """SIGTERM: the time limit of a cluster, `timeout`, a container that is stopped. Treated as Ctrl-C is."""


class Boundary(TyperGroup):
    """Turns a TjdError into one line on standard error and its exit code; anything else is a bug."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command inside the boundary."""
        try:
            return super().invoke(ctx)
        except TjdError as error:
            say(f"error: {error}", style="red")
            raise typer.Exit(error.exit_code) from error
        except UsageError as error:
            if getattr(error, "option_name", None) == "--config":
                say("error: --config goes before the command: tjd --config FILE COMMAND ...", style="red")
                raise typer.Exit(error.exit_code) from error
            raise
        except KeyboardInterrupt as interrupt:
            say("interrupted; run the same command again to go on from what is done", style="yellow")
            raise typer.Exit(143 if isinstance(interrupt, Terminated) else 130) from None


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` prints tracebacks
    add_completion=False,
    rich_markup_mode="markdown",
)
for group in (data, concat, agreement, judges, compare, trust, policy, rules, benchmarks, bench, cache):
    app.add_typer(group.app)


@app.callback()
def main_callback(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="TOML file: a table of flags per command.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Distil a frontier model's judgement into tiny judges, and use them as the reward of a GRPO run.

    Every command reads and writes Parquet, and `-` is standard input or output:

    `tjd synthesize queries.jsonl -o - | tjd sample - -m hf:embedded -o - | tjd label - -o labels.parquet`
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve whatever shares the cores
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[to_stderr])
    logging.getLogger("tjd").setLevel(logging.INFO if verbose else logging.WARNING)
    if config is not None:
        ctx.default_map = _default_map(config)


def main() -> None:
    """Entry point: a reader that goes away (`| head`) is not an error worth a traceback; a bug is, without keys in it."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception:  # foreign errors in the chain quote what a server said, which may be our own headers
        sys.stderr.write(redacted(traceback.format_exc()))
        sys.exit(1)


def _terminate(*_: object) -> None:
    raise Terminated


def _default_map(path: Path) -> dict[str, Any]:
    """Read defaults from a TOML file; an unknown command or flag is an error that names the nearest."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:  # no TOML, or not even UTF-8
        raise ConfigError(f"--config {path} cannot be read ({exc})") from exc
    return _defaults(tables, typer.main.get_command(app), f"in {path}")


def _defaults(table: dict[str, Any], command: Any, where: str, name: str = "") -> dict[str, Any]:
    """A table of flags per command; of a group such as `import`, a table per command of its own."""
    within = f"under [{name}] {where}" if name else where
    commands = getattr(command, "commands", None)
    if commands is None:
        flags_of = {parameter.name: parameter for parameter in command.params}
        for key in table:
            require_known(key.replace("-", "_"), flags_of, f"flag {within}")
        named = {key.replace("-", "_"): value for key, value in table.items()}
        repeatable = {name for name in named if getattr(flags_of[name], "multiple", False)}
        return {
            name: [value] if name in repeatable and isinstance(value, str) else value for name, value in named.items()
        }
    for key, value in table.items():
        require_known(key, commands, f"command {within}")
        if not isinstance(value, dict):
            raise ConfigError(f"'{key}' {within} is a command; write a table of its flags")
    return {key: _defaults(value, commands[key], where, f"{name}.{key}".strip(".")) for key, value in table.items()}


if __name__ == "__main__":
    main()
