"""vLLM's CPU worker, taught to continue sequences exactly and to be a rank of an uneven pipeline. Apart from the GPU
worker's module because importing it loads the CPU kernels."""

from __future__ import annotations

from typing import Any

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker

from shuntserve.engine.stage_worker import StageWorkerMixin
from shuntserve.engine.worker import ResumeWorkerMixin


class ResumeCPUWorker(ResumeWorkerMixin, CPUWorker):
    """One CPU rank."""

    def load_model(self, **keywords: Any) -> None:
        super().load_model(**keywords)
        runner = self.model_runner
        # vLLM allocates the buffers of a later stage's input in its warm-up, which eager mode on CPUs leaves out.
        if not get_pp_group().is_first_rank and getattr(runner, "intermediate_tensors", runner) is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )


class StageCPUWorker(StageWorkerMixin, ResumeCPUWorker):
    """One CPU rank of a stage."""
