"""The result file of the throughput suites on one machine, as `make bench` keeps it: schema, reading, writing."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, PositiveFloat, model_validator

from ptgm_fast.models.weights import write_atomically
from ptgm_fast.records import Part, read_record

FORMAT: Literal["ptgm-fast benchmarks"] = "ptgm-fast benchmarks"
VERSION: Literal[1] = 1
AGAIN = "Measure again with: make bench"

Role = Literal["own", "peer", "floor"]


class Finite(Part):
    """Rejects NaN and infinities: NaN would compare as equal to everything."""

    model_config = ConfigDict(allow_inf_nan=False)


class Contender(Finite):
    """One implementation of a case's work."""

    name: str
    role: Role = Field(
        description="own: this project's, in any form; peer: another implementation; floor: less work than the case's"
    )
    seconds: tuple[PositiveFloat, ...] = Field(
        min_length=1, description="median time per call in each round; round i of all contenders ran together"
    )  # fmt: skip
    quartiles: tuple[PositiveFloat, PositiveFloat] = Field(
        description="first and third, of all calls' seconds"
    )
    calls: int = Field(ge=1, description="timed calls, over all rounds")
    facts: dict[str, float | str] = Field(
        default={},
        description="other values that the suite recorded, by name; numbers are medians over rounds",
    )

    @property
    def median(self) -> float:
        """Seconds per call: the median of the rounds' medians."""
        return statistics.median(self.seconds)


class CaseResult(Finite):
    """Contenders that did the same work on the same inputs in one process, taking turns round by round."""

    name: str
    suite: str = Field(description="the folder under benchmarks/ that measured it")
    threads: int | None = Field(ge=1, description="null: the suite's own choice, or a GPU")
    isa: str | None = Field(
        default=None,
        description="our code's instruction set; null on a GPU, without the C++, and in older files",
    )
    images: int | None = Field(default=None, ge=1, description="images made per call, if any")
    contenders: tuple[Contender, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_rounds_are(self) -> Self:
        names = [contender.name for contender in self.contenders]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name!r} has a contender twice")
        if len({len(contender.seconds) for contender in self.contenders}) > 1:
            raise ValueError(f"the contenders of {self.name!r} had different numbers of rounds")
        return self

    @property
    def lowered(self) -> bool:
        """Whether the instruction set is narrower than the processor's; the name then ends with it."""
        return self.isa is not None and self.name.endswith(f", {self.isa}")

    def of_role(self, role: Role) -> list[Contender]:
        return [contender for contender in self.contenders if contender.role == role]

    @property
    def best_peer(self) -> Contender | None:
        """The fastest peer; floors do not count."""
        return min(self.of_role("peer"), key=lambda peer: peer.median, default=None)


class Machine(Finite):
    """The machine, without its host name."""

    processor: str
    cores: int = Field(ge=1)
    gpu: str | None = Field(default=None, description="null if the host's clock was used")
    isa: str | None = Field(
        default=None,
        description="our code's widest instruction set; null on a GPU, without the C++",
    )

    @property
    def isa_title(self) -> str | None:
        """As its makers write it."""
        return {"avx512": "AVX-512", "avx2": "AVX2"}.get(self.isa or "", self.isa)

    @property
    def title(self) -> str:
        cores = f"{self.cores} cores of {self.processor}"
        return self.gpu or (f"{cores} ({self.isa_title})" if self.isa else cores)


class Benchmarks(Finite):
    """One run of the suites. Times are seconds."""

    format: Literal["ptgm-fast benchmarks"] = FORMAT
    version: Literal[1] = VERSION
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    device: Literal["cpu", "cuda"] = Field(
        description="where the contenders ran; cuda: timed by CUDA events"
    )
    machine: Machine
    versions: dict[str, str] = Field(description="of the compared packages")
    cases: tuple[CaseResult, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        counts = Counter(case.name for case in self.cases)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"duplicate cases: {', '.join(twice)}")
        return self


def duration(seconds: float) -> str:
    """Three digits and a unit: 1.60 s, 22.3 ms, 237 µs."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size or unit == "µs":
            value = seconds / size
            digits = max(0, 2 - math.floor(math.log10(value)))
            return f"{value:.{min(digits, 2)}f} {unit}"
    raise AssertionError


def read_benchmarks(path: Path) -> Benchmarks:
    """Read a result file. Raises UserError if it does not exist, is damaged, or has another version."""
    return read_record(path, Benchmarks, what="file of benchmarks", again=AGAIN)


def write_benchmarks(path: Path, results: Benchmarks) -> None:
    """Write each case and each contender on its own line: short, and a diff shows which contender changed."""
    cases = [
        json.dumps(case.model_dump(exclude={"contenders"}))[:-1]
        + ', "contenders": [\n  '
        + ",\n  ".join(json.dumps(c.model_dump(exclude_defaults=True)) for c in case.contenders)
        + "]}"
        for case in results.cases
    ]
    head = json.dumps(results.model_dump(exclude={"cases"}))[:-1]
    whole = head + ', "cases": [\n' + ",\n".join(cases) + "\n]}\n"
    write_atomically(path, whole.encode())
