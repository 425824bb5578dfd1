"""Count the work of a run before it starts: its jobs, the models that they load, and their tokens.

An episode is as long as the paper's release has it on average, in the miniature as long as one of
its default run; so is the share of rollouts that make pairs. A prompt is as long as it is in this
run (`preflight` measures it). Nothing is known yet of the models' own habits: tokens are those of a
typical run, not a bound.

Not covered: repeated requests, what is dropped as too long or lost, and the miniature's own
checkpoints.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agentsafe.experiment import grid
from agentsafe.lineage import SFT, Lineage
from agentsafe.miniature.demonstrations import HELD_OUT
from agentsafe.training.config import MEASUREMENTS, Settings

#: Means of the paper's released source rollouts (gpt5m, n = 3,888), in characters. Of an episode:
#: the agent's text, its private reasoning (over all sources, six of whose 27 sets have it), the
#: observations; its tool calls, and those that the emulator answered. Of such an answer (n =
#: 5,397): its text, its private reasoning. Of a label on a metric: its text, over both judges.
RELEASED = {
    "agent": 2444,
    "agent_reasoning": 657,
    "observation": 513,
    "steps": 1.51,
    "emulated": 1.39,
    "emulator": 4147,
    "emulator_reasoning": 2947,
    "safety": 4756,
    "helpfulness": 1460,
}
#: Characters per token of these texts, by Qwen's tokenizer.
_RELEASED_PER_TOKEN = {
    "agent": 3.8,
    "agent_reasoning": 4.4,
    "observation": 3.0,
    "emulator": 4.7,
    "emulator_reasoning": 4.7,
    "safety": 4.8,
    "helpfulness": 5.0,
}
#: The same means of an episode of a source of the miniature's default run (n = 1,728), in tokens of
#: its own tokenizer, those of the chat template with the observations, and those of its prompt.
_MINIATURE = {"agent": 40.5, "observation": 24.5, "steps": 2.15, "prompt": 45.5}
#: Tokens of the paper's prompt, over ToolEmu's 144 cases by Qwen's tokenizer.
_PROMPT = 3000
#: Shares of the pairs of a case's rollouts that qualify, by the release's labels of gpt5m (144
#: cases of 27 rollouts, thresholds 2 and 2); of `sft`, of its rollouts.
_QUALIFIES = {"safe": 0.265, "help": 0.255, "both": 0.054, "best": 0.377, SFT: 0.358}
#: Rollouts of a case in a label set of the release.
_RELEASED_PER_CASE = 27

REFERENCE, TRAINING, SERVERS = "reference", "training", "servers"


@dataclass(frozen=True)
class Work:
    """The work of all jobs of a stage on checkpoints of one model.

    Attributes:
        stage: `rollouts`, `emulator` (in the jobs of rollouts), `labels by NAME`, `reference`,
            `training`, or `servers`, which are started once.
        model: the entry of `models`, or the miniature's source.
        phase: its place in time; jobs of a phase need all phases before it.
        jobs: processes that start for it.
        loads: times that the model is loaded.
        calls: of the model.
        prompt: tokens of the prompts, counted at each call.
        cached: of these, the tokens that a prefix cache has: the turns before in the conversation.
        generated: tokens.
        trained: tokens that go through the model forward and backward.
        scored: tokens that go through it forward, for their log-probabilities.
    """

    stage: str
    model: str
    phase: int = 0
    jobs: int = 0
    loads: int = 0
    calls: float = 0
    prompt: float = 0
    cached: float = 0
    generated: float = 0
    trained: float = 0
    scored: float = 0

    @property
    def read(self) -> float:
        """All tokens that are read: of prompts, and of training and scoring."""
        return self.prompt + self.trained + self.scored


@dataclass(frozen=True)
class Lengths:
    """The typical tokens of a trained rollout: of its prompt, and of the episode after it."""

    prompt: float
    episode: float

    def of_pairs(self, pairs: int, batching: str, rollouts: float) -> float:
        """Count the tokens that a batch of pairs of one case takes through the model.

        Args:
            pairs: of the batch.
            batching: `training.batching`: with `prefix` a pair's prompt is forwarded once, with
                `case` each rollout, and the prompt once for all of them.
            rollouts: of the case, which the pairs are of.
        """
        if batching == "case":
            return self.of_rollouts(min(2 * pairs, rollouts))
        prompts = 1 if batching == "prefix" else 2
        return pairs * (prompts * self.prompt + 2 * self.episode)

    def of_rollouts(self, count: float) -> float:
        """Count the tokens of rollouts of one case whose prompt is forwarded once."""
        return self.prompt + count * self.episode


def released_tokens(*kinds: str) -> float:
    """Return the mean tokens of texts of these kinds in the release; see `RELEASED`."""
    return sum(RELEASED[kind] / _RELEASED_PER_TOKEN[kind] for kind in kinds)


def typical_lengths(config: Mapping[str, Any]) -> Lengths:
    """Return the tokens of a typical rollout of a run, before its prompts are measured."""
    if config["suite"] == "miniature":
        return Lengths(_MINIATURE["prompt"], _MINIATURE["agent"] + _MINIATURE["observation"])
    return Lengths(_PROMPT, released_tokens("agent", "observation"))


def is_own_server(model: Mapping[str, Any]) -> bool:
    """Tell whether a model's server runs on the user's GPUs: it has an address and no price."""
    served = not is_here(model) and bool(model["base_url_env"])
    return served and (model["lora"] or not model["price"])


def is_here(model: Mapping[str, Any]) -> bool:
    """Tell whether a model runs in the process of the job that uses it."""
    return model.get("backend", "transformers") != "openai"


def works(config: Mapping[str, Any], typical: Mapping[tuple[str, str], float]) -> list[Work]:
    """List the work of a run.

    Args:
        config: the checked config.
        typical: tokens of a first prompt by model and role, as `preflight` measures them.
    """
    counter = _Counter(config, typical)
    found = [*counter.warm_ups(), *counter.rollouts(), *counter.labels()]
    found += [*counter.references(), *counter.trainings()]
    served: dict[tuple, str] = {}  # several entries may name one model, which one server has
    for name in dict.fromkeys(each.model for each in found):
        entry = config["models"].get(name, _MINE)
        if is_own_server(entry):
            served.setdefault((entry["model"], entry["revision"], entry["quantization"]), name)
    return [*_added(found), *(Work(SERVERS, name, jobs=1, loads=1) for name in served.values())]


_MINE: Mapping[str, Any] = {"backend": "transformers"}


def _added(found: Iterable[Work]) -> list[Work]:
    """Add up the work of the same stage, model and phase."""
    sums: dict[tuple, Work] = {}
    names = ("jobs", "loads", "calls", "prompt", "cached", "generated", "trained", "scored")
    for each in found:
        key = each.stage, each.model, each.phase
        before = sums.get(key, Work(*key))
        values = {name: getattr(before, name) + getattr(each, name) for name in names}
        sums[key] = Work(*key, **values)
    return list(sums.values())


def _distinct(rollouts: int, pairs: float) -> float:
    """Return how many of a case's rollouts are in one of some pairs, as a mean over draws."""
    drawn = rollouts * (1 - max(1 - 2 / max(rollouts, 2), 0.0) ** pairs)
    return min(drawn, 2 * pairs)  # less than one pair of a case: most cases have none


