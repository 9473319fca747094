"""Keys out of texts that a person, a log or a table may show."""

import logging
import os
import re

SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # how the names of variables that hold secrets end
SHORTEST = 8  # characters; a shorter value would be found in innocent words
SHORTEST_IN_DATA = 16  # in the text of a model, which must not be changed without need

_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:g?sk[-_]|key-|hf_|xai-|AIza)[-\w*]{8,}")
_BEARER = re.compile(r"(?i)(\bbearer\s+)[^\s'\",}]+")
_IN_AN_ADDRESS = re.compile(r"(://)[^/\s:@]+:[^/\s@]+@")


def redacted(text: str) -> str:
    """A message without the values of secret environment variables, and without what looks like a key."""
    text = without_secrets(text, SHORTEST)
    text = _IN_AN_ADDRESS.sub(r"\1***@", _BEARER.sub(r"\1***", text))
    return _LOOKS_LIKE_A_KEY.sub("***", text)


def without_secrets(text: str, shortest: int = SHORTEST_IN_DATA) -> str:
    """A text without the values of secret environment variables: a server may repeat the headers it was sent."""
    for name, value in os.environ.items():
        if len(value) >= shortest and name.upper().endswith(SECRET_NAMES):
            text = text.replace(value, "***")
    return text


class Formatter(logging.Formatter):
    """Formats a log record, with its traceback, and redacts it."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        return redacted(super().format(record))
