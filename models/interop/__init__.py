"""Checkpoints of other libraries: import as models of ours, export for theirs.

`import_model` reads checkpoints of Llama's relatives (`families`), flash-linear-attention's HGRN2
and our own exports; `export_model` writes any of our models for transformers.
"""

from models.interop.export import export_model
from models.interop.importing import Source, import_model, read_source
from models.interop.tensors import InteropError

__all__ = ["InteropError", "Source", "export_model", "import_model", "read_source"]
