"""ShuntServe: offline batch LLM inference that survives kill -9. Parquet in, Parquet out, every row exactly once.

The Python interface is imported on first use, so that `import shuntserve` costs nothing:

    from shuntserve import JobSpec, submit
"""

from __future__ import annotations

__version__ = "0.1.0"
