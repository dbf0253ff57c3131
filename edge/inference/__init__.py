"""ONNX Runtime on the device: the drafter, the target's layers before a cut, and what both keep of conversations."""
