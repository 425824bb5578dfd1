"""Test the reader of objects: JSON, Python's notation, and text that is neither."""

import ast
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentsafe._util.text import storable
from agentsafe.rollouts.json_arguments import read_object

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)

#: Parts of objects in both notations, joined in any order.
GLUED = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", "(", ")", ":", ",", " ", "\n", "'", '"', "\\", "'a'", '"b"', "'a': ",
         '"b": ', "{'a': ", "1", "-2", ".5", "1e400", "9" * 30, "true", "True", "null", "None",
         "NaN", "inf", "x", "b'", "f'", "\\'", '\\"', "\\x41", "\\n", "\\U0001F600", "\\d", "#",
         "1_0", "1j", "é", "\ud800", "\x00"]
    ),
    max_size=16,
).map("".join)  # fmt: skip


def as_lists(value):
    """Convert a value's tuples to lists, as JSON does."""
    return json.loads(json.dumps(value))


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@given(OBJECTS, st.text(), st.text())
def test_json_is_read_as_it_is_and_to_its_end(made, before, after):
    written = json.dumps(made)
    read = read_object(before + written + after, len(before))
    assert read == (as_lists(made), len(before) + len(written), False)


@given(OBJECTS, st.text(), st.text())
@example({"'": 1}, "", "")
@example({}, "", "")
def test_what_python_prints_is_read_to_its_end(made, before, after):
    printed = repr(made)
    found, end, is_literal = read_object(before + printed + after, len(before))
    assert found == as_lists(made)
    assert end == len(before) + len(printed)
    assert is_literal == (not is_json(printed))  # {"'": 1} is both


@settings(deadline=None, max_examples=500)
@given(st.one_of(GLUED, GLUED.map("{{'a': {}}}".format)))
@example("{'a': (1)}")
@example("{'a': 'b' 'c'}")
@example("{,}")
def test_a_text_is_an_object_or_a_value_error(text):
    try:
        found, end, is_literal = read_object(text, 0)
    except ValueError:
        return
    encoded = json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(encoded) == found
    if is_literal:  # then Python agrees, if it can read the text
        try:
            python = ast.literal_eval(text[:end])
        except (ValueError, SyntaxError):
            return
        assert found == as_lists(python)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("{'a': True, \"b\": null, 'c': False,}", {"a": True, "b": None, "c": False}),
        ('{"a": true, "b": None}', {"a": True, "b": None}),
        ('{"a": [1, 2,], }', {"a": [1, 2]}),
        ("{'a': (1, 'x'), 'b': (), 'c': (1,)}", {"a": [1, "x"], "b": [], "c": [1]}),
        ("{'True': 'None'}", {"True": "None"}),
        (r"""{'a': 'it\'s "so"', "b": "it\'s"}""", {"a": 'it\'s "so"', "b": "it's"}),
        (r"{'a': '\x41\U0001f600\u00e9\n\\'}", {"a": "A😀é\n\\"}),
        (r"{'a': '\ud83d\ude00 \ud83d'}", {"a": "😀 \ufffd"}),
        ("{'a': 'two\nlines'}", {"a": "two\nlines"}),
        ("{'a': '} \" {'}", {"a": '} " {'}),
        ("{'a': -1, 'b': 1e-05}", {"a": -1, "b": 1e-05}),
        ("{'a': 1, 'a': 2}", {"a": 2}),
    ],
)
def test_python_literals(text, made):
    assert read_object(text + " } and 'more'", 0) == (made, len(text), True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "'a'",
        "null",
        "None",
        ")",
        "{",
        "{'a': 1",
        "{'a': 'half",
        "{'a': [1}",
        "{'a': (1]}",
        "{'a'}",
        "{'a', 'b'}",
        "{'a' 'b': 1}",
        "{'a': 'b' 'c'}",
        "{'a': (1)}",
        "{'a': ((1, 2))}",
        "{'a': (1, 2), 'b': (3)}",
        "{'a': 1,, 'b': 2}",
        "{,}",
        "{'a': (,)}",
        "{'a': 1 2}",
        "{a: 1}",
        "{1: 2}",
        "{True: 1}",
        "{None: 1}",
        "{('a',): 1}",
        "{'a': name}",
        "{'a': open('x', 'w')}",
        "{'a': [x for x in (1, 2)]}",
        "{'a': 1 + 2}",
        "{'a': 1 if True else 2}",
        "{'a': lambda: 1}",
        "{**{'a': 1}}",
        "{'a': b'x'}",
        "{'a': f'{1}'}",
        "{'a': r'x'}",
        "{'a': '''x'''}",
        "{'a': 2j}",
        "{'a': 0x1F}",
        "{'a': ...}",
        "{'a': {1, 2}}",
        "{'a': 1 # a comment\n}",
        "{'a': NaN}",
        "{'a': -Infinity}",
        "{'a': inf}",
        "{'a': 1e400}",
        "{'a': 18446744073709551616}",
        "{'a': -9223372036854775809}",
        "{'a': " + "1" * 200_000 + "}",
        "{'a': '\\U00110000'}",
        "{'a': '\\N{BULLET}'}",
        "{'a': " * 33 + "1" + "}" * 33,
        "{'a': " + "(" * 33 + ",)" * 33 + "}",
        "{'a': " * 30_000 + "1" + "}" * 30_000,
        "{" * 200_000,
        "{'" * 100_000,
        "{'a': " + "[" * 200_000,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_what_is_no_object_or_no_storable_one_is_refused(text):
    with pytest.raises(ValueError):
        read_object(text, 0)


@pytest.mark.parametrize("quote", "'\"")
def test_a_tool_takes_objects_in_objects(quote):
    key = f"{quote}a{quote}"
    found, _, is_literal = read_object(f"{{{key}: " * 32 + "1" + "}" * 32, 0)
    for _ in range(32):
        found = found["a"]
    assert (found, is_literal) == (1, quote == "'")


@given(st.text(st.characters()))
def test_storable_text_can_be_encoded_and_keeps_the_rest(text):
    kept = storable(text)
    kept.encode()
    assert len(kept) == len(text)
    assert all(new in (old, "\ufffd") for old, new in zip(text, kept, strict=True))
