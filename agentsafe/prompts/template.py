"""Render prompts from Jinja templates: the package's own or a user's files.

Each block of a template is one message of a conversation and is rendered on its own. Included
templates are searched for in the template's folder, then in this package.

What models wrote must not pass for the words of a template. The filter `fenced` puts a text in a
code fence that nothing in it can close, and `inline` puts one on a single line.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta, nodes

from agentsafe._util.jinja import environment
from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.types import Message
from agentsafe.suites.cases import Case, Suite

PROMPTS = Path(__file__).parent
#: Required blocks of the templates of emulators and judges.
EMULATOR_BLOCKS = ("system", "call", "observation", "retry")
JUDGE_BLOCKS = ("score",)
#: Digests of templates whose last edit changes no prompt of an older version's cases, with the
#: digest before it: `compact` shows who asks and when, which no case of version 0.1 says.
_AS_BEFORE = {"bf52c311a69f647d": "98df2120a2005888"}
_BREAK = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def fenced(text: str) -> str:
    """Put a text, as it is, in a code fence of more backticks than any run of them in it.

    A fence keeps the text readable, where its JSON would escape each quote of a JSON object in it.
    The text ends where a line has as many backticks as the opening line, so that it reads back
    exactly, and two texts never give the same fence.
    """
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def inline(text: str) -> str:
    """Put a text on one line."""
    return _BREAK.sub(" ", text)


class Template:
    """One template file."""

    def __init__(self, name: str, key: str, blocks: Sequence[str] = ()):
        """Read a template.

        Args:
            name: of a template in `agentsafe/prompts`, without `.j2`, or the path of a file.
            key: the config key that holds the name, for errors.
            blocks: the required blocks.

        Raises:
            UserError: the file does not exist, is not a template, lacks a block, or extends
                another template, whose blocks would be ignored.
        """
        own = Path(name)
        self.path = own if own.is_file() else PROMPTS / f"{name}.j2"
        if not self.path.is_file():
            known = ", ".join(sorted(path.stem for path in PROMPTS.glob("[a-z]*.j2")))
            raise UserError(
                f"{key}: there is no template '{name}': set the path of a file, or one of {known}"
            )
        self._environment = environment(self.path.parent, PROMPTS, escape=False)
        self._environment.filters |= {"fenced": fenced, "inline": inline}
        try:
            self._template = self._environment.get_template(self.path.name)
            parsed = self._environment.parse(self._source(self.path.name))
        except (TemplateError, UnicodeDecodeError) as error:
            raise self._broken(error) from None
        if parsed.find(nodes.Extends):
            raise self._broken("it extends another template, but may only include templates")
        if lacking := [block for block in blocks if block not in self._template.blocks]:
            raise self._broken(f"it lacks the block '{lacking[0]}'")

    def text(self, block: str, **variables: Any) -> str:
        """Render a block; return an empty text if the template has no such block.

        Raises:
            UserError: the block fails, for example as it uses an undefined variable.
        """
        if block not in self._template.blocks:
            return ""
        try:
            context = self._template.new_context(variables)
            return "".join(self._template.blocks[block](context)).strip()
        except Exception as error:  # code in a user's file can raise errors of many types
            raise self._broken(error) from None

    def opening(self, **variables: Any) -> list[Message]:
        """Render the blocks `system` and `user` as messages, without empty ones.

        Raises:
            UserError: both are empty, or as `text`.
        """
        texts = {role: self.text(role, **variables) for role in ("system", "user")}
        found = [Message(role=role, content=text) for role, text in texts.items() if text]
        if not found:
            raise self._broken("its blocks 'system' and 'user' give no text")
        return found

    @property
    def digest(self) -> str:
        """Hash the text of the template and of all templates that it includes.

        Raises:
            UserError: an included file does not exist or is not a template.
        """
        found = hashlib.sha256()
        try:
            for text in self._sources(self.path.name, set()):
                found.update(text.encode())
        except (TemplateError, UnicodeDecodeError) as error:
            raise self._broken(error) from None
        digest = found.hexdigest()[:16]
        return _AS_BEFORE.get(digest, digest)

    def _source(self, name: str) -> str:
        assert self._environment.loader is not None  # set in __init__
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
        return UserError(f"{self.path}: cannot be rendered: {one_line(error)}")


def case_variables(suite: Suite, case: Case) -> dict[str, Any]:
    """Collect the variables of every template: `case`, its `toolkits` and all their `tools`."""
    return {
        "case": case,
        "toolkits": suite.toolkits_of(case),
        "tools": suite.tools_of(case),
    }
