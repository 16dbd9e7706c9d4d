"""How fast, how lean and how small: the stream and the shards, beside others in the same run.

    python benchmarks/stream.py --json OUT.json [--folder DIR] [--spectra 100000] [--quick] [--peer-python PATH] [--skip SECTION]

Writes shards of four surveys in realistic proportions, measures each figure in processes of its own, compared ones in turn,
and prints a table; OUT.json has every figure, and under "not_measured" why one is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from disk import LACKING, disk_sizes
from figures import FIGURES
from peers import PEERS
from processes import MIB, Measuring, available_mib, cached, drop_cache, measured
from rich.console import Console
from rich.table import Table
from survey_mix import SHARES, cut_up, write_flat, write_mix

SHARD_MIB, PIECES = 128.0, 10
COLD, WARM = 0.02, 0.99  # at most, at least this share of the files in the page cache


@dataclass
class Bench:
    """What is asked for, what it is measured on, and the figures so far, with the reasons of those that are absent."""

    folder: Path
    spectra: int
    quick: bool
    repeats: int
    peer_python: str
    say: Callable[[str], None]
    figures: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    @cached_property
    def mix(self) -> Path:
        """The folder of the shards."""
        folder = self.folder / f"mix-{self.spectra}"
        began = time.monotonic()
        paths = write_mix(folder, self.spectra, SHARD_MIB)
        mib = _mib(paths)
        self.say(f"{self.spectra} spectra of {', '.join(SHARES)} in {len(paths)} shards, {mib:.0f} MiB, ready after "
                 f"{time.monotonic() - began:.0f} s")  # fmt: skip
        self.figures |= {"shards": len(paths), "shards_mib": mib}
        return folder

    def put(self, **values: Any) -> None:
        """Add figures."""
        self.figures |= values

    def lack(self, reason: str, *keys: str) -> None:
        """Say why figures are absent."""
        self.say(f"not measured: {', '.join(keys)}: {reason}")
        self.not_measured |= dict.fromkeys(keys, reason)

    def not_warmed(self, paths: list[Path]) -> str:
        """Bring files into the page cache; why they are not there then, if they are not."""
        if _mib(paths) > 0.8 * available_mib():
            return f"{_mib(paths):.0f} MiB don't fit into the page cache: {available_mib():.0f} MiB of memory are available"
        buffer, share = bytearray(MIB), 0.0
        for _ in range(5):  # a virtual machine's memory may be taken while it is filled
            for path in paths:
                with open(path, "rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass
            share = cached(paths)
            if share >= WARM:
                return ""
        return f"only {share:.0%} of the files stay in the page cache: is the machine in use?"


def cold(bench: Bench) -> None:
    """Stream beside plain read, the page cache dropped before each."""
    paths, pairs, how = shards(bench.mix), [], ""
    for _ in range(bench.repeats):
        waiting = [Measuring("rank.py", mode, bench.mix).ready() for mode in ("plain", "stream")]
        found: list[dict[str, Any]] = []
        for process in waiting:
            how = drop_cache(paths, not bench.quick)
            left = cached(paths)
            if left > COLD:
                for one in waiting[len(found) :]:
                    one.close()
                return bench.lack(f"{left:.0%} of the files stay in the page cache after {how} (is {bench.folder} in memory?)",
                                  "cold_ratio", "first_batch_s")  # fmt: skip
            found.append(process.go().figures())
        pairs.append(found)
    bench.put(cold_by=how, first_batch_s=statistics.median(stream["first_s"] for _, stream in pairs), **_speeds("cold", pairs))


def warm(bench: Bench) -> None:
    """The same in the page cache, and how full the packs are."""
    if reason := bench.not_warmed(shards(bench.mix)):
        return bench.lack(reason, "warm_ratio", "packing_useful")
    pairs = []
    for _ in range(bench.repeats):
        waiting = [Measuring("rank.py", mode, bench.mix).ready() for mode in ("plain", "stream")]
        pairs.append([process.go().figures() for process in waiting])
    last = pairs[-1][1]
    bench.put(packing_useful=last["useful"], packing_filled=last["filled"], **_speeds("warm", pairs), **_memory(last),
              spectra_per_s=statistics.median(s["spectra"] / s["seconds"] for _, s in pairs))  # fmt: skip


def _speeds(name: str, pairs: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Medians of the two speeds and of their ratio in each pair, from pairs of (plain, stream)."""
    speeds = [(p["bytes"] / p["seconds"], s["bytes"] / s["seconds"]) for p, s in pairs]
    ratios = [stream / plain for plain, stream in speeds]
    return {f"{name}_ratio": statistics.median(ratios), f"{name}_ratios": ratios,
            f"{name}_plain_mb_s": statistics.median(p for p, _ in speeds) / 1e6,
            f"{name}_mb_s": statistics.median(s for _, s in speeds) / 1e6}  # fmt: skip


