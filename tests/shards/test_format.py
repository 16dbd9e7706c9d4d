from __future__ import annotations

import ctypes.util
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcspec.errors import UserError
from hpcspec.shards import format as module
from hpcspec.shards.format import FILTERS, shard_paths, write_shard
from hpcspec.shards.objects import COLUMNS, Objects, canonical, collect, healpix29, joined
from hpcspec.shards.shard import BLOCK_COLUMNS, STREAMED, Shard, describe
from hpcspec.surveys.base import FLAM
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Arm, Curve, Observation, make_curve
from tests.cluster.conftest import H5PY_MPI, unavailable
from tests.making import GRIDS, INPUTS, make, shard, spectrum, stored, unlike

ROOT = Path(__file__).parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
METAS = st.fixed_dictionaries({"survey_key": st.integers(-(2**63), 2**63 - 1), "name": TEXT}, optional={
    "z": st.floats(allow_nan=False), "note": TEXT, "B/V%2F": st.floats(0, 1), ".": TEXT, "Größe": TEXT})  # fmt: skip
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ERRORS = st.just(float("nan")) | st.floats(2**-20, 8, width=32)
SCALARS = st.fixed_dictionaries({}, optional=dict.fromkeys(("bp_rp", "parallax", "teff"), st.tuples(FLOAT32, ERRORS)))



def light_curve(band: str, epochs: int, seed: Sequence[int] = (0,), **how: str) -> Curve:
    """A sine with noise at irregular times, one epoch in ten bad, two at the same time."""
    rng = np.random.default_rng(list(seed))
    time = 2_455_000 + np.sort(rng.uniform(0, 1000, epochs))
    time[1:2] = time[:1]
    value = 15 + np.sin(time / 0.7) + rng.normal(0, 0.1, epochs)
    return make_curve(band, time, value, rng.uniform(0.01, 0.2, epochs), rng.random(epochs) < 0.1, **how)


def in_order(values: Mapping[str, object]) -> dict[str, object]:
    """By name, as they come out of a shard."""
    return dict(sorted(values.items()))


@st.composite
def observations(draw: st.DrawFn) -> list[Observation]:
    """A few objects of every kind: spectra, light curves, scalars, all of them; anywhere, nowhere or roughly there."""
    out = []
    for i in range(draw(st.integers(0, 5))):
        arms = [make(draw(st.sampled_from(list(GRIDS))), draw(st.integers(1, 40)), (i, j), draw(st.sampled_from("brz")))
                for j in range(draw(st.integers(0, 3)))]  # fmt: skip
        curves = [light_curve(draw(st.sampled_from("gVI")), draw(st.integers(0, 30)), (i, j), unit=unit, scale=scale)
                  for j in range(draw(st.integers(0, 3)))
                  for unit, scale in [draw(st.sampled_from([("mag", "hjd"), ("mJy", "bjd_tdb")]))]]  # fmt: skip
        units = st.sampled_from([(FLAM, "observed"), ("relative", "rest"), (FLAM, "rest")])
        unit, frame = draw(units) if arms else ("", "observed")
        where = draw(st.sampled_from(["object", "field", "none"]))
        nowhere = {"ra": float("nan"), "dec": float("nan")} if where == "none" else {}
        meta = draw(METAS) | ({} if where == "object" else {"position": where})
        out.append(spectrum(i, object_id=draw(TEXT), arms=tuple(arms), curves=tuple(curves), flux_unit=unit, frame=frame,
                            scalars=in_order(draw(SCALARS)), meta=in_order(meta), **nowhere))  # fmt: skip
    return out


def various(count: int) -> list[Observation]:
    """Objects of every kind, always the same ones."""
    ones = [spectrum(i, list(GRIDS)[: i % 6], pixels=20 + 7 * i, meta={"number": i}) for i in range(count)]
    curves = [tuple(light_curve(b, 12 + i, (i, ord(b))) for b in "gVI"[: i % 4]) for i in range(count)]
    scalars = {"bp_rp": (0.5, float("nan")), "teff": (4000.5, 10.0)}
    return [replace(one, curves=curves[i], scalars=scalars if i % 3 else {}, flux_unit=one.flux_unit if one.arms else "")
            for i, one in enumerate(ones)]  # fmt: skip


