"""Tables as Markdown, CSV and LaTeX, with reproducible bytes."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from itertools import groupby

from analysis.tables.table import Cell, Table

TERMINAL_WIDTH = 120
"""Characters per line of a printed table; a wider first column exceeds it."""
LATEX_SPECIALS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "\u2013": r"\textendash{}",
}


def markdown(table: Table) -> str:
    """Return Markdown with aligned columns."""
    columns = _aligned(table)
    parts = [_caption(table), "", *_lines(columns)]
    if table.notes:
        parts += ["", *(f"- {_one_line(note)}" for note in table.notes)]
    return "\n".join(parts) + "\n"


def terminal(table: Table, *, width: int = TERMINAL_WIDTH) -> str:
    """Return Markdown wrapped to ``width`` characters, further columns below."""
    first, *rest = _aligned(table)
    blocks: list[list[list[str]]] = []
    for column in rest:
        if not blocks or len(_lines([*blocks[-1], column])[0]) > width:
            blocks.append([first])
        blocks[-1].append(column)
    parts = textwrap.wrap(_caption(table), width, break_long_words=False, break_on_hyphens=False)
    for columns in blocks:
        parts += ["", *_lines(columns)]
    notes = [_one_line(note) for note in table.notes]
    parts += [""] if notes else []
    for note in notes:
        parts += textwrap.wrap(
            note,
            width,
            initial_indent="- ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(parts) + "\n"


def _caption(table: Table) -> str:
    return f"**{table.title}.** {_one_line(table.caption)}"


def _aligned(table: Table) -> list[list[str]]:
    """Return the columns: heading, rule and cells, padded to one width."""
    headings = [table.row_header, *(f"{group} {label}".strip() for group, label in table.columns)]
    rows = [[row.label, *(_markdown_cell(cell) for cell in row.cells)] for row in table.rows]
    columns = []
    for number, texts in enumerate(zip(headings, *rows, strict=True)):
        cells = [_escape_markdown(text) for text in texts]
        wide = max(3, *map(len, cells))
        rule = "-" * wide if number == 0 else "-" * (wide - 1) + ":"
        heading, *below = [text.ljust(wide) if number == 0 else text.rjust(wide) for text in cells]
        columns.append([heading, rule, *below])
    return columns


def _lines(columns: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(texts)} |" for texts in zip(*columns, strict=True)]


def _markdown_cell(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.is_best else cell.text


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _escape_markdown(text: str) -> str:
    return _one_line(text).replace("|", r"\|")


def comma_separated(table: Table) -> str:
    """Return CSV with one line per cell: its number, runs and facts."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()


def latex(table: Table) -> str:
    r"""Return a LaTeX ``table`` for ``\input``; the document needs ``\usepackage{booktabs}``."""
    groups = [(group, len(list(members))) for group, members in groupby(table.columns, key=lambda column: column[0])]
    spans, rules, first = [], [], 2
    for group, width in groups:
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    labels = [escape_latex(text) for text in [table.row_header, *(label for _, label in table.columns)]]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(table.caption)}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"    \toprule",
        *([f"    & {' & '.join(spans)} \\\\", f"    {' '.join(rules)}"] if rules else []),
        f"    {' & '.join(labels)} \\\\",
        r"    \midrule",
    ]
    for row in table.rows:
        if row.is_random_init and len(table.rows) > 1:
            lines.append(r"    \midrule")
        lines.append(f"    {' & '.join([escape_latex(row.label), *map(_latex_cell, row.cells)])} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    lines += [rf"  \par\smallskip\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = re.sub(r"^-(?=\d)", "$-$", escape_latex(cell.text))  # a minus sign
    if cell.is_missing:
        return rf"\textit{{{text}}}"
    return rf"\textbf{{{text}}}" if cell.is_best else text


def escape_latex(text: str) -> str:
    """Escape a text for LaTeX; unsupported characters become their code point."""
    escaped = "".join(map(_latex_character, _one_line(text)))
    return re.sub(r"([-,'])(?=\1)", r"\1{}", escaped)  # TeX joins two of them into another character


def _latex_character(character: str) -> str:
    if character in LATEX_SPECIALS:
        return LATEX_SPECIALS[character]
    if character.isascii():
        return character if character.isprintable() else ""
    # Letters of the Latin alphabets, which T1 has; anything else stops pdflatex.
    is_known = "\u00a1" <= character <= "\u017e" and character.isalpha()
    return character if is_known else f"[U+{ord(character):04X}]"
