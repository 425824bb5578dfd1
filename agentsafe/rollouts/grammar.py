"""Define the grammar of an agent's turn: labels, tool names, and what stands in for an action.

A label is a word of the format at the start of a line: `Action:`, in Markdown (`**Action:**`,
`### Action:`, `- Action:`), as a heading of its own (`## Action`, `**Action**`) or in brackets
(`[Action]`), numbered or not, in any case. Possessive quantifiers (`++`) rule out backtracking, so
that any text takes linear time.
"""

import re

_ACTION_WORD, _FINAL_WORD = "Action", "Final[ _-]?+Answer"
_INPUT_WORD = "(?:Action|Tool)[ _-]?+(?:Input|Arguments)|Input|Arguments|Parameters"


def pattern(grammar: str) -> re.Pattern:
    """Compile a grammar without regard to case; `^` and `$` match at every line."""
    return re.compile(grammar, re.IGNORECASE | re.MULTILINE)


def label(words: str) -> str:
    """Return the grammar of a label."""
    words = rf"(?:{words})(?: ?+#?+\d{{1,3}}+)?+"
    before = r"[ \t>#*_`-]*+(?:\d{1,3}+[.)][ \t*_`]++)?+"
    colon = rf"{before}{words}[ \t*_`]*+:(?:[*_]++(?!\w)|`(?!\S))?+"
    brackets = rf"{before}\[{words}\][*_`]*+:?+"
    heading = rf"[ \t]*+(?:#++[ \t*_]*+|\*\*|__){words}[*_ \t\r]*+$"
    return f"(?:{colon}|{brackets}|{heading})"


_AROUND = r"[\s\"'`*_(\[<]*+"
_NOTHING = rf"{_AROUND}(?:none|nothing|n/?a|null|nil|not applicable)(?![\w/-]|\.\w)"
#: Words in place of a tool's name that say that no tool is called.
_NO_TOOL = (
    rf"(?:{_NOTHING}|{_AROUND}"
    r"no[ _-]?+(?:\w++ )?(?:action|tool|call|step|function)s?(?: call| use)?(?: (?:is|are))?"
    r"(?: needed| required| necessary)?(?![\w/-]|\.\w)|[-–—]{1,3}+[ \t\r]*+$)"
)
_NO_OBSERVATION = rf"{_NOTHING}[^\w\n(]*+(?:\([^\n]*+)?+$"
_FINAL_TOOL = rf"[\"'`*_(\[]*+{_FINAL_WORD}\b(?:\(\))?"
_EMPTY_INPUT = rf"(?:{_NOTHING}[^\n]*+|[\"'`]*+\{{\s*+\}}[\"'`]*+|(?=^{label(_FINAL_WORD)}))"

_BLANK = r"[ \t\r]*+"
_LABELS = label(f"Thought|Observation|{_ACTION_WORD}|{_INPUT_WORD}|{_FINAL_WORD}")
_NEXT_LINE = rf"(?:\n\s*+(?!{_LABELS})(?:[-*+][ \t]++)?+)?+"
_TO_INPUT = r"(?:(?!\bAction Input\b[*_` ]*+:|\[Action Input\])[^\n])*+"
_FENCE = r"(?P<fence>`++[\w+-]*+\s*+)?+"
_BOLD = r"[*_]{0,3}+"
NAME = r"[`'\"*]*+[\w.-]++(?:\(\))?+[`'\"*.]*+"

ACTION = pattern(rf"^(?P<label>{label(_ACTION_WORD)}){_BLANK}{_NEXT_LINE}(?P<tool>{_TO_INPUT})")
INPUT = pattern(rf"\s*+(?P<input>{label(_INPUT_WORD)})\s*+{_FENCE}")
CALL = pattern(rf"(?P<tool>{NAME})(?:[ \t]*+(?P<bracket>\(\s*+)|\s*+{_FENCE})(?=\{{)")
BRACKET_END = pattern(r"\s*+\)")
FENCE_END = pattern(r"\s*+`++")
FENCE_LINE = pattern(r"^[ \t]*+```[^`\n]*+$")
FINAL = pattern(rf"^(?P<label>{label(_FINAL_WORD)}){_BLANK}")
THOUGHT = pattern(rf"^{label('Thought')}")
ANY_LABEL = pattern(rf"^{_LABELS}")

#: Those words, and the name of the final answer, as text.
NO_TOOL = pattern(_NO_TOOL)
FINAL_TOOL = pattern(_FINAL_WORD)

