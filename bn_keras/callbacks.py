"""Callbacks for a user's own `model.fit`.

    monitor = BatchNormMonitor((x_train, y_train), log_dir="logs")
    model.fit(..., callbacks=[monitor, keras.callbacks.TensorBoard("logs")])

It says in words what goes wrong with batch normalization while the model trains, once for each
layer, and keeps everything that it measured in `monitor.history`.
"""

import math
import pathlib
import time
from typing import Any, Callable, Optional

import keras

from bn_keras.diagnostics.evaluations import BATCH_SIZE, Batches, check_arguments, read
from bn_keras.diagnostics.monitoring import Values, Watch, kept_randomness
from bn_keras.surgery.statistics import moves_statistics
from bn_keras.texts import in_a_line
from bn_keras.writers.tensorboard import TensorBoard

EXAMPLES = 128  # four batches: enough for a lag or a gap that matters, read in seconds
SHARE = 0.1  # of the time of training
FOLDER = "batch_norm"  # beside the `train` and `validation` of keras.callbacks.TensorBoard

# From where on there is a warning. Healthy nets stay well below: see docs/callbacks.md.
LAG_DEVIATIONS, LAG_FACTOR = 0.5, 2.0
LEAST_VALUES = 30  # of a channel: the variance of fewer is off by that factor by chance
GAP = 0.25  # of the loss in training mode
NO_LOSS = 0.1  # of the first loss: below that, a gap is measured against it
MANY_DEAD = MANY_SMALL = 0.5  # of the channels
MOVED = ("updated", "affine_updated", "skipped_batches")
COSTS = ("seconds", "seconds_of_training")
# What a warning is judged by beside the measured quantities; not worth a curve.
JUDGED_BY = ("updated", "affine_updated", "values", "gap_of_best_batch", "inputs_not_finite")
SEEN_IN_BATCHES = ("lag", "dead", "input", "gap")  # kinds of warnings


