"""Prompts as Jinja2 templates: the package's own, in `prompts/`, or a user's files in their place.

A template's blocks are the messages of a conversation, and each is filled in on its own. Files that
a template includes are looked for beside it, then among the package's.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, meta, nodes

from agentsafe.errors import UserError
from agentsafe.inference.types import Message
from agentsafe.suites.cases import Case, Suite

PROMPTS = Path(__file__).parent
#: The blocks that an emulator's and a judge's template must have.
EMULATOR_BLOCKS = ("system", "call", "observation", "retry")
JUDGE_BLOCKS = ("score",)


class Template:
    """One template file."""

    def __init__(self, name: str, key: str, blocks: Sequence[str] = ()):
        """Read a template.

        Args:
            name: of one in `agentsafe/prompts`, without its ending, or the path of one's own.
            key: of the config that names it, for errors.
            blocks: that it must have.

        Raises:
            UserError: there is no such file, it is no template, it lacks a block, or it extends
                another, whose blocks would not be seen.
        """
        own = Path(name)
        self.path = own if own.is_file() else PROMPTS / f"{name}.j2"
        if not self.path.is_file():
            ours = ", ".join(sorted(path.stem for path in PROMPTS.glob("[a-z]*.j2")))
            raise UserError(
                f"{key}: there is no template '{name}': write the path of a file, or one of {ours}"
            )
        self._environment = Environment(
            loader=FileSystemLoader([self.path.parent, PROMPTS]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        try:
            self._template = self._environment.get_template(self.path.name)
            parsed = self._environment.parse(self._source(self.path.name))
        except (TemplateError, UnicodeDecodeError) as error:
            raise self._broken(error) from None
        if parsed.find(nodes.Extends):
            raise self._broken("it extends another template, but can only include one")
        if lacking := [block for block in blocks if block not in self._template.blocks]:
            raise self._broken(f"it lacks the block '{lacking[0]}'")

    def text(self, block: str, **shown: Any) -> str:
        """A block, filled in; empty where the template has no such block.

        Raises:
            UserError: it asks for something that is not shown to it.
        """
        if block not in self._template.blocks:
            return ""
        try:
            context = self._template.new_context(shown)
            return "".join(self._template.blocks[block](context)).strip()
        except Exception as error:  # a file of the user's can raise nearly anything
            raise self._broken(error) from None

    def opening(self, **shown: Any) -> list[Message]:
        """The blocks `system` and `user` as messages, without one that is empty.

        Raises:
            UserError: neither gives text, or as `text`.
        """
        texts = {role: self.text(role, **shown) for role in ("system", "user")}
        found = [Message(role=role, content=text) for role, text in texts.items() if text]
        if not found:
            raise self._broken("its blocks 'system' and 'user' give no text")
        return found

    @property
    def digest(self) -> str:
        """A hash of the file and of all that it includes: other text, other digest.

        Raises:
            UserError: a file that it includes is not there, or is no template.
        """
        found = hashlib.sha256()
        try:
            for text in self._sources(self.path.name, set()):
                found.update(text.encode())
        except (TemplateError, UnicodeDecodeError) as error:
            raise self._broken(error) from None
        return found.hexdigest()[:16]

    def _source(self, name: str) -> str:
        source, _, _ = self._environment.loader.get_source(self._environment, name)
        return source

    def _sources(self, name: str, seen: set[str]) -> Iterator[str]:
        seen.add(name)
        source = self._source(name)
        yield source
        for other in meta.find_referenced_templates(self._environment.parse(source)):
            if other is not None and other not in seen:
                yield from self._sources(other, seen)

    def _broken(self, error: Exception | str) -> UserError:
        return UserError(f"{self.path}: cannot be filled in: {' '.join(str(error).split())}")


def shown_case(suite: Suite, case: Case) -> dict[str, Any]:
    """What every template may show of a case: `case`, its `toolkits` and all of their `tools`."""
    toolkits = [suite.toolkits[name] for name in case.toolkits]
    return {"case": case, "toolkits": toolkits, "tools": suite.tools_of(case)}
