"""Translates PTX, what nvcc makes of a kernel, to C++: a function for each kernel, a statement for each instruction.

Registers become local variables, branches ``goto``, and what reaches beyond the thread (memory, other lanes) a call of
machine.h. What is not known here is an error that names it, so nothing is executed by a guess; most instructions are
a line of ``PLAIN``. Floating-point instructions without a rounding mode are unknown on purpose: the assembler may fuse
them, and the bits would differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TYPES = {
    "pred": "bool", "f32": "float", "f64": "double",
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
}  # fmt: skip

# d = f(a, b, c), all of the instruction's type but where another is named. Integers that wrap are taken unsigned.
PLAIN = {
    "mov": "a",
    "add": "a + b", "sub": "a - b", "mul.lo": "1u * a * b", "mad.lo": "1u * a * b + c", "neg": "0u - a",
    "add.rn": "a + b", "sub.rn": "a - b", "mul.rn": "a * b", "div.rn": "a / b", "rcp.rn": "1 / a",
    "fma.rn": "std::fma(a, b, c)", "sqrt.rn": "std::sqrt(a)", "neg.float": "-a",
    "abs": "a < 0 ? -a : a", "abs.float": "std::fabs(a)", "min": "least(a, b)", "max": "greatest(a, b)",
    "mul.wide": "wide(a) * wide(b)", "mad.wide": "wide(a) * wide(b) + c", "mul.hi": "high_product(a, b)",
    "div": "quotient(lane, place, a, b)", "rem": "remainder(lane, place, a, b)",
    "and": "a & b", "or": "a | b", "xor": "a ^ b", "not": "~a", "not.pred": "!a",
    "shl": "shift_left(a, b)", "shr": "shift_right(a, b)", "shf.l.wrap": "funnel_left(a, b, c)",
    "shf.r.wrap": "funnel_right(a, b, c)", "popc": "std::popcount(a)", "clz": "std::countl_zero(a)",
    "brev": "reverse(a)", "bfind": "highest_bit(a)", "bfind.shiftamt": "shift_of_highest_bit(a)",
    "bfe": "bit_field(a, b, c)", "bfi": "insert_bits(a, b, c, d)", "prmt": "permute_bytes(a, b, c)",
    "selp": "c ? a : b", "copysign": "std::copysign(b, a)",
    # A cast between address spaces: shared memory alone has addresses of its own here.
    "cvta.global": "a", "cvta.to.global": "a", "cvta.local": "a", "cvta.to.local": "a", "cvta.param": "a",
    "cvta.shared": "lane.generic_address(a)", "cvta.to.shared": "lane.shared_address(a)",
}  # fmt: skip
ARITHMETIC = {"add", "sub", "mul", "div", "rcp", "fma", "sqrt", "min", "max"}
WRAPS = {"add", "sub", "mul.lo", "mad.lo", "neg"}
OPERAND_TYPES = {
    "shl": {"b": "u32"}, "shr": {"b": "u32"}, "shf.l.wrap": {"c": "u32"}, "shf.r.wrap": {"c": "u32"},
    "selp": {"c": "pred"}, "bfe": {"b": "u32", "c": "u32"}, "bfi": {"c": "u32", "d": "u32"},
    "mad.wide": {"c": "wide"},
}  # fmt: skip
# What an atomic leaves, of what was there and its operands.
ATOMIC = {
    "add": "old + a", "min": "least(old, a)", "max": "greatest(old, a)", "and": "old & a", "or": "old | a",
    "xor": "old ^ a", "exch": "a", "cas": "old == a ? b : old",
}  # fmt: skip
REDUCTIONS = {
    "min": "least(x, y)",
    "max": "greatest(x, y)",
    "add": "x + y",
    "and": "x & y",
    "or": "x | y",
    "xor": "x ^ y",
}
COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
SPACES = {"global": "kGlobal", "shared": "kShared", "local": "kLocal", "param": "kParam", "": "kGeneric"}
# Of a load, store or atomic: what does not change what is read or written here.
ORDERINGS = {"nc", "volatile", "weak", "relaxed", "gpu", "cta", "sys"}
NOTHING = ("pragma", "membar", "fence", "griddepcontrol")
SPECIAL = {"tid": "lane.thread", "ctaid": "lane.at->block", "ntid": "lane.at->threads", "nctaid": "lane.at->grid"}


class Instruction(NamedTuple):
    """``name.modifiers.type operands``, and where it stands: ``place`` is its number in the table of places."""

    name: str
    modifiers: tuple[str, ...]
    type: str
    operands: tuple[str, ...]
    place: int
    text: str

    def unknown(self, what: str = "instruction") -> NotImplementedError:
        return NotImplementedError(f"PTX: unknown {what} in `{self.text}`: add it to {Path(__file__).name}")


def translate(ptx: Path) -> str:
    """The C++ source of a PTX file's kernels. Compile it with the folder of machine.h among the include paths.

    Raises:
        NotImplementedError: for anything in a kernel that is not known, with its text.
    """
    text = ptx.read_text()
    files = {number: Path(name).name for number, name in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M)}
    places = [ptx.name]
    kernels = re.finditer(r"^[.\w ]*\.entry\s+(\S+)\s*\((.*?)\)(.*?)^\{\n(.*?)^\}", text, re.S | re.M)
    functions = [_Kernel(match, files, places).source() for match in kernels]
    quoted = ",\n".join(f'  "{place}"' for place in places)
    head = (
        f'#include "machine.h"\n\nusing namespace ptx_on_cpu;\n\nstatic const char* const places[] = {{\n{quoted}}};\n'
    )
    return "\n".join([head, *functions])


class _Kernel:
    """One kernel on its way: what its names mean, and the statements so far."""

    def __init__(self, match: re.Match[str], files: dict[str, str], places: list[str]):
        self.name, parameters, attributes, body = match.groups()
        self.files, self.places = files, places
        parameter = re.fullmatch(r"\s*\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?\s*", parameters)
        if parameter is None:
            raise NotImplementedError(f"PTX: {self.name}: expected one parameter, got `{parameters.strip()}`")
        self.parameter = parameter[2]
        self.parameter_bytes = int(parameter[3] or _bits(parameter[1]) // 8)
        bounds = re.search(r"\.maxntid\s+(\d+)", attributes)
        self.most_threads = int(bounds[1]) if bounds else 1024
        self.registers: dict[str, tuple[str, int]] = {}  # %r -> (type, how many)
        self.shared: dict[str, int] = {}  # name -> offset
        self.shared_bytes = 0
        self.units = {"kShared": 4, "kGlobal": 4}  # bytes of the smallest number written there
        self.local: dict[str, str] = {}  # name -> declaration
        self.lines: list[str] = []
        self.first_place = len(places)
        self.basic_blocks = [0]  # of each instruction, and the one that comes next
        for statement, place in self.statements(body):
            self.add(statement, place)

    def statements(self, body: str):
        """The statements of a kernel's body, without their semicolons, each with its place in the source."""
        source = "?"
        for line in body.splitlines():
            line = line.split("//")[0].strip()
            if location := re.match(r"\.loc\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+))?", line):
                file, number, caller, called_at = location.groups()
                # What one of CUDA's own headers does is said of who called it.
                if caller and self.files.get(file, "").endswith(".hpp"):
                    file, number = caller, called_at
                source = f"{self.files.get(file, '?')}:{number}"
                continue
            # Inline assembly stands in braces of its own.
            line = re.sub(r"^\{\s*(?=\w|$)", "", line)
            line = re.sub(r";\s*\}$|^\}$", ";", line)
            for statement in filter(None, (part.strip() for part in re.split(r"(?<=:)\s|;", line))):
                if not statement.startswith(".") and not statement.endswith(":"):
                    self.places.append(source)
                yield statement, len(self.places) - 1

    def add(self, statement: str, place: int) -> None:
        if statement.startswith("."):
            self.declare(statement)
        elif statement.endswith(":"):
            self.lines.append(f"{_label(statement[:-1])}:")
            self.begin_basic_block()
        else:
            guard, text = re.fullmatch(r"(?:@(!?%\w+)\s+)?(.*)", statement, re.S).groups()
            name, rest = re.fullmatch(r"(\S+)\s*(.*)", text, re.S).groups()
            parts = name.split(".")
            typed = len(parts) > 1 and parts[-1] in TYPES
            operands = tuple(
                part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", rest) if part.strip()
            )
            instruction = Instruction(
                parts[0],
                tuple(parts[1 : -1 if typed else None]),
                parts[-1] if typed else "",
                operands,
                place,
                statement,
            )
            code = self.emit(instruction)
            self.basic_blocks.append(self.basic_blocks[-1])
            condition = f"if ({self.value(guard, 'pred')}) " if guard else ""
            self.lines.append(f"  {condition}{code}")
            if instruction.name == "bra":
                self.begin_basic_block()

    def begin_basic_block(self) -> None:
        self.basic_blocks[-1] += 1
        self.lines.append(f"  ++lane.visits[{self.basic_blocks[-1]}];")

    def declare(self, statement: str) -> None:
        types = "|".join(TYPES)
        if match := re.fullmatch(rf"\.reg\s+\.({types})\s+(%\w+)<(\d+)>", statement):
            self.registers[match[2]] = (match[1], int(match[3]))
        elif match := re.fullmatch(rf"\.reg\s+\.({types})\s+(%\w+)", statement):
            self.registers[match[2]] = (match[1], 0)
        elif match := re.fullmatch(
            r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", statement
        ):
            space, align, kind, name, count = match.groups()
            size, align = int(count or 1) * _bits(kind) // 8, int(align or _bits(kind) // 8)
            if space == "local":
                self.local[name] = f"alignas({align}) char {name}[{size}];"
            else:
                self.shared[name] = -(-self.shared_bytes // align) * align
                self.shared_bytes = self.shared[name] + size
        elif statement.split()[0] not in (".pragma", ".loc"):
            raise NotImplementedError(f"PTX: unknown directive `{statement}`: add it to {Path(__file__).name}")

    def source(self) -> str:
        registers = "".join(
            f"  auto {_variable(prefix)}{i} = unset<{TYPES[kind]}>();\n"
            for prefix, (kind, count) in self.registers.items()
            for i in (range(count) if count else [""])
        )
        local = "".join(f"  {declaration}\n" for declaration in self.local.values())
        body = "\n".join(self.lines)
        identifier = f"kernel_{self.name}"
        return (
            f"static void {identifier}(const char* parameter, Lane& lane) {{\n{registers}{local}"
            f"  ++lane.visits[0];\n{body}\n}}\n"
            f"static const uint32_t basic_blocks_{identifier}[] = {{{', '.join(map(str, self.basic_blocks[:-1]))}}};\n"
            f'static const Registration registered_{identifier}("{self.name}", {{{identifier}, {self.parameter_bytes}, '
            f"{self.shared_bytes}, {self.units['kShared']}, {self.units['kGlobal']}, {self.most_threads}, places, "
            f"basic_blocks_{identifier}, {self.first_place}, "
            f"{len(self.basic_blocks) - 1}, {self.basic_blocks[-1] + 1}}});\n"
        )

    # Operands

    def is_register(self, text: str) -> bool:
        return text in self.registers or re.sub(r"\d+$", "", text) in self.registers

    def value(self, text: str, kind: str) -> str:
        """An operand, read as a type."""
        ctype = TYPES[kind]
        if text.startswith("!"):
            return f"!{self.value(text[1:], kind)}"
        if self.is_register(text):
            return f"as<{ctype}>({_variable(text)})"
        if match := re.fullmatch(r"%(tid|ctaid|ntid|nctaid)\.([xyz])", text):
            return f"as<{ctype}>({SPECIAL[match[1]]}.{match[2]})"
        if text in ("%laneid", "%warpid"):
            return f"as<{ctype}>(uint32_t(lane.index {'%' if text == '%laneid' else '/'} 32))"
        if match := re.fullmatch(r"0[fFdD]([0-9A-Fa-f]{8}|[0-9A-Fa-f]{16})", text):
            return f"as<{ctype}>(uint{4 * len(match[1])}_t(0x{match[1]}))"
        if re.fullmatch(r"-?\d+|-?0x[0-9A-Fa-f]+U?", text):
            return f"as<{ctype}>(uint64_t({int(text.rstrip('U'), 0) % 2**64}u))"
        if text in self.shared:
            return f"{ctype}({self.shared[text]})"
        if text == self.parameter or text in self.local:
            return f"as<{ctype}>(uint64_t({'parameter' if text == self.parameter else text}))"
        raise NotImplementedError(f"PTX: {self.name}: unknown operand `{text}`")

    def store(self, register: str, expression: str) -> str:
        return f"(void)({expression});" if register == "_" else f"set({_variable(register)}, {expression});"

    def address(self, text: str) -> str:
        base, offset = re.fullmatch(r"\[\s*([^+\]\s]+)\s*(?:\+\s*(-?\d+))?\s*\]", text).groups()
        return f"{self.value(base, 'u64' if not self.is_narrow(base) else 'u32')} + ({offset or 0})"

    def is_narrow(self, text: str) -> bool:
        """Whether a register has 32 bits: an address of shared memory may."""
        return self.is_register(text) and _bits(self.registers[re.sub(r"\d+$", "", text)][0]) == 32

    # Instructions

    def emit(self, i: Instruction) -> str:
        if i.name in NOTHING:
            return ";"
        handler: Callable[[Instruction], str] | None = getattr(self, f"emit_{i.name}", None)
        return handler(i) if handler else self.emit_plain(i)

    def emit_plain(self, i: Instruction) -> str:
        key = ".".join((i.name, *i.modifiers))
        if f"{key}.float" in PLAIN and i.type.startswith("f"):
            key += ".float"
        elif f"{key}.{i.type}" in PLAIN:
            key += f".{i.type}"
        fuses = i.type.startswith("f") and key in WRAPS | {"mul", "div"}
        if key not in PLAIN or not i.type or fuses:
            raise i.unknown()
        kind = "u" + i.type[1:] if key in WRAPS else i.type
        own = {"wide": f"{i.type[0]}{2 * _bits(i.type)}"}
        given = OPERAND_TYPES.get(key, {})
        operands = "".join(
            f"const auto {letter} = {self.value(text, own.get(given.get(letter, kind), given.get(letter, kind)))}; "
            for letter, text in zip("abcd", i.operands[1:], strict=False)
        )
        result = PLAIN[key].replace("place", str(i.place))
        if i.type.startswith("f") and i.name in ARITHMETIC:
            result = f"canonical({result})"
        # C++ computes in int what is narrower.
        if (
            not i.type.startswith("f")
            and i.type != "pred"
            and key.split(".")[0] not in ("popc", "clz", "bfind")
            and "wide" not in key
        ):
            result = f"{TYPES[kind]}({result})"
        return f"{{ {operands}{self.store(i.operands[0], result)} }}"

    def emit_mov(self, i: Instruction) -> str:
        """Also puts a register together from several, low bits first, or takes it apart."""
        to, value = ([part.strip() for part in operand.strip("{}").split(",")] for operand in i.operands)
        if len(to) == len(value) == 1:
            return self.emit_plain(i)
        bits = _bits(i.type) // max(len(to), len(value))
        if len(to) == 1:
            shifted = (f"uint64_t({self.value(part, f'u{bits}')}) << {n * bits}" for n, part in enumerate(value))
            return self.store(to[0], f"{TYPES[i.type]}({' | '.join(shifted)})")
        whole = self.value(value[0], i.type)
        parts = (self.store(part, f"uint{bits}_t({whole} >> {n * bits})") for n, part in enumerate(to))
        return f"{{ {' '.join(parts)} }}"

    def emit_bra(self, i: Instruction) -> str:
        return f"goto {_label(i.operands[0])};"

    def emit_ret(self, i: Instruction) -> str:
        return "return;"

    emit_exit = emit_ret

    def emit_setp(self, i: Instruction) -> str:
        comparison, *combined = i.modifiers
        a, b = (self.value(text, i.type) for text in i.operands[1:3])
        if i.type.startswith("f"):
            nan = f"either_nan({a}, {b})"
            if comparison in ("nan", "num"):
                result = nan if comparison == "nan" else f"!{nan}"
            elif comparison in COMPARISONS:
                result = f"(!{nan} && {a} {COMPARISONS[comparison]} {b})"
            elif comparison[:-1] in COMPARISONS and comparison[-1] == "u":
                result = f"({nan} || {a} {COMPARISONS[comparison[:-1]]} {b})"
            else:
                raise i.unknown()
        elif comparison in COMPARISONS:
            result = f"({a} {COMPARISONS[comparison]} {b})"
        else:
            raise i.unknown()
        if combined:
            operator = {"and": "&", "or": "|", "xor": "^"}.get(combined[0])
            if operator is None or len(i.operands) != 4:
                raise i.unknown()
            result = f"bool({result} {operator} {self.value(i.operands[3], 'pred')})"
        if "|" in i.operands[0]:
            raise i.unknown()
        return self.store(i.operands[0], result)

    def emit_cvt(self, i: Instruction) -> str:
        match = re.fullmatch(
            r"cvt\.(?:(rn|rni|rzi|rmi|rpi)\.)?(\w+)\.(\w+)",
            i.text.split()[0] if "@" not in i.text else i.text.split()[1],
        )
        if match is None:
            raise i.unknown()
        rounding, to, source = match.groups()
        if source in ("f16", "bf16") and to == "f32":
            half = self.value(i.operands[1], "b16")
            return self.store(i.operands[0], f"from_{'half' if source == 'f16' else 'bfloat16'}({half})")
        if to not in TYPES or source not in TYPES:
            raise i.unknown()
        value = self.value(i.operands[1], source)
        if source[0] == "f" and (to[0] != "f" or (rounding and rounding.endswith("i"))):
            integral = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
            if rounding not in integral:
                raise i.unknown()
            value = f"{integral[rounding]}({value})"
            value = value if to[0] == "f" else f"saturate<{TYPES[to]}>({value})"
        return self.store(i.operands[0], f"{TYPES[to]}({value})")

    def memory(self, i: Instruction, more: set[str] = frozenset(), writes: bool = False) -> tuple[str, int]:
        """The space of a load, store or atomic and how many numbers it moves; other modifiers must be harmless."""
        spaces = [modifier for modifier in i.modifiers if modifier in SPACES]
        counts = [int(modifier[1]) for modifier in i.modifiers if modifier in ("v2", "v4")]
        if set(i.modifiers) - set(spaces) - {"v2", "v4"} - ORDERINGS - more or i.type not in TYPES:
            raise i.unknown()
        space = SPACES[spaces[0] if spaces else ""]
        if writes:
            for written in self.units.keys() & {space} if space != "kGeneric" else self.units.keys():
                self.units[written] = min(self.units[written], _bits(i.type) // 8)
        return space, counts[0] if counts else 1

    def emit_ld(self, i: Instruction) -> str:
        space, count = self.memory(i)
        ctype = TYPES[i.type]
        at = f"const char* at = lane.reach<{ctype}, {count}>({i.place}, {space}, kRead, {self.address(i.operands[1])});"
        registers = i.operands[0].strip("{}").split(",")
        loads = (self.store(r.strip(), f"load<{ctype}>(at, {n})") for n, r in enumerate(registers))
        return f"{{ {at} {' '.join(loads)} }}"

    def emit_st(self, i: Instruction) -> str:
        space, count = self.memory(i, writes=True)
        ctype = TYPES[i.type]
        at = f"char* at = lane.reach<{ctype}, {count}>({i.place}, {space}, kWrite, {self.address(i.operands[0])});"
        values = i.operands[1].strip("{}").split(",")
        stores = (f"save<{ctype}>(at, {n}, {self.value(v.strip(), i.type)});" for n, v in enumerate(values))
        return f"{{ {at} {' '.join(stores)} }}"

    def emit_atom(self, i: Instruction) -> str:
        operation = next((modifier for modifier in i.modifiers if modifier in ATOMIC), None)
        if operation is None or i.type.startswith("f"):
            raise i.unknown()
        space, _ = self.memory(i, {operation}, writes=True)
        ctype = TYPES[i.type]
        to, address, *values = i.operands if i.name == "atom" else ("_", *i.operands)
        operands = "".join(f"const {ctype} {n} = {self.value(v, i.type)}; " for n, v in zip("ab", values, strict=False))
        at = f"char* at = lane.reach<{ctype}, 1>({i.place}, {space}, kAtomic, {self.address(address)}); "
        old = f"const {ctype} old = load<{ctype}>(at, 0); save<{ctype}>(at, 0, {ATOMIC[operation]}); "
        return f"{{ {operands}{at}{old}{self.store(to, 'old')} }}"

    emit_red = emit_atom

    def emit_bar(self, i: Instruction) -> str:
        if i.modifiers == ("warp", "sync"):
            return f"lane.meet({i.place}, {self.value(i.operands[0], 'u32')}, nullptr);"
        if i.modifiers != ("sync",) or i.operands != ("0",):
            raise i.unknown()
        return f"lane.meet_block({i.place});"

    emit_barrier = emit_bar

    def collective(self, i: Instruction, to: str, mask: str, combine: str, *operands: str) -> str:
        given = ", ".join(("0", "0", "0")[: 3 - len(operands)])
        words = ", ".join(filter(None, (*operands, given)))
        call = f"lane.meet({i.place}, {self.value(mask, 'u32')}, {combine}, {words})"
        return self.store(to, call)

    def emit_shfl(self, i: Instruction) -> str:
        modes = {"up": "kUp", "down": "kDown", "bfly": "kButterfly", "idx": "kIndex"}
        if len(i.modifiers) != 2 or i.modifiers[0] != "sync" or i.modifiers[1] not in modes:
            raise i.unknown()
        to, *found = i.operands[0].split("|")
        operands = (self.value(text, "u32") for text in i.operands[1:4])
        shuffled = self.collective(i, to, i.operands[4], f"shuffle<{modes[i.modifiers[1]]}>", *operands)
        return f"{{ {shuffled} {self.store(found[0], 'lane.in_range') if found else ''} }}"

    def emit_vote(self, i: Instruction) -> str:
        votes = {"ballot": "ballot", "any": "vote_any", "all": "vote_all"}
        if len(i.modifiers) != 2 or i.modifiers[0] != "sync" or i.modifiers[1] not in votes:
            raise i.unknown()
        return self.collective(
            i, i.operands[0], i.operands[2], votes[i.modifiers[1]], self.value(i.operands[1], "pred")
        )

    def emit_match(self, i: Instruction) -> str:
        if i.modifiers != ("any", "sync"):
            raise i.unknown()
        return self.collective(i, i.operands[0], i.operands[2], "match_any", self.value(i.operands[1], i.type))

    def emit_redux(self, i: Instruction) -> str:
        if len(i.modifiers) != 2 or i.modifiers[0] != "sync" or i.modifiers[1] not in REDUCTIONS:
            raise i.unknown()
        ctype, value = TYPES[i.type], self.value(i.operands[1], i.type)
        combine = f"reduce<{ctype}, []({ctype} x, {ctype} y) {{ return {ctype}({REDUCTIONS[i.modifiers[1]]}); }}>"
        return self.collective(i, i.operands[0], i.operands[2], combine, f"uint32_t({value})")


def _bits(kind: str) -> int:
    return int(re.sub(r"\D", "", kind) or 8)


def _label(text: str) -> str:
    return text.replace("$", "")


def _variable(register: str) -> str:
    return register.replace("%", "reg_")
