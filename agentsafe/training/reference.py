"""Log-probabilities that a checkpoint gives to rollouts: DPO's reference, worked out once.

A rollout stands in several pairs, a pair in several runs: of other βs, seeds and objectives. What
the parent of those runs says of it is the same in all of them, so that it is a table of its own,
one row per rollout, which runs read (Rafailov et al., arXiv 2305.18290, eq. 7, has the ratio).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from agentsafe._util.progress import Progress, say
from agentsafe.errors import UserError
from agentsafe.inference.chat_template import thinking_options
from agentsafe.models import checkpoint as checkpoints
from agentsafe.models import loading
from agentsafe.preferences.dataset import check_prompts
from agentsafe.schemas import REFERENCE
from agentsafe.training.tokenize import Trajectory, special_ids, trajectory

_ROLLOUT = ["checkpoint", "case_id", "sample"]


def reference(
    parent_folder: str | Path,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Sequence[Mapping[str, str]]],
    *,
    lineage: str,
    assistant_only_loss: bool,
    max_length: int,
    batch_tokens: int | None = None,
    quantization: str = "none",
    thinking: bool | None = None,
    threads: int | None = None,
) -> pl.DataFrame:
    """What a parent gives to each rollout.

    Args:
        parent_folder: its checkpoint.
        rollouts: rows of `schemas.ROLLOUTS`.
        prompts: what the agent was told before its first turn, by case id.
        lineage: the parent's.
        assistant_only_loss: which tokens count (`trajectories.trajectory`).
        max_length: tokens above which no pair with the rollout is trained.
        batch_tokens: tokens of a forward pass at most; twice `max_length` without it.
        quantization: of the weights, as they are trained.
        thinking: `enable_thinking` of the chat template, as the checkpoint is served.
        threads: of the CPU, for torch; as the process has them by default.

    Returns:
        Rows of `REFERENCE` in the order of `rollouts`; none where the parent was not trained.

    Raises:
        UserError: the parent cannot be loaded, a case has no prompt, or as
            `trajectories.trajectory`.
    """
    if checkpoints.untrained(parent_folder):
        return pl.DataFrame(schema=REFERENCE)
    check_prompts(rollouts["case_id"], prompts)
    tokenizer = loading.load_tokenizer(parent_folder)
    special = special_ids(tokenizer)
    options = thinking_options(thinking)
    model = _model(parent_folder, quantization, threads)
    weights = weights_digest(parent_folder)
    rows: dict[int, dict[str, Any]] = {}
    table = rollouts.select(*_ROLLOUT, "messages").with_row_index("row")
    with Progress(f"reference log-probabilities of {lineage}", len(table)) as progress:
        # Case by case: neither all tokens nor all sums are held at once.
        for _, of_case in table.group_by("case_id", maintain_order=True):
            tokens = {}
            for row, checkpoint, case, sample, messages in of_case.iter_rows():
                made = trajectory(
                    tokenizer,
                    prompts[case],
                    messages,
                    special,
                    assistant_only_loss=assistant_only_loss,
                    options=options,
                )
                status = "ok" if any(made.mask[1:]) else "empty"
                if len(made.ids) > max_length:
                    status = "long"
                if status == "ok":
                    tokens[row] = made
                rows[row] = {
                    "lineage": lineage,
                    "weights": weights,
                    "case_id": case,
                    "checkpoint": checkpoint,
                    "sample": sample,
                    "status": status,
                    "tokens": len(made.ids),
                    "counted": sum(made.mask[1:]),
                    "digest": digest(made),
                }
            for row, value in logps(model, tokens, batch_tokens or 2 * max_length).items():
                rows[row]["logps"] = value
            progress.advance(len(of_case))
    made = pl.DataFrame([rows[row] for row in sorted(rows)], schema=REFERENCE)
    counts = dict(made["status"].value_counts().iter_rows())
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    say(f"reference log-probabilities of {lineage}: {told}")
    return made


def by_row(
    table: pl.DataFrame, rollouts: pl.DataFrame, tokens: Mapping[int, Trajectory], weights: str
) -> dict[int, float]:
    """The log-probability of each trajectory out of a table of them.

    Args:
        table: rows of `REFERENCE`.
        rollouts: the table whose rows `tokens` are of.
        tokens: the trajectories, by their rollout's row.
        weights: `weights_digest` of the parent.

    Raises:
        UserError: a rollout is not in the table, or was other tokens when it was made, or the
            parent was another one.
    """
    places = rollouts.select(_ROLLOUT).with_row_index("row")
    found = {
        row: (*told,)
        for row, *told in places.join(table, on=_ROLLOUT, how="inner")
        .select("row", "logps", "digest", "weights")
        .iter_rows()
    }
    for row, each in tokens.items():
        logp, made_of, made_by = found.get(row, (None, None, None))
        if logp is None or made_of != digest(each) or made_by != weights:
            case, checkpoint = rollouts["case_id"][row], rollouts["checkpoint"][row]
            raise UserError(
                f"reference log-probabilities: those of {case} by {checkpoint} are of other tokens "
                "or another parent; remove the parent's file below reference/ and run again"
            )
    return {row: found[row][0] for row in tokens}


def digest(each: Trajectory) -> str:
    """Tells whether two trajectories are the same tokens, of which the same ones count."""
    return hashlib.sha256(np.array([each.ids, each.mask], dtype=np.int32).tobytes()).hexdigest()[
        :16
    ]


def weights_digest(folder: str | Path) -> str:
    """Tells whether two checkpoints have the same weights."""
    digests = sorted(checkpoints.digests(folder).items())
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:16]


def logps(model: Any, tokens: Mapping[int, Trajectory], budget: int) -> dict[int, float]:
    """The sum of log-probabilities of what counts of each trajectory, all of one case.

    Args:
        model: has TRL's fused output layer; what they begin with goes through it once where it was
            taught to share (`sharing.share`).
        tokens: the trajectories.
        budget: tokens of a forward pass at most, but for one that is longer by itself.
    """
    import torch

    from agentsafe.training.prefix_sharing import counted_tokens_only, in_rows, in_trees, shares

    found: dict[int, float] = {}
    if not tokens:
        return found
    half = loading.half_precision()
    cast = torch.autocast(model.device.type, torch.bfloat16, enabled=half)
    with torch.no_grad(), counted_tokens_only(), cast:
        if shares(model):
            per_token = in_trees(model, list(tokens.values()), budget)
            return dict(zip(tokens, per_token.double().sum(dim=1).tolist(), strict=True))
        for keys in _alike(tokens, budget):
            per_token = in_rows(model, [tokens[key] for key in keys])
            found |= dict(zip(keys, per_token.double().sum(dim=1).tolist(), strict=True))
    return found


def _alike(tokens: Mapping[int, Trajectory], budget: int) -> Iterator[list[int]]:
    """Trajectories of about one length together, as many as the budget has room for."""
    keys: list[int] = []
    for key in sorted(tokens, key=lambda key: len(tokens[key].ids)):
        if keys and (len(keys) + 1) * len(tokens[key].ids) > budget:
            yield keys
            keys = []
        keys.append(key)
    yield keys


def _model(folder: str | Path, quantization: str, threads: int | None) -> Any:
    """The parent, ready to be asked; taught to share where it can be."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from agentsafe.training.prefix_sharing import share

    if threads:
        torch.set_num_threads(threads)
    model = loading.load_model(folder, quantization=quantization)
    if torch.cuda.is_available() and quantization == "none":
        model = model.to("cuda")
    add_fused_lm_head(model)
    try:
        share(model)
    except UserError as error:
        say(f"{folder}: each rollout goes through on its own: {error}")
    return model
