"""One self-contained page with all tables and figures; every number is a link to its runs in MLflow."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from analysis.tables.base import Cell, Table
from crisscross.files import write_text
from crisscross.tracking import experiment_id_of

LOCAL_UI = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves when it is told nothing."""

STYLE = """
body { font: 15px/1.5 Georgia, serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: normal; } h2 { margin-top: 3rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; } th:first-child, td:first-child { text-align: left; }
thead tr:first-child th { border-top: 2px solid; } thead tr:last-child th { border-bottom: 1px solid; }
tbody tr:last-child td { border-bottom: 2px solid; } tr.floor td { border-top: 1px solid; color: #555; }
th[colspan] { text-align: center; } td.missing { color: #777; font-style: italic; }
a { color: #1a4f8b; text-decoration: none; } a:hover { text-decoration: underline; }
figure { margin: 1rem 0; } img { max-width: 100%; } small, li { color: #444; font-size: .85rem; }
"""


def write_page(
    path: Path, tables: Sequence[Table], *, figures: Path, uri: str, experiment: str, ui: str | None = None
) -> None:
    """Write the page.

    Args:
        path: the file.
        tables: in their order.
        figures: folder whose PNGs are put in, each with the text of the ``.md`` beside it.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        ui: address of MLflow's UI; None = the tracking server, or where ``mlflow ui`` serves by itself.

    Raises:
        OSError: when it cannot be written.
        TrackingError: when the store cannot be read.
    """
    base = (ui or (uri if uri.startswith("http") else LOCAL_UI)).rstrip("/")
    number = experiment_id_of(uri=uri, experiment=experiment)
    parts = [_table(table, base=base, experiment_id=number) for table in tables]
    parts += [_figure(image) for image in sorted(figures.glob("*.png"))]
    path.parent.mkdir(parents=True, exist_ok=True)
    title = "CrissCross: tables and figures"
    head = f'<head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
    write_text(
        path,
        "\n".join(['<!doctype html>\n<html lang="en">', head, f"<body><h1>{title}</h1>", *parts, "</body></html>"])
        + "\n",
    )


def _table(table: Table, *, base: str, experiment_id: str) -> str:
    groups = [(group, len(list(members))) for group, members in groupby(table.columns, key=lambda column: column[0])]
    above = "".join(f'<th colspan="{width}">{html.escape(group)}</th>' for group, width in groups)
    labels = "".join(
        f"<th>{html.escape(text)}</th>" for text in [table.row_header, *(label for _, label in table.columns)]
    )
    rows = []
    for row in table.rows:
        cells = "".join(_cell(cell, base=base, experiment_id=experiment_id) for cell in row.cells)
        kind = ' class="floor"' if row.is_floor else ""
        rows.append(f"<tr{kind}><td>{html.escape(row.label)}</td>{cells}</tr>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return "\n".join(
        [
            f'<h2 id="{table.name}">{html.escape(table.title)}</h2>',
            f"<p>{html.escape(table.caption)}</p>",
            f"<table><thead><tr><th></th>{above}</tr><tr>{labels}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody></table>",
            f"<ul>{notes}</ul>" if notes else "",
        ]
    )


def _cell(cell: Cell, *, base: str, experiment_id: str) -> str:
    text = html.escape(cell.text)
    if cell.run_ids:
        text = f'<a href="{html.escape(runs_url(base, experiment_id, cell.run_ids))}">{text}</a>'
    if cell.is_missing:
        return f'<td class="missing">{text}</td>'
    return f"<td><b>{text}</b></td>" if cell.is_best else f"<td>{text}</td>"


def runs_url(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the address of a run in MLflow's UI, or of its comparison of several."""
    if len(run_ids) == 1:
        return f"{base}/#/experiments/{experiment_id}/runs/{run_ids[0]}"
    runs, experiments = quote(json.dumps([*run_ids])), quote(json.dumps([experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}"


def _figure(image: Path) -> str:
    encoded = base64.b64encode(image.read_bytes()).decode()
    about = image.with_suffix(".md")
    caption = html.escape(about.read_text().strip()) if about.is_file() else ""
    name = html.escape(image.stem)
    picture = f'<img alt="{name}" src="data:image/png;base64,{encoded}">'
    return f"<h2>{name}</h2><figure>{picture}<figcaption><small>{caption}</small></figcaption></figure>"
