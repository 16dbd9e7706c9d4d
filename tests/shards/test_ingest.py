from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits

from hpcspec.errors import UserError
from hpcspec.shards import ingest as module
from hpcspec.shards.format import INDEX, shard_paths
from hpcspec.shards.ingest import Counts, ingest, ingest_units, plan, quarantined_rows
from hpcspec.shards.shard import Shard, describe
from hpcspec.shards.variability import with_variability
from hpcspec.simulate import simulate
from hpcspec.surveys import SURVEYS, discover, reader
from hpcspec.surveys.base import Quarantined, Source
from hpcspec.surveys.observation import Observation
from tests.making import stored, unlike
from tests.surveys.layouts import desi_spectra

SMALL = 0.1  # MiB: a few shards of the files here


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few files of each survey; tests copy them."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, {"apogee": 6, "desi": 5, "sdss": 2}, seed=3)
    light_curves(folder / "light_curves")
    return folder


def light_curves(folder: Path) -> None:
    """Tables of three objects each: identifiers of any length, some with a position, some with scalars, others with text
    where the rest has numbers, and one identifier in two of them."""
    folder.mkdir()
    for number in range(8):
        rng = np.random.default_rng(number)
        more = {"ra": [f"{40 * number + i}" for i in range(3)], "dec": ["-5.5"] * 3} if number % 2 else {}
        more |= {"period": [f"{0.5 + i}" for i in range(3)]} if number in (2, 5) else {}
        more |= {"note": [str(number) if number < 6 else f"text {number}"] * 3}
        names = [f"{'x' * number}star-{number}", "common" if number in (3, 6) else f"e #{number}", f"{number:03d}"]
        rows = [",".join(["object_id", "jd", "mag", "mag_err", "filter", *more])]
        for i, name in enumerate(names):
            for epoch in range(20 + 5 * number + i):
                measured = [f"{2455000 + epoch + rng.random():.5f}", f"{15 + rng.normal():.3f}", "0.05", "gV"[epoch % 2]]
                rows.append(",".join([name, *measured, *(values[i] for values in more.values())]))
        (folder / f"table-{number}.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def files(simulated: Path, tmp_path: Path) -> Path:
    """A folder of six APOGEE files."""
    shutil.copytree(simulated / "apogee", tmp_path / "files")
    return tmp_path / "files"


@pytest.fixture
def unit_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], float]:
    """Make units smaller by a factor: it returns what has to be given for shards of 1 MiB."""

    def smaller(factor: float) -> float:
        monkeypatch.setattr(module, "MIB", 2**20 / factor)
        return factor

    return smaller


def apogee(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.fits"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def values(path: Path) -> dict[str, tuple[str, bytes]]:
    """Everything in a shard but the fingerprint of what it was made from."""
    found: dict[str, tuple[str, bytes]] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, x: found.update({name: (str(x.dtype), x[()].tobytes())}) if hasattr(x, "dtype") else None)
        return found | {name: (name, bytes(x)) for name, x in file.attrs.items() if name != "inputs"}


def ids(folder: Path) -> list[str]:
    return [s.object_id for path in shard_paths(folder) for s, _, _ in stored(path)]


def reasons(folder: Path) -> list[tuple[str, str]]:
    return [(Path(row["path"]).name, row["reason"]) for row in quarantined_rows(folder)]


def balanced(counts: Counts, folder: Path) -> Counts:
    assert counts.rows_in == counts.objects + counts.quarantined
    assert (counts.objects, counts.quarantined) == (len(ids(folder)), len(quarantined_rows(folder)))
    assert len(set(ids(folder))) == counts.objects
    assert sorted(p.name for p in folder.glob("*.h5")) == [p.name for p in shard_paths(folder)]
    return counts


def all_read(survey: str, folder: Path) -> Iterator[tuple[Observation | Quarantined, Source, int]]:
    for source in discover(survey, folder):
        for row, item in enumerate(reader(survey).read(source)):
            yield item, source, row


@pytest.fixture
def was_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []

    def told(survey: str, source: Source) -> Iterator[Observation | Quarantined]:
        names.append(source.paths[0].name)
        return reader(survey).read(source)

    monkeypatch.setattr(module, "read", told)
    return names


