"""Trains stacks of runs, from RunConfigs to RunResults: joins data, nets, loop, writers, probes."""

import contextlib
import math
import os
import platform
import shutil
import threading
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import bn_keras
from bn_keras import loop, metrics, nets, own
from bn_keras.config import ConfigError, RunConfig
from bn_keras.data import Splits
from bn_keras.diagnostics.probe import Nets, Probe, make_probe, measured_always
from bn_keras.plan import groups, is_keras_file, is_own_net
from bn_keras.registry import MODELS, OPTIMIZERS, UnknownName
from bn_keras.results import DIVERGED, OK, RunResult, Store
from bn_keras.surgery.digest import kernel_digest
from bn_keras.surgery.statistics import reset_skipped_batches
from bn_keras.writers import FanOut, Writer
from bn_keras.writers.memory import Memory
from bn_keras.writers.tensorboard import TensorBoard

EVERY = ("log", "evaluation")  # how often a probe can be asked


class Runner:
    """Trains and evaluates stacks of runs; stacks that share a graph share its trace.

    Args:
        load: RunConfig to Splits; called once for each stack, so it should keep what it has read.
        store: `bn_keras.results.Store` to write TensorBoard events and frames beside; results are
            returned.
        show: `(name, steps) -> Writer`, such as `Terminal.stack`; None to show nothing.
        stop: `threading.Event`; once set, a stack in progress returns None.
    """

    def __init__(
        self,
        load: Callable[[RunConfig], Splits],
        store: Store,
        show: Optional[Callable[[str, int], Writer]] = None,
        stop: Optional[threading.Event] = None,
    ):
        self._load, self._store, self._show, self._stop = load, store, show, stop
        self._graphs: Dict[Any, _Graph] = {}

    def __call__(self, configs: Sequence[RunConfig]) -> Optional[List[RunResult]]:
        """Trains the runs of one stack, as `plan` groups them.

        Returns:
            A RunResult for each, or None if stopped.

        Raises:
            ConfigError: settings that do not go together, known once data and model are there.
        """
        check_stack(configs)
        splits = self._load(configs[0])
        total = configs[0].total_steps(len(splits.train))
        memories = [Memory() for _ in configs]
        with contextlib.ExitStack() as open_writers:
            writers: List[Writer] = []
            for config, memory in zip(configs, memories):
                name = self._store.run_name(config)
                folder = self._store.work_dir / "tensorboard" / name
                shutil.rmtree(folder, ignore_errors=True)  # of a try that did not finish
                writers.append(FanOut([memory, TensorBoard(folder, name)]))
                open_writers.callback(writers[-1].close)
            shown = Writer()
            if self._show is not None:
                label = self._store.run_name(configs[0])
                more = f" and {len(configs) - 1} more" if len(configs) > 1 else ""
                shown = self._show(label + more, total)
                open_writers.callback(shown.close)
            # Diverged runs give inf and NaN, which results hold as None.
            open_writers.enter_context(np.errstate(over="ignore", invalid="ignore"))
            found = self._run(configs, splits, total, writers, shown, memories)
            for result, writer in zip(found or [], writers):
                writer.finish(result)
        return found

    def _run(
        self, configs: Sequence[RunConfig], splits: Splits, total: int, writers: Sequence[Writer],
        shown: Writer, memories: Sequence[Memory],
    ) -> Optional[List[RunResult]]:
        started = time.perf_counter()
        graph = self._graph(configs, splits)
        first = configs[0]
        graph.nets.batches = np.stack(
            [batch_indices(config, len(splits.train), total) for config in configs], -1
        )
        starts = graph.reset(configs)
        probes = graph.probes(first.measure)

        def ask(method: str, *arguments: Any, every: Sequence[str] = EVERY) -> Dict[str, Any]:
            """What all probes return that are asked that often, in one; the last one counts."""
            found: Dict[str, Any] = {}
            for name, probe in probes.items():
                if probe.every in every:
                    values = getattr(probe, method)(*arguments)
                    check_values(name, method, values, len(configs))
                    found.update(values)
            return found

        diverged_at = np.full(len(configs), -1)

        def write(step: int, values: Dict[str, Any]) -> None:
            for run, writer in enumerate(writers):
                if diverged_at[run] < 0:
                    writer.scalars(step, {tag: finite(of[run]) for tag, of in values.items()})

        write(0, ask("start"))
        at_start = ask("at_start")
        intervals = {"log": first.log_interval, "evaluation": first.eval_interval}
        every = first.log_interval, first.eval_interval
        for end, indices in loop.chunks(graph.nets.batches, *every):
            if self._stop is not None and self._stop.is_set():
                return None
            steps = graph.trainer.train(indices)
            bad = steps.first_non_finite()
            new = (bad >= 0) & (diverged_at < 0)
            diverged_at[new] = end - len(indices) + bad[new] + 1
            if (diverged_at >= 0).all():
                break
            due = [name for name in EVERY if end % intervals[name] == 0 or end == total]
            values = ask("during", end, steps, every=due)
            write(end, values)
            going = diverged_at < 0
            shown.scalars(end, {tag: finite(of[going].mean()) for tag, of in values.items()})
            histograms = ask("histograms", end, every=due)
            for run in np.flatnonzero(going):
                writers[int(run)].histograms(end, {tag: of[run] for tag, of in histograms.items()})

        at_end = ask("at_end")
        self._store_frames(configs, list(probes.values()))
        seconds = round((time.perf_counter() - started) / len(configs), 3)
        return [
            RunResult(
                config=config,
                status=OK if diverged_at[run] < 0 else DIVERGED,
                steps=total if diverged_at[run] < 0 else int(diverged_at[run]),
                seconds=seconds,
                # Weights that are not finite measure nothing, but the initial ones were finite.
                metrics={
                    **{name: finite(values[run]) for name, values in at_start.items()},
                    **{
                        name: finite(values[run]) if diverged_at[run] < 0 else None
                        for name, values in at_end.items()
                    },
                },
                curves=memories[run].curves,
                start=starts[run],
                versions=versions(),
                data=splits.digest(),
                notes=(*splits.notes, *graph.notes),
            )
            for run, config in enumerate(configs)
        ]

    def _store_frames(self, configs: Sequence[RunConfig], probes: Sequence[Probe]) -> None:
        """Stores the frames of the first run of every arm."""
        places: Dict[str, int] = {}
        for run, config in enumerate(configs):
            places.setdefault(config.arm_name, run)
        for run in places.values():
            frames: Dict[str, Any] = {}
            for probe in probes:
                frames.update(probe.frames(run) or {})
            if frames:
                self._store.add_frames(configs[run], frames)

    def _graph(self, configs: Sequence[RunConfig], splits: Splits) -> "_Graph":
        key = configs[0].graph_key(), len(configs)
        if key not in self._graphs:
            self._graphs[key] = _Graph(configs, nets.as_it_takes(configs[0], splits))
        return self._graphs[key]


