"""What structured output costs and gains: `python -m benchmarks.structured`."""
