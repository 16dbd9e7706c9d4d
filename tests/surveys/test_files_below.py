"""What has the name of a survey's file and is none: found without opening it, and told."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from hpcspec.shards.ingest import Counts, ingest
from hpcspec.surveys.base import FITS_NAMES, files_below, passed_over
from tests.surveys.layouts import apstar

GONE, LOOP = "a link to a file that doesn't exist", "can't be read: Too many levels of symbolic links"
LINK, FOLDER, PIPE = "a link to a folder, which is not followed", "a folder, not a file", "a pipe, socket or device, not a file"


def no_files(folder: Path) -> dict[str, str]:
    """Things of a FITS file's name that are none, beside some that count and some of other names; name to reason."""
    (folder / "dangling.fits").symlink_to("nowhere")
    (folder / "itself.fits").symlink_to("itself.fits")
    (folder / "above.fits").symlink_to(folder, target_is_directory=True)
    (folder / "device.fits").symlink_to("/dev/zero")
    (folder / "empty.fits.gz").mkdir()
    os.mkfifo(folder / "pipe.fits")
    (folder / "other").symlink_to("nowhere")
    (folder / "folder").mkdir()
    return {"above.fits": LINK, "dangling.fits": GONE, "device.fits": PIPE, "empty.fits.gz": FOLDER, "itself.fits": LOOP,
            "pipe.fits": PIPE}  # fmt: skip


def test_what_is_no_file_is_told_with_its_reason(tmp_path: Path) -> None:
    reasons = no_files(tmp_path)
    (tmp_path / "full.fits" / "deeper").mkdir(parents=True)
    files = [tmp_path / "a.fits", tmp_path / "b.FITS.gz", tmp_path / "full.fits" / "deeper" / "c.fit"]
    for path in files:
        path.touch()
    (tmp_path / "link.fits").symlink_to("a.fits")
    with passed_over() as told:
        assert files_below(tmp_path, FITS_NAMES) == [*files, tmp_path / "link.fits"]
    assert {path.name: reason for path, reason in told.items()} == reasons
    told.clear()
    files_below(tmp_path, FITS_NAMES)
    assert not told


def test_a_folder_that_can_t_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    closed, scandir = tmp_path / "closed", os.scandir
    closed.mkdir()

    def guarded(path: str) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with passed_over() as told, caplog.at_level(logging.WARNING):
        assert not files_below(tmp_path, FITS_NAMES)
    assert told == {closed: "can't be read: Permission denied"} and f"{closed} is left out" in caplog.text


def test_it_is_quarantined_and_the_books_balance(tmp_path: Path) -> None:
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    apstar(files)
    assert ingest("apogee", files, out, 1) == Counts(1, 1, 1, 0)
    reasons = no_files(files)
    for _ in range(2):
        assert ingest("apogee", files, out, 1) == Counts(1, 7, 1, 6)
    rows = [json.loads(line) for line in (out / "quarantine" / "apogee.jsonl").read_text().splitlines()]
    assert {Path(row["path"]).name: row["reason"] for row in rows} == reasons
    assert ingest("apogee", files, out, 1, leave_out=lambda path: "pipe" in path.name) == Counts(1, 6, 1, 5)
