"""Generate with what verl overrides of a model's config; started by test_command_line.py in a process of its own.

    python -m tests.vllm.overridden_rope FOLDER OVERRIDES_AS_JSON CONTEXT PROMPT_AS_JSON TOKENS

Prints JSON: the sampled tokens and the engine's log-probabilities of them.
"""

from __future__ import annotations

import json
import sys

import vllm


def main() -> None:
    folder, overrides, context, prompt, tokens = sys.argv[1:]
    engine = vllm.LLM(
        model=folder, hf_overrides=json.loads(overrides), max_model_len=int(context), dtype="float32", enforce_eager=True,
        skip_tokenizer_init=True, logprobs_mode="processed_logprobs", disable_log_stats=True,
    )  # fmt: skip
    settings = vllm.SamplingParams(temperature=1.0, seed=3, max_tokens=int(tokens), logprobs=0, ignore_eos=True, detokenize=False)
    (request,) = engine.generate([{"prompt_token_ids": json.loads(prompt)}], settings, use_tqdm=False)
    output = request.outputs[0]
    sampled = list(output.token_ids)
    log_probs = [each[token].logprob for each, token in zip(output.logprobs, sampled, strict=True)]
    print(json.dumps({"sampled": sampled, "log_probs": log_probs}))


if __name__ == "__main__":
    main()
