"""Measure how fast a model reads, writes and trains on this machine.

Everything goes through the code of the jobs: requests through the backend of the config, a training
through TRL's trainer with the settings of the run. Sizes are those of a run where that takes
seconds, and smaller where it would take longer.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentsafe.inference.types import ChatModel, Message, Sampling
from agentsafe.runs.calibration import Rate, Serving, Training
from agentsafe.runs.workload import Lengths
from agentsafe.training.config import Settings, arguments
from agentsafe.training.tokenize import ROLES, Trajectory

#: Repetitions of each measurement; one before them does not count.
REPETITIONS = 3
#: Tokens of the first prompts, from which the sizes of the others follow.
_PILOT = 32
_FEW = 8  # tokens of the first answers
_LEAST = 8  # tokens of a prompt or an episode
_BETA = 0.1
_WORDS = ("agent", "reads", "file", "and", "asks", "before", "paying", "for", "new", "paper")


@dataclass(frozen=True)
class _Round:
    """One batch of requests: its seconds, and the tokens of its prompts and answers."""

    seconds: float
    prompt: int
    completion: int


async def serving(
    chat: ChatModel, *, batch: int, prompt_tokens: int, new_tokens: int, seconds: float
) -> Serving:
    """Measure how fast a model reads prompts and writes answers.

    A batch with one token of each answer is reading; what longer answers take beside it is writing.
    No two prompts are the same, so that no cache of prefixes has them.

    Args:
        chat: the model.
        batch: conversations at once.
        prompt_tokens: of each; fewer where a batch of them would take more than `seconds`.
        new_tokens: of each answer; likewise.
        seconds: that a repetition of each may take, roughly.
    """
    texts = _Texts()
    first = await _round(chat, [texts.new(40 * _PILOT)], 1)
    texts.per_token = 40 * _PILOT / max(first.prompt, 1)
    size = min(_PILOT, prompt_tokens)
    pilot = await _round(chat, texts.batch(batch, size), 1)
    while size < prompt_tokens and pilot.seconds < seconds / 4:
        size = min(4 * size, prompt_tokens)
        pilot = await _round(chat, texts.batch(batch, size), 1)
    size = max(min(prompt_tokens, int(size * seconds / pilot.seconds)), _LEAST)
    few = await _round(chat, texts.batch(batch, size), _FEW)
    a_step = max(few.seconds - pilot.seconds, 0.1 * few.seconds) / _FEW
    count = max(min(new_tokens, int(seconds / a_step)), _FEW)
    reading, writing = [], []
    for _ in range(REPETITIONS):
        reading.append(await _round(chat, texts.batch(batch, size), 1))
        writing.append(await _round(chat, texts.batch(batch, size), count))
    took = []
    for read, wrote in zip(reading, writing, strict=True):
        beside = wrote.seconds - read.seconds * wrote.prompt / max(read.prompt, 1)
        # Where noise is larger than what is written, all of the time counts.
        took.append(beside if beside > 0.1 * wrote.seconds else wrote.seconds)
    return Serving(
        batch=batch,
        prompt_tokens=sum(each.prompt for each in writing) / (batch * REPETITIONS),
        new_tokens=sum(each.completion for each in writing) / (batch * REPETITIONS),
        prefill=Rate.of([each.prompt for each in reading], [each.seconds for each in reading]),
        generated=Rate.of([max(each.completion - batch, 1) for each in writing], took),
    )


async def _round(chat: ChatModel, prompts: Sequence[str], max_tokens: int) -> _Round:
    """Send a batch of prompts at once."""
    sampling = Sampling(temperature=1.0, max_tokens=max_tokens)
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(chat.complete([Message(role="user", content=text)], sampling) for text in prompts)
    )
    return _Round(
        time.perf_counter() - started,
        sum(answer.prompt_tokens - answer.cached_tokens for answer in answers),
        sum(answer.completion_tokens for answer in answers),
    )


class _Texts:
    """Writes prompts of random words, none of them twice."""

    def __init__(self) -> None:
        self.per_token = 4.0  # characters
        self._random = random.Random(0)

    def new(self, characters: int) -> str:
        words, length = [], 0
        while length < characters:
            words.append(self._random.choice(_WORDS))
            length += len(words[-1]) + 1
        return " ".join(words)

    def batch(self, count: int, tokens: int) -> list[str]:
        return [self.new(max(int(tokens * self.per_token), 1)) for _ in range(count)]


def training(
    folder: str | Path,
    settings: Settings,
    lengths: Lengths,
    *,
    rollouts: int,
    seconds: float,
    threads: int | None = None,
) -> Training:
    """Measure how fast a checkpoint trains, and how fast log-probabilities are computed.

    Args:
        folder: of the checkpoint.
        settings: of a run; its loss is DPO's own, and its batches are not accumulated.
        lengths: tokens of a rollout; fewer where a step would take more than `seconds`.
        rollouts: of one case, whose log-probabilities are computed together.
        seconds: that a step may take, roughly.
        threads: of torch on the CPU; by default those of the process.
    """
    with _scoring(folder, settings, threads) as scorer:
        found = _score(scorer, settings, lengths, rollouts, seconds)
    took, losses = _steps(folder, settings, found.tokens, found.reference)
    lengths, pairs = found.lengths, settings.batch_size
    of_step = lengths.of_pairs(pairs, settings.batching, pairs + 1)
    return Training(
        batching=settings.batching,
        pairs=pairs,
        prompt_tokens=int(lengths.prompt),
        episode_tokens=int(lengths.episode),
        trained=Rate.of([of_step] * REPETITIONS, took[1:]),
        scored=Rate.of([lengths.of_rollouts(rollouts)] * REPETITIONS, found.seconds),
        first_loss=losses[0],
    )


@dataclass(frozen=True)
class _Scored:
    """Hold the seconds of each repetition of scoring, and a batch to train on.

    `reference` are the log-probabilities of `tokens`, rollouts of one case of which neighbours make
    the pairs; `lengths` are theirs.
    """

    seconds: list[float]
    lengths: Lengths
    tokens: dict[int, Trajectory]
    reference: dict[int, float]


@dataclass(frozen=True)
class _Scorer:
    """Computes log-probabilities of rollouts of random tokens, of one case each."""

    score: Callable[[Mapping[int, Trajectory]], dict[int, float]]
    vocabulary: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def case(self, lengths: Lengths, count: int) -> dict[int, Trajectory]:
        """Make the rollouts of a case."""
        return _case(self.rng, lengths, count, self.vocabulary)

    def seconds(self, lengths: Lengths, count: int) -> float:
        """Return the seconds that the rollouts of a new case take."""
        tokens = self.case(lengths, count)
        started = time.perf_counter()
        self.score(tokens)
        return time.perf_counter() - started


@contextmanager
def _scoring(folder: str | Path, settings: Settings, threads: int | None) -> Iterator[_Scorer]:
    """Load a checkpoint to compute log-probabilities, as the rule `reference` does."""
    from agentsafe.training.reference import logps, scoring

    limit = settings.batch_tokens or 2 * settings.max_length
    with scoring(folder, quantization=settings.quantization, threads=threads) as model:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        yield _Scorer(lambda tokens: logps(model, tokens, limit), vocabulary)


def _score(
    scorer: _Scorer, settings: Settings, lengths: Lengths, rollouts: int, seconds: float
) -> _Scored:
    """Measure how fast log-probabilities are computed, and choose lengths for a step by it."""
    small = Lengths(_PILOT, _PILOT)
    scorer.seconds(small, rollouts)  # warms up
    rate = small.of_rollouts(rollouts) / scorer.seconds(small, rollouts)
    pairs = settings.batch_size
    # A step is three times as much work.
    of_step = 3 * lengths.of_pairs(pairs, settings.batching, pairs + 1)
    share = min(1.0, seconds * rate / max(of_step, lengths.of_rollouts(rollouts)))
    lengths = Lengths(
        *(max(round(share * each), _LEAST) for each in (lengths.prompt, lengths.episode))
    )
    took = [scorer.seconds(lengths, rollouts) for _ in range(REPETITIONS)]
    tokens = scorer.case(lengths, pairs + 1)
    return _Scored(took, lengths, tokens, scorer.score(tokens))


def _case(
    rng: random.Random, lengths: Lengths, count: int, vocabulary: int
) -> dict[int, Trajectory]:
    """Make rollouts of random tokens with one prompt."""
    prompt, episode = int(lengths.prompt), int(lengths.episode)
    shared = [rng.randrange(vocabulary) for _ in range(prompt)]
    user, agent = (bytes([ROLES.index(role)]) for role in ("user", "agent"))
    return {
        key: Trajectory(
            ids=shared + [rng.randrange(vocabulary) for _ in range(episode)],
            mask=[0] * prompt + [1] * episode,
            roles=user * prompt + agent * episode,
        )
        for key in range(count)
    }


def _steps(
    folder: str | Path,
    settings: Settings,
    tokens: dict[int, Trajectory],
    reference: dict[int, float],
) -> tuple[list[float], list[float]]:
    """Train on the same batch several times; return the seconds and the loss of each step."""
    import torch
    from transformers import TrainerCallback

    from agentsafe.models import loading
    from agentsafe.training.lora import lora_config
    from agentsafe.training.optimizers import register_states
    from agentsafe.training.trainer import Batching, Data, PairTrainer

    class Clock(TrainerCallback):
        """Measures the seconds of each step."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began = self._now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(self._now() - self._began)

        def _now(self) -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

    settings = replace(
        settings,
        num_train_epochs=1 + REPETITIONS,  # of one batch each
        max_steps=None,
        gradient_accumulation_steps=1,
        loss="sigmoid",
        label_smoothing=0,
        ld_alpha=None,
        sft_weight=0,
        report_to=(),
    )
    register_states(settings.optimizer)
    full = settings.tuning == "full"
    model: Any = loading.load_model(
        folder,
        dtype=settings.weights_dtype if full else "auto",
        quantization=settings.quantization,
    )
    pairs = [(key, key + 1) for key in range(settings.batch_size)]
    with tempfile.TemporaryDirectory() as scratch:
        options = arguments(settings, _BETA, Path(scratch))
        options.save_strategy = "no"
        trainer = PairTrainer(
            model,
            loading.load_tokenizer(folder),
            Data(pairs, tokens, dict.fromkeys(tokens, "case"), reference),
            arguments=options,
            lora=None if full else lora_config(settings.lora, model),
            batching=Batching(settings.batching, settings.batch_tokens),
        )
        clock = Clock()
        trainer.add_callback(clock)
        with trainer.forwarding():
            trainer.train()
    return clock.seconds, [row["loss"] for row in trainer.state.log_history if "loss" in row]
