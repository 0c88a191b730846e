# SPDX-License-Identifier: Apache-2.0
"""Where work is done: in this process, on a Ray started for it, or on a cluster."""

from __future__ import annotations

import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vllm_sauce.errors import ActorDiedError, BatchError, ConfigError
from vllm_sauce.options import check_at_least

OBJECT_STORE_BYTES = 256 << 20
"""Of a local Ray: only descriptions of work and its results pass through it."""

GO_ON = "what is finished is kept: run the same command to go on"

RETRIES = 3
"""How often work is done anew because its actor died, before the run stops."""


@Parameter(name="*", group="Where it runs")
@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Where actors run and what each of them takes."""

    address: Annotated[str | None, Parameter(name="--ray")] = None
    """Address of a Ray cluster, "auto" for this machine's; else a local Ray is started
    where there are several actors."""

    actors: int = 1
    """Processes side by side, each with an engine."""

    gpus_per_actor: float | None = None
    """Default: 1 where Ray finds GPUs, else 0."""

    cpus_per_actor: float | None = None
    """Ray lets an actor's own process use so many threads. Default: an equal share of
    this machine's, 1 on a cluster."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "actors")
        cpus, gpus = self.cpus_per_actor, self.gpus_per_actor
        if (cpus is not None and cpus <= 0) or (gpus is not None and gpus < 0):
            raise ConfigError("an actor takes a positive number of CPUs, and GPUs >= 0")

    def cpus(self) -> float:
        """Return the CPUs of an actor, as given or by default."""
        if self.cpus_per_actor is not None:
            return self.cpus_per_actor
        if self.address is not None:
            return 1.0
        return float(max(1, (os.cpu_count() or 1) // self.actors))


def actors_wanted(given: Resources | None) -> Resources | None:
    """Return where actors run, as a command line says it; None is this process alone.

    Raises: ConfigError
    """
    if given is None or given.address is not None or given.actors > 1:
        return given
    if given.gpus_per_actor is not None or given.cpus_per_actor is not None:
        raise ConfigError(
            "an actor's share of the machine was given, but no actors: give --actors "
            "or --ray, or leave the share out"
        )
    return None


def everywhere(model: str) -> str:
    """Return a model's folder as a process in another folder finds it."""
    return str(Path(model).absolute()) if Path(model).exists() else model


@contextmanager
def connected(resources: Resources) -> Iterator[Resources]:
    """Start Ray or connect to it; gives the resources with what was found.

    Raises: ConfigError
    """
    # Read when Ray is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own core tells what a user of Ray Data can do nothing about.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "running on actors needs Ray Data: pip install 'vllm-sauce[scale]'"
        ) from error
    if ray.is_initialized():
        raise ConfigError("this process is connected to Ray already; disconnect first")
    try:
        ray.init(**_init_arguments(resources))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot connect to Ray: {error}; a cluster that wants a token is given "
            "it where RAY_AUTH_MODE=token is set here, too"
        ) from error
    except OSError as error:
        # ConnectionError, above, is one of these.
        hint = (
            "; its sockets' names are too long because its temporary folder's is: set "
            "RAY_TMPDIR to a short one, such as /tmp"
            if "AF_UNIX" in str(error)
            else ""
        )
        raise ConfigError(f"cannot start Ray: {error}{hint}") from error
    try:
        yield placed(resources, ray.cluster_resources())
    finally:
        ray.shutdown()


