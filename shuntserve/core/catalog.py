"""Everything known about GPUs, instance types, models and engines, found by any of its usual names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from shuntserve.core.engine_profile import EngineProfile
from shuntserve.core.hardware import Gpu, Instance, Link
from shuntserve.core.model_shape import ModelShape
from shuntserve.errors import NotFound


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=_Named)


ENGINE_ALIASES = {"trtllm": ("TensorRT-LLM", "TRT-LLM", "tensorrt_llm")}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "", name.lower())


@dataclass(frozen=True)
class Catalog:
    """Lookups by name; case, spaces and punctuation do not matter, and published aliases are accepted.

    A name that is not there raises `NotFound` with the nearest names.
    """

    gpus: Mapping[str, Gpu]
    instances: Mapping[str, Instance]
    models: Mapping[str, ModelShape]
    engines: Mapping[str, EngineProfile]
    links: Mapping[str, Link]
    gpu_links: Mapping[str, Link]
    zone_usd_per_h: Mapping[tuple[str, str], float] = field(default_factory=dict)
    _index: dict[str, dict[str, object]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index: dict[str, dict[str, object]] = {"gpu": {}, "instance": {}, "model": {}, "engine": {}}
        for gpu in self.gpus.values():
            _register(index["gpu"], (gpu.name, *gpu.aliases), gpu)
        for instance in self.instances.values():
            _register(index["instance"], (instance.name, f"ml.{instance.name}"), instance)
        for model in self.models.values():
            _register(index["model"], (model.name, *model.aliases), model)
        for engine in self.engines.values():
            _register(index["engine"], (engine.name, *ENGINE_ALIASES.get(engine.name, ())), engine)
        object.__setattr__(self, "_index", index)

    def gpu(self, name: str) -> Gpu:
        return self._find("gpu", name, self.gpus)

    def link_of(self, gpu: Gpu) -> Link:
        """How several of this GPU are wired when no instance type says so."""
        return self.gpu_links[gpu.name]

    def instance(self, name: str) -> Instance:
        return self._find("instance", name, self.instances)

    def model(self, name: str) -> ModelShape:
        return self._find("model", name, self.models)

    def engine(self, name: str) -> EngineProfile:
        return self._find("engine", name, self.engines)

    def spot_usd_per_h(self, instance_type: str, zone: str = "") -> float | None:
        """The spot price last seen in the zone, else the type's usual one; None when neither is known."""
        instance = self.instance(instance_type)
        return self.zone_usd_per_h.get((instance.name, zone), instance.spot_usd_per_h)

    def _find(self, kind: str, name: str, table: Mapping[str, _T]) -> _T:
        if name in table:
            return table[name]
        known = self._index[kind]
        key = _key(name.split("/")[-1])
        found = known.get(_key(name)) or known.get(key)
        if found is None:
            near = difflib.get_close_matches(key, known, n=4, cutoff=0.55)
            names = list(dict.fromkeys(known[k].name for k in near))  # type: ignore[attr-defined]
            hint = "did you mean " + ", ".join(names) + "?" if names else f"see `shuntserve catalog {kind}s`"
            raise NotFound(f"{kind} {name!r}", "not in the catalogue", hint)
        return found  # type: ignore[return-value]


def _register(index: dict[str, object], names: Iterable[str], value: object) -> None:
    for name in names:
        index.setdefault(_key(name), value)
