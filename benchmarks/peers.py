"""Other ways to read the same spectra in random order, each in a process of its own: a program for `processes.Measuring`.

    peers.py prepare NAME FOLDER    writes the spectra as this peer wants them, unless they are there
    peers.py read NAME FOLDER       one shuffled epoch in the page cache, from opening to the last spectrum

What counts is what the stream gives too: the samples of a batch of spectra copied into one array each for flux and ivar (and
wavelength and mask, where they are asked for), not views of a file that nobody has read.

FOLDER holds the shards (*.h5) and `flat/` (see `survey_mix.write_flat`). Nothing of hpcspec is used, so that a peer can have an
environment of its own. A peer that is not installed answers with {"skipped": reason}.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from processes import serve

Joined = tuple[int, list[Any]]  # how many spectra, and their samples: flux, ivar, … (v,), arrays or tensors
Epoch = Callable[[], Iterator[Joined]]
BATCH, SEED, ROWS = 32, 1, 1000
WORKERS = min(4, os.cpu_count() or 1)


def flat(folder: Path) -> tuple[np.ndarray, ...]:
    """flux, ivar, wavelength (v,) f4, memory-mapped, and offsets (n+1,) of the objects in them."""
    return tuple(np.load(folder / "flat" / f"{name}.npy", mmap_mode="r") for name in ("flux", "ivar", "wavelength", "offsets"))


def write_hf(folder: Path, to: Path) -> None:
    """Arrow on disk: flux, ivar, wavelength lists of float32, mask lists of bool."""
    import pyarrow as pa
    from datasets import Dataset

    flux, ivar, wavelength, offsets = flat(folder)
    for start in range(0, len(offsets) - 1, ROWS):
        ends = offsets[start : start + ROWS + 1]
        at = slice(int(ends[0]), int(ends[-1]))
        columns = {"flux": flux[at], "ivar": ivar[at], "wavelength": wavelength[at], "mask": ivar[at] == 0}
        places = pa.array((ends - ends[0]).astype(np.int32))
        table = pa.table({k: pa.ListArray.from_arrays(places, pa.array(np.asarray(v))) for k, v in columns.items()})
        Dataset(table).save_to_disk(to / f"{start:08d}")


def hf(data: Path) -> Any:
    """The whole of it, memory-mapped."""
    from datasets import concatenate_datasets, load_from_disk

    return concatenate_datasets([load_from_disk(part) for part in sorted(data.iterdir())])


def read_hf(folder: Path, data: Path, columns: tuple[str, ...] = ("flux", "ivar", "wavelength", "mask")) -> Epoch:
    """Batches of 32 as numpy from a shuffled data set."""

    def epoch() -> Iterator[Joined]:
        shuffled = hf(data).select_columns(list(columns)).shuffle(seed=SEED).with_format("numpy")
        for batch in shuffled.iter(batch_size=BATCH):
            yield len(batch["flux"]), [np.concatenate(list(batch[name])) for name in columns]

    return epoch


def read_hf_iterable(folder: Path, data: Path) -> Epoch:
    """The four columns from an iterable data set, its shards and a buffer of a thousand spectra shuffled."""
    names = ("flux", "ivar", "wavelength", "mask")

    def epoch() -> Iterator[Joined]:
        whole = hf(data).to_iterable_dataset(num_shards=64)
        for batch in whole.shuffle(seed=SEED, buffer_size=1000).with_format("numpy").iter(batch_size=BATCH):
            yield len(batch["flux"]), [np.concatenate(list(batch[name])) for name in names]

    return epoch


def read_hf_two(folder: Path, data: Path) -> Epoch:
    """The same with flux and ivar alone."""
    return read_hf(folder, data, ("flux", "ivar"))


def read_h5py(folder: Path, data: Path) -> Epoch:
    """Each object alone, from the open shards, in random order; where an object lies is known beforehand."""
    import h5py

    def each() -> Iterator[dict[str, np.ndarray]]:
        places: list[tuple[int, int, int]] = []
        sets: list[tuple[Any, Any]] = []
        for path in sorted(folder.glob("*.h5")):
            file = h5py.File(path, "r", locking=False)
            ends = file["segment/pixels"][()][file["object/segments"][()]].tolist()
            places += [(len(sets), a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
            sets.append((file["sample/value"], file["sample/ivar"]))
        for i in np.random.default_rng(SEED).permutation(len(places)).tolist():
            of, a, b = places[i]
            yield {"flux": sets[of][0][a:b], "ivar": sets[of][1][a:b]}

    return lambda: batches(each())


def write_padded(folder: Path, to: Path) -> None:
    """HDF5 as the Multimodal Universe has it: flux, ivar, wavelength and mask as arrays with a row for each object, padded to
    the longest of the thousand that are next to each other."""
    import h5py

    flux, ivar, wavelength, offsets = flat(folder)
    to.mkdir()
    for start in range(0, len(offsets) - 1, ROWS):
        ends = offsets[start : start + ROWS + 1].tolist()
        shape = len(ends) - 1, max(np.diff(ends))
        columns = {"flux": np.zeros(shape, np.float32), "ivar": np.zeros(shape, np.float32),
                   "wavelength": np.full(shape, -1, np.float32), "mask": np.ones(shape, bool)}  # fmt: skip
        for row, (a, b) in enumerate(itertools.pairwise(ends)):
            columns["flux"][row, : b - a], columns["ivar"][row, : b - a] = flux[a:b], ivar[a:b]
            columns["wavelength"][row, : b - a], columns["mask"][row, : b - a] = wavelength[a:b], ivar[a:b] == 0
        with h5py.File(to / f"{start:08d}.hdf5", "w") as file:
            for name, values in {**columns, "length": np.diff(ends)}.items():
                file.create_dataset(name, data=values)


def read_padded(folder: Path, data: Path) -> Epoch:
    """Each object alone, flux, ivar, wavelength and mask, in random order."""
    import h5py

    names = ("flux", "ivar", "wavelength", "mask")

    def epoch() -> Iterator[Joined]:
        files = [h5py.File(path, "r", locking=False) for path in sorted(data.glob("*.hdf5"))]
        columns = [[file[name] for name in names] for file in files]
        places = [(f, row, n) for f, file in enumerate(files) for row, n in enumerate(file["length"][()].tolist())]
        order = iter(np.random.default_rng(SEED).permutation(len(places)).tolist())
        while some := [places[i] for i in itertools.islice(order, BATCH)]:
            ones = [[column[row, :n] for column in columns[f]] for f, row, n in some]
            yield len(some), [np.concatenate(values) for values in zip(*ones, strict=True)]

    return epoch


def write_mosaic(folder: Path, to: Path) -> None:
    """MDS shards with flux and ivar."""
    from streaming import MDSWriter

    flux, ivar, _, offsets = flat(folder)
    with MDSWriter(out=str(to), columns={"flux": "ndarray:float32", "ivar": "ndarray:float32"}, size_limit=1 << 27) as out:
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            out.write({"flux": np.array(flux[a:b]), "ivar": np.array(ivar[a:b])})


def read_mosaic(folder: Path, data: Path, workers: int = 0) -> Epoch:
    """One object after another from the local, shuffled MDS; or batches of 32 through workers."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()

    def epoch() -> Iterator[Joined]:
        of = StreamingDataset(local=str(data), shuffle=True, shuffle_seed=SEED, batch_size=BATCH)
        if workers:
            return iter(DataLoader(of, batch_size=BATCH, num_workers=workers, collate_fn=tensors))
        return batches(of)

    return epoch


