"""Compute DPO's reference log-probabilities once per checkpoint and rollout.

A rollout is in several pairs, and a pair in several runs with other βs, seeds and objectives. The
parent's log-probability of a rollout (Rafailov et al., arXiv 2305.18290, eq. 7) is the same in all
of them, so it is computed once into a table that the runs read.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from agentsafe._util.progress import Progress, say
from agentsafe._util.usage import METER, Usage
from agentsafe.errors import UserError
from agentsafe.inference.types import Messages
from agentsafe.lineage import Lineage
from agentsafe.models import checkpoint as checkpoints
from agentsafe.models import loading
from agentsafe.preferences.dataset import check_prompts
from agentsafe.schemas import REFERENCE, ROLLOUT
from agentsafe.training import served
from agentsafe.training.config import Settings
from agentsafe.training.tokenize import PLAYED, ChatEncoder, Trajectory, played, tokenised

log = logging.getLogger(__name__)


def reference(
    parent_folder: str | Path,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Messages],
    *,
    lineage: str,
    settings: Settings,
    template_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    own: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Compute a parent's log-probability of each rollout.

    Args:
        parent_folder: the parent's checkpoint.
        rollouts: rows of `schemas.ROLLOUTS`.
        prompts: the agent's prompt, as messages, by case id.
        lineage: of the parent.
        settings: of the training; `assistant_only_loss`, `reasoning`, `max_length`, `batch_tokens`
            and `quantization` are used.
        template_options: variables of the chat template, as in serving.
        threads: of torch on the CPU; by default those of the process.
        own: the source's rollouts, whose tokens are compared with what trains, if they are not
            among the others.

    Returns:
        Rows of `schemas.REFERENCE` in the order of `rollouts`; none for an untrained parent.

    Raises:
        UserError: the parent cannot be loaded, a case has no prompt, or as
            `tokenize.trajectory`.
    """
    if checkpoints.untrained(parent_folder):
        return pl.DataFrame(schema=REFERENCE)
    check_prompts(rollouts["case_id"], prompts)
    source = Lineage.parse(lineage).source
    tokenizer = loading.load_tokenizer(parent_folder)
    encoder = chat_encoder(tokenizer, settings, template_options)
    ends = loading.end_tokens(parent_folder, tokenizer)
    compared = served.compare(encoder, prompts, rollouts if own is None else own, source, ends)
    for line in served.describe(lineage, compared):
        say(line)
    weights = checkpoints.weights_digest(parent_folder)
    config = loading.load_config(parent_folder)
    max_length = loading.context(config, tokenizer, settings.max_length)
    max_tokens = settings.batch_tokens or 2 * settings.max_length
    rows: dict[int, dict[str, Any]] = {}
    table = rollouts.select(*ROLLOUT, *PLAYED).with_row_index("row")
    progress = Progress(f"reference log-probabilities of {lineage}", len(table), "rollouts")
    load = scoring(parent_folder, quantization=settings.quantization, threads=threads)
    with load as model, progress:
        # Case by case: neither all tokens nor all sums are held at once.
        for (case,), of_case in table.group_by("case_id", maintain_order=True):
            tokens = {}
            episodes = ((case, played(*values)) for values in of_case.select(PLAYED).iter_rows())
            names = of_case.select("row", "checkpoint", "sample").iter_rows()
            made_of = tokenised(encoder, prompts, episodes)
            for (row, checkpoint, sample), each in zip(names, made_of, strict=True):
                status = "ok" if any(each.mask[1:]) else "empty"
                if each.longest > max_length:
                    status = "long"
                if status == "ok":
                    tokens[row] = each
                rows[row] = {
                    "lineage": lineage,
                    "weights": weights,
                    "case_id": case,
                    "checkpoint": checkpoint,
                    "sample": sample,
                    "status": status,
                    "tokens": len(each.ids),
                    "counted": sum(each.mask[1:]),
                    "digest": digest(each),
                }
            for row, value in logps(model, tokens, max_tokens).items():
                rows[row]["logps"] = value
            METER.count(Usage(prompt=sum(len(each.ids) for each in tokens.values())))
            progress.advance(len(of_case))
    made = pl.DataFrame([rows[row] for row in sorted(rows)], schema=REFERENCE)
    counts = dict(made["status"].value_counts().iter_rows())
    listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    say(f"reference log-probabilities of {lineage}: {listed}")
    return made


def chat_encoder(
    tokenizer: Any, settings: Settings, template_options: Mapping[str, Any] | None = None
) -> ChatEncoder:
    """Make the encoder of a DPO run, which its reference shares.

    Args:
        tokenizer: of the parent.
        settings: of the run.
        template_options: variables of the chat template, as in serving.
    """
    return ChatEncoder(
        tokenizer,
        options=template_options or {},
        assistant_only_loss=settings.assistant_only_loss,
        reasoning=settings.reasoning,
    )


