"""Text on either side of the engine: tokenizers, chat templates, incremental detokenisation, stop strings."""

from sgjax.text.detokenize import TextStream
from sgjax.text.load import load_tokenizer
from sgjax.text.tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]
