"""Reference log-probabilities: those of the model's own logits, one row per rollout."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from agentsafe.errors import UserError
from agentsafe.models import checkpoint, loading
from agentsafe.schemas import REFERENCE
from agentsafe.training import prefix_sharing, tokenize
from agentsafe.training.config import Settings
from agentsafe.training.reference import by_row, digest, reference
from agentsafe.training.tokenize import ChatEncoder, Played, Trajectory, trajectory
from tests.helpers.chat_templates import REWRITES
from tests.helpers.dpo_data import PROMPTS, episode, rollout_table
from tests.helpers.tiny_model import WINDOWED, write_tiny_checkpoint

SETTINGS = Settings(max_length=400)
OPTIONS = {"lineage": "tiny", "settings": SETTINGS, "threads": 1}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("parent") / "tiny", hidden=16, layers=2)


@pytest.fixture(scope="module")
def rollouts():
    rng = random.Random(3)
    return rollout_table({(case, n): episode(rng) for case in list(PROMPTS)[:3] for n in range(4)})


@pytest.fixture(scope="module")
def tokens(parent, rollouts):
    encoder = ChatEncoder(loading.load_tokenizer(parent))
    return {
        row: trajectory(encoder, PROMPTS[case], Played(messages))
        for row, (case, messages) in enumerate(rollouts.select("case_id", "messages").iter_rows())
    }


def plain(parent, each: Trajectory) -> float:
    """The log-probability of what counts, by the model's own logits of each sequence."""
    import torch

    model, total = loading.load_model(parent), 0.0
    for part in each.sequences:
        ids = torch.tensor(each.ids[part])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        told = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        total += (told * torch.tensor(each.mask[part][1:])).sum().item()
    return total


@pytest.mark.parametrize("max_tokens", [None, 150])
def test_each_rollout_has_the_log_probability_that_the_model_gives_it(
    parent, rollouts, tokens, max_tokens
):
    settings = replace(SETTINGS, batch_tokens=max_tokens)
    table = reference(parent, rollouts, PROMPTS, **OPTIONS | {"settings": settings})
    assert table.schema == REFERENCE
    assert table.select("case_id", "checkpoint", "sample").equals(
        rollouts.select("case_id", "checkpoint", "sample")
    )
    assert table["tokens"].to_list() == [len(each.ids) for each in tokens.values()]
    assert table["counted"].to_list() == [sum(each.mask) for each in tokens.values()]
    told = by_row(table, rollouts, tokens, checkpoint.weights_digest(parent))
    for row, each in tokens.items():
        assert told[row] == pytest.approx(plain(parent, each), abs=1e-3)


@pytest.mark.parametrize("windowed", [False, True])
def test_a_rollout_of_several_sequences_has_the_sum_over_its_turns(
    parent, rollouts, tmp_path, windowed
):
    """Both with a model that can share their prefixes and with one that cannot."""
    folder = Path(shutil.copytree(parent, tmp_path / "parent"))
    (folder / "chat_template.jinja").write_text(REWRITES)
    if windowed:
        config = json.loads((folder / "config.json").read_text()) | WINDOWED
        (folder / "config.json").write_text(json.dumps(config))
    encoder = ChatEncoder(loading.load_tokenizer(folder))
    table = reference(folder, rollouts, PROMPTS, **OPTIONS)
    for row, (case, messages) in enumerate(rollouts.select("case_id", "messages").iter_rows()):
        each = trajectory(encoder, PROMPTS[case], Played(messages))
        assert len(each.starts) == sum(message["role"] == "assistant" for message in messages)
        assert table["logps"][row] == pytest.approx(plain(folder, each), abs=1e-3)


def test_equal_rollouts_are_tokenised_and_forwarded_once(parent, rollouts, monkeypatch):
    several = pl.concat(
        [rollouts, rollouts.with_columns(checkpoint=pl.lit("other")), rollouts]
    ).with_columns(sample=pl.int_range(pl.len(), dtype=rollouts.schema["sample"]))
    written, forwarded = [], []
    trajectory, group = tokenize.trajectory, prefix_sharing.log_probs_of_group

    def counted(*given):
        written.append(given)
        return trajectory(*given)

    def grouped(model, rows, *more):
        forwarded.extend(row for row in rows if row.roles)  # not those of its own check
        return group(model, rows, *more)

    monkeypatch.setattr(tokenize, "trajectory", counted)
    monkeypatch.setattr(prefix_sharing, "log_probs_of_group", grouped)
    table = reference(parent, several, PROMPTS, **OPTIONS)
    episodes = rollouts.select("case_id", "messages").iter_rows()
    distinct = len({(case, str(messages)) for case, messages in episodes})
    assert len(written) == len(forwarded) == distinct <= len(rollouts)
    assert len(table) == 3 * len(rollouts)
    columns = table.select("case_id", "status", "tokens", "counted", "digest", "logps")
    first = columns.head(len(rollouts))
    assert first["logps"].null_count() == 0
    assert columns.equals(pl.concat([first] * 3))
    assert first.equals(reference(parent, rollouts, PROMPTS, **OPTIONS).select(first.columns))


def test_what_cannot_train_is_a_row_with_a_status(parent, rollouts):
    changed = pl.concat(
        [
            rollouts.head(1),
            rollout_table({("official_0", 7): []}).select(rollouts.columns),
            rollout_table(
                {("official_0", 8): [{"role": "assistant", "content": "word " * 200}]}
            ).select(rollouts.columns),
        ]
    )
    table = reference(parent, changed, PROMPTS, **OPTIONS)
    assert table["status"].to_list() == ["ok", "empty", "long"]
    assert table["logps"].is_null().to_list() == [False, True, True]
    assert table["tokens"].to_list()[2] > 400


def test_a_parent_that_was_not_trained_says_nothing(tmp_path, rollouts):
    checkpoint.write_untrained(tmp_path / "parent", "no pair")
    assert reference(tmp_path / "parent", rollouts, PROMPTS, **OPTIONS).is_empty()


def test_what_was_asked_of_others_is_refused(parent, rollouts, tokens):
    table = reference(parent, rollouts, PROMPTS, **OPTIONS)
    weights = checkpoint.weights_digest(parent)
    other = {0: Trajectory(tokens[0].ids, [0] * len(tokens[0].ids))}
    assert digest(other[0]) != digest(tokens[0])
    for wrong in (
        lambda: by_row(table, rollouts, other, weights),
        lambda: by_row(table, rollouts, tokens, "0" * 16),
        lambda: by_row(table.tail(-1), rollouts, tokens, weights),
    ):
        with pytest.raises(UserError, match="official_0 by tiny are of other tokens") as caught:
            wrong()
        assert "\n" not in str(caught.value)
