#!/usr/bin/env bash
# Instructions per 64 weights in the inner loops of the AArch64 kernels, counted in the disassembly of
# a release build: count_instructions.sh LIBRARY. Fails where a loop is missing or above its mark.
#
# An inner loop is what lies between a backward branch and its target, with no other such loop
# inside. The arithmetic of a layout fixes how many multiplications an iteration has: by that number,
# and by the kernel set, a loop is known.
set -euo pipefail
library="$1"

# Kernel set and product; a vector instruction and how many an iteration has, and another one and how
# many; products of weights and activations of an iteration; the most vector instructions per 64 of
# those. Loads are not in that number: the table printed has them, and all there is.
loops='neon T5_by_1_token smlal 40 cmgt 40 320 23.5
neon T2_by_1_token smlal 32 and 12 256 14
neon GEMM_3_tokens smlal 24 and 0 192 8
dotprod T5_by_1_token sdot 40 mul 20 320 12
dotprod T2_by_1_token sdot 16 and 12 256 8
dotprod GEMM_4_tokens sdot 64 and 0 1024 4
i8mm T5_by_1_token smmla 48 mul 40 640 10.6
i8mm T2_by_1_token sdot 16 and 12 256 8.5
i8mm GEMM_4_tokens smmla 16 and 0 512 2.3'

aarch64-linux-gnu-objdump -d -C --no-show-raw-insn "$library" | awk -v table="$loops" '
function look_for_loops(    i, j, innermost) {
    for (i = 1; i <= n; i++)
        if (target[i] in at && at[target[i]] <= i) start[i] = at[target[i]]
    for (i in start) {
        innermost = 1
        for (j in start)
            if (j != i && start[j] >= start[i] && j + 0 <= i + 0) innermost = 0
        if (innermost) weigh(start[i], i + 0)
    }
}
function weigh(first, last,    i, name, all, loads, vector) {
    delete count
    for (i = first; i <= last; i++) {
        name = op[i]
        if (name == "smlal2") name = "smlal"
        if (name ~ /^ld/) loads++
        else if (args[i] ~ /v[0-9]+\./) { vector++; count[name]++ }
    }
    all = last - first + 1
    for (i = 1; i <= n_rows; i++) {
        split(row[i], f, " ")
        if (index(kernel, "::" f[1] "::ternary_gemm") && count[f[3]] == f[4] && count[f[5]] + 0 == f[6])
            report(i, all, vector, loads, all - vector - loads)
    }
}
function report(i, all, vector, loads, other) {
    if (i in found && found[i] <= all) return
    found[i] = all
    line[i] = sprintf("%-8s %-16s %8.2f %8.2f %8.2f %8.2f", f[1], f[2],
        64 * vector / f[7], 64 * loads / f[7], 64 * other / f[7], 64 * all / f[7])
    above[i] = 64 * vector / f[7] > f[8]
}
function end_kernel() {
    if (kernel != "") look_for_loops()
    kernel = ""; n = 0
    delete at; delete target; delete start
}
BEGIN { n_rows = split(table, row, "\n") }
/^[0-9a-f]+ </ {
    end_kernel()
    if ($0 ~ /::ternary_gemm>:$/) kernel = $0
    next
}
kernel != "" && /^ +[0-9a-f]+:\t/ {
    split($0, part, "\t")
    n++
    address = part[1]
    gsub(/[ :]/, "", address)
    at[address] = n
    op[n] = part[2]
    args[n] = part[3]
    if (part[2] ~ /^(b|b\..*|cbn?z|tbn?z)$/) {
        sub(/ <.*/, "", part[3]); sub(/.*[ ,]/, "", part[3])
        target[n] = part[3]
    }
}
END {
    end_kernel()
    printf "%-8s %-16s %8s %8s %8s %8s   per 64 weights\n", "set", "product", "vector", "loads", "other", "all"
    for (i = 1; i <= n_rows; i++) {
        if (!(i in found)) { print "no such loop: " row[i]; failed = 1; continue }
        print line[i] (above[i] ? "   above the mark" : "")
        if (above[i]) failed = 1
    }
    exit failed
}'
