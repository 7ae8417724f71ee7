"""Search for a cheaper budget with the same validation accuracy, by successive halving over seeds."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ptgm_fast.config import RunConfig, config_to_toml
from ptgm_fast.errors import UserError
from ptgm_fast.runs import figures
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.runs.own_classifier import train_classifier
from ptgm_fast.runs.plots import save
from ptgm_fast.runs.task import Task, build_task, versions
from ptgm_fast.runs.train import make_stages, run_stages
from ptgm_fast.sampling import derive_seed
from ptgm_fast.training.context import Context

# Disjoint from the seeds that people report: 0, 1, 2, ...
FIRST_SEED = 1000
# Number of seeds that a trial has been run on after each round.
ROUNDS = (1, 2, 4, 8)
LEAST_TRIALS = 8
# Settings of a trial: dotted names and values. Empty for the config itself.
Settings = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One budget on one seed: its validation accuracy, and the seconds of its stages including making pools."""

    number: int
    seed: int
    settings: Settings
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Budget:
    """A budget over its seeds. gain: in validation accuracy over the config itself, same seeds; error: its standard error."""

    number: int
    settings: Settings
    seeds: int
    accuracy: float
    seconds: float
    gain: float
    error: float


def space(config: RunConfig) -> dict[str, list[Any]]:
    """The search space: the values of each setting, the config's own value first."""
    found: dict[str, list[Any]] = {}
    if "pp" in config.stages:
        pp = config.pp
        found["pp.steps"] = _parts(pp.steps, (1, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6))
        found["pp.lr"] = [pp.lr, 2 * pp.lr, pp.lr / 2]
        found["pp.batch_size"] = [pp.batch_size, *_parts(pp.batch_size, (1 / 2,))]
        own = config.model_dump(mode="json")["pp"]["resolution"]
        others = [[[0.5, share], [1.0, 1.0]] for share in (0.4, 0.6, 0.8)]
        found["pp.resolution"] = [own, [[1.0, 1.0]], *others]
        parts = [p for p in ("1/4", "1/8", "1/16") if p != config.synthesis.images]
        found["synthesis.images"] = [config.synthesis.images, *parts]
    training = config.training
    found["training.steps"] = _parts(training.steps, (1, 4 / 3, 2 / 3, 1 / 2))
    found["training.lr"] = [training.lr, 2 * training.lr]
    found["training.batch_size"] = [training.batch_size, *_parts(training.batch_size, (1 / 2,))]
    if "p-ssl" in config.stages:
        size = config.p_ssl.batch_size
        found["p_ssl.batch_size"] = [size, *_parts(size, (1 / 2,))]
        each = config.synthesis.images_per_target
        parts = [p for p in ("1/2", "1/4", "1/8") if p != each]
        found["synthesis.images_per_target"] = [each, *parts]
    return found


def _parts(value: int, parts: Sequence[float]) -> list[int]:
    return [max(2, round(value * part)) for part in parts]


def candidate(values: Mapping[str, Sequence[Any]], number: int) -> Settings:
    """The settings of a trial. Trial 0 is the config itself; the others are drawn at random, seeded by their number."""
    if number == 0:
        return {}
    rng = random.Random(derive_seed(number, "tune"))
    drawn = {name: rng.choice(list(choices)) for name, choices in values.items()}
    return {name: value for name, value in drawn.items() if value != values[name][0]}


def with_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """The config with these settings. Raises ValidationError if they do not fit together."""
    values = config.model_dump(mode="json", exclude_none=True)
    for name, value in settings.items():
        *tables, key = name.split(".")
        place = values
        for table in tables:
            place = place[table]
        place[key] = value
    return RunConfig.model_validate(values)


def measure(task: Task, context: Context | None = None) -> tuple[float, float, list[float]]:
    """Train the task. Returns validation accuracy, seconds of all stages including making pools, and seconds of each stage.

    Raises UserError if there are no validation images.
    """
    if not len(task.data.validation):
        raise UserError("there are no validation images: set data.validation_per_class")
    network = task.new_network()
    began = time.perf_counter()
    results = run_stages(make_stages(task, network), context or Context())
    seconds = time.perf_counter() - began
    accuracy = results[-1].validation_accuracy
    assert accuracy is not None
    return accuracy, seconds, [result.seconds for result in results]