def by_row(
    table: pl.DataFrame, rollouts: pl.DataFrame, tokens: Mapping[int, Trajectory], weights: str
) -> dict[int, float]:
    """Look up the log-probability of each trajectory in a table of them.

    Args:
        table: rows of `schemas.REFERENCE`.
        rollouts: the table of the rows in `tokens`.
        tokens: the trajectories, by their rollout's row.
        weights: `checkpoint.weights_digest` of the parent.

    Raises:
        UserError: a rollout is missing from the table, or has other tokens or another parent there.
    """
    numbered = rollouts.select(ROLLOUT).with_row_index("row")
    found = {
        row: (logp, made_of, made_by)
        for row, logp, made_of, made_by in numbered.join(table, on=ROLLOUT, how="inner")
        .select("row", "logps", "digest", "weights")
        .iter_rows()
    }
    for row, each in tokens.items():
        logp, made_of, made_by = found.get(row, (None, None, None))
        if logp is None or made_of != digest(each) or made_by != weights:
            case, checkpoint = rollouts["case_id"][row], rollouts["checkpoint"][row]
            raise UserError(
                f"reference log-probabilities: those of {case} by {checkpoint} are of other tokens "
                "or another parent; remove the parent's file in reference/ and run again"
            )
    return {row: found[row][0] for row in tokens}


def digest(each: Trajectory) -> str:
    """Hash a trajectory's tokens, which of them count, and where its sequences start."""
    tokens = np.array([each.ids, each.mask], dtype=np.int32)
    further = np.array(each.starts[1:], dtype=np.int32)
    return hashlib.sha256(tokens.tobytes() + further.tobytes()).hexdigest()[:16]


def logps(model: Any, tokens: Mapping[int, Trajectory], max_tokens: int) -> dict[int, float]:
    """Sum the log-probabilities of the counted tokens of each trajectory, all of one case.

    The arguments are those of `counted_logps`.
    """
    found = counted_logps(model, tokens, max_tokens)
    return {key: float(each.sum()) for key, each in found.items()}


def counted_logps(
    model: Any, tokens: Mapping[int, Trajectory], max_tokens: int
) -> dict[int, np.ndarray]:
    """Compute the log-probabilities of the counted tokens of trajectories, all of one case.

    Equal trajectories are forwarded once.

    Args:
        model: with TRL's fused output layer; in a block of `prefix_sharing` the prefix of all
            trajectories goes through it once.
        tokens: the trajectories.
        max_tokens: of a forward pass, which only a single longer trajectory exceeds.

    Returns:
        In double precision, (counted tokens,) by key.
    """
    import torch

    from agentsafe.training.prefix_sharing import (
        counted_tokens_only,
        log_probs_of_group,
        log_probs_of_rows,
        shares_prefixes,
    )

    found: dict[int, np.ndarray] = {}
    if not tokens:
        return found
    same: dict[tuple, list[int]] = {}
    for key, each in tokens.items():
        same.setdefault((each.starts, *each.ids, *each.mask), []).append(key)
    distinct = {keys[0]: tokens[keys[0]] for keys in same.values()}
    half = loading.half_precision()
    cast = torch.autocast(model.device.type, torch.bfloat16, enabled=half)
    with torch.no_grad(), counted_tokens_only(), cast:
        together = [[*distinct]] if shares_prefixes(model) else _by_length(distinct, max_tokens)
        for keys in together:
            rows = [tokens[key] for key in keys]
            per_token = (
                log_probs_of_group(model, rows, max_tokens)
                if shares_prefixes(model)
                else log_probs_of_rows(model, rows)
            )
            for key, each, values in zip(keys, rows, per_token.double().cpu().numpy(), strict=True):
                mask = np.array(each.mask[1:], dtype=bool)
                found[key] = values[: len(mask)][mask]
    return {key: found[keys[0]] for keys in same.values() for key in keys}


def _by_length(tokens: Mapping[int, Trajectory], max_tokens: int) -> Iterator[list[int]]:
    """Batch trajectories of similar length, as many as `max_tokens` with padding allows."""
    keys: list[int] = []
    for key in sorted(tokens, key=lambda key: len(tokens[key].ids)):
        if keys and (len(keys) + 1) * len(tokens[key].ids) > max_tokens:
            yield keys
            keys = []
        keys.append(key)
    yield keys


@contextmanager
def scoring(
    folder: str | Path,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    threads: int | None = None,
) -> Iterator[Any]:
    """Load a checkpoint for `logps` in a block; it shares prefixes if it can.

    Args:
        folder: of the checkpoint.
        dtype: as for `loading.load_model`.
        quantization: likewise.
        threads: of torch on the CPU; by default those of the process.
    """
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from agentsafe.training.prefix_sharing import CannotShare, prefix_sharing, several_sequences

    if threads:
        torch.set_num_threads(threads)
    model: Any = loading.load_model(folder, dtype=dtype, quantization=quantization)
    if torch.cuda.is_available() and quantization == "none":
        model = model.to("cuda")
    add_fused_lm_head(model)
    with ExitStack() as stack:
        try:
            stack.enter_context(prefix_sharing(model))
        except CannotShare as error:
            log.info("%s: each rollout is forwarded on its own: %s", folder, error)
            stack.enter_context(several_sequences(model))
        yield model
