"""The configuration: every key there is, with its default and its meaning. `config_files` says how YAML becomes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error, values don't change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Labels(Section):
    """A label table and how its columns map to ours; the columns named here are read, others are ignored."""

    path: str | None = None
    """CSV, FITS or Parquet, gzipped or not."""
    key: str = "object_id"
    """Column with the survey's own identifier."""
    object_class: str | None = None
    """Column with the class as text."""
    parameters: dict[str, str] = Field(default_factory=dict)
    """Our parameter name to the table's column name; `<ours>_err` names the column of its error."""
    optional: tuple[str, ...] = ()
    """Those of `parameters` that are learned where the table has their column, and else left out."""
    missing: tuple[float, ...] = (-9999.0, -999.0)
    """Numbers that mean "no value"; NaN and empty cells always do."""

    @model_validator(mode="after")
    def _errors(self) -> Labels:
        alone = [p for p in self.parameters if p.endswith("_err") and p.removesuffix("_err") not in self.parameters]
        if alone:
            raise ValueError(f"{alone[0]} in parameters is the error of {alone[0].removesuffix('_err')!r}, which is not there")
        return self


class Survey(Section):
    """One survey's files and labels."""

    input: str | None = None
    """Folder with the survey's files."""
    epochs: bool = False
    """Each epoch (exposure, visit) as an observation of its own, where the files hold them, instead of their combination."""
    labels: Labels = Labels()


class Ingest(Section):
    """Survey files to shards."""

    shard_mib: float = Field(default=128, gt=0)
    """Shards hold about this many MiB of samples."""
    tasks: int = Field(default=2, ge=1)
    """Processes that share the work on this machine; on Slurm the site says how many MPI ranks."""
    array: int = Field(default=0, ge=0)
    """Tasks of an array job that reads the files before the MPI job makes shards of them; 0: the MPI job does both."""
    samples: Literal["copy", "in_place"] = "copy"
    """Copy the samples into the shards, or leave them in the files (of the Multimodal Universe) and read them there, which
    takes no space and is slower."""
    keep_units: bool = False
    """Keep what was read of the files beside the shards (as large again), so that files added later are read alone."""
    compression: Literal["none", "blosc", "zstd"] = "none"
    """Filter of flux and ivar (hdf5plugin)."""


class Model(Section):
    """Size of the model; parameters grow as 12·width² a layer."""

    inputs: tuple[Literal["spectra", "curves", "scalars"], ...] = Field(default=("spectra", "curves", "scalars"), min_length=1)
    """Kinds of measurement that are read; what an object doesn't have costs nothing."""
    ignore: tuple[str, ...] = ()
    """Scalars that are not read, such as those that are labels too."""
    patch: int = Field(default=32, ge=1)
    """Contiguous native pixels in a token."""
    epochs: int = Field(default=4, ge=1)
    """Epochs of one band in a token."""
    width: int = Field(default=160, ge=8)
    layers: int = Field(default=4, ge=1)
    """Self-attention blocks of the encoder."""
    decoder_layers: int = Field(default=2, ge=1)
    """Cross-attention blocks of the query decoder."""
    heads: int = Field(default=4, ge=1)
    frequencies: int = Field(default=80, ge=4)
    """Sinusoids of the embedding of wavelengths, in λ and in ln λ each, and of times."""
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class Zero(Section):
    """DeepSpeed's ZeRO: what is split over the ranks, and what leaves the GPU."""

    stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @model_validator(mode="after")
    def _stages(self) -> Zero:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3")
        if self.offload_parameters and self.stage != 3:
            raise ValueError("offload_parameters needs stage 3")
        return self


