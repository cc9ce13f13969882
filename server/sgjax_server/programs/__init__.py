"""Programs of the frontend language that run next to the engine."""
