"""Check a run before its first expensive job, and estimate its tokens and their cost.

Every model is requested (the hub for its small files, a folder for all of them, a server for
answers to the run's own questions), its chat template is tried, and the prompts of all cases are
measured against its context; the memory and the disk that the run takes are compared with what is
there. Nothing is loaded on a GPU.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from agentsafe._util.format import memory_size, money
from agentsafe._util.progress import say
from agentsafe._util.text import one_line
from agentsafe._util.usage import Usage
from agentsafe.errors import UserError
from agentsafe.experiment import grid
from agentsafe.inference import chat_template
from agentsafe.inference.types import Sampling
from agentsafe.labels.config import JudgeSettings
from agentsafe.models import hub, loading
from agentsafe.models.checkpoint import base_folder, check
from agentsafe.models.config import Model
from agentsafe.models.spending import cost, spent_in, total
from agentsafe.rollouts.config import EmulatorSettings
from agentsafe.rollouts.config import Settings as RolloutSettings
from agentsafe.rollouts.react import STOP, prompts
from agentsafe.runs import disk
from agentsafe.runs.trial import Role, try_adapters, try_roles
from agentsafe.suites.cases import Suite
from agentsafe.training.checks import template_problems
from agentsafe.training.config import Settings as TrainingSettings
from agentsafe.training.memory import Device, largest_step, less_memory
from agentsafe.training.optimizers import OPTIMIZERS
from agentsafe.training.tokenize import ChatEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

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
_PER_TOKEN = 4  # characters of a prompt, in English and JSON
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_PACKAGES = {"transformers": "transformers", "vllm": "vllm", "openai": "openai"}
_EXTRAS = {"transformers": "train", "vllm": "vllm", "openai": "api"}


@dataclass(frozen=True)
class Finding:
    """The result of one check; `problems` say what to fix, and how."""

    subject: str
    detail: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Checked:
    """The result of a model's checks: notes, problems, its context, and its prompts' tokens."""

    notes: tuple[str, ...]
    problems: tuple[str, ...]
    limit: int | None = None
    counts: Sequence[np.ndarray] = ()


def preflight(config: Mapping[str, Any], suite: Suite) -> None:
    """Report the state of every model of a run, the lengths of its prompts and its tokens.

    Args:
        config: the checked config.
        suite: with all cases of the run.

    Raises:
        UserError: something must be fixed first; the report says what, and how.
    """
    lengths, problems = [], []
    for finding, rows in check_models(config, suite):
        say(f"{'fix ' if finding.problems else 'ok  '} {finding.subject}: {finding.detail}")
        lengths += rows
        problems += [f"{finding.subject}: {problem}" for problem in finding.problems]
    needed = disk.needs(config, RELEASED)
    room, lacking = disk.room_problems(config, needed)
    say(f"{'fix ' if lacking else 'ok  '} disk: {room}")
    problems += [f"disk: {problem}" for problem in lacking]
    schema = {"model": pl.String, "role": pl.String, "p50": int, "p90": int, "max": int}
    measured = pl.DataFrame(lengths, schema=schema)
    estimated = estimate(config, suite, measured)
    costs = estimated.with_columns(pl.col("cost").map_elements(money, pl.String, skip_nulls=False))
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True
    ):
        say(f"Tokens of the first prompt, over all cases:\n{measured}")
        say(f"Tokens of the run, if its models write as much as the release's:\n{costs}")
        say(f"Disk of the run, if its models write as much:\n{_table_of(needed)}")
    if line := describe_cost(config, estimated, total(spent_in(Path("logs", config["run"])))):
        say(line)
    if problems:
        say("Not ready. To fix:\n" + "\n".join(f"- {problem}" for problem in problems))
        raise UserError(f"{len(problems)} problems to fix before this run can start, see above")
    say("Ready.")


def _table_of(needed: Sequence[disk.Need]) -> pl.DataFrame:
    """Lay out the disk of a run by stage, with the total."""
    return pl.DataFrame(
        {
            "stage": each.stage,
            "whole run": memory_size(each.kept),
            "not yet there": memory_size(each.missing),
            "while jobs run": memory_size(each.scratch),
        }
        for each in [*needed, disk.total(needed)]
    )


def check_models(config: Mapping[str, Any], suite: Suite) -> Iterator[tuple[Finding, list[dict]]]:
    """Check every model of a run, one after the other.

    Args:
        config: the checked config.
        suite: with all cases of the run.

    Yields:
        A finding about a model, and the lengths of its prompts: rows for `estimate`.
    """
    detail = f"{len(suite.cases)} cases, {len(suite.toolkits)} toolkits"
    yield Finding("suite", detail), []
    for name in grid.models(config):
        model = msgspec.convert(config["models"][name], Model)
        roles, settings = list(_roles(config, name, suite)), _training_settings(config, name)
        try:
            _check_packages(name, model, settings)
            checks = []
            if model.backend != "openai" or model.lora:
                checks.append(_check_files(config, name, model, roles, settings))
            if model.backend == "openai":
                checks.append(_check_server(name, model, roles))
            if model.lora and settings:
                checks.append(_check_adapters(config, name, model))
        except UserError as error:
            rows = [_lengths(name, role, _prompt_tokens(role, None)) for role in roles]
            yield Finding(name, model.model, (str(error),)), rows
            continue
        counts = checks[0].counts  # a tokenizer's before a server's
        limit = min((each.limit for each in checks if each.limit), default=None)
        rows = [_lengths(name, role, each) for role, each in zip(roles, counts, strict=True)]
        problems = sum((each.problems for each in checks), ())
        problems += tuple(_length_problems(name, roles, rows, limit))
        notes = sum((each.notes for each in checks), ())
        context = f", context {limit:,}" if limit else ""
        detail = "; ".join([f"{model.model} ({model.backend}{context})", *notes])
        yield Finding(name, detail, problems), rows


def _check_files(
    config: Mapping,
    name: str,
    model: Model,
    roles: Sequence[Role],
    settings: TrainingSettings | None,
) -> _Checked:
    """Check a checkpoint by its small files, and whether it can be trained if it has `settings`."""
    tokenizer, model_config = _reach(name, model)
    limit = loading.context(model_config, tokenizer, model.context)
    counts = [_prompt_tokens(role, tokenizer) for role in roles]
    problems = tuple(_template_problems(model, roles, tokenizer, trains=settings is not None))
    notes: tuple[str, ...] = ()
    if chat_template.reads_clock(tokenizer):
        today = model.chat_options.get("today", chat_template.TODAY)
        if not model.lora:
            notes = (f"its chat template reads the date, and gets {today}",)
        elif settings and _depends_on_date(tokenizer, roles[0], model):
            problems += (
                f"its chat template reads the date: its server's, and {today} in training: set the "
                f"template's own variable in 'models.{name}.template_options', such as date_string",
            )
    if settings:  # the agent's prompts are the first
        for note, found in (
            _pairs_that_fit(config["training"], counts[0], limit),
            _memory_of_training(config, settings, model_config, limit),
        ):
            notes, problems = (*notes, note), (*problems, *found)
    return _Checked(notes, problems, limit, counts)


def _depends_on_date(tokenizer: Any, role: Role, model: Model) -> bool:
    """Return whether a prompt is another one on another day, with the entry's variables."""
    days = ("2001-01-01", "2002-12-31")
    texts = {
        chat_template.render(tokenizer, role.prompts[0], {**model.chat_options, "today": day})
        for day in days
    }
    return len(texts) > 1


