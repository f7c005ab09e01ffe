"""Keeps torch out of the command's own process: nothing in it computes, and importing torch takes seconds."""

from __future__ import annotations

import os
import sys


def without_torch() -> None:
    """From now on `import torch` fails in this process, as on a laptop that has none.

    transformers imports torch when it finds it, also for a tokenizer alone. Engines run in processes of their own and
    are not concerned. Only for a process of ours: never call this inside somebody's program.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment] # documented: None makes the import fail
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
