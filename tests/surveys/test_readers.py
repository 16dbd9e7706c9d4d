"""Finding readers: the built-in ones, and those of installed packages, each tried in a Python of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcspec.errors import UserError
from hpcspec.surveys import SURVEYS, reader

MODULE = '''
from pathlib import Path
from hpcspec.surveys.base import Quarantined, Source
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Observation, make_arm
import numpy as np

LABELS = frozenset({"teff"})

def discover(folder: Path) -> list[Source]:
    return [Source(p.name, (p,)) for p in sorted(folder.glob("*.txt"))]

def read(source):
    flux = np.loadtxt(source.paths[0])
    arm = make_arm("one", Grid("linear", 5000.0, 1.0), 0, flux, np.ones_like(flux))
    yield Observation(source.paths[0].stem, "mysurvey", 10.0, 20.0, (arm,), meta={"teff": 5000.0, "epochs": int(source.epochs)})
'''
TRY = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
from hpcspec.errors import UserError
from hpcspec.surveys import discover, labels, read, reader
survey, folder = sys.argv[1], Path(sys.argv[2])
try:
    for source in discover(survey, folder, epochs=True):
        for one in read(survey, source):
            print(one.object_id, one.survey, len(one.arms[0].flux), one.meta["epochs"], sorted(labels(survey, folder)))
except UserError as error:
    print("UserError:", error)
"""


def install(site: Path, package: str, entries: dict[str, str], module: str = MODULE) -> None:
    """A distribution built and installed by pip into the folder `site`: package `package` with the module `survey`."""
    project = site.parent / f"{package}-source"
    (project / package).mkdir(parents=True)
    (project / package / "__init__.py").touch()
    (project / package / "survey.py").write_text(module)
    listed = "".join(f'{name} = "{value}"\n' for name, value in entries.items())
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{package}"\nversion = "1.0"\n[project.entry-points."hpcspec.surveys"]\n{listed}'
    )
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
               "--no-build-isolation", "--target", str(site), str(project)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)


def tried(site: Path, survey: str, folder: Path) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{site}"}
    command = [sys.executable, "-c", TRY, survey, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two packages: a sound one, with a name that is taken and one that has no module behind it; and another."""
    site = tmp_path_factory.mktemp("plugins") / "site"
    mine = "myspectra.survey"
    install(site, "myspectra", {"mysurvey": mine, "sdss": mine, "gone": "myspectra.nothing", "half": "myspectra", "both": mine})
    install(site, "otherspectra", {"both": "otherspectra.survey", "broken": "otherspectra.survey"}, "1 / 0\n")
    return site


def test_an_installed_package_adds_a_survey(site: Path, tmp_path: Path) -> None:
    (tmp_path / "star7.txt").write_text("1 2 3 4\n")
    run = tried(site, "mysurvey", tmp_path)
    assert run.stdout == "star7 mysurvey 4 1 ['teff']\n" and not run.stderr


def test_an_unknown_name_lists_what_is_installed(site: Path, tmp_path: Path) -> None:
    run = tried(site, "mysurvye", tmp_path)
    assert run.stdout.startswith("UserError: unknown survey 'mysurvye': known are sdss, desi,")
    assert "generic, both, broken, gone, half, mysurvey" in run.stdout and "Did you mean 'mysurvey'?" in run.stdout


@pytest.mark.parametrize(
    ("survey", "said"),
    [
        ("broken", "package otherspectra (otherspectra.survey) can't be imported: ZeroDivisionError: division by zero"),
        ("gone", "package myspectra (myspectra.nothing) can't be imported: ModuleNotFoundError: No module named"),
        ("half", "package myspectra (myspectra) is not a reader: it has no LABELS, discover, read"),
        ("both", "offered by more than one package: myspectra, otherspectra; uninstall all but one"),
    ],
)
def test_a_package_that_is_broken_is_named(survey: str, said: str, site: Path, tmp_path: Path) -> None:
    run = tried(site, survey, tmp_path)
    assert run.stdout.startswith("UserError: ") and said in run.stdout, run.stdout


def test_a_built_in_survey_is_not_replaced_and_the_attempt_is_told(site: Path, tmp_path: Path) -> None:
    run = tried(site, "sdss", tmp_path)
    assert "holds no FITS files" in run.stdout, "the built-in reader's own words"
    assert run.stderr == "WARNING survey 'sdss' of package myspectra is not used: that is a built-in name; give it another one\n"


def test_a_misspelt_survey_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown survey 'apogge'.*Did you mean 'apogee'"):
        reader("apogge")


@pytest.mark.parametrize("survey", SURVEYS)
def test_every_built_in_survey_has_a_reader(survey: str) -> None:
    module = reader(survey)
    assert isinstance(module.LABELS, frozenset) and callable(module.discover) and callable(module.read)
