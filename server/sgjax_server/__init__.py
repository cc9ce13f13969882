"""sgjax's HTTP service and command line."""
