# SPDX-License-Identifier: Apache-2.0
"""The word-level tokenizer, the chat template and the processor of sauce-tiny."""

from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from tiny.dataset import IMAGE_MEAN, IMAGE_STD
from tiny.model import PATCH_SIZE
from tiny.vocabulary import BOS, EOS, IMAGE, PAD, UNK, vocabulary
from tiny.world import PICTURE_SIZE

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ message['role'].upper() + ': ' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] in ['image', 'image_url'] -%}
{{ '<image>\n' }}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{ part['text'] }}
{%- endfor -%}
{%- endif -%}
{{ '</s>' if message['role'] == 'assistant' else ' ' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'ASSISTANT:' }}
{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of lower-cased words; an unknown word is ``<unk>``."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    # The blank after "ASSISTANT:" belongs to the colon: else every streamed answer
    # would start with a blank.
    core.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(" ?: ?"), ": "),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(
    tokenizer: Any = None, template: str = CHAT_TEMPLATE
) -> LlavaProcessor:
    """Return the processor of a tokenizer; it resizes any picture to 56 x 56."""
    side = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    images = CLIPImageProcessor(
        size={"shortest_edge": PICTURE_SIZE},
        crop_size=side,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer or build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
