"""`shuntserve run`: one job, one machine, no server; running it again continues it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shuntserve.cli.common import log_file
from shuntserve.cli.light import without_torch
from shuntserve.core.states import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from shuntserve.core.specs import JobSpec
    from shuntserve.job.run import RunRequest

_INPUT = "Input"
_MODEL = "Model and engine"
_GENERATION = "Generation"
_LIMITS = "Limits"


def register(app: typer.Typer) -> None:
    """Add `run`."""
    app.command(no_args_is_help=True)(run)


def run(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Parquet files or OpenAI batch JSONL: files, directories, globs, s3:// URLs."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model directory, or a name on the Hugging Face hub.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Directory or s3:// URL. Default: outbox/JOB in the store.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes. Default: one for each group of GPUs; without GPUs, one."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Where jobs are kept: a directory or s3:// URL. Default: $SHUNTSERVE_STORE.")
    ] = None,
    spec_file: Annotated[
        Path | None, typer.Option("--spec", help="A job.yaml with any settings; options given here stand over it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another job's output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
    name: Annotated[str | None, typer.Option(help="A readable name; it begins the job's id.")] = None,
    rerun: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Make a new job of the same submission; one for each TEXT.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="OURS=YOURS", help="Map a column, e.g. prompt=question.", rich_help_panel=_INPUT
        ),
    ] = None,
    carry: Annotated[
        list[str] | None,
        typer.Option(help="Columns to carry to the output. Default: all others.", rich_help_panel=_INPUT),
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="E.g. 'Classify: {text}'.", rich_help_panel=_INPUT)
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A system message; implies --chat.", rich_help_panel=_INPUT)
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Put prompts through the chat template.", rich_help_panel=_INPUT),
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A Jinja chat template, or a file with one.", rich_help_panel=_INPUT)
    ] = None,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="E.g. '{\"enable_thinking\": false}'.", rich_help_panel=_INPUT)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub model.", rich_help_panel=_MODEL)] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="When it does not come with the model.", rich_help_panel=_MODEL)
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A vLLM engine option, e.g. dtype=float32.", rich_help_panel=_MODEL),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="For rows that do not say.", rich_help_panel=_GENERATION)
    ] = None,
    temperature: Annotated[float | None, typer.Option(rich_help_panel=_GENERATION)] = None,
    top_p: Annotated[float | None, typer.Option(rich_help_panel=_GENERATION)] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any sampling parameter in vLLM's names.", rich_help_panel=_GENERATION),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Rows' seeds are derived from it and their place.", rich_help_panel=_GENERATION)
    ] = None,
    response_format: Annotated[
        str | None, typer.Option(metavar="JSON", help="OpenAI's form, or @file.json.", rich_help_panel=_GENERATION)
    ] = None,
    return_token_ids: Annotated[
        bool | None, typer.Option("--return-token-ids", help="Add output_token_ids.", rich_help_panel=_GENERATION)
    ] = None,
    return_logprobs: Annotated[
        bool | None,
        typer.Option("--return-logprobs/--no-return-logprobs", help="Add logprobs.", rich_help_panel=_GENERATION),
    ] = None,
    max_reject_fraction: Annotated[
        float | None,
        typer.Option(help="Pause when a larger share of rows was rejected (default 0.01).", rich_help_panel=_LIMITS),
    ] = None,
    max_length_finish_fraction: Annotated[
        float | None,
        typer.Option(help="Pause when a larger share of outputs ran out of max_tokens (0.2).", rich_help_panel=_LIMITS),
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="E.g. 2h30m, or 2030-01-31T18:00:00Z.", rich_help_panel=_LIMITS)
    ] = None,
    checkpoint_interval: Annotated[
        float | None, typer.Option(help="Seconds between checkpoints (10).", rich_help_panel=_LIMITS)
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(
            help="Seconds of silence after which another machine's worker counts as dead (15).", rich_help_panel=_LIMITS
        ),
    ] = None,
    worker_engine: Annotated[str | None, typer.Option("--worker-engine", hidden=True)] = None,
    worker_engine_options: Annotated[str | None, typer.Option("--worker-engine-options", hidden=True)] = None,
) -> None:
    """Answer every row of INPUT with MODEL and write the answers to OUTPUT.

    Interrupted in any way, the same command continues where it was.
    """
    from shuntserve.cli.spec_options import merged, parse_json, parse_pairs, parse_values, read_spec_file
    from shuntserve.core.specs import JobSpec
    from shuntserve.job.run import RunRequest
    from shuntserve.settings import settings

    sampling = {**parse_values("--param", param or []), **_given(temperature=temperature, top_p=top_p)}
    given = _given(
        input=inputs or None,
        model=model,
        output=_absolute(output),
        name=name,
        rerun=rerun,
        columns=parse_pairs("--column", column or []),
        carry=carry,
        prompt_template=prompt_template,
        system=system,
        chat=chat,
        chat_template=chat_template,
        chat_template_kwargs=parse_json("--chat-template-kwargs", chat_template_kwargs),
        revision=revision,
        tokenizer=tokenizer,
        engine=parse_values("--engine", engine or []),
        max_tokens=max_tokens,
        sampling_params=sampling,
        seed=seed,
        response_format=parse_json("--response-format", response_format),
        return_token_ids=return_token_ids,
        return_logprobs=return_logprobs,
        max_reject_fraction=max_reject_fraction,
        max_length_finish_fraction=max_length_finish_fraction,
        deadline=deadline,
        checkpoint_interval_s=checkpoint_interval,
        lease_s=lease,
        expected_workers=workers,
    )
    here = settings()
    request = RunRequest(
        store_url=store or here.store_url,
        data_dir=here.data_dir,
        workers=workers,
        overwrite=overwrite,
        cuda_visible_devices=here.cuda_visible_devices,
        size_kv_cache=here.vllm_cpu_kvcache_space is None,
        log_level=here.log_level,
        engine=worker_engine,
        engine_options=parse_json("--worker-engine-options", worker_engine_options) or {},
    )
    _run(request, JobSpec(**merged(read_spec_file(spec_file) if spec_file else {}, given)), as_json=as_json)


def _absolute(place: str | None) -> str | None:
    """The output is found again from any directory."""
    return place if place is None or "://" in place else str(Path(place).expanduser().absolute())


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _run(request: RunRequest, spec: JobSpec, *, as_json: bool) -> None:
    from shuntserve import telemetry
    from shuntserve.cli.interrupts import interrupts
    from shuntserve.cli.progress import TerminalReporter
    from shuntserve.job.run import StopSwitch, run_job
    from shuntserve.settings import settings
    from shuntserve.tracing import traced

    if not spec.engine.get("trust_remote_code"):  # a model's own tokenizer code may want torch
        without_torch()
    stop = StopSwitch()
    again = shlex.join(["shuntserve", *sys.argv[1:]])
    here = settings()
    with log_file(request.data_dir) as log:
        telemetry.log_to(log, request.log_level)
        with (
            traced(here.otlp_endpoint, here.otlp_protocol, "shuntserve-run"),
            TerminalReporter(sys.stderr) as reporter,
            interrupts(stop),
        ):
            try:
                result = run_job(request, spec, reporter, stop)
            except KeyboardInterrupt:
                reporter.broken_off(again)
                raise typer.Exit(EXIT_INTERRUPTED) from None
            reporter.ended(result, again)
    if as_json:
        print(json.dumps(result.summary()))
    raise typer.Exit(result.exit_code)
