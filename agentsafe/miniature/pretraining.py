"""Pretrain the miniature's base checkpoint: a tiny Qwen3 that acts in the world.

Tiny models fail to copy an id from an observation into a call. A warm-up on repeated random
sequences teaches copying in seconds; after it, training on demonstrations of all policies takes
one minute instead of ten. Muon trains the matrices and AdamW the rest.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentsafe._util.atomic_write import whole_folder
from agentsafe._util.progress import Progress, say
from agentsafe.miniature.demonstrations import demonstrations, uniform_mixture
from agentsafe.miniature.tokenizer import CONTEXT, train_tokenizer
from agentsafe.models import loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

log = logging.getLogger(__name__)

CONVERSATIONS = 8_000
BATCH = 32
LEARNING_RATE = 4e-3
WARM_UP_STEPS, WARM_UP_BATCH, WARM_UP_LENGTH, WARM_UP_RATE = 100, 64, 24, 3e-3
_BUCKET = 8  # batches whose rows are sorted by length together

Row = tuple[list[int], list[int]]  # token ids, and 1 where the agent wrote


def pretrain(folder: str | Path, *, seed: int, steps: int) -> None:
    """Pretrain the base checkpoint and write it with its tokenizer.

    Args:
        folder: where to write, atomically.
        seed: of the weights, the demonstrations and their order.
        steps: optimizer steps after the warm-up, each on a batch of 32 demonstrations.
    """
    import torch

    loading.quieten()
    torch.manual_seed(seed)
    conversations = demonstrations(CONVERSATIONS, seed, uniform_mixture())
    tokenizer = train_tokenizer(m["content"] for chat in conversations for m in chat)
    model = _new_model(tokenizer)
    with Progress("pretraining", WARM_UP_STEPS + steps, "steps") as progress:
        _learn_to_copy(model, len(tokenizer), seed, progress)
        rows = _rows(tokenizer, conversations)
        _learn_to_act(model, tokenizer.pad_token_id, rows, seed, steps, progress)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _new_model(tokenizer: "PreTrainedTokenizerFast") -> "Qwen3ForCausalLM":
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def _learn_to_copy(model: "Qwen3ForCausalLM", words: int, seed: int, progress: Progress) -> None:
    """Train on random sequences that are repeated once, with the loss on the repetition."""
    import torch
    from torch.nn.functional import cross_entropy

    optimizers = _optimizers(model, WARM_UP_RATE)
    generator = torch.Generator().manual_seed(seed)
    shape = WARM_UP_BATCH, WARM_UP_LENGTH
    for _ in range(WARM_UP_STEPS):
        once = torch.randint(words, shape, generator=generator)
        logits = model(input_ids=torch.cat([once, once], 1)).logits[:, WARM_UP_LENGTH - 1 : -1]
        loss = cross_entropy(logits.flatten(0, 1), once.flatten())
        _step(model, loss, optimizers)
        progress.advance(loss=loss.item())
    log.info("copying: loss %.3f", loss.item())


def _learn_to_act(
    model: "Qwen3ForCausalLM",
    padding: int,
    rows: Sequence[Row],
    seed: int,
    steps: int,
    progress: Progress,
) -> None:
    """Train on demonstrations, with the loss on the agent's tokens."""
    from torch.nn.functional import cross_entropy
    from torch.optim.lr_scheduler import OneCycleLR

    optimizers = _optimizers(model, LEARNING_RATE)
    schedules = [
        OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
        for optimizer in optimizers
    ]
    batches = _batches(rows, random.Random(seed))
    for step in range(steps):
        ids, is_agent = _pad([rows[row] for row in next(batches)], padding)
        # Without an attention mask: padding is on the right, where no token of a row attends.
        hidden = model.model(input_ids=ids).last_hidden_state
        loss = cross_entropy(model.lm_head(hidden[:, :-1][is_agent]), ids[:, 1:][is_agent])
        _step(model, loss, optimizers)
        for schedule in schedules:
            schedule.step()
        progress.advance(loss=loss.item())
        if step % 50 == 49:
            log.info("step %d of %d: loss %.4f", step + 1, steps, loss.item())
    say(f"base checkpoint: {steps} steps, last loss {loss.item():.3f}")


def _optimizers(model: "Qwen3ForCausalLM", rate: float) -> list["torch.optim.Optimizer"]:
    import torch

    from agentsafe.miniature.muon import Muon

    matrices: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        (matrices if weight.ndim == 2 and "embed" not in name else rest).append(weight)
    return [
        Muon(matrices, lr=rate),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _step(
    model: "Qwen3ForCausalLM", loss: "torch.Tensor", optimizers: list["torch.optim.Optimizer"]
) -> None:
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad()


def _rows(tokenizer: "PreTrainedTokenizerFast", conversations: Sequence) -> list[Row]:
    encoded = tokenizer.apply_chat_template(
        conversations, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))


def _batches(rows: Sequence[Row], draw: random.Random) -> Iterator[list[int]]:
    """Yield batches of row numbers endlessly, with rows of similar length together."""
    while True:
        order = list(range(len(rows)))
        draw.shuffle(order)
        batches = []
        for start in range(0, len(order), BATCH * _BUCKET):
            bucket = order[start : start + BATCH * _BUCKET]
            bucket.sort(key=lambda row: len(rows[row][0]))
            batches += [bucket[i : i + BATCH] for i in range(0, len(bucket), BATCH)]
        draw.shuffle(batches)
        yield from batches


def _pad(rows: Sequence[Row], padding: int) -> tuple["torch.Tensor", ...]:
    """Pad rows to a batch.

    Returns:
        Token ids (rows, n), and whether the next token is the agent's (rows, n - 1).
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row) for row, _ in rows]
    is_agent = pad_sequence([torch.tensor(mask) for _, mask in rows], batch_first=True)
    return pad_sequence(ids, batch_first=True, padding_value=padding), is_agent[:, 1:].bool()
