# SPDX-License-Identifier: Apache-2.0
"""Bugs of everything that must not be served wrong, for ``plant_bugs.py served``.

Each is (file below ``vllm_sauce/``, right, wrong, what it is, tests to run).
"""

_BATCHES = "tests/plugin/sites/test_encoder_batches.py"
_TOKENS = "tests/plugin/test_tokens.py"
_WIRE = "tests/test_client.py"
_CORE = "tests/plugin/test_engine_core.py"
_KINDS = "tests/plugin/test_kinds_of_input.py"
_ONE = "tests/plugin/test_one_token.py"
_MERGE = "tests/unlearning/test_merging.py tests/plugin/frontend/test_admission.py"
_ENGINE = "tests/plugin/test_engine.py -k 'leak or mixed or image or chunked'"
_OP = "tests/plugin/worker/test_op_check.py"
_LIFE = "tests/plugin/test_lifecycle.py"
_EMBEDS = "tests/plugin/test_embeddings.py"
_RAW = (
    "tests/plugin/frontend/test_raw_body.py tests/plugin/frontend/test_entrances.py "
    "tests/plugin/frontend/test_routes.py"
)
_CANARY = "tests/plugin/worker/test_canary.py"
_V2 = "tests/plugin/worker/test_runner_v2.py"
_CONFIG = "tests/bundle/test_model_config.py"
_WEIGHTS = "tests/plugin/startup/test_weights.py -m 'not engine'"
_FLAGS = "tests/plugin/startup/test_flags.py"
_RECORD = "tests/measuring/test_record.py"
_SITE = "tests/plugin/worker/test_decoder_site.py tests/unlearning/test_slots.py"

