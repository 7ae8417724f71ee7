"""The commands and their options."""

from __future__ import annotations

import os
import time
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
from ptgm_fast.errors import UserError

app = typer.Typer(
    name="ptgm-fast",
    help="Train a target classifier from a frozen conditional generator and a frozen source classifier.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: importing rich for it would cost more than everything else in --help.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from ptgm_fast import __version__

        typer.echo(f"ptgm-fast {__version__}")
        raise typer.Exit


# What torchrun may start several processes of; the others would do the same work in each of them.
SHARED_COMMANDS = ("train", "synthesize")
FIRST_SPEAKS_SECONDS = 10.0
BARE = """\
ptgm-fast train          a first run: the bundled letters -> digits (then `report` and `compare` are offered)
ptgm-fast init FOLDER    your own images: writes a config for a folder of class folders, for `check` and `train`
ptgm-fast --help         all commands"""


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train a target classifier from a frozen conditional generator and a frozen source classifier."""
    if context.invoked_subcommand is None:
        typer.echo(BARE)
        return
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    if several and context.invoked_subcommand not in SHARED_COMMANDS:
        if os.environ.get("RANK", "0") != "0":
            # torchrun ends the others as soon as one process ends: the first is given time to say why, and ends all.
            time.sleep(FIRST_SPEAKS_SECONDS)
            raise typer.Exit(2)
        raise UserError(
            f"{context.invoked_subcommand} runs in one process, but {os.environ['WORLD_SIZE']} were started: start it without "
            f"torchrun (which is for {' and '.join(SHARED_COMMANDS)})"
        )


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def profile(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs made with --profile.")
    ],
) -> None:
    """Print where the time of a profiled run went."""
    from ptgm_fast.cli.profile import run

    run(runs)


@app.command()
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


@app.command()
def synthesize(
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Number of images.")],
    config: ConfigArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Output folder: new, or what this command began."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="folder (of PNGs), pool (training reads it) or webdataset (tar shards).",
        ),
    ] = "folder",
    shard: Annotated[
        str,
        typer.Option("--shard", metavar="I/N", help="Make the I-th of N shares of the images."),
    ] = "1/1",
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Measure a few batches, print time, disk and memory; write nothing."
        ),
    ] = False,
    conditioned: Annotated[
        bool,
        typer.Option(
            "--conditioned", help="Condition on the target images instead of uniform source labels."
        ),
    ] = False,
    seed: SeedOption = None,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Write labelled pseudo images: a folder, tar shards, or a pool. Stopped, the same command makes the rest."""
    from ptgm_fast.cli.synthesize import run

    run(
        config,
        count,
        out,
        conditioned,
        seed,
        with_original(settings, no_optimize),
        format,
        shard,
        estimate,
    )


@app.command()
def source(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Description of the source pair to train.")
    ],
    out: OutOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    classifier_only: Annotated[
        bool,
        typer.Option(
            "--classifier-only",
            help="Train only a classifier, on the samples of the generator that a run's config names.",
        ),
    ] = False,
) -> None:
    """Train a source pair - a conditional generator and a classifier - from labelled images of your own."""
    from ptgm_fast.cli.source import run, run_classifier

    (run_classifier if classifier_only else run)(config, out, seed, settings or [])


@app.command()
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


@app.command()
def doctor() -> None:
    """Say which device, implementations and extras are present, and what is missing."""
    from ptgm_fast.cli.doctor import run

    run()


@app.command()
def optimize(
    generator: Annotated[
        str, typer.Argument(metavar="GENERATOR", help="`letters`, a folder with a card, or a URI.")
    ],
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto",
    truncation: Annotated[
        float | None,
        typer.Option(
            "--truncation", help="For a generator whose truncation selects its statistics."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Batch size of the timing.")
    ] = 32,
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Timed rounds of each; 0 leaves the timing out.")
    ] = 5,
) -> None:
    """Rewrite a frozen generator into an equal, cheaper one; say what each pass saved and how fast both are."""
    from ptgm_fast.cli.optimize import run

    run(generator, device, truncation, batch, rounds)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE.pkl", help="NVIDIA's pickle of StyleGAN2-ADA or StyleGAN3."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.safetensors", help="Default: beside the pickle."),
    ] = None,
    network: Annotated[str, typer.Option("--network", help="G_ema (the average) or G.")] = "G_ema",
) -> None:
    """Write a StyleGAN pickle as safetensors; nothing of the pickle is run."""
    from ptgm_fast.cli.convert import run

    run(source, out, network)
