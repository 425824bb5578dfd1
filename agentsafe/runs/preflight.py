"""Check a run before its first expensive job, and estimate its tokens, hours and cost.

Every model is requested (the hub for its small files, a folder for all of them, a server for
answers to the run's own questions), its chat template is tried, and the prompts of all cases are
measured against its context; the memory and the disk that the run takes are compared with what is
there. Nothing is loaded on a GPU. What a run takes is counted in `workload`, and priced in `bill`.
"""

import importlib.util
import os
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
from agentsafe.errors import UserError
from agentsafe.experiment import grid
from agentsafe.inference import chat_template
from agentsafe.inference.types import Sampling
from agentsafe.labels.config import JudgeSettings
from agentsafe.models import hub, loading
from agentsafe.models.checkpoint import base_folder, check, check_whole
from agentsafe.models.config import Model
from agentsafe.models.spending import spent_in, total
from agentsafe.rollouts.config import EmulatorSettings
from agentsafe.rollouts.config import Settings as RolloutSettings
from agentsafe.rollouts.react import STOP, prompts
from agentsafe.runs import bill, disk
from agentsafe.runs import calibration as calibrations
from agentsafe.runs.calibration import Calibration
from agentsafe.runs.speed import Speed, gpu_called, sheets, speeds
from agentsafe.runs.trial import Role, try_adapters, try_roles
from agentsafe.runs.workload import RELEASED, Work, released_tokens, works
from agentsafe.suites.cases import Suite
from agentsafe.training.checks import template_problems
from agentsafe.training.config import Settings as TrainingSettings
from agentsafe.training.memory import Device, largest_step, less_memory
from agentsafe.training.optimizers import OPTIMIZERS
from agentsafe.training.tokenize import ChatEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

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
    if len(measured):
        say(f"Tokens of the first prompt, over all cases:\n{_shown(measured)}")
    say(f"Disk of the run, if its models write as much:\n{_shown(_table_of(needed))}")
    spent = total(spent_in(Path("logs", config["run"])))
    try:
        for line in expect(config, measured, spent):
            say(line)
    except UserError as error:
        problems.append(str(error))
    if problems:
        say("Not ready. To fix:\n" + "\n".join(f"- {problem}" for problem in problems))
        raise UserError(f"{len(problems)} problems to fix before this run can start, see above")
    say("Ready.")


def _shown(table: pl.DataFrame) -> str:
    """Write a table for a terminal, whole."""
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=200,
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
    ):
        return str(table)


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
    if suite.cases:  # a release that is read has cases, but no model that plays them
        detail = f"{len(suite.cases)} cases, {len(suite.toolkits)} toolkits"
        yield Finding("suite", detail), []
    for name in config["donors"]:
        yield Finding(f"donor {name}", f"{grid.origin(config, name)}, imported by the run"), []
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
        check_whole(model.model)
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

    if name in (grid.entry_of(config, source) for source in grid.sources(config)):
        prompt = grid.prompt_of(config, name)
        rollouts = msgspec.convert(config["rollouts"] | {"prompt": prompt}, RolloutSettings)
        told = list(prompts(suite, suite.cases, prompt).values())
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
        if grid.entry_of(config, lineage.source) == name:
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
    given, kind = (config["resources"][key] for key in ("gpu_memory", "gpu"))
    if given is None:
        room = sheets().gpus[kind].memory if kind else _smallest_gpu(training["gpus"])
    else:
        room = given * 1e9
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


def expect(config: Mapping[str, Any], lengths: pl.DataFrame, spent: float) -> Iterator[str]:
    """Yield what a run is expected to take: per stage, in wall time, and in money.

    Args:
        config: the checked config.
        lengths: rows that `check_models` yields.
        spent: money, by earlier jobs of the run.

    Raises:
        UserError: the config names a calibration that cannot be read.
    """
    typical = {(row["model"], row["role"]): row["p50"] for row in lengths.iter_rows(named=True)}
    calibration, given = calibrations.find(config), config["resources"]
    expected = Expected.of(config, typical, calibration)
    if not expected.works:
        yield "No job of this run has a language model."
        return
    lines = expected.lines
    other = bill.other_way(config)
    others = other and (other[0], Expected.of(other[1], typical, calibration).lines)
    tiny = not grid.models(config)
    device, like = ("CPU", "those of its default run") if tiny else ("GPU", "the release's")
    made = bill.table(lines, given["gpu_hour"], device=device, others=others)
    yield f"Jobs, tokens and {device}s of the run, if its models write as {like}:\n{_shown(made)}"
    if others:
        way = "on servers (make serve)" if others[0] == "served" else "loaded in each job"
        yield f"{others[0]}: the same run with its models {way}."
    kind = given["gpu"] or (gpu_called(calibration.device) if calibration else None)
    yield from bill.describe_speeds(expected.speeds, calibration, kind)
    if lines[-1].seconds is None:
        instead = "" if tiny else ", or name its kind in resources.gpu"
        yield (
            f"{device} hours are not known: run 'make calibrate' on a machine with the {device} of "
            f"the jobs{instead}."
        )
    if line := describe_wall(config, expected, device):
        yield line
    if line := describe_cost(config, lines[-1].price, spent):
        yield line


@dataclass(frozen=True)
class Expected:
    """A run's work, the speed of its models, and what each stage takes."""

    works: list[Work]
    speeds: dict[str, Speed]
    lines: list[bill.Line]

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        typical: Mapping[tuple[str, str], float],
        calibration: Calibration | None,
    ) -> "Expected":
        """Estimate a run; the arguments are those of `workload.works` and `speed.speeds`."""
        found = works(config, typical)
        own = [work for work in found if bill.is_own(config, work.model)]
        known = speeds(config, own, calibration)
        return cls(found, known, bill.bill(config, found, known))


def describe_wall(config: Mapping[str, Any], expected: Expected, device: str) -> str | None:
    """Say in one line how long a run takes on the devices that there are; None if unknown."""
    count = config["resources"]["gpus"] if device == "GPU" else os.cpu_count() or 1
    wall = bill.wall_time(config, expected.works, expected.speeds, count)
    if wall is None or not wall.high:
        return None
    which = "resources.gpus" if device == "GPU" else "of this machine"
    return f"Time on {count} {device}{'s' * (count > 1)} ({which}): {bill.hours(wall)} hours."


def describe_cost(config: Mapping[str, Any], whole: float | None, spent: float) -> str | None:
    """Say in one line what a run pays for models with a price, and what its budget is.

    Args:
        config: the checked config.
        whole: estimated price of the whole run; None where no model has one.
        spent: by earlier jobs of the run.

    Returns:
        None where no model has a price.
    """
    if whole is None:
        return None
    line = (
        "Estimated cost of models with a price, without thinking on servers, and without caches: "
    )
    line += money(whole)
    line += f"; {money(spent)} spent so far" if spent else ""
    if config["budget"] is None:
        return f"{line}."
    short = ", less than the estimate" if config["budget"] < whole else ""
    return f"{line}; the budget is {money(config['budget'])}{short}."
