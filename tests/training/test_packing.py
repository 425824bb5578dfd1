"""Packed batches: every trajectory token by token, and no batch over the limit."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.training.packing import IGNORED, pack, pack_rows
from agentsafe.training.tokenize import Trajectory

TOKENS = st.lists(st.integers(0, 3), max_size=6)  # few values, so that many begin alike


@st.composite
def batches(draw):
    """Trajectories, groups that each of them is in once, rows that name them, and a limit."""
    ids = draw(st.lists(TOKENS.map(lambda rest: [7, *rest, 8]), min_size=1, max_size=6))
    rows = []
    for tokens in ids:
        mask = draw(st.lists(st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)))
        rows.append(Trajectory(tokens, mask))
    # Sequences that begin as the ones before, as those of a rollout do; what they repeat of a turn
    # does not count again.
    for n, each in enumerate(rows):
        further = draw(st.integers(0, 2))
        tokens, mask, starts = list(each.ids), list(each.mask), [0]
        for _ in range(further):
            last = tokens[starts[-1] :]
            kept = draw(st.integers(0, len(last)))
            new = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
            starts.append(len(tokens))
            tokens += last[:kept] + new
            mask += [0] * kept + [int(kept > 0)] * len(new)
        rows[n] = Trajectory(tokens, mask, starts=tuple(starts))
    of = draw(st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids)))
    groups = [[n for n, each in enumerate(of) if each == group] for group in sorted({*of})]
    asked = draw(st.none() | st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=8))
    return rows, groups, asked, draw(st.none() | st.integers(1, 30))


def seen(made) -> list[set[int]]:
    """The places in all packed batches that each place attends to, itself among them."""
    found, offset = [], 0
    for each in made.batches:
        for segment, mask in zip(each.segments, each.masks, strict=True):
            before = [n for start, length in segment.prefix for n in range(start, start + length)]
            own = [*range(segment.start, segment.start + segment.length)]
            for n in range(segment.length):
                visible = {*before, *own[: n + 1]}
                if mask is not None:
                    row = mask[0, 0, n].tolist()
                    shown = zip(before + own, row, strict=True)
                    assert {place for place, is_seen in shown if is_seen} == visible
                found.append({offset + place for place in visible})
        offset += each.tokens.numel()
    return found


@settings(deadline=None)
@given(batches())
def test_every_trajectory_is_there_and_sees_itself_alone(batch):
    rows, groups, asked, max_tokens = batch
    made = pack(rows, groups, asked, max_tokens)
    tokens, positions, labels = (
        torch.cat([getattr(each, name)[0] for each in made.batches])
        for name in ("tokens", "positions", "labels")
    )
    sights = seen(made)
    assert len(sights) == len(tokens) == made.tokens
    chosen = range(len(rows)) if asked is None else asked
    assert made.gather_index.shape == made.counted.shape
    assert len(made.gather_index) == len(chosen)
    for number, row in enumerate(chosen):
        length = len(rows[row].ids) - 1
        at = made.gather_index[number, :length]
        assert tokens[at].tolist() == rows[row].ids[:-1]
        parts = [range(part.start, min(part.stop, length)) for part in rows[row].sequences]
        assert positions[at].tolist() == [n - part.start for part in parts for n in part]
        counts = made.counted[number, :length]
        assert counts.tolist() == [bool(counted) for counted in rows[row].mask[1:]]
        assert not made.counted[number, length:].any()
        pairs = zip(rows[row].ids[1:], rows[row].mask[1:], strict=True)
        assert labels[at[counts]].tolist() == [token for token, counted in pairs if counted]
        for part in parts:
            for n in part:
                assert sights[at[n]] == {*at[part.start : n + 1].tolist()}


@settings(deadline=None)
@given(batches())
def test_a_packed_batch_keeps_to_the_limit_and_only_counted_tokens_have_labels(batch):
    rows, groups, _, max_tokens = batch
    made = pack(rows, groups, max_tokens=max_tokens)
    longest = max(len(row.ids) for row in rows)
    if max_tokens is None:
        assert len(made.batches) == 1
    else:
        assert all(each.tokens.numel() <= max(max_tokens, longest) for each in made.batches)
    counted = {
        at
        for row, counted in zip(made.gather_index, made.counted, strict=True)
        for at in row[counted].tolist()
    }
    labels = torch.cat([each.labels[0] for each in made.batches])
    assert {*(labels != IGNORED).nonzero().flatten().tolist()} == counted


@settings(deadline=None)
@given(batches())
def test_padded_sequences_have_the_same_places(batch):
    rows, *_ = batch
    made, packed = pack_rows(rows), pack(rows, [[n] for n in range(len(rows))])
    assert torch.equal(made.counted, packed.counted)
    (padded,) = made.batches
    assert len(padded.tokens) == sum(len(row.starts) for row in rows)
    flat, labels = padded.tokens.flatten(), padded.labels.flatten()
    for row, at, counts in zip(rows, made.gather_index, made.counted, strict=True):
        assert flat[at[: len(row.ids) - 1]].tolist() == row.ids[:-1]
        following = torch.tensor(row.ids[1:])[counts[: len(row.ids) - 1]]
        assert torch.equal(labels[at[counts]], following)
    assert (labels != IGNORED).sum() == made.counted.sum()


def test_a_sequence_adds_only_what_the_one_before_has_not():
    """A turn that is rendered otherwise once another follows: 3 4 becomes 5."""
    row = Trajectory([1, 2, 3, 4, 1, 2, 5, 6, 7], [0, 0, 1, 1, 0, 0, 0, 1, 1], starts=(0, 4))
    assert pack([row], [[0]]).tokens == (2 - 1) + (4 - 1) + (5 - 1)
    assert pack([row, row], [[0, 1]]).tokens == 1 + 2 * 7


def test_what_a_group_begins_with_is_there_once():
    rows = [
        Trajectory([1, 2, 3, 4, *rest], [1] * (4 + len(rest))) for rest in ([5, 6], [7], [8, 9])
    ]
    assert pack(rows, [[0], [1], [2]]).tokens == 6 + 5 + 6
    assert pack(rows, [[0, 1, 2]]).tokens == 3 + (1 + 2) + (1 + 1) + (1 + 2)
    assert pack([rows[0], rows[0]], [[0], [1]]).tokens == 12
    assert pack([rows[0]], [[0]], [0, 0, 0]).tokens == 6
