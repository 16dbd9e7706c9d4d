"""Experiments on simulated populations end to end, tiny: nothing but the YAML is given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcspec.errors import UserError
from hpcspec.evaluate import stars
from hpcspec.evaluate.__main__ import main
from hpcspec.evaluate.astrom3 import blocks_of
from hpcspec.evaluate.discoveries import clusters
from hpcspec.evaluate.inputs import Sample
from hpcspec.evaluate.report import Result, compared, comparison, write
from hpcspec.simulate import bp_rp, variables
from hpcspec.simulate.extinction import R_V, ccm89
from hpcspec.simulate.xp_stars import drawn
from hpcspec.surveys.observation import Observation

PIPELINE = """\
name: tiny
surveys: [simulated]
model: {patch: 64, width: 16, layers: 1, decoder_layers: 1, heads: 2, frequencies: 8}
training: {steps: 3, tokens_per_batch: 2048, lanes: 4, ranks: 1, zero: {stage: 0}}
adapt: {steps: 10, held_out: 0.2, calibration: 0.2, threads: 1, baseline: none}
catalog: {tasks: 1, pieces: 1}
"""
ROW = """\
compare: union
data:
  trimodal:
    object_class: class
    recipes:
      train: {{population: variables, objects: 100, seed: 1, missing: {{light_curve: 0.2, spectrum: 0.3, scalars: 0.2}}}}
      test: {{population: variables, objects: 60, seed: 2, mislabelled: 0.1, anomalies: 0.2}}
  stars: &stars
    parameters: {{teff: teff, logg: logg, m_h: m_h, logebv: logebv, distance: distance}}
    learn: [teff, logg]
    recipes: {{train: {{population: stars_xp, objects: 100, seed: 1}}, test: {{population: stars_xp, objects: 30, seed: 2}}}}
  pairs:
    <<: *stars
    learn: []
    recipes:
      train: {{population: stars_xp, objects: 12, seed: 4, spectra: [sdss, apogee]}}
      test: {{population: stars_xp, objects: 6, seed: 5, spectra: [sdss, apogee]}}
  nowhere: {{survey: lamost, folders: {{train: lamost/train}}}}
runs:
  trimodal: {{config: {pipeline}, data: [trimodal], minutes: 5, set: {{adapt.drop_kinds: 0.5, adapt.mode: full}}}}
  head: {{config: {pipeline}, data: [stars], minutes: 5, set: {{model.ignore: [teff, logg]}}}}
  union: {{config: {pipeline}, data: [nowhere, trimodal, stars, pairs], absent: skip, minutes: 5}}
  lost: {{config: {pipeline}, data: [nowhere], absent: skip}}