@pytest.mark.parametrize("survey", ["apogee", "desi", "sdss", "light_curves"])
def test_every_object_of_the_files_is_in_the_shards_as_read(simulated: Path, tmp_path: Path, survey: str, unit_of) -> None:
    unit_of(2**10)
    counts = balanced(ingest(survey, simulated / survey, tmp_path, 2**10 * 0.005), tmp_path)
    assert len(shard_paths(tmp_path)) > 1 and not list(tmp_path.glob("units"))
    read: dict[str, tuple[Observation, str, int]] = {}
    for one, source, row in all_read(survey, simulated / survey):
        read.setdefault(one.object_id, (one, str(source.paths[0]), row))
    assert len(read) == counts.objects > 0
    for path in shard_paths(tmp_path):
        with Shard.open(path) as opened:
            paths = opened.sources()
            assert not opened.damaged() and opened.info.survey == survey
        for found, source, row in stored(path):
            wanted, its_path, its_row = read[found.object_id]
            wanted = with_variability(wanted)
            single = {n: tuple(float(np.float32(x)) for x in pair) for n, pair in wanted.scalars.items()}
            kind = {k: type(v) for k, v in found.meta.items()}
            said = {k: kind[k](v) for k, v in sorted(wanted.meta.items()) if v != ""}  # an empty value is none
            assert not unlike(replace(wanted, meta=said, scalars=single), found)
            assert (paths[source], row) == (its_path, its_row)


def test_shards_follow_one_another_on_the_sky(simulated: Path, tmp_path: Path, unit_of) -> None:
    for survey, mib in (("apogee", 0.07), ("light_curves", 0.002)):
        folder = tmp_path / survey
        ingest(survey, simulated / survey, folder, unit_of(2**10) * mib)
        infos = [describe(path) for path in shard_paths(folder)]
        assert len(infos) > 3
        places = []
        for info in infos:
            with Shard(info) as opened:
                places += list(zip(opened.column("healpix").tolist(), opened.column("id").tolist(), strict=True))
                assert len(info) and opened.info.size < 5 * mib * 2**20 + 20_000
        assert places == sorted(places)
        assert (places[0][0] == -1) == (survey == "light_curves")  # without a position, and yet there
        names = [Path(info.path).name for info in infos]
        assert names == [f"{names[0].rsplit('-', 1)[0]}-{i:05d}.h5" for i in range(len(names))]


def test_one_object_larger_than_a_shard(files: Path, tmp_path: Path) -> None:
    counts = balanced(ingest("apogee", files, tmp_path / "out", 1e-4), tmp_path / "out")
    assert counts.objects == len(shard_paths(tmp_path / "out")) == 6


@pytest.mark.parametrize(("survey", "mib"), [("apogee", 0.07), ("light_curves", 0.002)])
def test_the_shards_don_t_depend_on_the_units(simulated: Path, tmp_path: Path, survey: str, mib: float, unit_of) -> None:
    """One file a unit, some, all: the same objects in the same shards, every value the same."""
    source, outs, cuts = tmp_path / "files", [], []
    shutil.copytree(simulated / survey, source)
    first, second = [s.paths[0] for s in discover(survey, source)][:2]
    shutil.copy(first, source / f"zz{first.suffix}")
    shutil.copy(second, source / f"0{second.suffix}")
    for factor in (2**-4, 2**4, 2**9, 2**16):
        given = unit_of(factor) * mib
        cuts.append(len(plan(discover(survey, source), survey)))
        outs.append(tmp_path / f"out-{factor}")
        balanced(ingest(survey, source, outs[-1], given), outs[-1])
    assert cuts[0] == 1 and cuts[-1] == len(discover(survey, source)) and len(set(cuts)) > 2
    whole, *others = [[values(path) for path in shard_paths(out)] for out in outs]
    assert len(whole) > 2 and all(other == whole for other in others)
    whole_bad, *others_bad = [sorted(map(str, quarantined_rows(out))) for out in outs]
    assert len(whole_bad) >= 2 and all(other == whole_bad for other in others_bad)


def sparse(folder: Path, count: int) -> list[Source]:
    """Files of about 1.5 MiB that take no space."""
    folder.mkdir()
    rng = np.random.default_rng(7)
    paths = [folder / f"spec-{i:05d}.fits" for i in rng.permutation(4 * count)[:count].tolist()]
    for path, size in zip(paths, rng.integers(2**20, 2**21, count).tolist(), strict=True):
        path.touch()
        with open(path, "r+b") as file:
            file.truncate(size)
    return [Source(p.name, (p,)) for p in paths]