class _Counter:
    """Counts the work of a run, stage by stage."""

    def __init__(self, config: Mapping[str, Any], typical: Mapping[tuple[str, str], float]):
        self.config, self.typical = config, typical
        self.mini = config["suite"] == "miniature"
        self.cases: int = config[config["suite"]]["cases"]
        self.samples, self.shards = (config["rollouts"][name] for name in ("samples", "shards"))
        self.sources = grid.sources(config)
        self.lineages, self.stages = grid.lineages(config), grid.stages(config)
        depth = max((len(each.stages) for each in self.stages), default=0)
        #: The phase in which trained checkpoints play; sources play in phase 0.
        self.played = 2 + 2 * depth

    def entry(self, source: str) -> str:
        """Return the name of what a source is made of: its entry in `models`, where it has one."""
        return grid.entry_of(self.config, source) or source

    def model(self, name: str) -> Mapping[str, Any]:
        return self.config["models"].get(name, _MINE)

    def loads(self, name: str, jobs: int) -> int:
        return jobs if is_here(self.model(name)) else 0

    def tokens(self, *kinds: str) -> float:
        """Return the mean tokens of texts of an episode."""
        if self.mini:
            return sum(_MINIATURE.get(kind, 0.0) for kind in kinds)
        return released_tokens(*kinds)

    def written(self, name: str, role: str) -> float:
        """Return the tokens that a model writes, private reasoning included if it may think."""
        thinks = self.model(name).get("thinking") is not False
        return self.tokens(role, *([f"{role}_reasoning"] if thinks else []))

    def prompt(self, name: str, role: str) -> float:
        own = self.mini and name not in self.config["models"]
        return _MINIATURE["prompt"] if own else self.typical.get((name, role), 0)

    def episodes(self, lineage: Lineage) -> int:
        """Count a checkpoint's episodes."""
        return self.samples * len(grid.cases_played(self.config, str(lineage)))

    def rollouts_of_a_case(self) -> int:
        """Count the rollouts of a case that make pairs: of sources, of donors, or of both."""
        own = len(self.sources) * self.samples if grid.sources_make_pairs(self.config) else 0
        donors = self.config["donors"].values()
        given = sum(
            len(donor["checkpoints"] or ()) * self.samples for donor in donors if donor["run"]
        )
        # All label sets of the release have the same rollouts.
        return own + given + (_RELEASED_PER_CASE if grid.released_sets(self.config) else 0)

    def rollouts(self) -> Iterator[Work]:
        record, seen = self.tokens("agent", "observation"), self.tokens("observation")
        steps = (_MINIATURE if self.mini else RELEASED)["steps"]
        emulator = self.config["emulator"]["model"]
        for lineage in [*map(Lineage, self.sources), *self.lineages]:
            name, episodes = self.entry(lineage.source), self.episodes(lineage)
            phase = self.played if lineage.stages else 0
            prompt = self.prompt(name, "agent")
            all_prompts = (steps + 1) * (prompt + record / 2)
            yield Work(
                "rollouts",
                name,
                phase,
                jobs=self.shards,
                loads=self.loads(name, self.shards),
                calls=episodes * (steps + 1),
                prompt=episodes * all_prompts,
                cached=episodes * max(all_prompts - prompt - seen, 0),
                generated=episodes * self.written(name, "agent"),
            )
            if emulator:
                calls = RELEASED["emulated"]
                prompt = self.prompt(emulator, "emulator") + seen / 2
                shared = name == emulator and not lineage.stages  # one process, one model
                yield Work(
                    "emulator",
                    emulator,
                    phase,
                    loads=0 if shared else self.loads(emulator, self.shards),
                    calls=episodes * calls,
                    prompt=episodes * calls * prompt,
                    cached=episodes * max(calls - 1, 0) * prompt,
                    generated=episodes * calls * self.written(emulator, "emulator"),
                )

    def labels(self) -> Iterator[Work]:
        record = self.tokens("agent", "observation")
        for judge, labelled in grid.labels(self.config).items():
            settings = self.config["judges"][judge]
            name = settings["model"]
            for checkpoint in map(Lineage.parse, labelled) if name else []:
                episodes = self.episodes(checkpoint)
                first = episodes * (self.prompt(name, f"judge {judge}") + record)
                for metric in settings["metrics"]:
                    text = self.tokens(metric if metric in RELEASED else "safety")
                    yield self._label(checkpoint, judge, episodes, first, text)
                yield Work(
                    f"labels by {judge}",
                    name,
                    1 + (self.played if checkpoint.stages else 0),
                    jobs=self.shards,
                    loads=self.loads(name, self.shards),
                )

    def _label(
        self, checkpoint: Lineage, judge: str, episodes: int, first: float, text: float
    ) -> Work:
        """Count the labels on a metric: reasons and, of a constrained model, then the score.

        Args:
            checkpoint: whose episodes are labelled.
            judge: the judge's name.
            episodes: their number.
            first: tokens of the first prompts of all of them.
            text: mean tokens of the reasons.
        """
        settings = self.config["judges"][judge]
        model, copies = self.model(settings["model"]), settings["replicates"]
        again = settings["mode"] == "text" and (is_here(model) or model["structured"] != "none")
        written = episodes * (text if settings["mode"] == "text" else 1)
        second = copies * (first + written) if again else 0.0
        return Work(
            f"labels by {judge}",
            settings["model"],
            1 + (self.played if checkpoint.stages else 0),
            calls=copies * episodes * (1 + again),
            prompt=copies * first + second,
            cached=(copies - 1) * first + second,
            generated=copies * (written + (episodes if again else 0)),
        )

    def lengths(self, source: str) -> Lengths:
        """Return the tokens of a rollout as a source's training reads it."""
        prompt = self.prompt(self.entry(source), "agent")
        return Lengths(prompt, self.tokens("agent", "observation"))

    def references(self) -> Iterator[Work]:
        if grid.reference_settings(self.config) is None:
            return
        limit = self.config["training"]["batch_tokens"] or 2 * self.config["training"]["max_length"]
        with_pairs = [each for each in self.stages if each.stages[-1].objective != SFT]
        for parent in dict.fromkeys(each.parent for each in with_pairs):
            assert parent is not None  # a trained checkpoint has one
            lengths, count = self.lengths(parent.source), self.rollouts_of_a_case()
            # A forward pass has a limit, and each one has the prompt again.
            room = max(limit - lengths.prompt, lengths.episode, 1)
            passes = max(-(-count * lengths.episode // room), 1)
            tokens = lengths.of_rollouts(count) + (passes - 1) * lengths.prompt
            yield Work(
                REFERENCE,
                self.entry(parent.source),
                2 + 2 * len(parent.stages),
                jobs=1,
                loads=1,
                scored=self.cases * tokens,
            )

    def warm_ups(self) -> Iterator[Work]:
        for source in grid.warm_ups(self.config):
            settings, lengths = self.config["miniature"]["warm_ups"][source], self.lengths(source)
            examples = settings["steps"] * settings["batch_size"]
            yield Work(
                TRAINING,
                self.entry(source),
                -1,  # before the source plays
                jobs=1,
                loads=2,
                trained=examples * (lengths.prompt + lengths.episode),
                scored=HELD_OUT * (lengths.prompt + lengths.episode),
            )

    def trainings(self) -> Iterator[Work]:
        for lineage in self.stages:
            values = grid.training_settings(self.config, lineage)
            settings = msgspec.convert(values | grid.training_conduct(self.config), Settings)
            objective, processes = lineage.stages[-1].objective, self.config["training"]["gpus"]
            lengths = self.lengths(lineage.source)
            rollouts, examples = self.examples(objective)
            # The rollouts of a case that are in a pair, if pairs are drawn at random.
            held = examples if objective == SFT else _distinct(rollouts, examples)
            tested = self.cases - self.cases // 2
            measured = 2 + (0 if settings.keep == "last" else MEASUREMENTS)
            trained, steps = self._trained(settings, objective, lengths)
            if settings.eval_steps:
                measured = 1 + max(steps // settings.eval_steps, 1)
            yield Work(
                TRAINING,
                self.entry(lineage.source),
                1 + 2 * len(lineage.stages),
                jobs=1,
                loads=processes + 1,  # the written checkpoint is loaded once more, to measure it
                trained=trained,
                scored=measured * tested * lengths.of_rollouts(held),
            )

    def examples(self, objective: str) -> tuple[int, float]:
        """Return the rollouts of a case, and the examples that they make: pairs, or rollouts."""
        rollouts = self.rollouts_of_a_case()
        of = rollouts if objective == SFT else rollouts * (rollouts - 1) / 2
        most = self.config["preferences"]["max_pairs_per_case"]
        made = _QUALIFIES[objective] * of
        return rollouts, made if most is None else min(made, most)

    def _trained(self, settings: Settings, objective: str, lengths: Lengths) -> tuple[float, int]:
        """Return the tokens that a run trains on, and its steps."""
        rollouts, per_case = self.examples(objective)
        cases = round((self.cases // 2) * (1 - settings.validation_share))
        in_step = settings.batch_size * settings.gradient_accumulation_steps
        examples = cases * per_case
        steps = settings.max_steps or settings.num_train_epochs * max(round(examples / in_step), 1)
        batches = steps * settings.gradient_accumulation_steps
        if objective == SFT:
            each = lengths.prompt + lengths.episode
            return batches * settings.batch_size * each, steps
        return batches * lengths.of_pairs(settings.batch_size, settings.batching, rollouts), steps
