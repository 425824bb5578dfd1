"""Ask a model on a server a run's own questions, before its jobs ask thousands.

Each role's first prompt and its longest are sent as the jobs send them: with their roles, sampling,
stop strings and, for a judge, the request for a score. What a server does with each answer is then
known, and so is whether it reads the whole prompt.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentsafe.errors import ConversationRefused, UserError
from agentsafe.inference.openai_protocol import MOST_PER_TOKEN
from agentsafe.inference.thinking import split_thinking
from agentsafe.inference.types import Completion, Message, Sampling
from agentsafe.models.config import Model

if TYPE_CHECKING:
    from agentsafe.inference.openai import ApiChat

#: Characters from which a prompt is long, and its characters per token are sure.
_LONG = 2000
#: Characters per token differ less than this between two prompts of a role, unless one was cut.
_MOST_ALIKE = 1.3


@dataclass(frozen=True)
class Role:
    """A model's role in a run, and its questions.

    Attributes:
        name: `agent`, `emulator` or `judge NAME`.
        prompts: the first prompt of each case.
        sampling: of the answers.
        limit_key: the key of the config that holds their most tokens.
        request: the judge's message that requests the score alone, with its sampling.
    """

    name: str
    prompts: Sequence[Sequence[Message]]
    sampling: Sampling
    limit_key: str
    request: tuple[str, Sampling] | None = None


@dataclass(frozen=True)
class Trial:
    """Record how a server answered a run's questions.

    Attributes:
        context: tokens of prompt and answer together, if the config or the server tells.
        per_token: characters per token of each role's prompts, as the server counts.
        problems: what to fix, by which key; one line each.
        notes: what to know, without a fix.
    """

    context: int | None
    per_token: dict[str, float]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def try_roles(name: str, model: Model, roles: Sequence[Role]) -> Trial:
    """Send the questions of all roles of a model to its server.

    Args:
        name: the model's key under the config's `models`.
        model: its entry.
        roles: of the model.

    Raises:
        UserError: the environment lacks the server's address or key.
    """
    from agentsafe.inference import openai

    return asyncio.run(_try_all(openai.load(name, model), roles))


def try_adapters(
    name: str, model: Model, commit: str | None, rank: int, folder: Path
) -> str | None:
    """Check that a model's server can load the adapters of a run.

    Args:
        name: the model's key under the config's `models`.
        model: its entry.
        commit: of the model on the hub; None for a folder.
        rank: of the largest adapter.
        folder: of the run's results.

    Returns:
        The commit of the base that the server tells; None if it tells none.

    Raises:
        UserError: it cannot; the line says how to fix it.
    """
    from agentsafe.inference import openai

    return asyncio.run(openai.load(name, model, commit=commit).check_adapters(rank, folder))


async def _try_all(chat: "ApiChat", roles: Sequence[Role]) -> Trial:
    problems: list[str] = []
    notes: list[str] = []
    per_token: dict[str, float] = {}
    for role in roles:
        try:
            told, measured = await _try(chat, role)
        except UserError as error:
            problems.append(f"as {role.name}, {error}")
            if not per_token:  # the other roles would meet the same
                break
            continue
        except ConversationRefused as refusal:
            problems.append(f"as {role.name}, {refusal}; use a server without this filter")
            continue
        problems += [f"as {role.name}, {problem}" for problem in told.problems]
        notes += [f"as {role.name}, {note}" for note in told.notes]
        per_token[role.name] = measured
    context = await chat.context() if per_token else chat.model.context
    return Trial(context, per_token, tuple(dict.fromkeys(problems)), tuple(notes))


@dataclass
class _Told:
    problems: list[str]
    notes: list[str]


async def _try(chat: "ApiChat", role: Role) -> tuple[_Told, float]:
    """Send a role's first and longest prompt; return what to tell, and characters per token."""
    longest = max(role.prompts, key=_chars)
    asked = [role.prompts[0]] + ([longest] if longest != role.prompts[0] else [])
    told, refused, sizes = _Told([], []), [], []
    for prompt in asked:
        try:
            answer = await chat.check(prompt, role.sampling)
            if role.request is not None:
                text, sampling = role.request
                said = split_thinking(answer.text)[0].strip() or "(nothing)"
                turns = Message(role="assistant", content=said), Message(role="user", content=text)
                await chat.check([*prompt, *turns], sampling)
        except ConversationRefused as refusal:
            refused.append(refusal)
            continue
        told.problems += _problems(answer, role)
        sizes.append(_chars(prompt) / max(answer.prompt_tokens, 1))
    if len(refused) == len(asked):
        raise refused[0]
    if refused:
        told.notes.append(f"it refuses 1 of 2 first prompts ({refused[0]})")
    alike = len(sizes) < 2 or sizes[1] <= _MOST_ALIKE * sizes[0]
    if not alike or (_chars(longest) >= _LONG and sizes[-1] > MOST_PER_TOKEN):
        told.problems.append(
            f"its server counts one token for {sizes[-1]:.1f} characters of the longest prompt and "
            f"for {sizes[0]:.1f} of the first, so it seems to cut long prompts silently: raise its "
            "context (Ollama: num_ctx)"
        )
    return told, min(sizes)


def _problems(answer: Completion, role: Role) -> list[str]:
    if answer.stop_reason == "context" and not answer.completion_tokens:
        return ["a first prompt leaves no room for an answer in its context: raise that or shorten"]
    if answer.stop_reason == "length" and not answer.text.strip():
        return [
            f"all {answer.completion_tokens} tokens of an answer went into private reasoning: "
            f"raise {role.limit_key}, or switch thinking off (thinking: false)"
        ]
    return []


def _chars(prompt: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in prompt)
