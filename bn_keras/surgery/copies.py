"""An independent copy of any built Keras model, with chosen layers exchanged on the way.

Surgeries start from `copy_model`. It copies the objects that a model consists of: layers,
variables, the nodes of a functional graph, lists and dicts of layers, closures of lambdas.

The other way is to build a model anew from its config, as `keras.models.clone_model` does. It knows
no subclassed model and no layer without a config; a composite layer makes its inner layers by its
own code, so that none can be exchanged; frozen sublayers thaw, two layers that shared a third get
one each, and weights have to be matched afterwards. Here each weight goes along with its layer, and
there is nothing to match. `copy.deepcopy` is no help: Keras sends it through a model file. The
price is that this file knows some of Keras's private parts, which `tests/layer/test_copies.py`
watches.

Every object is copied once and remembered by its identity, so what was shared stays shared. An
exchanged layer takes the old one's place in that memory: whatever refers to the old layer in the
model, an attribute, a list, a wrapper or a graph, refers to the new one in the copy.
"""

import collections
import contextlib
import copy
import functools
import types
import weakref
from typing import Any, Callable, Optional

import keras
from keras.src.ops.function import Function, make_node_key
from keras.src.ops.node import KerasHistory, Node
from keras.src.ops.symbolic_arguments import SymbolicArguments
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.tracking import Tracker

# What `compile` and `fit` leave in a model; the copy has the value of a model never compiled.
COMPILED = {
    "compiled": False,
    "loss": None,
    "_compile_loss": None,
    "_compile_metrics": None,
    "_loss_tracker": None,
    "train_function": None,
    "test_function": None,
    "predict_function": None,
}
COMPILED_ONLY = (
    "optimizer", "_compile_config", "_compiled_trainable_state", "history", "_eval_epoch_iterator",
)
# Immutable, or without a state of the model's.
SHARED = (
    type(None), bool, int, float, complex, str, bytes, type, type(Ellipsis), type(NotImplemented),
    slice, range, types.ModuleType, types.BuiltinFunctionType, types.CodeType, property,
)
SHARED_LIBRARIES = ("tensorflow", "jax", "jaxlib", "inspect", "_thread", "threading", "logging")
# Containers into which TensorFlow's tracking puts a layer's own ones → where those are.
WRAPPERS = {
    "ListWrapper": "_storage", "_DictWrapper": "__wrapped__", "_TupleWrapper": "__wrapped__",
}

# Layers that run another framework's or a stored graph's code, in which nobody can look for BN.
OPAQUE = tuple(
    getattr(keras.layers, name) for name in ("TFSMLayer", "TorchModuleWrapper", "JaxLayer")
)


# For a layer: None to have it copied, or the layer that takes its place.
Replace = Callable[[keras.Layer], Optional[keras.Layer]]


class NotCopyable(TypeError):
    """A part of the model cannot be copied; the message says which and why."""


def copy_model(model: keras.Model, replace: Optional[Replace] = None) -> keras.Model:
    """An independent copy of a built model: what happens to one does not touch the other.

    Shared layers stay shared. Weights, statistics, names, paths, `trainable` flags, dtype policies,
    regularizers, seeds and their state, call arguments in a functional graph and attributes of
    one's own are those of the model. What is not copied: the state of `compile`; nodes of other
    models that use the same layers; TensorFlow's lookup tables and data sets, which both share.

    Args:
        model: a built keras.Model of any kind: functional, Sequential, nested, subclassed.
        replace: None, or a function of a layer: None to have it copied, or the layer to stand in
            its place, with weights (`weights_by_name` moves them). It is asked once for each layer,
            outer ones first, also for those that Keras does not track, in a lambda for example.

    Returns:
        A model of the same class, not compiled. `copy.compile_from_config(
        model.get_compile_config())` compiles it like the model, with a new optimizer.

    Raises:
        TypeError: no keras.Model; or `NotCopyable`, with the layer, the attribute and the reason.
        ValueError: the model is not built.
    """
    return _copied(model, replace)[0]


def copy_with_parts(
    model: keras.Model, replace: Optional[Replace] = None
) -> tuple[keras.Model, list[tuple[Any, Any]]]:
    """A copy as `copy_model` makes it, and which part of it stands for which part of the model.

    Returns:
        `(copy, parts)`: parts has a pair `(of the model, of the copy)` for every layer and every
        keras.Variable, those that Keras does not track included, in no special order.

    Raises:
        TypeError: as `copy_model`.
        ValueError: as `copy_model`.
    """
    copy, copier = _copied(model, replace)
    return copy, copier.pairs((keras.Layer, keras.Variable))


def copy_layer(layer: keras.Layer) -> keras.Layer:
    """An independent copy of one layer, with all that it holds or refers to.

    Raises:
        TypeError: `NotCopyable`, as `copy_model`.
    """
    return _Copier(None).run(layer)


