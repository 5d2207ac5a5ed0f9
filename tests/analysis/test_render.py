from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess

import pytest

from analysis.tables.render import comma_separated, escape_latex, latex, markdown
from analysis.tables.table import Cell, Row, Table
from tests.requirements import missing

TABLE = Table(
    name="table9",
    title="Table 9",
    caption="100 % of it & more.",
    row_header="relaxation",
    columns=(("a_b", "v"), ("a_b", "a+v"), ("c|d → e", "v")),
    rows=(
        Row("mild", (Cell("84.2 ± 1.3 (n=3)", is_best=True), Cell("7.0"), Cell("running 41 %", is_missing=True))),
        Row("untrained (floor)", (Cell("10.0"), Cell("11.0"), Cell("failed", is_missing=True)), is_random_init=True),
    ),
    notes=("mild, seed 2: failed: cannot\nread C:\\clips\\{1}~^<x>#$.mp4",),
    records=({"row": "mild", "mean": "0.842", "missing": "seed 2: failed, alas"},),
)


def test_markdown_is_aligned_and_escapes_what_would_break_the_table():
    text = markdown(TABLE)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert lines[0].split("|")[1].strip() == "relaxation"
    assert "| **84.2 ± 1.3 (n=3)** |" in lines[2]
    assert r"c\|d → e v" in lines[0]
    assert "- mild, seed 2: failed: cannot read" in text
    assert text.startswith("**Table 9.** 100 % of it & more.\n")


def test_csv_reads_back():
    assert list(csv.DictReader(io.StringIO(comma_separated(TABLE)))) == list(TABLE.records)


def test_latex_has_the_structure_of_a_booktabs_table():
    text = latex(TABLE)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert r"\multicolumn{2}{c}{a\_b} & \multicolumn{1}{c}" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    assert r"\textbf{84.2 $\pm$ 1.3 (n=3)}" in text
    assert r"\textit{running 41 \%}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in lines] == [2 + 0, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 5%", r"a\_b \& 5\%"),
        ("#$", r"\#\$"),
        ("{~^}", r"\{\textasciitilde{}\textasciicircum{}\}"),
        ("±", r"$\pm$"),
    ],
)
def test_latex_specials(text, escaped):
    assert escape_latex(text) == escaped


def test_latex_compiles(tmp_path):
    if shutil.which("pdflatex") is None:
        missing("there is no pdflatex here")
    document = [r"\documentclass{article}", r"\usepackage[T1]{fontenc}", r"\usepackage{textcomp,booktabs}"]
    document += [r"\begin{document}", latex(TABLE), r"\end{document}"]
    (tmp_path / "document.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
