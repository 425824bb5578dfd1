"""Write tables in LaTeX with booktabs, all text escaped."""

from collections.abc import Sequence

from agentsafe._util import format as fmt

_LONG = 26  # characters; longer words are broken into lines
_PAGE = 56  # rows per page

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
    """Escape text for LaTeX; control characters and line ends become spaces."""
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
    r"""Write `table` environments for `\input`, one per page; they need `\usepackage{booktabs}`.

    Args:
        heads: of the columns.
        rows: cells as text, as many as `heads`.
        caption: plain text.
        label: of the first page, for `\ref`.
        grouped: write the first column as a line above the rows that share its value.
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
            r"\makebox[\linewidth][c]{%",  # a table wider than the page is centred
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
    """Write rows under a line with their first cell."""
    lines: list[str] = []
    above = None
    for row in rows:
        if row[0] != above:
            lines += [r"\addlinespace"] if above is not None else []
            lines.append(rf"\multicolumn{{{width}}}{{@{{}}l}}{{{escape(f'{head}: {row[0]}')}}} \\")
            above = row[0]
        lines.append(_row([_cell(cell) for cell in row[1:]]))
    return lines


def _sparse(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows without the first cells that repeat the row above."""
    lines: list[str] = []
    above: Sequence[str] = ()
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
    """Write a cell; long text is broken into lines."""
    if len(text) <= _LONG or " " not in text or text[-1] == "]":
        return escape(text)
    return rf"\parbox[t]{{{_LONG * 0.13:.1f}cm}}{{\raggedright {escape(text)}\strut}}"


def _kinds(rows: Sequence[Sequence[str]], width: int) -> str:
    """Align columns of numbers right, columns of words left."""
    numeric = [all(fmt.is_number(row[i]) for row in rows) for i in range(width)]
    return "".join("r" if right else "l" for right in numeric)


def _head(head: str, cells: Sequence[str]) -> str:
    """Write a head; one wider than its column is stacked, one word per line."""
    widest = max((len(cell) for cell in cells), default=0)
    if " " not in head or len(head) <= widest:
        return escape(head)
    return r"\shortstack{" + r"\\".join(escape(word) for word in head.split()) + "}"
