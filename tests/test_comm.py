from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcspec.atomic import read_json, replacing, write_json
from hpcspec.comm import LAUNCHED_BY_MPI, agreed, on_root, rank_and_size, world
from hpcspec.errors import UserError
from tests.cluster.conftest import unavailable

RANKS = 3


class Unportable(Exception):
    """Can't be sent to another rank: it is rebuilt with one argument and wants two."""

    def __init__(self, what: str, where: str):
        super().__init__(f"{what} in {where}")


def fail(error: Exception) -> None:
    raise error


def told(work) -> list[str]:
    """Name and text of the error that `work` ends with; nothing if it ends well."""
    try:
        return ["", str(work())]
    except Exception as error:
        return [type(error).__name__, str(error)]


def cases(comm) -> dict[str, list[str]]:
    rank, _ = rank_and_size(comm)
    return {
        "agreed": told(lambda: agreed(comm, lambda: rank * 10)),
        "one fails": told(lambda: agreed(comm, lambda: fail(UserError("no space")) if rank == 1 else rank)),
        "one fails strangely": told(lambda: agreed(comm, lambda: fail(Unportable("a", "b")) if rank == 2 else rank)),
        "on root": told(lambda: on_root(comm, lambda: {"asked on": rank})),
        "root fails": told(lambda: on_root(comm, lambda: fail(UserError("no folder")))),
        "root fails strangely": told(lambda: on_root(comm, lambda: fail(Unportable("a", "b")))),
        "afterwards": told(lambda: agreed(comm, lambda: rank)),
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[str]]]:
    """What each rank of a real MPI job saw."""
    if not (mpirun := shutil.which("mpirun")):
        unavailable("mpirun is not installed")
    folder = tmp_path_factory.mktemp("ranks")
    command = [mpirun, "-n", str(RANKS), "--oversubscribe", "--allow-run-as-root", sys.executable, "-m", "tests.test_comm"]
    done = subprocess.run([*command, folder], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [read_json(folder / f"{rank}.json") for rank in range(RANKS)]


@pytest.mark.parametrize(("case", "each"), [
    ("agreed", [["", "0"], ["", "10"], ["", "20"]]),
    ("one fails", [["UserError", "rank 1: no space"], ["UserError", "no space"], ["UserError", "rank 1: no space"]]),
    ("one fails strangely", [["RuntimeError", "rank 2: Unportable: a in b"]] * 2 + [["Unportable", "a in b"]]),
    ("on root", [["", "{'asked on': 0}"]] * 3),
    ("root fails", [["UserError", "no folder"]] * 3),
    ("root fails strangely", [["Unportable", "a in b"]] + [["RuntimeError", "Unportable: a in b"]] * 2),
    ("afterwards", [["", "0"], ["", "1"], ["", "2"]]),
])  # fmt: skip
def test_all_ranks_hear_of_a_failure(outcomes: list[dict[str, list[str]]], case: str, each: list[list[str]]) -> None:
    assert [seen[case] for seen in outcomes] == each


def test_alone_without_a_communicator() -> None:
    assert rank_and_size(None) == (0, 1)
    assert cases(None) == {
        "agreed": ["", "0"], "one fails": ["", "0"], "one fails strangely": ["", "0"], "on root": ["", "{'asked on': 0}"],
        "root fails": ["UserError", "no folder"], "root fails strangely": ["Unportable", "a in b"], "afterwards": ["", "0"],
    }  # fmt: skip


def test_a_process_that_mpi_did_not_launch_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED_BY_MPI:
        monkeypatch.delenv(name, raising=False)
    assert world() is None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "state.json"
    write_json(path, {"step": 1})
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text('{"st')
        assert temporary.parent == path.parent  # so that the renaming is one step
        fail(KeyError("something else"))
    assert read_json(path) == {"step": 1} and os.listdir(path.parent) == ["state.json"]


@pytest.mark.parametrize("content", [b"", b'{"step": 1', b"\xff\xfe\x00"])
def test_a_json_file_that_is_not_whole_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert read_json(tmp_path / "state.json") is None
    assert read_json(tmp_path / "absent.json") is None


def test_where_nothing_can_be_written_the_error_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write .*state.json: (File exists|Not a directory)"):
        write_json(tmp_path / "file" / "state.json", {})


if __name__ == "__main__":
    Path(sys.argv[1], f"{world().rank}.json").write_text(json.dumps(cases(world())))