def results_of(
    actor_class: Callable[..., Callable[[dict[str, Any]], dict[str, Any]]],
    constructor_args: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    resources: Resources,
    at_once: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield each row's result as it is finished; a dead actor's rows are done anew.

    An actor is built from the arguments in a process of its own and called with a row,
    from ``at_once`` threads. Rows and results hold numbers, text, bytes and lists; each
    key has values of one type, in every row.

    Raises: BatchError
    """
    import ray

    if not rows:
        return
    _quiet()
    environment = {}
    if resources.address is None and resources.actors > 1:
        # Each engine on CPUs would pin its threads to the same cores.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with warnings.catch_warnings():
        # Ray means to rename the ways to pass what an actor takes.
        warnings.simplefilter("ignore", DeprecationWarning)
        dataset = ray.data.from_items(
            [dict(row) for row in rows], override_num_blocks=len(rows)
        ).map_batches(
            _Actor,
            fn_constructor_args=(actor_class, tuple(constructor_args), environment),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=resources.cpus(),
            num_gpus=resources.gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(
                size=resources.actors,
                max_tasks_in_flight_per_actor=at_once,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            max_task_retries=RETRIES,
        )
    # One row may be an hour's work; Ray Data would take half of one for a hang.
    dataset.context.execution_no_progress_timeout_s = -1
    try:
        tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        for table in tables:
            yield from table.to_pylist()
    except ray.exceptions.RayError as error:
        raise _reason(error) from error


class _Actor:
    """What Ray Data calls, with tables: here rows go in and results come out."""

    def __init__(
        self,
        actor_class: Callable[..., Callable[[dict[str, Any]], dict[str, Any]]],
        constructor_args: Sequence[Any],
        environment: Mapping[str, str],
    ) -> None:
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        self.actor = actor_class(*constructor_args)

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        try:
            return pa.Table.from_pylist([self.actor(row) for row in table.to_pylist()])
        except ActorDiedError:
            # Ray starts another process for the work of one that is gone.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def results_here(
    actor: Callable[[dict[str, Any]], dict[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    at_once: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield each row's result as it is finished, without Ray: ``results_of``, here.

    The actor is called with a row from ``at_once`` threads.

    Raises: BatchError if what the actor holds died; else what the actor raises
    """

    def tried(row: Mapping[str, Any]) -> dict[str, Any] | BaseException:
        # The pool hands on an Exception, but for ever waits for another error's row.
        try:
            return actor(dict(row))
        except BaseException as error:
            return error

    # Its threads are daemons: an interrupted run does not wait for answers. And whoever
    # stops listening wants nothing more to be begun.
    with ThreadPool(max(1, min(at_once, len(rows)))) as pool:
        for result in pool.imap_unordered(tried, rows):
            if isinstance(result, ActorDiedError):
                raise BatchError(f"{result}; {GO_ON}") from result
            if isinstance(result, BaseException):
                raise result
            yield result


def _init_arguments(resources: Resources) -> dict[str, Any]:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address is not None:
        passed = {k: v for k, v in os.environ.items() if k.startswith("VLLM_")}
        return quiet | {
            "address": resources.address,
            "runtime_env": {"env_vars": passed},
        }
    # Actors inherit this process's environment here, as a plain LLM would.
    return quiet | {
        "address": "local",
        # Ray counts; it is the user who knows what the machine can bear.
        "num_cpus": math.ceil(resources.actors * resources.cpus()),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }


def placed(resources: Resources, found: Mapping[str, float]) -> Resources:
    """Return the resources with defaults by what Ray has.

    Raises: ConfigError if it has not enough
    """
    gpus = resources.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if found.get("GPU", 0) else 0.0
    for kind, each in (("CPU", resources.cpus()), ("GPU", gpus)):
        if found.get(kind, 0) < resources.actors * each:
            raise ConfigError(
                f"{resources.actors} actors of {each:g} {kind} need "
                f"{resources.actors * each:g}, Ray has {found.get(kind, 0):g}; "
                f"take fewer actors, or less for each"
            )
    return replace(resources, gpus_per_actor=gpus)


def _quiet() -> None:
    """Keep Ray Data's own bars and reports off the terminal: the run has its own."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # An actor that cannot start is a mistake to be told, not to be tried again.
    context.max_consecutive_actor_init_deaths = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _reason(error: BaseException) -> BatchError:
    """Return what to tell: the last line of Ray's report is the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return BatchError(
        f"an actor failed: {lines[-1] if lines else type(error).__name__}; {GO_ON}. "
        "Ray's logs of the actors are in /tmp/ray/session_latest/logs"
    )
