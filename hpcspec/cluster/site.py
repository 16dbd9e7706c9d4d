"""What is particular to a cluster: account, partition, modules, nodes and GPUs of each stage. YAML, never code."""

from __future__ import annotations

import os
import shutil
import subprocess

from pydantic import Field

from hpcspec.config import Section
from hpcspec.config_files import named_file, read_yaml, validated
from hpcspec.errors import UserError


class Resources(Section):
    """What one stage asks of Slurm."""

    nodes: int = Field(default=1, ge=1)
    tasks_per_node: int = Field(default=1, ge=1)
    """Ranks on a node; for pretraining one per GPU."""
    cpus_per_task: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    mem: str | None = None
    """Memory of a node, as Slurm writes it (64GB)."""
    minutes: int = Field(default=60, ge=1)
    """Time limit."""
    partition: str | None = None
    """Overrides the site's."""


class Stages(Section):
    """The stages; one task on one node for an hour unless the site says otherwise."""

    simulate: Resources = Resources()
    read: Resources = Resources()
    ingest: Resources = Resources()
    pretrain: Resources = Resources()
    adapt: Resources = Resources()
    catalog: Resources = Resources()
    merge: Resources = Resources()


class Site(Section):
    """One cluster."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    modules: list[str] = Field(default_factory=list)
    """Loaded with `module load` before anything else."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Exported in every job."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines run in every job before the program."""
    srun: list[str] = Field(default_factory=lambda: ["--mpi=pmix"])
    """Arguments of srun."""
    array_parallelism: int = Field(default=64, ge=1)
    """Array tasks at the same time."""
    stages: Stages = Stages()
    """Resources of each stage."""

    def resources(self, stage: str) -> Resources:
        """What a stage asks for."""
        found: Resources = getattr(self.stages, stage)
        return found

    def shell(self) -> list[str]:
        """The lines that prepare a job's shell."""
        quoted = {k: v.replace("'", "'\\''") for k, v in self.environment.items()}
        return [*(f"module load {m}" for m in self.modules), *(f"export {k}='{v}'" for k, v in quoted.items()), *self.setup]


def load_site(name: str | None = None) -> Site:
    """The site of this name or YAML path; by default `$HPCSPEC_SITE`, else `default`.

    Raises UserError for an unknown name or key.
    """
    path = named_file("sites", name or os.environ.get("HPCSPEC_SITE") or "default")
    return validated(Site, read_yaml(path), str(path))


def default_executor() -> str:
    """`$HPCSPEC_EXECUTOR`, else slurm where a Slurm controller answers, else local."""
    chosen = os.environ.get("HPCSPEC_EXECUTOR")
    if chosen:
        if chosen not in ("slurm", "local", "debug"):
            raise UserError(f"HPCSPEC_EXECUTOR is {chosen!r}: it must be slurm, local or debug")
        return chosen
    if shutil.which("sbatch") and shutil.which("scontrol"):
        try:
            answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=10, check=False)
            if "UP" in answer.stdout:
                return "slurm"
        except subprocess.TimeoutExpired:
            pass
    return "local"


def main() -> None:
    """Print the site's shell lines and srun arguments, for the templates in slurm/ to evaluate."""
    site = load_site()
    print("\n".join(site.shell()))
    print("SRUN_ARGUMENTS=(" + " ".join("'" + a.replace("'", "'\\''") + "'" for a in site.srun) + ")")


if __name__ == "__main__":
    main()
