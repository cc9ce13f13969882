"""Constrained decoding: grammars compiled off the step, one matcher per sequence, token masks as bits.

Built on llguidance. `GrammarCompiler` turns a request's `GrammarSpec` into a `Grammar` in a thread of its own; the
scheduler takes a `Matcher` of it for each sequence.
"""

from sgjax.grammar.compiler import GrammarCompiler as GrammarCompiler
from sgjax.grammar.matcher import Grammar as Grammar
from sgjax.grammar.matcher import Matcher as Matcher
from sgjax.grammar.matcher import fill_masks as fill_masks
