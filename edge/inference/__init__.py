"""ONNX Runtime on the device: the drafter, the target's layers before a cut, and the caches of both."""
