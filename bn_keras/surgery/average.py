"""Averaging the weights of several models of one structure, with statistics that fit the average.

    soup, certificate = average([one, other], data=(x, y))

The moving statistics of a model are those of what its own weights give. An average of weights gives
something else, so its statistics have to be computed anew (Izmailov et al. 2018, stochastic weight
averaging, section 3.2). Merged ones are right where the weights are equal, for example of copies of
one model that gathered statistics on several machines, and all that can be had where the data must
not leave their place (federated learning).
"""

import itertools
import warnings
from typing import Any, Optional, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras.surgery import copies, recalibrate, scores, statistics
from bn_keras.surgery.certificate import Certificate, Row, certificate_of, paths
from bn_keras.surgery.surgeon import name_of

FROM_THE_FIRST, MERGED = "from the first model", "merged"
# Settings of a layer that may differ: they do not change what the layer computes.
OF_NO_MATTER = ("name", "trainable", "seed", "build_config")
TOLD = 60  # characters of a setting in a message


def average(
    models: Sequence[keras.Model], weights: Optional[Sequence[float]] = None, data: Any = None, *,
    counts: Optional[Sequence[float]] = None, batch_size: int = recalibrate.BATCH_SIZE,
    in_one_pass: bool = False, inputs: Any = None,
) -> tuple[keras.Model, Certificate]:
    """A model whose weights are the average of those of several models.

    >>> one, other = (keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]) for _ in "ab")
    >>> for model, value in ((one, 1.0), (other, 4.0)):
    ...     _ = model.layers[0].kernel.assign([[value]])
    >>> model, _ = average([one, other], weights=[2, 1])
    >>> float(model.layers[0].kernel.numpy()[0, 0])
    2.0

    Args:
        models: keras.Models, built, of the same structure: layers of the same classes with the same
            settings, in the same order. Names do not count.
        weights: of each model in the average; they are divided by their sum. None for equal ones.
        data: the training set, in a form that `Examples` takes: population statistics are computed
            over it, as `recalibrate` does. None merges those of the models.
        counts: how many examples the statistics of each model are of, for merging; None for
            `weights`.
        batch_size: of arrays in `data`.
        in_one_pass: compute the statistics as `recalibrate_in_one_pass` does, for a generator.
        inputs: what the first model and the new one are called on for the certificate; None for the
            first batch of `data`, or random values.

    Returns:
        `(new model, certificate)`. The model is a copy of the first one, not compiled. Weights,
        frozen or not, are averaged in float64. Population statistics are computed, or merged with
        the spread of the means, as `statistics.merge` does. All other state, such as that of random
        generators, counters or adapted preprocessing, is that of the first model: a row for each
        such variable says whether the models agree. The figures are those of `recalibrate` where
        there are data; `before` is then the average with merged statistics.

    Raises:
        TypeError: no models, or one that cannot be copied.
        ValueError: fewer than one model; one that is not built, or that has NaN or infinity in its
            weights, or in statistics that are to be merged; models of different structure, with the
            first difference; or weights and counts that are none.

    Warns:
        UserWarning: statistics were merged though the weights differ: they belong to what each
            model gives, and not to what the average gives.
    """
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    if not models:
        raise ValueError("average: received no models; expected at least one.")
    for model in models:
        copies.check_model(model, "average")
    _refuse_not_finite(models, statistics_too=data is None)
    shares = _shares("weights", weights, len(models))
    sizes = shares if counts is None else _shares("counts", counts, len(models))
    copy, parts = copies.copy_with_parts(models[0])
    _refuse_untracked(copy, parts)
    for number, model in enumerate(models[1:], 2):
        difference = _difference(models[0], model)
        if difference:
            raise ValueError(
                f"average: model {number} has another structure than the first one: {difference}; "
                "expected models that were built alike."
            )
    differ, state_rows = _average_weights(copy, models, shares)
    rows, figures = _merge_statistics(copy, models, sizes), {}
    if data is not None:
        merged = copy
        copy, rows, enough, source = recalibrate.computed(
            "average", merged, data, batch_size, in_one_pass
        )
        named = {f"model {number}": model for number, model in enumerate(models, 1)}
        figures = scores.judged(models[0], {**named, "before": merged, "after": copy}, source)
        figures |= enough
        inputs = source.first if inputs is None else inputs
    elif rows and differ:
        warnings.warn(
            f"average: the merged statistics of {models[0].name!r} belong to what each model gives "
            "for its data, not to what the average gives; expected data=, over which they are "
            "computed anew. Merging is right for models of equal weights, and the way out where "
            "nobody may see the data.", UserWarning, stacklevel=2,
        )
    figures["shares"] = [round(float(share), 6) for share in shares]
    return copy, certificate_of(
        "average", models[0], copy, [*rows, *state_rows], inputs=inputs, figures=figures
    )


def _refuse_not_finite(models: Sequence[keras.Model], statistics_too: bool) -> None:
    """Raises for a model that would spoil the average.

    Raises:
        ValueError: NaN or infinity is in its weights, or in its statistics where they count.
    """
    for number, model in enumerate(models, 1):
        of_statistics = {
            id(variable) for layer in statistics.batch_normalizers(model)
            for variable in statistics.variables_of(layer)
        }
        for variable in model.variables:
            counts = statistics_too or id(variable) not in of_statistics
            if counts and "float" in variable.dtype and not keras.ops.all(
                keras.ops.isfinite(variable)
            ):
                remedy = "data=, over which statistics are computed anew" if (
                    id(variable) in of_statistics) else "an earlier checkpoint of it"
                raise ValueError(
                    f"average: model {number} has NaN or infinity in {variable.path}; expected "
                    f"numbers, or {remedy}."
                )


