"""Prompts are files, `prompts/<stage>.v<n>.md`, filled strictly: a variable nobody gave, or nobody uses, is an error.

A published prompt never changes; a new wording is a new version. Its digest goes into the provenance of every table.
What is filled in is data: it stands between tags, and a text that contains such a tag cannot end the data it is part of.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

from tjd.errors import PromptError
from tjd.resources import folder

_CLOSING_TAG = re.compile(r"</(\w+)>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt template and where it comes from."""

    name: str  # "label.pointwise.v1"
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the template."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def variables(self) -> frozenset[str]:
        """Names the template asks for."""
        return frozenset(Template(self.text).get_identifiers())

    def render(self, **values: str) -> str:
        """Fill the template; values are never read as templates, and inserted as they are.

        But for the template's own tags: in a value, the `<` of such a tag becomes `&lt;`.

        Raises:
            PromptError: The values are not exactly the template's variables.
        """
        template, tag = _compiled(self, frozenset(values))
        if tag is not None:
            values = {name: tag.sub("&lt;", value) if "<" in value else value for name, value in values.items()}
        return template.substitute(values)

    def split_at(self, *names: str) -> list[str]:
        """The fixed text before, between and after variables that stand once each, in this order."""
        _require_variables(self, frozenset(names))
        pieces, found, end = [""], [], 0
        for match in Template.pattern.finditer(self.text):
            pieces[-1] += self.text[end : match.start()]
            end = match.end()
            if match["escaped"]:
                pieces[-1] += "$"
            else:
                found.append(match["named"] or match["braced"])
                pieces.append("")
        if found != list(names):
            raise PromptError(f"prompt {self.name} must use {', '.join('$' + n for n in names)} once, in this order")
        return [*pieces[:-1], pieces[-1] + self.text[end:]]


def load(name: str, variables: Sequence[str]) -> Prompt:
    """Load a shipped prompt by name, or a user's own by path, and check its variables.

    Raises:
        PromptError: There is no such prompt, or it has other variables.
    """
    path = Path(name) if name.endswith(".md") else folder("prompts") / f"{name}.md"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in folder("prompts").glob("*.v*.md")))
        raise PromptError(f"there is no prompt '{name}'; give a path to a .md file or one of {shipped}")
    prompt = Prompt(path.stem, path.read_text(encoding="utf-8").strip("\n"))
    _require_variables(prompt, frozenset(variables))
    return prompt


@cache
def _compiled(prompt: Prompt, given: frozenset[str]) -> tuple[Template, re.Pattern[str] | None]:
    """The template, and what finds the `<` of its tags, however they are spaced or capitalised."""
    _require_variables(prompt, given)
    names = sorted(set(_CLOSING_TAG.findall(prompt.text)))
    tag = rf"<(?=\s*/?\s*(?:{'|'.join(map(re.escape, names))})\s*/?>)"
    return Template(prompt.text), re.compile(tag, re.IGNORECASE) if names else None


def _require_variables(prompt: Prompt, given: frozenset[str]) -> None:
    if not Template(prompt.text).is_valid():
        raise PromptError(f"prompt {prompt.name} has a stray '$'; write '$$' for a dollar sign")
    missing, unused = prompt.variables - given, given - prompt.variables
    if missing or unused:
        told = [f"asks for ${name}, which nobody gives" for name in sorted(missing)]
        told += [f"does not use ${name}" for name in sorted(unused)]
        raise PromptError(f"prompt {prompt.name} {' and '.join(told)}; its variables must be {sorted(given)}")
