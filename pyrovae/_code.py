"""Machine code of graphs, by inductor, which draws the same random numbers as everybody else."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from pyrovae._compat.torch import machine_code, schema_of
from pyrovae._interrupt import uninterrupted

Run = Callable[..., Sequence[Any]]
_COMPILED: dict[Any, Run] = {}  # by code and shapes: models of one architecture share machine code
_MAX_KEPT = 64  # of them at most, those used last


def compiled(module: GraphModule, *inputs: Tensor) -> Run:
    """The graph as machine code. It keeps reading the module's tensors.

    Random operations stay whole, and in order: inductor would take some apart, and move others past each other, into
    other draws. They run between parts of the code, early where nothing that they need is computed there.

    Code is kept by graph and shapes, that of the last 64, and by inductor itself on the disk. Ctrl-C waits for the end.

    Args:
        module: from :func:`~pyrovae._graph.trace`.
        inputs: tensors of the shapes that it will take.

    Raises:
        Exception: whatever inductor raises, e.g. where there is no C++ compiler.
    """
    graph, constants = _lifted(module)
    _prepare(graph)
    every = (*constants, *inputs)
    key = (graph.python_code("self").src, *((t.shape, t.stride(), t.dtype, t.device) for t in every))
    code = _COMPILED.pop(key, None) or _compiled(graph, every)
    _COMPILED[key] = code  # behind those that were used before it
    if len(_COMPILED) > _MAX_KEPT:
        del _COMPILED[next(iter(_COMPILED))]
    return lambda *tensors: code(*constants, *tensors)


def is_random(target: Any) -> bool:
    """Whether an operation draws from torch's generators."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def attribute(module: torch.nn.Module, target: str) -> Tensor:
    """What a ``get_attr`` node reads."""
    return operator.attrgetter(target)(module)


@uninterrupted()
def _compiled(graph: Graph, inputs: Sequence[Tensor]) -> Run:
    """The parts of a graph without tensors of its own, one after another."""
    placeholders = graph.find_nodes(op="placeholder")
    examples = dict(zip(placeholders, inputs, strict=True))
    device = next((t.device.type for t in inputs if t.device.type != "cpu"), "cpu")
    results: Any = graph.output_node().args[0]
    steps: list[tuple[Run, list[Node], list[Node]]] = []
    for random, nodes in _parts(graph):
        inside = set(nodes)
        needs = list(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside))
        gives = [node for node in nodes if any(user not in inside for user in node.users)]
        part: Any = _part(nodes, needs, gives)
        if not random:
            part = machine_code(part, [examples[n] if n in examples else _example(n) for n in needs], device)
        steps.append((part, needs, gives))

    def run(*tensors: Tensor) -> Sequence[Any]:
        values: dict[Node, Any] = dict(zip(placeholders, tensors, strict=True))
        for function, needs, gives in steps:
            values.update(zip(gives, function(*[values[n] for n in needs]), strict=True))
        return [values[r] if isinstance(r, Node) else r for r in results]

    return run


def _parts(graph: Graph) -> list[tuple[bool, list[Node]]]:
    """The operations in turns, those that are random and those that are not. Either keep their order.

    What is random comes before the code around it where it does not matter: where it takes nothing that this code
    makes, reads no memory that this code has written to, and writes to none that this code has used.
    """
    turns: list[list[Node]] = [[], []]  # random, not, random, not
    turn: dict[Node, int] = dict.fromkeys(graph.find_nodes(op="placeholder"), -1)
    memory: dict[Node, set[Node]] = {node: {node} for node in turn}  # by the nodes that it may have come from
    used, written = set[Node](), set[Node]()  # by the code of the last turn
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        code = len(turns) - 1
        reads, writes, memory[node] = _effects(node, memory)
        if is_random(node.target):
            # Memory that nobody has touched, which it fills, comes along.
            empty = [n for n in node.all_input_nodes if turn[n] == code and n.target in _EMPTY and n not in used]
            made = any(turn[n] == code and n not in empty for n in node.all_input_nodes)
            if made or reads & written or writes & (used | written):
                turns += [[], []]
                used, written, empty, code = set(), set(), [], code + 2
            for n in empty:
                turns[code].remove(n)
            turns[code - 1] += [*empty, node]
            turn |= dict.fromkeys([*empty, node], code - 1)
        elif node.target is operator.getitem and turn[node.all_input_nodes[0]] % 2 == 0:  # a result of what is random
            turn[node] = turn[node.all_input_nodes[0]]
            turns[turn[node]].append(node)
        else:
            turns[code].append(node)
            turn[node] = code
            used |= reads
            written |= writes
    return [(i % 2 == 0, nodes) for i, nodes in enumerate(turns) if nodes]


_EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default)


