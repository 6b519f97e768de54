"""Random models of every family, as the pinned llama.cpp loads them: the fixtures of `goldens.py` and the
configurations that `differential.py` draws.

Add a family as one file here (or a close one to a file that stands); it is found by itself. It has

    FAMILIES = [Family("name", draw, tensors, fixtures)]

- `name`: `general.architecture`, as llama.cpp spells it.
- `draw(d)` returns a `Config`: `d.shape(..)` draws the common sizes, what is given stays as given, and
  further fields are the family's own. Draw whatever a file of this family may vary: windows and patterns,
  scaling of RoPE, partial rotation (`rot`), biases, tied or not, experts, groups, and numbers that are
  constants elsewhere. `d.of(..)`, `d.maybe()`, `d.between(..)`, `d.real(..)`, `d.window()`,
  `d.pattern(..)`, `d.scaling(..)`, `d.experts()`, `d.groups()` choose. Use `d.multiple(..)` and
  `d.head(..)` for what a quantised matrix takes as its inputs. Leave out layer counts by which llama.cpp
  recognises a particular model (`switch (hparams.n_layer())` in its `load_arch_hparams`) where more depends
  on them than a name.
- `tensors(m, c)` says what a model of configuration `c` holds. `m.key(name, value, default)` adds a key
  (without the architecture; a list becomes an array) and `m.common()` the keys and tensors that all have, and
  those of `KEYS` in core.py whose fields the configuration has;
  each of `m.blocks()` is a layer, with `norm`, `matrix`, `vector`, `qkv`, `ffn`, `experts`, named by what
  stands between `blk.N.` and `.weight`. Read llama.cpp's `src/models/NAME.cpp`: `load_arch_hparams` has the
  keys and `load_arch_tensors` the tensors (their names are in `llama-arch.cpp`), what is
  `TENSOR_NOT_REQUIRED` there is a thing to draw.
- `fixtures`: suffix -> (configuration, types of weights). `{"": (shape(..), "F32")}` for most: what is
  special about the family happens within three or four layers and 43 tokens (a window of 16, an original
  context of 32). A second one where a format matters. `"Q8_0:MXFP4"` has matrices in Q8_0 and experts in
  MXFP4.

Then `scripts/differential.py NAME --reference-only` says whether llama.cpp loads the models and runs them,
and without the option whether wayinfer computes the same.
"""
import importlib, pkgutil

from .core import Config, Draw, Family, build, shape, write

ALL = {}
for _found in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    for _family in getattr(importlib.import_module(f"{__name__}.{_found}"), "FAMILIES", []):
        assert _family.name not in ALL, f"{_family.name}: twice"
        ALL[_family.name] = _family

# The fixtures by name: family, configuration, types of weights.
FIXTURES = {family.name + suffix: (family, *made)
            for family in ALL.values() for suffix, made in family.fixtures.items()}

__all__ = ["ALL", "FIXTURES", "Config", "Draw", "Family", "build", "shape", "write"]