def test_units_follow_from_names_sizes_and_times_alone(tmp_path: Path) -> None:
    sources = sparse(tmp_path / "files", 600)
    units = plan(sources, "sdss")
    assert [s for u in units for s in u.sources] == sorted(sources)
    assert 60 < len(units) < 250 and len({u.name for u in units}) == len(units)
    assert units == plan(sources[::-1], "sdss")
    changed = sources[300].paths[0]
    changed.write_bytes(changed.read_bytes()[1:])
    assert len(set(plan(sources, "sdss")) - set(units)) in (1, 2)
    assert not {u.name for u in plan([replace(s, epochs=True) for s in sources], "sdss")} & {u.name for u in units}
    assert not {u.name for u in plan(sources, "lamost")} & {u.name for u in units}


def test_units_are_the_same_around_what_is_added_or_removed(tmp_path: Path) -> None:
    sources = sparse(tmp_path / "files", 600)
    units = set(plan(sources, "sdss"))
    others = []
    for i in range(0, 600, 7):
        fewer = set(plan(sources[:i] + sources[i + 1 :], "sdss"))
        others.append(max(len(units - fewer), len(fewer - units)))
    assert min(others) == 1 and np.mean(others) < 2 and max(others) <= 8
    batch = set(plan(sorted(sources)[:-50], "sdss"))  # a night's files, the last of all by name
    assert len(batch - units) <= 1


