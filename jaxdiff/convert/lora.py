"""What the config of a LoRA adapter says, as peft reads it: which modules it means, and how large their change is.

Facts: huggingface/peft `tuners/tuners_utils.py` (`check_target_module_exists`), `utils/other.py` (`get_pattern_key`),
`tuners/lora/layer.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.files import first_line, read_object, without_user
from jaxdiff.models.config import MOST
from jaxdiff.types import InputError

CONFIG = "adapter_config.json"
PLAIN, GATED = "LORA", "GATED_LORA"  # of `peft_type`; the second is ours: on at [MASK] alone, which peft does not know
ALL_LINEAR = "all-linear"
_USED = (
    *("peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules", "init_lora_weights"),
)
# Ways to draw the first numbers that leave the model's own as they are; others take some out of them.
_DRAWN = (None, True, False, "gaussian", "eva", "orthogonal")
# What another value of changes the numbers: refused. `fan_in_fan_out` is of layers that store [I, O], which none does.
_REQUIRED = {
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "use_qalora": False,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
}
_SWITCHES = ("use_rslora", "use_dora", "lora_bias", "use_qalora", "fan_in_fan_out")
_HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "fan_in_fan_out", "inference_mode", "revision"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core"),
    *("lora_dropout", "peft_version", "qalora_group_size", "runtime_config", "task_type"),
)
_MERGE = "merge the adapter with peft (merge_and_unload), and name the merged model's folder"


@dataclasses.dataclass(frozen=True)
class Lora:
    """An adapter's config that was understood in full. Its methods raise InputError for values that are none.

    Attributes:
        file: where it stands.
        given: its keys.
    """

    file: Path
    given: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Lora:
        """The config of a folder. Raises InputError for none, and for one that asks for what is not computed here."""
        file = folder / CONFIG
        if not file.is_file():
            raise InputError(
                f"adapter: no {CONFIG} in {without_user(str(folder))!r}; name the folder of a LoRA adapter that peft "
                "saved"
            )
        lora = cls(file, read_object(file))
        if lora.given.get("peft_type") not in (PLAIN, GATED):
            raise lora._odd("peft_type", repr(PLAIN), _MERGE)
        if lora.given.get("init_lora_weights") not in _DRAWN:
            mend = "save it as plain LoRA with peft (path_initial_model_for_weight_conversion)"
            raise lora._odd("init_lora_weights", "one that leaves the model's own weights as they are", mend)
        for key, found in lora.given.items():
            if key in _SWITCHES and not isinstance(found, bool | None):
                raise lora._odd(key, "true or false")
            if key in _REQUIRED and (found or None) != (_REQUIRED[key] or None):
                raise lora._odd(key, repr(_REQUIRED[key]), _MERGE)
            if found and not any(key in known for known in (_REQUIRED, _USED, _HARMLESS)):
                raise lora._odd(key, "keys that are known here", _MERGE)
        return lora

    @property
    def gated(self) -> bool:
        """Whether the adapter is on at [MASK] alone."""
        return self.given["peft_type"] == GATED

    @property
    def all_linear(self) -> bool:
        return self.given.get("target_modules") == ALL_LINEAR

    @property
    def saved(self) -> list[str]:
        """Names of modules that the adapter has whole."""
        return self._names("modules_to_save")

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's two matrices is multiplied by; `rank`: theirs."""
        wanted, alpha = self._of("rank_pattern", module, "r"), self._of("alpha_pattern", module, "lora_alpha")
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and abs(alpha) <= MOST
        if type(wanted) is not int or not 0 < wanted <= MOST or not number:
            raise InputError(f"{self.file}: found r {wanted!r:.80} and lora_alpha {alpha!r:.80}, expected numbers")
        if rank != wanted:
            raise InputError(
                f"{self.file} r: found {wanted} for {module}, whose tensors are of rank {rank}; get the adapter again"
            )
        return float(alpha) / (math.sqrt(rank) if self.given.get("use_rslora") else rank)

    def targets(self, module: str) -> bool:
        """Whether a module is one of those that have matrices of their own."""
        exclude, targets = self.given.get("exclude_modules"), self.given.get("target_modules")
        if isinstance(exclude, str):
            excluded = self._matches(exclude, module)
        else:
            excluded = is_named(module, self._names("exclude_modules"))
        if excluded or is_named(module, self.saved):
            return False
        if isinstance(targets, str):
            return self.all_linear or self._matches(targets, module)
        named = self._names("target_modules")
        return module in named or (is_named(module, named) and self._in_layers(module))

    def _in_layers(self, module: str) -> bool:
        """Whether a module's layer is one of `layers_to_transform`, if there are such."""
        layers = self.given.get("layers_to_transform")
        if layers in (None, []):
            return True
        patterns = [re.escape(name) for name in self._names("layers_pattern")] or ["[^.]*"]
        found = next((m for p in patterns if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", module))), None)
        return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])

    def _of(self, patterns: str, module: str, default: str) -> Any:
        """A module's own value, of those that the config gives by pattern, else that of all (peft's default is 8)."""
        found = self.given.get(patterns) or {}
        if not isinstance(found, Mapping):
            raise self._odd(patterns, "an object")
        for pattern, value in found.items():
            if self._matches(rf"(.*\.)?({pattern})", module):
                return value
        return self.given.get(default, 8)

    def _names(self, key: str) -> list[str]:
        """The names that a key lists."""
        found = self.given.get(key) or []
        names = [found] if isinstance(found, str) else found
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._odd(key, "a list of names")
        return names

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return re.fullmatch(pattern, module) is not None
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"{self.file}: found {pattern!r:.80}, expected a pattern of names ({first_line(error)})"
            ) from error

    def _odd(self, key: str, expected: str, mend: str = "get the adapter again") -> InputError:
        name = key if key.isprintable() else ascii(key)
        return InputError(f"{self.file} {name}: found {self.given.get(key)!r:.80}, expected {expected}; {mend}")


def is_named(module: str, names: list[str]) -> bool:
    """Whether a module's name is one of these, or ends in one, as a whole word between dots."""
    return any(module == name or module.endswith(f".{name}") for name in names)
