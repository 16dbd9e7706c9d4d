from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hpcspec.errors import UserError
from hpcspec.shards.format import Shard, shard_paths
from hpcspec.shards.ingest import Counts, ingest, plan, quarantined_rows
from hpcspec.simulate import simulate
from hpcspec.surveys import SURVEYS, reader
from tests.making import stored, unlike

ONE_EACH = 1e-4  # MiB: every file becomes a shard of its own


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few files of each survey; tests copy them."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, {"apogee": 6, "desi": 5, "sdss": 2}, seed=3)
    return folder


@pytest.fixture
def files(simulated: Path, tmp_path: Path) -> Path:
    """A folder of six APOGEE files."""
    shutil.copytree(simulated / "apogee", tmp_path / "files")
    return tmp_path / "files"


def apogee(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.fits"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def ids(folder: Path) -> list[str]:
    return [s.object_id for path in shard_paths(folder) for s, _, _ in stored(path)]


def reasons(folder: Path) -> list[tuple[str, str]]:
    return [(Path(row["path"]).name, row["reason"]) for row in quarantined_rows(folder)]


def balanced(counts: Counts, folder: Path) -> Counts:
    assert counts.rows_in == counts.objects + counts.quarantined
    assert (counts.objects, counts.quarantined) == (len(ids(folder)), len(quarantined_rows(folder)))
    assert len(set(ids(folder))) == counts.objects
    return counts


@pytest.mark.parametrize("survey", ["apogee", "desi", "sdss"])
def test_every_object_of_the_files_is_in_the_shards_as_read(simulated: Path, tmp_path: Path, survey: str) -> None:
    folder = simulated / survey
    balanced(ingest(survey, folder, tmp_path, ONE_EACH), tmp_path)
    read = [(item, str(source.paths[0]), row) for source in reader(survey).discover(folder)
            for row, item in enumerate(reader(survey).read(source))]  # fmt: skip
    back = [(*item, path) for path in shard_paths(tmp_path) for item in stored(path)]
    assert len(read) == len(back) > 0
    for (wanted, source, row), (found, _, row_found, path) in zip(read, back, strict=True):
        wanted = replace(wanted, meta={k: v for k, v in wanted.meta.items() if v != ""})  # an empty value is none
        assert not unlike(wanted, found) and row == row_found
        with Shard(path) as opened:
            assert opened.sources()[0] == [source]


def test_units_follow_from_names_sizes_and_times_alone(files: Path) -> None:
    sources = reader("apogee").discover(files)
    size = sum(p.stat().st_size for p in apogee(files)) / 2**20
    for mib, count in ((ONE_EACH, 6), (size / 3, 3), (10 * size, 1)):
        units = plan(sources[::-1], "apogee", mib)
        assert [u.name for u in units] == [f"apogee-{i:05d}" for i in range(count)]
        assert [s for u in units for s in u.sources] == sorted(sources)
        assert units == plan(sources, "apogee", mib)


def test_a_second_run_touches_nothing(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copy(apogee(files)[0], files / "copy.fits")
    (files / "damaged.fits").write_bytes(b"")
    first = balanced(ingest("apogee", files, out, ONE_EACH), out)
    before = times(out)
    assert ingest("apogee", files, out, ONE_EACH) == first == Counts(8, 8, 6, 2)
    assert times(out) == before


def test_what_can_t_be_used_is_quarantined_with_its_file(files: Path, simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = apogee(files)[0].read_bytes()
    (files / "cut.fits").write_bytes(whole[: len(whole) // 2])
    (files / "empty.fits").write_bytes(b"")
    (files / "text.fits").write_text("no FITS at all")
    shutil.copy(next((simulated / "sdss").glob("spec-*-0001.fits")), files / "sdss.fits")
    shutil.copy(simulated / "desi" / "coadd-sim-0.fits", files / "desi.fits")
    counts = balanced(ingest("apogee", files, out, 0.3), out)
    assert (counts.sources, counts.objects, counts.quarantined) == (11, 6, 5)
    named = dict(reasons(out))
    assert set(named) == {"cut.fits", "empty.fits", "text.fits", "sdss.fits", "desi.fits"}
    assert "not an APOGEE spectrum" in named["desi.fits"] and named["empty.fits"] == "empty file"


@pytest.mark.parametrize("mib", [ONE_EACH, 0.3, 100])
def test_duplicates_within_and_across_units_are_quarantined_once(files: Path, tmp_path: Path, mib: float) -> None:
    out = tmp_path / "out"
    for number, copied in enumerate(apogee(files)[:2]):
        for name in ("a", "b", "z"):
            shutil.copy(copied, files / f"{name}{number}.fits")
    counts = balanced(ingest("apogee", files, out, mib), out)
    assert (counts.rows_in, counts.objects, counts.quarantined) == (12, 6, 6)
    assert {reason for _, reason in reasons(out)} == {"duplicate identifier"}
    assert len({name for name, _ in reasons(out)}) == 6
    assert "a0.fits" not in dict(reasons(out))  # the first by name stays
    before = times(out)
    assert ingest("apogee", files, out, mib) == counts and times(out) == before


def test_one_file_with_an_object_twice_that_came_before(simulated: Path, tmp_path: Path) -> None:
    """Its two rows make two equal lines of quarantine, and both count."""
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    for name in ("coadd-a.fits", "coadd-b.fits"):
        shutil.copy(simulated / "desi" / "coadd-sim-0.fits", files / name)
        with fits.open(files / name, mode="update") as hdus:
            hdus["FIBERMAP"].data["TARGETID"][1] = hdus["FIBERMAP"].data["TARGETID"][0]
    counts = balanced(ingest("desi", files, out, ONE_EACH), out)
    assert counts.objects == 4 and counts.sources == 2
    assert ingest("desi", files, out, ONE_EACH) == counts


def test_an_object_given_up_for_its_copy_comes_back_when_the_copy_goes(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copy(apogee(files)[-1], files / "a.fits")  # sorts first, so its shard keeps the object and the later one gives it up
    before = balanced(ingest("apogee", files, out, ONE_EACH), out)
    assert (before.objects, before.quarantined) == (6, 1)
    old = times(out)
    (files / "a.fits").write_text("no FITS" * 1000)
    after = balanced(ingest("apogee", files, out, ONE_EACH), out)
    assert (after.objects, after.quarantined) == (6, 1) and [name for name, _ in reasons(out)] == ["a.fits"]
    changed = {Path(name).stem for name, at in times(out).items() if old[name] != at}
    assert changed == {"apogee-00000", "apogee-00006"}


@pytest.mark.parametrize("lost", [["apogee-00002.h5"], ["books/apogee-00001.json"], ["quarantine/apogee-00000.jsonl"],
                                  ["apogee-00000.h5", "apogee-00005.h5", "books/apogee-00003.json"]])  # fmt: skip
def test_what_is_missing_is_made_again_and_nothing_else(files: Path, tmp_path: Path, lost: list[str]) -> None:
    out = tmp_path / "out"
    shutil.copy(apogee(files)[2], files / "z.fits")
    counts = ingest("apogee", files, out, ONE_EACH)
    whole, before = contents(out), times(out)
    for name in lost:
        (out / name).unlink()
    assert balanced(ingest("apogee", files, out, ONE_EACH), out) == counts
    assert contents(out) == whole
    redone = {Path(name).stem for name in lost}
    changed = {Path(name).stem for name, at in times(out).items() if at != before[name]}
    assert changed == redone


def test_changed_input_redoes_only_what_changed(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest("apogee", files, out, ONE_EACH)
    before = times(out)
    with fits.open(apogee(files)[3], mode="update") as hdus:
        hdus[1].data *= 2
    shutil.copy(apogee(files)[0], files / "zz.fits")
    with fits.open(files / "zz.fits", mode="update") as hdus:
        hdus[0].header["OBJID"] = "2M-new"
    assert balanced(ingest("apogee", files, out, ONE_EACH), out).objects == 7
    changed = {Path(name).stem for name, at in times(out).items() if before.get(name) != at}
    assert changed == {"apogee-00003", "apogee-00006"}


def test_shards_of_files_that_are_gone_are_removed(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest("apogee", files, out, ONE_EACH)
    apogee(files)[-1].unlink()
    assert balanced(ingest("apogee", files, out, ONE_EACH), out).objects == 5
    assert sorted(contents(out)) == sorted(f for i in range(5) for f in (
        f"apogee-{i:05d}.h5", f"books/apogee-{i:05d}.json", f"quarantine/apogee-{i:05d}.jsonl"))  # fmt: skip


def test_books_that_don_t_balance_are_a_user_error(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest("apogee", files, out, ONE_EACH)
    books = json.loads((out / "books/apogee-00001.json").read_text())
    (out / "books/apogee-00001.json").write_text(json.dumps(books | {"rows_in": 2}))
    with pytest.raises(UserError, match="apogee-00001.h5 don't balance: 2 rows in, 1 objects, 0 quarantined"):
        ingest("apogee", files, out, ONE_EACH)


def test_nothing_usable_asks_for_the_survey(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable sdss spectrum among 6 files: 6 objects quarantined.*Is --survey right\?"):
        ingest("sdss", files, tmp_path / "out", ONE_EACH)


@pytest.mark.parametrize("survey", SURVEYS)
def test_no_files_is_a_user_error(tmp_path: Path, survey: str) -> None:
    for folder, reason in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no")):
        with pytest.raises(UserError, match=reason):
            ingest(survey, folder, tmp_path / "out", 1)


def test_the_flux_in_the_shards_is_float32_native_order(files: Path, tmp_path: Path) -> None:
    ingest("apogee", files, tmp_path / "out", 100)
    for one, _, _ in stored(tmp_path / "out" / "apogee-00000.h5"):
        assert all(a.flux.dtype == np.dtype("=f4") and a.ivar.dtype == np.dtype("=f4") for a in one.arms)
