"""Several workers as one: placed on nodes by Ray, kept and scaled by a controller, told to agents by a directory."""
