"""Runtimes that execute a backbone (torch, OpenVINO, ONNX Runtime), and the choice of the fastest."""