def _check_server(name: str, model: Model, roles: Sequence[Role]) -> _Checked:
    """Check a model by what its server answers."""
    trial = try_roles(name, model, roles)
    counts = [_prompt_tokens(role, None, trial.per_token) for role in roles]
    return _Checked(trial.notes, trial.problems, trial.context, counts)


def _check_adapters(config: Mapping, name: str, model: Model) -> _Checked:
    """Check that a model's server loads the adapters of the run, and has the base of this run."""
    rank = grid.adapter_rank(config, name)
    folder = Path("results", config["run"])
    is_folder = Path(model.model).is_dir()
    commit = None if is_folder else hub.download(name, model, ["config.json"]).name
    try:
        told = try_adapters(name, model, commit, rank, folder)
    except UserError as error:
        return _Checked((), (str(error),))
    note = f"its server loads adapters of rank {rank}"
    if told is None and commit is not None:
        note += f", and does not tell whether its revision is {commit}"
    return _Checked((note,), ())


def _roles(config: Mapping, name: str, suite: Suite) -> Iterator[Role]:
    """Yield a model's roles in the run."""
    from agentsafe.labels.judges.llm import SCORES, LLMJudge
    from agentsafe.rollouts.emulators.llm import LLMEmulator

    rollouts = msgspec.convert(config["rollouts"], RolloutSettings)
    if name in grid.sources(config):
        told = list(prompts(suite, suite.cases, rollouts.prompt).values())
        sampling = Sampling(
            rollouts.temperature,
            min(rollouts.max_turn_tokens, rollouts.max_agent_tokens),
            rollouts.seed,
            STOP,
        )
        yield Role("agent", told, sampling, "rollouts.max_turn_tokens")
    emulating = msgspec.convert(config["emulator"], EmulatorSettings)
    if emulating.model == name:
        emulator = LLMEmulator(suite, None, settings=emulating)
        prompted = [emulator.render_prompt(case) for case in suite.cases]
        sampling = Sampling(emulating.temperature, emulating.max_tokens, emulating.seed)
        yield Role("emulator", prompted, sampling, "emulator.max_tokens")
    for judge, section in config["judges"].items():
        judging = msgspec.convert(section, JudgeSettings)
        if judging.model == name:
            model = LLMJudge(judge, suite, None, settings=judging)
            asked = [
                model.render_prompt(case, [], metric)
                for metric in judging.metrics
                for case in suite.cases
            ]
            logits = judging.mode == "logits"
            sampling = Sampling(
                judging.temperature, 1 if logits else judging.max_tokens, judging.seed
            )
            text = model.template.text("score", metric=judging.metrics[0])
            request = text, replace(sampling, temperature=0.0, choices=SCORES)
            yield Role(f"judge {judge}", asked, sampling, f"judges.{judge}.max_tokens", request)


