"""WayInfer: run GGUF language models on a CPU, models larger than memory included.

    import wayinfer

    with wayinfer.Model("model.gguf", ram="8G") as model:
        print(model.generate("Once upon a time", wayinfer.SamplingParams(max_tokens=60)).text)
        print(model.chat([{"role": "user", "content": "What is 2+2?"}]).text)

The same model, prompt, parameters and seed give the same text on every CPU, with any number of threads, alone or among
other prompts. `wayinfer.llama_cpp` has the names of llama-cpp-python.
"""

from importlib.metadata import PackageNotFoundError as _NotFound
from importlib.metadata import version as _version

from .errors import ContextFull, Error, FileError, OutOfMemory, Unsupported, UsageError
from .model import Model
from .outputs import Answer, Completion, Output, Perplexity, Piece
from .sampling import SamplingParams
from .session import Session

try:
    __version__ = _version("wayinfer")
except _NotFound:
    __version__ = "unknown"

__all__ = [
    "Answer",
    "Completion",
    "ContextFull",
    "Error",
    "FileError",
    "Model",
    "Output",
    "OutOfMemory",
    "Perplexity",
    "Piece",
    "SamplingParams",
    "Session",
    "Unsupported",
    "UsageError",
]
