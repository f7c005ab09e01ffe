"""What we rely on where an engine is a pipeline of unlike stages, on one host or several."""

from __future__ import annotations

from shuntserve.engine.touch_point import TouchPoint, accepts, both, fields, has, mentions, takes

PIPELINE: tuple[TouchPoint, ...] = (
    # configuration
    TouchPoint(
        "vllm.config:ParallelConfig",
        "pipeline_options",
        "numbers of ranks and nodes that its arguments would refuse are put in afterwards",
        fields("world_size", "nnodes", "node_rank", "master_addr", "disable_custom_all_reduce"),
    ),
    TouchPoint(
        "vllm.config:ModelConfig",
        "pipeline_options",
        "says how many layers and heads there are to share out",
        has("get_total_num_hidden_layers", "get_total_num_kv_heads", "is_hybrid"),
    ),
    TouchPoint(
        "vllm.config:VllmConfig",
        "pipeline_options",
        "carries the topology to every process, and hashes it into the names of its compile caches",
        fields("additional_config"),
    ),
    TouchPoint(
        "vllm.distributed.utils:get_pp_indices",
        "pipeline_options",
        "the layers of each stage are given by its own setting",
        mentions(r"envs\.VLLM_PP_LAYER_PARTITION"),
    ),
    # process groups
    TouchPoint(
        "vllm.distributed.parallel_state:ensure_model_parallel_initialized",
        "groups",
        "lays the groups out through a name that is replaced meanwhile",
        mentions(r"\n        initialize_model_parallel\(", r"get_pp_group\(\)\.world_size"),
    ),
    TouchPoint(
        "vllm.distributed.parallel_state:initialize_model_parallel",
        "groups",
        "these are the groups there are",
        mentions(*(rf"global {name}\b" for name in ("_TP", "_PCP", "_DCP", "_PP", "_DP", "_EP"))),
    ),
    TouchPoint(
        "vllm.distributed.parallel_state:init_model_parallel_group",
        "groups",
        "makes a group of any lists of ranks",
        both(
            takes("group_ranks", "local_rank", "backend"),
            accepts("group_name", "use_message_queue_broadcaster", "use_all2all"),
        ),
    ),
    TouchPoint(
        "vllm.distributed.parallel_state:GroupCoordinator.__init__",
        "groups",
        "the pipeline's group presents itself as a chain of stages through these attributes",
        both(
            takes("self", "group_ranks", "local_rank", "torch_distributed_backend", "use_device_communicator"),
            mentions(r"self\.ranks = ranks", r"self\.world_size = ", r"self\.rank_in_group = ", r"self\.device = "),
        ),
    ),
    TouchPoint(
        "vllm.distributed.parallel_state:GroupCoordinator.is_last_rank",
        "groups",
        "first and last stage are recognised by the chain's ends",
        lambda value: mentions(r"self\.rank == self\.last_rank")(value.fget),
    ),
    TouchPoint(
        "vllm.distributed.parallel_state:GroupCoordinator.make_sibling_device_group",
        "groups",
        "sampled tokens go back over groups with the same members",
        mentions(r"for ranks in self\.group_ranks"),
        v2_runner_only=True,
    ),
    TouchPoint(
        "vllm.v1.worker.gpu.pp_utils:PPHandler",
        "groups",
        "the last stage's rank of each group sends its tokens back",
        mentions(r"get_pp_group\(\)\.last_rank", r"make_sibling_device_group"),
        v2_runner_only=True,
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_worker:Worker.execute_model",
        "groups",
        "the two places where activations come and go, and which handles are waited for",
        mentions(
            r"get_pp_group\(\)\.irecv_tensor_dict\(",
            r"handles = get_pp_group\(\)\.isend_tensor_dict\(",
            r"self\._pp_send_work = handles\[1:\]",
        ),
    ),
    # workers
    TouchPoint(
        "vllm.distributed.parallel_state:init_distributed_environment",
        "stage_worker",
        "takes process groups that are connected already, by the generation's own store",
        mentions(r"if not torch\.distributed\.is_initialized\(\):", r"_WORLD = init_world_group\("),
    ),
    TouchPoint(
        "vllm.v1.worker.worker_base:WorkerBase.__init__",
        "stage_worker",
        "a worker is made before any group, from a configuration that may still be changed",
        both(takes("self", "vllm_config", "local_rank", "rank"), mentions(r"self\.parallel_config\.rank = rank")),
    ),
    TouchPoint(
        "vllm.config:ModelConfig.get_layers_start_end_indices",
        "stage_worker",
        "works out a worker's stage from two numbers, which it is given accordingly",
        mentions(r"parallel_config\.rank // parallel_config\.tensor_parallel_size"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_worker:Worker",
        "stage_worker",
        "the phases of a start-up begin with these",
        has("init_device", "load_model", "determine_available_memory", "compile_or_warm_up_model"),
    ),
    TouchPoint(
        "vllm.distributed.device_communicators.shm_broadcast:MessageQueue.create_from_process_group_single_reader",
        "stage_worker",
        "guesses from device counts who shares a host with the leader; replaced on the one group that asks",
        mentions(r"same_node = rank // local_size", r"dist\.gather_object\(handle, handles, dst=reader_rank"),
    ),
    TouchPoint(
        "vllm.v1.executor.multiproc_executor:WorkerProc._init_message_queues",
        "stage_worker",
        "answers come from other hosts when there are several nodes",
        mentions(r"nnodes_within_dp == 1", r"create_single_reader_mq_broadcasters\(\s*reader_rank_in_group=0"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.__init__",
        "cpu_worker",
        "a later stage's input goes into buffers that eager mode on CPUs forgets to allocate",
        mentions(r"self\.intermediate_tensors: IntermediateTensors \| None = None"),
    ),
    # executors
    TouchPoint(
        "vllm.v1.executor.multiproc_executor:MultiprocExecutor._init_executor",
        "pipeline_executor",
        "how many ranks there are, how many of them here, and who speaks for a stage is asked through methods",
        mentions(
            r"self\._get_parallel_sizes\(\)",
            r"range\(self\.local_world_size\)",
            r"self\._is_driver_worker\(global_rank\)",
            r"self\.output_rank = self\._get_output_rank\(\)",
            r"self\.workers\[0\]\.peer_worker_response_mqs",
        ),
    ),
    TouchPoint(
        "vllm.v1.executor:Executor.initialize_from_config",
        "pipeline_executor",
        "descriptions of the KV cache pass through it on their way to the workers",
        takes("self", "kv_cache_configs"),
    ),
    TouchPoint(
        "vllm.v1.kv_cache_interface:UniformTypeKVCacheSpecs",
        "pipeline_executor",
        "how layers with unlike numbers of KV heads are described",
        fields("kv_cache_specs"),
    ),
    TouchPoint(
        "vllm.v1.executor.multiproc_executor:WorkerProc.make_worker_process",
        "node_workers",
        "starts a worker of any rank",
        accepts(
            "vllm_config", "local_rank", "rank", "distributed_init_method", "input_shm_handle", "shared_worker_lock",
            "is_driver_worker", "inherited_fds",
        ),
    ),
    TouchPoint(
        "vllm.v1.executor.multiproc_executor:WorkerProc.wait_for_ready",
        "node_workers",
        "orders the handles of consecutive ranks, whichever the first",
        both(takes("unready_proc_handles"), mentions(r"rank % len\(ready_proc_handles\)")),
    ),
    TouchPoint(
        "vllm.distributed:get_pp_group",
        "stage_worker",
        "the pipeline group of this rank",
        mentions(r"return _PP\b"),
    ),
    TouchPoint(
        "vllm.distributed.parallel_state:get_inner_dp_world_group",
        "stage_worker",
        "the group of all ranks, which carries messages of the executor",
        mentions(r"return _INNER_DP_WORLD\b"),
    ),
    TouchPoint(
        "vllm.v1.executor.multiproc_executor:set_multiprocessing_worker_envs",
        "node_workers",
        "settings that workers inherit",
        takes("local_world_size"),
    ),
    TouchPoint(
        "vllm.utils.system_utils:get_mp_context",
        "node_workers",
        "how worker processes are started",
        mentions(r"VLLM_WORKER_MULTIPROC_METHOD"),
    ),
    TouchPoint(
        "vllm.utils.network_utils:get_file_store_init_method",
        "node_workers",
        "where the workers of one host would meet by themselves",
        mentions(r"file://"),
    ),
    TouchPoint(
        "vllm.utils.ompmultiprocessing:OMPProcessManager",
        "node_workers",
        "binds the threads of CPU workers",
        both(takes("config"), has("configure_omp_envs")),
    ),
)  # fmt: skip
