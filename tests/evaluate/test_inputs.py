"""Folders may have other objects under the same identifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcspec.evaluate.inputs import Sample
from hpcspec.evaluate.predict import Inputs
from hpcspec.evaluate.spec import Data, Evaluation
from hpcspec.evaluate.workspace import Workspace
from hpcspec.simulate import simulate
from tests.making import spectrum


def test_each_folder_has_its_own_labels(tmp_path: Path) -> None:
    for part, seed in (("train", 1), ("test", 1)):
        simulate(tmp_path / part, {"sdss": 5}, seed)
    table = tmp_path / "test/sdss/labels.csv"
    header, *rows = table.read_text().splitlines()
    column = header.split(",").index("class")
    changed = [",".join("OTHER" if i == column else cell for i, cell in enumerate(row.split(","))) for row in rows]
    table.write_text("\n".join([header, *changed]) + "\n")
    folders = {part: f"{part}/sdss" for part in ("train", "test")}
    by_folder = {part: f"{folder}/labels.csv" for part, folder in folders.items()}
    for tables, of_train in ((by_folder, False), (list(by_folder.values()), True)):
        data = Data(survey="sdss", folders=folders, tables=tables, object_class="class")
        work = Workspace(Evaluation.model_construct(data={"stars": data}, runs={}), tmp_path, tmp_path / "out", False)
        train, test = (work.sample("stars", part) for part in ("train", "test"))
        assert train.ids == test.ids and set(test.classes) == {"OTHER"} and (set(train.classes) == {"OTHER"}) == of_train


def test_each_folder_has_its_own_pixels() -> None:
    one, other = spectrum(1), spectrum(2, object_id="object-0001")
    inputs = Inputs(True)
    samples = [Sample((x,), {}, np.array([""])) for x in (one, other)]
    first, second = (inputs.pixels(s).flux for s in samples)
    assert not np.array_equal(first, second) and np.array_equal(inputs.pixels(samples[0]).flux, first)