def bits(objects: Objects, without: Sequence[str] = ()) -> dict[str, object]:
    """Everything in a set of objects, to the last bit."""
    out: dict[str, object] = {}
    for name, value in ((f.name, getattr(objects, f.name)) for f in fields(objects) if f.name not in without):
        for k, v in value.items() if isinstance(value, dict) else [("", value)]:
            out[f"{name} {k}"] = (v.dtype.str, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v
    return out


def differing(a: Objects, b: Objects, without: Sequence[str] = ()) -> set[str]:
    x, y = bits(a, without), bits(b, without)
    return {name for name in {*x, *y} if x.get(name) != y.get(name)}


def collected(ones: Sequence[Observation]) -> Objects:
    """As `tests.making.shard` writes them."""
    return collect([(one, i % 2, i // 2) for i, one in enumerate(ones)], ["a.fits", "b.fits"])


@settings(max_examples=30, deadline=None)
@given(ones=observations(), compression=st.sampled_from(list(FILTERS)))
def test_whatever_is_written_comes_back_bit_for_bit(ones: list[Observation], compression: str, tmp_path_factory) -> None:
    path = shard(tmp_path_factory.mktemp("shard") / "sdss-00000.h5", ones, compression)
    back = stored(path)
    assert [(source, row) for _, source, row in back] == [(i % 2, i // 2) for i in range(len(ones))]
    assert [unlike(a, b) for a, (b, _, _) in zip(ones, back, strict=True)] == [[] for _ in ones]
    with Shard.open(path) as opened:
        assert not opened.damaged()
        assert opened.sources() == ("a.fits", "b.fits") and opened.inputs == INPUTS
        assert opened.info == describe(path)
        found = {name: opened.column(name) for name in COLUMNS}
        ra, dec = found["ra"], found["dec"]
        np.testing.assert_array_equal(found["healpix"], healpix29(ra, dec))
        np.testing.assert_array_equal(found["healpix"] == -1, np.isnan(ra))
        np.testing.assert_array_equal(found["approximate"] > 0, ["position" in one.meta for one in ones])
        for name in ("sn_median", "amplitude"):
            np.testing.assert_array_equal(found[name], np.array([getattr(one, name) for one in ones], np.float32))
        assert not differing(replace(opened.objects(), meta=None), replace(collected(ones), meta=None))


@pytest.fixture(scope="module", params=FILTERS)
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(tmp_path_factory.mktemp("mixed") / f"{request.param}.h5", various(12), request.param)


NUMBERING = ("grid", "axes", "listed")  # a part has the grids that it uses


def grids_of(objects: Objects) -> list[Grid | None]:
    """The grid of every segment."""
    return [objects.grid_of(g) if g >= 0 else None for g in objects.grid.tolist()]


@settings(max_examples=30, deadline=None)
@given(ends=st.tuples(st.integers(0, 12), st.integers(0, 12)), columns=st.sets(st.sampled_from(list(COLUMNS))),
       table=st.booleans(), cuts=st.lists(st.floats(0, 1), max_size=4))  # fmt: skip
def test_a_part_is_read_as_it_is_in_the_whole(mixed: Path, ends, columns: set[str], table: bool, cuts: list[float]) -> None:
    """By plain reads, with and without the columns kept, and by HDF5; the samples at once or into several places."""
    start, stop = sorted(ends)
    whole = collected(various(12))
    part = whole.take(np.arange(start, stop))
    wanted = replace(part, columns={n: part.columns[n] for n in columns}, sources=(), meta=None)
    info = describe(mixed)
    for known in (info, replace(info, offsets=(-1,) * len(STREAMED))):
        with Shard(known) as opened:
            if table:
                opened.keep_table(1 << 22)
            read, bare = (opened.read(start, stop, tuple(columns), samples=full) for full in (True, False))
            assert not differing(read, wanted, NUMBERING) and grids_of(read) == grids_of(wanted) == grids_of(bare)
            assert not differing(bare, wanted, ("samples", "pixels", *NUMBERING)) and bare.samples.shape == (2, 0)
            np.testing.assert_array_equal(bare.pixels, part.pixels + whole.pixels[whole.segments[start]])
            first, last = int(bare.pixels[0]), int(bare.pixels[-1])
            edges = [0, *sorted(int(c * (last - first)) for c in cuts), last - first]
            places = [np.empty((2, b - a), np.float32) for a, b in zip(edges, edges[1:], strict=False)]
            opened.fill(first, last, *zip(*places, strict=True))
            assert np.concatenate(places, axis=1).tobytes() == part.samples.tobytes()


def test_more_places_than_one_read_can_fill(tmp_path: Path) -> None:
    one = spectrum(pixels=3 * os.sysconf("SC_IOV_MAX") + 7)
    with Shard.open(shard(tmp_path / "sdss-00000.h5", [spectrum(1), one])) as opened:
        begin, places = 120, [np.empty((2, 1), np.float32) for _ in range(len(one.arms[0].flux))]
        opened.fill(begin, begin + len(places), *zip(*places, strict=True))
        assert np.concatenate(places, axis=1).tobytes() == np.stack([one.arms[0].flux, one.arms[0].ivar]).tobytes()


RANK = """
import pickle, sys
from pathlib import Path
import mpi4py.MPI
from hpcspec.shards.objects import COLUMNS
from hpcspec.shards.shard import Shard
from hpcspec.stream.index import open_index
comm = mpi4py.MPI.COMM_WORLD
for info in open_index(sys.argv[2:], comm).shards:
    with Shard(info, comm) as opened:
        assert opened.mpio and opened.file.driver == "mpio"
        opened.keep_table(1 << 22)
        if comm.rank:
            opened.read(0, 3)  # the reads of a rank are its own: no other has to take part
        Path(sys.argv[1], f"{comm.rank}-{Path(info.path).stem}").write_bytes(pickle.dumps(opened.read(2, 9, tuple(COLUMNS))))
"""


def test_mpi_io_reads_the_same_bytes(tmp_path: Path) -> None:
    if not (mpirun := shutil.which("mpirun")):
        unavailable("mpirun is not installed")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(H5PY_MPI), str(ROOT)])}
    if library := ctypes.util.find_library("mpi"):
        env["MPI4PY_LIBMPI"] = library  # the machine's MPI, as in HDF5
    check = "import mpi4py.MPI, h5py; assert h5py.get_config().mpi, 'this h5py has no MPI'"
    if (done := subprocess.run([sys.executable, "-c", check], env=env, capture_output=True, text=True)).returncode:
        unavailable(f"no parallel h5py in {H5PY_MPI}: {done.stderr.strip().splitlines()[-1]}")
    paths = [shard(tmp_path / f"{name}.h5", various(12), name) for name in FILTERS]
    command = [mpirun, "-n", "2", "--oversubscribe", "--allow-run-as-root", sys.executable, "-c", RANK, tmp_path, *paths]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for path in paths:
        with Shard.open(path) as opened:
            wanted = opened.read(2, 9, tuple(COLUMNS))
        for rank in range(2):
            assert not differing(pickle.loads((tmp_path / f"{rank}-{path.stem}").read_bytes()), wanted)


@settings(max_examples=30, deadline=None)
@given(ones=observations(), data=st.data())
def test_objects_taken_in_any_order_are_the_same_objects(ones: list[Observation], data: st.DataObject) -> None:
    order = data.draw(st.lists(st.integers(0, len(ones) - 1)) if ones else st.just([]))
    taken = collected(ones).take(np.array(order, int))
    found = [replace(one, survey="sdss") for one in taken]
    assert [unlike(ones[i], one) for i, one in zip(order, found, strict=True)] == [[] for _ in order]
    number = np.argsort(data.draw(st.permutations(range(len(order)))), kind="stable") if order else np.zeros(0, int)
    assert not differing(taken.take(number).take(np.argsort(number)), taken)


@settings(max_examples=30, deadline=None)
@given(ones=observations(), data=st.data())
def test_the_bytes_don_t_depend_on_how_the_objects_were_cut(ones: list[Observation], data, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    order = np.array(data.draw(st.permutations(range(len(ones)))), int)
    rows = [(one, i % 2, i // 2) for i, one in enumerate(ones)]

    def written(edges: Sequence[int]) -> bytes:
        files = ["a.fits", "b.fits", "without an object.fits"]
        parts = [collect(rows[a:b], files) for a, b in zip(edges, edges[1:], strict=False)]
        write_shard(folder / "some.h5", canonical(joined(parts).take(order)), "sdss", INPUTS)
        return (folder / "some.h5").read_bytes()

    edges = sorted(data.draw(st.lists(st.integers(0, len(ones)), max_size=3)))
    assert written([0, *edges, len(ones)]) == written([0, len(ones)])
    found = [replace(one, survey="sdss", meta={}) for one, _, _ in stored(folder / "some.h5")]
    assert [unlike(replace(ones[i], meta={}), one) for i, one in zip(order, found, strict=True)] == [[] for _ in ones]
    direct = canonical(collect([rows[i] for i in order], ["a.fits", "b.fits"]))
    assert not differing(canonical(joined([collect(rows, ["a.fits", "b.fits"])]).take(order)), replace(direct, meta=None))


def test_the_shard_is_compressed_only_where_it_says_so(tmp_path: Path) -> None:
    flat = spectrum(arms=(Arm("b", *GRIDS["log10"], np.ones(50_000, "f4"), np.ones(50_000, "f4")),))
    sizes = {c: shard(tmp_path / f"{c}.h5", [flat], c).stat().st_size for c in FILTERS}
    assert sizes["none"] > 400_000 and sizes["blosc"] < 100_000 and sizes["zstd"] < 100_000
    for name in FILTERS:
        info = describe(tmp_path / f"{name}.h5")
        placed = {n for n, offset in zip(STREAMED, info.offsets, strict=True) if offset >= 0}
        assert ({"sample/value", "sample/ivar"} <= placed) == (name == "none") and "object/id" in placed


def test_a_shared_wavelength_grid_is_stored_once(tmp_path: Path) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum(i, list(GRIDS)) for i in range(5)])
    with Shard.open(path) as opened:
        assert opened.info.grids == len(GRIDS)
        assert opened.file["grid/values"].shape == (len(GRIDS["table"][0].values),)


def test_64_bit_identifiers_stay_exact(tmp_path: Path) -> None:
    """2⁵³+1 is the first integer that a float can't hold; missing in one object, it must not become one either."""
    big = 2**53 + 1
    metas = [{"targetid": big, "partial": big, "unsigned": 2**64 - 1}, {"targetid": -big, "unsigned": 3}]
    ones = [spectrum(i, object_id=str(big + i), meta=m) for i, m in enumerate(metas)]
    (first, *_), (second, *_) = stored(shard(tmp_path / "sdss-00000.h5", ones))
    assert first.object_id == "9007199254740993" and second.object_id == "9007199254740994"
    assert first.meta["targetid"] == big and second.meta["targetid"] == -big
    assert int(first.meta["partial"]) == big and "partial" not in second.meta
    assert [int(s.meta["unsigned"]) for s in (first, second)] == [2**64 - 1, 3]


def test_numbers_that_some_objects_lack_stay_numbers(tmp_path: Path) -> None:
    metas = [{"fiber": 3, "z": 1, "kind": 5}, {"z": 0.5, "kind": "STAR"}, {}]
    path = shard(tmp_path / "sdss-00000.h5", [spectrum(i, meta=m) for i, m in enumerate(metas)])
    assert [one.meta for one, _, _ in stored(path)] == [{"fiber": 3, "z": 1, "kind": "5"}, {"z": 0.5, "kind": "STAR"}, {}]


def documented() -> dict[str, tuple[str, str]]:
    """The data sets that the module's docstring names, with their shapes and types where it says them."""
    layout = module.__doc__.split("attributes     format")[1].split("attributes `crc32`")[0]
    found = {}
    for group, text in re.findall(r"^    (\w+)/  +(.+(?:\n {8}.+)*)", layout, re.MULTILINE):
        text = re.sub(r"\s+", " ", text)
        kinds = {n: (shape, kind) for names, shape, kind in re.findall(r"((?:\w+, )*\w+) \(([\w+, ]+)\) (text|[fi]\d)", text)
                 for n in names.split(", ")}  # fmt: skip
        for said in re.sub(r"\([^()]*\)", "", text).split(","):
            name = re.match(r"\w+", said.strip())[0]
            found[f"{group}/{name}"] = kinds.get(name, ("", ""))
    return found | dict.fromkeys(re.findall(r"^    (\w+/\w+), meta/<name>", layout, re.MULTILINE), ("", "text"))


@pytest.mark.parametrize("count", [0, 12])
def test_the_schema_is_the_documented_one(tmp_path: Path, count: int) -> None:
    path = shard(tmp_path / "sdss-00000.h5", various(count))
    info = describe(path)
    sizes = {"n": info.objects, "s": info.segments, "v": info.samples, "t": info.times, "k": len(info.scalar_names),
             "g": info.grids}  # fmt: skip
    said, there = documented(), dict[str, h5py.Dataset]()
    with h5py.File(path) as file:
        file.visititems(lambda name, x: there.update({name: x}) if isinstance(x, h5py.Dataset) else None)
        assert {name for name in there if not name.startswith("meta/")} == set(said) >= set(STREAMED)
        for name, (shape, kind) in said.items():
            text = h5py.check_string_dtype(there[name].dtype)
            assert (text is not None) == (kind == "text") or not kind
            assert text is None or (text.encoding, text.length) == ("utf-8", there[name].dtype.itemsize)
            assert kind in ("", "text") or there[name].dtype == np.dtype(f"<{kind}"), name
            if shape:
                assert there[name].shape == tuple(eval(x, {}, sizes) for x in shape.split(", ")), name  # noqa: S307
            assert "crc32" in there[name].attrs
        named = re.findall(r"^    attributes     (.+) \(", module.__doc__, re.MULTILINE)[0].split(", ")
        assert set(file.attrs) == {*named, "in_place"}
        assert all(there[n].dtype == np.dtype(kind) for n, kind in STREAMED.items() if kind != "S")


WRITE = """
from pathlib import Path
from tests.making import shard
from tests.shards.test_format import various
shard(Path({path!r}), various(6))
"""


def test_the_same_objects_give_the_same_bytes(tmp_path: Path) -> None:
    """Later too, and in another process."""
    first = [shard(tmp_path / f"{c}.h5", various(6), c).read_bytes() for c in FILTERS]
    code, env = WRITE.format(path=str(tmp_path / "there.h5")), {**os.environ, "PYTHONHASHSEED": "77"}
    time.sleep(1.05)  # HDF5's time stamps count seconds
    assert [shard(tmp_path / f"{c}-again.h5", various(6), c).read_bytes() for c in FILTERS] == first
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)
    assert (tmp_path / "there.h5").read_bytes() == first[list(FILTERS).index("none")]


def test_another_schema_version_says_what_to_do(tmp_path: Path) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum()])
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 1
    with pytest.raises(UserError, match="schema version 1, this program reads 2: ingest again"):
        describe(path)


def test_a_shard_that_was_changed_since_it_was_described(tmp_path: Path) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum()])
    info = describe(path)
    shard(path, [spectrum(), spectrum(1)])
    with pytest.raises(UserError, match=f"has {path.stat().st_size} bytes, it had {info.size}: it was changed"):
        Shard(info)
    path.unlink()
    with pytest.raises(UserError, match="can't read shard .*sdss-00000.h5: No such file"):
        Shard(info)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_a_shard_that_is_cut_short(tmp_path: Path, share: float, table: bool) -> None:
    """Found when it is opened, and, if that came before, when it is read."""
    path = shard(tmp_path / "sdss-00000.h5", various(12))
    info = describe(path)
    with Shard(info) as opened:
        os.truncate(path, int(info.size * share))
        if table:
            opened.keep_table(1 << 22)
        with pytest.raises(UserError, match="sdss-00000.h5.* cut short|sdss-00000.h5.* out of bounds"):
            opened.read(0, 12, tuple(COLUMNS))
    for open_again in (lambda: Shard(info), lambda: Shard.open(path), lambda: describe(path)):
        with pytest.raises(UserError, match="sdss-00000.h5"):
            open_again()


