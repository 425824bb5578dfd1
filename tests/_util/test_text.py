"""Clean up text from outside for one-line messages and for tables."""

from hypothesis import given
from hypothesis import strategies as st

from agentsafe._util.text import one_line, storable, with_type

ANY = st.text(st.characters(), max_size=600)


@given(ANY)
def test_stored_text_is_utf_8_and_keeps_all_but_lone_surrogates(text):
    stored = storable(text)
    stored.encode()
    assert stored == "".join("\ufffd" if "\ud800" <= each <= "\udfff" else each for each in text)


@given(ANY)
def test_any_error_is_one_short_line(text):
    for made, longest in ((one_line(ValueError(text)), 300), (with_type(ValueError(text)), 500)):
        assert made and made.splitlines() == [made]
        assert len(made) <= longest


def test_an_error_without_a_text_is_its_type():
    assert one_line(KeyError()) == "KeyError"
    assert with_type(RuntimeError("a\nb")) == "RuntimeError: a b"
