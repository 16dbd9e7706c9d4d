"""EROS: lists in cells, features beside or in the same table, damage, and the real training set."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import eros
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.surveys import curve_layouts
from tests.surveys.curve_layouts import EROS, FEATURES, N, cell, eros_curves, eros_features, eros_row, lines


def objects(folder: Path) -> list[Observation | Quarantined]:
    return [found for source in eros.discover(folder) for found in eros.read(source)]


def test_features_give_class_position_and_scalars(tmp_path: Path) -> None:
    curve_layouts.eros(tmp_path)
    star, other = objects(tmp_path)
    assert isinstance(star, Observation) and isinstance(other, Observation)
    assert (star.ra, star.dec) == pytest.approx((15 * (5 + 40.5 / 60), -0.51))  # minus stands before 0 degrees
    expected = {"period": 0.5, "mag_b": 19.1, "mag_r": 18.8, "b_r": 0.3, "period_multiple": 4}
    assert {name: v for name, (v, _) in star.scalars.items()} == pytest.approx(expected)
    assert (star.meta["class"], other.meta["class"]) == ("3", "4") and star.meta["patch_id"] == "135"
    assert not any("points" in name or "Unnamed" in name for name in star.meta)


def test_without_a_type_there_is_no_class(tmp_path: Path) -> None:
    eros_curves(tmp_path)
    eros_features(tmp_path, FEATURES.replace(",type", ",kind"))
    for star in objects(tmp_path):
        assert isinstance(star, Observation) and "class" not in star.meta and star.scalars["mag_b"][0] > 17


def test_features_in_the_table_of_the_curves_and_features_alone(tmp_path: Path) -> None:
    lines(tmp_path / "all.csv", [f"{EROS},period,type", f"{eros_row('7')},7,2", f"{eros_row('8')},8.5,"])
    seven, eight = objects(tmp_path)
    assert isinstance(seven, Observation) and isinstance(eight, Observation)
    assert seven.meta["class"] == "2" and seven.scalars["period"][0] == 7 and "class" not in eight.meta
    (tmp_path / "all.csv").unlink()
    eros_features(tmp_path)
    star, _ = objects(tmp_path)
    assert isinstance(star, Observation) and not star.curves and star.meta["class"] == "3" and star.scalars["period"][0] == 0.5


def test_a_feature_that_equals_the_identifier_stays(tmp_path: Path) -> None:
    lines(tmp_path / "lists.csv", [EROS, eros_row("3")])
    lines(tmp_path / "things.csv", ["id,magnitude_b,type", "3,3,3"])
    (star,) = objects(tmp_path)
    assert isinstance(star, Observation) and star.scalars["mag_b"][0] == 3 and star.meta["class"] == "3"


def test_each_folder_has_its_own_features(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    curve_layouts.eros(tmp_path / "a")
    eros_curves(tmp_path / "b")
    assert [source.key for source in eros.discover(tmp_path)] == ["a/lists.csv", "b/lists.csv"]
    assert ["class" in o.meta for o in objects(tmp_path) if isinstance(o, Observation)] == [True, True, False, False]


def test_any_bands_and_lists_without_commas(tmp_path: Path) -> None:
    head = "star,time_points_i,light_points_i,error_points_i"
    lines(tmp_path / "x.csv", [head, "a,[3.0  1.0 2.0],[13. 11. nan],[0.1 0.1 0.1]"])
    (star,) = objects(tmp_path)
    assert isinstance(star, Observation)
    (curve,) = star.curves
    assert curve.band == "i" and curve.time.tolist() == [1, 2, 3] and curve.value.tolist() == [11, 0, 13]
    assert (curve.ivar > 0).tolist() == [True, False, True]


def test_damaged_rows_do_not_harm_others(tmp_path: Path) -> None:
    shorter = eros_row("short").replace(cell(290.3 + 1.25 * i for i in range(N)), '"[1.0, 2.0]"', 1)
    nothing = ",".join(["nothing", *[cell([0.0] * N)] * 8])
    rows = [eros_row("good"), eros_row("good"), eros_row("text").replace("290.3", "soon"), eros_row("cut").rsplit(',"', 1)[0]]
    rows += [eros_row(""), shorter, nothing, eros_row("last")]
    lines(tmp_path / "lists.csv", [EROS, *rows])
    found = objects(tmp_path)
    good = [o.object_id for o in found if isinstance(o, Observation)]
    bad = {o.object_id: o.reason for o in found if isinstance(o, Quarantined)}
    assert good == ["good", "last"] and len(found) == len(rows)
    assert bad.keys() == {"good", "text", "cut", "", "short", "nothing"}
    said = {"good": "second row", "text": "could not convert", "cut": "fields", "": "identifier"}
    said |= {"short": "differ", "nothing": "no valid"}
    for object_id, text in said.items():
        assert text in bad[object_id], (object_id, bad[object_id])


def test_a_lost_quote_loses_no_object_silently(tmp_path: Path) -> None:
    rows = [eros_row("first"), eros_row("open").removesuffix('"'), eros_row("next"), eros_row("last")]
    lines(tmp_path / "lists.csv", [EROS, *rows])
    found = {o.object_id: isinstance(o, Observation) for o in objects(tmp_path)}
    assert found == {"first": True, "open": False, "next": False, "last": True}


def test_a_truncated_table_gives_what_is_before_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcspec.surveys.tables.BLOCK", 1 << 13)
    rng = np.random.default_rng(7)
    rows = [",".join([f"star{i}", *(cell(rng.uniform(1, 20, 40).round(3)) for _ in range(8))]) for i in range(60)]
    packed = gzip.compress("\n".join([EROS, *rows]).encode())
    (tmp_path / "lists.csv.gz").write_bytes(packed[: len(packed) // 2])
    *good, bad = objects(tmp_path)
    assert [o.object_id for o in good] == [f"star{i}" for i in range(len(good))] and 10 < len(good) < 40
    assert all(isinstance(o, Observation) and len(o.curves[0].time) == 40 for o in good)
    assert isinstance(bad, Quarantined) and "end" in bad.reason


def test_objects_that_a_damaged_features_table_may_have_lost(tmp_path: Path) -> None:
    curve_layouts.eros(tmp_path)
    path = tmp_path / "things.csv"
    path.write_text(path.read_text().rsplit(",", 3)[0])
    star, other = objects(tmp_path)
    assert isinstance(star, Observation) and star.meta["class"] == "3"
    assert isinstance(other, Quarantined) and "things.csv is damaged" in other.reason


def test_a_band_without_errors_is_told(tmp_path: Path) -> None:
    lines(tmp_path / "lists.csv", [EROS.replace("error_points_r", "sigma_r"), eros_row("1")])
    (found,) = objects(tmp_path)
    assert isinstance(found, Quarantined) and found.reason == "not an EROS table: no column error_points_r"


def test_real_files(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "lc_eros"
    if not folder.is_dir():
        pytest.skip(f"no lc_eros in {real_data}")
    with gzip.open(folder / "train.csv.gz", "rt", newline="") as file:
        rows = {row["Unnamed: 0"]: row for row in csv.DictReader(file)}
    found = objects(folder)
    stars = {o.object_id: o for o in found if isinstance(o, Observation)}
    assert len(found) == len(stars) == 2912 and stars.keys() == rows.keys()
    assert Counter(star.meta["class"] for star in stars.values()) == {"3": 1777, "2": 604, "1": 339, "4": 192}
    away = []
    for name, star in stars.items():
        assert [curve.band for curve in star.curves] == ["b", "r"]
        assert 60 < star.ra < 95 and -72 < star.dec < -64
        assert star.scalars["period"][0] == float(rows[name]["period"]) / float(rows[name]["div_period"])
        for curve in star.curves:
            assert 290 < curve.time[0] < curve.time[-1] < 1185 and np.any(curve.ivar > 0)
            away.append(abs(np.median(curve.value) - float(rows[name][f"magnitude_{curve.band}"])))
    assert np.median(away) < 0.05 and np.mean(np.array(away) < 0.5) > 0.98
    # RR Lyrae, the third type, have periods of half a day.
    assert 0.5 < np.median([s.scalars["period"][0] for s in stars.values() if s.meta["class"] == "3"]) < 0.6
