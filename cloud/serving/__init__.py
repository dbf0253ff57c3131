"""Sessions over gRPC: what comes in is checked here, before the engine hears of it."""
