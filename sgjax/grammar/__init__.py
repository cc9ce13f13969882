"""Constrained decoding: grammars compiled off the step, one matcher per sequence, token masks as bits."""
