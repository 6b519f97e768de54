#!/usr/bin/env python3
"""Whether the compiler has made of the x86-64 kernels what they were written for.

    scripts/assembly.py PROGRAM      a build with optimisation
    scripts/assembly.py --self-test

The order of sums in the panels of the AVX2 kernels is half of their speed. A panel's products (vpmaddubsw) are
added to sums (vpaddw) one by one. Without the barriers in the source the compiler makes all products of a chain
first, keeps them on the stack, and adds them up in a tree. Looked at are the functions that have the longest chains,
eight products for each of four tokens and two panels: at no place may many more products be made than there are sums.

And no closure of a kernel may call its instructions: where it is not inlined, it is compiled without the features of
its kernel set and calls a function for each, with registers passed through memory. What else calls some is told of:
with little optimisation a few calls are left in long functions. Needs objdump.
"""

import re
import subprocess
import sys

FUNCTION = re.compile(r"^[0-9a-f]+ <.*avx2::super_blocks::add_panel")
OURS = re.compile(r"^[0-9a-f]+ <.*wayinfer::")
CLOSURE = re.compile(r"\{\{closure\}\}.*>:$")
# Instructions as functions, but for those that ask the CPU what it is.
CALL = re.compile(r"\t(?:call|jmp) .*<core::core_arch::x86::(?!cpuid|xsave)")
# Of the text of a whole program, what is looked at.
WANTED = re.compile(r">:$|vpmaddubsw|vpaddw|vpmaddwd|core_arch")
# Sums of four tokens and two panels, whose first products are added to nothing; and what is under way.
MOST = 8 + 6
PRODUCTS = 64


def functions(lines):
    """The instructions of each function of panels, by name."""
    current = None
    for line in lines:
        if line.endswith(">:"):
            if current:
                yield current
            current = [] if FUNCTION.match(line) else None
        elif current is not None and "\t" in line:
            current.append(line.split("\t")[-1].split(" ")[0])
    if current:
        yield current


def most_pending(instructions):
    """The most products of a chain that were made and not yet added."""
    pending = most = 0
    for instruction in instructions:
        if instruction == "vpmaddubsw":
            pending += 1
        elif instruction == "vpaddw":
            pending -= 1
        elif instruction == "vpmaddwd":  # the end of a chain
            pending = 0
        most = max(most, pending)
    return most


def check(lines):
    """(functions looked at, the most pending products of any)"""
    found = [f for f in functions(lines) if f.count("vpmaddubsw") == PRODUCTS]
    return len(found), max(map(most_pending, found), default=0)


def calls(lines):
    """Functions of ours that call instructions, with how many calls."""
    found, name = {}, None
    for line in lines:
        if line.endswith(">:"):
            name = line.split(" ", 1)[1] if OURS.match(line) else None
        elif name and CALL.search(line):
            found[name] = found.get(name, 0) + 1
    return found


def text_of(instructions):
    return ["0000 <wayinfer::kernels::avx2::super_blocks::add_panel>:"] + [f"  1:\t{i} a,b,c" for i in instructions]


def self_test():
    kept = ["vpmaddubsw"] * 8 + ["vpmaddubsw", "vpaddw"] * 56 + ["vpmaddwd"] * 8
    tree = ["vpmaddubsw"] * 64 + ["vpaddw"] * 56 + ["vpmaddwd"] * 8
    assert check(text_of(kept)) == (1, 9), check(text_of(kept))
    assert check(text_of(tree))[1] == 64 > MOST
    assert check(text_of(kept[:20])) == (0, 0)
    called = "  2:\tcall   5f0 <core::core_arch::x86::avx512f::_mm512_cvtph_ps>"
    asked = "  3:\tcall   5f0 <core::core_arch::x86::xsave::_xgetbv>"
    assert calls(text_of(kept) + [called, asked, called]) == {"<wayinfer::kernels::avx2::super_blocks::add_panel>:": 2}
    assert calls(["0000 <core::array::try_map>:", called]) == {}
    assert CLOSURE.search("<wayinfer::kernels::ops::attention::tile::widen::{{closure}}>:")
    assert not CLOSURE.search("<wayinfer::kernels::avx512::quantised>:")
    print("self-test passed")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    command = ["objdump", "-d", "--no-show-raw-insn", "-C", sys.argv[1]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as objdump:
        lines = [line.rstrip("\n") for line in objdump.stdout if WANTED.search(line)]
    count, most = check(lines)
    called = calls(lines)
    if count == 0:
        sys.exit("no function of panels with chains of eight products: is this an optimised build for x86-64?")
    print(f"{count} functions, at most {most} products pending (allowed: {MOST})")
    if most > MOST:
        sys.exit("the compiler has changed the order of sums")
    for name, count in called.items():
        print(f"{count} instructions are calls in {name}")
    if any(CLOSURE.search(name) for name in called):
        sys.exit("closures without a kernel set's features call its instructions")


main()
