"""The device's side: the drafter on ONNX Runtime, the gate, the worker's client and the agent that joins them."""
