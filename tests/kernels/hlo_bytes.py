"""How many bytes a compiled step moves, read off its optimised HLO: what each of its kernels reads and writes.

A kernel is an instruction of the entry computation. It writes its results and reads of its operands what it uses: of
one that is sliced or gathered from, as much as comes out; of one that is updated in place, nothing. Every access counts
as one of the memory: what the L2 cache saves, and what tiles read twice, is not in the HLO.
"""

from __future__ import annotations

import dataclasses
import math
import re

_DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "f8e4m3fn": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_NO_KERNEL = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant"}
_PART_OF_FIRST = {"slice", "dynamic-slice", "gather"}
_IN_PLACE = {"scatter": 2, "dynamic-update-slice": 1}  # which operand the update is
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)(.*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
      shapes: (dtype, dimensions) of its results. calls: the computation that a fusion runs. number: of a parameter.
    """

    name: str
    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    calls: str | None
    number: int | None
    is_root: bool

    @property
    def num_elements(self) -> int:
        return sum(math.prod(dims) for _, dims in self.shapes)

    @property
    def num_bytes(self) -> int:
        return sum(_DTYPE_BYTES[dtype] * math.prod(dims) for dtype, dims in self.shapes)

    def has_shape(self, dimensions: tuple[int, ...] | None) -> bool:
        """Whether one of the results has these dimensions."""
        return any(dims == dimensions for _, dims in self.shapes)

    @property
    def is_kernel(self) -> bool:
        return self.kind not in _NO_KERNEL


Computation = dict[str, Instruction]
"""Instructions by name, in order."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one kernel moves: of the step's parameters (weights, cache), and of what other kernels made or will read."""

    kernel: str
    parameter_bytes: float
    activation_bytes: float


def parse(hlo: str) -> dict[str, Computation]:
    """The computations of a module by name; the entry computation's is "ENTRY"."""
    computations = {}
    for block in re.split(r"\n(?=%|ENTRY )", hlo)[1:]:
        name = "ENTRY" if block.startswith("ENTRY") else block[1:].split(" ", 1)[0]
        instructions = (_instruction(*match.groups()) for match in _INSTRUCTION.finditer(block))
        computations[name] = {instruction.name: instruction for instruction in instructions}
    return computations


def traffic(
    computations: dict[str, Computation], cache_shape: tuple[int, ...] | None = None, kv_bytes: int = 0
) -> list[Traffic]:
    """What the kernels of a step move, in order.

    Args:
      computations: a parsed module.
      cache_shape: of one layer's keys or values, if the step has them. A Mosaic kernel that takes caches and gives none
        back attends over `kv_bytes` of them. One that gives them back has written its other operands into them.
    """
    entry = computations["ENTRY"]
    found = []
    for instruction in filter(lambda instruction: instruction.is_kernel, entry.values()):
        operands = [entry[name] for name in instruction.operands]
        if instruction.kind == "fusion":
            assert instruction.calls is not None
            read, written = _fusion_bytes(computations[instruction.calls])
        elif instruction.kind == "custom-call":
            read, written = _custom_call_bytes(instruction, operands, cache_shape, kv_bytes)
        else:
            read, written = [operand.num_bytes for operand in operands], instruction.num_bytes
        of_parameters = sum(
            num_bytes
            for operand, num_bytes in zip(operands, read, strict=True)
            if _source(operand, entry).kind == "parameter" or operand.has_shape(cache_shape)
        )
        found.append(Traffic(instruction.name, of_parameters, sum(read) - of_parameters + written))
    return found


def _instruction(root: str | None, name: str, types: str, kind: str, operands: str, attributes: str) -> Instruction:
    shapes = tuple(
        (dtype, tuple(map(int, dims.split(","))) if dims else ())
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", types)
    )
    names = tuple(re.findall(r"%([\w.-]+)", operands))
    calls = re.search(r"calls=%([\w.-]+)", attributes)
    number = int(operands) if kind == "parameter" else None
    return Instruction(name, kind, shapes, names, calls[1] if calls else None, number, root is not None)


def _source(instruction: Instruction, computation: Computation) -> Instruction:
    """What an instruction is another view of."""
    while instruction.kind == "bitcast":
        instruction = computation[instruction.operands[0]]
    return instruction


def _custom_call_bytes(
    call: Instruction, operands: list[Instruction], cache_shape: tuple[int, ...] | None, kv_bytes: int
) -> tuple[list[float], float]:
    """Bytes read of each operand, and written: of our kernels, from their contracts."""
    is_cache = [operand.has_shape(cache_shape) for operand in operands]
    in_place = call.has_shape(cache_shape)
    of_cache = 0.0 if in_place or not any(is_cache) else kv_bytes / sum(is_cache)
    read = [of_cache if cache else operand.num_bytes for cache, operand in zip(is_cache, operands, strict=True)]
    return read, sum(read) if in_place else call.num_bytes


def _fusion_bytes(body: Computation) -> tuple[list[float], float]:
    """Bytes read of each operand, and written, of a fusion that computes `body`."""
    used = _used_shares(body)
    parameters = sorted((x for x in body.values() if x.number is not None), key=lambda parameter: parameter.number or 0)
    read = [used.get(parameter.name, 0.0) * parameter.num_bytes for parameter in parameters]
    (root,) = (instruction for instruction in body.values() if instruction.is_root)
    results = [body[name] for name in root.operands] if root.kind == "tuple" else [root]
    return read, sum(_written_bytes(_source(result, body), body) for result in results)


def _written_bytes(result: Instruction, body: Computation) -> int:
    if result.kind in _IN_PLACE:
        return body[result.operands[_IN_PLACE[result.kind]]].num_bytes
    return result.num_bytes


def _used_shares(body: Computation) -> dict[str, float]:
    """Of the elements of each instruction, the share that the results depend on."""
    used = {instruction.name: 1.0 for instruction in body.values() if instruction.is_root}
    for instruction in reversed(body.values()):
        share = used.get(instruction.name, 0.0)
        for place, name in enumerate(instruction.operands):
            so_far = used.get(name, 0.0)
            if place == 0 and instruction.kind in _PART_OF_FIRST:
                # Parts are taken side by side, not twice.
                used[name] = min(1.0, so_far + share * instruction.num_elements / body[name].num_elements)
            elif place != 0 or instruction.kind not in _IN_PLACE:
                used[name] = max(so_far, share)
    return used