def _copied(model: keras.Model, replace: Optional[Replace]) -> tuple[keras.Model, "_Copier"]:
    check_model(model, "copy_model")
    strategy = getattr(model, "_distribute_strategy", None)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        copier = _Copier(replace)
        return copier.run(model), copier


def check_model(model: keras.Model, caller: str) -> None:
    """Raises unless a model is a keras.Model and built, as `copy_model` says."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"{caller}: received a {type(model).__name__}; expected a keras.Model (put a single "
            "layer into keras.Sequential([keras.Input(shape), layer]))."
        )
    if not model.built:
        raise ValueError(
            f"{caller}: {model.name!r} ({type(model).__name__}) is not built, so its layers do not "
            "all exist yet; expected a model that was called once on data, or built."
        )


def weights_by_name(old: keras.Layer, new: keras.Layer) -> None:
    """Builds a layer as another one was built, and gives it that layer's weights by their names.

    Raises:
        ValueError: names or shapes of the weights differ; nothing was assigned then.
    """
    new.build_from_config(old.get_build_config())
    olds, news = ({v.name: v for v in layer.variables} for layer in (old, new))
    if {n: tuple(v.shape) for n, v in olds.items()} != {n: tuple(v.shape) for n, v in news.items()}:
        raise ValueError(
            f"{old.name!r} has the weights {sorted(olds)}, {type(new).__name__} {sorted(news)}"
        )
    for name, variable in news.items():
        variable.assign(olds[name])
        variable.trainable = olds[name].trainable
        variable._path = olds[name].path
    new._path, new._parent_path = old._path, old._parent_path


class _Copier:
    """One copying: the memory of what was met, and what is still to be filled in."""

    def __init__(self, replace: Optional[Replace]) -> None:
        self._replace = replace
        # id → (object, kept so that nothing else gets its id; its copy)
        self._memory: dict[int, tuple[Any, Any]] = {}
        # (object, its shell, its layer): a graph is deep, so layers are filled one after the other.
        self._queue: list[tuple[Any, Any, Optional[keras.Layer]]] = []
        self._replaced: list[keras.Layer] = []
        # id of a weight of an exchanged layer that the new one does not have → which it is
        self._gone: dict[int, str] = {}
        self._owner: Optional[keras.Layer] = None  # that is being filled, for messages

    def run(self, model: keras.Layer) -> keras.Layer:
        # Layers first, so that the variables of exchanged ones are known to all others.
        for layer in model._flatten_layers():
            self(layer)
        while self._queue:
            self._fill(*self._queue.pop())
        self._connect()
        for x, new in self.pairs(Tracker):
            new.stored_ids = {
                name: {id(item) for item in store} for name, (_, store) in new.config.items()
            }
        for x, new in self.pairs(keras.optimizers.Optimizer):
            keys = map(new._var_key, new._trainable_variables)
            new._trainable_variables_indices = {key: i for i, key in enumerate(keys)}
        return self(model)

    def pairs(self, kind: type | tuple[type, ...]) -> list[tuple[Any, Any]]:
        return [pair for pair in self._memory.values() if isinstance(pair[0], kind)]

    def __call__(self, x: Any) -> Any:
        """The copy of an object; the same one whenever it is asked for."""
        if isinstance(x, SHARED):
            return x
        if id(x) in self._gone:
            raise TypeError(f"{self._gone[id(x)]}, which the new layer in its place does not have")
        if id(x) not in self._memory:
            self._memory[id(x)] = x, self._new(x)
        return self._memory[id(x)][1]

    def _keep(self, x: Any, new: Any) -> Any:
        self._memory[id(x)] = x, new
        return new

    def _new(self, x: Any) -> Any:
        kind = type(x)
        if isinstance(x, keras.Layer) and self._replace:
            new = self._replace(x)
            if new is not None:
                return self._exchanged(x, new)
        if isinstance(x, (keras.Operation, keras.Variable, keras.KerasTensor, Node, Tracker)):
            return self._later(x, object.__new__(kind))
        if kind is types.FunctionType:
            return self._function(x)
        if kind is types.CellType:
            return self._later(x, types.CellType())
        if kind is types.MethodType:
            return types.MethodType(self(x.__func__), self(x.__self__))
        if kind is functools.partial:
            keywords = {key: self(value) for key, value in x.keywords.items()}
            return functools.partial(self(x.func), *map(self, x.args), **keywords)
        if issubclass(kind, weakref.ref):
            return x if x() is None else weakref.ref(self(x()))
        if kind.__module__ == "tensorflow.python.trackable.data_structures":
            return kind(self(getattr(x, WRAPPERS[kind.__name__])))
        if issubclass(kind, (list, dict, set, frozenset, tuple)):
            return self._container(x)
        return self._object(x)

    def _exchanged(self, x: keras.Layer, new: keras.Layer) -> keras.Layer:
        self._replaced.append(x)
        new._called = x._called
        variables = {variable.name: variable for variable in new.variables}
        for variable in x.variables:
            other = variables.get(variable.name)
            if other is not None and tuple(other.shape) == tuple(variable.shape):
                self._keep(variable, other)
            else:
                self._gone[id(variable)] = f"it is {variable.name!r} of {x.name!r}"
        return new

    def _later(self, x: Any, shell: Any) -> Any:
        self._queue.append((x, shell, x if isinstance(x, keras.Layer) else self._owner))
        return shell

    def _fill(self, x: Any, shell: Any, owner: Optional[keras.Layer]) -> None:
        """Gives a shell what the object that it stands for has, copied."""
        self._owner = owner
        if isinstance(x, types.CellType):
            with contextlib.suppress(ValueError):  # a cell may be empty
                shell.cell_contents = self._part(x, "closure", x.cell_contents)
            return
        attributes = dict(vars(x))
        if isinstance(x, keras.Model):
            _forget_compile(attributes)
        if isinstance(x, keras.Layer):
            attributes.update(_losses=[], _loss_ids=set())
        if isinstance(x, keras.Variable):
            shell.__dict__["_value"] = copy.deepcopy(attributes.pop("_value"))
        for name in ("_inbound_nodes", "_outbound_nodes", "_keras_history"):
            attributes.pop(name, None)  # `_connect` makes them
        # Keras's and TensorFlow's lists of all parts last, so that an error names the attribute.
        for name in sorted(attributes, key=lambda name: (name[:6] == "_self_", name[:1] == "_")):
            shell.__dict__[name] = self._part(x, name, attributes[name])

    def _part(self, x: Any, name: str, value: Any) -> Any:
        try:
            return self(value)
        except NotCopyable:
            raise
        except Exception as error:
            owner = x if self._owner is None else self._owner
            raise NotCopyable(
                f"copy_model: {getattr(owner, 'name', '')!r} ({type(owner).__name__}) cannot be "
                f"copied: {name!r} of its {type(x).__name__} is a {type(value).__name__} "
                f"({type(error).__name__}: {error})"
            ) from error

    def _function(self, x: types.FunctionType) -> types.FunctionType:
        """The function itself, or another that refers to copies if it has state of the model."""
        if not _reaches_state(x, {}):
            return x
        closure = x.__closure__ and tuple(map(self, x.__closure__))
        new = self._keep(
            x, types.FunctionType(x.__code__, x.__globals__, x.__name__, None, closure)
        )
        new.__defaults__, new.__kwdefaults__ = self(x.__defaults__), self(x.__kwdefaults__)
        new.__qualname__, new.__doc__ = x.__qualname__, x.__doc__
        new.__dict__.update({key: self(value) for key, value in vars(x).items()})
        return new

    def _container(self, x: Any) -> Any:
        """A list, dict, set or tuple, or of a class derived from one, such as Keras's TrackedList.

        The methods of the base classes fill it: those of derived ones may do more than that.
        """
        kind: Any = type(x)
        base: Any
        if issubclass(kind, (tuple, frozenset)):
            items = [self(item) for item in x]
            same = all(new is old for new, old in zip(items, x, strict=True))
            base = tuple if issubclass(kind, tuple) else frozenset
            return x if same else base.__new__(kind, items)
        new = self._keep(x, kind.__new__(kind))
        if issubclass(kind, list):
            list.extend(new, [self(item) for item in x])
        elif issubclass(kind, set):
            set.update(new, [self(item) for item in x])
        else:
            base = collections.OrderedDict if issubclass(kind, collections.OrderedDict) else dict
            for key, value in x.items():
                base.__setitem__(new, self(key), self(value))
            if issubclass(kind, collections.defaultdict):
                new.default_factory = self(x.default_factory)
        for name, value in getattr(x, "__dict__", {}).items():
            new.__dict__[name] = self(value)
        return new

    def _object(self, x: Any) -> Any:
        """An object of any other class."""
        kind: Any = type(x)
        library = kind.__module__.partition(".")[0]
        if library == "tensorflow" and hasattr(x, "python_function"):
            raise TypeError(
                "a tf.function would go on running the given model; expected the plain function"
            )
        if library in SHARED_LIBRARIES and not _refers_to_state(x):
            return x
        if hasattr(kind, "__deepcopy__"):
            return copy.deepcopy(x)
        reduce = kind.__reduce_ex__, kind.__reduce__
        if reduce != (object.__reduce_ex__, object.__reduce__) and not issubclass(
            kind, KerasSaveable
        ):
            return copy.deepcopy(x)
        try:
            new = self._keep(x, object.__new__(kind))
        except TypeError:  # a class written in C: as pickle does it, or not at all
            return copy.deepcopy(x)
        for name, value in _state(x).items():
            object.__setattr__(new, name, self._part(x, name, value))
        return new

    def _connect(self) -> None:
        """Gives layers, tensors and functional models the part of the graph that is copied.

        A layer lists the nodes of all its calls, also those of other models; only nodes of copied
        models stay, so that the copy is not tied to half of somebody's session.
        """
        new_layers = {id(self._memory[id(x)][1]) for x in self._replaced}
        for _, node in self.pairs(Node):
            if id(node.operation) in new_layers:
                _drop_unknown(node)
        functions = self.pairs(Function)
        ours = {
            id(node) for x, _ in functions for nodes in x._nodes_by_depth.values() for node in nodes
        }
        index = {}  # (id of an operation, index of a node) → index in the copy
        for x, new in self.pairs(keras.Operation):
            for name in ("_inbound_nodes", "_outbound_nodes"):
                nodes = [node for node in getattr(x, name) if id(node) in ours]
                new.__dict__[name] = [self(node) for node in nodes]
            stays = [i for i, node in enumerate(x._inbound_nodes) if id(node) in ours]
            index.update({(id(x), old): new for new, old in enumerate(stays)})
        for x, new in self.pairs(keras.KerasTensor):
            history = getattr(x, "_keras_history", None)
            if history is None:
                continue
            place = index.get((id(history.operation), history.node_index))
            new._keras_history = KerasHistory(None, 0, 0) if place is None else KerasHistory(
                self(history.operation), place, history.tensor_index
            )
        for x, new in functions:
            new.__dict__["_nodes"] = {
                make_node_key(node.operation, node.operation._inbound_nodes.index(node))
                for nodes in new._nodes_by_depth.values() for node in nodes
            }


def _drop_unknown(node: Node) -> None:
    """Drops what an exchanged layer does not take from a call of it: Keras notes `mask=None`."""
    parameters, given = node.operation._call_signature.parameters, node.arguments.kwargs
    known = {
        name: value for name, value in given.items() if value is not None or name in parameters
    }
    if len(known) < len(given):
        node.arguments = SymbolicArguments(*node.arguments.args, **known)


def _refers_to_state(x: object) -> bool:
    """Whether an object of a library is the model's own: a tf.Variable, or a note to track one."""
    return hasattr(x, "assign") or type(x).__name__ == "TrackableReference"