def _shares(name: str, given: Optional[Sequence[float]], number: int) -> NDArray[np.float64]:
    """Weights that add up to 1."""
    values = np.ones(number) if given is None else np.asarray(given, np.float64)
    if values.shape != (number,) or not np.isfinite(values).all() or (values < 0).any() or (
        not values.sum() > 0
    ):
        raise ValueError(
            f"average: {name}={given!r} for {number} models; expected {number} numbers of at least "
            "0, not all of them 0."
        )
    return values / values.sum()


def _difference(one: keras.Model, other: keras.Model) -> Optional[str]:
    """The first difference between the structures of two models; None if they are alike."""
    names = paths(one)
    for layer, rival in itertools.zip_longest(one._flatten_layers(), other._flatten_layers()):
        if layer is None or rival is None:
            more, which = (rival, "it") if layer is None else (layer, "the first one")
            return f"{which} has a {name_of(type(more))} more, {more.name!r}"
        place = names[id(layer)] or layer.name
        if type(layer) is not type(rival):
            kinds = [name_of(type(x)) for x in (rival, layer)]
            return f"in the place of {place!r}, {kinds[0]} for {kinds[1]}"
        ones, others = ([(v.name, tuple(v.shape)) for v in _own_variables(x)]
                        for x in (layer, rival))
        for mine, its in itertools.zip_longest(ones, others):
            if mine != its:
                return f"in the place of {place!r}, the weight {its} for {mine}"
        mine, its = _settings(layer), _settings(rival)
        for key in sorted(mine.keys() | its.keys()):
            if mine.get(key) != its.get(key):
                told = [repr(settings.get(key))[:TOLD] for settings in (its, mine)]
                return (
                    f"in the place of {place!r} ({name_of(type(layer))}), {key}={told[0]} for "
                    f"{told[1]}"
                )
    return None


def _settings(layer: keras.Layer) -> dict[str, Any]:
    """What a layer computes, as far as its config says; the layers in it speak for themselves."""
    if layer._layers:
        return {}
    try:
        config = layer.get_config()
    except Exception:  # a layer of somebody's own
        return {}

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(value) for key, value in part.items()
                    if key not in OF_NO_MATTER and not str(key).endswith("_initializer")}
        return [plain(one) for one in part] if isinstance(part, (list, tuple)) else part

    found: dict[str, Any] = plain(config)
    return found


def _refuse_untracked(copy: keras.Model, parts: list[tuple[Any, Any]]) -> None:
    """Raises for layers with weights that Keras does not track, as in a lambda."""
    tracked = {id(variable) for variable in copy.variables}
    for _, layer in parts:
        if isinstance(layer, keras.Layer) and any(id(v) not in tracked for v in layer.weights):
            raise ValueError(
                f"average: {layer.name!r} ({name_of(type(layer))}) is not tracked by Keras, so "
                "that nobody can say which layer of the other models belongs to it; expected a "
                "model whose layers are all in model.layers or in its layers."
            )


def _own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The variables of a layer itself."""
    return [
        *layer._trainable_variables, *layer._non_trainable_variables,
        *(generator.state for generator in layer._seed_generators),
    ]


def _average_weights(
    copy: keras.Model, models: list[keras.Model], shares: NDArray[np.float64]
) -> tuple[bool, list[Row]]:
    """Gives a copy the averaged weights.

    Returns:
        Whether they differ between the models, and a row for each variable that is neither a weight
        nor a statistic.
    """
    names, differ, rows = paths(copy), False, []
    layers = (model._flatten_layers() for model in (copy, *models))
    for layer, *theirs in zip(*layers, strict=True):
        of_statistics = {id(variable) for variable in statistics.variables_of(layer)}
        is_weight = {id(variable) for variable in layer._trainable_variables}
        if statistics.is_batch_normalizer(layer):  # a frozen gamma may have been made as no weight
            is_weight |= {id(getattr(layer, name, None)) for name in ("gamma", "beta")}
        for variable, *others in zip(*map(_own_variables, (layer, *theirs)), strict=True):
            if id(variable) in of_statistics:
                continue
            values = [keras.ops.convert_to_numpy(other) for other in others]
            agree = all(np.array_equal(values[0], value) for value in values[1:])
            if id(variable) in is_weight and "float" in variable.dtype:
                differ = differ or not agree
                wide = np.stack([value.astype(np.float64) for value in values])
                variable.assign(np.tensordot(shares, wide, 1))
                continue
            kind = name_of(type(layer))
            told = "equal in all" if agree else "it differs between the models"
            note = f"{variable.name}: {told}"
            rows.append(Row(names[id(layer)], kind, kind, FROM_THE_FIRST, note))
    return differ, rows


def _merge_statistics(
    copy: keras.Model, models: list[keras.Model], sizes: NDArray[np.float64]
) -> list[Row]:
    """Gives a copy the merged statistics."""
    if not statistics.batch_normalizers(copy):
        return []
    own = statistics.snapshot(copy)
    given = [  # the models are alike, whatever their layers are called
        (dict(zip(own, statistics.snapshot(model).values(), strict=True)), float(size))
        for model, size in zip(models, sizes) if size > 0
    ]
    statistics.restore(copy, statistics.merge(given))
    names, rows = paths(copy), []
    pairs = zip(statistics.batch_normalizers(models[0]), statistics.batch_normalizers(copy))
    for first, layer in pairs:
        (shift, factor), = statistics.difference(
            statistics.snapshot(first), statistics.snapshot(layer)
        ).values()
        kind = name_of(type(layer))
        rows.append(Row(
            names[id(layer)], kind, kind, MERGED,
            f"away from the first model's: mean by {shift:.2g} standard deviations, variance by a "
            f"factor {factor:.2g}",
        ))
    return rows
