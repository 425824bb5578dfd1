"""One training run: from preference pairs and a parent checkpoint to a trained checkpoint.

DPO (Rafailov et al., arXiv 2305.18290) of a LoRA adapter (Hu et al., arXiv 2106.09685), or of all
weights, on the pairs of the lineage's training cases, with TRL's trainer. A stage of the objective
`sft` imitates rollouts instead: it minimises the negative log-likelihood of their tokens, and has
neither a rejected side nor a reference nor a β. An adapter is kept as one on the lineage's source,
composed with those of the stages before; `loading.load_model` merges it in memory wherever the
checkpoint is used. A killed run resumes from the trainer's own checkpoints in a scratch folder.

`launch` runs a task in this process, or in one process per GPU, each of which runs this module:

    accelerate launch --config_file workflow/accelerate/ddp.yaml -m agentsafe.training.train FILES
"""

import gc
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe._util.atomic_write import whole_file
from agentsafe._util.json import read_json
from agentsafe._util.progress import say
from agentsafe._util.settings import cache_key
from agentsafe.errors import UserError, out_of_memory
from agentsafe.lineage import Lineage
from agentsafe.models import checkpoint, loading
from agentsafe.models.adapters import check_composable
from agentsafe.preferences.dataset import with_rows
from agentsafe.rollouts.react import prompts
from agentsafe.scores.config import Bootstrap
from agentsafe.suites.cases import case_index, read_suite, validation_cases
from agentsafe.training import checks
from agentsafe.training.config import (
    OF_PAIRS,
    Settings,
    arguments,
    first_loss,
    is_sharded,
    process_count,
    tell_trackers,
)
from agentsafe.training.held_out import Held, evaluate, log_probs, measure
from agentsafe.training.memory import Device, estimate, less_memory
from agentsafe.training.model_card import model_card
from agentsafe.training.optimizers import OPTIMIZERS, check_optimizer, register_states
from agentsafe.training.reference import by_row, chat_encoder, digest, scoring
from agentsafe.training.run_card import Card, HeldOut, describe, measured_lines, read_cards
from agentsafe.training.served import compare
from agentsafe.training.tokenize import Trajectory, fitting, trajectories

if TYPE_CHECKING:
    from agentsafe.training.callbacks import Fitted
    from agentsafe.training.trainer import PairTrainer, Parent, RolloutTrainer

log = logging.getLogger(__name__)

_PATIENCE = 60  # seconds for processes to end after SIGTERM


@dataclass(frozen=True)
class Task:
    """One training run: the files that it reads, its settings, and the files that it writes.

    Attributes:
        lineage: of the checkpoint to train; its last stage has the β, if any, and it has a seed.
        cases: number of cases of the suite.
        settings: how to train.
        prompt: name of the agent's prompt template.
        suite_files: cases and toolkits of the suite.
        parent: folder of the checkpoint to start from, which is the reference too.
        pairs: table of `schemas.PAIRS`, or of rollouts to imitate, which have no rejected side;
            those of the seed's training cases train.
        rollouts: tables of `schemas.ROLLOUTS` with the rollouts of the pairs.
        own: those with the source's own rollouts, if they are not among them: only their tokens are
            compared with what trains.
        checkpoint: folder to write, atomically: an adapter, or whole weights and a tokenizer, and
            a model card; only `untrained.json` without a pair or a trained parent.
        log: table of `schemas.TRAINING` to write; empty for a run that did not train.
        card: JSON file to write (`run_card.Card`).
        scratch: folder of the trainer's checkpoints; removed once all files are written.
        base: folder of the checkpoint below the adapter that the parent's last stage trained, to
            train that adapter further.
        base_model: the parent's name in the model card; its lineage by default.
        cards_before: cards of the stages before, the first one first.
        reference: table of `schemas.REFERENCE` of the parent; without it, each batch computes it.
        trackers: folder for trackers that write files.
        template_options: variables of the chat template, as in serving.
        threads: of torch on the CPU; by default those of the process.
        bootstrap: of the interval of the held-out accuracy.
        played_dtype, played_quantization: as for `loading.load_model`, of the checkpoint when it
            plays, for the held-out accuracy.
    """

    lineage: str
    cases: int
    settings: Settings
    prompt: str
    suite_files: tuple[str, str]
    parent: str
    pairs: str
    rollouts: list[str]
    checkpoint: str
    log: str
    card: str
    scratch: str
    own: tuple[str, ...] = ()
    base: str | None = None
    base_model: str | None = None
    cards_before: tuple[str, ...] = ()
    reference: str | None = None
    trackers: str | None = None
    template_options: dict[str, str | int | float | bool] | None = None
    threads: int | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    played_dtype: str = "auto"
    played_quantization: str = "none"

    @property
    def beta(self) -> float | None:
        """DPO's β, of the lineage's last stage; None where it imitates rollouts.

        Raises:
            ValueError: the lineage names no training run.
        """
        lineage = Lineage.parse(self.lineage)
        if not lineage.stages or lineage.seed is None:
            raise ValueError(f"{lineage} names no training run: it needs a stage and a seed")
        return lineage.stages[-1].beta