def _forget_compile(attributes: dict[str, Any]) -> None:
    """Takes the state of `compile` and `fit` out of a model's attributes."""
    for name in COMPILED_ONLY:
        attributes.pop(name, None)
    attributes.update({name: v for name, v in COMPILED.items() if name in attributes})
    # TensorFlow's list of what a checkpoint is to hold has it too.
    names, references = "_self_unconditional_dependency_names", (
        "_self_unconditional_checkpoint_dependencies"
    )
    if names in attributes:
        gone = {*COMPILED_ONLY, *COMPILED}
        attributes[names] = {n: v for n, v in attributes[names].items() if n not in gone}
        attributes[references] = [r for r in attributes[references] if r.name not in gone]


def _reaches_state(x: Any, seen: dict[int, Any]) -> bool:
    """Whether a function, or what it closes over, leads to a layer or a variable."""
    if isinstance(x, SHARED) or id(x) in seen:
        return False
    if isinstance(x, (keras.Operation, keras.Variable)):
        return True
    seen[id(x)] = x
    parts: list[Any]
    if isinstance(x, types.FunctionType):
        parts = [x.__closure__, x.__defaults__, x.__kwdefaults__, vars(x)]
    elif isinstance(x, types.MethodType):
        parts = [x.__func__, x.__self__]
    elif isinstance(x, types.CellType):
        try:
            parts = [x.cell_contents]
        except ValueError:
            parts = []
    elif isinstance(x, functools.partial):
        parts = [x.func, x.args, x.keywords]
    elif isinstance(x, dict):
        parts = [*x.keys(), *x.values()]
    elif isinstance(x, (list, tuple, set, frozenset)):
        parts = list(x)
    elif type(x).__module__.partition(".")[0] in SHARED_LIBRARIES:
        parts = []
    else:
        parts = list(_state(x).values())
    return any(_reaches_state(part, seen) for part in parts)


def _state(x: object) -> dict[str, Any]:
    """The attributes of an object, in its dict and its slots."""
    slots: list[str] = []
    for kind in type(x).__mro__:
        names = vars(kind).get("__slots__", ())
        slots += [names] if isinstance(names, str) else names
    hidden = {
        name: getattr(x, name) for name in slots
        if name not in ("__dict__", "__weakref__") and hasattr(x, name)
    }
    return {**hidden, **getattr(x, "__dict__", {})}
