# SPDX-License-Identifier: Apache-2.0
"""All questions about a picture in one pass; LLaVA on Llama.

What an edit cannot change is not computed again: where it fires on no token the
unedited answer stands, and where it fires in the decoder alone the layers below do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vllm_sauce.concepts import VISION, decoder_layer_idx
from vllm_sauce.data.samples import Picture, Sample, picture_digest
from vllm_sauce.evaluation.asking.asker import Ask, Place
from vllm_sauce.models.answer_tokens import Tokens
from vllm_sauce.models.chat_prompts import chat_texts
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.shared_prefix import SharedPrefix, Sheet
from vllm_sauce.models.site_edits import SiteAction, sparing_sink
from vllm_sauce.models.site_hooks import vision_features

Key = tuple[str, str, Tokens]
"""A block of tokens: its picture's digest, its question, what is given of the answer;
("", ()) is what stands before all questions."""

BATCH = 16
"""Pictures that are run at once."""


def shares_pictures(loaded: LoadedModel) -> bool:
    """Return whether the model is one that ``SharedPrefix`` computes exactly."""
    config = loaded.model.config
    if config.model_type != "llava" or config.text_config.model_type != "llama":
        return False
    # Pixtral's tower hands on pictures of any size in one list of rows.
    if config.vision_config.model_type not in (
        "clip_vision_model",
        "siglip_vision_model",
    ):
        return False
    # What is behind a picture must be all that questions differ in.
    texts = chat_texts(loaded.processor, ("one", "two"), picture=True)
    before = {text.rpartition(loaded.processor.image_token)[0] for text in texts}
    return len(before) == 1


@dataclass(slots=True)
class _Page:
    """Questions about some pictures as one sheet."""

    pictures: list[str]
    blocks: list[list[Key]]
    """Of each picture."""
    sheet: Sheet
    where: list[dict[Tokens, tuple[int, int]]]
    """Row and read of each ask's places."""


@dataclass(slots=True)
class _Kept:
    """What is known of the unedited model."""

    vision: dict[str, Tensor] = field(default_factory=dict)
    """By picture. [patches, d_model]"""
    hidden: dict[tuple[str, Key], Tensor] = field(default_factory=dict)
    """By decoder site and block. [tokens, d_text]"""
    places: dict[tuple[Key, tuple[Tokens, ...]], dict[Tokens, Place]] = field(
        default_factory=dict
    )
    fires: dict[tuple[tuple[str, ...], str, Key], bool] = field(default_factory=dict)
    """By what is forgotten, site and block."""