class _Graph:
    """The nets and the traced functions that stacks of one graph and size share."""

    def __init__(self, configs: Sequence[RunConfig], splits: Splits):
        first = configs[0]
        properties = {} if is_own_net(first.model) else MODELS.properties(first.model)
        runs = len(configs) if properties.get("stacks") else None
        net = nets.build(first, splits, runs)
        told = nets.task(first, net, splits)
        self.notes = told.notes
        if not net.trainable_variables:
            raise ConfigError(
                f"model={own.short(first.model)!r}, normalizer={first.normalizer!r}: none of its "
                "weights is trainable; expected a net that can learn"
            )
        self.nets = Nets(net, splits, told.task, runs)
        optimizer = _optimizer(first)
        if own.is_own(first.optimizer):
            self.notes += (_told_of(optimizer, first),)
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if first.dtype_policy == "mixed_float16" and not scales:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.trainer = loop.Trainer(
            net, told.task, optimizer, splits.train.images, splits.train.labels, runs,
            jit_compile=properties.get("xla", False),
        )
        self._model = own.short(first.model)
        self._probes: Dict[str, Probe] = {}
        self._untrained = _origin(first) if runs is None else None

    def reset(self, configs: Sequence[RunConfig]) -> List[str]:
        """Starts over with the weights of each run's own seed; returns digests of the kernels."""
        self.nets.configs = list(configs)
        keys = [_origin(config) for config in configs]
        alone = {
            # The net of the first run is as it was built, and a large one takes its seconds.
            key: self.nets.net if key == self._untrained else nets.build(config, self.nets.splits)
            for key, config in dict(zip(keys, configs)).items()
        }
        self._untrained = None
        starts = {key: kernel_digest(model) for key, model in alone.items()}
        columns = [[v.numpy() for v in alone[key].variables] for key in keys]
        check_alike(self.nets.net, alone.values(), configs[0])
        values = [
            np.stack(of_runs).reshape(variable.shape)
            for variable, *of_runs in zip(self.nets.net.variables, *columns, strict=True)
        ]
        self.trainer.reset(values, [config.learning_rate for config in configs])
        reset_skipped_batches(self.nets.net)
        return [starts[key] for key in keys]

    def probes(self, asked: Sequence[str]) -> Dict[str, Probe]:
        """The probes of a run by name: those that every run has, and those that it asks for."""
        names = list(dict.fromkeys([*measured_always(), *asked]))
        for name in names:
            if name not in self._probes:
                try:
                    self._probes[name] = make_probe(name, self.nets)
                except (TypeError, ValueError) as error:  # a net that it cannot look into
                    raise ConfigError(
                        f"measure={name!r} with model={self._model!r}: {error}"
                    ) from error
        return {name: self._probes[name] for name in names}


def check_alike(net: keras.Model, others: Iterable[keras.Model], config: RunConfig) -> None:
    """Checks that a model of each seed has weights of the same shapes; a stack's are of them all.

    Raises:
        ConfigError: the function that builds it gives another net each time.
    """
    if not is_own_net(config.model):
        return
    shapes = [variable.shape for variable in net.variables]
    for other in others:
        if [variable.shape for variable in other.variables] != shapes:
            raise ConfigError(
                f"model={own.short(config.model)!r}: called again, it gave a net with weights of "
                "other shapes; expected the same net for every seed"
            )


