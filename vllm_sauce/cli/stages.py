# SPDX-License-Identifier: Apache-2.0
"""The stages of ``sauce learn``, each a subcommand of its own."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace

from vllm_sauce.cli.failures import check_place, only_shown
from vllm_sauce.concepts import Catalogue
from vllm_sauce.inspection.settings import InspectRequest
from vllm_sauce.learning.calibration.config import CalibrateRequest
from vllm_sauce.learning.harvest.settings import HarvestRequest
from vllm_sauce.learning.importing.settings import ImportRequest
from vllm_sauce.learning.rows.settings import FitRequest
from vllm_sauce.learning.selection.settings import SelectRequest
from vllm_sauce.learning.training.settings import HarvestTraining
from vllm_sauce.measuring.settings import EvalRequest
from vllm_sauce.scale.cluster import actors_wanted

NOT_FORGOTTEN = 3
"""Exit status of a calibration that found no edit that forgets some concept."""


def harvest(request: HarvestRequest) -> int:
    """Take activations with vLLM; run it again to go on where it was stopped."""
    from rich.console import Console

    from vllm_sauce.cli.bars import progress_bar
    from vllm_sauce.data.sample_sources import find_samples
    from vllm_sauce.data.samples import distinct
    from vllm_sauce.learning.harvest.actors import harvest_anywhere

    where = actors_wanted(request.resources)
    samples, repeated = distinct(find_samples(**asdict(request.shown)))
    with progress_bar("samples") as progress:
        report = harvest_anywhere(request, samples, where, progress)
    Console().print(report.as_table(request.out, len(repeated)))
    if report.failed:
        failures = f"{request.out}/failures.jsonl"
        sys.stderr.write(f"{len(report.failed)} samples failed: {failures}\n")
    return int(bool(report.failed))


def import_sae(request: ImportRequest) -> None:
    """Turn a public SAE into a bundle, checked on activations of the actual model."""
    from rich.console import Console

    from vllm_sauce.cli.bars import spinner
    from vllm_sauce.learning.importing.import_sae import import_sae

    with spinner() as told:
        imported = import_sae(request, told)
    Console().print(imported.as_table())
    sys.stdout.write(f"bundle: {request.out}\n")


def train(request: HarvestTraining) -> None:
    """Train an SAE, measure it in its model, and save it in SAELens' layout."""
    from rich.console import Console

    from vllm_sauce.cli.bars import training_bar
    from vllm_sauce.learning.training.report import figures_table
    from vllm_sauce.learning.training.train import train_on_harvest

    console, training = Console(), request.training
    label = f"{training.architecture} at {request.site}"
    with training_bar(label, training.total_steps) as report:
        figures = train_on_harvest(request, report)
    console.print(figures_table(str(request.out), [figures]))
    if reason := figures.get("fidelity_missing"):
        console.print(f"loss recovered is not measured: {reason}")


def fit(request: FitRequest) -> None:
    """Fit a row for each concept: a read that tells it apart, and where it leads."""
    from vllm_sauce.cli.bars import progress_bar
    from vllm_sauce.learning.rows.fit_rows import fit_rows

    with progress_bar("rows") as progress:
        sae = fit_rows(request, progress)
    concepts = {row.concept for row in sae.rows}
    apart = sum(row.d_prime for row in sae.rows) / len(sae.rows)
    sys.stdout.write(
        f"{len(sae.rows)} rows of {len(concepts)} concepts, {apart:.1f} deviations "
        f"apart on samples they were not fitted on: {request.out}\n"
    )


def select(request: SelectRequest) -> None:
    """Rank every concept's latents by one score and keep the best with all scores."""
    from vllm_sauce.cli.bars import progress_bar
    from vllm_sauce.learning.selection.select import select

    check_place(request.out)
    with progress_bar("latents") as progress:
        selection = select(request, progress)
    selection.write(request.out)
    count = len(selection.concepts)
    sys.stdout.write(
        f"{count} concepts, up to {request.k} latents each: {request.out}\n"
    )


def calibrate(request: CalibrateRequest) -> int:
    """Search latents, edit, gate and site of each concept; run again to go on."""
    from rich.console import Console

    from vllm_sauce.cli.bars import several_bars
    from vllm_sauce.learning.calibration.report import table, write_frontiers
    from vllm_sauce.learning.calibration.run import calibrate_bundle

    request = replace(request, resources=actors_wanted(request.resources))
    with several_bars() as note:
        bundle = calibrate_bundle(request, note)
    Console().print(table(bundle.catalogue))
    sys.stdout.write(
        f"bundle: {request.out}; everything that was tried: {request.folder}\n"
    )
    with only_shown("the frontier of each concept"):
        write_frontiers(request.folder)
    return told_weak(bundle.catalogue)


def told_weak(catalogue: Catalogue) -> int:
    """Say which concepts are not forgotten; return the exit status."""
    weak = catalogue.weak()
    if weak:
        sys.stderr.write(
            f"not forgotten: {', '.join(weak)}; a server refuses them unless it is "
            "told otherwise (--sauce-allow-weak)\n"
        )
    return NOT_FORGOTTEN if weak else 0


def evaluate(request: EvalRequest) -> int:
    """Ask a served bundle whole questions, beside a prompt and a banned word."""
    from rich.console import Console

    from vllm_sauce.bundle import Bundle
    from vllm_sauce.cli.bars import progress_bar
    from vllm_sauce.measuring import report
    from vllm_sauce.measuring.measure import measure
    from vllm_sauce.measuring.record import record

    with progress_bar("answers") as progress:
        found = measure(request, progress)
    about = [
        ("bundle", str(request.bundle)),
        ("model", request.model),
        ("questions", f"{request.concepts}, split {request.split}"),
        (
            "asked",
            request.url or "an engine started for it, eager unless told otherwise",
        ),
    ]
    report.write(request.out, found, about)
    console = Console()
    for grid in list(report.grids(found))[:3]:
        console.print(grid.as_table())
    sys.stdout.write(
        f"{request.out}: results.html, results.md, results.json, answers.jsonl\n"
    )
    if not request.record:
        return 0
    dropped = record(request, found)
    sys.stdout.write(f"{request.bundle}: holds these scores now\n")
    if dropped:
        sys.stderr.write(
            f"below the floor they were calibrated with: {', '.join(dropped)}; another "
            "calibration brings them back, or the bundle as it was before\n"
        )
    return told_weak(Bundle.load(request.bundle, weights=False).catalogue)


def inspect(request: InspectRequest) -> None:
    """Show each concept's latents, where they fire, and what forgetting it does."""
    from vllm_sauce.cli.bars import several_bars
    from vllm_sauce.inspection.inspect import write_report

    check_place(request.out)
    with several_bars() as watch:
        size = write_report(request, watch)
    sys.stdout.write(f"{request.out}: {size / 1e6:.1f} MB\n")
