"""Every error a user can meet, and the exit code it becomes.

    TjdError .............. 1   (a bug or anything unforeseen also exits 1, with a traceback)
      ConfigError ......... 2   a flag or a config value; same code as a usage error
      DataError ........... 3   a table, a row or a file is not what it should be
        PromptError ....... 3   a prompt lacks a variable, or has one nobody fills
        CheckerError ...... 3   an unknown checker, or kwargs it does not take
      MissingExtraError ... 4   a command needs packages that are not installed
      BackendError ........ 5   the teacher failed past its retries, or too many verdicts are unreadable
        BudgetError ....... 7   --max-cost is reached; what arrived is kept
      TrainingError ....... 6   the loss is NaN, no group has any spread of reward, or a judge accepts hacks
    interrupt ............. 130, SIGTERM 143

Messages are one line: what is wrong, where, what to do.
"""


def first_line(exc: BaseException) -> str:
    """What a foreign error says, short enough for one line of ours."""
    said = str(exc).strip().splitlines()
    return said[0][:160] if said else type(exc).__name__


class TjdError(Exception):
    """Base of all errors that are told to the user in one line."""

    exit_code = 1


class ConfigError(TjdError):
    """A flag or a config value is out of range or contradicts another."""

    exit_code = 2


class DataError(TjdError):
    """A file or table is missing, unreadable, or breaks its schema."""

    exit_code = 3


class PromptError(DataError):
    """A prompt template and the variables given to it do not match."""


class CheckerError(DataError):
    """A rule constraint names a checker that does not exist, or kwargs it does not take."""


class MissingExtraError(TjdError):
    """A command needs an optional group of packages."""

    exit_code = 4


class BackendError(TjdError):
    """A model backend failed past its retries, or answered too much that cannot be read."""

    exit_code = 5


class BudgetError(BackendError):
    """The next call could cost more than is left of `--max-cost`."""

    exit_code = 7


class TrainingError(TjdError):
    """Training cannot go on, would learn nothing, or would learn to please a judge that can be fooled."""

    exit_code = 6