SERVED = (
    ("plugin/sites/encoder_batches.py", "found = [self._waiting.pop(id(pair), None) for pair in pairs]", "found = [self._waiting.pop(next(iter(self._waiting)), None) for pair in pairs]", "labels go by order", _BATCHES),
    ("plugin/sites/encoder_batches.py", "for _, run in groupby(labels):", "for _, run in groupby([None] * len(labels)):", "a batch holds two masks", _BATCHES),
    ("plugin/sites/encoder_batches.py", "if self._batch is None and self.strict:", "if False:", "an unannounced picture passes unedited", _BATCHES),
    ("plugin/sites/encoder_batches.py", "missed = self.sites - self._entered", "missed = set()", "a masked picture goes around the site", _BATCHES),
    ("plugin/sites/encoder_batches.py", "missed = self.sites - self._entered", "missed = set() if self._entered else self.sites", "one of a tower's sites is enough", _BATCHES),
    ("plugin/sites/swap.py", "if (residual is None) != (form == \"single\"):", "if False:", "a layer that leaves something else is edited", "tests/plugin/sites/test_swap.py"),
    ("plugin/sites/swap.py", "stream = stream.view(-1, stream.shape[-1])", "stream = stream.reshape(-1, stream.shape[-1]).clone()", "an edit of transformers' layers is lost", "tests/plugin/sites/test_swap.py"),
    ("plugin/sites/modules.py", "bool(here) and all(class_of(layer) in LAYERS for layer in here)", "bool(here) and all(any(c.__name__ in LAYERS for c in type(layer).__mro__) for layer in here)", "a subclass is taken for its base", "tests/plugin/sites/test_modules.py"),
    ("plugin/sites/modules.py", "if name != (row.vllm or row.model):", "if False:", "another program's model is taken for vLLM's", "tests/plugin/sites/test_modules.py"),
    ("plugin/worker/injection.py", "if edited and (missed :=", "if False and (missed :=", "a concept leaves pictures a way around", "tests/plugin/worker/test_injection.py"),
    ("plugin/worker/cut_check.py", "if around > 0:", "if around > 0.5:", "a tenth of a picture goes around", _CANARY),
    ("plugin/worker/form_check.py", "not still <= _TOLERANCE * moved", "False", "a layer's form is believed", _CANARY),
    ("plugin/sites/encoder_batches.py", "if unknown := sum(entry is None for entry in found):", "if unknown := 0:", "a run with a stranger in it goes on", _BATCHES),
    ("plugin/sites/encoder_batches.py", "        finally:\n            self._batch = None", "        except ZeroDivisionError:\n            pass\n        self._batch = None", "an encoder that failed leaves its mask behind", _BATCHES),
    ("plugin/sites/encoder_batches.py", "    def announce(self, pairs: Sequence[Any], labels: Sequence[Any]) -> None:\n        \"\"\"Tell of the next encoder run. A label of None asks for nothing.\n\n        Raises: CanaryError if a labelled picture of the last run was never encoded.\n        \"\"\"\n        self.finish()", "    def announce(self, pairs: Sequence[Any], labels: Sequence[Any]) -> None:\n        pass", "a picture never encoded is not missed", _BATCHES),
    ("plugin/worker/runtime.py", "spans = self.prompts[req_id].spans(int(starts[place]), num_tokens[place])", "spans = [(\"prompt\", int(num_tokens[place]))]", "a prompt's tokens are all of one kind", _TOKENS),
    ("plugin/worker/runtime.py", "spans = self.prompts[req_id].spans(int(starts[place]), num_tokens[place])", "spans = self.prompts[req_id].spans(0, num_tokens[place])", "a chunk is taken for the prompt's beginning", _TOKENS),
    ("plugin/worker/decoder_site.py", "self.part(mask, GENERATED)", "self.part(mask, \"prompt\")", "what is generated is taken for the prompt's", _TOKENS),
    ("unlearning/mask.py", "if kind in edit.tokens)", "if edit.tokens)", "tokens that a concept spares are edited", _TOKENS),
    ("plugin/worker/injection.py", "\n        * bundle.catalogue.token_groups(site),", ",", "too few slots for the parts of a mask", _TOKENS),
    ("plugin/sites/swap.py", "for name, value in kwargs.items():", "for name, value in ():", "a module called by keyword is not edited", "tests/plugin/sites/test_swap.py"),
    ("plugin/worker/runtime.py", "masks.append(None if mask_id is None else by_id[mask_id])", "masks.append(None)", "the vision site edits nobody", _ENGINE),
    ("plugin/frontend/admission.py", "feature.identifier = renamed(feature.identifier, mask)", "pass", "pictures share an encoding across masks", _ENGINE),
    ("plugin/frontend/admission.py", "request.cache_salt = salted(request.cache_salt, mask)", "pass", "blocks are shared across masks", _ENGINE),
    ("plugin/engine_core.py", "    _check_key(request.cache_salt or \"\", salted, \"cache_salt\")", "", "the core takes a masked request with a plain salt", _CORE),
    ("plugin/engine_core.py", "_check_key(key, mask if acts.on_pixels else None, \"picture's identifier\")", "pass", "the core takes a masked picture under a plain name", _CORE),
    ("plugin/frontend/admission.py", "if wanted != got:", "if False:", "a session changes its mask", "tests/plugin/test_sessions.py"),
    ("plugin/engine_core.py", "mask = check(core._sauce_admission, request)", "mask = None", "the core looks at nothing", _CORE),
    ("plugin/engine_core.py", "self.output_processor.abort_requests([noted], internal=True)", "pass", "a refused request is waited for", _CORE),
    ("plugin/engine_core.py", "if mask is not None and not core._sauce_proven:", "if False:", "masked requests while asleep", _LIFE),
    ("plugin/worker/runtime.py", "if not self.proven and not has_sauce_keys(extra_args):", "if True:", "a worker takes what the core has not seen", "tests/plugin/test_engine.py -k around_admission"),
    ("plugin/sites/action.py", "self.live[req_id] = label", "self.live.setdefault(req_id, label)", "an id that comes again keeps its mask", _V2),
    ("plugin/worker/lifecycle.py", "runtime.weights_lost |= level >= 2", "runtime.weights_lost |= False", "weights that were discarded are proven", _LIFE),
    ("plugin/worker/weights.py", "if before not in (None, runtime.weights_seen):", "if False:", "weights that an extension changes are proven", _LIFE),
    ("plugin/worker/weights.py", "model.load_weights = load_weights", "model.load_weights = original", "weights that a trainer hands over are proven", _LIFE),
    ("plugin/worker/weights.py", "sums.append((words * places).sum())", "sums.append(words.sum())", "numbers may change places", "tests/plugin/worker/test_weights.py"),
    ("plugin/engine_core.py", "result.add_done_callback(lambda _: _settle(self, _all_proven(self, ranks)))", "_settle(self, _all_proven(self, ranks))", "an engine that sleeps later is proven", _CORE),
    ("plugin/engine_core.py", "if not (proven or core.model_executor.is_sleeping):", "if False:", "masked requests outlive the proof", _CORE),
    ("plugin/worker/lifecycle.py", "if check_files(runtime.bundle, self.vllm_config) != runtime.weights:", "if False:", "other weights are taken for the bundle's", _LIFE),
    ("plugin/worker/lifecycle.py", "if args or any(source is not None for source in sources):", "if False:", "weights from another place", _LIFE),
    ("plugin/worker/canary.py", "if table.checksum() != table.loaded_checksum:", "if False:", "rows lost in sleep", _LIFE),
    ("plugin/worker/runtime.py", "            _keep(connector, self.tables[site])\n", "            pass\n", "the vision table is no buffer", _LIFE),
    ("plugin/worker/op_check.py", "if not torch.equal(got[untouched], x[untouched]):", "if False:", "an op that edits everybody passes", _OP),
    ("plugin/worker/op_check.py", "if wrong > (1 if table.topk and len(few) > 1 else 0):", "if False:", "an op that is wrong passes", _OP),
    ("plugin/worker/op_check.py", "return not torch.equal(want, x[few].cpu())", "return True", "a check of nothing passes", _OP),
    ("client.py", "unicodedata.normalize(\"NFKC\", key).casefold()", "key.casefold()", "full-width letters pass", _WIRE),
    ("client.py", " or letters == \"forget\"", "", "forget alone passes", _WIRE),
    ("plugin/engine_core.py", "if missing := sorted(set(admission.config.forget) - set(names)):", "if missing := \"\":", "a request without the mandatory concepts", _CORE),
    ("plugin/sites/encoder_batches.py", "made = any(key.startswith(\"pixel_values\") for key in keys)", "made = True", "embeddings under a vision mask", _EMBEDS),
    ("plugin/frontend/admission.py", "compat.resend_images(self, prompt, request)", "compat.resend_images(self, prompt)", "a refused raw prompt takes its picture along", "tests/plugin/test_engine.py -k raw_prompt"),
    ("plugin/worker/canary.py", "if counted != batch.num_tokens:", "if counted == 0:", "an op that runs twice is proven", _CANARY),
    ("plugin/worker/canary.py", "        changed = _changed(before, after)\n", "        changed = True\n", "an output that did not change is proven", _CANARY),
    ("plugin/frontend/raw_body.py", "if ours and where != place:", "if False:", "a wish in the wrong place", _RAW),
    ("plugin/frontend/raw_body.py", "        if count > 1:", "        if False:", "the last of two equal keys", _RAW),
    ("plugin/frontend/raw_body.py", "if dict(members).get(\"use_beam_search\") not in (None, False):", "if False:", "beam search drops the wish", _RAW),
    ("plugin/startup/ranks.py", "if one[\"settings\"] != mine:", "if False:", "processes that disagree serve", "tests/plugin/frontend/test_agreement.py"),
    ("plugin/engine_core.py", "    elif living.sampling_params.extra_args[KEY].mask != mask:", "    elif False:", "a masked chunk joins a plain session", _CORE),
    ("unlearning/merging.py", "strongest = max if way == 1 else min", "strongest = min", "an edit upwards is taken away", _MERGE),
    ("unlearning/merging.py", "    if len(ways) > 1:", "    if False:", "concepts against each other are served", _MERGE),
    ("plugin/frontend/admission.py", "    check_agreement(mask, catalogue)", "    pass", "who contradicts ends the worker", _MERGE),
    ("plugin/engine_core.py", "        refuse_unwritten(request.sampling_params)", "        pass", "the core takes a single token under edits of answers", _ONE),
    ("plugin/frontend/admission.py", "if params.max_tokens == 1 or params.prompt_logprobs is not None:", "if params.prompt_logprobs is not None:", "a single token under edits of answers", _ONE),
    ("plugin/frontend/admission.py", "acts_of(admission, mask).tells_turns_apart:", "False:", "beams under edits of prompts", _ONE),
    ("plugin/engine_core.py", "        refuse_other_kinds(request", "        len(request", "what is no picture of the model's", _KINDS),
    ("plugin/engine_core.py", "        refuse_embeddings(features)", "        pass", "words come as a picture's embeddings", _KINDS),
    ("unlearning/mask.py", "return self._tells_apart(catalogue, PROMPT, IMAGE)", "return False", "a plain request's embeddings stand for words", _KINDS),
    ("plugin/sites/tokens.py", "map(PictureSpan.of, new_request.mm_features)", "map(PictureSpan.of, (f for f in new_request.mm_features if f.modality == \"image\"))", "a picture of another name is words", "tests/plugin/sites/test_tokens.py"),
    ("plugin/engine_core.py", "        compat.read_no_prefix(request)", "        pass", "a mask reads what it wrote as an answer", "tests/plugin/test_tokens.py -k next_turn"),
    ("plugin/startup/flags.py", "nargs=\"+\", action=\"extend\"", "action=\"append\"", "a list of the YAML loses its second concept", _FLAGS),
    ("plugin/startup/settings.py", " or _SERVICE_LINK.fullmatch(name)", "", "a Kubernetes Service of our name", "tests/plugin/startup/test_settings.py -k service"),
    ("plugin/startup/features.py", "    if compat.rust_frontend():", "    if False:", "the Rust front end", "tests/plugin/startup/test_features.py"),
    ("plugin/startup/settings.py", "    if len(lists) == 2 and", "    if False and", "a flag takes back a variable's concepts", "tests/plugin/startup/test_settings.py -m 'not engine'"),
    ("plugin/startup/settings.py", "    if not all(names):", "    if False:", "a blank list of concepts", "tests/plugin/startup/test_settings.py -m 'not engine'"),
    ("bundle/fingerprint.py", "\"config\": read_configs(folder),", "", "a config that moves a site", _CONFIG),
    ("bundle/model_config.py", "if name == FILES[0] or (folder / name).exists():", "if name == FILES[0]:", "pictures made into others", _CONFIG),
    ("bundle/schema.py", "(key in before) != (key in after) or before[key] != after[key]", "key in before and key in after and before[key] != after[key]", "a key that is left out", _CONFIG),
    ("plugin/startup/features.py", "    found += weights.unhashed(vllm_config)", "", "weights that nobody hashed", "tests/plugin/startup/test_features.py"),
    ("plugin/startup/weights.py", "if name not in HASHED and", "if False and", "a load format that reads other files", _WEIGHTS),
    ("plugin/startup/weights.py", "    if not hashed:", "    if False:", "weights that are no safetensors", _WEIGHTS),
    ("plugin/startup/weights.py", "and preferred != hashed:", "and False:", "a consolidated file that vLLM prefers", _WEIGHTS),
    ("plugin/startup/weights.py", "if elsewhere := getattr(load, \"download_dir\", None):", "if elsewhere := None:", "another cache than is hashed", _WEIGHTS),
    ("data/pictures.py", "image = ImageOps.exif_transpose(image)", "pass", "pictures lie on their side", "tests/data/test_pictures.py"),
    ("data/pictures.py", "shown = Image.new(\"RGB\", image.size, _WHITE)", "shown = Image.new(\"RGB\", image.size)", "what is transparent is black", "tests/data/test_pictures.py"),
    ("files.py", ".split(\"\\n\")", ".splitlines()", "lines are cut at U+2028", "tests/test_files.py"),
    ("files.py", "decode(\"utf-8-sig\")", "decode()", "a BOM stands in the first line", "tests/test_files.py"),
    ("models/chat_prompts.py", "add_special_tokens=False,", "add_special_tokens=True,", "a first token twice", "tests/models/test_chat_prompts.py"),
    ("measuring/record.py", "forgotten=concept.forgotten and kept,", "forgotten=concept.forgotten,", "a concept measured below its floor is offered", _RECORD),
    ("measuring/record.py", "forgotten=concept.forgotten and kept,", "forgotten=kept,", "a good figure offers what calibration refused", _RECORD),
    ("measuring/settings.py", "if self.record and self.url is not None:", "if False:", "figures of who knows which server are recorded", "tests/measuring/test_measure.py"),
    ("plugin/frontend/agreement.py", "        check(vllm_config, reports)\n", "        pass\n", "an engine without a server that disagrees answers", "tests/plugin/frontend/test_agreement.py"),
    ("plugin/frontend/agreement.py", "            _refuse(error)\n        check", "            return\n        check", "an engine without a server whose workers are deaf answers", "tests/plugin/frontend/test_agreement.py"),
    ("plugin/frontend/agreement.py", "        await _agree(self)\n    return", "        pass\n    return", "a client of its own asks deaf workers", "tests/plugin/frontend/test_agreement.py"),
    ("unlearning/slots.py", "            self.generation += 1\n", "", "nobody is told that a mask left its slot", _SITE),
    ("plugin/worker/decoder_site.py", "        if self._generation != table.generation:\n            self._forget_slots()\n", "", "slots that were others' since are believed", "tests/plugin/worker/test_decoding.py"),
    ("plugin/worker/decoder_site.py", "-1 if part is None else _UNKNOWN", "self._slots[index] if part is None else _UNKNOWN", "an index that comes again keeps its slot", _SITE),
    ("plugin/worker/runtime.py", "if not index and req_id in self.live:", "if False:", "a request that began badly is taken for a dummy", "tests/plugin/worker/test_runtime.py"),
    ("unlearning/mask.py", "        if Mask.of([(name, 1.0)], \"\").spares_prompts(catalogue):", "        if False:", "a mandatory concept that is evaded token by token", "tests/unlearning/test_mask.py tests/plugin/frontend/test_admission.py -m 'not engine'"),
    ("plugin/startup/features.py", "\"model_config.multimodal_config.mm_processor_kwargs\"", "\"model_config.multimodal_config.no_such_thing\"", "pictures prepared otherwise", "tests/plugin/startup/test_features.py"),
    ("plugin/startup/features.py", "\"mm_processor_cache_type\", None) == \"shm\"", "\"mm_processor_cache_type\", None) == \"no\"", "pictures that come as addresses", "tests/plugin/startup/test_features.py"),
    ("evaluation/asking/hf_model.py", "shown = self.prompts if kinds else self.pictures", "shown = self.pictures", "transformers edits text in a pass of pictures", "tests/evaluation/asking/test_hf_model.py"),
    ("evaluation/asking/hf_model.py", "if kinds and pictured and not image.any():", "if False:", "transformers edits nothing where pictures are not told", "tests/inspection/test_figures.py -k kinds"),
    ("models/site_edits.py", "mine = image if action.only == (IMAGE,) else ~image", "mine = image", "text is not edited but its picture", "tests/models/test_site_edits.py"),
)  # fmt: skip
"""What was broken once, to see its test fail."""
