"""Tables as Markdown, CSV and LaTeX. Pure functions: the same table gives the same bytes."""

from __future__ import annotations

import csv
import io
import re
from itertools import groupby

from analysis.tables.base import Cell, Table

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
    "\n": " ",
}


def markdown(table: Table) -> str:
    """Return Markdown whose columns are aligned, so that it reads well as plain text too."""
    header = [table.row_header, *(f"{group} {label}".strip() for group, label in table.columns)]
    body = [[row.label, *(_markdown_cell(cell) for cell in row.cells)] for row in table.rows]
    lines = [[_escape_markdown(text) for text in line] for line in [header, *body]]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def row(texts: list[str]) -> str:
        first, *rest = [
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(texts, widths, strict=True))
        ]
        return f"| {' | '.join([first, *rest])} |"

    rule = f"| {'-' * widths[0]} | {' | '.join('-' * (width - 1) + ':' for width in widths[1:])} |"
    parts = [f"**{table.title}.** {table.caption}", "", row(lines[0]), rule, *map(row, lines[1:])]
    if table.notes:
        parts += ["", *(f"- {_one_line(note)}" for note in table.notes)]
    return "\n".join(parts) + "\n"


def _markdown_cell(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.is_best else cell.text


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _escape_markdown(text: str) -> str:
    return _one_line(text).replace("|", r"\|")


def comma_separated(table: Table) -> str:
    """Return CSV with one line a cell and everything that is behind it."""
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
        f"    & {' & '.join(spans)} \\\\",
        f"    {' '.join(rules)}",
        f"    {' & '.join(labels)} \\\\",
        r"    \midrule",
    ]
    for row in table.rows:
        if row.is_floor and len(table.rows) > 1:
            lines.append(r"    \midrule")
        lines.append(f"    {' & '.join([escape_latex(row.label), *map(_latex_cell, row.cells)])} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    lines += [rf"  \par\smallskip\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    if cell.is_missing:
        return rf"\textit{{{text}}}"
    return rf"\textbf{{{text}}}" if cell.is_best else text


def escape_latex(text: str) -> str:
    """Return a text that LaTeX prints as it is."""
    return "".join(LATEX_SPECIALS.get(character, character) for character in text)
