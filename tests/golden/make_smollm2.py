"""Makes smollm2_tokens.json and smollm2_greedy.json: what transformers says of the embedded model, in float32.

Run in an environment with PyTorch and transformers (never in the project's):

    python tests/golden/make_smollm2.py tokens|greedy path/to/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parent
INPUTS = json.loads((FOLDER / "smollm2_inputs.json").read_text(encoding="utf-8"))
NUM_NEW_TOKENS = 64


def load_tokenizer(gguf: Path) -> Any:
    """The published tokenizer. transformers drops the digit splitting that the file asks for by naming its
    pre-tokenizer "smollm" (llama.cpp: each number character alone, then GPT-2's pattern), so it is put back here."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def token_goldens(tokenizer: Any) -> dict[str, Any]:
    texts = []
    for text in INPUTS["texts"]:
        ids = tokenizer(text).input_ids
        texts.append(
            {
                "text": text,
                "ids": ids,
                "ids_without_special": tokenizer(text, add_special_tokens=False).input_ids,
                "decoded": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
                "decoded_skip_special": tokenizer.decode(
                    ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                ),
            }
        )
    chats = []
    for messages in INPUTS["chats"]:
        for add_generation_prompt in (True, False):
            rendered = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            ids = tokenizer(rendered, add_special_tokens=False).input_ids
            chats.append(
                {
                    "messages": messages,
                    "add_generation_prompt": add_generation_prompt,
                    "rendered": rendered,
                    "ids": ids,
                }
            )
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "all": sorted(id for id, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
    return {"special": special, "texts": texts, "chats": chats}


def greedy_goldens(tokenizer: Any, gguf: Path) -> dict[str, Any]:
    import torch

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.eval()
    cases = []
    for prompt_input in INPUTS["prompts"]:
        text, is_chat = prompt_input["text"], prompt_input["chat"]
        prompt = text
        if is_chat:
            messages = [{"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        output_ids, margins = _continue_greedily(model, prompt_ids)
        cases.append(
            {
                "chat": is_chat,
                "text": text,
                "prompt_ids": prompt_ids,
                "output_ids": output_ids,
                "margins": margins,
                "output_text": tokenizer.decode(output_ids, skip_special_tokens=True),
            }
        )
        print(len(prompt_ids), min(margins), repr(cases[-1]["output_text"][:70]), flush=True)
    return {"dtype": "float32", "num_new_tokens": NUM_NEW_TOKENS, "ignore_eos": True, "cases": cases}


def _continue_greedily(model: Any, prompt_ids: list[int]) -> tuple[list[int], list[float]]:
    """The argmax continuation, past any end-of-sequence, and at each step the best logit's lead over the second."""
    import torch

    output_ids: list[int] = []
    margins: list[float] = []
    past, inputs = None, torch.tensor([prompt_ids])
    with torch.inference_mode():
        for _ in range(NUM_NEW_TOKENS):
            out = model(input_ids=inputs, past_key_values=past, use_cache=True)
            past = out.past_key_values
            best = torch.topk(out.logits[0, -1], 2)
            output_ids.append(int(best.indices[0]))
            margins.append(round(float(best.values[0] - best.values[1]), 5))
            inputs = best.indices[None, :1]
    return output_ids, margins


def main() -> None:
    what, gguf = sys.argv[1], Path(sys.argv[2])
    tokenizer = load_tokenizer(gguf)
    goldens = token_goldens(tokenizer) if what == "tokens" else greedy_goldens(tokenizer, gguf)
    target = FOLDER / f"smollm2_{what}.json"
    # One top-level entry per line: small, and a change shows up as a readable diff.
    lines = [f"{json.dumps(key)}: {_dump(value)}" for key, value in goldens.items()]
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _dump(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
