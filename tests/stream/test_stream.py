from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hpcspec.stream.stream as streaming
from hpcspec.comm import world
from hpcspec.errors import UserError
from hpcspec.stream.batches import packs, training_batches
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.order import epoch_blocks
from hpcspec.stream.stream import Stream
from hpcspec.stream.tokens import Hiding
from tests.cluster.conftest import unavailable
from tests.making import WORDS, dataset, shard, spectrum
from tests.stream.cases import Case, cases, epochs_begun, one, packs_until, passed, through_json, until, world_sizes

RANKS = 2


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_lane_runs_ahead_of_another(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(cases(pool, share=False))
    size = data.draw(st.integers(1, min(8, case.order["lanes"])))
    with case.rank(size - 1, size) as stream:
        for _ in range(3 * len(case.index) // size + 10):
            one(stream)
            epochs = [epoch for epoch, _, _ in stream.positions.values()]
            assert max(epochs) - min(epochs) <= 1


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_selected_object_once_an_epoch_whatever_the_world_size(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(cases(pool))
    size = data.draw(world_sizes(case))
    delivered: Counter[tuple[int, int]] = Counter()
    for rank in range(size):
        with case.rank(rank, size) as stream:
            delivered.update(until(stream, 2))
    assert delivered == case.everything(2)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_each_lane_has_the_same_order_whatever_the_world_size(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(cases(pool))
    lanes, size = case.order["lanes"], data.draw(world_sizes(case))

    def by_lane(rank: int, size: int) -> dict[int, list[tuple[int, int]]]:
        with case.rank(rank, size) as stream:
            lane_of = {(epoch, int(block)): lane for epoch in range(2) for lane in range(lanes)
                       for block in stream._lane(epoch, lane)}  # fmt: skip
            block_of = [b for b in range(len(stream.blocks)) for _ in range(*stream.blocks.place(b)[1:])]
            found: dict[int, list[tuple[int, int]]] = {lane: [] for lane in range(rank, lanes, size)}
            for epoch, number in until(stream, 2):
                found[lane_of[epoch, block_of[number]]].append((epoch, number))
            return found

    alone = by_lane(0, 1)
    for rank in range(size):
        for lane, objects in by_lane(rank, size).items():
            assert objects == alone[lane]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_restored_stream_goes_on_as_it_would_have(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(cases(pool))
    size = data.draw(st.integers(1, min(4, case.order["lanes"])))
    first, later, states = [], [], []
    for rank in range(size):
        with case.rank(rank, size) as stream:
            first.append(draws(stream, data.draw(st.integers(0, 2 * len(case.index)))))
            states.append(stream.state())
            later.append(draws(stream, 40))
            states[-1] = json.loads(json.dumps(states[-1])) if rank else states[-1]
    for rank in range(size):
        with case.rank(rank, size, through_json(states)) as stream:
            assert stream.state()["positions"] == states[rank]["positions"]
            assert draws(stream, 40) == later[rank]


def draws(stream: Stream, count: int) -> list[tuple[int, ...]]:
    """Epoch, numbers and counts of what is drawn, now and then with little room, as a packer does."""
    found = (stream.next(*((12,), (), (0, 1))[i % 3]) for i in range(count))
    return [(run.epoch, *run.layout.counts.flatten().tolist()) if run else (-1,) for run in found]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_killed_and_resumed_on_other_numbers_of_ranks_nothing_is_lost_or_repeated(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(cases(pool))
    delivered: Counter[tuple[int, int]] = Counter()
    state = None
    for _ in range(2):
        size, states = data.draw(world_sizes(case)), []
        for rank in range(size):
            with case.rank(rank, size, state) as stream:
                count = data.draw(st.integers(0, 3 * len(case.index) // size))
                delivered.update(one(stream) for _ in range(count))
                states.append(stream.state())
        state = through_json(states)
    end = epochs_begun(state)
    size = data.draw(world_sizes(case))
    for rank in range(size):
        with case.rank(rank, size, state) as stream:
            delivered.update(until(stream, end))
    assert delivered == case.everything(end)


@pytest.fixture
def case(pool: DataIndex) -> Case:
    """The shards of 33, 17 and 7 objects, of three surveys."""
    index = DataIndex(tuple(pool.shards[i] for i in (3, 5, 8)))
    return Case(index, {"seed": 1, "lanes": 4, "block": 3, "shuffle_blocks": 2}, {"share": 0.2})


def epoch_of(case: Case, epoch: int) -> list[int]:
    with case.rank() as stream:
        return [n for e, n in until(stream, epoch + 1) if e == epoch]


def test_epochs_and_seeds_have_orders_of_their_own(case: Case) -> None:
    case = replace(case, options={})
    first, second, other = epoch_of(case, 0), epoch_of(case, 1), epoch_of(case.changed(seed=2), 0)
    assert sorted(first) == sorted(second) == sorted(other) == list(range(57))
    assert first != sorted(first) and first != second and first != other
    assert first == epoch_of(case, 0)
    assert np.abs(np.diff(first)).mean() > 10  # not block after block


def test_held_out_objects_are_never_delivered(case: Case) -> None:
    for share in (0.1, 0.5):
        some = replace(case, options={"share": share})
        fraction, lowest = case.index.sky_fraction(1), case.index.lowest_fraction(1)
        assert 0 < (fraction < share).sum() < len(fraction)
        numbers = epoch_of(some, 0) + epoch_of(some, 1)
        assert (fraction[numbers] >= share).all() and set(numbers) == set(np.flatnonzero(lowest >= share).tolist())


CHANGES = [({"seed": 2}, {}, "seed"), ({"lanes": 3}, {}, "lanes"), ({"block": 4}, {}, "block"),
           ({"shuffle_blocks": 3}, {}, "shuffle_blocks"), ({}, {"share": 0.3}, "share"),
           ({}, {"weights": {"sdss": 2.0}}, "mixing"), ({}, {"temperature": 2.0}, "mixing")]  # fmt: skip


@pytest.mark.parametrize(("order", "options", "name"), CHANGES)
def test_a_state_of_another_order_is_refused(case: Case, order: dict[str, int], options: dict[str, Any], name: str) -> None:
    with case.rank() as stream:
        state = stream.state()
    now = replace(case.changed(**order), options={**case.options, **options})
    for changed_data in (False, True) if name != "mixing" else (False,):
        with now.rank() as stream, pytest.raises(UserError, match=f"has {name} .*, this run .*start a new run folder"):
            stream.restore(state, changed_data)
    if name != "mixing":
        then, new = case.order.get(name, case.options.get(name)), now.order.get(name, now.options.get(name))
        with pytest.raises(UserError, match=f"has {name} {then}, this run {new}: "), now.rank(state=state):
            pass


def test_other_data_are_refused_or_begin_the_next_epoch(case: Case, pool: DataIndex) -> None:
    states = []
    for rank, epochs in enumerate((0, 2)):
        with case.rank(rank, 2) as stream:
            list(until(stream, epochs))
            states.append(stream.state())
    state = through_json(states)
    begun = epochs_begun(state)
    assert begun == 3
    other = replace(case, index=DataIndex((*case.index.shards, pool.shards[2])))
    with pytest.raises(UserError, match="has fingerprint .*training.changed_data: new_epoch"), other.rank(state=state):
        pass
    delivered: Counter[tuple[int, int]] = Counter()
    for rank in range(3):
        with other.rank(rank, 3) as stream:
            stream.restore(state, changed_data=True)
            delivered.update(until(stream, begun + 2))
    numbers = np.flatnonzero(other.selected).tolist()
    assert delivered == Counter((epoch, n) for epoch in (begun, begun + 1) for n in numbers)


def test_a_state_goes_on_with_the_same_data_where_other_data_are_allowed(case: Case) -> None:
    with case.rank() as stream:
        draws(stream, 30)
        state, wanted = stream.state(), draws(stream, 30)
    with case.rank() as stream:
        stream.restore(state, changed_data=True)
        assert draws(stream, 30) == wanted


def test_a_data_set_can_t_be_dealt_to_too_many(case: Case) -> None:
    with pytest.raises(UserError, match="training.lanes is 4, fewer than the 5 ranks"), case.rank(size=5):
        pass
    with pytest.raises(UserError, match="57 objects an epoch for 60 lanes: lower training.lanes"), \
            case.changed(lanes=60).rank():  # fmt: skip
        pass
    with replace(case, options={"share": 1.0}).rank() as stream, pytest.raises(UserError, match="no object is left to train on"):
        stream.next()


@pytest.mark.parametrize("lanes", [10, 57])
def test_of_little_data_the_blocks_are_smaller(case: Case, lanes: int) -> None:
    case = replace(case.changed(block=100, lanes=lanes), options={"share": 0.0})
    delivered: Counter[tuple[int, int]] = Counter()
    for rank in range(3):
        with case.rank(rank, 3) as stream:
            assert len(stream.blocks) >= lanes and stream.state()["block"] == 100
            delivered.update(until(stream, 2))
    assert delivered == case.everything(2)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_runs_are_the_same_objects_as_one_after_another(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(cases(pool))
    with case.rank() as stream:
        runs = [stream.next() for _ in range(8)]
        drawn = [(run.epoch, n) for run in runs if run for n in run.layout.counts[:, 0].tolist()]
    with case.rank() as stream:
        assert [one(stream) for _ in drawn] == drawn


def test_a_rank_whose_lanes_are_mostly_held_out_goes_on(tmp_path: Path) -> None:
    """Six objects in blocks of one, three of them held out, on as many ranks: each gets its share sooner or later."""
    case = Case(dataset(tmp_path, [6]), {"seed": 0, "lanes": 6, "block": 1, "shuffle_blocks": 1})
    case.options["share"] = float(np.sort(case.index.lowest_fraction(0))[3])
    delivered: Counter[tuple[int, int]] = Counter()
    for rank in range(6):
        with case.rank(rank, 6) as stream:
            delivered.update(until(stream, 40))
    assert case.selected.sum() == 3 and delivered == case.everything(40)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_surveys_are_mixed_as_asked(pool: DataIndex, data: st.DataObject) -> None:
    """With weight w an object has come floor or ceil of w·k times after k epochs, so that none is two passes ahead."""
    case = data.draw(cases(pool, share=False))
    case.index = DataIndex((pool.shards[7], *case.index.shards))
    surveys = {s.survey for s in case.index.shards}
    weights = {s: data.draw(st.sampled_from([0.3, 0.5, 1.0, 1.7, 3.0])) for s in sorted(surveys)}
    case.options = {"weights": weights, "temperature": data.draw(st.sampled_from([1.0, 1.5, 10.0]))}
    case.order.update(lanes=1, block=1)
    epochs = data.draw(st.integers(1, 5))
    with case.rank() as stream:
        mixing = stream.order_of["mixing"]
        delivered = list(until(stream, epochs))
    for k in range(1, epochs + 1):
        count = np.bincount([n for e, n in delivered if e < k], minlength=len(case.index))
        for survey, weight in mixing.items():
            of = count[case.index.survey == survey]
            assert np.floor(weight * k - 1e-9) <= of.min() and of.max() <= np.ceil(weight * k + 1e-9)
            assert abs(of.sum() - weight * k * len(of)) <= 0.5 + 1e-6


def test_mixed_epochs_are_dealt_and_resumed_too(pool: DataIndex) -> None:
    """What several ranks deliver of each epoch, killed between, are the blocks of `epoch_blocks`."""
    index = DataIndex(tuple(pool.shards[i] for i in (3, 5, 7)))
    case = Case(index, {"seed": 4, "lanes": 7, "block": 5, "shuffle_blocks": 2}, {"temperature": 3.0, "weights": {"desi": 1.3}})
    delivered: Counter[tuple[int, int]] = Counter()
    states = []
    for rank in range(3):
        with case.rank(rank, 3) as stream:
            delivered.update(one(stream) for _ in range(50 + 20 * rank))
            states.append(stream.state())
            blocks, groups, weights = stream.blocks, stream.groups, stream.weights
    for rank in range(5):
        with case.rank(rank, 5, through_json(states)) as stream:
            delivered.update(until(stream, 4))
    wanted: Counter[tuple[int, int]] = Counter()
    for epoch in range(4):
        for block in epoch_blocks(groups, weights, 4, epoch).tolist():
            shard_number, start, stop = blocks.place(block)
            wanted.update((epoch, n) for n in range(index.offsets[shard_number] + start, index.offsets[shard_number] + stop))
    assert delivered == wanted and max(wanted.values()) > 1


def test_a_survey_of_weight_0_is_left_out(case: Case) -> None:
    case.options["weights"] = {"desi": 0.0}
    numbers = epoch_of(case, 0) + epoch_of(case, 2)
    assert set(case.index.survey[numbers]) == {"sdss", "apogee"}
    assert Counter(numbers) == {n: 2 for n in np.flatnonzero(case.selected & (case.index.survey != "desi")).tolist()}
    case.options["weights"] = dict.fromkeys(("sdss", "desi", "apogee"), 0.0)
    with pytest.raises(UserError, match="0 objects an epoch for 4 lanes"), case.rank():
        pass


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "OPEN_SHARDS", 8)
    case = Case(dataset(tmp_path, [2] * 30, pixels=16), {"seed": 3, "lanes": 4, "block": 1, "shuffle_blocks": 4})
    before, most = descriptors(), 0
    delivered: Counter[tuple[int, int]] = Counter()
    with case.rank() as stream:
        for one in packs_until(stream, 2, 20):
            most = max(most, descriptors() - before)
            delivered[one] += 1
    assert delivered == case.everything(2)
    assert 8 <= most <= 8 + streaming.READERS and descriptors() == before


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(("reader", "prefetch"))]


@pytest.mark.parametrize("compression", ["none", "blosc"])
@pytest.mark.parametrize("harm", ["vanished", "truncated", "grown", "emptied while open"])
def test_a_shard_that_can_t_be_read_is_a_user_error(tmp_path: Path, harm: str, compression: str) -> None:
    """…at the next batch; nothing hangs, and threads and files are gone."""
    spectra = [[spectrum(20 * k + i, pixels=3000) for i in range(20)] for k in range(3)]
    paths = [shard(tmp_path / f"sdss-{i}.h5", some, compression) for i, some in enumerate(spectra)]
    case = Case(open_index(paths), {"seed": 1, "lanes": 2, "block": 4, "shuffle_blocks": 2})
    before = descriptors()
    stream = Stream(case.index, **case.order)
    batches = training_batches(stream, 300, Hiding(0.5, 0.5), 2, torch.device("cpu"))
    if harm == "emptied while open":
        next(batches)
        for path in paths:
            os.truncate(path, 4096)
    for path in paths[1:]:
        if harm == "vanished":
            path.unlink()
        elif harm == "truncated":
            os.truncate(path, path.stat().st_size - 4000)
        elif harm == "grown":
            path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"shard .*sdss-\d.h5"):
        for _ in range(200):
            next(batches)
    assert not readers() and descriptors() == before


@pytest.mark.parametrize("call", ["pread", "preadv"])
def test_a_failing_disk_is_a_user_error(case: Case, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with case.rank() as stream:
        made = packs(stream, 100)
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(UserError, match="can't read shard .*Input/output error"):
            next(made)


def test_closed_early_it_leaves_no_thread_and_no_file(case: Case) -> None:
    before = descriptors()
    for count in (0, 1, 5):
        with case.rank() as stream:
            for _ in zip(range(count), packs(stream, 30), strict=False):
                assert readers()
        stream.close()  # again
        assert not readers() and descriptors() == before


def every_rank(folder: Path) -> None:
    """One rank of an MPI job: what it delivers of the first epoch."""
    comm = world()
    index = open_index(sorted(folder.glob("*.h5")) if comm.rank == 0 else [], comm)
    stream = Stream(index, 5, 4, 2, 2, vocabulary=WORDS, rank=comm.rank, size=comm.size, comm=comm)
    numbers = [number for _, number in packs_until(stream, 1, 30)]
    stream.close()
    (folder / f"{comm.rank}.json").write_text(json.dumps({"fingerprint": index.fingerprint, "numbers": numbers}))


def test_ranks_of_an_mpi_job_deliver_each_object_once(tmp_path: Path) -> None:
    """Rank 0 alone knows where the shards are."""
    if not (mpirun := shutil.which("mpirun")):
        unavailable("mpirun is not installed")
    index = dataset(tmp_path, [5, 9, 2, 8])
    command = [mpirun, "-n", str(RANKS), "--oversubscribe", "--allow-run-as-root", sys.executable, "-m", __name__, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert {t["fingerprint"] for t in told} == {index.fingerprint}
    assert sorted(n for t in told for n in t["numbers"]) == list(range(len(index))) and all(t["numbers"] for t in told)


def test_a_stream_knows_when_all_lanes_are_through(case: Case) -> None:
    with case.rank() as stream:
        assert not passed(stream, 1)
        list(until(stream, 1))
        assert passed(stream, 1) and not passed(stream, 2)


if __name__ == "__main__":
    every_rank(Path(sys.argv[1]))