def _check_packages(name: str, model: Model, settings: TrainingSettings | None) -> None:
    needed = {_PACKAGES[model.backend]: _EXTRAS[model.backend]}
    if model.quantization != "none" and model.backend == "transformers":
        needed["bitsandbytes"] = "quantization"
    if settings is not None:
        optimizer = OPTIMIZERS[settings.optimizer]
        needed |= {optimizer.package: optimizer.extra} if optimizer.package else {}
        needed |= {"bitsandbytes": "quantization"} if settings.quantization != "none" else {}
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"models.{name}: the package {package} is missing: pip install 'agentsafe[{extra}]'"
            )


def _reach(name: str, model: Model) -> tuple["PreTrainedTokenizerBase", "PreTrainedConfig"]:
    """Return a checkpoint's tokenizer and config.

    Raises:
        UserError: it cannot be had.
    """
    from transformers import AutoConfig, AutoTokenizer

    loading.quieten()
    folder = Path(model.model)
    if folder.is_dir():
        check(folder)
        folder = base_folder(folder)
    else:
        folder = hub.download(name, model, _SMALL)
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        config = AutoConfig.from_pretrained(folder, **options)
    except Exception as error:  # each kind of model and tokenizer raises its own
        raise UserError(
            f"models.{name}.model: {model.model} cannot be read: {one_line(error)}"
        ) from None
    return tokenizer, config


def _lengths(name: str, role: Role, tokens: np.ndarray) -> dict[str, Any]:
    """Percentiles of the prompts' tokens."""
    p50, p90, most = (int(np.percentile(tokens, p, method="higher")) for p in (50, 90, 100))
    return {"model": name, "role": role.name, "p50": p50, "p90": p90, "max": most}


def _prompt_tokens(
    role: Role, tokenizer: Any, per_token: Mapping[str, float] | None = None
) -> np.ndarray:
    """Count the tokens of each prompt; by its characters where there is no tokenizer."""
    texts = ["\n".join(message["content"] for message in messages) for messages in role.prompts]
    if tokenizer is None:
        size = (per_token or {}).get(role.name, _PER_TOKEN)
        return np.array([int(len(text) / size) for text in texts])
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.array([len(ids) for ids in encoded])


