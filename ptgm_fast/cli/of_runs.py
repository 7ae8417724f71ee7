"""The commands about runs, and their options."""

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
        Path, typer.Argument(metavar="FOLDER", help="Class folders with images: FOLDER/CLASS/*.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.toml", help="The config (default: the folder's name, here)."
        ),
    ] = None,
    generator: Annotated[
        str, typer.Option("--generator", metavar="URI", help="As source.generator.")
    ] = "letters",
    classifier: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--classifier", metavar="NETWORK WEIGHTS", help="A source classifier of your own."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the config.")] = False,
) -> None:
    """Look at a folder of images and write a commented config for it."""
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
            help="--profile, and torch.profiler over K steps of each stage.",
        ),
    ] = 0,
    logger: Annotated[
        str | None,
        typer.Option("--logger", metavar="NAME", help="Also log to: tensorboard."),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Then also train from scratch and by distillation alone, for comparison.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out (default: the newest).")
    ] = False,
    no_optimize: OriginalOption = False,
) -> None:
    """Run the stages of a config: pseudo pre-training, then P-SSL, then evaluation."""
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
            help="A number of seeds (0 .. N-1), or the seeds themselves (default: 3).",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B,...",
            help="Rows, e.g. scratch,pp,pp+p-ssl,pp+uda (default: all main ones).",
        ),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(
            "--networks", metavar="A,B,...", help="Target networks, all on the same pool of images."
        ),
    ] = None,
    share_pool: Annotated[
        bool,
        typer.Option("--share-pool", help="Make PP's pool once for all seeds, not once a seed."),
    ] = False,
    panel: Annotated[
        bool,
        typer.Option(
            "--panel",
            help="On six bundled targets at growing distance from the letters, in place of the config's images.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in --out DIR.")
    ] = False,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Run every method on the same data, network, budget and seeds; say whether the pseudo data helped."""
    from ptgm_fast.cli.compare import run

    chosen = with_original(settings, no_optimize)
    run(config, out, seeds, methods, chosen, networks, share_pool, resume, panel)


def tune(
    config: ConfigArgument = None,
    out: OutOption = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.01, help="About how long to search.")
    ] = 30.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search in --out DIR.")
    ] = False,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Find a cheaper budget of the same accuracy, on validation images; write its config."""
    from ptgm_fast.cli.tune import run

    run(config, out, minutes, with_original(settings, no_optimize), resume)


def profile(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs made with --profile.")
    ],
) -> None:
    """Print where the time of a profiled run went."""
    from ptgm_fast.cli.profile import run

    run(runs)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of `train`, and of `compare` if you like."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.html", help="The page (default: report.html in the first RUN)."
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from ptgm_fast.cli.report import run

    run(runs, out)


def check(
    config: ConfigArgument = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of check.png and check.json."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="About so many samples are drawn.")
    ] = 512,
    seed: SeedOption = None,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Show samples of the generator to the classifier: do they fit each other, and the target? Name what does not."""
    from ptgm_fast.cli.check import run

    run(config, out, samples, seed, with_original(settings, no_optimize))
