"""Generate the next turn of many conversations at once with a transformers model.

Differences from transformers' `generate`:

- each row has its own random stream, one uniform number per token, so its text does not depend on
  the other rows of the batch;
- a finished row leaves the batch immediately;
- keys and values are updated in place, without a copy per token;
- keys and values of a conversation's earlier turns are reused, so a turn costs its own tokens
  only; rows with the same prompt are prefilled once.

Not covered: models with layers other than attention, whose state cannot be cut to a prefix.
"""

from collections.abc import Callable, Sequence
from inspect import signature

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from agentsafe.inference.kv_cache import Prefix
from agentsafe.inference.sampling import Row, restrict_to_choices, sample, uniforms

#: Prompt tokens per forward pass; more are no faster and take more memory.
_PREFILL = 4096


class _Layer(DynamicLayer):
    """One layer's keys and values of all rows, updated in place.

    Only the rows of `live` are active. Their columns before `first` are all padding.
    """

    def __init__(self, rows: int, room: int):
        super().__init__()
        self.shape = rows, room
        self.live = slice(0, rows)
        self.first = self.used = 0
        self.all: list[torch.Tensor] = []  # keys and values, once allocated

    def allocate(self, like: Sequence[torch.Tensor]) -> None:
        """Allocate space for keys and values of these shapes and types, whatever their batch."""
        if not self.all:
            rows, room = self.shape
            self.all = [each.new_zeros(rows, each.shape[-3], room, each.shape[-1]) for each in like]
            self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Append new keys and values; return those of the active rows and columns."""
        self.allocate((key_states, value_states))
        start, self.used = self.used, self.used + key_states.shape[-2]
        for kept, new in zip(self.all, (key_states, value_states), strict=True):
            kept[self.live, :, start : self.used] = new
        columns = slice(self.first, self.used)
        self.keys, self.values = (kept[self.live, :, columns] for kept in self.all)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Count the columns that the active rows attend to."""
        return self.used - self.first


def is_supported(config: PreTrainedConfig) -> bool:
    """Tell whether all layers of a model are attention, which `generate` needs."""
    return all(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=config).layers)


@torch.inference_mode()
def generate(model: PreTrainedModel, rows: list[Row], stops: Callable[[Row], bool]) -> None:
    """Fill in every row's `tokens`, `stop_reason` and `prefix`.

    Args:
        model: a decoder of attention layers.
        rows: at least one.
        stops: returns whether a row's newest token ends its text.

    Raises:
        UserError: a logit is NaN: the weights are broken.
    """
    device = model.device
    rows, copies = _duplicates_last(rows)
    longest = max(len(row.prompt) for row in rows)
    room = longest + max(row.room for row in rows)
    starts = torch.tensor([longest - len(row.prompt) for row in rows])
    mask = (torch.arange(room) >= starts[:, None]).long().to(device)
    position = (longest - starts).to(device)[:, None]
    temperature = torch.tensor([row.temperature for row in rows], device=device)
    numbers = torch.from_numpy(uniforms(rows)).to(device)
    count = len(DynamicCache(config=model.config).layers)
    layers = [_Layer(len(rows), room) for _ in range(count)]
    logits = _prefill(model, layers, rows, mask, longest, copies)
    for step in range(room - longest):
        restrict_to_choices(logits, rows)
        chosen = sample(logits, temperature, numbers[:, step])
        on: list[int] = []
        off: list[int] = []
        for index, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            row.tokens.append(token)
            if stops(row):
                row.stop_reason = "stop"
            elif len(row.tokens) == row.room:
                row.stop_reason = "length"
            (off if row.stop_reason else on).append(index)
        for index in off:
            rows[index].prefix = _prefix(layers, rows[index], index, longest)
        if not on:
            return
        if off:
            per_row = chosen, position, mask, temperature, numbers
            rows, (chosen, position, mask, temperature, numbers) = _leave(
                layers, rows, per_row, on, off
            )
        seen = longest + step + 1
        first = seen - max(len(row.prompt) + len(row.tokens) for row in rows)
        for layer in layers:
            layer.first = first
        logits = _forward(model, layers, chosen[:, None], mask[:, first:seen], position)
        position = position + 1