experiments:
  subsets: {{kind: modalities, title: Subsets, data: trimodal, runs: [trimodal, union], baselines: [forest]}}
  retrieval: {{kind: retrieval, title: Retrieval, data: trimodal, runs: [trimodal], baselines: [cca]}}
  mislabels: {{kind: mislabels, title: Mislabels, data: trimodal, runs: [trimodal, lost], baselines: [forest]}}
  anomalies: {{kind: anomalies, title: Anomalies, data: trimodal, runs: [trimodal], baselines: [isolation forest]}}
  subclasses: {{kind: subclasses, title: Subclasses, data: trimodal, runs: [trimodal], baselines: [features]}}
  fewer:
    kind: predict
    title: Fewer
    data: trimodal
    targets: [class]
    runs: [trimodal]
    baselines: [forest]
    labels: [1, 0.8]
    metadata: false
  labels:
    kind: any_to_any
    title: Labels
    data: stars
    runs: [head, union]
    targets: [teff, logg]
    inputs: {{some: [bp_0..9, bp_rp], random: [20 random]}}
    baselines: [xgboost-scalars]
  distances:
    {{kind: any_to_any, title: Distances, data: stars, runs: [union], targets: [distance], inputs: {{XP: [bp_0..9]}}}}
  locus:
    {{kind: any_to_any, title: Locus, data: stars, runs: [union], targets: [bp_rp, j_h], inputs: {{labels: [teff, logg]}}}}
  halves:
    kind: completion
    title: Halves
    data: stars
    runs: [union]
    targets: [bp_0..54]
    inputs: {{RP: [rp_0..54], labels: [teff, logg, m_h, logebv]}}
    baselines: [mean, ridge]
  extinction: {{kind: extinction, title: Extinction, data: stars, runs: [union], baselines: [ridge]}}
  across:
    kind: cross_survey
    title: Across
    data: pairs
    runs: [union]
    arms: {{given: [SDSS], wanted: [a, b, c]}}
    baselines: [mean, templates]
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a quick evaluation without a folder of data."""
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "tiny.yaml").write_text(PIPELINE)
    (folder / "row.yaml").write_text(ROW.format(pipeline=folder / "tiny.yaml"))
    assert main([str(folder / "row.yaml"), "--output", str(folder / "out"), "--quick"]) == 0
    return folder / "out"


def lines(shown: Path, experiment: str) -> dict[tuple[str, str, str], dict]:
    """The figures of an experiment by target, figure and method."""
    found = json.loads((shown / "row.json").read_text())["experiments"]
    one = next(x for x in found if x["experiment"] == experiment)
    assert experiment == "mislabels" or one["not_measured"] == []
    return {(x["target"], x["figure"], x["method"]): x for x in one["figures"]}


@pytest.mark.slow
def test_every_subset_and_what_is_found(shown: Path) -> None:
    found = lines(shown, "subsets")
    assert {t for t, *_ in found} >= {"spectra", "curves + metadata", "spectra + curves + metadata"}
    assert len({t for t, *_ in found}) == 7 and {m for *_, m in found} == {"forest", "trimodal", "union"}
    found = lines(shown, "retrieval")
    assert {m for *_, m in found} == {"chance", "cca", "trimodal"} and len({t for t, *_ in found}) == 6
    assert found["curves by spectra", "retrieval@10", "chance"]["mean"] == pytest.approx(10 / 60)
    found = lines(shown, "mislabels")
    assert {m for *_, m in found} == {"forest", "forest, out of bag", "trimodal"}
    assert found["mislabelled", "AUROC", "forest, out of bag"]["mean"] > 0.6
    found = lines(shown, "anomalies")
    assert {t for t, *_ in found} == {"anomalies", "anomalies of class", "anomalies of spectrum"}
    assert {m for *_, m in found} == {"isolation forest", "trimodal", "trimodal, disagreement", "trimodal, both"}
    assert {m for *_, m in lines(shown, "subclasses")} == {"features", "trimodal"}
    assert {t for t, *_ in lines(shown, "fewer")} == {"class, 80 % of the labels", "class, all labels"}


@pytest.mark.slow
def test_stars(shown: Path) -> None:
    found = lines(shown, "labels")
    for method in ("xgboost-scalars", "head", "union"):
        assert found["teff, some", "MAD", method]["n"] == found["logg, random", "std", method]["n"] == 30
    assert found["teff, some", "MAD", "xgboost-scalars"]["mean"] < 1500 and ("teff, some", "cover 68 %", "union") in found
    assert ("bp_rp, labels", "MAD", "union") in lines(shown, "locus") and (shown / "locus-locus.png").is_file()
    assert {t for t, *_ in lines(shown, "distances")} <= {"distance, XP"}
    found = lines(shown, "halves")
    for given in ("RP", "labels"):
        assert found[given, "chi2/scalar", "ridge"]["mean"] < found[given, "chi2/scalar", "mean"]["mean"]
        assert found[given, "chi2/scalar", "union"]["n"] == 30
    found = lines(shown, "extinction")
    assert found["A(λ)/E(B-V), deviation", "rms", "ridge"]["mean"] < 1 and sum(f == "A/E(B-V) bias" for _, f, _ in found) >= 23
    found = lines(shown, "across")
    assert {m for *_, m in found} == {"mean", "templates", "union"}
    assert found["the level of the whole fitted", "chi2/pixel", "templates"]["n"] == 5


@pytest.mark.slow
def test_union_is_compared_and_what_is_absent_is_said(shown: Path) -> None:
    beside = json.loads((shown / "row.json").read_text())["comparison"]
    assert {x["experiment"] for x in beside} == {"subsets", "labels"} and {x["run"] for x in beside} == {"union"}
    text = (shown / "row.md").read_text()
    assert "## union beside the best single-purpose run" in text and "not measured: lost: none of nowhere is there" in text


def test_the_dust_of_exact_coefficients() -> None:
    """Two amounts of dust in front of the same stars: their coefficients over the flux in G say the curve to 3 %."""
    rng = np.random.default_rng(1)
    some = [drawn(rng) for _ in range(20)]
    clear, dusty = ([bp_rp.normalised(replace(one, ebv=e).sed, 15.0)[0] for one in some] for e in stars.DUST)
    curve = stars.dust(np.array(clear), np.array(dusty), stars.DUST[1] - stars.DUST[0])
    truth = R_V * ccm89(stars.POINTS_ALL)
    curve += np.median(truth - curve, axis=1, keepdims=True)
    assert np.median(curve, 0) == pytest.approx(truth, abs=0.1)


def test_inputs_are_named() -> None:
    known = [f"bp_{k}" for k in range(5)] + ["teff", "bp_rp"]
    assert stars.named(["bp_1..3", "bp_rp", "64 random"], known) == (["bp_1", "bp_2", "bp_3", "bp_rp"], 64)
    with pytest.raises(UserError, match="no object has the scalar 'bp_5'"):
        stars.named(["bp_0..5"], known)
    one = Observation("a", "", np.nan, np.nan, scalars={n: (1.0, 0.1) for n in known})
    sample = Sample((one,), {}, np.array([""]))
    assert set(stars.given(sample, ["64 random"], ["bp_2"], 1)[0].scalars) == set(known) - {"bp_2", "teff"}
    assert len(stars.given(sample, ["2 random"], [], 1)[0].scalars) == 2


def test_missing_kinds_are_missing_to_baselines() -> None:
    recipe = variables.Variables(
        population="variables", objects=30, missing=variables.Missing(light_curve=0.3, spectrum=0.5, scalars=0.3)
    )
    objects = tuple(variables.observation(recipe, i) for i in range(30))
    sample = Sample(objects, {}, np.array([str(one.meta["class"]) for one in objects]), tuple(one.meta for one in objects))
    found = blocks_of(sample, sample)
    for kind, has in (("spectra", "arms"), ("curves", "curves"), ("metadata", "scalars")):
        assert (np.isfinite(found[kind][0]).any(1) == [bool(getattr(one, has)) for one in objects]).all()


def test_clusters_are_scored() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat(["a", "b"], [30, 10])
    found = clusters(rng.normal(size=(40, 2)) + 20 * (truth == "b")[:, None], truth, 1)
    assert found == {"adjusted Rand index": 1.0, "purity": 1.0, "purity, one cluster": 0.75}


def test_a_run_is_compared(tmp_path: Path) -> None:
    result = Result("x", "Title")
    for method, mad, accuracy in (("all", 8.0, 0.9), ("one", 10.0, 0.95), ("two", 20.0, 0.5)):
        result.add("teff", method, {"MAD": mad, "cover 68 %": 0.7}, 10, True)
        result.add("class", method, {"accuracy": accuracy}, 10, True)
    result.add("teff", "ridge", {"MAD": 1.0}, 10)
    found = {x["figure"]: x for x in compared([result], "all")}
    assert set(found) == {"MAD", "accuracy"} and found["MAD"]["other"] == "one"
    assert found["MAD"]["better_by"] == pytest.approx(0.2) and found["accuracy"]["better_by"] == pytest.approx(-1.0)
    assert "Better in 1 of 2 figures, worse in 1, equal in 0." in "\n".join(comparison(list(found.values()), "all"))
    write(tmp_path, "row", "x", {}, [result], "all")
    assert "| x | class | accuracy | 0.9 | one | 0.95 | **-100.0 %** |" in (tmp_path / "row.md").read_text()
