"""Self-contained HTML report whose numbers link to their runs in MLflow."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from analysis.studies import STUDIES
from analysis.study_tables import StudyTables
from analysis.tables.table import Cell, Table
from crisscross.tracking.artifacts import ArtifactLogger
from crisscross.tracking.query import experiment_id_of
from crisscross.utils.files import write_text
from crisscross.utils.redact import mask_passwords

LOCAL_UI = "http://127.0.0.1:5000"
"""Default address of ``mlflow ui``."""

TITLE = "CrissCross: tables and figures"
RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")

STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 74rem; margin: 2rem auto; padding: 0 1.5rem; color: #222; }
h1, h2, h3 { font-weight: normal; line-height: 1.25; } h2 { margin-top: 3.5rem; border-bottom: 1px solid #bbb; }
h3 { margin-top: 2.2rem; } nav ul { columns: 2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .22rem .75rem; text-align: right; font-weight: normal; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead tr:first-child th { border-top: 2px solid; } thead tr:last-child th { border-bottom: 1px solid; }
thead tr.groups th[colspan] { text-align: center; border-bottom: 1px solid #999; }
thead tr.groups th.none { border-bottom: none; }
tbody tr:last-child td { border-bottom: 2px solid; } tr.floor td { border-top: 1px solid; color: #555; }
td.missing { color: #777; font-style: italic; white-space: normal; }
table.head td, table.head th { text-align: left; white-space: normal; }
a { color: #1a4f8b; text-decoration: none; } a:hover { text-decoration: underline; }
figure { margin: 1.5rem 0; } img { max-width: 100%; display: block; margin: auto; }
figcaption, p.caption { font-size: .92rem; max-width: 60rem; }
li, details { color: #444; font-size: .85rem; } nav li { font-size: 1rem; } code { font-size: .85em; }
@media print { a { color: inherit; } h2 { break-before: page; } table, figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class _Links:
    """Links to runs in MLflow's UI."""

    base: str
    experiment_id: str

    def to(self, run_ids: Sequence[str]) -> str:
        return escape(runs_url(self.base, self.experiment_id, run_ids))


def make_html_report(
    sections: Sequence[StudyTables],
    path: Path,
    *,
    figures: Path,
    uri: str,
    experiment: str,
    artifacts: ArtifactLogger,
    ui: str | None = None,
) -> bool:
    """Write the report and log it; print errors as one line.

    Args:
        sections: see ``write_html_report``.
        path: the file.
        figures: see ``write_html_report``.
        uri: see ``write_html_report``.
        experiment: see ``write_html_report``.
        artifacts: logs the file.
        ui: see ``write_html_report``.

    Returns:
        Whether the file was written.
    """
    try:
        write_html_report(path, sections, figures=figures, uri=uri, experiment=experiment, ui=ui)
    except OSError as error:
        print(f"the page is not written: {path}: {error.strerror}: give a folder you can write", file=sys.stderr)
        return False
    print(f"Written: {path}")
    names = [section.name for section in sections]
    artifacts.log(
        {f"report/{path.name}": path},
        kind="report",
        of=names[0] if len(names) == 1 else "all",
        description=f"The tables and figures of {', '.join(names)} on one page.",
    )
    return True


def write_html_report(
    path: Path, sections: Sequence[StudyTables], *, figures: Path, uri: str, experiment: str, ui: str | None = None
) -> None:
    """Write the report; the same runs and figures give the same bytes.

    Args:
        path: the file.
        sections: tables of each study, in order.
        figures: folder of the figures; the report embeds the PNG and the caption (``.md``) of these variants.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        ui: address of MLflow's UI; None = the tracking server, or the default address of ``mlflow ui``.

    Raises:
        OSError: if the file cannot be written.
        TrackingError: if the store cannot be read.
    """
    base = (ui or (uri if uri.startswith("http") else LOCAL_UI)).rstrip("/")
    links = _Links(mask_passwords(base), experiment_id_of(uri=uri, experiment=experiment))
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{TITLE}</title>',
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{TITLE}</h1>",
        _head(sections, uri=uri, experiment=experiment, links=links),
        _contents(sections, figures),
        *(_section(section, figures, links) for section in sections),
        "</body></html>\n",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(parts))