def ranks(bench: Bench) -> None:
    """Several ranks at once, warm: what they deliver together from the first that begins to the last that ends."""
    sizes = (2,) if bench.quick else (1, 2, 4)
    if bench.quick:
        bench.lack("left out by --quick", "warm_total_1", "warm_total_4")
    if reason := bench.not_warmed(shards(bench.mix)):
        return bench.lack(reason, *(f"warm_total_{size}" for size in sizes))
    totals: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(bench.repeats):
        for size in sizes:
            waiting = [Measuring("rank.py", "stream", bench.mix, rank, size) for rank in range(size)]
            for process in [p.ready() for p in waiting]:
                process.go()
            found = [process.figures() for process in waiting]
            seconds = max(f["ended"] for f in found) - min(f["began"] for f in found)
            totals[size].append(sum(f["bytes"] for f in found) / seconds / 1e6)
    bench.put(**{f"warm_total_{size}": statistics.median(speeds) for size, speeds in totals.items()})


def memory(bench: Bench) -> None:
    """Peak memory of a rank, with few and with many shards of the same objects."""
    if "rss_mib" not in bench.figures:
        bench.put(**_memory(measured("rank.py", "stream", bench.mix)))
    folder = bench.folder / f"cut-{bench.spectra}"
    cut_up(shards(bench.mix), folder, PIECES)
    many = measured("rank.py", "stream", folder)
    bench.put(rss_many_mib=many["peak_mib"], rss_many_shards=many["shards"])


def _memory(found: dict[str, Any]) -> dict[str, float]:
    return {"rss_mib": found["peak_mib"], "rss_imports_mib": found["imports_mib"], "rss_shards": found["shards"]}


def plan(bench: Bench) -> None:
    """Planning of an epoch of 10⁸ objects."""
    found = [measured("rank.py", "plan", bench.mix) for _ in range(bench.repeats)]

    def median(name: str) -> float:
        return statistics.median(f[name] for f in found)

    bench.put(plan_100m_s=median("seconds"), plan_100m_mib=median("plan_mib"), plan_100m_index_mib=median("index_mib"),
              plan_100m_total_mib=median("peak_mib"))  # fmt: skip


def peers(bench: Bench) -> None:
    """The stream beside others, each in turn with it, over the same spectra in the page cache."""
    folder = bench.mix
    write_flat(shards(folder), folder / "flat")
    rates: dict[str, float] = {}
    for name, (*_, place) in PEERS.items():
        try:
            skipped = measured("peers.py", "prepare", name, folder, python=bench.peer_python).get("skipped")
            os.sync()
            pairs = [] if skipped else [_beside(bench, name) for _ in range(bench.repeats)]
        except RuntimeError as error:
            skipped = str(error).splitlines()[-1]
        if skipped:
            bench.lack(skipped, f"vs_{name}")
        else:
            rates[name] = statistics.median(theirs for _, theirs in pairs)
            ratios = [ours / theirs for ours, theirs in pairs]
            bench.put(**{f"vs_{name}": statistics.median(ratios), f"vs_{name}_all": ratios})
        later = [other[2] for other in list(PEERS.values())[list(PEERS).index(name) + 1 :]]
        if place not in ("", "flat", *later):  # gigabytes each
            shutil.rmtree(folder / place, ignore_errors=True)
    bench.put(peers_spectra_per_s=rates)


