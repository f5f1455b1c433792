"""`scale-run`: options in, exit code out. Imports nothing heavy before a run begins, so that help answers at once."""

from __future__ import annotations

import json as jsonlib
import resource
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from scaling.records.errors import Interrupted, UsageError, of_the_system, one_line, out_of_memory

RUN, MODELS, PATHS, DECODING = "What to run", "Models", "Paths and samples", "Decoding"
OUTPUT, ENGINE = "Where and how", "Engines"

EXAMPLES = (
    "scale-run --latent-paths 8 --samples 4",
    "scale-run --method cot --samples 32",
    "scale-run --data questions.jsonl --dry-run",
    "scale-run --task gsm8k --backbone Qwen/Qwen2.5-7B-Instruct --assistant Qwen/Qwen2.5-1.5B-Instruct",
    "scale-run --method cot --engine openai --base-url http://localhost:8000/v1 --backbone FOLDER",
)
NO_MEMORY = "memory ran out: take smaller models, or raise the limit on memory (`ulimit`, the container's)"

LEAST_ADDRESSES = 1 << 30  # bytes of address space

_NO_SETTINGS = ("config", "json", "rescore", "dry_run", "version")

app = typer.Typer(pretty_exceptions_enable=False)


def panel_option(help: str, panel: str, *names: str, metavar: str | None = None) -> Any:
    """An option in a panel of the help.

    Args:
        names: its spelling, where it is not that of the argument.
        metavar: what the help shows for its value. Paths are texts here, as an empty one would become the current folder.
    """
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, metavar=metavar)


def examples(lines: Sequence[str]) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:", *lines])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"softcotpp {version('softcotpp')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True, show_default=False),
]


@app.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=examples(EXAMPLES))
def scale_run(
    method: Annotated[
        str | None,
        panel_option(
            "softcot++ (default), softcot, softcot-p, -dropout, -gumbel, cot, cot-unk, assist-cot, lora, or FILE.py:NAME.",
            RUN,
        ),
    ] = None,
    method_args: Annotated[
        str | None, panel_option('Arguments of a method of your own: "steps=4 scale=0.5".', RUN)
    ] = None,
    task: Annotated[
        str | None,
        panel_option("arithmetic (default), gsm8k, asdiv, aqua, strategyqa or date-understanding.", RUN),
    ] = None,
    data: Annotated[
        str | None, panel_option("Questions as JSONL: a file, or a folder of SPLIT.jsonl.", RUN, metavar="<path>")
    ] = None,
    limit: Annotated[
        int | None, panel_option("First questions only. Default 20 for arithmetic, else all.", RUN)
    ] = None,
    split: Annotated[str | None, panel_option("test (default), train or validation.", RUN)] = None,
    difficulty: Annotated[int | None, panel_option("Steps of an arithmetic question, 1 (default) to 4.", RUN)] = None,
    overlap: Annotated[
        str | None,
        panel_option(
            "Questions that the thinker or adapter was trained on: warn (default), refuse, or drop them.", RUN
        ),
    ] = None,
    backbone: Annotated[
        str | None, panel_option("Folder, GGUF file, Hub id, or smollm2-135m (default).", MODELS)
    ] = None,
    assistant: Annotated[str | None, panel_option("The same, for the model that thinks.", MODELS)] = None,
    thinker: Annotated[
        str | None, panel_option("Folder, Hub id or untrained. Default: the default models' own, trained.", MODELS)
    ] = None,
    adapter: Annotated[
        str | None, panel_option("For lora: folder or Hub id of an adapter of the backbone.", MODELS)
    ] = None,
    latent_paths: Annotated[
        int | None, panel_option("Latent paths N. Default 8, or the checkpoint's; 1 without ++.", PATHS)
    ] = None,
    samples: Annotated[int | None, panel_option("Samples M of each path. Default 4.", PATHS)] = None,
    soft_tokens: Annotated[int | None, panel_option("Soft tokens L. Default: the checkpoint's, else 4.", PATHS)] = None,
    noise: Annotated[
        float | None,
        panel_option(
            "Size of softcot-p's, -dropout's or -gumbel's change, relative to the thoughts. Default 0.2.", PATHS
        ),
    ] = None,
    control: Annotated[
        str | None,
        panel_option("What replaces the thoughts: zero, mean, shuffled (another question's), unk or none.", PATHS),
    ] = None,
    shots: Annotated[int | None, panel_option("Solved questions before each one, for cot. Default 0.", PATHS)] = None,
    adaptive: Annotated[
        float | None,
        panel_option("Stop a question once its vote is this sure: above 0.5, to 1. Default: never.", PATHS),
    ] = None,
    temperature: Annotated[float | None, panel_option("Default 0.5; 0 is greedy.", DECODING)] = None,
    top_p: Annotated[float | None, panel_option("Nucleus mass. Default 1, which is off.", DECODING)] = None,
    top_k: Annotated[int | None, panel_option("Most probable tokens kept. Default 0, which is off.", DECODING)] = None,
    max_new_tokens: Annotated[
        int | None, panel_option("Longest completion. Default 96 for arithmetic, else 512.", DECODING)
    ] = None,
    seed: Annotated[int | None, panel_option("Start of all random streams. Default 0.", DECODING)] = None,
    voter: Annotated[
        str | None, panel_option("flat (default), hierarchical, ... or file.py:function.", DECODING)
    ] = None,
    batch_size: Annotated[str | None, panel_option("Completions decoded together, or auto (default).", OUTPUT)] = None,
    max_batch_tokens: Annotated[
        str | None,
        panel_option("Tokens whose keys and values are held at once, or auto (default): half of free memory.", OUTPUT),
    ] = None,
    exact: Annotated[
        bool | None,
        panel_option("The same tokens in every batch, bit for bit, in every type; slower.", OUTPUT, "--exact"),
    ] = None,
    engine: Annotated[
        str | None, panel_option("transformers (default), vllm, or openai: a server at --base-url.", ENGINE)
    ] = None,
    engine_args: Annotated[
        str | None, panel_option('vLLM\'s own settings: "tensor_parallel_size=2 max_num_seqs=256".', ENGINE)
    ] = None,
    engine_seeds: Annotated[
        str | None,
        panel_option("vllm, openai: streams (default), a seed for every completion, or one for all: faster.", ENGINE),
    ] = None,
    base_url: Annotated[
        str | None, panel_option("openai: the server, http://HOST:PORT/v1. Its key: OPENAI_API_KEY.", ENGINE)
    ] = None,
    served_model: Annotated[
        str | None, panel_option("openai: the backbone's name there. Default: the only one.", ENGINE)
    ] = None,
    assistant_device: Annotated[
        str | None, panel_option("vllm, openai: where the assistant thinks, and stays. Default: auto.", ENGINE)
    ] = None,
    device: Annotated[str | None, panel_option("auto (default), cpu, cuda, cuda:1 ...", OUTPUT)] = None,
    dtype: Annotated[str | None, panel_option("auto (default), float32, bfloat16 or float16.", OUTPUT)] = None,
    out: Annotated[
        str | None,
        panel_option("Run directory. Default: under runs/, named by the settings.", OUTPUT, metavar="<path>"),
    ] = None,
    config: Annotated[
        str | None, panel_option("YAML file with any of these options.", OUTPUT, metavar="<path>")
    ] = None,
    json: Annotated[bool, panel_option("Print the summary alone, as JSON.", OUTPUT)] = False,
    rescore: Annotated[
        bool,
        panel_option("Judge what is there anew, by today's answer reader and gold answers; sample nothing.", OUTPUT),
    ] = False,
    dry_run: Annotated[
        bool, panel_option("Check all but weights, show settings and first prompt; run nothing.", OUTPUT)
    ] = False,
    version: Version = False,
) -> None:
    """Sample N latent paths x M completions for every question, vote, and report accuracy and cost.

    The same command again continues the run; more paths, samples or questions extend it.
    """
    given = {key: value for key, value in locals().items() if key not in _NO_SETTINGS}
    given = {key: value for key, value in given.items() if value is not None}
    raise typer.Exit(guarded("scale-run", lambda: _run(config, given, as_json=json, rescored=rescore, dry_run=dry_run)))


