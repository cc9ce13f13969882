"""Where the language reaches models."""
