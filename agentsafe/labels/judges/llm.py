"""Score rollouts with a language model by the paper's rubric (arXiv 2603.02229, section 3).

In `text` mode the model reasons and then gives a score. A backend that can constrain an answer
constrains it to a score; with any other, the score must stand on a line of its own and is requested
a second time if it does not. In `logits` mode the score comes from the probabilities of the four
scores as the next token. An answer without a readable score becomes `unparsed` with a null score:
there is no default and no guess.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from agentsafe._util.hashing import draw_seed
from agentsafe._util.settings import cache_key
from agentsafe._util.text import storable
from agentsafe.inference.thinking import split_thinking
from agentsafe.inference.types import ChatModel, Choice, Completion, Message, Sampling, Scorer
from agentsafe.labels.config import JudgeSettings
from agentsafe.labels.judges import Label
from agentsafe.prompts.template import JUDGE_BLOCKS, Template, case_variables
from agentsafe.schemas import MAX_SCORE
from agentsafe.suites.cases import Case, Suite

SCORES = tuple(str(score) for score in range(MAX_SCORE + 1))
_MARKUP = " \t*_`#>"
_LINE = re.compile(rf"^[{_MARKUP}]*Score[{_MARKUP}]*:(?P<score>.*)$", re.MULTILINE)


class LLMJudge:
    """Scores a suite's rollouts with a chat model."""

    def __init__(
        self,
        name: str,
        suite: Suite,
        model: ChatModel | None,
        fingerprint: str = "",
        settings: JudgeSettings | None = None,
    ):
        """Create a judge.

        Args:
            name: the judge's name in tables.
            suite: contains the cases' toolkits.
            model: the judging model, a `Scorer` in `logits` mode; None serves to render prompts
                only.
            fingerprint: hash of the model's content and of its serving options.
            settings: all defaults if None.

        Raises:
            UserError: the template does not exist or lacks the block `score`.
        """
        self.settings = settings or JudgeSettings()
        self.name = name
        self.metrics: Sequence[str] = self.settings.metrics
        self.replicates = self.settings.replicates
        self.suite, self.model, self.fingerprint = suite, model, fingerprint
        self.template = Template(self.settings.prompt, f"judges.{name}.prompt", JUDGE_BLOCKS)

    def cache_key(self, case: Case, metric: str) -> Any:
        """Return what labels depend on; see `agentsafe.labels.judges.Judge.cache_key`."""
        settings = cache_key(JudgeSettings, asdict(self.settings), row=True)
        settings["prompt"] = self.template.digest
        return self.fingerprint, settings, case, self.suite.tools_of(case), metric

    async def label(
        self, case: Case, messages: Sequence[Message], metric: str, replicate: int
    ) -> Label:
        """Score a rollout on one metric; see `agentsafe.labels.judges.Judge.label`."""
        prompt = self.render_prompt(case, messages, metric)
        if self.model is None:
            raise ValueError(f"judge {self.name} has no model, so it can only render prompts")
        if self.settings.mode == "logits":
            choice = await cast(Scorer, self.model).choose(prompt, SCORES)
            return _by_probabilities(choice) if choice.probabilities else _too_long(choice)
        base = self.settings.seed
        seed = draw_seed("judge", self.name, base, case.case_id, messages, metric, replicate)
        return await self._reason(self.model, prompt, metric, seed)

    def render_prompt(self, case: Case, messages: Sequence[Message], metric: str) -> list[Message]:
        """Render the first request for a score of a rollout."""
        shown = {"metric": metric, "mode": self.settings.mode, "record": messages}
        return self.template.opening(**shown, **case_variables(self.suite, case))

    async def _reason(
        self, model: ChatModel, prompt: list[Message], metric: str, seed: int
    ) -> Label:
        """Request reasons and a score, and the score alone where the first answer has none."""
        sampling = Sampling(self.settings.temperature, self.settings.max_tokens, seed)
        first = await model.complete(prompt, sampling)
        if first.stop_reason == "context":
            return _too_long(first)
        text, _ = split_thinking(first.text)
        rationale = storable(text.strip())
        score = None if model.constrains else read_score(text)
        if score is not None:
            return Label(score, rationale, usage=first.usage)
        prompt = [
            *prompt,
            Message(role="assistant", content=rationale or "(nothing)"),
            Message(role="user", content=self.template.text("score", metric=metric)),
        ]
        # max_tokens as before: a model that is not constrained may write more than the digit.
        sampling = Sampling(0.0, self.settings.max_tokens, seed, choices=SCORES)
        second = await model.complete(prompt, sampling)
        usage = first.usage + second.usage
        if second.stop_reason == "context":
            return replace(_too_long(second), usage=usage)
        answer, _ = split_thinking(second.text)
        score = read_score(answer)
        if score is not None:
            return Label(score, rationale or storable(answer.strip()), usage=usage)
        both = storable(f"{rationale}\n\n{answer.strip()}".strip()) or "the judge said nothing"
        return Label(None, both, "unparsed", usage=usage)


def read_score(text: str) -> int | None:
    """Read the score in a judge's answer: a line `Score: …`, or the whole text if it is one digit.

    Args:
        text: any text. `4`, `3 or 2`, `2.5` and `N/A` are not scores, nor are two different scores
            on lines of their own.

    Returns:
        0 to 3, or None.
    """
    candidates = [match["score"] for match in _LINE.finditer(text)] or [text]
    distinct = {
        candidate.strip(f"{_MARKUP}\r\n").removesuffix(".").rstrip(_MARKUP)
        for candidate in candidates
    }
    only = distinct.pop() if len(distinct) == 1 else ""
    return int(only) if only in SCORES else None


def _by_probabilities(choice: Choice) -> Label:
    """Return the most likely score, with the mean and the entropy of the distribution."""
    probabilities = choice.probabilities
    score = max(range(len(probabilities)), key=probabilities.__getitem__)
    expected = sum(value * p for value, p in enumerate(probabilities))
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    listed = ", ".join(f"{value}: {p:.3f}" for value, p in enumerate(probabilities))
    rationale = f"Probability of each score: {listed}."
    return Label(score, rationale, expected=expected, entropy=entropy, usage=choice.usage)


def _too_long(answer: Completion | Choice) -> Label:
    reason = f"the rollout does not fit the judge's context ({answer.prompt_tokens} tokens)"
    return Label(None, reason, "error", "context", usage=answer.usage)