def refuse_small_limit() -> None:
    """Raises UsageError where `ulimit -v` leaves less than torch and its libraries load in: instead of failing, some of them
    then wait for ever, or end the process without a word. To be called before they are imported."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < LEAST_ADDRESSES:
        raise UsageError(
            f"`ulimit -v` must leave at least {LEAST_ADDRESSES >> 10} kB, which the libraries alone take, and is "
            f"{soft >> 10}: raise it."
        )


def _run(file: str | None, given: dict[str, Any], *, as_json: bool, rescored: bool, dry_run: bool) -> None:
    from rich.console import Console

    from scaling.config import RunConfig, load_config

    settings = load_config(file, given, RunConfig)
    settings.resolved()  # clashes between options are told before torch is imported
    if dry_run and rescored:
        raise UsageError(
            "`--dry-run` shows what would be sampled, and `--rescore` samples nothing: leave one of them out."
        )
    refuse_small_limit()
    if dry_run:
        from scaling.preview import preview

        resolved, prompts = preview(settings)
        print(jsonlib.dumps(resolved, indent=2) if as_json else f"{jsonlib.dumps(resolved, indent=2)}\n\n{prompts}")
        return
    from scaling.display import Watch, show_summary

    if rescored:
        from scaling.rescore import rescore

        said = Console(stderr=True)
        summary = rescore(settings, lambda line: said.print(line, highlight=False, markup=False, soft_wrap=True))
    else:
        from scaling.run import execute

        with Watch(Console(stderr=True), voter=settings.voter) as watch:
            summary = execute(settings, watch)
    if as_json:
        print(jsonlib.dumps(summary, indent=2))
    else:
        show_summary(Console(), summary)


def guarded(command: str, work: Any) -> int:
    """Runs `work` and turns what a user can fix, or an interruption, into a sentence and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
    except UsageError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # nobody reads what is printed any more, which typer knows how to end
        raise
    except KeyboardInterrupt:
        print(f"{command}: stopped before anything was begun; nothing was lost.", file=sys.stderr)
        return 130
    except Interrupted as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError, OSError) as error:
        if out_of_memory(error):
            said = f"{NO_MEMORY} ({one_line(error, limit=120) or type(error).__name__})."
        elif isinstance(error, OSError):
            said = f"{of_the_system(error)}: put that right, and the same command goes on with what it has finished."
        else:
            raise
        print(f"{command}: {said}", file=sys.stderr)
        return 2
    return 0


def main() -> None:
    """Entry point of the `scale-run` command."""
    app()