@dataclass(frozen=True)
class Prepared:
    """The inputs of a run in memory, checked, and its card as known before the first step.

    Attributes:
        card: begun, or untrained if there is nothing to train or to train on.
        history: the cards of the stages before.
        examples: (row of chosen, row of rejected) of the pairs that train, or (row,) of the
            rollouts.
        validating: the same of the validation cases, which choose the step that is kept.
        tested: the same of the test half.
        tokens: the trajectories of all these rows.
        cases: the case of each row.
        reference: the parent's log-probability of each row, if known.
        weights: digest of the parent's weights.
    """

    card: Card
    history: list[Card]
    examples: list[tuple[int, ...]] = field(default_factory=list)
    validating: list[tuple[int, ...]] = field(default_factory=list)
    tested: list[tuple[int, ...]] = field(default_factory=list)
    tokens: dict[int, Trajectory] = field(default_factory=dict)
    cases: dict[int, str] = field(default_factory=dict)
    reference: dict[int, float] = field(default_factory=dict)
    weights: str = ""

    def held(self, task: Task, settings: Settings) -> Held:
        """Return the pairs that are measured while the run trains."""
        validates = settings.validation_share > 0
        return Held(
            pairs=self.validating if validates else self.tested,
            part="validation" if validates else "test",
            settings=settings,
            beta=task.beta,
            max_tokens=settings.batch_tokens or 2 * settings.max_length,
            bootstrap=task.bootstrap,
        )


@dataclass(frozen=True)
class _Trained:
    trainer: "PairTrainer | RolloutTrainer"
    fitted: "Fitted"
    held_out: HeldOut | None
    settings: Settings


def train(task: Task) -> Card:
    """Train the last stage of a lineage, and write its checkpoint, log and card.

    Returns:
        The card.

    Raises:
        UserError: a table cannot be read, the parent cannot be loaded, pairs, rollouts and prompts
            do not fit together, the chat template does not only append, too many pairs are too
            long, or the loss becomes NaN.
        ValueError: the lineage names no run, or `cards_before` are not of its stages before.
    """
    began = time.monotonic()
    if task.trackers:
        tell_trackers(task.trackers, task.lineage)
    prepared = prepare(task)
    card = prepared.card
    if card.reason is not None:
        log.info("%s is not trained: %s", card.lineage, card.reason)
        if _is_main():
            checkpoint.write_untrained(task.checkpoint, card.reason)
            _write(task, card, pl.DataFrame(schema=schemas.TRAINING))
        return card
    for line in describe(card):
        log.info("%s", line)

    import torch

    from agentsafe.training.callbacks import claim, remove
    from agentsafe.training.trainer import write_checkpoint

    if task.threads:
        torch.set_num_threads(task.threads)
    if _is_main():  # the other processes wait for it where the trainer is made
        claim(task.scratch, _key(task, prepared))
        # What cannot be written should fail now, not after the training.
        card.write(Path(task.scratch, "card.json"))
        _model_card(task, prepared, card)
    trained = _trained(task, prepared)
    if checkpoint.weights_digest(task.parent) != prepared.weights:
        raise UserError(f"{task.parent}: changed while {card.lineage} trained on it; run it again")
    fitted, held = trained.fitted, prepared.held(task, trained.settings)
    last, loss = fitted.steps[-1], "nll" if task.beta is None else "dpo_loss"
    card = replace(
        card,
        status="trained",
        steps=len(fitted.steps),
        first_loss=fitted.steps[0][loss],
        last_loss=last[loss],
        reward_margin=last["reward_margin"],
        reward_accuracy=last["reward_accuracy"],
        kept_step=fitted.kept,
        validation=fitted.measured.get(fitted.kept) if held.part == "validation" else None,
        held_out_in_training=trained.held_out,
        batch_tokens=trained.settings.batch_tokens,
    )
    write_checkpoint(
        trained.trainer,
        task.checkpoint,
        _parent(task, prepared),
        _model_card(task, prepared, card),
    )
    if not _is_main():
        return card
    del trained
    _free_memory()
    card = replace(card, **_as_played(task, prepared, held), seconds=time.monotonic() - began)
    for line in measured_lines(card):
        log.info("%s", line)
    with whole_file(Path(task.checkpoint, "README.md")) as partial:
        partial.write_text(_model_card(task, prepared, card), encoding="utf-8")
    _write(task, card, _log(card.lineage, fitted, held.part))
    remove(task.scratch)
    return card