class SharedPictures:
    """Reads answers from sheets; keeps what the unedited model computes."""

    def __init__(self, loaded: LoadedModel, sites: Sequence[str]) -> None:
        """``sites``: where edits may act."""
        self.loaded, self.runner = loaded, SharedPrefix(loaded.model)
        layers = ((decoder_layer_idx(site), site) for site in sites)
        self.decoder = sorted((i, site) for i, site in layers if i is not None)
        self.prefix: list[int] = []
        self._suffixes: dict[str, list[int]] = {}
        self._digests: dict[int, tuple[Picture, str]] = {}
        self._kept = _Kept()

    def read(
        self, asks: Sequence[Ask], edits: Mapping[str, SiteAction]
    ) -> list[dict[Tokens, Place]]:
        """Return the places of each answer; all asks are under the same edits."""
        keys = [(self._key(ask, ()), ask.wanted) for ask in asks]
        plain = self._kept.places
        missing = [i for i, key in enumerate(keys) if key not in plain]
        for part in self._batches(asks, missing):
            places = self._run([asks[i] for i in part], {}, VISION)
            plain.update(zip([keys[i] for i in part], places, strict=True))
        found = [plain[key] for key in keys]
        starts: dict[str, list[int]] = {}
        for numbers in self._by_picture(asks, range(len(asks)) if edits else ()):
            start = self._first_touched([asks[i] for i in numbers], edits)
            starts.setdefault(start, []).extend(numbers)
        starts.pop("", None)
        for start, numbers in starts.items():
            for part in self._batches(asks, numbers):
                places = self._run([asks[i] for i in part], edits, start)
                for i, one in zip(part, places, strict=True):
                    found[i] = one
        return found

    def _by_picture(
        self, asks: Sequence[Ask], numbers: Sequence[int]
    ) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for number in numbers:
            groups.setdefault(self._digest(asks[number]), []).append(number)
        # Pictures with equally many questions together: less padding.
        return sorted(groups.values(), key=len)

    def _batches(
        self, asks: Sequence[Ask], numbers: Sequence[int]
    ) -> Iterator[list[int]]:
        groups = self._by_picture(asks, numbers)
        for start in range(0, len(groups), BATCH):
            yield [i for group in groups[start : start + BATCH] for i in group]

    def _first_touched(
        self, asks: Sequence[Ask], edits: Mapping[str, SiteAction]
    ) -> str:
        """Return the first site where edits change a picture or its questions."""
        picture, forget = self._digest(asks[0]), asks[0].forget
        start = (picture, "", ())
        if self._fires(forget, VISION, start, edits):
            return VISION
        keys = [start, *(self._key(a, line) for a in asks for line in a.lines())]
        for _, site in self.decoder:
            if any(self._fires(forget, site, key, edits) for key in keys):
                return site
        return ""

    def _fires(
        self,
        forget: tuple[str, ...],
        site: str,
        key: Key,
        edits: Mapping[str, SiteAction],
    ) -> bool:
        if site not in edits:
            return False
        told = (forget, site, key)
        if told not in self._kept.fires:
            kept = self._kept
            x = kept.vision[key[0]] if site == VISION else kept.hidden[site, key]
            fires = edits[site].fires(x.to(self.loaded.device))
            begins = site != VISION and key[1:] == ("", ())
            # The sink is the first token of what stands before all questions.
            fires = fires[int(edits[site].sparing and begins) :]
            self._kept.fires[told] = bool(fires.any())
        return self._kept.fires[told]

    @torch.inference_mode()
    def _run(
        self, asks: Sequence[Ask], edits: Mapping[str, SiteAction], start: str
    ) -> list[dict[Tokens, Place]]:
        """Return the places of answers, computed from a site on."""
        self._learn(asks)
        page, runner, first = self._page(asks), self.runner, 0
        acts = {site: sparing_sink(edit) for site, edit in edits.items()}
        if start == VISION:
            x = torch.stack([self._kept.vision[one] for one in page.pictures])
            x = x.to(self.loaded.device)
            hidden = runner.embed(page.sheet, acts[VISION](x) if acts else x)
            if not acts:
                hidden, first = self._keep(page, hidden)
        else:
            hidden = acts[start](self._restored(page, start))
            first = 1 + next(i for i, site in self.decoder if site == start)
        hidden = runner.run_layers(page.sheet, hidden, acts, first)
        logits = runner.read(page.sheet, hidden)
        return _places(asks, page, logits.float().cpu().log_softmax(-1))

    def _keep(self, page: _Page, hidden: Tensor) -> tuple[Tensor, int]:
        """Run up to the last site, keeping each site's activations by block."""
        first = 0
        for layer_idx, site in self.decoder:
            hidden = self.runner.run_layers(
                page.sheet, hidden, {}, first, layer_idx + 1
            )
            first = layer_idx + 1
            for row, key, span in self._spans(page):
                self._kept.hidden[site, key] = hidden[row, span].cpu().clone()
        return hidden, first

    def _restored(self, page: _Page, site: str) -> Tensor:
        """Return a site's unedited activations. Shape [num_pictures, T, d_text]"""
        spans = list(self._spans(page))
        some = self._kept.hidden[site, spans[0][1]]
        blocks = page.sheet.suffix_ids[0].numel()
        shape = (len(page.pictures), len(self.prefix) + blocks, some.shape[1])
        hidden = torch.zeros(shape, dtype=some.dtype, device=self.loaded.device)
        for row, key, span in spans:
            hidden[row, span] = self._kept.hidden[site, key].to(hidden.device)
        return hidden

    def _spans(self, page: _Page) -> Iterator[tuple[int, Key, slice]]:
        """Yield where each block's tokens are: row, block, columns."""
        start, length = len(self.prefix), page.sheet.suffix_ids.shape[2]
        for row, picture in enumerate(page.pictures):
            yield row, (picture, "", ()), slice(0, start)
            for at, key in enumerate(page.blocks[row]):
                first = start + at * length
                yield row, key, slice(first, first + len(self._tokens(key)))

    def _page(self, asks: Sequence[Ask]) -> _Page:
        """Lay out some asks: a block for each line of an answer."""
        rows: dict[str, dict[Key, list[int]]] = {}
        spots: list[list[tuple[Key, Tokens, int]]] = []
        for ask in asks:
            mine, spot = rows.setdefault(self._digest(ask), {}), []
            for line, passed in ask.lines().items():
                key = self._key(ask, line)
                ends = mine.setdefault(key, [])
                for before in passed:
                    back = len(line) - len(before)
                    if back not in ends:
                        ends.append(back)
                    spot.append((key, before, back))
            spots.append(spot)
        pictures, blocks = list(rows), [list(mine) for mine in rows.values()]
        reads = max(len(ends) for mine in rows.values() for ends in mine.values())
        sheet = self._sheet(list(rows.values()), reads)
        where = []
        for spot in spots:
            places = {}
            for key, before, back in spot:
                row = pictures.index(key[0])
                at = blocks[row].index(key) * reads + rows[key[0]][key].index(back)
                places[before] = (row, at)
            where.append(places)
        return _Page(pictures, blocks, sheet, where)

    def _sheet(self, rows: Sequence[Mapping[Key, Sequence[int]]], reads: int) -> Sheet:
        tokens = {key: self._tokens(key) for mine in rows for key in mine}
        pad = int(self.loaded.tokenizer.pad_token_id or 0)
        most = max(map(len, rows))
        ids = torch.full((len(rows), most, max(map(len, tokens.values()))), pad)
        read_at = torch.zeros(len(rows), most, reads, dtype=torch.long)
        for row, mine in enumerate(rows):
            for block, (key, ends) in enumerate(mine.items()):
                words = tokens[key]
                ids[row, block, : len(words)] = torch.tensor(words)
                at = [len(words) - 1 - back for back in ends]
                read_at[row, block, : len(at)] = torch.tensor(at)
        device = self.loaded.device
        return Sheet(
            torch.tensor(self.prefix, device=device),
            ids.to(device),
            torch.arange(most, device=device).repeat_interleave(reads),
            read_at.flatten(1).to(device),
            pad,
        )

    def _key(self, ask: Ask, given: Tokens) -> Key:
        return (self._digest(ask), ask.question.prompt, given)

    def _digest(self, ask: Ask) -> str:
        picture = ask.question.picture
        assert picture is not None
        if id(picture) not in self._digests:
            # Kept beside its digest, so that no other picture gets its id.
            self._digests[id(picture)] = (picture, picture_digest(picture))
        return self._digests[id(picture)][1]

    def _tokens(self, key: Key) -> list[int]:
        """Return a block's tokens."""
        _, prompt, given = key
        return [*self._suffixes[prompt], *given]

    def _learn(self, asks: Sequence[Ask]) -> None:
        """Take in pictures and questions that are new."""
        new: dict[str, Picture] = {}
        for ask in asks:
            picture, digest = ask.question.picture, self._digest(ask)
            assert picture is not None
            if digest not in self._kept.vision:
                new[digest] = picture
            prompt = ask.question.prompt
            if prompt not in self._suffixes:
                sample = Sample(key="", prompt=prompt, picture=picture)
                ids: list[int] = self.loaded.inputs([sample])["input_ids"][0].tolist()
                end = len(ids) - ids[::-1].index(self.loaded.image_token_id)
                self.prefix, self._suffixes[prompt] = ids[:end], ids[end:]
        if new:
            samples = [Sample(key="", prompt="", picture=one) for one in new.values()]
            pixels = self.loaded.inputs(samples)["pixel_values"]
            # Edits come behind the tower, so it needs to run but once.
            features = vision_features(self.loaded.model, pixels)
            kept = features.to("cpu", self.loaded.model.dtype)
            self._kept.vision.update(zip(new, kept, strict=True))


def _places(
    asks: Sequence[Ask], page: _Page, logprobs: Tensor
) -> list[dict[Tokens, Place]]:
    """Pick what is asked for. Shapes: logprobs [rows, num_reads, vocab]"""
    said = logprobs.argmax(-1).tolist()
    wanted: list[tuple[int, int, int]] = []
    for ask, where in zip(asks, page.where, strict=True):
        for before, tokens in ask.places().items():
            row, read = where[before]
            wanted += [(row, read, token) for token in (*tokens, said[row][read])]
    rows, reads, ids = torch.tensor(wanted).T
    values = iter(logprobs[rows, reads, ids].tolist())
    return [
        {
            before: Place(
                (likeliest := said[where[before][0]][where[before][1]],),
                {token: next(values) for token in (*tokens, likeliest)},
            )
            for before, tokens in ask.places().items()
        }
        for ask, where in zip(asks, page.where, strict=True)
    ]
