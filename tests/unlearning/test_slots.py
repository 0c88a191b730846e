# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.unlearning.catalogues import DIGEST, build_catalogue
from vllm_sauce.errors import ConfigError
from vllm_sauce.sae import SAEWeights
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import SiteTable, site_rows

CATALOGUE = build_catalogue()
D_MODEL, D_SAE = 4, 12


def build_sae(threshold=0.6):
    rng = torch.Generator().manual_seed(0)
    return SAEWeights(
        W_enc=torch.randn(D_MODEL, D_SAE, generator=rng),
        W_dec=torch.randn(D_SAE, D_MODEL, generator=rng),
        b_enc=torch.randn(D_SAE, generator=rng),
        b_dec=torch.randn(D_MODEL, generator=rng),
        threshold=torch.full((D_SAE,), threshold),
        architecture="jumprelu",
    )


def build_table(num_slots=2, max_latents=4, **options):
    return SiteTable(
        build_sae(), CATALOGUE, "vision", num_slots, max_latents, **options
    )


def mask(*names, strength=1.0):
    return Mask.of([(name, strength) for name in names], DIGEST)


def test_pool_holds_the_catalogues_latents_only():
    table, sae = build_table(), build_sae()
    assert table.pool_latents == (2, 5, 9)
    pool = list(table.pool_latents)
    assert torch.equal(table.W_enc_rows, sae.W_enc.T[pool])
    assert torch.equal(table.W_dec_rows, sae.W_dec[pool])
    x = torch.randn(3, D_MODEL)
    hidden_pre = x @ table.W_enc_rows.T + table.b_enc
    torch.testing.assert_close(hidden_pre, sae.hidden_pre(x)[:, pool])


def test_pool_bytes_are_those_of_its_rows():
    # three latents of four floats, twice, and a bias each
    assert build_table().pool_bytes == 4 * (3 * 4 + 3 * 4 + 3)
    assert build_table(dtype=torch.bfloat16).pool_bytes == 2 * (12 + 12) + 4 * 3


def test_a_slot_holds_its_masks_rows():
    table, both = build_table(), mask("dog", "cat")
    (slot,) = table.assign([both])
    rows = site_rows(both, CATALOGUE, "vision")
    count = int(table.mask_len[slot])
    latents = [table.pool_latents[i] for i in table.mask_latents[slot, :count]]
    assert tuple(latents) == rows.latents
    torch.testing.assert_close(table.mask_scale[slot, :count], torch.tensor(rows.scale))
    torch.testing.assert_close(table.mask_shift[slot, :count], torch.tensor(rows.shift))
    # the SAE's threshold 0.6 is above both gates
    torch.testing.assert_close(table.mask_gate[slot, :count], torch.full((3,), 0.6))


def test_none_and_masks_of_other_sites_have_no_slot():
    table = build_table()
    assert table.assign([None, mask("red"), mask("dog"), None]) == [-1, -1, 0, -1]


def test_equal_masks_share_and_different_ones_do_not():
    first, second, again = build_table().assign([mask("dog"), mask("cat"), mask("dog")])
    assert first == again != second


def test_the_least_recently_used_mask_leaves():
    table = build_table()
    dog, cat, both = mask("dog"), mask("cat"), mask("dog", "cat")
    table.assign([dog, cat])
    table.assign([dog])
    (slot,) = table.assign([both])
    assert table._slot_of_mask == {dog.mask_id: 0, both.mask_id: 1}
    assert slot == 1


def test_asking_for_a_resident_mask_keeps_it_and_a_leaving_one_is_told():
    table = build_table()
    dog, cat, both = mask("dog"), mask("cat"), mask("dog", "cat")
    table.assign([dog, cat])
    assert table.resident([None, dog]) == [-1, 0]
    assert table.resident([dog, both]) is None
    assert table.generation == 0
    table.assign([both])
    assert table.resident([dog, both]) == [0, 1] and table.resident([cat]) is None
    assert table.generation == 1


def test_a_mask_of_this_step_is_never_evicted():
    table = build_table()
    dog, cat, both = mask("dog"), mask("cat"), mask("dog", "cat")
    table.assign([dog, cat])
    # dog is the oldest, yet used in this very step, after the newcomer
    slots = table.assign([both, dog])
    residents = dict(zip((both.mask_id, dog.mask_id), slots, strict=True))
    assert table._slot_of_mask == residents


def test_a_shorter_mask_leaves_no_rows_of_the_one_before():
    table = build_table(num_slots=1)
    table.assign([mask("dog", "cat")])
    table.assign([mask("cat")])
    assert table.mask_len.tolist() == [2]


def test_limits_are_errors():
    with pytest.raises(ConfigError, match="distinct masks"):
        build_table().assign([mask("dog"), mask("cat"), mask("dog", "cat")])
    table = build_table(max_latents=2)
    with pytest.raises(ConfigError, match="raise max_latents"):
        table.assign([mask("dog", "cat")])
    assert not table._slot_of_mask


def test_addresses_never_change():
    table = build_table()

    def addresses():
        tensors = [t for t in table.op_args().values() if isinstance(t, torch.Tensor)]
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    assert len(before) == 9
    table.assign([mask("dog")])
    table.assign([mask("cat"), mask("dog", "cat")])
    table.reset()
    assert addresses() == before


def test_reset_forgets_everything():
    table = build_table()
    table.assign([mask("dog")])
    table.edited_tokens += 3
    table.reset()
    assert not table._slot_of_mask
    assert not table.edited_tokens.any()
    assert not table.mask_len.any()


def test_rows_scale_with_strength():
    rows = site_rows(mask("dog", strength=2.0), CATALOGUE, "vision")
    assert rows.latents == (5, 9)
    assert rows.scale == (-2.0, -3.0)
    assert rows.shift == (-2.0, 0.0)
    assert rows.gate == (0.3, 0.5)


def test_shared_latents_take_the_strongest_edit():
    rows = site_rows(mask("dog", "cat"), CATALOGUE, "vision")
    assert rows.latents == (2, 5, 9)
    assert rows.scale == (-0.5, -2.0, -1.5)
    assert rows.shift == (0.0, -1.0, 0.0)
    assert rows.gate == (0.0, 0.3, 0.5)
    assert len(site_rows(mask("red"), CATALOGUE, "vision")) == 0
