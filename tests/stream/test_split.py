from __future__ import annotations

from collections.abc import Callable

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy_healpix import HEALPix
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.shards.objects import encoded, healpix29
from hpcspec.stream.split import MARGIN, ORDER, lowest_fraction, sky_fraction

COUNT = 4000
SKY = HEALPix(nside=2**ORDER, order="nested")
Position = tuple[np.ndarray, np.ndarray]


def columns(ra: np.ndarray, dec: np.ndarray) -> dict[str, np.ndarray]:
    names = encoded([f"n{i}" for i in range(len(ra))])
    return {"id": names, "healpix": healpix29(ra, dec), "approximate": np.zeros(len(ra), np.int8)}


def anywhere(rng: np.random.Generator) -> Position:
    return rng.uniform(0, 360, COUNT), np.degrees(np.arcsin(rng.uniform(-1, 1, COUNT)))


def north_pole(rng: np.random.Generator) -> Position:
    return rng.uniform(0, 360, COUNT), 90 - rng.uniform(0, 6, COUNT) / 3600


def south_pole(rng: np.random.Generator) -> Position:
    return rng.uniform(0, 360, COUNT), 10 ** rng.uniform(0, 4, COUNT) / 3600 - 90


def where_ra_wraps(rng: np.random.Generator) -> Position:
    dec = rng.uniform(-89.9, 89.9, COUNT)
    return rng.normal(0, MARGIN / 3600, COUNT) / np.cos(np.radians(dec)) % 360, dec


def skewed(rng: np.random.Generator) -> Position:
    """Along the borders of the base pixels near the poles."""
    ra, dec = where_ra_wraps(rng)
    return (ra + 90 * rng.integers(0, 4, COUNT)) % 360, np.sign(dec) * rng.uniform(42, 89.99, COUNT)


def borders(rng: np.random.Generator) -> Position:
    """On the borders of pixels."""
    pixels, along = rng.integers(0, SKY.npix, COUNT), rng.uniform(0, 1, COUNT)
    dx, dy = np.where(rng.random(COUNT) < 0.5, (along, rng.integers(0, 2, COUNT)), (rng.integers(0, 2, COUNT), along))
    lon, lat = SKY.healpix_to_lonlat(pixels, dx, dy)
    return lon.deg, lat.deg


def corners(rng: np.random.Generator) -> Position:
    lon, lat = SKY.healpix_to_lonlat(rng.integers(0, SKY.npix, COUNT), rng.integers(0, 2, COUNT), rng.integers(0, 2, COUNT))
    return lon.deg, lat.deg


PLACES: list[Callable[[np.random.Generator], Position]] = [
    anywhere, north_pole, south_pole, where_ra_wraps, skewed, borders, corners]  # fmt: skip


def moved(ra: np.ndarray, dec: np.ndarray, angle: np.ndarray, arcsec: np.ndarray) -> Position:
    there = SkyCoord(ra * u.deg, dec * u.deg).directional_offset_by(angle * u.rad, arcsec * u.arcsec)
    return there.ra.deg, there.dec.deg


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_repeat_of_a_held_out_object_is_trained_on(place: Callable[[np.random.Generator], Position], seed: int) -> None:
    """Objects around a place, and repeats up to 2 arcsec away: for every share at once."""
    rng = np.random.default_rng([seed, 5])
    ra, dec = moved(*place(rng), rng.uniform(0, 2 * np.pi, COUNT), rng.uniform(0, 2 * MARGIN, COUNT))
    again = moved(ra, dec, rng.uniform(0, 2 * np.pi, COUNT), MARGIN * np.sqrt(rng.uniform(0, 1, COUNT)))
    one, other = columns(ra, dec), columns(*again)
    assert (lowest_fraction(one, seed) <= sky_fraction(other, seed)).all()
    assert (lowest_fraction(other, seed) <= sky_fraction(one, seed)).all()
    apart = (one["healpix"] >> 38 != other["healpix"] >> 38).sum()
    assert apart > (10 if place in (anywhere, south_pole) else 100)  # the test sees something


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_few_objects_are_on_neither_side(share: float) -> None:
    ra, dec = np.concatenate([anywhere(np.random.default_rng(i)) for i in range(5)], axis=1)
    held, trained = sky_fraction(columns(ra, dec), 1) < share, lowest_fraction(columns(ra, dec), 1) >= share
    assert not (held & trained).any() and (~held & ~trained).mean() < 0.02


@given(seed=st.integers(0, 2**63))
def test_the_share_of_the_sky_is_uniform(seed: int) -> None:
    some = columns(*anywhere(np.random.default_rng(8)))
    counts = np.histogram(sky_fraction(some, seed), bins=8, range=(0, 1))[0]
    assert counts.sum() == COUNT and np.abs(counts - COUNT / 8).max() < 6.5 * np.sqrt(COUNT / 8)


def test_seeds_are_independent() -> None:
    some = columns(*anywhere(np.random.default_rng(9)))
    fractions = np.array([sky_fraction(some, seed) for seed in (0, 1, 2**32, 2**32 + 1, 2**40)])
    correlation = np.corrcoef(fractions)
    assert np.abs(correlation[~np.eye(5, dtype=bool)]).max() < 6 / np.sqrt(COUNT)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), data=st.data())
def test_an_object_stays_on_its_side_whatever_else_there_is(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    ra, dec = borders(rng)
    some = columns(ra, dec)
    some["approximate"][rng.random(COUNT) < 0.1] = 1
    chosen = rng.permutation(COUNT)[: data.draw(st.integers(0, COUNT))]
    part = {name: values[chosen] for name, values in some.items()}
    assert (sky_fraction(part, seed) == sky_fraction(some, seed)[chosen]).all()
    assert (lowest_fraction(part, seed) == lowest_fraction(some, seed)[chosen]).all()


@pytest.mark.parametrize("position", ["approximate", "none"])
def test_without_a_position_of_its_own_an_object_goes_by_its_identifier(position: str) -> None:
    """Its repeats, wherever they are put, are on its side; other objects at the same place are not bound to it."""
    names = encoded([f"star-{i % 500}" for i in range(1000)])
    rng = np.random.default_rng(3)
    ra, dec = (np.full(1000, np.nan),) * 2 if position == "none" else (rng.uniform(0, 360, 1000), rng.uniform(-5, 5, 1000))
    some = {"id": names, "healpix": healpix29(ra, dec), "approximate": np.full(1000, position == "approximate", np.int8)}
    for seed in (0, 7):
        fraction = sky_fraction(some, seed)
        assert (fraction[:500] == fraction[500:]).all() and (lowest_fraction(some, seed) == fraction).all()
        assert len(set(fraction[:500])) == 500 and abs(fraction.mean() - 0.5) < 0.08
    assert not np.allclose(sky_fraction(some, 0), sky_fraction(some, 7))


def test_no_objects() -> None:
    nothing = columns(np.zeros(0), np.zeros(0))
    assert len(sky_fraction(nothing, 1)) == len(lowest_fraction(nothing, 1)) == 0