class Training(Section):
    """Pretraining."""

    zero: Zero = Zero()
    precision: Literal["fp32", "bf16"] = "fp32"
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    tokens_per_batch: int = Field(default=8192, ge=64)
    """Token budget of one micro-batch on one rank; as many whole objects as fit."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon orthogonalises the steps of the matrices of hidden layers, and learns more in as many steps."""
    lr: float = Field(default=6e-4, gt=0)
    """Learning rate of AdamW."""
    matrix_lr: float = Field(default=1e-2, gt=0)
    """Learning rate of Muon."""
    warmup: int = Field(default=50, ge=0)
    """Steps of linear warm-up before the cosine."""
    weight_decay: float = Field(default=0.05, ge=0)
    clip: float = Field(default=1.0, gt=0)
    """Bound of the gradient norm, with AdamW."""
    mask: float | tuple[float, float] = 0.5
    """Share of each object's tokens that is hidden and asked for, or its least and most; 0 hides nothing and asks for all."""
    hide_whole: float = Field(default=0.2, ge=0, le=1)
    """Of the objects with several parts, the share of which whole parts are hidden instead, a share `mask` of them and at least
    one: spectra, bands and all scalars; of objects that are scalars alone, series (bp_0, bp_1, … are one) and single scalars."""
    summary_share: float = Field(default=0.25, ge=0, le=1)
    """Share of the queries that must also be answered from the summary alone, which makes it a good embedding."""
    halves: float = Field(default=0.3, ge=0)
    """Weight of the agreement of the summaries of what is seen of an object and of what is hidden, which makes repeat
    observations neighbours in the space of embeddings; 0 leaves it out."""
    contrastive: float = Field(default=0.1, ge=0)
    """Weight of the agreement of the summaries of spectra, light curves and scalars of one object; 0 leaves it out."""
    reconstruction: float = Field(default=1.0, ge=0)
    """Weight of the likelihood of what is asked for; 0 leaves it out."""
    activation_checkpointing: bool = False
    lanes: int = Field(default=16, ge=1)
    """Virtual lanes of the stream; at least as many as ranks. The order of the data depends on it."""
    block: int = Field(default=64, ge=1)
    """Objects read at once; fewer where there are not enough for every lane."""
    shuffle_blocks: int = Field(default=8, ge=1)
    """Blocks whose objects are shuffled together."""
    temperature: float = Field(default=1.0, gt=0)
    """How surveys are mixed: a survey of n objects gets a share of each epoch as n**(1/temperature). 1 delivers every object
    once; a high temperature gives every survey the same share."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Passes over a survey's objects in an epoch, beside `temperature`; 1 where a survey is not named."""
    changed_data: Literal["refuse", "new_epoch"] = "refuse"
    """What a resumed run does when the shards are not those that it began with."""
    prefetch: int = Field(default=4, ge=1)
    """Batches prepared ahead in the background."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    log_every: int = Field(default=10, ge=1)
    max_nonfinite: int = Field(default=10, ge=0)
    """Skipped non-finite steps before the run stops."""
    ranks: int = Field(default=2, ge=1)
    """Ranks on this machine with the local executor; on Slurm the site says nodes and GPUs."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a rank where there is no GPU."""

    @model_validator(mode="after")
    def _shares(self) -> Training:
        least, most = self.masks
        if not 0 <= least <= most < 1:
            raise ValueError(f"mask {self.mask} is not a share, or a lower and a higher one, from 0 to below 1")
        if not self.reconstruction and not self.contrastive:
            raise ValueError("reconstruction and contrastive are both 0: there is nothing to learn")
        return self

    @property
    def masks(self) -> tuple[float, float]:
        """The least and the most of `mask`."""
        return self.mask if isinstance(self.mask, tuple) else (self.mask, self.mask)

    def says(self) -> dict[str, Any]:
        """The settings that the weights depend on."""
        how = {"threads", "ranks", "log_every", "keep", "prefetch", "save_every", "max_nonfinite", "changed_data"}
        return self.model_dump(mode="json", exclude=how)


