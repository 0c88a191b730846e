# SPDX-License-Identifier: Apache-2.0
"""What this package relies on in vLLM, name by name: a table, beside ``compat``.

``seam_check.check`` compares a place's rows with the vLLM that runs, so that a seam
that has gone stops the start. ``tests/plugin/compat/test_seams.py`` compares all rows
with what ``scripts/record_seams.py`` read in each version's source; a new row needs new
records.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@dataclass(frozen=True, slots=True)
class Seam:
    """A function, class or imported name of vLLM's, and what we need of it.

    Names in a field have spaces between them.
    """

    place: str
    """Who needs it: "all" processes; a "worker", one of runner "v1" or "v2", on "cpu"
    or "gpu"; "http", "offline", or "bench serve", "bench throughput", "bench latency"
    of a command."""

    module: str
    name: str
    """Qualified, as in ``GPUModelRunner._prepare_inputs``."""

    leads: str = ""
    """Its first parameters, in this order: what we take or give by position."""

    takes: str = ""
    """Parameters that are there, anywhere."""

    calls: str = ""
    """Names it calls: why a hook on those is passed."""

    has: str = ""
    """Fields, methods and attributes of a class."""

    versions: str = ""
    """A specifier, where vLLM has moved or renamed it; every version if empty."""

    @property
    def full_name(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name}"

    def in_version(self, version: str) -> bool:
        """Say whether a vLLM of this version should have it."""
        base = Version(version).base_version
        return SpecifierSet(self.versions, prereleases=True).contains(base)


GROUPING = "group_and_batch_mm_kwargs"
"""What both runners split a step's pictures into batches with: each imports the name
into its module and calls it there, so that is where it is replaced."""

GPU = "vllm.v1.worker.gpu_worker"
_args = partial(Seam, "all", "vllm.engine.arg_utils")
_processor = partial(Seam, "all", "vllm.v1.engine.input_processor")
_core = partial(Seam, "all", "vllm.v1.engine.core")
_async_llm = partial(Seam, "all", "vllm.v1.engine.async_llm")
_client = partial(Seam, "all", "vllm.v1.engine.core_client")
_llm_engine = partial(Seam, "all", "vllm.v1.engine.llm_engine")
_cpu = partial(Seam, "cpu", "vllm.v1.worker.cpu_worker")
_gpu = partial(Seam, "gpu", GPU)
SCHEDULED = "vllm.v1.core.sched.output"
_v1 = partial(Seam, "v1", "vllm.v1.worker.gpu_model_runner")
_v1_batch = partial(Seam, "v1", "vllm.v1.worker.gpu_input_batch")
_v2 = partial(Seam, "v2", "vllm.v1.worker.gpu.model_runner")
_v2_batch = partial(Seam, "v2", "vllm.v1.worker.gpu.input_batch")
_v2_encoder = partial(Seam, "v2", "vllm.v1.worker.gpu.mm.encoder_runner")
STATES = "vllm.v1.worker.gpu.model_states"
_states = partial(Seam, "v2", STATES)
_state = partial(Seam, "v2", f"{STATES}.interface")
_default = partial(Seam, "v2", f"{STATES}.default")
_inputs = partial(Seam, "all", "vllm.multimodal.inputs")
_registry = partial(Seam, "all", "vllm.multimodal.registry")
_info = partial(Seam, "all", "vllm.multimodal.processing.context")
_size = partial(
    Seam, "offline", name="MultiModalCache.get_item_size", leads="cls value"
)
BEAMS = "vllm.entrypoints.generate.beam_search"

_ENCODED = "self scheduled_encoder_inputs"
_EMBED = f"{_ENCODED} input_batch req_states"
_SCHEDULED = "self scheduler_output"

SEAMS = (
    # Flags and the configuration; vLLM has no hook for a plugin's own.
    _args("EngineArgs", has="additional_config model revision"),
    _args("EngineArgs.add_cli_args", leads="parser"),
    _args("EngineArgs.from_cli_args", leads="cls args"),
    _args("EngineArgs.create_engine_config", leads="self"),
    # A request's way in: what makes the EngineCoreRequest of every entry point.
    # ``LogitsProcessor.validate_params`` cannot set the cache identity and is refused
    # with other features. Remove when vLLM has a request-admission hook.
    _processor("InputProcessor", has="renderer vllm_config"),
    _processor("InputProcessor.__init__", leads="self vllm_config"),
    _processor(
        "InputProcessor.process_inputs",
        leads="self request_id prompt params",
        takes="resumable",
    ),
    Seam(
        "all",
        "vllm.v1.engine",
        "EngineCoreRequest",
        has="request_id mm_features sampling_params cache_salt resumable",
    ),
    Seam("all", "vllm.sampling_params", "SamplingParams", has="extra_args"),
    # What the model takes beside words, which a request with its own data says itself.
    _registry("MultiModalRegistry.create_processor", leads="self model_config"),
    _info("BaseProcessingInfo", has="allowed_mm_limits"),
    _inputs(
        "MultiModalFeatureSpec", has="data modality identifier mm_position mm_hash"
    ),
    _inputs("PlaceholderRange", has="offset length is_embed"),
    # Beam search, which asks for each token as a prompt of its own.
    Seam("all", f"{BEAMS}.online", "BeamSearchOnlineMixin.beam_search", leads="self"),
    Seam("all", f"{BEAMS}.offline", "BeamSearchOfflineMixin.beam_search", leads="self"),
    # A body's way in: what a server builds (``--middleware`` would be outermost, before
    # authentication), and a file's lines.
    _args("EngineArgs.create_model_config", leads="self"),
    Seam("http", "vllm.entrypoints.launchers.app", "build_app", versions=">=0.29"),
    Seam("http", "vllm.entrypoints.openai.api_server", "build_app", versions="<0.29"),
    *(
        Seam("http", module, name, leads=leads, versions=versions)
        for module, versions in (
            ("vllm.entrypoints.launchers.run_batch", ">=0.29"),
            ("vllm.entrypoints.openai.run_batch", "<0.29"),
        )
        for name, leads in (
            ("run_batch", "engine_client args"),
            ("handle_endpoint_request", "request"),
            ("make_async_error_request_output", "request error_msg"),
            ("BatchRequestInput", ""),
        )
    ),
    Seam("http", "vllm.exceptions", "VLLMClientError", versions=">=0.27"),
    # A session keeps the cache salt of its first chunk and the mask of its last.
    _async_llm("AsyncLLM", has="input_processor"),
    _async_llm(
        "AsyncLLM._add_streaming_input_request",
        leads="self request_id input_stream sampling_params",
        calls="process_inputs",
    ),
    # Every server awaits it before it serves, and vLLM's handshake with the engine
    # compares nothing of ``additional_config``.
    _async_llm("AsyncLLM.get_supported_tasks", leads="self"),
    _async_llm("AsyncLLM.add_request", leads="self"),  # of those without a server
    _client("MPClient", has="core_engines"),
    _client("AsyncMPClient._call_utility_async", leads="self method", takes="engine"),
    # What the engine core refuses ends one request: its input thread says so. What is
    # raised later, in the scheduler or a worker, ends the engine.
    _core("EngineCore", has="model_executor scheduler"),
    _core("EngineCoreProc._send_abort_outputs", leads="self aborted_reqs"),
    _core("EngineCore.sleep", leads="self"),
    _core("EngineCore.wake_up", leads="self"),
    _core("EngineCore.collective_rpc", leads="self method"),
    # Between loading plugins and the first request, in the core's own process, too.
    _core("EngineCore._initialize_kv_caches", leads="self vllm_config"),
    _core("EngineCore.__init__", calls="_initialize_kv_caches"),
    _core(
        "EngineCore.preprocess_add_request",
        leads="self request",
        calls="from_engine_core_request",
    ),
    _core(
        "EngineCoreProc.process_input_sockets",
        calls="preprocess_add_request _handle_request_preproc_error",
    ),
    Seam(
        "all",
        "vllm.v1.request",
        "Request",
        has="request_id sampling_params cache_salt mm_features is_finished",
    ),
    # It notes a request before the core has taken it: one that is refused there would
    # be waited for, for ever.
    _llm_engine("LLMEngine", has="output_processor engine_core collective_rpc"),
    _llm_engine("LLMEngine.__init__", leads="self vllm_config"),
    _llm_engine("LLMEngine.add_request", leads="self", calls="add_request"),
    Seam(
        "all",
        "vllm.v1.engine.output_processor",
        "OutputProcessor.abort_requests",
        leads="self request_ids",
        takes="internal",
    ),
    # A worker, whichever its runner. Every device's begins here, with the whole config:
    # plugins load in processes of all kinds and are not told in which.
    Seam(
        "all",
        "vllm.v1.worker.worker_base",
        "WorkerBase.__init__",
        leads="self vllm_config",
    ),
    # All runners and devices load through it, before profiling and compilation.
    Seam(
        "worker",
        "vllm.model_executor.model_loader.base_loader",
        "BaseModelLoader.load_model",
        leads="self vllm_config model_config",
    ),
    Seam(
        "worker", SCHEDULED, "NewRequestData", has="req_id sampling_params mm_features"
    ),
    Seam(
        "worker",
        "vllm.multimodal.utils",
        GROUPING,
        leads="mm_kwargs",
        takes="device pin_memory",
    ),
    # The canary's picture, what it silences, and where decoder layers are found.
    Seam(
        "worker",
        "vllm.model_executor.layers.mamba.abstract",
        "MambaBase",
        has="kv_cache",
    ),
    Seam(
        "worker",
        "vllm.model_executor.layers.attention.attention",
        "Attention.forward",
        leads="self query key value",
        takes="output_shape",
    ),
    Seam(
        "worker",
        "vllm.multimodal.registry",
        "MultiModalRegistry.get_dummy_mm_inputs",
        leads="self model_config mm_counts",
        takes="processor",
        versions="<0.31",
    ),
    Seam(
        "worker",
        "vllm.multimodal.processing.processor",
        "BaseMultiModalProcessor.get_dummy_mm_inputs",
        leads="self mm_counts",
        versions=">=0.31",
    ),
    Seam(
        "worker",
        "vllm.model_executor.models.interfaces",
        "SupportsMultiModal.get_language_model",
        leads="self",
    ),
    # Ranks, and what stands for layers of other stages.
    *(
        Seam("worker", "vllm.distributed.parallel_state", name)
        for name in ("model_parallel_is_initialized", "get_tp_group", "get_pp_group")
    ),
    Seam("worker", "vllm.model_executor.models.utils", "PPMissingLayer"),
    Seam("worker", "vllm.sequence", "IntermediateTensors", has="tensors"),
    _cpu("CPUWorker.compile_or_warm_up_model", leads="self"),
    _cpu("CPUWorker.sleep", leads="self level"),
    _cpu("CPUWorker.wake_up", leads="self tags"),
    _gpu("Worker.compile_or_warm_up_model", leads="self"),
    _gpu("Worker.sleep", leads="self level"),
    _gpu("Worker.wake_up", leads="self tags"),
    Seam("worker", GPU, "Worker.reload_weights", leads="self"),
    # Model runner V1, which has no per-step hook; ``CPUModelRunner`` inherits it.
    Seam(
        "v1",
        SCHEDULED,
        "SchedulerOutput",
        has="finished_req_ids scheduled_encoder_inputs scheduled_new_reqs",
    ),
    _v1("GPUModelRunner", has="input_batch model vllm_config model_config"),
    _v1("GPUModelRunner._update_states", leads=_SCHEDULED),
    _v1(
        "GPUModelRunner._prepare_inputs",
        leads="self scheduler_output num_scheduled_tokens",
    ),
    _v1(
        "GPUModelRunner._dummy_run",
        leads="self num_tokens",
        takes="force_attention uniform_decode is_profile",
    ),
    _v1("GPUModelRunner._batch_mm_inputs_from_scheduler", leads=_SCHEDULED),
    _v1(
        "GPUModelRunner._execute_mm_encoder",
        leads=_SCHEDULED,
        calls=f"_batch_mm_inputs_from_scheduler {GROUPING}",
    ),
    _v1(GROUPING),
    _v1_batch("InputBatch", has="req_ids num_reqs num_computed_tokens_cpu"),
    _v1_batch("CachedRequestState", has="sampling_params mm_features"),
    # Model runner V2.
    _v2(
        "GPUModelRunner",
        has="model model_state supports_mm_inputs vllm_config model_config",
    ),
    _v2(
        "GPUModelRunner._dummy_run",
        leads="self num_tokens",
        takes="uniform_decode is_profile",
    ),
    _v2("GPUModelRunner.add_requests", calls="add_request"),
    _v2_batch(
        "InputBatch",
        has="req_ids num_reqs num_scheduled_tokens num_computed_tokens_np",
    ),
    # A ``ModelState`` may call these two directly, and in 0.26 and 0.27 all do.
    _v2_encoder(GROUPING),
    _v2_encoder("EncoderRunner", has="model"),
    _v2_encoder("EncoderRunner.prepare_mm_inputs", leads=_ENCODED),
    _v2_encoder(
        "EncoderRunner.execute_mm_encoder", leads="self mm_kwargs", calls=GROUPING
    ),
    _state("ModelState", has="encoder_runner encoder_cache"),
    _state("ModelState.__init__", leads="self vllm_config model encoder_cache device"),
    _state("ModelState.add_request", leads="self req_index new_req_data"),
    _state("ModelState.remove_request", leads="self req_id"),
    Seam("v2", "vllm.v1.worker.gpu.states", "RequestState", has="req_id_to_index"),
    _default("DefaultModelState.prepare_inputs", leads="self input_batch req_states"),
    _default(
        "DefaultModelState.prepare_dummy_inputs", leads="self num_reqs num_tokens"
    ),
    _default("DefaultModelState.dummy_inputs_embeds", leads="self num_tokens"),
    # Who has pictures encoded on V2: whichever it is, through the encoder runner.
    _default(
        "DefaultModelState.get_mm_embeddings",
        leads=_EMBED,
        calls="prepare_mm_inputs execute_mm_encoder",
        versions="<0.28",
    ),
    _default(
        "DefaultModelState.get_mm_embeddings",
        leads=_EMBED,
        calls="execute_mm_encoder",
        versions=">=0.28,<0.29",
    ),
    _default(
        "DefaultModelState.prepare_inputs_embeds",
        leads=_EMBED,
        calls="execute_mm_encoder",
        versions=">=0.29",
    ),
    _state(
        "ModelState.execute_mm_encoder",
        leads=_ENCODED,
        calls="prepare_mm_inputs execute_mm_encoder",
        versions=">=0.28",
    ),
    # Where our ModelState takes its place.
    _states(
        "init_model_state",
        leads="vllm_config model encoder_cache device",
        calls="get_model_state_cls",
        versions="<0.29",
    ),
    _states(
        "resolve_model_state_cls",
        leads="vllm_config model",
        calls="get_model_state_cls",
        versions=">=0.29",
    ),
    # Asking offline.
    _size(module="vllm.multimodal.cache", versions="<0.31"),
    _size(module="vllm.multimodal.cache.base", versions=">=0.31"),
    Seam("offline", "vllm.v1.engine.exceptions", "EngineDeadError"),
    # vLLM's benchmarks, which import these by name where they parse arguments.
    *(
        Seam(f"bench {command}", f"vllm.benchmarks.{command}", name, leads=leads)
        for command in ("serve", "throughput", "latency")
        for name, leads in (("add_cli_args", "parser"), ("main", "args"))
    ),
    # A request's own fields are laid over the benchmark's, key by key.
    Seam(
        "bench serve",
        "vllm.benchmarks.serve",
        "benchmark",
        takes="endpoint_type api_url model_id model_name input_requests extra_headers "
        "extra_body ready_check_timeout_sec ssl_context",
        calls="_merge_overrides",
    ),
    Seam(
        "bench serve",
        "vllm.benchmarks.datasets.datasets",
        "SampleRequest",
        has="prompt multi_modal_data chat_messages request_overrides",
    ),
)
