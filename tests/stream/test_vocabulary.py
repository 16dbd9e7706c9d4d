from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcspec.shards.objects import LIGHT_CURVE, SPECTRUM, Channel
from hpcspec.shards.shard import describe
from hpcspec.stream.vocabulary import CURVES, IGNORED, KINDS, OBJECT, PERIOD, SCALARS, SPECTRA, Vocabulary, vocabulary
from hpcspec.surveys.observation import make_curve
from tests.making import WORDS, curve, shard, spectrum, star

V, R, B = (Channel(LIGHT_CURVE, name, "mag", "hjd") for name in "VRB")
ARM = Channel(SPECTRUM, "b", "", "")
TEXTS = st.lists(st.text(min_size=1, max_size=6), max_size=4, unique=True).map(tuple)


SIZES, INPUTS = st.integers(1, 99), st.sets(st.sampled_from(KINDS[1:])).map(tuple)


@given(of=st.builds(Vocabulary, SIZES, SIZES, INPUTS, TEXTS, TEXTS))
def test_it_comes_back_from_json(of: Vocabulary) -> None:
    assert Vocabulary.from_json(json.loads(json.dumps(of.as_json()))) == of
    assert set(of.as_json()) == {"patch", "epochs", "inputs", "bands", "measured"}


def test_every_name_has_its_kind() -> None:
    assert WORDS.names == ("object", "log10_flux_scale", "log10_sn", "level R mag", "log10_amplitude R mag", "level V mag",
                           "log10_amplitude V mag", PERIOD, "parallax", "teff")  # fmt: skip
    assert WORDS.kinds.tolist() == [OBJECT] + [SPECTRA] * 2 + [CURVES] * 5 + [SCALARS] * 2
    assert WORDS.period == 0 and Vocabulary(measured=("teff",)).period is None
    assert Vocabulary().names == ("object", "log10_flux_scale", "log10_sn")


def test_channels_have_the_places_of_their_bands() -> None:
    channels = (V, ARM, B, R, V._replace(unit="mJy"))
    assert WORDS.band(channels).tolist() == [1, -1, IGNORED, 0, IGNORED]
    assert WORDS.band(()).tolist() == [] and WORDS.band(()).dtype == np.int64
    assert Vocabulary(inputs=("curves",), bands=("V mag",)).band(channels).tolist() == [0, IGNORED, IGNORED, IGNORED, IGNORED]
    assert Vocabulary(inputs=("spectra",), bands=("V mag",)).band(channels).tolist() == [IGNORED, -1, IGNORED, IGNORED, IGNORED]


def test_a_changed_one_forgets_the_places_of_the_old() -> None:
    assert WORDS.band((V, R)).tolist() == [1, 0]
    assert replace(WORDS, bands=("V mag",)).band((V, R)).tolist() == [0, IGNORED]


def test_scalars_are_put_where_it_names_them() -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    put = WORDS.scalars(values, ("teff", "age", "parallax"))
    assert put.shape == (2, 3, 2) and np.isnan(put[:, 0]).all()
    np.testing.assert_array_equal(put[:, [2, 1]], values[:, [0, 2]])
    assert WORDS.scalars(values, WORDS.measured) is values and WORDS.scalars(values[:, :0], ()).shape == (2, 3, 2)


def test_it_holds_what_the_shards_do(tmp_path: Path) -> None:
    flux = make_curve("V", np.arange(3.0), np.ones(3), np.ones(3), unit="mJy")
    old = spectrum(2, (), curves=(flux, curve(2)), scalars={"age": (1.0, 0.1)})
    paths = [shard(tmp_path / "sdss-0.h5", [spectrum(0), star(1)]), shard(tmp_path / "asas-0.h5", [old], survey="asas")]
    shards = [describe(p) for p in paths]
    every = ("spectra", "curves", "scalars")
    whole = vocabulary(shards, 16, 5, every)
    assert whole == vocabulary(shards[::-1], 16, 5, every)
    assert whole == Vocabulary(16, 5, every, ("R mag", "V mJy", "V mag"), ("age", PERIOD, "parallax", "teff"))
    assert vocabulary(iter(shards), 16, 5, every, ("teff", "nothing")).measured == ("age", PERIOD, "parallax")
    assert vocabulary(shards, 16, 5, ("spectra",)) == Vocabulary(16, 5, ("spectra",))
    assert vocabulary(shards, 16, 5, ("curves",)) == Vocabulary(16, 5, ("curves",), whole.bands, (PERIOD,))
    assert vocabulary(shards, 16, 5, ("scalars",)) == Vocabulary(16, 5, ("scalars",), (), ("age", "parallax", "teff"))


@pytest.mark.parametrize("missing", ["patch", "bands", "measured", "inputs", "epochs"])
def test_json_without_a_part_is_refused(missing: str) -> None:
    content = WORDS.as_json()
    del content[missing]
    with pytest.raises(KeyError):
        Vocabulary.from_json(content)


def test_spectra_that_no_shard_has_are_not_read(tmp_path: Path) -> None:
    """Or their layers would answer without having learned anything."""
    shards = [describe(shard(tmp_path / "a.h5", [spectrum(n, (), curves=(curve(n, 9),)) for n in range(3)]))]
    found = vocabulary(shards, 8, 4, ("spectra", "curves", "scalars"))
    assert found.inputs == ("curves", "scalars") and found.band((ARM,)).tolist() == [IGNORED]
