"""Tables in LaTeX: booktabs and nothing else, every text escaped."""

from collections.abc import Sequence

from agentsafe._util import format as fmt

_LONG = 26  # characters from which words are broken into lines
_PAGE = 56  # rows that fit a page

_MATH = {
    "\N{MINUS SIGN}": "-",
    "β": r"\beta",
    "Δ": r"\Delta",
    "²": "^2",
    "×": r"\times",
    "<": "<",
    ">": ">",
    "≥": r"\ge",
    "≤": r"\le",
}
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "\N{NO-BREAK SPACE}": "~",
    **{character: rf"\{character}" for character in "&%$#_{}"},
    **{character: f"${command}$" for character, command in _MATH.items()},
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands; control characters and line ends become spaces."""
    return "".join(
        _ESCAPES.get(character, character if character.isprintable() else " ") for character in text
    )


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    label: str,
    grouped: bool = False,
) -> str:
    r"""`table` environments for `\input`, a page each; needs `\usepackage{booktabs}`.

    Args:
        heads: of the columns.
        rows: cells as text, as long as `heads`.
        caption: plain text.
        label: what `\ref` calls the first page.
        grouped: the first column is no column but a line of its own before the rows it holds for.
    """
    pages = [rows[start : start + _PAGE] for start in range(0, len(rows), _PAGE)] or [[]]
    kinds = _kinds(rows, len(heads))[grouped:]
    shown = [_head(head, [row[i] for row in rows]) for i, head in enumerate(heads)][grouped:]
    lines = [r"% needs \usepackage{booktabs}"]
    for number, page in enumerate(pages):
        part = f" ({number + 1} of {len(pages)})" if len(pages) > 1 else ""
        lines += [
            r"\begin{table}[tbp]",
            r"\centering\scriptsize",
            rf"\setlength{{\tabcolsep}}{{{3 if len(heads) < 9 else 2}pt}}",
            rf"\caption{{{escape(caption + part)}}}",
            *([] if number else [rf"\label{{{label}}}"]),
            r"\makebox[\linewidth][c]{%",  # a table too wide stands out on both sides alike
            rf"\begin{{tabular}}{{@{{}}{kinds}@{{}}}}",
            r"\toprule",
            _row(shown),
            r"\midrule",
            *(_groups(heads[0], page, len(shown)) if grouped else _sparse(page)),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    return "\n".join([*lines, ""])


def _groups(head: str, rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows under a line that says what their first cell is."""
    lines, above = [], None
    for row in rows:
        if row[0] != above:
            lines += [r"\addlinespace"] if above is not None else []
            lines.append(rf"\multicolumn{{{width}}}{{@{{}}l}}{{{escape(f'{head}: {row[0]}')}}} \\")
            above = row[0]
        lines.append(_row([_cell(cell) for cell in row[1:]]))
    return lines


def _sparse(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows without the first cells that repeat the row above."""
    lines, above = [], ()
    repeats = len({row[0] for row in rows}) < len(rows)
    for row in rows:
        same = 0
        while same < min(2, len(above)) and row[same] == above[same]:
            same += 1
        lines += [r"\addlinespace"] if repeats and above and not same else []
        lines.append(_row([""] * same + [_cell(cell) for cell in row[same:]]))
        above = row
    return lines


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(text: str) -> str:
    """A cell; long words are set in lines."""
    if len(text) <= _LONG or " " not in text or text[-1] == "]":
        return escape(text)
    return rf"\parbox[t]{{{_LONG * 0.13:.1f}cm}}{{\raggedright {escape(text)}\strut}}"


def _kinds(rows: Sequence[Sequence[str]], width: int) -> str:
    """Numbers to the right, words to the left."""
    numeric = [all(fmt.is_number(row[i]) for row in rows) for i in range(width)]
    return "".join("r" if right else "l" for right in numeric)


def _head(head: str, cells: Sequence[str]) -> str:
    """A head; one wider than its column is stacked, a word a line."""
    widest = max((len(cell) for cell in cells), default=0)
    if " " not in head or len(head) <= widest:
        return escape(head)
    return r"\shortstack{" + r"\\".join(escape(word) for word in head.split()) + "}"
