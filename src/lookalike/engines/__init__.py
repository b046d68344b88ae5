"""Members on other runtimes than torch: OpenVINO and ONNX Runtime. Nothing here needs torch but conversion."""

from lookalike.engines.exported import ExportedMember, Session

__all__ = ["ExportedMember", "Session"]
