# SPDX-License-Identifier: Apache-2.0
"""Can a probe still find what is forgotten? Suppressed is not erased.

``PYTHONPATH=examples python -m tiny.probe --bundle NAME=FOLDER ...`` trains a linear
probe for each concept on the activations of the edited model, on pictures with the
concept and with another of its domain, and tests it on others: at the tower's site
(mean and largest of the patches) and behind the last layer, where the domain is to be
named. Who attacks an edit knows it: the probe is trained under the edit it is tested
on. transformers runs the model; its hooks are what is served (tests/tiny).
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tiny.concepts import CONCEPTS, DOMAIN_OF, DOMAINS
from tiny.exam import Tiny, balanced_pictures, pixels_of
from tiny.questions import naming_questions
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, SiteEdit
from vllm_sauce.models.shared_prefix import SharedPrefix, Sheet
from vllm_sauce.models.site_edits import site_actions, sparing_sink
from vllm_sauce.models.site_hooks import vision_features
from vllm_sauce.options import parse_pairs
from vllm_sauce.sae import SAEWeights

RIDGES = (0.001, 0.01, 0.1, 1.0)
"""Shares of the mean variance that are added to the covariance."""
PLAIN = "unedited"
PLACES = ("the tower's site", "the last layer")


@dataclass(frozen=True)
class Shown:
    """Pictures of one split, and which concepts each of them shows."""

    vision: Tensor
    """[num_pictures, patches, d_model]"""
    present: Tensor
    """[num_pictures, num_concepts] bool"""

    @classmethod
    def draw(cls, tiny: Tiny, split: str, per_foreground: int) -> "Shown":
        """Draw as many pictures of every foreground concept."""
        pictures = balanced_pictures(split, per_foreground)
        present = torch.tensor([[c in p.concepts for c in CONCEPTS] for p in pictures])
        return cls(vision_features(tiny.model, pixels_of(pictures)), present)

    def of_domain(self, concept: str) -> tuple[Tensor, Tensor]:
        """Return the features of pictures of a concept's domain, and which show it."""
        mates = [CONCEPTS.index(one) for one in DOMAINS[DOMAIN_OF[concept]]]
        chosen = self.present[:, mates].any(-1)
        return self.vision[chosen], self.present[chosen, CONCEPTS.index(concept)]


def naming_sheet(tiny: Tiny, concept: str, count: int) -> Sheet:
    """Ask for the name of a concept's domain, once a picture."""
    block = tiny.block(naming_questions(DOMAIN_OF[concept])[0])
    return Sheet(
        prefix_ids=torch.tensor(tiny.prefix_ids),
        suffix_ids=torch.tensor(block).expand(count, 1, -1),
        read_block=torch.zeros(1, dtype=torch.int64),
        read_at=torch.full((count, 1), len(block) - 1),
    )


@torch.inference_mode()
def states(
    runner: SharedPrefix,
    sheet: Sheet,
    vision: Tensor,
    saes: Mapping[str, SAEWeights],
    edits: Mapping[str, SiteEdit],
) -> tuple[Tensor, Tensor]:
    """Return what a probe reads at the tower's site and behind the last layer.

    Shapes: -> [num_pictures, 2 * d_model], [num_pictures, d_text]
    """
    actions = {
        site: sparing_sink(action)
        for site, action in site_actions(saes, edits, 1.0).items()
    }
    vision = actions.pop(VISION, lambda x: x)(vision)
    hidden = runner.run_layers(sheet, runner.embed(sheet, vision), actions)
    return torch.cat([vision.mean(1), vision.amax(1)], -1), hidden[:, -1]


def direction(x: Tensor, shows: Tensor, ridge: float) -> Tensor:
    """Return Fisher's direction. Shapes: x [n, d], shows [n] bool -> [d]"""
    means = [x[shows == value].mean(0) for value in (False, True)]
    centred = torch.where(shows[:, None], x - means[1], x - means[0])
    covariance = centred.T @ centred / len(x)
    added = ridge * covariance.diagonal().mean().clamp(min=1e-12)
    covariance += added * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(covariance, means[1] - means[0])


def area(read: Tensor, shows: Tensor) -> float:
    """Return the area under the ROC curve; ties count half."""
    gap = read[shows][:, None] - read[~shows]
    return float(((gap > 0).double() + (gap == 0).double() / 2).mean())


def probe(x: Tensor, shows: Tensor, other_x: Tensor, other_shows: Tensor) -> float:
    """Train on pictures, the ridge by halves of them; return the area on others."""
    x, other_x = x.double(), other_x.double()
    spread = x.std(0).clamp(min=1e-9)
    x, other_x = x / spread, other_x / spread
    half = torch.arange(len(x)) % 2 == 0

    def told(ridge: float) -> float:
        return sum(
            area(x[~part] @ direction(x[part], shows[part], ridge), shows[~part])
            for part in (half, ~half)
        )

    return area(other_x @ direction(x, shows, max(RIDGES, key=told)), other_shows)


def interval(values: Tensor) -> tuple[float, float]:
    """Return a bootstrap's 95 % of the mean over concepts."""
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (1000, len(values)), generator=rng)
    low, high = values[drawn].mean(1).quantile(values.new_tensor([0.025, 0.975]))
    return float(low), float(high)


def main() -> None:
    """Print the mean over concepts of each bundle, at both places."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", action="append", required=True, help="NAME=FOLDER")
    parser.add_argument("--concept", action="append", help="default: all")
    parser.add_argument("--per-foreground", type=int, default=20)
    arguments = parser.parse_args()
    named = parse_pairs(arguments.bundle, "NAME=FOLDER")
    bundles = {name: Bundle.load(folder) for name, folder in named.items()}
    names = arguments.concept or CONCEPTS
    tiny = Tiny.load()
    runner = SharedPrefix(tiny.model)
    splits = [
        Shown.draw(tiny, split, arguments.per_foreground)
        for split in ("calibration", "scoring")
    ]
    found: dict[str, list[list[float]]] = {name: [] for name in (PLAIN, *bundles)}
    for concept in track(names, "concepts", console=Console(stderr=True)):
        shown = [split.of_domain(concept) for split in splits]
        for name, areas in found.items():
            edits: Mapping[str, SiteEdit] = {}
            saes: Mapping[str, SAEWeights] = {}
            if name != PLAIN:
                edits = bundles[name].catalogue.concept(concept).edits
                saes = {s: one.weights for s, one in bundles[name].sites.items()}
            read = [
                states(runner, naming_sheet(tiny, concept, len(x)), x, saes, edits)
                for x, _ in shown
            ]
            areas.append(
                [
                    probe(read[0][at], shown[0][1], read[1][at], shown[1][1])
                    for at in range(len(PLACES))
                ]
            )
    print(f"area under the ROC curve, mean of {len(names)} concepts [95 %]\n")
    print("|  | " + " | ".join(PLACES) + " |\n| --- |" + " ---: |" * len(PLACES))
    for name, areas in found.items():
        columns = torch.tensor(areas, dtype=torch.float64).T
        cells = [
            f"{float(one.mean()):.3f} [{low:.3f}, {high:.3f}]"
            for one in columns
            for low, high in (interval(one),)
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