def tune(
    config: RunConfig,
    out: Path | str,
    *,
    minutes: float,
    resume: bool = False,
    context: Context | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> dict[str, Any]:
    """Search for about `minutes` minutes in the folder `out`; return the content of tune.json.

    Half of the time goes to budgets on one seed each, drawn from `space`. Of those that are faster than the config itself,
    the more accurate half advances to 2, 4 and 8 seeds. Only validation images are used, and seeds from `FIRST_SEED` on.
    chosen.toml is the config with the fastest budget that is not worse than the config itself by more than one standard
    error. metrics.jsonl has one line per training; with resume, trainings listed there are not repeated. Raises UserError
    as `train` does, and `Interrupted`.
    """
    context, path = context or Context(), Path(out)
    # Input errors are found before the folder exists.
    task = build_task(config, on_notice=context.on_notice, on_images=context.on_images)
    values = space(config)
    with RunFolder.writing(path, resume=resume) as folder:
        if not resume:
            folder.write_config(config_to_toml(config))
        train_classifier(task.source, config, path, context)
        done = {(t.number, t.seed): t for t in (Trial(**r) for r in folder.read_metrics())}
        folder.write_metrics([asdict(t) for t in done.values()])

        def run(number: int, seed: int) -> Trial | None:
            if (number, seed) in done:
                return done[number, seed]
            settings = candidate(values, number)
            try:
                chosen = with_settings(config, settings).model_copy(update={"seed": seed})
                accuracy, seconds, _ = measure(build_task(chosen, task), context)
            except (ValidationError, UserError):
                if number == 0:
                    raise
                return None
            trial = Trial(number, seed, settings, accuracy, seconds)
            done[number, seed] = trial
            folder.append_metrics(asdict(trial))
            on_trial(trial)
            return trial

        numbers = list(_first_round(run, 60 * minutes))
        for rounds, upto in itertools.pairwise(ROUNDS):
            kept = halved([budget(done, n, rounds) for n in numbers])
            numbers = [n for n in kept if all(run(n, FIRST_SEED + s) for s in range(upto))]
        found = [budget(done, n, ROUNDS[-1]) for n in numbers]
        chosen = choose(found)
        report = {
            "task": config.task,
            "device": str(task.device),
            "versions": versions(),
            "seeds": [FIRST_SEED + s for s in range(ROUNDS[-1])],
            "validation_images": len(task.data.validation),
            "budgets": [asdict(b) for b in sorted(found, key=lambda b: b.seconds)],
            "chosen": asdict(chosen),
            "seconds": sum(t.seconds for t in done.values()),
        }
        folder.write_json(path / "tune.json", report)
        settled = with_settings(config, chosen.settings)
        folder.write_text(path / "chosen.toml", config_to_toml(settled))
        first = [budget(done, n, 1) for n in {number for number, _ in done}]
        save(figures.frontier(first, found, chosen), path / "frontier.png")
    return report


def _first_round(run: Callable[[int, int], Trial | None], seconds: float) -> Iterator[int]:
    """Run as many budgets as fit into half of the time, the config itself first; yield their numbers."""
    spent, number, ran = 0.0, 0, 0
    # Draws that do not fit together are skipped; the limit ends the loop even if none fits.
    while number < 10_000 and (spent < seconds / 2 or ran < LEAST_TRIALS):
        trial = run(number, FIRST_SEED)
        if trial is not None:
            spent, ran = spent + trial.seconds, ran + 1
            yield number
        number += 1


def budget(done: Mapping[tuple[int, int], Trial], number: int, seeds: int) -> Budget:
    """Average a budget over its first seeds, compared with the config itself on the same seeds."""
    pairs = [(done[number, FIRST_SEED + s], done[0, FIRST_SEED + s]) for s in range(seeds)]
    gains = [a.validation_accuracy - b.validation_accuracy for a, b in pairs]
    return Budget(
        number=number,
        settings=pairs[0][0].settings,
        seeds=seeds,
        accuracy=statistics.fmean(a.validation_accuracy for a, _ in pairs),
        seconds=statistics.median(a.seconds for a, _ in pairs),
        gain=statistics.fmean(gains),
        error=statistics.stdev(gains) / math.sqrt(seeds) if seeds > 1 else math.inf,
    )


def halved(found: Sequence[Budget]) -> list[int]:
    """The numbers of the config itself and of the more accurate half of the faster budgets."""
    (own,) = (b for b in found if b.number == 0)
    others = [b for b in found if b.number and b.seconds < own.seconds]
    others.sort(key=lambda b: (-b.accuracy, b.seconds, b.number))
    return [0, *(b.number for b in others[: -(-len(others) // 2)])]


def choose(found: Sequence[Budget]) -> Budget:
    """The fastest budget that is not worse than the config itself by more than one standard error of the paired difference."""
    (own,) = (b for b in found if b.number == 0)
    equal = [b for b in found if b.number and b.gain >= -b.error and b.seconds < own.seconds]
    return min(equal, key=lambda b: b.seconds, default=own)


def describe(settings: Settings) -> str:
    """The settings on one line."""
    return " ".join(f"{k}={v}" for k, v in settings.items()) or "the config itself"
