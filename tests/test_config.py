from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcspec.config import Config, Survey
from hpcspec.config_files import config_folder, dump, load, load_survey, validated
from hpcspec.errors import UserError
from hpcspec.surveys import SURVEYS

DEMO = config_folder() / "pipelines" / "demo.yaml"


def files(group: str) -> Any:
    found = sorted((config_folder() / group).rglob("*.yaml"))
    assert found
    return pytest.mark.parametrize("path", found, ids=lambda p: named(p, group))


def named(path: Path, group: str) -> str:
    """What a configuration file is called: parents/astrom3, say."""
    return path.relative_to(config_folder() / group).with_suffix("").as_posix()


@pytest.fixture
def write(tmp_path: Path):
    """Write a configuration and return its path."""

    def written(text: str, name: str = "pipeline.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def refused(path: Path, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, settings)
    return str(caught.value)


@files("pipelines")
def test_every_pipeline_loads(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem and set(config.surveys) <= set(SURVEYS)
    assert set(config.simulate) <= set(config.surveys)


@files("training")
def test_every_training_loads_and_keeps_what_it_says(path: Path) -> None:
    name = named(path, "training")
    training = load(DEMO, [f"training={name}"]).training
    said = yaml.safe_load(path.read_text())
    said.pop("base", None)
    assert said.items() <= training.model_dump(mode="json", exclude_unset=True).items()
    assert load(DEMO, [f"training={name}", "training.steps=7"]).training == training.model_copy(update={"steps": 7})


@files("models")
def test_every_model_loads(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    said.pop("base", None)
    assert load(DEMO, [f"model={named(path, 'models')}"]).model.model_dump(mode="json").items() >= said.items()


@files("surveys")
def test_every_survey_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCSPEC_DATA", "/data")
    config = load(DEMO, ["simulate={}", f"surveys=[{path.stem}]"])
    assert list(config.surveys) == [path.stem] and path.stem in SURVEYS
    assert config.surveys[path.stem].input == f"/data/{path.stem}"
    assert config.surveys[path.stem].labels.parameters or config.surveys[path.stem].labels.object_class


@pytest.mark.parametrize(("setting", "said"), [
    ("trainin.steps=3", "trainin: unknown key, did you mean 'training'?"),
    ("training.stepz=3", "training.stepz: unknown key, did you mean 'steps'?"),
    ("training.zero.stag=3", "training.zero.stag: unknown key, did you mean 'stage'?"),
    ("surveys.sdss.labels.kye=3", "surveys.sdss.labels.kye: unknown key, did you mean 'key'?"),
    ("surveys.sdss.inptu=3", "surveys.sdss.inptu: unknown key, did you mean 'input'?"),
    ("adapt.xyzzy=3", "adapt.xyzzy: unknown key, known are mode"),
])  # fmt: skip
def test_an_unknown_key_names_the_nearest_right_one(setting: str, said: str) -> None:
    assert said in refused(DEMO, setting)


def test_a_wrong_key_in_a_named_file_is_found_too(write) -> None:
    base = write("stepz: 3\n", "mine.yaml")
    assert "training.stepz: unknown key, did you mean 'steps'?" in refused(write(f"surveys: [sdss]\ntraining: {base}\n"))


@pytest.mark.parametrize(("setting", "said"), [
    ("training.steps=0", "training.steps: .*greater than or equal to 1.*it is 0"),
    ("training.steps=many", "training.steps: .*integer.*it is 'many'"),
    ("training.steps=1.5", "training.steps: .*integer.*it is 1.5"),
    ("training.mask=1.0", "training: mask 1.0 is not a share, or a lower and a higher one, from 0 to below 1"),
    ("training.mask=[0.7, 0.3]", r"training: mask \(0.7, 0.3\) is not a share, or a lower and a higher one"),
    ("training.mask=[0.1, 0.2, 0.3]", "training.mask"),
    ("training.mask=-0.1", "training: mask -0.1 is not a share"),
    ("training.hide_whole=1.5", "training.hide_whole: .*less than or equal to 1"),
    ("training.contrastive=-1", "training.contrastive: .*greater than or equal to 0"),
    ("training={reconstruction: 0, contrastive: 0}", "reconstruction and contrastive are both 0: there is nothing to learn"),
    ("model.inputs=[spectrum]", "model.inputs.*: .*'spectra', 'curves' or 'scalars'.*it is 'spectrum'"),
    ("model.epochs=0", "model.epochs: .*greater than or equal to 1"),
    ("adapt.mode=lora", "adapt.mode: .*'frozen', 'low_rank' or 'full'"),
    ("adapt.rank=0", "adapt.rank: .*greater than or equal to 1"),
    ("adapt.drop_kinds=1", "adapt.drop_kinds: .*less than 1"),
    ("catalog.few_epochs=-1", "catalog.few_epochs: .*greater than or equal to 0"),
    ("model.inputs=[]", "model.inputs"),
    ("training.precision=fp16", "training.precision: .*'fp32' or 'bf16'.*it is 'fp16'"),
    ("training.zero=3", "training.zero: .*it is 3"),
    ("training.zero.stage=4", "training.zero.stage: .*0, 1, 2 or 3"),
    ("training=[1]", r"training: .*it is \[1\]"),
    ("model.width=30", "model: width 30 is not divisible by heads 4"),
    ("adapt.held_out=1.5", "adapt.held_out: .*less than 0.9"),
    ("ingest.compression=lzf", "ingest.compression: .*'none', 'blosc' or 'zstd'"),
    ("name=[a]", "name: .*string"),
    ("surveys={}", "surveys: .*at least 1"),
    ("surveys=3", "surveys: .*it is 3"),
    ("surveys=[1]", "surveys: .*it is"),
    ("surveys=[{a: 1}]", "surveys: .*it is"),
    ("surveys.sdss=3", "surveys.sdss: .*it is 3"),
    ("surveys.sdss.labels.parameters={teff_err: e}", "surveys.sdss.labels: teff_err in parameters is the error of 'teff'"),
    ("simulate={boss: 3}", r"simulate names \['boss'\], not among the surveys"),
    ("training.zero={stage: 0, offload_optimizer: true}", "training.zero: offload_optimizer needs stage 1, 2 or 3"),
    ("training.zero={stage: 2, offload_parameters: true}", "training.zero: offload_parameters needs stage 3"),
    ("model=nanoo", "no configuration 'nanoo' in .*models: known are base, large, nano, parents/astrom3, .* xl"),
    ("surveys=[sdsss]", "no configuration 'sdsss' in .*surveys: known are apogee, asas"),
    ("model=missing.yaml", "no configuration 'missing.yaml'"),
    ("model={base: 3}", "base: 3 is not the name of a file in configs/models/"),
    ("steps", "--set 'steps': write it as a.b=value"),
    ("=3", "--set '=3': write it as a.b=value"),
    ("name=[", r"--set 'name=\[': the value is not valid YAML"),
])  # fmt: skip
def test_a_wrong_value_is_named_with_its_place(setting: str, said: str) -> None:
    assert re.search(said, refused(DEMO, setting)), refused(DEMO, setting)


def test_all_mistakes_are_told_at_once() -> None:
    said = refused(DEMO, "training.steps=0", "adapt.epoch=3", "catalog.tasks=no")
    assert all(name in said for name in ("training.steps:", "adapt.epoch:", "catalog.tasks:")) and str(DEMO) in said


def test_a_survey_alone_has_its_pipeline_or_the_defaults() -> None:
    assert load_survey("lamost") == load(config_folder() / "pipelines/lamost.yaml")
    assert load_survey("lamost", ["training.steps=7"]).training.steps == 7
    assert load_survey("eros") == load(config_folder() / "pipelines/eros.yaml")
    plain = load_survey("light_curves")
    assert plain.name == "light_curves" and list(plain.surveys) == ["light_curves"]
    own = load_survey("mysurvey", ["surveys.mysurvey.input=/data"])
    assert own.surveys["mysurvey"].input == "/data" and own.training == plain.training


@pytest.mark.parametrize(("content", "said"), [
    (b"", "the top level must be keys and values"), (b"- a\n", "the top level must be keys and values"),
    (b"a: [", "is not valid YAML"), (b"\xff\xfe\x00\x80", "is not valid YAML"), (b"name: x\n", "surveys: Field required"),
])  # fmt: skip
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "pipeline.yaml").write_bytes(content)
    assert said in refused(tmp_path / "pipeline.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "can't read configuration" in refused(tmp_path / "none.yaml") and "none.yaml" in refused(tmp_path / "none.yaml")


def test_settings_reach_every_depth_and_leave_the_rest() -> None:
    plain = load(DEMO)
    config = load(DEMO, ["seed=5", "training.zero.stage=3", "surveys.desi.labels.parameters.teff=T", "training.lr=3e-4"])
    assert (config.seed, config.training.zero.stage, config.training.lr) == (5, 3, 3e-4)
    assert config.surveys["desi"].labels.parameters == {**plain.surveys["desi"].labels.parameters, "teff": "T"}
    assert config.training.tokens_per_batch == plain.training.tokens_per_batch == 4096
    assert config.surveys["sdss"] == plain.surveys["sdss"] and config.model == plain.model


@pytest.mark.parametrize("surveys", ["[apogee, sdss]", "{apogee: , sdss: }", "{apogee: apogee, sdss: {base: sdss}}"])
def test_a_setting_of_one_survey_keeps_its_file_and_the_others(write, surveys: str) -> None:
    path = write(f"surveys: {surveys}\n")
    plain, config = load(path), load(path, ["surveys.apogee.input=/elsewhere"])
    assert config.surveys["apogee"] == plain.surveys["apogee"].model_copy(update={"input": "/elsewhere"})
    assert config.surveys["apogee"].labels.parameters and config.surveys["sdss"] == plain.surveys["sdss"]


def test_a_survey_may_be_given_by_its_name_alone(write) -> None:
    assert load(write("surveys: apogee\n")) == load(write("surveys: [apogee]\n"))
    both = load(write("surveys: apogee\n"), ["surveys.desi.input=x", "surveys.desi.base=desi"])
    assert list(both.surveys) == ["apogee", "desi"] and both.surveys["desi"].input == "x"


def test_base_files_build_on_each_other(write) -> None:
    first = write("steps: 5\nlr: 0.1\nzero: {stage: 3, offload_optimizer: true}\n", "first.yaml")
    second = write(f"base: {first}\nlr: 0.2\nzero: {{offload_parameters: true}}\n", "second.yaml")
    training = load(write(f"surveys: [sdss]\ntraining: {{base: {second}, steps: 7}}\n")).training
    assert (training.steps, training.lr) == (7, 0.2)
    assert training.zero.model_dump() == {"stage": 3, "offload_optimizer": True, "offload_parameters": True}


def test_environment_variables_stand_for_their_values(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRA", "/data/spectra")
    monkeypatch.delenv("UNSET_NAME", raising=False)
    path = write("surveys: {sdss: {input: $SPECTRA/sdss, labels: {path: '${SPECTRA}/l.csv', object_class: $UNSET_NAME}}}\n")
    survey = load(path).surveys["sdss"]
    assert (survey.input, survey.labels.path) == ("/data/spectra/sdss", "/data/spectra/l.csv")
    assert survey.labels.object_class == "$UNSET_NAME"


def test_the_folder_of_configurations_may_be_another(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "surveys").mkdir()
    (tmp_path / "surveys" / "mine.yaml").write_text("input: here\n")
    monkeypatch.setenv("HPCSPEC_CONFIGS", str(tmp_path))
    assert load(write("surveys: [mine]\n")).surveys == {"mine": Survey(input="here")}


@files("pipelines")
def test_the_resolved_configuration_loads_to_the_same(path: Path, write) -> None:
    config = load(path, ["training.lr=0.00012345678901234567"])
    assert load(write(dump(config))) == config


def test_a_configuration_doesn_t_change_once_read() -> None:
    config = load(DEMO)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("mask", "wanted"), [("0", (0.0, 0.0)), ("0.5", (0.5, 0.5)), ("[0.1, 0.8]", (0.1, 0.8)), ("[0, 0.3]", (0.0, 0.3))]
)
def test_a_mask_is_a_share_or_a_range_and_comes_back(write, mask: str, wanted: tuple[float, float]) -> None:
    config = load(DEMO, [f"training.mask={mask}"])
    assert config.training.masks == wanted and load(write(dump(config))) == config


def test_the_kinds_to_read_come_back(write) -> None:
    config = load(DEMO, ["model.inputs=[curves, scalars]", "model.ignore=[teff]"])
    assert config.model.inputs == ("curves", "scalars") and config.model.ignore == ("teff",)
    assert load(write(dump(config))) == config


def test_a_plain_mapping_is_validated_too() -> None:
    with pytest.raises(UserError, match="here: sede: unknown key, did you mean 'seed'"):
        validated(Config, {"surveys": {"sdss": {}}, "sede": 1}, "here")