def _pairs_that_fit(
    training: Mapping, prompt_tokens: np.ndarray, limit: int | None
) -> tuple[str, tuple[str, ...]]:
    """Say on how many cases an episode like the release's is short enough to train on.

    Args:
        training: the section of the config.
        prompt_tokens: the tokens of each case's prompt.
        limit: the model's context, if it is known.

    Returns:
        A note, and a problem where more cases are too long than the run may drop.
    """
    episode = round(released_tokens("agent", "observation"))
    room = min(training["max_length"], limit or training["max_length"])
    tokens = prompt_tokens + episode
    fitting = int((tokens <= room).sum())
    note = f"pairs of {fitting} of {len(tokens)} cases fit {room:,} tokens, if episodes have "
    note += f"{episode:,} as the release's do"
    if len(tokens) - fitting <= training["max_dropped"] * len(tokens):
        return note, ()
    key = "training.max_length" if room == training["max_length"] else "the model's context"
    return note, (
        f"pairs of only {fitting} of {len(tokens)} cases fit {key}, {room:,} tokens (prompt and "
        f"episode have up to {tokens.max():,}): raise it, use a shorter template, or raise "
        "training.max_dropped",
    )


def _training_settings(config: Mapping, name: str) -> TrainingSettings | None:
    """Return how a model is trained first; None if it is not."""
    for lineage in grid.stages(config):
        if lineage.source == name:
            settings = grid.training_settings(config, lineage) | grid.training_conduct(config)
            return msgspec.convert(settings, TrainingSettings)
    return None


def _memory_of_training(
    config: Mapping, settings: TrainingSettings, model_config: "PreTrainedConfig", limit: int
) -> tuple[str, tuple[str, ...]]:
    """Say how much memory the training of a model takes, and whether a GPU has it.

    Args:
        config: the checked config.
        settings: of the training.
        model_config: the model's own config.
        limit: its context.

    Returns:
        A note, and a problem where not even one rollout at a time has room.
    """
    training = config["training"]
    sharded = training["gpus"] > 1 and training["distributed"] == "fsdp2"
    device = Device(True, training["gpus"], sharded)
    length = min(settings.max_length, limit)

    def needed(settings: TrainingSettings, row_by_row: bool = False) -> int:
        return largest_step(model_config, settings, length, device=device, row_by_row=row_by_row)

    note = f"training takes up to {memory_size(needed(settings))} of each GPU"
    given = config["resources"]["gpu_memory"]
    room = _smallest_gpu(training["gpus"]) if given is None else given * 1e9
    if room is None:
        return note, ()
    note += f", which has {memory_size(room)}"
    least = needed(settings, row_by_row=True)
    if least <= room:
        return note, ()
    fits = (
        written
        for written, smaller in less_memory(settings, device)
        if needed(smaller, row_by_row=True) <= room
    )
    fix = next(fits, "a smaller training.max_length")
    return note, (
        f"training takes at least {memory_size(least)} of each GPU, which has {memory_size(room)}: "
        f"write {fix}, or train on larger GPUs, or on several with training.distributed: fsdp2",
    )


def _smallest_gpu(count: int) -> float | None:
    """Return the bytes of the smallest of this machine's first GPUs; None if it has none."""
    import torch

    seen = range(min(count, torch.cuda.device_count()))
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in seen]
    return min(sizes, default=None)


def _template_problems(
    model: Model, roles: Sequence[Role], tokenizer: Any, *, trains: bool
) -> Iterator[str]:
    """Yield the problems of a checkpoint's chat template; `trains` if it trains as agent."""
    options = model.chat_options
    for role in roles:
        found = chat_template.problems(tokenizer, role.prompts[0], options)
        if trains and role.name == "agent":
            found = template_problems(ChatEncoder(tokenizer, options), role.prompts[0])
        for problem in found:
            yield f"as {role.name}, {problem}"


def _length_problems(
    name: str, roles: Sequence[Role], rows: Sequence[Mapping], limit: int | None
) -> Iterator[str]:
    """Yield the roles whose longest prompt and answer do not fit the context together."""
    for role, row in zip(roles, rows, strict=True):
        room = role.sampling.max_tokens
        if limit is not None and row["max"] + room > limit:
            yield (
                f"as {role.name}, its longest prompt has {row['max']:,} tokens and its answer up "
                f"to {room:,}, but its context is {limit:,}: raise 'models.{name}.context' if the "
                "model can, ask for fewer tokens, or use a shorter template"
            )


