"""ASAS: files and archives of them, classes beside, and the real training set."""

from __future__ import annotations

import csv
import gzip
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import asas
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.surveys.curve_layouts import archive, asas_archive, asas_files, asas_rows, asas_tables, lines


def objects(folder: Path) -> list[Observation | Quarantined]:
    return [found for source in asas.discover(folder) for found in asas.read(source)]


@pytest.mark.parametrize("write", [asas_files, asas_archive])
def test_classes_and_metadata_come_from_the_tables_beside(write, tmp_path: Path) -> None:
    write(tmp_path)
    star, other = objects(tmp_path)
    assert isinstance(star, Observation) and isinstance(other, Observation)
    assert star.meta == {"class": "Mira", "meta1": 0.25, "meta2": 1000.0, "position": "none"}
    assert other.meta["class"] == "RR_Lyrae_FM" and not star.scalars and np.isnan(star.ra)


def test_tables_are_known_by_their_columns_and_may_be_absent(tmp_path: Path) -> None:
    lines(tmp_path / "any.csv", ["name;period;Type", "7;0.5;EB"])
    lines(tmp_path / "7.dat", [row.replace(",", "  ") for row in asas_rows()])
    lines(tmp_path / "8.dat", [f"{2450000 + float(r.split(',')[0])},14,0.1" for r in asas_rows()])
    seven, eight = objects(tmp_path)
    assert isinstance(seven, Observation) and isinstance(eight, Observation)
    assert seven.meta["class"] == "EB" and seven.scalars["period"][0] == 0.5 and "class" not in eight.meta
    assert seven.curves[0].time == pytest.approx(eight.curves[0].time) and seven.curves[0].ivar == pytest.approx([625] * 12)


@pytest.mark.parametrize("blank", [",", "  "])
def test_a_comment_or_a_cut_line_behind_the_first_row_is_told(blank: str, tmp_path: Path) -> None:
    rows = [row.replace(",", blank) for row in asas_rows()]
    lines(tmp_path / "7.dat", ["# days mag error more", *rows])
    lines(tmp_path / "8.dat", [*rows[:3], f"#{rows[3]}{blank}0", *rows[4:]])
    (tmp_path / "9.dat").write_text("\n".join([*rows[:-1], rows[-1][: rows[-1].rindex(blank)]]))
    seven, eight, nine = objects(tmp_path)
    assert "rows_skipped" not in seven.meta and (eight.meta["rows_skipped"], nine.meta["rows_skipped"]) == (1, 1)
    assert [len(o.curves[0].time) for o in (seven, eight, nine)] == [12, 11, 11]


def test_a_damaged_table_quarantines_what_it_may_have_lost(tmp_path: Path) -> None:
    asas_archive(tmp_path)
    path = tmp_path / "more.dat"
    rows = path.read_text().splitlines()
    lines(path, [*rows[:2], rows[2].rsplit(",", 1)[0]])
    (tmp_path / "classes.dat").unlink()
    star, other = objects(tmp_path)
    assert isinstance(star, Observation) and star.meta["class"] == "Mira"
    assert isinstance(other, Quarantined) and other.object_id == "215181" and "more.dat is damaged" in other.reason


def test_damaged_members_do_not_harm_others(tmp_path: Path) -> None:
    members = {
        "a/1.dat": asas_rows(), "a/2.dat": ["no numbers here"], "a/3.dat": [], "b/1.dat": asas_rows(), "a/README": ["read me"],
        "a/4.dat": ["1868.5,14"], "a/5.dat": ["nan,14,0.1", "1868.5,nan,0.1", "1868.5,14,-1"],
        "a/6.dat": [*asas_rows(), "1900.5,14"],
    }  # fmt: skip
    archive(tmp_path / "set.tgz", members)
    found = objects(tmp_path)
    assert [o.object_id for o in found] == ["1", "2", "3", "1", "4", "5", "6"]
    assert [isinstance(o, Observation) for o in found] == [True, False, False, False, False, False, True]
    reasons = [o.reason for o in found if isinstance(o, Quarantined)]
    for reason, said in zip(reasons, ("not an ASAS", "empty", "second file", "2 fields", "no valid"), strict=True):
        assert said in reason
    assert found[-1].meta["rows_skipped"] == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("packed", [True, False])
def test_a_truncated_archive_gives_what_is_before_the_damage(packed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    noisy = {f"{i}.dat": [f"{t:.5f},{m:.3f},0.04" for t, m in rng.uniform(1900, 5000, (400, 2))] for i in range(20)}
    path = tmp_path / "set.tar.gz"
    archive(path, noisy)
    data = path.read_bytes() if packed else gzip.decompress(path.read_bytes())
    path.unlink()
    (tmp_path / ("set.tar.gz" if packed else "set.tar")).write_bytes(data[: len(data) // 2])
    *good, bad = objects(tmp_path)
    assert 5 < len(good) < 15 and all(isinstance(o, Observation) and len(o.curves[0].time) == 400 for o in good)
    assert isinstance(bad, Quarantined) and bad.reason


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(__file__, arcname="code.py")
    (found,) = objects(tmp_path)
    assert isinstance(found, Quarantined) and "holds no .dat file" in found.reason


def test_a_table_alone_above_is_no_object(tmp_path: Path) -> None:
    asas_tables(tmp_path)
    (tmp_path / "set").mkdir()
    lines(tmp_path / "set/215153.dat", asas_rows())
    assert [o.object_id for o in objects(tmp_path)] == ["215153"]


def test_real_files(real_data: Path) -> None:
    folder = real_data / "lc_asas_cesium"
    if not folder.is_dir():
        pytest.skip(f"no lc_asas_cesium in {real_data}")
    with (folder / "asas_training_set_classes_with_metadata.dat").open(newline="") as file:
        rows = {row["filename"]: row for row in csv.DictReader(file)}
    found = objects(folder)
    stars = {o.object_id: o for o in found if isinstance(o, Observation)}
    assert len(found) == len(stars) == 810 and stars.keys() == rows.keys()
    for name, star in stars.items():
        assert star.meta["class"] == rows[name]["class"]
        assert [star.meta[f"meta{i}"] for i in (1, 2, 3)] == [float(rows[name][f"meta{i}"]) for i in (1, 2, 3)]
        curve = star.curves[0]
        assert 2451868 < curve.time[0] < curve.time[-1] < 2455169 and len(curve.time) >= 50
        assert np.all(curve.ivar > 0) and 4 < curve.value.min() < curve.value.max() < 18
    assert sum(len(star.curves[0].time) for star in stars.values()) == 490855
    assert Counter(str(star.meta["class"]) for star in stars.values()).most_common(1) == [("Mira", 91)]