def _leave(
    layers: list[_Layer],
    rows: list[Row],
    per_row: Sequence[torch.Tensor],
    on: list[int],
    off: list[int],
) -> tuple[list[Row], list[torch.Tensor]]:
    """Remove the rows at indices `off`: the last rows at indices `on` move into their places."""
    holes = [index for index in off if index < len(on)]
    movers = [index for index in on if index >= len(on)]
    kept = list(rows)
    for hole, mover in zip(holes, movers, strict=True):
        kept[hole] = rows[mover]
    for each in (*per_row, *(each for layer in layers for each in layer.all)):
        each[holes] = each[movers]
    for layer in layers:
        layer.live = slice(0, len(on))
    return kept[: len(on)], [each[: len(on)] for each in per_row]


def _duplicates_last(rows: list[Row]) -> tuple[list[Row], dict[int, int]]:
    """Sort rows by their number of new prompt tokens; rows with a repeated prompt come last.

    Returns:
        The rows, and for each repeated prompt its row's index and the index of its first row.
    """
    first: dict[tuple[int, ...], Row] = {}
    repeated = []
    for row in rows:
        prompt = tuple(row.prompt)
        if prompt in first:
            repeated.append((row, first[prompt]))
        else:
            first[prompt] = row
    unique = sorted(first.values(), key=lambda row: len(row.prompt) - row.cached)
    index_of = {id(row): index for index, row in enumerate(unique)}
    copies = {len(unique) + index: index_of[id(of)] for index, (_, of) in enumerate(repeated)}
    return unique + [row for row, _ in repeated], copies


def _prefill(
    model: PreTrainedModel,
    layers: list[_Layer],
    rows: list[Row],
    mask: torch.Tensor,
    longest: int,
    copies: dict[int, int],
) -> torch.Tensor:
    """Run all prompts into the cache, right-aligned; return the logits after each."""
    unique = len(rows) - len(copies)
    found = []
    start = 0
    while start < unique:
        new, end = 0, start
        while end < unique:  # as many rows as fit, all as wide as the widest
            wider = max(new, len(rows[end].prompt) - rows[end].cached)
            if end > start and wider * (end + 1 - start) > _PREFILL:
                break
            new, end = wider, end + 1
        live = slice(start, end)
        first = longest - max(len(row.prompt) for row in rows[live])
        for layer in layers:
            layer.live, layer.first, layer.used = live, first, longest - new
        for index in range(start, end):
            _restore(layers, rows[index], index, longest - len(rows[index].prompt), longest - new)
        ids = [([0] * new + row.prompt)[-new:] for row in rows[live]]
        tokens = torch.tensor(ids, device=mask.device)
        seen = mask[live, first:longest]
        position = (seen.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        found.append(_forward(model, layers, tokens, seen, position))
        start = end
    logits = torch.cat([*found, found[0].new_empty(len(copies), found[0].shape[1])])
    to, of = list(copies), list(copies.values())
    logits[to] = logits[of]
    for layer in layers:
        layer.live, layer.used = slice(0, len(rows)), longest
        for each in layer.all:
            each[to] = each[of]
    return logits


def _restore(layers: list[_Layer], row: Row, index: int, start: int, end: int) -> None:
    """Copy a row's prefix of an earlier turn into the columns from `start` to `end`."""
    if row.prefix is None or end <= start:
        return
    for layer, both in zip(layers, row.prefix.layers, strict=True):
        layer.allocate(both)
        for kept, earlier in zip(layer.all, both, strict=True):
            kept[index, :, start:end] = earlier[:, : end - start]


def _prefix(layers: list[_Layer], row: Row, index: int, longest: int) -> Prefix:
    start, end = longest - len(row.prompt), longest + len(row.tokens) - 1
    kept = [[each[index, :, start:end].clone() for each in layer.all] for layer in layers]
    return Prefix(row.prompt + row.tokens[:-1], kept)


def _forward(
    model: PreTrainedModel,
    layers: list[_Layer],
    tokens: torch.Tensor,
    mask: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    found = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=position,
        past_key_values=Cache(layers=list(layers)),
        use_cache=True,
        **last,
    )
    return found.logits[:, -1]
