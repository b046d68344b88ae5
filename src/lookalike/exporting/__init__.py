"""`export`: a bundle's graph for another runtime, behind a gate that measures what it loses."""

from lookalike.exporting.export import FORMATS, PRECISIONS, export
from lookalike.exporting.parity import Parity

__all__ = ["FORMATS", "PRECISIONS", "Parity", "export"]