@settings(max_examples=100, deadline=None)
@example(name="segment/grid", place=0.875, value=-2, table=False)
@given(name=st.sampled_from(["object/segments", "segment/pixels", "segment/first", "segment/grid"]), place=st.floats(0, 1),
       value=st.integers(-(2**31), 2**31 - 1) | st.integers(-(2**63), 2**63 - 1), table=st.booleans())  # fmt: skip
def test_damaged_offsets_are_told_or_harmless(name: str, place: float, value: int, table: bool, tmp_path_factory) -> None:
    """No read beyond the arrays, no endless one, no other error."""
    path = shard(tmp_path_factory.mktemp("damaged") / "sdss-00000.h5", various(6))
    info = describe(path)
    width = np.dtype(STREAMED[name]).itemsize
    count = {"object/segments": info.objects + 1, "segment/pixels": info.segments + 1}.get(name, info.segments)
    with open(path, "r+b") as file:
        file.seek(info.offsets[list(STREAMED).index(name)] + width * int(place * (count - 1)))
        file.write((value % 2 ** (8 * width)).to_bytes(width, "little"))
    with Shard(info) as opened:
        if table:
            opened.keep_table(1 << 22)
        for start, stop in ((0, 6), (0, 3), (2, 5)):
            try:
                read = opened.read(start, stop)
            except UserError as error:
                assert "damaged" in str(error) or "can't read" in str(error)
            else:
                assert len(read) == stop - start and read.samples.shape[1] <= info.samples and len(read.time) <= info.times
                lengths = np.diff(read.pixels)
                assert (np.diff(read.segments) >= 0).all() and (lengths >= 0).all()
                assert [len(read.wavelength(s)) for s in range(len(lengths))] == lengths.tolist()


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["flux"] = np.ones(3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def words(path: Path) -> None:
    path.write_text("no HDF5")


def nothing(path: Path) -> None:
    pass


def incomplete(path: Path) -> None:
    shard(path, [spectrum()])
    with h5py.File(path, "r+") as file:
        del file["segment/first"]


@pytest.mark.parametrize("content", [foreign, empty, words, nothing, incomplete, Path.mkdir])
def test_what_is_no_shard_is_a_user_error_that_names_it(tmp_path: Path, content) -> None:
    content(tmp_path / "sdss-00000.h5")
    for open_ in (Shard.open, describe):
        with pytest.raises(UserError, match="sdss-00000.h5"):
            open_(tmp_path / "sdss-00000.h5")


def test_a_failed_write_leaves_the_old_shard_and_no_other_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum(1)])
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_shard(path, replace(collected([spectrum(2)]), samples=np.zeros((3, 120), np.float32)), "sdss", INPUTS)
    assert path.read_bytes() == before
    assert shard_paths(tmp_path) == [path] and [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]