def test_no_unit_is_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where no hash is small."""
    monkeypatch.setattr(module.zlib, "crc32", lambda _: 2**32 - 1)
    units = plan(sparse(tmp_path / "files", 100), "sdss")
    assert len(units) > 3 and max(sum(s.paths[0].stat().st_size for s in u.sources) for u in units) < 34 * 2**20


@pytest.mark.parametrize("keep", [False, True])
def test_a_second_run_touches_nothing(files: Path, tmp_path: Path, was_read: list[str], keep: bool) -> None:
    out = tmp_path / "out"
    shutil.copy(apogee(files)[0], files / "copy.fits")
    (files / "damaged.fits").write_bytes(b"")
    first = balanced(ingest("apogee", files, out, SMALL, keep_units=keep), out)
    assert len(was_read) == 8
    before = times(out)
    assert ingest("apogee", files, out, SMALL, keep_units=keep) == first == Counts(8, 8, 6, 2)
    assert times(out) == before and len(was_read) == 8


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


@pytest.mark.parametrize("factor", [1, 2**8, 2**16])
def test_duplicates_within_and_across_units_are_quarantined_once(files: Path, tmp_path: Path, factor: float, unit_of) -> None:
    """The first by name stays, wherever it is on the sky; one that can't be used doesn't count as the first."""
    out = tmp_path / "out"
    first, second, third = apogee(files)[:3]
    for number, copied in enumerate((first, second)):
        for name in ("a", "b", "z"):
            shutil.copy(copied, files / f"{name}{number}.fits")
    shutil.copy(third, files / "0.fits")
    with fits.open(files / "0.fits", mode="update") as hdus:
        hdus[1].data[:] = np.nan
    counts = balanced(ingest("apogee", files, out, unit_of(factor) * SMALL), out)
    assert (counts.rows_in, counts.objects, counts.quarantined) == (13, 6, 7)
    assert dict(reasons(out)).pop("0.fits").startswith("no valid pixel")
    assert {name for name, reason in reasons(out) if reason == "duplicate identifier"} == {
        first.name, second.name, "b0.fits", "z0.fits", "b1.fits", "z1.fits"}  # fmt: skip
    with_path = {}
    for path in shard_paths(out):
        with Shard.open(path) as opened:
            sources = opened.sources()
        with_path |= {one.object_id: Path(sources[source]).name for one, source, _ in stored(path)}
    assert {"a0.fits", "a1.fits", third.name} < set(with_path.values())


def test_one_file_with_an_object_twice_that_came_before(simulated: Path, tmp_path: Path, unit_of) -> None:
    """Its two rows make two equal lines of quarantine, and both count."""
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    for name in ("coadd-a.fits", "coadd-b.fits"):
        shutil.copy(simulated / "desi" / "coadd-sim-0.fits", files / name)
        with fits.open(files / name, mode="update") as hdus:
            hdus["FIBERMAP"].data["TARGETID"][1] = hdus["FIBERMAP"].data["TARGETID"][0]
    counts = balanced(ingest("desi", files, out, unit_of(2**10) * SMALL), out)
    assert counts.objects == 4 and counts.sources == 2
    assert ingest("desi", files, out, 2**10 * SMALL) == counts


def test_every_epoch_is_an_object_where_that_is_asked_for(tmp_path: Path) -> None:
    source, out = tmp_path / "files", tmp_path / "out"
    source.mkdir()
    desi_spectra(source)
    assert sorted(ids_of(ingest("desi", source, out, 1), out)) == ["5", "6", "7"]
    found = ids_of(ingest("desi", source, out, 1, epochs=True), out)
    assert len(found) == 4 and {i.split("@")[0] for i in found} == {"5", "6", "7"}


def ids_of(counts: Counts, out: Path) -> list[str]:
    balanced(counts, out)
    return ids(out)


def scaled(folder: Path) -> None:
    with fits.open(apogee(folder)[3], mode="update") as hdus:
        hdus[1].data *= 2


def another(folder: Path) -> None:
    shutil.copy(apogee(folder)[0], folder / "zz.fits")
    with fits.open(folder / "zz.fits", mode="update") as hdus:
        hdus[0].header["OBJID"] = "2M-new"


def copied(folder: Path) -> None:
    shutil.copy(apogee(folder)[-1], folder / "a.fits")  # sorts first, so it takes the place of the one that is there


def gone(folder: Path) -> None:
    apogee(folder)[-1].unlink()


def damaged(folder: Path) -> None:
    apogee(folder)[0].write_text("no FITS" * 1000)


def test_after_any_change_it_is_as_if_ingested_for_the_first_time(files: Path, tmp_path: Path, unit_of) -> None:
    """With and without the units of before."""
    mib = unit_of(2**11) * SMALL
    for number, changes in enumerate(((), (scaled, another), (copied,), (damaged, gone))):
        for change in changes:
            change(files)
        fresh = ingest("apogee", files, tmp_path / f"fresh-{number}", mib)
        whole = contents(tmp_path / f"fresh-{number}")
        for keep in (False, True):
            out = tmp_path / f"out-{keep}"
            assert balanced(ingest("apogee", files, out, mib, keep_units=keep), out) == fresh
            assert {name: content for name, content in contents(out).items() if "units" not in name} == whole


def test_kept_units_are_not_read_again(files: Path, tmp_path: Path, was_read: list[str], unit_of) -> None:
    out, mib = tmp_path / "out", unit_of(2**16) * SMALL
    ingest("apogee", files, out, mib, keep_units=True)
    assert sorted(was_read) == [p.name for p in apogee(files)]
    was_read.clear()
    before = {name: at for name, at in times(out).items() if name.startswith("units")}
    assert len(before) == 12
    another(files)
    scaled(files)
    balanced(ingest("apogee", files, out, mib, keep_units=True), out)
    assert sorted(was_read) == [apogee(files)[3].name, "zz.fits"]
    after = times(out)
    assert len({name for name, at in before.items() if after.get(name) == at}) == 10  # those of the old file are gone
    assert len([name for name in after if name.startswith("units")]) == 14
    was_read.clear()
    ingest("apogee", files, out, mib / 2, "zstd", keep_units=True)  # cut otherwise, compressed
    assert was_read == [] and len(shard_paths(out)) > 3
    ingest("apogee", files, out, mib / 2, "zstd")
    assert was_read == [] and not (out / "units").exists()


@pytest.mark.parametrize("lost", [[0], [1, 2], "all"])
def test_shards_that_are_missing_are_made_again_and_nothing_else(files: Path, tmp_path: Path, lost: Sequence[int] | str) -> None:
    out = tmp_path / "out"
    counts = ingest("apogee", files, out, SMALL)
    whole, before, shards = contents(out), times(out), shard_paths(out)
    removed = shards if lost == "all" else [shards[int(i)] for i in lost]
    for path in removed:
        path.unlink()
    assert balanced(ingest("apogee", files, out, SMALL), out) == counts
    assert contents(out) == whole
    assert {p.name for p in shards if times(out)[p.name] != before[p.name]} == {p.name for p in removed}


def test_without_its_index_a_folder_is_completed(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest("apogee", files, out, SMALL)
    whole = contents(out)
    for content in (None, '{"survey": "apo'):
        (out / INDEX).unlink() if content is None else (out / INDEX).write_text(content)
        ingest("apogee", files, out, SMALL)
        assert contents(out) == whole


def test_only_the_shards_that_the_index_names_count(files: Path, tmp_path: Path) -> None:
    """What an ingest that was killed has left is no part of the data, and the next one removes it, also if all is done."""
    out = tmp_path / "out"
    ingest("apogee", files, out, SMALL)
    whole, shards = contents(out), shard_paths(out)
    stray = out / "apogee-01234567-00000.h5"
    shutil.copy(shards[0], stray)
    (out / "units").mkdir()
    shutil.copy(shards[0], out / "units/apogee-0123456789abcdef.h5")
    assert shard_paths(out) == shards
    ingest("apogee", files, out, SMALL)
    assert contents(out) == whole
    shutil.copy(shards[0], stray)
    gone(files)
    balanced(ingest("apogee", files, out, SMALL), out)
    assert not stray.exists() and not set(shards) & set(shard_paths(out))


@pytest.mark.parametrize("tasks", [3, 20])
def test_array_tasks_read_and_one_job_makes_the_shards(files: Path, tmp_path: Path, was_read, tasks: int, unit_of) -> None:
    mib = unit_of(2**16) * SMALL
    (files / "empty.fits").touch()
    another(files)
    ingest("apogee", files, tmp_path / "whole", mib)
    read = sorted(was_read)
    was_read.clear()
    for task in reversed(range(tasks)):
        ingest_units("apogee", files, tmp_path / "out", task, tasks)
    assert sorted(was_read) == read and not list((tmp_path / "out").glob("*.h5"))
    for task in range(tasks):
        ingest_units("apogee", files, tmp_path / "out", task, tasks)  # again: there is nothing to do
    ingest("apogee", files, tmp_path / "out", mib)
    assert len(was_read) == len(read)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("lost", ["*.json", "*.h5"])
def test_what_an_array_task_left_unfinished_is_read_again(files: Path, tmp_path: Path, was_read, lost: str, unit_of) -> None:
    mib = unit_of(2**16) * SMALL
    ingest("apogee", files, tmp_path / "whole", mib)
    was_read.clear()
    ingest_units("apogee", files, tmp_path / "out", 0, 1)
    for path in sorted((tmp_path / "out/units").glob(lost))[:2]:
        path.unlink()
    (tmp_path / "out/units/.apogee-0123.h5.node.17.tmp").write_bytes(b"half")
    ingest("apogee", files, tmp_path / "out", mib)
    assert len(was_read) == 6 + 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_books_that_don_t_balance_are_a_user_error(files: Path, tmp_path: Path, unit_of) -> None:
    out, mib = tmp_path / "out", unit_of(2**16) * SMALL
    ingest("apogee", files, out, mib)
    before = (out / INDEX).read_text()
    another(files)
    ingest_units("apogee", files, out, 0, 1)
    path = min((out / "units").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows_in": 2}))
    with pytest.raises(UserError, match=r"the books of .*out don't balance: .*rows_in=8, objects=7, quarantined=0.*: delete"):
        ingest("apogee", files, out, mib)
    assert (out / INDEX).read_text() == before and all(p.is_file() for p in shard_paths(out))


def test_a_damaged_unit_is_a_user_error_that_names_it(files: Path, tmp_path: Path) -> None:
    ingest_units("apogee", files, tmp_path / "out", 0, 1)
    path = min((tmp_path / "out/units").glob("*.h5"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=f"can't read shard .*{path.name}"):
        ingest("apogee", files, tmp_path / "out", SMALL)


def test_nothing_usable_asks_for_the_survey(files: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"no usable sdss object among 6 files: 6 objects quarantined.*Is --survey right\?"):
            ingest("sdss", files, tmp_path / "out", SMALL)
        assert len(quarantined_rows(tmp_path / "out")) == 6
        assert not list((tmp_path / "out").glob("*.h5")) and not (tmp_path / "out" / INDEX).exists()


@pytest.mark.parametrize("survey", SURVEYS)
def test_no_files_is_a_user_error(tmp_path: Path, survey: str) -> None:
    for folder, reason in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no")):
        with pytest.raises(UserError, match=reason):
            ingest(survey, folder, tmp_path / "out", 1)


def test_no_files_but_those_that_are_left_out(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no apogee files but those"):
        ingest("apogee", files, tmp_path / "out", 1, leave_out=lambda path: True)
    first = apogee(files)[0]
    assert ingest("apogee", files, tmp_path / "out", 1, leave_out=lambda path: path != first).objects == 1


def test_an_output_that_can_t_be_written_is_a_user_error(files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write .*file/out"):
        ingest("apogee", files, tmp_path / "file/out", SMALL)


def test_the_flux_in_the_shards_is_float32_native_order(files: Path, tmp_path: Path) -> None:
    ingest("apogee", files, tmp_path / "out", 100)
    (path,) = shard_paths(tmp_path / "out")
    for one, _, _ in stored(path):
        assert all(a.flux.dtype == np.dtype("=f4") and a.ivar.dtype == np.dtype("=f4") for a in one.arms)