def _head(sections: Sequence[StudyTables], *, uri: str, experiment: str, links: _Links) -> str:
    """Return the head: store, and variant, scale, runs and commits per study."""
    rows = []
    for section in sections:
        runs = section.runs
        frames = (runs.pretrainings, runs.evaluations)
        done, known = ((sum(map(len, some))) for some in ([f[f["status"] == "FINISHED"] for f in frames], frames))
        cells = (
            f'<a href="#{section.anchor}">{escape(runs.study)}</a>',
            f"<code>{runs.study_hash}</code>",
            escape(", ".join(_texts(frames, "scale"))),
            f"{done} of {known} done",
            ", ".join(f"<code>{escape(commit[:8])}</code>" for commit in _texts(frames, "git_commit"))
            or "not recorded",
            f"<code>{escape(STUDIES[runs.study].command)}</code>",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    headings = ("study", "variant", "scale", "experiments", "commits of the runs", "launched by")
    return "\n".join(
        [
            f"<p>Made from the experiment <code>{escape(experiment)}</code> of the MLflow store"
            f" <code>{escape(mask_passwords(uri))}</code> by <code>uv run analysis/make_tables.py</code>."
            f" Every number leads to its runs in MLflow's UI, looked for at <code>{escape(links.base)}</code>"
            " (<code>uv run mlflow ui</code>).</p>",
            '<table class="head"><thead><tr>' + "".join(f"<th>{text}</th>" for text in headings) + "</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody></table>",
        ]
    )


def _texts(frames: Iterable[Mapping[str, Iterable[str]]], column: str) -> list[str]:
    return sorted({text for frame in frames for text in frame[column]} - {""})


def _contents(sections: Sequence[StudyTables], figures: Path) -> str:
    lines = []
    for section in sections:
        for table in section.tables:
            lines.append(f'<li><a href="#{_anchor(table, section)}">{escape(_title(table))}</a></li>')
        for image in section.figures(figures):
            title = _caption_of(image)[0]
            lines.append(f'<li><a href="#{escape(image.stem)}">{escape(title)}</a></li>')
    return "<nav><h2>Contents</h2>\n<ul>\n" + "\n".join(lines) + "\n</ul></nav>"


def _anchor(table: Table, section: StudyTables) -> str:
    return f"{table.name}-{section.runs.study_hash}"


def _sentences(table: Table) -> tuple[str, str]:
    """Return the first sentence of a caption (its question), and the others."""
    found = re.match(r"(.+?[.?]) (.*)", table.caption, re.DOTALL)
    return (found[1], found[2]) if found else (table.caption, "")


def _title(table: Table) -> str:
    return f"{table.title}: {_sentences(table)[0].removesuffix('.')}"


def _section(section: StudyTables, figures: Path, links: _Links) -> str:
    study = escape(section.runs.study)
    return "\n".join(
        [
            f'<h2 id="{section.anchor}">Study {study}, variant <code>{section.runs.study_hash}</code></h2>',
            *(_table(table, section, links) for table in section.tables),
            *(_figure(image, links) for image in section.figures(figures)),
        ]
    )


def _table(table: Table, section: StudyTables, links: _Links) -> str:
    groups = [(group, len(list(members))) for group, members in groupby(table.columns, key=lambda column: column[0])]
    above = "".join(
        f'<th colspan="{width}"{"" if group else " class=none"}>{escape(group)}</th>' for group, width in groups
    )
    labels = "".join(f"<th>{escape(text)}</th>" for text in [table.row_header, *(label for _, label in table.columns)])
    rows = []
    for row in table.rows:
        cells = "".join(_cell(cell, links) for cell in row.cells)
        kind = ' class="floor"' if row.is_random_init else ""
        rows.append(f"<tr{kind}><td>{escape(row.label)}</td>{cells}</tr>")
    notes = "\n".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return "\n".join(
        [
            f'<h3 id="{_anchor(table, section)}">{escape(_title(table))}</h3>',
            f'<p class="caption">{escape(_sentences(table)[1])}</p>',
            '<div class="wide"><table>',
            f'<thead><tr class="groups"><th></th>{above}</tr><tr>{labels}</tr></thead>',
            "<tbody>",
            *rows,
            "</tbody></table></div>",
            f"<ul>\n{notes}\n</ul>" if notes else "",
        ]
    )


def _cell(cell: Cell, links: _Links) -> str:
    text = escape(re.sub(r"^-(?=\d)", "\u2212", cell.text))  # a minus sign
    if cell.run_ids:
        text = f'<a href="{links.to(cell.run_ids)}">{text}</a>'
    if cell.is_missing:
        return f'<td class="missing">{text}</td>'
    return f"<td><b>{text}</b></td>" if cell.is_best else f"<td>{text}</td>"


def runs_url(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the address of one run, or of a comparison of several."""
    if len(run_ids) == 1:
        return f"{base}/#/experiments/{experiment_id}/runs/{run_ids[0]}"
    runs, experiments = quote(json.dumps([*run_ids])), quote(json.dumps([experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}"


def _figure(image: Path, links: _Links) -> str:
    encoded = base64.b64encode(image.read_bytes()).decode()
    title, caption, more = _caption_of(image)
    img = f'<img alt="{escape(title)}" src="data:image/png;base64,{encoded}">'
    below = f"<figcaption>{escape(caption)}{_more(more, links)}</figcaption>"
    return f'<h3 id="{escape(image.stem)}">{escape(title)}</h3>\n<figure>{img}\n{below}</figure>'


def _caption_of(image: Path) -> tuple[str, str, list[str]]:
    """Return title, caption and further lines of a figure's ``.md`` file (``figures.base.caption_text``)."""
    caption_file = image.with_suffix(".md")
    first, *more = caption_file.read_text(encoding="utf-8").splitlines() if caption_file.is_file() else [""]
    found = re.fullmatch(r"\*\*(.+?)\.\*\* (.*)", first)
    return (found[1], found[2], more) if found else (image.stem, first, more)


def _more(lines: Sequence[str], links: _Links) -> str:
    """Return the runs and missing parts of a figure as HTML."""
    parts = []
    for is_list, some in groupby((line for line in lines if line.strip()), key=lambda line: line.startswith("- ")):
        texts = [escape(line.removeprefix("- ")) for line in some]
        texts = [RUN_ID.sub(lambda found: f'<a href="{links.to([found[0]])}">{found[0]}</a>', text) for text in texts]
        tag = "li" if is_list else "p"
        body = "\n".join(f"<{tag}>{text}</{tag}>" for text in texts)
        parts.append(f"<ul>\n{body}\n</ul>" if is_list else body)
    return (
        "<details><summary>its runs, and what is missing</summary>\n" + "\n".join(parts) + "</details>" if parts else ""
    )
