"""The frontend language: programs of many generation calls.

    import sgjax as sgl

    @sgl.function
    def story(s, topic):
        s += sgl.user(f"A story about {topic}, please.")
        s += sgl.assistant(sgl.gen("story", max_tokens=200))

    with sgl.Runtime(model_path="embedded") as runtime:
        print(story.run(topic="a key", backend=runtime)["story"])

The names and their meaning are those of SGLang's frontend language, so its programs run after changing their import. It
reaches models through `backends.base.Backend` alone. How the pieces fit: `ir.py` what programs are made of;
`state.py` what they are written against; `interpreter.py` and `executor.py` run them; `transcript.py` and
`chat_format.py` keep text and messages; `tracing.py` and `symbols.py` record a program, `replay.py` runs a record.
"""

from __future__ import annotations

from sgjax.lang.api import assistant as assistant
from sgjax.lang.api import assistant_begin as assistant_begin
from sgjax.lang.api import assistant_end as assistant_end
from sgjax.lang.api import function as function
from sgjax.lang.api import gen as gen
from sgjax.lang.api import gen_int as gen_int
from sgjax.lang.api import gen_string as gen_string
from sgjax.lang.api import image as image
from sgjax.lang.api import select as select
from sgjax.lang.api import separate_reasoning as separate_reasoning
from sgjax.lang.api import system as system
from sgjax.lang.api import system_begin as system_begin
from sgjax.lang.api import system_end as system_end
from sgjax.lang.api import user as user
from sgjax.lang.api import user_begin as user_begin
from sgjax.lang.api import user_end as user_end
from sgjax.lang.api import video as video
from sgjax.lang.choices import greedy_token_selection as greedy_token_selection
from sgjax.lang.choices import token_length_normalized as token_length_normalized
from sgjax.lang.choices import unconditional_likelihood_normalized as unconditional_likelihood_normalized
from sgjax.lang.default_backend import flush_cache as flush_cache
from sgjax.lang.default_backend import get_server_info as get_server_info
from sgjax.lang.default_backend import set_default_backend as set_default_backend
from sgjax.lang.executor import ProgramCancelled as ProgramCancelled
from sgjax.lang.executor import ProgramError as ProgramError
from sgjax.lang.program import SglFunction as SglFunction
from sgjax.lang.state import ProgramState as ProgramState
from sgjax.lang.state import ProgramStateGroup as ProgramStateGroup
from sgjax.lang.symbols import TraceError as TraceError
from sgjax.lang.symbols import all_of as all_of
from sgjax.lang.symbols import any_of as any_of
from sgjax.lang.symbols import contains as contains
from sgjax.lang.symbols import length as length
from sgjax.lang.symbols import not_ as not_
from sgjax.lang.usage import Usage as Usage
