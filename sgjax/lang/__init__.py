"""The frontend language: programs of many generation calls."""