def prepare(task: Task) -> Prepared:
    """Read and check the inputs of a run, and begin its card.

    Raises:
        UserError, ValueError: as `train`.
    """
    lineage, settings, beta = Lineage.parse(task.lineage), task.settings, task.beta
    assert lineage.seed is not None  # else `beta` raises
    gpu = loading.half_precision()
    check_optimizer(settings.optimizer, settings.weights_dtype, gpu=gpu)
    used = msgspec.json.decode(msgspec.json.encode(settings)) | {"beta": beta}
    if beta is None:
        used = {name: value for name, value in used.items() if name not in ("beta", *OF_PAIRS)}
    card = Card(status="begun", lineage=str(lineage), settings=used, versions=_versions(settings))
    history = read_cards(task.cards_before)
    if (before := len(lineage.stages) - 1) != len(history):
        raise ValueError(f"{lineage} has {before} stages before, but {len(history)} cards of them")
    if reason := checkpoint.untrained(task.parent):
        return Prepared(card.untrained(f"its parent was not trained: {reason}"), history)
    suite = read_suite(*task.suite_files)
    messages = prompts(suite, suite.cases, task.prompt)
    rollouts = schemas.read_table(task.rollouts, schemas.ROLLOUTS)
    pairs = schemas.read_table(task.pairs, schemas.PAIRS)
    training, test = (
        with_rows(pairs, rollouts, messages, cases=task.cases, seed=lineage.seed, half=half)
        for half in ("train", "test")
    )
    for half in (training, test):
        checks.check_sides(str(lineage), f"{card.example}s", half)
    held_back = validation_cases(task.cases, lineage.seed, settings.validation_share)
    names = [name for name in training["case_id"].unique() if case_index(name) in held_back]
    validation = training.filter(pl.col("case_id").is_in(names))
    training = training.filter(~pl.col("case_id").is_in(names))
    tokenizer = loading.load_tokenizer(task.parent)
    encoder = chat_encoder(tokenizer, settings, task.template_options)
    for case in training["case_id"].head(1):
        checks.check_template(encoder, messages[case])
    rows = pl.concat([training, validation, test])
    tokens = trajectories(encoder, rows, rollouts, messages)
    config = loading.load_config(task.parent)
    max_length = loading.context(config, tokenizer, settings.max_length)
    kept, counts = fitting(training, tokens, max_length)
    validating, tested = (fitting(half, tokens, max_length)[0] for half in (validation, test))
    card = card.counted(counts)
    checks.check_dropped(str(lineage), counts, settings, max_length, f"{card.example}s")
    if not kept:
        kind = "rollout to imitate" if beta is None else "preference pair"
        reason = f"no {kind} of its training cases"
        if len(training) and beta is None:
            reason += f" is within {max_length} tokens and has a turn"
        elif len(training):
            reason += f" has both sides within {max_length} tokens and a turn on each"
        return Prepared(card.untrained(reason), history)
    own = schemas.read_table(task.own, schemas.ROLLOUTS) if task.own else rollouts
    ends = loading.end_tokens(task.parent, tokenizer)
    card = replace(
        card,
        findings=checks.findings(training, rollouts, tokens, kept, max_length),
        donors=checks.origins(rollouts, kept),
        served=compare(encoder, messages, own, lineage.source, ends),
        loss_tokens=checks.loss_share(kept, tokens),
        expected=estimate(config, settings, kept, tokens, device=_device(gpu)),
        data_sha256=_data_digest(kept, tokens),
    )
    tokens = {row: tokens[row] for pair in [*kept, *validating, *tested] for row in pair}
    weights = checkpoint.weights_digest(task.parent)
    reference = {}
    if task.reference is not None:
        table = schemas.read_table(task.reference, schemas.REFERENCE)
        reference = by_row(table, rollouts, tokens, weights)
    return Prepared(
        card=card,
        history=history,
        examples=kept,
        validating=validating,
        tested=tested,
        tokens=tokens,
        cases={row: rollouts["case_id"][row] for row in tokens},
        reference=reference,
        weights=weights,
    )