def _effects(node: Node, memory: dict[Node, set[Node]]) -> tuple[set[Node], set[Node], set[Node]]:
    """The memory that an operation reads, that it writes to, and that its results may be in, by its schema."""
    reads = set[Node]().union(*(memory[n] for n in node.all_input_nodes))
    schema = schema_of(node.target)
    if schema is None:  # one of several results
        return reads, set(), reads
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    writes, shared = set[Node](), set[Node]()
    for argument in schema.arguments:
        if argument.alias_info is not None:
            inside = list[Node]()
            map_arg(given.get(argument.name), inside.append)
            own = set[Node]().union(*(memory[n] for n in inside))
            shared |= own
            writes |= own if argument.alias_info.is_write else set()
    return reads, writes, shared or {node}


def _part(nodes: list[Node], needs: list[Node], gives: list[Node]) -> GraphModule:
    graph = Graph()
    copies = {n: graph.placeholder(n.name) for n in needs}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[n] for n in gives])
    return GraphModule(torch.nn.Module(), graph)


def _example(node: Node) -> Tensor:
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _lifted(module: GraphModule) -> tuple[Graph, list[Tensor]]:
    """The same graph with the tensors that it holds as its first inputs, and these tensors."""
    graph = Graph()
    held = [node for node in module.graph.nodes if node.op == "get_attr"]
    targets = list(dict.fromkeys(node.target for node in held))
    inputs = {target: graph.placeholder(f"held_{i}") for i, target in enumerate(targets)}
    copies = {node: inputs[node.target] for node in held}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph, [attribute(module, target).detach() for target in targets]


def _prepare(graph: Graph) -> None:
    """Three rewritings that change no result.

    ``addmm`` becomes a product and a sum: on a CPU it first copies the bias into every row, which a kernel that has to
    pass over the rows anyway, for the activation say, does for nothing. Random numbers and empty memory "like" a tensor
    become those of its shape, for which it need not be computed before. What convolutions take becomes contiguous, so
    that what they give is: of other layouts cuDNN gives other strides than those that were traced.
    """
    aten = torch.ops.aten
    alike = {
        aten.empty_like.default: aten.empty.memory_format,
        aten.rand_like.default: aten.rand.default,
        aten.randn_like.default: aten.randn.default,
    }
    contiguous: dict[str, Any] = {"memory_format": torch.contiguous_format}
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            new: Any
            if node.target is aten.addmm.default and not node.kwargs:
                bias, left, right = node.args
                product: Any = graph.call_function(aten.mm.default, (left, right))
                new = graph.call_function(aten.add.Tensor, (product, bias))
                product.meta |= node.meta
            elif node.target in alike and node.meta["val"].is_contiguous() and _is_dense(node.args[0]):
                value = node.meta["val"]
                options = {"dtype": value.dtype, "device": value.device}
                new = graph.call_function(alike[node.target], (list(value.shape),), options)
            elif node.target in (aten.convolution.default, aten.convolution_backward.default):
                for source in node.all_input_nodes:
                    if "val" in source.meta and not source.meta["val"].is_contiguous():
                        whole = graph.call_function(aten.clone.default, (source,), contiguous)
                        whole.meta["val"] = source.meta["val"].contiguous()
                        node.replace_input_with(source, whole)
                continue
            else:
                continue
        new.meta |= node.meta
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _is_dense(node: Any) -> bool:
    return "val" in node.meta and node.meta["val"].is_contiguous()


def fold(module: GraphModule, *, of: Callable[[Tensor], bool] | None = None) -> None:
    """Compute in advance what depends on no input; with ``of``, what depends on nothing but such tensors held."""
    held = {node: attribute(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
    known: dict[Node, Any] = {node: value for node, value in held.items() if of is None or of(value)}
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    shared = True
    for node in calls:
        constant = [used in known for used in node.all_input_nodes]
        if is_random(node.target) or node.is_impure():  # what it changes in place must be made anew every time
            shared = shared and not any(constant)
        elif all(constant) and (constant or of is None):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    if shared:
        for i, node in enumerate(n for n in calls if isinstance(known.get(n), Tensor)):
            if not all(user in known for user in node.users):  # only the last of a chain is read
                _replace(module, node, f"_folded_{i}", known[node])
        module.graph.eliminate_dead_code()
    module.recompile()


def move_constants(module: GraphModule, device: torch.device) -> None:
    """Tensors that the graph holds on a CPU, such as those that a program makes of numbers, to the device where they
    are needed, once instead of at every call.
    """
    fold(module, of=lambda held: held.device.type == "cpu")
    held = module.graph.find_nodes(op="get_attr")
    for i, node in enumerate(n for n in held if attribute(module, n.target).device.type == "cpu"):
        _replace(module, node, f"_moved_{i}", attribute(module, node.target).to(device))
    module.graph.eliminate_dead_code()
    module.recompile()


def _replace(module: GraphModule, node: Node, name: str, value: Tensor) -> None:
    setattr(module, name, value)
    with module.graph.inserting_before(node):
        new = module.graph.create_node("get_attr", name)
    new.meta |= node.meta
    node.replace_all_uses_with(new)
