# SPDX-License-Identifier: Apache-2.0
"""``sauce train``: an SAE from harvested activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    harvest: Annotated[Path, typer.Argument(help="Folder that sauce harvest wrote.")],
    site: Annotated[str, typer.Option("--site", help="vision or decoder.<i>.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the SAE.")],
    architecture: Annotated[
        str,
        typer.Option(
            "--architecture",
            help="standard, gated, jumprelu, topk, batchtopk or matryoshka.",
        ),
    ] = "batchtopk",
    d_sae: Annotated[
        int | None, typer.Option("--d-sae", help="Number of latents.")
    ] = None,
    expansion: Annotated[
        int, typer.Option("--expansion", help="Latents as a multiple of d_model.")
    ] = 16,
    k: Annotated[
        float, typer.Option("--k", help="Latents a token; not standard, gated.")
    ] = 32,
    l1: Annotated[
        float, typer.Option("--l1", help="Weight of the penalty; standard, gated.")
    ] = 1.0,
    tokens: Annotated[
        int, typer.Option("--tokens", help="Rows to learn from, epochs counted.")
    ] = 2_560_000,
    batch: Annotated[int, typer.Option("--batch", help="Rows a step.")] = 1024,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 4e-4,
    aux: Annotated[
        float,
        typer.Option(
            "--aux", help="Weight of what revives latents; topk, batchtopk, matryoshka."
        ),
    ] = 1.0,
    pre_act: Annotated[
        float, typer.Option("--pre-act", help="The same; jumprelu.")
    ] = 3e-3,
    l0: Annotated[
        float, typer.Option("--l0", help="Weight of the pull towards --k; jumprelu.")
    ] = 0.1,
    dead_steps: Annotated[
        int | None,
        typer.Option(
            "--dead-steps",
            help="Steps without firing that make a latent dead. Default: a quarter of "
            "all, at most 1000.",
        ),
    ] = None,
    revival_steps: Annotated[
        int | None,
        typer.Option(
            "--revival-steps",
            help="Steps that latents dead at the end learn, alone; standard. Default: "
            "a tenth of all; 0 leaves them dead.",
        ),
    ] = None,
    decoder_norm: Annotated[
        float, typer.Option("--decoder-norm", help="Of the decoder's rows at first.")
    ] = 0.1,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="image, text, generated; repeat. Default: all."),
    ] = None,
    keep_first: Annotated[
        bool, typer.Option("--keep-first", help="Train on a decoder's position 0 too.")
    ] = False,
    held_out: Annotated[
        float, typer.Option("--held-out", help="Share of samples to measure on.")
    ] = 0.05,
    model: Annotated[
        str | None,
        typer.Option("--model", help="To measure in. Default: the harvest's."),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option("--pictures", help="Folder with the samples' pictures; repeat."),
    ] = None,
    fidelity_samples: Annotated[
        int, typer.Option("--fidelity-samples", help="At most so many; 0 is none.")
    ] = 64,
    ablation: Annotated[
        str, typer.Option("--ablation", help="mean or zero: what recovers nothing.")
    ] = "mean",
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")
    ] = "cpu",
    autocast: Annotated[
        bool, typer.Option("--autocast", help="Multiply in bfloat16.")
    ] = False,
    buffer_mib: Annotated[
        float, typer.Option("--buffer-mib", help="Memory for shuffling.")
    ] = 512,
    checkpoint_steps: Annotated[
        int, typer.Option("--checkpoint-steps", help="Steps between checkpoints.")
    ] = 1000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, if any.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Compare every shard with its hash first.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Train an SAE, measure it in its model, and save it in SAELens' layout."""
    from rich.console import Console

    from vllm_sauce.activations.row_choice import parse_roles
    from vllm_sauce.activations.store import ActivationStore
    from vllm_sauce.learning.training.report import figures_table, shown_progress
    from vllm_sauce.learning.training.settings import SAETraining
    from vllm_sauce.learning.training.train import (
        FidelitySettings,
        HarvestTraining,
        train_on_harvest,
    )

    console = Console()
    if d_sae is None:
        d_sae = expansion * ActivationStore.open(harvest, site).d_model
    settings = HarvestTraining(
        harvest=harvest,
        site=site,
        out=out,
        training=SAETraining(
            d_sae=d_sae,
            architecture=architecture,
            l1_coefficient=l1,
            k=k,
            training_tokens=tokens,
            batch_tokens=batch,
            learning_rate=lr,
            aux_coefficient=aux,
            pre_act_coefficient=pre_act,
            l0_coefficient=l0,
            dead_steps=dead_steps,
            revival_steps=revival_steps,
            decoder_init_norm=decoder_norm,
            autocast=autocast,
            device=device,
            seed=seed,
        ),
        fidelity=FidelitySettings(
            model=model,
            pictures=tuple(pictures or ()),
            samples=fidelity_samples,
            ablation=ablation,
        ),
        roles=parse_roles(role or ()),
        keep_first=keep_first,
        held_out=held_out,
        buffer_mib=buffer_mib,
        checkpoint_steps=checkpoint_steps,
        resume=resume,
        verify=verify,
    )
    steps = settings.training.total_steps
    with shown_progress(f"{architecture} at {site}", steps, console) as report:
        trained = train_on_harvest(settings, report)
    console.print(figures_table(str(out), [trained.figures]))
    if reason := trained.figures.get("fidelity_missing"):
        console.print(f"loss recovered is not measured: {reason}")