class Adapt(Section):
    """Heads for classes and parameters on the pretrained encoder."""

    mode: Literal["frozen", "low_rank", "full"] = "frozen"
    """Train the head alone, the head and low-rank changes of the encoder's layers, or head and encoder."""
    rank: int = Field(default=8, ge=1)
    """Rank of the changes with mode: low_rank."""
    steps: int = Field(default=4000, ge=1)
    """Optimizer steps; with the token budget they set the cost, whatever the number of labels."""
    minutes: float | None = Field(default=None, gt=0)
    """Limit of the wall time: on a slow machine the schedule is shortened to end by then."""
    tokens_per_batch: int = Field(default=2048, ge=64)
    """Token budget of a step, over all ranks. Small batches learn more from the same number of spectra."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW: of the head, and of what is no matrix of the encoder."""
    matrix_lr: float = Field(default=2e-3, gt=0)
    """Learning rate of Muon with mode: full, for the matrices of hidden layers."""
    average: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the running average of the weights, which is what is kept (not mode: frozen); 0 keeps the last."""
    weight_decay: float = Field(default=0.05, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    noise: float = Field(default=0.5, ge=0)
    """Training adds noise of up to this many σ to every measurement (mode: low_rank and full)."""
    drop_tokens: float | tuple[float, float] = 0.1
    """Share of the tokens left out at random in training, or its least and most (mode: low_rank and full)."""
    relabel: float = Field(default=0.0, ge=0, le=1)
    """Share of the training spectra that are moved to other labels in their neighbourhood (mode: low_rank and full). For
    parameters that make a spectrum what it is, as those of stars do; objects with other measurements stay as they are."""
    renew: float = Field(default=0.0, ge=0, le=1)
    """Share of those whose lines and noise are made anew, from the mean spectrum of their new labels."""
    refine: bool = False
    """Refine parameters by a fit of the mean spectra of which `relabel` makes new ones; for stars of one survey."""
    drop_kinds: float = Field(default=0.0, ge=0, lt=1)
    """Chance to leave out, in training, all but one kind of measurement of an object that has several (not mode: frozen)."""
    held_out: float = Field(default=0.2, ge=0, lt=0.9)
    """Share of the sky kept from pretraining and adaptation, for the figures in the summary; with 0 there are none."""
    calibration: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the rest on which the errors are scaled to cover 68 %; those of the catalogue are scaled on the held-out objects
    too, after these have been measured with."""
    baseline: Literal["xgboost", "pca-xgboost", "none"] = "pca-xgboost"
    """What the head stands beside in the summary: XGBoost on the pixels or on 64 principal components."""
    ranks: int = Field(default=2, ge=1)
    """Processes with `--executor local`; on a cluster the site says how many."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a rank where there is no GPU."""

    @model_validator(mode="after")
    def _shares(self) -> Adapt:
        least, most = self.dropped
        if not 0 <= least <= most < 1:
            raise ValueError(f"drop_tokens {self.drop_tokens} is not a share, or a lower and a higher one, from 0 to below 1")
        return self

    @property
    def dropped(self) -> tuple[float, float]:
        """The least and the most of `drop_tokens`."""
        return self.drop_tokens if isinstance(self.drop_tokens, tuple) else (self.drop_tokens, self.drop_tokens)


class Catalog(Section):
    """The array job that writes the catalogue."""

    tasks: int = Field(default=4, ge=1)
    """Array tasks."""
    pieces: int = Field(default=8, ge=1)
    """Pieces of work; they don't depend on the number of tasks, so neither do the published bytes."""
    tokens_per_batch: int = Field(default=16384, ge=64)
    threads: int = Field(default=1, ge=1)
    low_sn: float = Field(default=5.0, ge=0)
    """Objects with a median S/N below this are flagged LOW_SN."""
    few_pixels: int = Field(default=500, ge=0)
    """Objects with spectra of fewer valid pixels than this are flagged FEW_PIXELS."""
    few_epochs: int = Field(default=10, ge=0)
    """Objects without spectra, with light curves of fewer valid epochs than this, are flagged FEW_PIXELS."""
    ambiguous: float = Field(default=0.6, ge=0, le=1)
    """Objects whose most probable class has less than this are flagged CLASS_AMBIGUOUS."""


class Config(Section):
    """A whole pipeline."""

    name: str = "hpcspec"
    seed: int = 1
    surveys: dict[str, Survey] = Field(min_length=1)
    pretrained: str | None = None
    """A run folder, or the folder of its model, whose pretrained model is taken. Nothing is pretrained, and `model` is its."""
    simulate: dict[str, int] = Field(default_factory=dict)
    """Objects to simulate per survey before ingesting; the labels are the known truth."""
    ingest: Ingest = Ingest()
    model: Model = Model()
    training: Training = Training()
    adapt: Adapt = Adapt()
    catalog: Catalog = Catalog()

    @model_validator(mode="after")
    def _simulated(self) -> Config:
        unknown = set(self.simulate) - set(self.surveys)
        if unknown:
            raise ValueError(f"simulate names {sorted(unknown)}, not among the surveys")
        return self
