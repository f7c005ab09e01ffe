"""vLLM's GPU worker, taught to continue sequences exactly."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from shuntserve.engine import plugin
from shuntserve.engine.resume import install_in_v1_runner, keep_output_tokens, reseed


class ResumeWorkerMixin:
    """What both kinds of worker add; see `engine.resume`."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        plugin.register()
        install_in_v1_runner()
        super().__init__(*args, **keywords)

    def load_model(self, **keywords: Any) -> None:
        super().load_model(**keywords)  # type: ignore[misc]
        if not self.use_v2_model_runner:  # type: ignore[attr-defined]
            keep_output_tokens(self.model_runner)  # type: ignore[attr-defined]

    def sample_tokens(self, grammar_output: Any) -> Any:
        # Without an execute_model_state there is nothing to sample here (a pipeline's earlier stages).
        if not self.use_v2_model_runner and self.model_runner.execute_model_state is not None:  # type: ignore[attr-defined]
            reseed(self.model_runner)  # type: ignore[attr-defined]
        return super().sample_tokens(grammar_output)  # type: ignore[misc]


class ResumeGPUWorker(ResumeWorkerMixin, Worker):
    """One CUDA device."""
