"""A run that reads spectra, light curves and scalars, used from Python; and what it says to bad input."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import hpcspec
from hpcspec.cluster.run import Run
from hpcspec.errors import UserError
from hpcspec.model.unified import Questions
from hpcspec.model.weights import save_model
from hpcspec.shards.variability import with_variability
from hpcspec.stream.vocabulary import KINDS, PERIOD
from hpcspec.surveys.observation import Observation
from hpcspec.trained import Trained
from tests.kinds import make_run
from tests.making import WORDS, batch, curve, spectrum, star
from tests.model.small import OBJECTS, SMALL, made

X = 4000 * 1.0002 ** np.arange(300)
FLUX, IVAR = 10 + np.sin(X / 30), np.full(300, 4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("kinds")).path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return hpcspec.load(folder)


def test_any_set_of_measurements_is_embedded_as_by_the_model(trained: Trained) -> None:
    given, model = batch([with_variability(one) for one in OBJECTS]), made()
    with torch.inference_mode():
        summary = model.summary(model.encode(given))[torch.from_numpy(np.argsort(given.objects))]
    assert torch.equal(trained._predictor.adapted.embedding_map, torch.eye(SMALL.width))  # of too few stars
    wanted = (summary - trained._predictor.adapted.embedding_mean).numpy()
    np.testing.assert_allclose(trained.embed(OBJECTS), wanted, atol=1e-6)
    np.testing.assert_allclose(trained.embed(OBJECTS[::-1]), wanted[::-1], atol=1e-5)
    table = trained.predict(OBJECTS)
    assert len(table) == len(OBJECTS) and set(table["class"]) <= {"DWARF", "GIANT"} and np.isfinite(table["logg"]).all()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_one_kind_alone_is_embedded_by_itself(trained: Trained, kind: str) -> None:
    ones = [star(n, 40, 12) for n in range(70)]  # more than go together at once
    found = trained.embed(ones, kind)
    assert found.shape == (70, SMALL.width) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    one = star(9, 40, 12)
    part = {"spectra": {"curves": (), "scalars": {}}, "curves": {"arms": (), "scalars": {PERIOD: one.scalars[PERIOD]}},
            "scalars": {"arms": (), "curves": ()}}[kind]  # fmt: skip
    alone = trained.embed([Observation(**{**vars(one), **part})], kind)
    np.testing.assert_allclose(alone[0], found[9], atol=1e-5)
    assert trained.embed([], kind).shape == (0, SMALL.width)


def test_a_kind_that_is_none_or_that_an_object_lacks_is_a_user_error(trained: Trained) -> None:
    with pytest.raises(UserError, match="kind 'object': one of spectra, curves, scalars"):
        trained.embed(OBJECTS, "object")
    with pytest.raises(UserError, match="object-0002 has no curves that the model reads"):
        trained.embed([star(1), OBJECTS[1]], "curves")


def test_spectra_light_curves_and_scalars_of_one_object_are_put_together(trained: Trained) -> None:
    arm = hpcspec.spectrum(X, FLUX, IVAR, "mine")
    v = hpcspec.light_curve("V", [1.0, 2, 5], [14.0, 14.2, 13.9], [0.1, 0.1, 0.2])
    known = hpcspec.scalars({"teff": 5000.0, "parallax": (1.0, 0.1)})
    whole = hpcspec.together(arm, v, known)
    assert whole.object_id == "mine" and (len(whole.arms), len(whole.curves)) == (1, 1)
    assert list(whole.scalars) == ["teff", "parallax"] and whole.scalars["parallax"] == (1.0, 0.1)
    found = trained.embed([arm, v, known, whole])
    assert np.isfinite(found).all() and len({row.tobytes() for row in found}) == 4
    assert hpcspec.together(known, arm).object_id == "scalars"


def test_spectra_of_objects_without_one_are_in_units_of_their_median(trained: Trained) -> None:
    wavelengths = 4000 + 1.5 * np.arange(50)
    flux, error = trained.generate(OBJECTS, wavelengths)
    assert flux.shape == error.shape == (len(OBJECTS), 50) and np.isfinite(flux).all() and (error > 0).all()
    alone, _ = trained.generate(OBJECTS[2:3], wavelengths)
    np.testing.assert_allclose(alone[0], flux[2], rtol=1e-4, atol=1e-4)
    louder = [hpcspec.spectrum(X, s * FLUX, IVAR / s**2) for s in (1.0, 1e-17)]
    (one, other), _ = trained.generate(louder, wavelengths)
    assert 1e-20 < np.abs(other).max() < 1e-14 < np.abs(one).max()


@pytest.mark.parametrize(("first", "count"), [(35803, 40), (35800, 40), (35811, 1)])
def test_part_of_a_logarithmic_grid_is_answered_as_in_the_whole(trained: Trained, first: int, count: int) -> None:
    pixels = np.arange(35784, 35880)
    whole, part = (trained.generate(OBJECTS, 10.0 ** (1e-4 * p)) for p in (pixels, np.arange(first, first + count)))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(b, a[:, first - 35784 :][:, :count], rtol=1e-3)


def test_a_light_curve_at_any_time_is_about_the_object_s_own_level(trained: Trained) -> None:
    days, ones = np.array([0.0, 3.5, 1000.0]), [*OBJECTS, star(11, 40, 30)]
    value, error = trained.generate_light_curve(ones, "V mag", days)
    assert value.shape == error.shape == (len(ones), 3) and np.isfinite(value).all() and (error > 0).all()
    model = made()
    for i in (0, 2, 1):  # with the band and a period, with the band alone, and without
        one = with_variability(ones[i])
        given = batch([one])
        encoded = model.encode(given)
        good = [c.value[c.ivar > 0] for c in one.curves if c.band == "V"]
        level, scale = 0.0, 1.0
        if good:
            level = float(np.median(good[0]))
            scale = 1.4826 * float(np.median(np.abs(good[0] - np.float32(level))))
        phases = torch.tensor((days / 10 ** one.scalars[PERIOD][0]) % 1 if PERIOD in one.scalars else days * np.nan).float()
        none, own = torch.zeros(0, dtype=torch.long), torch.zeros(3, dtype=torch.long)
        asked = Questions(none, torch.zeros(0, 2), torch.tensor(days).float(), phases, own + 1, (none, none, own))
        mean, log_variance = model.answer(asked, encoded.tokens, encoded.packing).curves
        np.testing.assert_allclose(value[i], mean[:, 0].detach() * scale + level, rtol=1e-4)
        np.testing.assert_allclose(error[i], (0.5 * log_variance[:, 0].detach()).exp() * scale, rtol=1e-3)
    assert trained.generate_light_curve([], "V mag", days)[0].shape == (0, 3)
    assert trained.generate_light_curve(ones[:2], "R mag", days[:0])[0].shape == (2, 0)


@pytest.mark.parametrize("days", [[np.nan, 1.0], [[1.0, 2.0]], [np.inf]])
def test_days_that_are_none_are_a_user_error(trained: Trained, days: list) -> None:
    with pytest.raises(UserError, match="days"):
        trained.generate_light_curve(OBJECTS[:1], "V mag", np.array(days))


def test_scalars_are_in_their_own_units(trained: Trained) -> None:
    names = ["teff", "log10_sn", "level V mag", "teff"]
    value, error = trained.generate_scalars(OBJECTS, names)
    assert value.shape == error.shape == (len(OBJECTS), 4) and np.isfinite(value).all() and (error > 0).all()
    np.testing.assert_array_equal(value[:, 0], value[:, 3])
    model, given = made(), batch([with_variability(OBJECTS[2])])
    encoded, none = model.encode(given), torch.zeros(0, dtype=torch.long)
    asked = Questions(torch.tensor([WORDS.names.index("teff")]), torch.zeros(0, 2), *(torch.zeros(0),) * 2, none,
                      (torch.zeros(1, dtype=torch.long), none, none))  # fmt: skip
    mean, log_variance = (x.item() for x in model.answer(asked, encoded.tokens, encoded.packing).scalars)
    assert value[2, 0] == pytest.approx(5000 + 50 * mean, rel=1e-5)  # the standards of `made`
    assert error[2, 0] == pytest.approx(50 * np.exp(0.5 * log_variance), rel=1e-4)


def test_what_the_model_has_no_word_for_is_a_user_error_that_says_what_it_reads(trained: Trained) -> None:
    reads = "it reads spectra, R mag, V mag, parallax, teff"
    with pytest.raises(UserError, match=f"the model was not trained on its scalar age; {reads}"):
        trained.embed([hpcspec.scalars({"age": 5.0})])
    flux = hpcspec.light_curve("V", [1.0, 2.0], [5.0, 6.0], [1.0, 1.0], unit="mJy")
    with pytest.raises(UserError, match=f"light curve V in mJy; {reads}"):
        trained.predict([flux])
    with pytest.raises(UserError, match="the model knows no scalar 'age': it knows log10_flux_scale, .*teff"):
        trained.generate_scalars(OBJECTS, ["teff", "age"])
    with pytest.raises(UserError, match="no scalar 'object'"):
        trained.generate_scalars(OBJECTS, ["object"])
    for band in ("V", "B mag", ""):
        with pytest.raises(UserError, match=f"band '{band}': the model knows R mag, V mag"):
            trained.generate_light_curve(OBJECTS, band, np.zeros(2))


def test_what_it_has_no_word_for_beside_what_it_has_is_told_and_left_out(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    plain = spectrum(3, pixels=40, scalars={"teff": (5000.0, 50.0)})
    more = spectrum(3, pixels=40, scalars={"teff": (5000.0, 50.0), "age": (5.0, 1.0)})
    with caplog.at_level(logging.WARNING, "hpcspec"):
        np.testing.assert_array_equal(trained.embed([more]), trained.embed([plain]))
    assert [r.getMessage() for r in caplog.records] == ["object-0003: the model was not trained on its scalar age"]


def one(flux: np.ndarray, ivar: np.ndarray | float = 4.0) -> Observation:
    x = 3600 + 0.5 * np.arange(len(flux))
    return hpcspec.spectrum(x, flux, np.broadcast_to(ivar, len(flux)).copy())


NOISE = np.random.default_rng(0).normal(0, 1, 50_000)
ODD = {
    "a single pixel": one(np.array([3.0])), "one patch": one(10 + NOISE[:8]), "50,000 pixels": one(10 + NOISE),
    "a constant spectrum": one(np.full(400, 7.0)), "negative flux": one(-10 + NOISE[:400]), "noise": one(NOISE[:400], 1e-6),
    "huge flux": one(1e30 * (10 + NOISE[:400]), 1e-36), "tiny flux": one(1e-30 * (10 + NOISE[:400]), 1e37),
    "one epoch": hpcspec.light_curve("V", [5.0], [14.0], [0.1]),
    "a constant light curve": hpcspec.light_curve("V", X, 0 * X, 0 * X + 1),
    "5,000 epochs": hpcspec.light_curve("R", np.arange(5000.0), 14 + NOISE[:5000], np.ones(5000)),
    "a scalar far off": hpcspec.scalars({"teff": 1e30}), "a scalar of 0 ± 0": hpcspec.scalars({"parallax": (0.0, 0.0)}),
    "one of everything": hpcspec.together(one(np.array([3.0])), hpcspec.light_curve("V", [5.0], [14.0], [0.1]),
                                          hpcspec.scalars({PERIOD: -40.0})),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_input_gives_finite_answers(trained: Trained, name: str) -> None:
    given = [ODD[name]]
    assert np.isfinite(trained.embed(given)).all()
    table = trained.predict(given)
    assert (
        np.isfinite(table["logg"][0])
        and table["logg_err"][0] > 0
        and table["p_dwarf"][0] + table["p_giant"][0] == pytest.approx(1)
    )
    for found in (trained.generate(given, X[:40]), trained.generate_light_curve(given, "V mag", np.arange(5.0)),
                  trained.generate_scalars(given, ["teff", "parallax"])):  # fmt: skip
        assert np.isfinite(found).all() and (found[1] > 0).all()


def test_input_that_is_none_is_a_user_error(trained: Trained) -> None:
    for x, said in ((X[::-1], "increas|ascend"), (np.repeat(X[:150], 2), "increas|ascend"), (-X, "increas|positive|ascend")):
        with pytest.raises(UserError, match=f"spectrum: .*({said})"):
            trained.embed([hpcspec.spectrum(x, FLUX, IVAR)])
    with pytest.raises(UserError, match="spectrum: .*differ in length"):
        hpcspec.spectrum(X, FLUX, IVAR[:5])
    with pytest.raises(UserError, match="light curve: .*differ in length"):
        hpcspec.light_curve("V", [1.0, 2.0], [3.0], [1.0])
    for nothing in (hpcspec.spectrum(X, FLUX, 0 * IVAR), hpcspec.scalars({"teff": float("nan")}),
                    hpcspec.light_curve("V", [1.0], [np.nan], [1.0]), hpcspec.light_curve("V", [1.0], [3.0], [0.0])):  # fmt: skip
        with pytest.raises(UserError, match="no valid pixel|no valid measurement"):
            trained.embed([star(1), nothing])


@pytest.mark.parametrize(
    "kind", ["spectrum without a good pixel beside an unread light curve", "read light curve without an epoch"]
)
def test_an_object_of_which_nothing_good_is_read_is_a_user_error(trained: Trained, kind: str) -> None:
    bad = spectrum(5, pixels=40).arms[0]
    empty = type(bad)(bad.name, bad.grid, bad.first, bad.flux, 0 * bad.ivar)
    unread = hpcspec.light_curve("B", [1.0], [14.0], [0.1]).curves
    silent = curve(3, 5)
    silent = type(silent)(silent.band, silent.time, silent.value, 0 * silent.ivar)
    given = spectrum(5, arms=(empty,), curves=unread) if kind[0] == "s" else spectrum(5, (), curves=(silent, *unread))
    with pytest.raises(UserError, match="object-0005"):
        trained.embed([given])


def test_a_checkpoint_of_another_configuration_is_a_user_error(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(folder, run.path)
    other = made(width=64)
    save_model(run.weights, other.config, other.vocabulary, other.state_dict())
    with pytest.raises(UserError, match="are of another model configuration"):
        hpcspec.load(run.path)
    shutil.copy(folder / "model/weights.safetensors", run.weights)
    with pytest.raises(UserError, match="are of another model configuration"):
        hpcspec.load(run.path)
    (run.weights.with_name("model.json")).write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match="model.json is missing or damaged: pretrain again"):
        hpcspec.load(run.path)
    run.weights.with_name("model.json").unlink()
    with pytest.raises(UserError, match="model.json"):
        hpcspec.load(run.path)
