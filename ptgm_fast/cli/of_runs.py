"""The commands that deal with runs, and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptgm_fast.cli.options import (
    ConfigArgument,
    OriginalOption,
    OutOption,
    SeedOption,
    SetOption,
    with_original,
)


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder with one subfolder of images per class: FOLDER/CLASS/*."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.toml",
            help="Config to write (default: FOLDER.toml in the working directory).",
        ),
    ] = None,
    generator: Annotated[
        str, typer.Option("--generator", metavar="URI", help="Value of source.generator.")
    ] = "letters",
    classifier: Annotated[
        tuple[str, str] | None,
        typer.Option("--classifier", metavar="NETWORK WEIGHTS", help="Your own source classifier."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing config.")] = False,
) -> None:
    """Inspect a folder of images and write a config for it."""
    from ptgm_fast.cli.init import run

    run(folder, out, generator, classifier, force)


def train(
    config: ConfigArgument = None,
    out: OutOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Print where the time went; write profile.json and trace.json (for Perfetto).",
        ),
    ] = False,
    profile_ops: Annotated[
        int,
        typer.Option(
            "--profile-ops",
            metavar="K",
            min=0,
            max=1000,
            help="Like --profile, plus torch.profiler over K steps of each stage.",
        ),
    ] = 0,
    logger: Annotated[
        str | None,
        typer.Option("--logger", metavar="NAME", help="Additional logger; accepted: tensorboard."),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Afterwards, also train from scratch and with distillation alone, for comparison.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out (default: the newest run).")
    ] = False,
    no_optimize: OriginalOption = False,
) -> None:
    """Train a target classifier. Runs the stages of a config: pseudo pre-training, then P-SSL, then evaluation."""
    from ptgm_fast.cli.train import run

    run(
        config,
        out,
        seed,
        with_original(settings, no_optimize),
        profile,
        resume,
        profile_ops,
        logger,
        baselines,
    )


def compare(
    config: ConfigArgument = None,
    out: OutOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="N|A,B,...",
            help="Number of seeds (0 to N-1), or a list of seeds (default: 3).",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B,...",
            help="Methods to compare, e.g. scratch,pp,pp+p-ssl,pp+uda (default: the main ones).",
        ),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(
            "--networks",
            metavar="A,B,...",
            help="Target networks to compare, all on the same pool of images.",
        ),
    ] = None,
    share_pool: Annotated[
        bool,
        typer.Option(
            "--share-pool", help="Make PP's image pool once for all seeds, not once per seed."
        ),
    ] = False,
    panel: Annotated[
        bool,
        typer.Option(
            "--panel",
            help="Use six bundled targets at increasing distance from the letters instead of the config's images.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the comparison in --out DIR.")
    ] = False,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Compare methods on the same data, network, budget and seeds. Reports whether the pseudo data helped."""
    from ptgm_fast.cli.compare import run

    chosen = with_original(settings, no_optimize)
    run(config, out, seeds, methods, chosen, networks, share_pool, resume, panel)


def tune(
    config: ConfigArgument = None,
    out: OutOption = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.01, help="Approximate search time in minutes.")
    ] = 30.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the search in --out DIR.")
    ] = False,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Find a cheaper budget with the same validation accuracy. Writes its config."""
    from ptgm_fast.cli.tune import run

    run(config, out, minutes, with_original(settings, no_optimize), resume)


def profile(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs made with --profile.")
    ],
) -> None:
    """Show where the time of a profiled run went."""
    from ptgm_fast.cli.profile import run

    run(runs)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders written by `train` or `compare`."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.html",
            help="Page to write (default: report.html in the first RUN).",
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about one or more runs."""
    from ptgm_fast.cli.report import run

    run(runs, out)


def check(
    config: ConfigArgument = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for check.png and check.json."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", metavar="N", min=1, help="Approximate number of samples to draw."
        ),
    ] = 512,
    seed: SeedOption = None,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Check that generator, classifier and target images match. Reports what does not."""
    from ptgm_fast.cli.check import run

    run(config, out, samples, seed, with_original(settings, no_optimize))