FULL = """
import resource, sys
from pathlib import Path
from hpcspec.errors import UserError
from tests.making import shard, spectrum
folder, hard = Path(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in (0, 300, 3000, 20_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        shard(folder / "sdss-00000.h5", [spectrum(i, pixels=500) for i in range(30)])
    except UserError as error:
        assert "can't write" in str(error) and "File too large" in str(error), error
    else:
        sys.exit("that was written?")
    assert list(folder.iterdir()) == []
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
shard(folder / "sdss-00000.h5", [spectrum()])
"""


def test_a_full_disk_is_a_user_error_and_leaves_nothing(tmp_path: Path) -> None:
    """Whether it is full from the start or only for the last bytes; HDF5 by itself would crash."""
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [p.name for p in tmp_path.iterdir()] == ["sdss-00000.h5"]


def test_an_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write .*file/sdss-00000.h5"):
        shard(tmp_path / "file" / "sdss-00000.h5", [spectrum()])


def test_open_shards_are_closed_when_nobody_has_them(tmp_path: Path) -> None:
    info = describe(shard(tmp_path / "sdss-00000.h5", [spectrum()]))

    def handles() -> Iterator[str]:
        return (os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.is_symlink())

    opened = Shard(info)
    assert list(handles()).count(info.path) == 1
    opened.read(0, 1, BLOCK_COLUMNS)
    del opened
    assert info.path not in handles()
