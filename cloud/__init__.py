"""The worker: sessions over gRPC, an engine that batches their rows, the target's layers on torch."""
