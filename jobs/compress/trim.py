"""What a model file holds beside the model: names, notes, the same constant several times.

In a file of some ten kilobytes that is a tenth of it. Only what the runtime never looks at goes; the names of the
input and of the output stay.
"""

import itertools
import string
from collections.abc import Iterator
from typing import Any

_DIGITS = string.ascii_letters + string.digits


def trim(model: Any) -> None:
    """Takes out of a model, in place, what is not the model. The outputs stay the same, to the bit.

    Notes, inferred shapes, names of nodes, domains that no node is of, constants that are there twice or unused;
    tensors get names of one to three letters. Graphs within nodes are left alone, and then names are too.
    """
    graph = model.graph
    graph.ClearField("value_info")
    graph.ClearField("quantization_annotation")
    model.ClearField("functions")
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    model.producer_name, model.producer_version = "thresher", ""
    _drop_domains(model)
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return
    _merge_constants(graph)
    _sort(graph)
    _rename(graph)


def _drop_domains(model: Any) -> None:
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _merge_constants(graph: Any) -> None:
    """Lets constants that are equal be one: zero points and scales are, many times over."""
    outputs = {value.name for value in graph.output}
    first: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    for tensor in graph.initializer:
        content = tensor.__class__()
        content.CopyFrom(tensor)
        content.ClearField("name")
        name = first.setdefault((content.SerializeToString(deterministic=True),), tensor.name)
        if name != tensor.name and tensor.name not in outputs:
            instead[tensor.name] = name
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    used = {name for node in graph.node for name in node.input} | outputs
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _sort(graph: Any) -> None:
    """Puts the nodes in an order in which each follows all that it needs, as ONNX asks; else as they were."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    needs = [sorted({makers[name] for name in node.input if name in makers}) for node in graph.node]
    done: dict[int, None] = {}
    for start in range(len(graph.node)):
        waiting = [start]
        while waiting:
            missing = [place for place in needs[waiting[-1]] if place not in done]
            if missing:
                waiting.append(missing[0])
            else:
                done.setdefault(waiting.pop())
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes[place] for place in done)


def _rename(graph: Any) -> None:
    kept = {value.name for value in (*graph.input, *graph.output)}
    fresh = (name for name in _short_names() if name not in kept)
    names: dict[str, str] = {"": "", **{name: name for name in kept}}

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(fresh)
        return names[name]

    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(_DIGITS, repeat=length):
            if not letters[0].isdigit():
                yield "".join(letters)
