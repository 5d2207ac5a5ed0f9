"""The preview of a dataset."""

from __future__ import annotations

from pathlib import Path

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.data.catalog import open_manifest
from crisscross.data.prepare.preview import draw_preview
from tests.support import tiny_config


def test_a_preview_is_drawn(tmp_path: Path) -> None:
    manifest = open_manifest(parse(DataSettings, tiny_config("downstream", tmp_path)["data"]))
    draw_preview(manifest, tmp_path / "sheet.png", split="test")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