def released_tokens(*kinds: str) -> float:
    """Return the mean tokens of texts of these kinds in the release; see `RELEASED`."""
    return sum(RELEASED[kind] / _RELEASED_PER_TOKEN[kind] for kind in kinds)


def estimate(config: Mapping[str, Any], suite: Suite, lengths: pl.DataFrame) -> pl.DataFrame:
    """Estimate a run's tokens, from the prompts' lengths and the release's episodes.

    Args:
        config: the checked config.
        suite: with all cases of the run.
        lengths: rows that `check_models` yields.

    Returns:
        One row a stage: `stage, model, episodes, calls, prompt_tokens, generated_tokens, cost`,
        the prompts counted at each call, as a server without a prefix cache bills them. Private
        reasoning is in it where the release has it: of the emulator, and as the mean of all sources
        of an agent, unless `models.*.thinking` is false. That of models on servers is not, and can
        be many times the rest. The cost is null for a model without a price.
    """
    cases, samples = len(suite.cases), config["rollouts"]["samples"]
    tested = cases - cases // 2
    typical = {(row["model"], row["role"]): row["p50"] for row in lengths.iter_rows(named=True)}
    trained = grid.lineages(config)
    rolled_out = [(name, name, cases * samples) for name in grid.sources(config)]
    rolled_out += [(lineage.source, "trained", tested * samples) for lineage in trained]
    record, seen = released_tokens("agent", "observation"), released_tokens("observation")
    rows = []

    def written(model: str, role: str) -> float:
        thinks = config["models"].get(model, {}).get("thinking") is not False
        return released_tokens(role, *([f"{role}_reasoning"] if thinks else []))

    def add(
        role: str, stage: str, model: str, episodes: int, calls: float, read: float, wrote: float
    ) -> None:
        """Add the calls of episodes, each of which reads so much beside its first prompt."""
        prompt = typical.get((model, role), 0) + read
        rows.append(
            {
                "stage": stage,
                "model": model,
                "episodes": episodes,
                "calls": round(episodes * calls),
                "prompt_tokens": round(episodes * calls * prompt),
                "generated_tokens": round(episodes * calls * wrote),
            }
        )

    for model, _, episodes in rolled_out:
        turns = RELEASED["steps"] + 1
        wrote = written(model, "agent") / turns
        add("agent", "rollouts", model, episodes, turns, record / 2, wrote)
        if emulator := config["emulator"]["model"]:
            wrote = written(emulator, "emulator")
            add("emulator", "emulator", emulator, episodes, RELEASED["emulated"], seen / 2, wrote)
    for name, labelled in grid.labels(config).items():
        judge = config["judges"][name]
        for checkpoint in labelled if judge["model"] else []:
            episodes = (tested if "+" in checkpoint else cases) * samples * judge["replicates"]
            for metric in judge["metrics"]:
                text = released_tokens(metric if metric in RELEASED else "safety")
                wrote = 1 if judge["mode"] == "logits" else text
                stage = f"labels by {name}"
                add(f"judge {name}", stage, judge["model"], episodes, 1, record, wrote)
    keys = ["stage", "model"]
    sums = pl.DataFrame(rows).group_by(keys, maintain_order=True).sum()
    costs = [
        cost(
            Usage(prompt=row["prompt_tokens"], completion=row["generated_tokens"]),
            config["models"].get(row["model"], {}).get("price", {}),
        )
        for row in sums.iter_rows(named=True)
    ]
    return sums.with_columns(pl.Series("cost", costs, pl.Float64))


def describe_cost(config: Mapping[str, Any], estimated: pl.DataFrame, spent: float) -> str | None:
    """Say in one line what a run costs and what its budget is; None where no model has a price.

    Args:
        config: the checked config.
        estimated: rows of `estimate`.
        spent: by earlier jobs of the run.
    """
    costs = estimated["cost"].drop_nulls()
    if costs.is_empty():
        return None
    whole = float(costs.sum())
    line = "Estimated cost of the whole run, without thinking on servers, and without caches: "
    line += money(whole)
    line += f"; {money(spent)} spent so far" if spent else ""
    if config["budget"] is None:
        return f"{line}."
    short = ", less than the estimate" if config["budget"] < whole else ""
    return f"{line}; the budget is {money(config['budget'])}{short}."