_BLANK_CALL = rf"(?=\s*+(?:{label(_INPUT_WORD)}\s*+)?+^{label(_FINAL_WORD)})"
#: No tool, or the final answer, as an action; with an input and an observation that are none too.
#: A sentence with such an input calls no tool either.
NO_ACTION = pattern(
    rf"^(?P<label>{label(_ACTION_WORD)}){_BLANK}{_NEXT_LINE}"
    rf"(?:(?:{_NO_TOOL}|{_FINAL_TOOL}|{_BLANK_CALL})(?:(?!{_FINAL_WORD}:)[^\n])*+"
    rf"(?:\s*+{label(_INPUT_WORD)}\s*+{_EMPTY_INPUT})?+"
    rf"|(?P<sentence>[^\s{{]++ [^\n]*+)\s*+{label(_INPUT_WORD)}\s*+{_NOTHING}[^\n]*+)"
    rf"(?:\s*+{label('Observation')}{_NO_OBSERVATION})?+"
)
#: The final answer as an action, up to its text or object.
FINAL_ACTION = pattern(
    rf"^(?P<label>{label(_ACTION_WORD)}){_BLANK}{_NEXT_LINE}{_FINAL_TOOL}[`'\"*)\]]*+[ \t.:]*+"
    rf"(?:\s*+{label(_INPUT_WORD)})?+\s*+{_FENCE}"
)

OBSERVATION = pattern(rf"^{label('Observation')}")
HALLUCINATED = pattern(rf"^{label('Observation')}(?!{_NO_OBSERVATION})[\s*_`]*+[^\s*_`]")
ECHO = pattern(rf"\s*+{label('Observation')}\s*+{_FENCE}")

#: Labels in mid-line, after the end of a sentence; exact, since prose may use the same words. An
#: object that the rest of a sentence follows is quoted there.
MID_ACTION = re.compile(
    rf"(?<=[.!?,:;)\]\"'`*}}…])[ \t]*+{_BOLD}Action:{_BOLD}[ \t]*+(?P<tool>{NAME})[ \t,;]*+"
    rf"(?:\s*+{_BOLD}(?P<input>Action Input:){_BOLD}\s*+{_FENCE}|(?P<bracket>\(\s*+))(?=\{{)"
)
MID_FINAL = re.compile(r"(?<=[.!?:;)\]\"'`*}…])[ \t]++(?P<label>Final Answer:)[ \t]*+")
SENTENCE_GOES_ON = re.compile(r"[ \t`]*+[a-z]")

_WAITS = pattern(r"\b(?:wait|await)|\buser (?:input|prompt|response|confirmation)")
_ASKS = pattern(r"\b(?:ask|prompt|inform|tell|notify|request|confirm|message|respon|repl|clarif)")
_USER = pattern(r"\b(?:users?|you|them)\b")
USER_LINE = pattern(r"^[\W_]*+(?:user|human|customer)\b[^\n:]*+:")

#: An object that may be a whole turn, at the start of a line or anywhere.
OBJECT = pattern(rf"{_FENCE}(?=\{{\s*+[\"'])")
OBJECT_LINE = pattern(rf"^[ \t]*+{OBJECT.pattern}")
#: Words or an object of a call, whatever is wrong with it: text that holds one is no prose.
LIKE_A_CALL = pattern(
    r"\bAction[ _]?Input\b|(?<=[.!?)]) Action:|<tool_call>"
    r"|^[ \t`]*+(?:[\w.-]++\s*+)?\(?\{"
)
TEXT = pattern(r"[^\s*_`]")


_AROUND_NAME = "`'\"* \t"
_REMARK = re.compile(r"([\w.-]+[`'\"*]*+)\s++(?:\(.*\)|#.*|//.*)\.?")


def bare_name(name: str) -> str:
    """Strip quotes, Markdown, a full stop, `()` and a remark such as `(to look)` from a name."""
    name = name.strip(_AROUND_NAME)
    if remark := _REMARK.fullmatch(name):
        name = remark[1]
    name = name.rstrip(_AROUND_NAME + ".,;")
    return name.removesuffix("()").rstrip(_AROUND_NAME + ".,;")


def is_name(text: str) -> bool:
    """Tell whether a text can be a tool's name, with or without Markdown, and is no sentence."""
    return re.fullmatch(rf"{NAME}[,;]?", text.strip()) is not None


def is_action_input(label: str) -> bool:
    """Tell whether a label is Action Input, however it is written."""
    return re.sub(r"[^a-z]", "", label.lower()) == "actioninput"


def turns_to_user(sentence: str) -> bool:
    """Tell whether a sentence asks or tells the user something: what follows it is made up."""
    return bool(_WAITS.search(sentence) or (_ASKS.search(sentence) and _USER.search(sentence)))
