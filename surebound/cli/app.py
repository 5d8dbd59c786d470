"""The commands and their options. Nothing here imports torch, so that `--help` answers at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from surebound import __version__
from surebound.cli.bounds import Intermediates, MethodName
from surebound.cli.options import Common, with_common

app = typer.Typer(
    name="surebound",
    help="Makes neural networks provable: describe a network, bound it, decide properties of it.",
    epilog="Exit codes: 0 done (any verdict), 1 internal error, 2 bad input or usage, 3 unsupported, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file; may be gzipped (.gz).", show_default=False)]
Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="VNN-LIB file; may be gzipped.", show_default=False)]


def main() -> None:
    """Run the command line.

    Threads sleep while they wait: spinning ones cost most of the speed when other programs use the cores
    (3x measured). It has to be said before torch is loaded; who has said otherwise is heard.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


def print_version(wanted: bool) -> None:
    """Print the version and end, if asked to."""
    if wanted:
        typer.echo(f"surebound {__version__}")
        raise typer.Exit


@app.callback()
def common_callback(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Makes neural networks provable: describe a network, bound it, decide properties of it."""


@app.command()
@with_common
def verify(
    model: Model,
    spec: Spec,
    attack: Annotated[Literal["pgd", "none"], typer.Option(help="How to look for counterexamples.")] = "pgd",
    results_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write verdict and witness to this file, too.")
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the proof here; of an unfinished search what it has, to go on from."),
    ] = None,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Replay a witness as printed, or a proof in float64.")
    ] = False,
    *,
    common: Common,
) -> None:
    """Decide a property: is there an input in SPEC's region on which MODEL does what SPEC forbids?

    The first line on stdout is the verdict: unsat (proven: there is none),
    sat (a witness follows), unknown, timeout, memory, unsupported or error.
    """
    from surebound.cli.verify import Job, run

    raise typer.Exit(run(Job(model, spec, attack, results_file, proof, recheck, common)))


@app.command()
@with_common
def bounds(
    model: Model,
    spec: Spec,
    method: Annotated[MethodName, typer.Option(help="How to bound.")],
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Optimisation steps of alpha-crown.", show_default="20")
    ] = None,
    intermediates: Annotated[
        Intermediates | None,
        typer.Option(help="How crown and alpha-crown bound inner neurons.", show_default="crown"),
    ] = None,
    *,
    common: Common,
) -> None:
    """Bound every output atom of SPEC from below, over SPEC's input boxes; prints JSON.

    An atom is written c.y <= t, and `lower` bounds c.y - t from below:
    above zero, the atom cannot hold.
    """
    from surebound.cli.bounds import Job, run

    raise typer.Exit(run(Job(model, spec, method, steps, intermediates, common)))


@app.command()
@with_common
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="ONNX file, run folder, or package.module:factory.", show_default=False),
    ],
    data: Annotated[str, typer.Option(metavar="NAME", help="The data set, such as mnist, cifar10 or digits.")],
    eps: Annotated[str, typer.Option(metavar="E", help="Radius in units of pixels in [0, 1]; 8/255 will do.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where rows.csv and summary.json are written.")],
    data_dir: Annotated[
        Path | None, typer.Option(metavar="D", help="The folder of the data.", show_default="SUREBOUND_DATA")
    ] = None,
    norm: Annotated[str, typer.Option(metavar="P", help="inf, 2 or 1.")] = "inf",
    n: Annotated[int | None, typer.Option("--n", metavar="N", help="Only the first N images.")] = None,
    indices: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Only these images: numbers by line or JSON; FILE:KEY for a list."),
    ] = None,
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="What is tried, from cheap to dear.")
    ] = "clean,pgd,ibp,crown,alpha-crown,complete",
    pool: Annotated[int | None, typer.Option(metavar="N", help="Images decided together.", show_default="all")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Weights of a factory's network.")] = None,
    *,
    common: Common,
) -> None:
    """Verified accuracy: for how many test images is MODEL's answer right within distance E of the image?

    Goes on where an earlier run with the same settings stopped. --timeout is charged seconds per image.
    """
    from surebound.cli.evaluate import Job, run

    raise typer.Exit(run(Job(model, weights, data, data_dir, eps, norm, n, indices, methods, pool, out, common)))


@app.command()
@with_common
def sweep(
    instances: Annotated[
        Path,
        typer.Argument(
            metavar="INSTANCES",
            help="CSV file with a line onnx,vnnlib,timeout per instance; no header, paths relative to the file.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for results.csv and witnesses.", show_default=False)
    ],
    jobs: Annotated[int, typer.Option(metavar="N", help="Worker processes; they share the CPU's cores.")] = 1,
    attack: Annotated[Literal["pgd", "none"], typer.Option(help="How to look for counterexamples.")] = "pgd",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue in DIR: run what has no row, and what ended in an error.")
    ] = False,
    *,
    common: Common,
) -> None:
    """Decide every instance of a list, and write one row per job to DIR/results.csv as each ends.

    A job is known by its contents and options. --timeout replaces the timeouts in INSTANCES,
    --threads counts the threads of each worker. Exit code 1: some row is an error.
    """
    from surebound.cli.sweep import Job, run

    raise typer.Exit(run(Job(instances, out, jobs, attack, resume, common)))


@app.command()
@with_common
def info(model: Model, *, common: Common) -> None:
    """Describe MODEL: its inputs and outputs, its ops and how each is bounded, its parameters and neurons."""
    from surebound.cli.info import Job, run

    raise typer.Exit(run(Job(model, common)))


@app.command()
@with_common
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder that everything is written to.")] = Path(
        "demo-run"
    ),
    *,
    common: Common,
) -> None:
    """Train, prune and graft a small network on handwritten digits, prove it, and write an HTML report."""
    from surebound.cli.demo import Job, run

    raise typer.Exit(run(Job(out, common)))


@app.command()
@with_common
def train(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run folder.")],
    config: Annotated[
        Path | None, typer.Argument(metavar="RECIPE.toml", help="A recipe of your own.", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A published recipe, such as mnist-0.1-mtl-ibp.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes a key, such as run.epochs=3.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="D", help="The folder of the data.", show_default="SUREBOUND_DATA")
    ] = None,
    *,
    common: Common,
) -> None:
    """Train a network: plain, adversarial or certified.

    Goes on where an earlier run with the same recipe stopped.
    """
    from surebound.cli.train import Job, run

    raise typer.Exit(run(Job(config, recipe, settings or (), out, data_dir, common)))


@app.command()
@with_common
def compress(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file or run folder.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder that everything is written to.")],
    domain: Annotated[
        tuple[float, float],
        typer.Option(metavar="LOWER UPPER", help="Where inputs lie; outputs stay equal there."),
    ] = (0.0, 1.0),
    *,
    common: Common,
) -> None:
    """Make MODEL smaller without changing its outputs.

    Folds batch norms, removes channels that are constant, merges lines between linear layers.
    """
    from surebound.cli.compress import Job, run

    raise typer.Exit(run(Job(model, out, domain, common)))


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run of train.", show_default=False)]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder that everything is written to.")]
Tables = Annotated[Path | None, typer.Argument(metavar="SETTINGS.toml", help="Settings as a file.", show_default=False)]
DataDir = Annotated[
    Path | None, typer.Option(metavar="D", help="The folder of the data.", show_default="SUREBOUND_DATA")
]


@app.command()
@with_common
def prune(
    run: Run,
    out: Out,
    config: Tables = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Changes a key, such as prune.rate=0.5 or run.epochs=20."),
    ] = None,
    data_dir: DataDir = None,
    *,
    common: Common,
) -> None:
    """Prune the network of RUN in rounds, train it again after each, and measure what can be proven.

    Goes on where an earlier call with the same settings stopped.
    """
    from surebound.cli.sparsify import Job
    from surebound.cli.sparsify import run as work

    raise typer.Exit(work(Job("prune", run, config, settings or (), out, data_dir, common)))


@app.command()
@with_common
def graft(
    run: Run,
    out: Out,
    config: Tables = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Changes a key, such as graft.ratios=[0.5] or run.epochs=20."),
    ] = None,
    data_dir: DataDir = None,
    *,
    common: Common,
) -> None:
    """Make lines of neurons that matter little and stand in the way of proofs, train, and measure what can be proven.

    Goes on where an earlier call with the same settings stopped.
    """
    from surebound.cli.sparsify import Job
    from surebound.cli.sparsify import run as work

    raise typer.Exit(work(Job("graft", run, config, settings or (), out, data_dir, common)))


@app.command()
@with_common
def ablate(
    run: Run,
    out: Out,
    config: Tables = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Changes a key, such as ablate.only=['sap','random']."),
    ] = None,
    data_dir: DataDir = None,
    *,
    common: Common,
) -> None:
    """Graft the network of RUN in many ways, side by side: what each part of linearity grafting is good for.

    Goes on where an earlier call with the same settings stopped.
    """
    from surebound.cli.sparsify import Job
    from surebound.cli.sparsify import run as work

    raise typer.Exit(work(Job("ablate", run, config, settings or (), out, data_dir, common)))


@app.command()
@with_common
def lottery(
    out: Out,
    config: Annotated[
        Path | None, typer.Argument(metavar="RECIPE.toml", help="A recipe of your own.", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A published recipe, such as fashion-0.1-crown-ibp.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Changes a key, such as lottery.seeds=[0] or prune.rounds=8."),
    ] = None,
    data_dir: DataDir = None,
    *,
    common: Common,
) -> None:
    """Look for certified lottery tickets: sparse networks that are at least as good as the dense one, from scratch.

    Goes on where an earlier call with the same settings stopped.
    """
    from surebound.cli.sparsify import Lottery
    from surebound.cli.sparsify import run as work

    raise typer.Exit(work(Lottery(config, recipe, settings or (), out, data_dir, common)))


@app.command("make-provable")
@with_common
def make_provable(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Run folder, ONNX file, or package.module:factory.", show_default=False),
    ],
    out: Out,
    config: Tables = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="The data set.", show_default="the run's")] = None,
    eps: Annotated[
        str | None,
        typer.Option(metavar="E", help="Radius in units of pixels; 8/255 will do.", show_default="the run's"),
    ] = None,
    target: Annotated[
        Literal["verified", "time"], typer.Option(help="What is to get better: verified images, or time per proof.")
    ] = "verified",
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="The tensors of a factory's network.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Changes a key, such as provable.loss=0.01 or run.batch=64."),
    ] = None,
    data_dir: DataDir = None,
    *,
    common: Common,
) -> None:
    """Graft, prune and train MODEL step by step, with the verifier in the loop, to the best trade.

    Writes the smaller network, its ONNX file and a report. Goes on where an earlier call stopped.
    """
    from surebound.cli.sparsify import Provable
    from surebound.cli.sparsify import run as work

    raise typer.Exit(work(Provable(model, weights, config, data, eps, target, settings or (), out, data_dir, common)))
