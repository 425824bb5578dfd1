"""Packed batches: every trajectory token by token, and no batch over the limit."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.training.packing import IGNORED, pack
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
    of = draw(st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids)))
    groups = [[n for n, each in enumerate(of) if each == group] for group in sorted({*of})]
    asked = draw(st.none() | st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=8))
    return rows, groups, asked, draw(st.none() | st.integers(1, 30))


def seen(made) -> list[set[int]]:
    """The places in all packed batches that each place attends to, itself among them."""
    found, offset = [], 0
    for each in made.batches:
        for segment, mask in zip(each.segments, each.masks, strict=True):
            start, length = segment.prefix
            before = [*range(start, start + length)]
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
        assert positions[at].tolist() == list(range(length))
        counts = made.counted[number, :length]
        assert counts.tolist() == [bool(counted) for counted in rows[row].mask[1:]]
        assert not made.counted[number, length:].any()
        pairs = zip(rows[row].ids[1:], rows[row].mask[1:], strict=True)
        assert labels[at[counts]].tolist() == [token for token, counted in pairs if counted]
        for n, place in enumerate(at.tolist()):
            assert sights[place] == {*at[: n + 1].tolist()}


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


def test_what_a_group_begins_with_is_there_once():
    rows = [
        Trajectory([1, 2, 3, 4, *rest], [1] * (4 + len(rest))) for rest in ([5, 6], [7], [8, 9])
    ]
    assert pack(rows, [[0], [1], [2]]).tokens == 6 + 5 + 6
    assert pack(rows, [[0, 1, 2]]).tokens == 3 + (1 + 2) + (1 + 1) + (1 + 2)
    assert pack([rows[0], rows[0]], [[0], [1]]).tokens == 12
    assert pack([rows[0]], [[0]], [0, 0, 0]).tokens == 6
