"""Test the reader of objects: JSON, Python's notation, and text that is neither."""

import ast
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentsafe._util.text import storable
from agentsafe.rollouts.json_arguments import NotAnObject, read_object

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
    assert read == (as_lists(made), len(before) + len(written), ())


@given(OBJECTS, st.text(), st.text())
@example({"'": 1}, "", "")
@example({}, "", "")
def test_what_python_prints_is_read_to_its_end(made, before, after):
    printed = repr(made)
    found, end, deviations = read_object(before + printed + after, len(before))
    assert found == as_lists(made)
    assert end == len(before) + len(printed)
    assert deviations == (() if is_json(printed) else ("python_literal",))  # {"'": 1} is both


@settings(deadline=None, max_examples=500)
@given(st.one_of(GLUED, GLUED.map("{{'a': {}}}".format)))
@example("{'a': (1)}")
@example("{'a': 'b' 'c'}")
@example("{,}")
def test_a_text_is_an_object_or_a_value_error(text):
    try:
        found, end, deviations = read_object(text, 0)
    except ValueError:
        return
    encoded = json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(encoded) == found
    if deviations == ("python_literal",):  # then Python agrees, if it can read the text
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
        (r"{'a': '\d\|\/'}", {"a": r"\d\|\/"}),
        (r"{'a': 'x', 'b': " + r'"\x41"}', {"a": "x", "b": "A"}),
        (r'{"a": "\x41", "b": None}', {"a": "A", "b": None}),
    ],
)
def test_python_literals(text, made):
    assert read_object(text + " } and 'more'", 0) == (made, len(text), ("python_literal",))


#: Texts with a backslash each, and what they mean in a JSON string that has one unknown to JSON.
ESCAPES = {
    r"\|": r"\|", r"\;": r"\;", r"\$": r"\$", r"\x0D": r"\x0D", r"\d": r"\d", r"\.": r"\.",
    r"\(": r"\(", r"\s": r"\s", r"\1": r"\1", r"\0": r"\0", r"\N": r"\N", r"\a": r"\a",
    r"\u12": r"\u12", r"\U": r"\U",
    "\\\n": "\\\n", r"\\": "\\", r"\"": '"', r"\'": "'", r"\n": "\n", r"\t": "\t", r"\/": "/",
    r"\u0041": "A", r"\b": r"\b", r"\f": r"\f",
}  # fmt: skip


@pytest.mark.parametrize("written", ESCAPES)
def test_an_escape_that_json_does_not_know_is_kept(written):
    text = f'{{"a": "x{written}y\\|"}}'
    made = {"a": f"x{ESCAPES[written]}y\\|"}
    assert read_object(text + "}", 0) == (made, len(text), ("backslash",))


@given(st.lists(st.sampled_from([*ESCAPES, "w", "'", " "])).map("".join))
def test_each_escape_is_read_on_its_own(content):
    found, _, deviations = read_object(f'{{"a": "{content}\\|"}}', 0)
    expected, rest = "", content
    longest_first = sorted(ESCAPES, key=len, reverse=True)
    while rest:
        written = next((each for each in longest_first if rest.startswith(each)), rest[0])
        expected, rest = expected + ESCAPES.get(written, written), rest[len(written) :]
    assert (found, deviations) == ({"a": expected + r"\|"}, ("backslash",))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (r'{"a": "\b\t\f"}', "\b\t\f"),
        (r'{"a": "C:\\Users\\new"}', r"C:\Users\new"),
        (r'{"a": "C:\Users\new\table"}', r"C:\Users\new\table"),
        (r'{"a": "d:\x\u0041\\b"}', r"d:\x\u0041" + r"\b"),
        (r"""{"a": "it\'s"}""", "it's"),
        (r"""{"a": "\bit\'s"}""", "\bit's"),
    ],
)
def test_valid_json_is_json_and_a_path_is_a_path(text, made):
    assert read_object(text, 0)[0] == {"a": made}


@pytest.mark.parametrize(
    ("text", "made", "others"),
    [
        ('{"a": 1, // one\n "b": 2 # two\n}', {"a": 1, "b": 2}, ()),
        ('{ /* { */ "a": /**/ "http://x#y" /* " */}', {"a": "http://x#y"}, ()),
        ('{"a": "# no /* no */", // yes\n}', {"a": "# no /* no */"}, ("python_literal",)),
        ("{'a': [1, # one\n 2]}", {"a": [1, 2]}, ("python_literal",)),
        ('{\n// "a": 1,\n"b": "\\d"}', {"b": r"\d"}, ("backslash",)),
        ('{"a": 1 // it\'s {\r\n}', {"a": 1}, ()),
    ],
)  # fmt: skip
def test_comments_are_dropped(text, made, others):
    found, end, deviations = read_object(text + " // more", 0)
    assert (found, end) == (made, len(text))
    assert set(deviations) == {"comments", *others}


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ("None\nmore", "it begins with 'None'", 0),
        (" ", "it is empty", 0),
        ('{"a": "half', "a string has no end", 6),
        ('{"a": 1', "the object has no end", 7),
        ('{"a": 1,\nb: 2}', "Expecting property name enclosed in double quotes", 9),
        ('{"a": 1e999}', "not a finite number", 12),
    ],
)
def test_the_error_says_what_is_wrong_and_where(text, reason, position):
    with pytest.raises(NotAnObject, match=reason) as raised:
        read_object(text, 0)
    assert raised.value.position == position


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
        "{'a': 1 # a comment without an end}",
        "{'a': 1 /* a comment without an end }",
        "{'a': #fff}",
        "{'a': 1 / 2}",
        "{'a': '\\1'}",
        "{'a': '\\x4'}",
        "{'a': '\\u12'}",
        '{"a": True, "b": "\\0"}',
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
    found, _, deviations = read_object(f"{{{key}: " * 32 + "1" + "}" * 32, 0)
    for _ in range(32):
        found = found["a"]
    assert (found, deviations) == (1, ("python_literal",) if quote == "'" else ())


@given(st.text(st.characters()))
def test_storable_text_can_be_encoded_and_keeps_the_rest(text):
    kept = storable(text)
    kept.encode()
    assert len(kept) == len(text)
    assert all(new in (old, "\ufffd") for old, new in zip(text, kept, strict=True))