def _beside(bench: Bench, name: str) -> tuple[float, float]:
    """Spectra/s of the stream and of a peer, one after the other.

    Raises RuntimeError if their files don't stay in the page cache, or the peer doesn't read what there is.
    """
    folder, place = bench.mix, bench.mix / PEERS[name][2]
    if reason := bench.not_warmed(shards(folder)):
        raise RuntimeError(reason)
    ours = measured("rank.py", "stream", folder)
    files = [p for p in place.glob("**/*" if place != folder else "*.h5") if p.is_file() and p.stem != "wavelength"]
    if reason := bench.not_warmed(files):
        raise RuntimeError(reason)
    theirs = measured("peers.py", "read", name, folder, python=bench.peer_python)
    ends = np.load(folder / "flat" / "offsets.npy")
    if (theirs["spectra"], theirs["samples"]) != (len(ends) - 1, int(ends[-1])):
        raise RuntimeError(f"{name} read {theirs}, not the {len(ends) - 1} spectra that there are")
    return ours["spectra"] / ours["seconds"], theirs["spectra"] / theirs["seconds"]


def on_disk(bench: Bench) -> None:
    """Bytes on disk beside the surveys' files and the Multimodal Universe's."""
    sizes = disk_sizes(bench.folder / "disk", 60 if bench.quick else 600)
    totals = {kind: sum(of[kind] for of in sizes.values()) for kind in sizes["sdss"]}
    bench.put(disk_spectra=totals["objects"], disk_bytes_per_spectrum={
        survey: {kind: value / of["objects"] for kind, value in of.items() if kind != "objects"} for survey, of in sizes.items()
    })  # fmt: skip
    for other in ("fits", "mmu", "mmu_whole"):
        ratios = {survey: of["shards_none"] / of[other] for survey, of in sizes.items()}
        bench.put(**{f"disk_ratio_{other}": totals["shards_none"] / totals[other], f"disk_ratios_{other}": ratios})
        bench.put(**{f"disk_ratio_{other}_{name}": totals[f"shards_{name}"] / totals[other] for name in ("blosc", "zstd")})
    lacking = "; ".join(f"{survey}: {what}" for survey, what in LACKING.items())
    bench.put(disk_note=f"simulated FITS files lack what real ones have, to which the ratio is lower: {lacking}")
    bench.say(bench.figures["disk_note"])


SECTIONS = {"cold": cold, "warm": warm, "ranks": ranks, "memory": memory, "plan": plan, "peers": peers, "disk": on_disk}


def shards(folder: Path) -> list[Path]:
    """The shards of a folder."""
    return sorted(folder.glob("*.h5"))


def _mib(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / MIB


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 when all was measured that was asked for and is installed, 1 when something failed."""
    parser = argparse.ArgumentParser("python benchmarks/stream.py", description="Measure the stream and the shards.")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="file for the figures")
    parser.add_argument("--folder", type=Path, help="for the data, which stay and are used again (default: a temporary one)")
    parser.add_argument("--spectra", type=int, help="how many (default: 100,000, 30 GB of disk; 5,000 with --quick)")
    parser.add_argument("--repeats", type=int, help="of what is compared (default: 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few spectra, once: whether it works, not how fast it is")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="python in which the peers are installed")
    parser.add_argument("--skip", nargs="+", default=[], choices=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    args = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="hpcspec-benchmark-"))

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    spectra, repeats = args.spectra or (5000 if args.quick else 100_000), args.repeats or (1 if args.quick else 5)
    bench = Bench(folder, spectra, args.quick, repeats, args.peer_python, say)
    failed = []
    try:
        for name, section in SECTIONS.items():
            if name in args.skip:
                continue
            try:
                began = time.monotonic()
                section(bench)
                say(f"{name}: {time.monotonic() - began:.0f} s")
            except Exception as error:  # one section that fails leaves the others their figures
                say(str(error))
                bench.lack(f"{type(error).__name__}: {str(error).splitlines()[-1]}", name)
                failed.append(name)
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)
    facts = {"spectra": bench.spectra, "repeats": bench.repeats, "cores": os.cpu_count(), "python": platform.python_version()}
    args.json.write_text(json.dumps({**facts, **bench.figures, "not_measured": bench.not_measured}, indent=1) + "\n")
    table = Table("figure", "", "what", title=f"{bench.spectra} spectra, {os.cpu_count()} cores", title_justify="left")
    for key, form, what in FIGURES:
        if key in bench.figures or key in bench.not_measured:
            table.add_row(key, form.format(bench.figures[key]) if key in bench.figures else "–", what)
    console.print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