def read_mosaic_workers(folder: Path, data: Path) -> Epoch:
    """The same with the workers of a DataLoader."""
    return read_mosaic(folder, data, WORKERS)


def joined(ones: Sequence[Mapping[str, np.ndarray]]) -> Joined:
    """How many spectra, and flux and ivar of all of them, one after another."""
    return len(ones), [np.concatenate([one[name] for one in ones]) for name in ("flux", "ivar")]


def tensors(ones: Sequence[Mapping[str, np.ndarray]]) -> Joined:
    """The same as tensors, which a worker hands over through shared memory."""
    import torch

    count, arrays = joined(ones)
    return count, [torch.from_numpy(array) for array in arrays]


def batches(ones: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Joined]:
    """Spectra that come one by one, joined by 32."""
    source = iter(ones)
    while some := list(itertools.islice(source, BATCH)):
        yield joined(some)


class Mapped:
    """A map-style data set over memory-mapped arrays."""

    def __init__(self, folder: Path):
        self.flux, self.ivar, _, self.offsets = flat(folder)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        a, b = self.offsets[i : i + 2]
        return {"flux": self.flux[a:b], "ivar": self.ivar[a:b]}


def read_dataloader(folder: Path, _: Path) -> Epoch:
    """Batches of 32 from torch's DataLoader over memory-mapped arrays, shuffled, with workers."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    data: Any = Mapped(folder)

    def epoch() -> Iterator[Joined]:
        order = torch.Generator().manual_seed(SEED)
        return iter(DataLoader(data, BATCH, shuffle=True, generator=order, num_workers=WORKERS, collate_fn=tensors))

    return epoch


# How each reads, how it is written (None: what is there already is read), and where.
PEERS: dict[str, tuple[Callable[..., Any], Callable[[Path, Path], None] | None, str]] = {
    "hf_datasets": (read_hf, write_hf, "hf"),
    "hf_datasets_two": (read_hf_two, write_hf, "hf"),
    "hf_iterable": (read_hf_iterable, write_hf, "hf"),
    "h5py_random": (read_padded, write_padded, "padded"),
    "h5py_random_two": (read_h5py, None, ""),
    "mosaic": (read_mosaic, write_mosaic, "mds"),
    "mosaic_workers": (read_mosaic_workers, write_mosaic, "mds"),
    "dataloader": (read_dataloader, None, "flat"),
}


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Write what a peer reads, and see whether it can be read; {"skipped": reason} where a library is missing or broken."""
    make, write, place = PEERS[name]
    to, part = folder / place, folder / f"{place}.part"
    try:
        if write and not to.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            write(folder, part)
            part.rename(to)
        make(folder, to)
        return {}
    except ModuleNotFoundError as error:
        return {"skipped": f"{error.name} is not installed in {sys.executable}"}
    except Exception as error:  # whatever a library raises
        return {"skipped": f"{type(error).__name__} in {sys.executable}: {error}"}


def read(name: str, folder: Path) -> Callable[[], dict[str, Any]]:
    """Spectra, samples and seconds of one epoch."""
    make, _, place = PEERS[name]
    epoch = make(folder, folder / place)

    def measure() -> dict[str, Any]:
        spectra = samples = 0
        began = time.monotonic()
        for count, arrays in epoch():
            spectra, samples = spectra + count, samples + min(map(len, arrays))
        return {"spectra": spectra, "samples": samples, "seconds": time.monotonic() - began}

    return measure


if __name__ == "__main__":
    mode, name, where = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    serve((lambda: prepare(name, where)) if mode == "prepare" else read(name, where))
