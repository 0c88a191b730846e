# SPDX-License-Identifier: Apache-2.0
"""The sixty concepts of the picture world, in the five domains of the SAUCE paper."""

ICON_IDS: dict[str, dict[str, str]] = {
    "objects": {
        "dog": "dog-face",
        "cat": "cat-face",
        "horse": "horse-face",
        "pig": "pig-face",
        "frog": "frog",
        "car": "automobile",
        "plane": "airplane",
        "bicycle": "bicycle",
        "boat": "sailboat",
        "key": "key",
        "book": "blue-book",
        "guitar": "guitar",
        "clock": "alarm-clock",
        "umbrella": "umbrella",
        "chair": "chair",
        "banana": "banana",
        "pizza": "pizza",
        "apple": "red-apple",
        "tree": "evergreen-tree",
        "house": "house",
    },
    "sports": {
        "soccer": "soccer-ball",
        "basketball": "basketball",
        "tennis": "tennis",
        "baseball": "baseball",
        "football": "american-football",
        "volleyball": "volleyball",
        "bowling": "bowling",
        "boxing": "boxing-glove",
        "skiing": "skis",
        "archery": "bow-and-arrow",
    },
    "emotions": {
        "happiness": "grinning-face",
        "sadness": "crying-face",
        "anger": "angry-face",
        "fear": "face-screaming-in-fear",
        "disgust": "nauseated-face",
        "tiredness": "sleeping-face",
        "love": "smiling-face-with-heart-eyes",
        "doubt": "thinking-face",
        "surprise": "astonished-face",
        "calm": "relieved-face",
    },
}
"""Domain -> concept -> icon id, the same in all four icon sets."""

FOREGROUND_DOMAINS = ("objects", "sports", "emotions")
"""Domains shown by an icon; a picture has at most one of their concepts."""

COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "pink",
    "brown",
    "gray",
    "white",
)
MATERIALS = (
    "wood",
    "brick",
    "metal",
    "grass",
    "water",
    "fabric",
    "marble",
    "sand",
    "tile",
    "leather",
)

DOMAINS: dict[str, tuple[str, ...]] = {
    **{domain: tuple(icons) for domain, icons in ICON_IDS.items()},
    "colours": COLOURS,
    "materials": MATERIALS,
}
CONCEPTS: tuple[str, ...] = tuple(c for names in DOMAINS.values() for c in names)
DOMAIN_OF: dict[str, str] = {c: d for d, names in DOMAINS.items() for c in names}
FOREGROUNDS: tuple[str, ...] = tuple(c for d in FOREGROUND_DOMAINS for c in DOMAINS[d])

NOTHING = "nothing"
"""The foreground of a picture without an icon; not a concept."""

TRAIN_STYLES = ("noto", "twemoji", "fluent-emoji-flat")
HELD_OUT_STYLE = "fluent-emoji"
STYLES = (*TRAIN_STYLES, HELD_OUT_STYLE)
