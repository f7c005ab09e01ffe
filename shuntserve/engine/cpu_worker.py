"""vLLM's CPU worker, taught to continue sequences exactly. Apart from the GPU worker's module because importing it
loads the CPU kernels."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from shuntserve.engine.worker import ResumeWorkerMixin


class ResumeCPUWorker(ResumeWorkerMixin, CPUWorker):
    """One CPU rank."""
