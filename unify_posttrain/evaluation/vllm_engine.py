"""Generation with vLLM, one seed per request."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.evaluation.requests import EngineSettings, Output, Request
from unify_posttrain.untrusted.weights import check_finite


class VLLMEngine:
    """`vllm.LLM` on the visible GPUs.

    Raises:
        ValueError: vLLM is not installed, or a weight holds NaN or an infinity.
    """

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ValueError(
                f"engine=vllm needs vLLM, which cannot be imported here ({error}); pip install 'unify-posttrain[vllm]', or set "
                "engine=hf"
            ) from error
        check_finite(folder, f"model={folder}")  # vLLM itself refuses weights that are missing, and takes NaN for numbers
        self.sampling_params = vllm.SamplingParams
        self.max_context = settings.max_context
        self.model: Any = vllm.LLM(
            model=str(folder),
            dtype=settings.dtype,
            max_model_len=settings.max_context,
            max_num_seqs=settings.max_batch,
            trust_remote_code=False,
            **settings.vllm,
        )

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Responses in the order of the requests; vLLM batches by itself.

        Raises:
            ValueError: a prompt leaves no room for a token.
        """
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        params = [self._params(request) for request in requests]
        results = self.model.generate(prompts, params, use_tqdm=False)
        responses = [result.outputs[0] for result in results]
        return [Output(list(response.token_ids), truncated=response.finish_reason == "length") for response in responses]

    def log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """vLLM scores prompts only, so prompt and target are one; the token that it must generate is thrown away.

        Raises:
            ValueError: a pair that is longer than the context.
        """
        longest = max(len(prompt) + len(target) for prompt, target in pairs)
        if longest >= self.max_context:
            raise ValueError(
                f"likelihood=true: prompt and worked answer of {longest} tokens exceed max_context={self.max_context}; raise it"
            )
        prompts = [{"prompt_token_ids": [*prompt, *target]} for prompt, target in pairs]
        params = self.sampling_params(n=1, temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        results = self.model.generate(prompts, params, use_tqdm=False)
        return [
            [result.prompt_logprobs[len(prompt) + place][token].logprob for place, token in enumerate(target)]
            for (prompt, target), result in zip(pairs, results, strict=True)
        ]

    def _params(self, request: Request) -> Any:
        room = self.max_context - len(request.prompt_ids)
        if room < 1:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} tokens leaves no room in max_context={self.max_context}; raise it"
            )
        return self.sampling_params(
            n=1,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=min(request.max_tokens, room),
            seed=request.seed,
            detokenize=False,  # responses are decoded by the tokenizer that training decodes with
        )

    def close(self) -> None:
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        self.model = None
        destroy_model_parallel()
        destroy_distributed_environment()
        gc.collect()
