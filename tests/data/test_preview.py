"""The contact sheet is drawn for whatever a manifest holds."""

from __future__ import annotations

from pathlib import Path

from crisscross.data.catalogue import open_manifest
from crisscross.data.preview import draw_preview
from crisscross.data.settings import DataSettings
from crisscross.settings_base import parse
from tests.support import tiny_config


def test_a_sheet_is_drawn(tmp_path: Path) -> None:
    manifest = open_manifest(parse(DataSettings, tiny_config("downstream", tmp_path)["data"]))
    draw_preview(manifest, tmp_path / "sheet.png", split="test")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
