"""Members on other runtimes than torch: OpenVINO and ONNX Runtime. Nothing here needs torch but conversion."""

from lookalike.engines.bundle import is_exported, load_bundle, save_bundle
from lookalike.engines.choice import ENGINES, accelerated
from lookalike.engines.exported import ExportedMember, Session

__all__ = ["ENGINES", "ExportedMember", "Session", "accelerated", "is_exported", "load_bundle", "save_bundle"]