def _trained(task: Task, prepared: Prepared) -> _Trained:
    """Train; when memory runs out, resume once with half of the tokens or examples at a time."""
    from agentsafe.training.prefix_sharing import CannotShare

    settings = task.settings
    try:
        return _fit(task, prepared, settings)
    except RuntimeError as error:
        if not out_of_memory(error) or "WORLD_SIZE" in os.environ:
            raise
    # Outside of the handler, so that nothing refers to the first trainer any longer.
    _free_memory()
    fewer = replace(settings, batch_tokens=_half(settings, prepared))
    with suppress(CannotShare):
        say(f"{task.lineage}: out of memory; resumes with {fewer.batch_tokens} tokens at a time")
        return _fit(task, prepared, fewer)
    example = prepared.card.example
    if settings.batch_size == 1:
        written = [f"{each}, " for each, _ in less_memory(settings, Device(gpu=True))][:1]
        raise MemoryError(
            f"{task.lineage}: out of memory with one {example} at a time: write "
            f"{''.join(written)}a smaller training.max_length, or train on a larger device"
        )
    # The same steps: twice as many batches, of the largest divisor that is half at most.
    pairs = settings.batch_size
    smaller = next(size for size in range(pairs // 2, 0, -1) if pairs % size == 0)
    batches = settings.gradient_accumulation_steps * pairs // smaller
    fewer = replace(settings, batch_size=smaller, gradient_accumulation_steps=batches)
    how = f"resumes with {smaller} {example}s at a time"
    say(f"{task.lineage}: its model cannot share prefixes; {how}")
    return _fit(task, prepared, fewer)


def _fit(task: Task, prepared: Prepared, settings: Settings) -> _Trained:
    from agentsafe.training.callbacks import fit

    trainer, held = _trainer(task, prepared, settings), prepared.held(task, settings)
    if settings.keep == "best" and not held.pairs:
        example = prepared.card.example
        say(f"{task.lineage}: keeps its last step, since no {example} is of a validation case")
    with trainer.forwarding():
        fitted = fit(trainer, task.lineage, first_loss(settings, task.beta), settings)
        held_out = fitted.measured.get(fitted.kept)
        if held.part == "validation":
            held_out = measure(trainer, replace(held, pairs=prepared.tested, part="test"))
    return _Trained(trainer, fitted, held_out, settings)


def _free_memory() -> None:
    """Give back the memory of a model that nothing refers to any longer."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _as_played(task: Task, prepared: Prepared, held: Held) -> dict[str, Any]:
    """Measure the written checkpoint on pairs of the test half, loaded as it is when it plays.

    Returns:
        Fields of the card.
    """
    import torch

    gpu = torch.cuda.is_available()
    quantization = task.played_quantization if gpu else "none"
    played = {"dtype": task.played_dtype, "quantization": quantization}
    held = replace(held, pairs=prepared.tested, part="test")
    tokens = {key: prepared.tokens[key] for key in held.keys}

    def log_probs_of(folder: str) -> dict[int, np.ndarray]:
        with scoring(folder, **played, threads=task.threads) as model:
            return log_probs(model, tokens, prepared.cases, held.max_tokens)

    # A known reference is of the parent as it trains, which may be another than it plays.
    as_saved = task.played_dtype in ("auto", *(() if gpu else ("float32",)))
    known = prepared.reference if as_saved and quantization == held.settings.quantization else {}
    reference = {key: np.array([known[key]]) for key in tokens if known}
    found = None
    if held.pairs:
        policy = log_probs_of(task.checkpoint)
        found = evaluate(held, prepared.cases, policy, reference or log_probs_of(task.parent))
    return {"held_out": found, "played": played}


def _trainer(task: Task, prepared: Prepared, settings: Settings) -> "PairTrainer | RolloutTrainer":
    from peft import PeftModel
    from trl.trainer.utils import disable_dropout_in_model

    from agentsafe.training.lora import lora_config
    from agentsafe.training.trainer import Batching, Data, PairTrainer, RolloutTrainer

    register_states(settings.optimizer)
    full = settings.tuning == "full"
    model: Any = loading.load_model(
        task.parent if task.base is None else task.base,
        dtype=settings.weights_dtype if full else "auto",
        quantization=settings.quantization,
    )
    _check_router_loss(model, settings, prepared.tokens.values(), task.parent)
    if task.base is not None:
        disable_dropout_in_model(model)
        adapter = checkpoint.stage_folder(task.parent)
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        # A folder: to save the trainer's states, PEFT would look for any other name on the hub.
        model.peft_config["default"].base_model_name_or_path = str(task.base)
    lora = None if full or task.base is not None else lora_config(settings.lora, model)
    if lora and settings.keeps_adapter and checkpoint.base_folder(task.parent) != Path(task.parent):
        before = read_json(Path(task.parent, checkpoint.ADAPTER_CONFIG))
        check_composable(before, lora.to_dict())  # now, not after the training
    trainer = (RolloutTrainer if task.beta is None else PairTrainer)(
        model,
        loading.load_tokenizer(task.parent),
        Data(prepared.examples, prepared.tokens, prepared.cases, prepared.reference),
        arguments=arguments(settings, task.beta, Path(task.scratch), prepared.card.lineage),
        lora=lora,
        batching=Batching(settings.batching, settings.batch_tokens),
        held=prepared.held(task, settings),
    )
    if task.base is not None and prepared.reference:
        policy: Any = trainer.model
        policy.delete_adapter("ref")  # TRL's copy, to compute the reference with
    return trainer


def _check_router_loss(
    model: Any, settings: Settings, trajectories: Iterable[Trajectory], parent: str
) -> None:
    """Check that the router's loss can be computed if it is asked for."""
    if not settings.router_aux_loss_coef:
        return
    if not hasattr(model.config.get_text_config(decoder=True), "output_router_logits"):
        raise UserError(
            f"training.router_aux_loss_coef: {parent} is no mixture of experts that returns "
            "its router's logits: leave it out"
        )
    if any(len(each.starts) > 1 for each in trajectories):
        raise UserError(
            "training.router_aux_loss_coef: it needs rows of their own, but the chat template of "
            f"{parent} rewrites earlier turns, so that a rollout is several sequences: leave it out"
        )


def _parent(task: Task, prepared: Prepared) -> "Parent":
    from agentsafe.training.trainer import Parent

    parent, source = Path(task.parent), Lineage.parse(task.lineage).source
    below, name = (parent, _parent_name(task)) if task.base is None else (Path(task.base), source)
    base = checkpoint.base_folder(below)
    return Parent(
        folder=parent,
        below=below,
        name_below=checkpoint.hub_id(below) or (name, None),
        base=base,
        base_name=checkpoint.hub_id(base) or (name if base == below else source, None),
        base_digest=prepared.weights if base == parent else checkpoint.base_digest(below),
    )


def _half(settings: Settings, prepared: Prepared) -> int:
    """Halve the number of tokens of a forward pass."""
    longest = max(len(each.ids) for each in prepared.tokens.values())
    sides = len(prepared.examples[0])
    whole = settings.batch_tokens or sides * settings.batch_size * longest
    return max(whole // 2, 1)


def _data_digest(pairs: Sequence[tuple[int, ...]], tokens: Mapping[int, Trajectory]) -> str:
    """Hash the tokens of the pairs, in order."""
    sides = (digest(tokens[row]) for pair in pairs for row in pair)
    return hashlib.sha256("".join(sides).encode()).hexdigest()


def _key(task: Task, prepared: Prepared) -> dict[str, object]:
    """Return everything that the trainer's checkpoints depend on."""
    return {
        "lineage": prepared.card.lineage,
        "settings": cache_key(Settings, asdict(task.settings)),
        "data": prepared.card.data_sha256,
        "held_out": _data_digest([*prepared.validating, *prepared.tested], prepared.tokens),
        "weights": prepared.weights,
        "versions": prepared.card.versions,
        "processes": str(process_count()),
    }


def _versions(settings: Settings) -> dict[str, str]:
    names = ["torch", "transformers", "trl", "peft"]
    if package := OPTIMIZERS[settings.optimizer].package:
        names.append(package)
    return {name: version(name) for name in names}


def _device(gpu: bool) -> Device:
    """Describe the device of this process, one of those that accelerate started."""
    return Device(gpu, process_count(), is_sharded())


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _model_card(task: Task, prepared: Prepared, card: Card) -> str:
    return model_card(
        card,
        parent=_parent_name(task),
        history=prepared.history,
        base=_parent(task, prepared).base_name if task.settings.keeps_adapter else None,
    )


def _parent_name(task: Task) -> str:
    return task.base_model or str(Lineage.parse(task.lineage).parent)


def _log(lineage: str, fitted: "Fitted", part: str) -> pl.DataFrame:
    """Make the table of a run's steps, with what was measured after them."""
    ours = ("loss", "loss_low", "loss_high", "margin", "accuracy")
    measured = {
        step: {f"held_out_{name}": getattr(found, name) for name in ours}
        | {"held_out_accuracy_low": found.low, "held_out_accuracy_high": found.high}
        | {"held_out_part": part}
        for step, found in fitted.measured.items()
    }
    steps = pl.DataFrame(fitted.steps, infer_schema_length=None)
    rows = [
        {"lineage": lineage} | row | measured.get(row["step"], {})
        for row in steps.iter_rows(named=True)
    ]
    return pl.DataFrame(rows, schema=schemas.TRAINING)


def _write(task: Task, card: Card, steps: pl.DataFrame) -> None:
    schemas.write_table(steps, task.log, schemas.TRAINING)
    card.write(task.card)


def launch(task: Task, processes: int, config: str | Path, log_file: str | Path) -> None:
    """Run a task in this process, or in several that accelerate starts.

    Args:
        task: to run.
        processes: their number, one for each GPU.
        config: accelerate's, for more than one process.
        log_file: their output is appended to it.

    Raises:
        UserError: as `train`, in any process.
        RuntimeError: a process failed for another reason; the log has it.
    """
    if processes == 1:
        train(task)
        return
    described, failed = Path(f"{task.scratch}.task.json"), Path(f"{task.scratch}.error")
    failed.unlink(missing_ok=True)
    with whole_file(described) as partial:
        partial.write_bytes(msgspec.json.encode(task))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", str(processes), "--main_process_port", "0"]
    command += ["-m", "agentsafe.training.train", str(described), str(failed)]
    folder = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    with Path(log_file).open("a", encoding="utf-8") as output:
        started = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # so that all of them can be ended together
        )
        try:
            status = started.wait()
        finally:
            _end(started)
    described.unlink()
    if failed.is_file():
        message = failed.read_text(encoding="utf-8")
        failed.unlink()
        raise UserError(message)
    if status:
        raise RuntimeError(f"training in {processes} processes ended with {status}; see {log_file}")


def _end(started: subprocess.Popen) -> None:
    """End a launcher and all processes that it started."""
    if started.poll() is None:
        started.terminate()
        try:
            started.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


def _main(described: str, failed: str) -> None:
    """Run a described task as one of several processes."""
    logging.basicConfig(
        level=logging.INFO if _is_main() else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    loading.quieten_imports()
    try:
        train(msgspec.json.decode(Path(described).read_bytes(), type=Task))
    except UserError as error:
        with whole_file(failed) as partial:
            partial.write_text(str(error), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