def _origin(config: RunConfig) -> Tuple[Any, ...]:
    """Rates apart, all the settings in which the runs of one graph can differ in their weights."""
    return config.seed, config.initializer, config.bias, config.weights


def _optimizer(config: RunConfig) -> Any:
    """A new optimizer of the run's kind and rate."""
    if not own.is_own(config.optimizer):
        return OPTIMIZERS.get(config.optimizer)(learning_rate=config.learning_rate)
    read = nets.compiled_optimizer if is_keras_file(config.optimizer) else own.get
    return _with_rate(read(config.optimizer), config.learning_rate)


def _with_rate(given: Any, rate: float) -> Any:
    """A new optimizer like another one, with another rate."""
    settings = given.get_config()
    if isinstance(given, keras.optimizers.LossScaleOptimizer):
        inner = _with_rate(given.inner_optimizer, rate)
        settings["inner_optimizer"] = keras.saving.serialize_keras_object(inner)
        return type(given).from_config(settings)
    return type(given).from_config({**settings, "learning_rate": rate})


def _told_of(optimizer: Any, config: RunConfig) -> str:
    """A sentence on an optimizer of the user's own: its settings, as far as they are not usual."""
    source = ""
    if is_keras_file(config.optimizer):
        source = f", as compiled in {own.short(config.optimizer)}"
    averaged = "" if not getattr(own.innermost(optimizer), "use_ema", False) else (
        "; the averages of the weights that use_ema keeps do not take their place in the end, as "
        "they do in fit"
    )
    return f"optimizer: {_described(optimizer)}, else with Keras's defaults{source}{averaged}"


def _described(optimizer: Any) -> str:
    """Its class, with the settings that its user chose: `SGD(momentum=0.9)`."""
    settings = optimizer.get_config()
    for name in ("name", "learning_rate"):
        settings.pop(name, None)
    inner = settings.pop("inner_optimizer", None)
    arguments = [] if inner is None else [_described(optimizer.inner_optimizer)]
    try:
        usual = type(optimizer)(*([optimizer.inner_optimizer] if inner else [])).get_config()
    except TypeError:  # a class of the user's own that wants more
        usual = {}
    arguments += [f"{name}={of!r}" for name, of in settings.items() if usual.get(name) != of]
    return f"{type(optimizer).__name__}({', '.join(arguments)})"


def check_values(probe: str, method: str, values: Any, runs: int) -> None:
    """Checks what a probe returned.

    Args:
        probe: its name, as of `RunConfig.measure`.
        method: which one of the probe's methods returned them.
        values: arrays by name: (runs,) of declared metrics and curves, (runs, ...) of histograms.
        runs: how many.

    Raises:
        ConfigError: names the probe, what it returned and what was expected.
    """
    source = f"measure={probe!r}: {method} returned"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source} {values!r}; expected a dict of arrays by name")
    for name, of in values.items():
        shape = np.shape(of)
        if shape[:1] != (runs,) or (method != "histograms" and len(shape) > 1):
            more = ", ..." if method == "histograms" else ","
            raise ConfigError(
                f"{source} {name!r} of shape {shape}; expected shape ({runs}{more}), one entry for "
                "each run of the stack"
            )
        if method != "histograms":
            try:
                metrics.check_name(name)
            except UnknownName as error:
                raise ConfigError(f"{source} an {error}") from error


def check_stack(configs: Sequence[RunConfig]) -> None:
    """Checks that runs can be trained side by side in one graph.

    Raises:
        ValueError: they differ in what they must share, or would mix with each other.
    """
    if groups(configs) != [[list(configs)]]:
        first = configs[0]
        raise ValueError(
            f"received a stack of {len(configs)} runs of model={first.model!r}, normalizer="
            f"{first.normalizer!r}, dtype_policy={first.dtype_policy!r}; expected one run, or runs "
            "that plan.groups puts into one stack"
        )


def batch_indices(config: RunConfig, examples: int, steps: int) -> NDArray[Any]:
    """The examples of every step of a run, as `loop.batch_indices`."""
    rng = None if config.batch_order == "fixed" else np.random.default_rng(config.seed)
    keep_last = config.last_batch == "keep"
    return loop.batch_indices(examples, config.batch_size, steps, rng, keep_last)


def start_devices() -> None:
    """Makes TensorFlow look for its devices now, and not in the middle of the first run."""
    tf.config.list_logical_devices()


def versions() -> Dict[str, str]:
    """Versions of what computes a result, and the machine that does."""
    cards = [
        tf.config.experimental.get_device_details(card).get("device_name", "GPU")
        for card in tf.config.list_physical_devices("GPU")
    ]
    system = f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores"
    return {
        "bn_keras": bn_keras.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": ", ".join([system, *cards]),
    }


def finite(value: float) -> Optional[float]:
    """A number as results hold it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None
