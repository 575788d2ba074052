"""Log-probs and entropies from hidden states, forward and backward: naive, verl's two forms and ours. Ratios within one run.

    python -m tests.benchmarks.objective                                             # CPU, small: under two minutes, under 4 GB
    python -m tests.benchmarks.objective --device cuda --dtype bfloat16 --tokens 8192 --vocab 151936 --hidden 1536
    python -m tests.benchmarks.objective --update                                    # a whole update of the actor, CPU, needs verl

Time: median of alternated repetitions. Memory: on CUDA the allocator's peak over what inputs and their gradients take; on CPU the
peak of resident memory (VmHWM) over the same, of a process per variant. Limits, measured in the same run: `matmul`, the three
products that no form can avoid at the rate of one of them alone; `traffic`, their inputs and outputs at the rate of a copy. Errors
are against float64 on the same inputs. verl's forms are loaded from its installed files, or from --verl-files (a folder that holds
`verl/`), one file at a time, so that its fused form runs where verl's own dependencies are absent; what cannot be loaded is
left out and said so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from unify_posttrain.objective.log_probs import token_log_probs  # noqa: E402

TEMPERATURE = 0.9
Form = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def verl_file(name: str, folder: Path | None) -> ModuleType:
    """A single module of verl, without running verl's package files.

    Raises:
        ImportError: verl's files are not there, or the module needs what is not installed.
    """
    if folder is None:
        spec = importlib.util.find_spec("verl")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("verl is not installed")
        folder = Path(spec.submodule_search_locations[0]).parent
    path = folder / "verl" / name
    if not path.is_file():
        raise ImportError(f"{path.name} of verl is not there")
    spec = importlib.util.spec_from_file_location(f"verl_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive(hidden: Tensor, weight: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    all_log_probs = ((hidden @ weight.t()).float() / TEMPERATURE).log_softmax(dim=-1)
    log_probs = all_log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return log_probs, -(all_log_probs.exp() * all_log_probs).sum(dim=-1) if entropy else None


def forms(options: argparse.Namespace, entropy: bool) -> dict[str, Callable[[], Form]]:
    """Name -> what loads the form; loading raises ImportError where verl's files or their dependencies are absent."""

    def verl() -> Form:
        functions = verl_file("utils/torch_functional.py", options.verl_files)

        def from_logits(hidden: Tensor, weight: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
            logits = (hidden @ weight.t()).div_(TEMPERATURE)  # as the actor: divided in place
            log_probs = functions.logprobs_from_logits(logits, labels, inplace_backward=not entropy)
            return log_probs, functions.entropy_from_logits(logits) if entropy else None

        return from_logits

    def verl_chunked() -> Form:
        functions = verl_file("utils/torch_functional.py", options.verl_files)

        def from_logits(hidden: Tensor, weight: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
            logits = (hidden @ weight.t()).div_(TEMPERATURE)
            log_probs = functions.logprobs_from_logits(logits, labels, inplace_backward=False)
            chunked = functions.entropy_from_logits_with_chunking  # with actor.entropy_checkpointing; alone it saves nothing
            return log_probs, torch.utils.checkpoint.checkpoint(chunked, logits, use_reentrant=False)

        return from_logits

    def verl_fused() -> Form:
        fused = verl_file("utils/experimental/torch_functional.py", options.verl_files).FusedLinearForPPO()
        return lambda hidden, weight, labels, entropy: fused(hidden, weight, labels, TEMPERATURE)

    def ours(hidden: Tensor, weight: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        return token_log_probs(hidden, weight, labels, chunk=options.chunk, temperature=TEMPERATURE, entropy=entropy)

    def ours_read(hidden: Tensor, weight: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        read = torch.arange(int(options.read * len(labels)), device=labels.device)
        return ours(hidden[read], weight, labels[read], entropy)

    return {
        "naive": lambda: naive,
        "verl": verl,
        **({"verl, entropy chunked": verl_chunked} if entropy else {}),
        "verl fused": verl_fused,
        "ours": lambda: ours,
        f"ours, {options.read:.0%} of the tokens read": lambda: ours_read,
    }


def load(options: argparse.Namespace, entropy: bool) -> tuple[dict[str, Form], dict[str, str]]:
    """(name -> form, name -> why it is left out)."""
    found, absent = {}, {}
    for name, loader in forms(options, entropy).items():
        try:
            found[name] = loader()
        except ImportError as error:
            absent[name] = str(error)
    return found, absent


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of deviation 3, as peaked as a trained model's; gradients' memory is taken beforehand."""
    torch.manual_seed(0)
    like = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    hidden = torch.randn(options.tokens, options.hidden, **like)
    weight = torch.randn(options.vocab, options.hidden, **like).mul_(3 / options.hidden**0.5)
    labels = torch.randint(options.vocab, (options.tokens,), device=options.device)
    for tensor in (hidden, weight):
        tensor.requires_grad_()
        tensor.grad = torch.zeros_like(tensor)
    return hidden, weight, labels


def run(form: Form, tensors: tuple[Tensor, Tensor, Tensor], entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Forward and backward with gradients that differ from token to token."""
    log_probs, entropys = form(*tensors, entropy)
    factors = torch.linspace(-1, 1, len(log_probs), device=log_probs.device)
    loss = (log_probs.float() * factors).sum()
    if entropy:
        loss = loss + (entropys.float() * factors.flip(0)).sum()
    loss.backward()
    return log_probs, entropys


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall time on CUDA; on CPU that of this process (over its threads), which other processes disturb least."""
    if device == "cpu":
        started = time.process_time()
        call()
        return (time.process_time() - started) / torch.get_num_threads()
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in GB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def peak_memory(options: argparse.Namespace, name: str, entropy: bool) -> float:
    """GB over inputs and their gradients."""
    if options.device == "cuda":
        tensors = inputs(options)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(forms(options, entropy)[name](), tensors, entropy)
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    arguments = [f"--{key}={getattr(options, key)}" for key in ("dtype", "tokens", "vocab", "hidden", "chunk", "read")]
    flags = [*(["--entropy"] if entropy else []), *([f"--verl-files={options.verl_files}"] if options.verl_files else [])]
    command = [sys.executable, "-m", "tests.benchmarks.objective", *arguments, *flags, f"--peak={name}"]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(options: argparse.Namespace) -> None:
    """What a child process does: one forward and backward, and what it took at most."""
    form, tensors = forms(options, options.entropy)[options.peak](), inputs(options)
    before = resident("VmRSS")
    run(form, tensors, options.entropy)
    print(resident("VmHWM") - before)


def limits(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the unavoidable products and of their traffic, at rates measured here."""
    hidden, weight, _ = (tensor.detach() for tensor in inputs(options))
    product = statistics.median(seconds(lambda: hidden @ weight.t(), options.device) for _ in range(5))
    source = torch.zeros(2**26 if options.device == "cpu" else 2**30, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    copy = statistics.median(seconds(lambda: target.copy_(source), options.device) for _ in range(5))
    moved = 3 * (hidden.nbytes + weight.nbytes)  # read forward, read backward, gradients written
    rate = 2 * source.nbytes / copy
    flops = 2 * options.tokens * options.hidden * options.vocab
    return {"matmul": 3 * product, "traffic": moved / rate, "GB/s": rate / 1e9, "TFLOP/s": flops / product / 1e12}


def reference(options: argparse.Namespace, read: int, entropy: bool) -> list[Tensor]:
    """Log-probs of the first `read` tokens and the two gradients in float64."""
    hidden, weight, labels = inputs(options)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]

    def float64(hidden: Tensor, weight: Tensor, labels: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        return token_log_probs(hidden[:read], weight, labels[:read], chunk=128, temperature=TEMPERATURE, entropy=entropy)

    log_probs, _ = run(float64, (*exact, labels), entropy)
    return [log_probs.detach(), *(tensor.grad for tensor in exact)]


def errors(options: argparse.Namespace, form: Form, exact: list[Tensor], entropy: bool) -> dict[str, float]:
    """Largest error of a log-prob, and relative errors of the two gradients."""
    tensors = inputs(options)
    found, _ = run(form, tensors, entropy)
    result = {"log_prob": float((found.detach().double() - exact[0]).abs().max())}
    for name, mine, other in zip(("d_hidden", "d_weight"), tensors, exact[1:], strict=False):
        result[name] = float((mine.grad.double() - other).norm() / other.norm())
    return result


def compare(options: argparse.Namespace, entropy: bool) -> dict[str, dict[str, float]]:
    """Name -> time, memory, ratios to naive and to verl's, share of the limit, errors."""
    found, _ = load(options, entropy)
    tensors, bound = inputs(options), limits(options)
    times: dict[str, list[float]] = {name: [] for name in found}
    for repetition in range(options.repetitions + 1):
        for name, form in list(found.items())[:: 1 if repetition % 2 else -1]:
            spent = seconds(lambda form=form: run(form, tensors, entropy), options.device)
            if repetition:  # the first warms up
                times[name].append(spent)
    results, exact = {}, {}
    for name, form in found.items():
        read = int(options.read * options.tokens) if "read" in name else options.tokens
        time_ = statistics.median(times[name])
        limit = max(bound["matmul"], bound["traffic"]) * read / options.tokens
        memory = peak_memory(options, name, entropy)
        if read not in exact:
            exact[read] = reference(options, read, entropy)
        results[name] = {
            "seconds": time_,
            "memory_gb": memory,
            "of_limit": limit / time_,
            **errors(options, form, exact[read], entropy),
        }
    for key in ("naive", "verl", "verl fused"):
        for result in results.values() if key in results else ():
            result[f"time / {key}"] = result["seconds"] / results[key]["seconds"]
            result[f"memory / {key}"] = result["memory_gb"] / results[key]["memory_gb"]
    return {"limits": bound, **results}


def table(results: dict[str, dict[str, float]]) -> str:
    rows = {name: result for name, result in results.items() if name != "limits"}
    columns = list(next(iter(rows.values())))
    lines = [f"| form | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(f'{row[c]:.3g}' for c in columns)} |" for name, row in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=0, help="tokens at once, of ours; default an eighth of --tokens")
    parser.add_argument("--read", type=float, default=0.75, help="share of the tokens that a term reads, in the last row")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--verl-files", type=Path, help="folder that holds verl/, where it is not installed")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--update", action="store_true", help="a whole update of the actor instead")
    parser.add_argument("--entropy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.chunk = options.chunk or max(1, options.tokens // 8)
    if options.peak:
        print_peak(options)
        return
    if options.update:
        from tests.benchmarks.objective_update import compare_updates

        compare_updates()
        return
    report: dict[str, object] = {key: str(value) for key, value in vars(options).items() if value and key != "json"}
    for name, why in load(options, entropy=True)[1].items():
        print(f"left out: {name} ({why})")
    for entropy in (False, True):
        title = "log-prob and entropy" if entropy else "log-prob"
        report[title] = results = compare(options, entropy)
        bound = ", ".join(f"{key} {value:.3g}" for key, value in results["limits"].items())
        print(f"\n{title}, {options.tokens} tokens x {options.vocab} words, {options.dtype}, {options.device} ({bound})\n")
        print(table(results), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
