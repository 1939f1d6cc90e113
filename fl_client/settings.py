"""An agent's settings: one TOML file, environment RENGO_AGENT_…, and flags over both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from fl_client.bundles.policy import BundleSettings
from fl_client.machine.accelerators import ALL, AUTO
from runtime.config import AbsolutePath
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from fl_client.datasets.settings import DataSettings
else:
    # most devices have no data of their own, and the checks of these settings take memory
    DataSettings = Any

AcceleratorName: TypeAlias = Annotated[
    str, Field(pattern=r"^(auto|all|mps|cpu|(cpu|cuda|rocm):\d{1,4})$")
]


def _partition(given: str) -> str:
    if given:
        from fl_client.datasets.splits.scheme import parse  # noqa: PLC0415  few devices share data

        try:
            parse(given)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    return given


class AgentSettings(BaseModel):
    """What one device's agent is told.

    Attributes:
        identity: the device's identity file.
        data_dir: where the agent keeps its journal, models and updates; its own folder.
        tasks: what may run here: names of installed tasks, or ``file.py:Class``.
        engine: "auto" takes torch where it is installed, else numpy.
        index: which of ``count`` parts of a shared data set is this device's.
        data_seed: the same on all devices that share a data set.
        partition: how a shared data set is divided over the devices, as ``dirichlet:0.1`` or
            ``iid+turned``; empty: as the task has it. The same on all that share it.
        keep_warm_s: how long the training process outlives its last job.
        checkpoint_s: the shortest pause between two checkpoints of a training.
        checkpoint_mib: what a round's checkpoints may write in all; 0: none are written.
        accelerators: what orders run on: ``cuda:0``, ``rocm:1``, ``mps`` or ``cpu``. "auto" is the
            first one found where the profile is gpu, else the CPU; "all" is all of its kind.
            Several, of one kind, share each batch of an order; ``cpu:0,cpu:1`` are two threads.
        precision: of the torch engine; "auto" is bfloat16 or float16 where the accelerator is made
            for it, with weights and optimiser in float32.
        compile: a backend of ``torch.compile``, for example ``inductor``.
        loader_threads: that read the items of a torch Dataset.
        bundles: which tasks may come over the network, signed by whom.
        data: what the device gathers itself, by task.
    """

    # built when first used: of this class and those above it an agent uses one
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    identity: AbsolutePath
    data_dir: AbsolutePath
    tasks: Annotated[list[str], Field(min_length=1)] = ["digits"]
    engine: Literal["auto", "torch", "numpy"] = "auto"
    profile: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "cpu"
    role: Literal["trainer", "evaluator"] = "trainer"
    index: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] = 1
    data_seed: Annotated[int, Field(ge=0)] = 0
    folder: AbsolutePath | None = None
    partition: Annotated[str, AfterValidator(_partition)] = ""
    labels: Annotated[dict[str, Annotated[str, Field(max_length=2000)]], Field(max_length=64)] = {}
    keep_warm_s: Annotated[float, Field(ge=0)] = 60.0
    checkpoint_s: Annotated[float, Field(ge=0)] = 60.0
    checkpoint_mib: Annotated[int, Field(ge=0)] = 256
    accelerators: Annotated[list[AcceleratorName], Field(min_length=1, max_length=64)] = [AUTO]
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Annotated[str, Field(pattern=r"^[a-z_]{0,32}$")] = ""
    loader_threads: Annotated[int, Field(ge=0, le=64)] = 0
    bundles: BundleSettings = BundleSettings()
    data: dict[str, DataSettings] = {}

    @field_validator("data", mode="before")
    @classmethod
    def _sections(cls, given: object) -> object:
        if not given or not isinstance(given, dict):
            return given
        from fl_client.datasets.settings import read_sections  # noqa: PLC0415  see above

        return read_sections(given)

    @field_validator("accelerators", mode="before")
    @classmethod
    def _as_list(cls, given: object) -> object:
        if isinstance(given, str):
            return [name.strip() for name in given.split(",") if name.strip()]
        return given

    @field_validator("accelerators")
    @classmethod
    def _of_one_kind(cls, names: list[str]) -> list[str]:
        alone = next((name for name in names if name in (AUTO, ALL)), None)
        if len(names) > 1 and alone is not None:
            raise ValueError(f"{alone!r} stands alone")
        kinds = sorted({name.partition(":")[0] for name in names})
        if len(kinds) > 1:
            raise ValueError(f"accelerators of one kind, please, not of {' and '.join(kinds)}")
        places = ["cpu:0" if name == "cpu" else name for name in names]
        twice = next((name for name in places if places.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is named twice")
        return names

    @property
    def family(self) -> str:
        """What a task is told of this device: ``pi`` for every board of that name."""
        return "pi" if self.profile.startswith("pi") else self.profile

    @model_validator(mode="after")
    def _index_is_a_part(self) -> AgentSettings:
        if self.index >= self.count:
            raise ValueError(f"index {self.index} is not within 0..{self.count - 1}")
        return self