class BatchNormMonitor(keras.callbacks.Callback):
    """Watches the batch normalization of a model while `fit` trains it; changes nothing.

    At the end of an epoch it compares the statistics and weights with those at its beginning, and
    sends a few batches of `data` through a copy of the model. What is wrong is told at once, in
    words; the end of training brings a line on what was looked at, what was not, and what it cost.
    The weights after training are those of training without it, to the last bit.

    It works for every built Keras model, with Keras's layer, this package's, or others that keep a
    moving mean and variance.

    Args:
        data: examples like those of training, in a form that `fit` takes, with labels if the loss
            is to be measured. They are read once, before training. A generator or a shuffled
            tf.data.Dataset has a state: do not give the object that `fit` trains on. None:
            statistics and weights only, without forward passes.
        log_dir: folder for TensorBoard, that of `keras.callbacks.TensorBoard` for example; the
            curves are in `batch_norm` there. None for no files.
        batch_size: of arrays: that of training, since a batch's statistics depend on it.
        examples: how many of the data are looked at.
        loss: as `compile` takes it; None for the one that the model is compiled with.
        share: the most time it may take, as a share of the time of training. To keep to that, it
            sends fewer batches through the model, and not after every epoch: after the first one
            and the last one of a longer training in any case. Statistics and weights are compared
            after every epoch. math.inf: everything after every epoch.
        tell: where the words go, a function of a str.

    Attributes:
        history: all that was measured, a list of dicts (rows of a tidy table) with the keys fit,
            epoch, layer (a path; None for the whole model), quantity and value. Quantities are
            those of `Watch.changes` and `Watch.passes`; seconds, what watching cost; and
            seconds_of_training, both since the start. epoch is None after `evaluate`.
        warnings: what was told, a list of dicts with the keys fit, epoch, layer, kind and text.

    Raises:
        TypeError: `data` has no form that is known.
        ValueError: there are no examples, infinitely many, or an argument is out of range.
    """

    def __init__(
        self, data: Any = None, log_dir: Any = None, *, batch_size: int = BATCH_SIZE,
        examples: int = EXAMPLES, loss: Any = None, share: float = SHARE,
        tell: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not share > 0:
            raise ValueError(
                f"BatchNormMonitor: share={share!r}; expected a number above 0, such as .1 for "
                "10 % of the time of training."
            )
        check_arguments(data, batch_size, examples, loss, type(self).__name__)
        self.history: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        self._data, self._log_dir, self._tell = data, log_dir, tell
        self._batch_size, self._examples = batch_size, examples
        self._loss, self._share = loss, share
        self._batches: Optional[Batches] = None
        self._watch: Optional[Watch] = None
        self._writer: Optional[TensorBoard] = None
        self._fit = -1  # number of this call of fit or evaluate
        self._fitting = False
        self._spent = self._trained = self._cost = 0.0  # seconds; the last is that of one look
        self._epochs = self._looks = 0
        self._first_loss = 0.0
        self._holding: set[tuple[Optional[str], str]] = set()  # faults that the last look found
        # The last epoch and what its variables said, where no batches were looked at after it.
        self._waiting: Optional[tuple[int, Values]] = None

    def values(self, quantity: str) -> dict[Optional[str], list[tuple[Any, float]]]:
        """A measured quantity as curves: layer → list of (epoch, value), over all calls of fit.

        Raises:
            ValueError: nothing of that name was measured.
        """
        found: dict[Optional[str], list[tuple[Any, float]]] = {}
        for row in self.history:
            if row["quantity"] == quantity:
                found.setdefault(row["layer"], []).append((row["epoch"], row["value"]))
        if not found:
            known = sorted({row["quantity"] for row in self.history})
            raise ValueError(
                f"BatchNormMonitor: no {quantity!r} was measured; measured: "
                f"{', '.join(known) or 'nothing yet'}."
            )
        return found

    # ------------------------------------------------------------ what Keras calls

    def on_train_begin(self, logs: Any = None) -> None:
        self._fitting = True
        self._waiting = None
        self._start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._since = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._trained += time.perf_counter() - self._since
        self._epochs += 1
        last = self.model.stop_training or epoch + 1 == self._epochs_of_fit()
        left = self._share * self._trained - self._spent
        looks = not self._looks or last and self._epochs_of_fit() > 1 or self._cost <= left
        self._measure(epoch, looks)

    def on_train_end(self, logs: Any = None) -> None:
        self._fitting = False
        self._catch_up()
        self._finish()

    def on_test_begin(self, logs: Any = None) -> None:
        if not self._fitting:
            self._start()

    def on_test_end(self, logs: Any = None) -> None:
        if not self._fitting:
            self._measure(None, True)
            self._finish()

    # ------------------------------------------------------------ what it does

    def _start(self) -> None:
        started = time.perf_counter()
        self._fit += 1
        if self._watch is not None and not self._watch.fits(self.model):
            self._watch = None
        if self._watch is None and self.model.built:
            self._watch = self._new_watch()
        if self._watch is not None:
            self._watch.begin()
        self._spent += time.perf_counter() - started

    def _new_watch(self) -> Watch:
        """Reads the data, and looks for what is to be watched."""
        if self._data is not None and self._batches is None:
            with kept_randomness():
                self._batches = read(
                    self.model, self._data, self._batch_size, self._examples, type(self).__name__
                )
        watch = Watch(self.model, self._batches, self._loss)
        if not watch.layers:
            self._say("nothing to look at: the model has no batch normalization.")
        for what, why in watch.unseen.items():
            self._say(f"cannot look at {what}: {why}")
        return watch

    def _measure(self, epoch: Optional[int], looks: bool) -> None:
        """Measures, notes and tells.

        Args:
            epoch: None in an evaluation.
            looks: whether batches go through the model.
        """
        started = time.perf_counter()
        found: Values = {}
        watch = self._watch
        if watch is None:  # the first epoch has built the model
            try:
                watch = self._new_watch()
            except (TypeError, ValueError) as error:  # no form of data, told too late to refuse it
                self._say(f"goes on without data: {error}")
                self._data = None
                watch = self._new_watch()
            self._watch = watch
        elif watch.layers:
            found.update(watch.changes())
        if not watch.layers:
            return
        watch.begin()
        self._waiting = None if looks or epoch is None else (epoch, found)
        seen = self._look(watch, epoch is None) if looks else {}
        self._judge(watch, epoch, {**found, **seen})
        self._keep(epoch, {**found, **seen}, started)

    def _catch_up(self) -> None:
        """Looks after the last epoch, if a callback behind this one made it the last one."""
        if self._waiting is None or self._watch is None or self._epochs_of_fit() == 1:
            return
        started = time.perf_counter()
        epoch, changes = self._waiting
        seen = self._look(self._watch, False)
        self._judge(self._watch, epoch, {**changes, **seen})
        self.history = [  # the cost of this epoch is told anew
            row for row in self.history
            if (row["fit"], row["epoch"]) != (self._fit, epoch) or row["quantity"] not in COSTS
        ]
        self._keep(epoch, seen, started)

    def _keep(self, epoch: Optional[int], found: Values, started: float) -> None:
        """Writes and notes what was measured since a time, and what that cost."""
        self._write(epoch, found)
        self._spent += time.perf_counter() - started
        found = {**found, (None, COSTS[0]): self._spent, (None, COSTS[1]): self._trained}
        self.history += [
            {"fit": self._fit, "epoch": epoch, "layer": layer, "quantity": quantity, "value": value}
            for (layer, quantity), value in found.items()
        ]

    def _look(self, watch: Watch, at_all: bool) -> Values:
        """Sends batches through the model; what its own code raises does not stop a training."""
        started = time.perf_counter()
        taken = [started]

        def goes_on() -> bool:
            now = time.perf_counter()
            one, spent = now - taken[-1], self._spent + now - started
            taken.append(now)
            return at_all or spent + one <= self._share * self._trained

        self._looks += 1
        try:
            return watch.passes(goes_on)
        except Exception as error:
            why = in_a_line(error)
            if watch.unseen.setdefault("a forward pass", why) is why:
                self._say(f"cannot look at a forward pass: {why}")
            return {}
        finally:
            self._cost = time.perf_counter() - started

    def _write(self, epoch: Optional[int], found: Values) -> None:
        if self._log_dir is None or epoch is None:
            return
        if self._writer is None:
            self._writer = TensorBoard(pathlib.Path(self._log_dir) / FOLDER, FOLDER)
        self._writer.scalars(epoch, {
            f"{quantity}/{layer or 'model'}": value if math.isfinite(value) else None
            for (layer, quantity), value in found.items() if quantity not in JUDGED_BY
        })

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        watch = self._watch
        if watch is None or not watch.layers or not (self.params or {}).get("verbose", 1):
            return
        over = _counted(self._epochs, "epoch") if self._epochs else "an evaluation"
        on = f", {self._batches}" if self._batches else ""
        if self._epochs and self._batches:
            on = f", with a look after {self._looks} of them at {self._batches}"
        told = _counted(len(self.warnings), "warning")
        gone = sum((one["layer"], one["kind"]) not in self._holding for one in self.warnings)
        if gone:
            told += f", {gone} of which no longer {'holds' if gone == 1 else 'hold'}"
        cost = f"{self._spent:.2f} s"
        if self._trained:
            cost += f", {self._spent / self._trained:.1%} of the training's {self._trained:.1f} s"
        unseen = [f"{what} ({' '.join(why.split())})" for what, why in watch.unseen.items()]
        if self._batches is None:
            unseen.append("lag, gap and activations (no data: BatchNormMonitor((x, y)) has them)")
        layers = _counted(len(watch.layers), "batch normalization")
        rest = f" Not looked at: {'; '.join(unseen)}." if unseen else ""
        self._say(f"{layers} over {over}{on}; {told}; it took {cost}.{rest}")

    def _say(self, text: str) -> None:
        self._tell(f"\n{type(self).__name__}: {text}")  # the progress bar ends without a new line

    # ------------------------------------------------------------ what is wrong

    def _judge(self, watch: Watch, epoch: Optional[int], found: Values) -> None:
        faults: list[tuple[Optional[str], str, str]] = []
        for path, layer in watch.layers.items():
            values = {name: value for (place, name), value in found.items() if place == path}
            if epoch is None:  # nothing was to move
                values = {n: v for n, v in values.items() if n not in MOVED}
            faults += [
                (path, *fault) for fault in _faults(watch, path, layer, values, self._updates())
            ]
        gap = self._gap(found)
        if gap:
            faults.append((None, "gap", gap))
        looked = (None, "batches") in found
        self._holding = {fault[:2] for fault in faults} | {
            fault for fault in self._holding if not looked and fault[1] in SEEN_IN_BATCHES
        }
        known = {(one["layer"], one["kind"]) for one in self.warnings}
        when = "evaluation" if epoch is None else f"epoch {epoch + 1}"
        for place, kind, text in faults:
            if (place, kind) not in known:
                self.warnings.append(
                    {"fit": self._fit, "epoch": epoch, "layer": place, "kind": kind, "text": text}
                )
                self._say(f"{when}, {place or 'the whole model'}: {text}")

    def _gap(self, found: Values) -> Optional[str]:
        """What there is to say of the loss in both modes."""
        if (None, "gap") not in found:
            return None
        training, inference = found[None, "loss_in_training_mode"], found[None, "loss_in_inference"]
        self._first_loss = self._first_loss or training
        text = (
            f"with the same weights on the same examples, the loss is {training:.3g} with the "
            f"statistics of each batch, as in training, and {inference:.3g} in inference: the "
            "moving statistics are why. bn_keras's recalibrate(model, data) computes exact ones."
        )
        if math.isfinite(training) and not math.isfinite(inference):
            return text
        least = GAP * max(abs(training), NO_LOSS * abs(self._first_loss))
        clear = found[None, "gap"] > least and found[None, "gap_of_best_batch"] > 0
        return text if clear else None

    def _epochs_of_fit(self) -> int:
        return (self.params or {}).get("epochs") or 1

    def _updates(self) -> Optional[int]:
        steps = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        return None if steps is None else int(keras.ops.convert_to_numpy(steps))


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _faults(
    watch: Watch, path: str, layer: keras.Layer, values: dict[str, float], steps: Optional[int]
) -> list[tuple[str, str]]:
    """What is wrong with one layer: (kind, text).

    Args:
        values: quantity → value.
        steps: of the optimizer so far; None if nobody knows.
    """
    faults = []
    if values.get("not_finite"):
        faults.append(("not_finite", (
            f"the moving statistics of {values['not_finite']:.0%} of the channels are no numbers "
            "any more (NaN, infinite, or a negative variance). Inference gives NaN from now on, "
            "and no later batch mends it: go back to a checkpoint. bn_keras.BatchNorm leaves such "
            "batches out."
        )))
        return faults
    if values.get("skipped_batches"):
        faults.append(("skipped", (
            f"{values['skipped_batches']:.0f} batches of this epoch were left out of the moving "
            "statistics: they held NaN or infinite values, or one value for each channel."
        )))
    moves = moves_statistics(layer)
    if not moves and values.get("updated"):
        faults.append(("frozen", (
            "trainable=False, but its statistics moved: the model was compiled before it was "
            "frozen. Call model.compile again after freezing."
        )))
    still = moves and not values.get("updated", 1.0)
    if still and _has_initial_statistics(layer):
        faults.append(("never_updated", (
            "its moving statistics still are the initial 0 and 1, so inference normalizes "
            "nothing: no call of the layer has training=True."
        )))
    elif still and watch.in_batch_mode(path) and not values.get("affine_updated"):
        faults.append(("thawed", (
            "trainable=True, but nothing of it moved in this epoch: after setting trainable, call "
            "model.compile again."
        )))
    elif _lags(values):
        faults.append(("lag", _lag_in_words(layer, values, steps)))
    if values.get("inputs_not_finite"):
        of_data = watch.not_finite
        whose = "" if not of_data else (
            f", as {of_data} of the examples are" if of_data > 1 else ", as one of the examples is"
        )
        faults.append(("input", (
            f"what goes into it on the data that are looked at is NaN or infinite{whose}, so that "
            "nobody knows how far its statistics are from right ones."
        )))
    if values.get("dead_channels", 0.0) > MANY_DEAD and path in watch.rectified:
        faults.append(("dead", (
            f"{values['dead_channels']:.0%} of its channels never are above 0, so that the relu "
            "behind it gives 0 for every example: a learning rate too high, as a rule."
        )))
    if values.get("small_gammas", 0.0) > MANY_SMALL and values.get("affine_updated"):
        faults.append(("gamma", (
            f"gamma is below .001 in {values['small_gammas']:.0%} of its channels, which therefore "
            "carry nothing: weight decay or an L2 penalty on gamma, as a rule. Leave gamma out of "
            "it."
        )))
    return faults


def _lags(values: dict[str, float]) -> bool:
    far = values.get("mean_lag", 0.0) > LAG_DEVIATIONS or values.get("variance_lag", 1) > LAG_FACTOR
    return far and values["values"] >= LEAST_VALUES


def _lag_in_words(layer: keras.Layer, values: dict[str, float], steps: Optional[int]) -> str:
    text = (
        "the moving statistics are not those of the data: means are off by "
        f"{values['mean_lag']:.2f} standard deviations, variances by a factor of "
        f"{values['variance_lag']:.2f} (typical channel). Inference will be worse than training."
    )
    momentum = getattr(layer, "momentum", None)
    if isinstance(momentum, float) and momentum < 1 and steps is not None:
        needed = math.ceil(5 / (1 - momentum))  # e^-5 of the initial values is left then
        if steps < needed:
            text += (
                f" With momentum {momentum:g} they take some {needed} steps, and there were "
                f"{steps}: train longer, or take a lower momentum."
            )
    return text


def _has_initial_statistics(layer: keras.Layer) -> bool:
    mean, variance = (keras.ops.convert_to_numpy(getattr(layer, name))
                      for name in ("moving_mean", "moving_variance"))
    return bool((mean == 0).all() and (variance == 1).all())
