#!/usr/bin/python3
"""The same work in PyTorch on the CPU, row by row beside rivulet-bench (Debian: python3-torch python3-numpy,
and libopenblas0-pthread for its matrix products).

    bench/peers/torch_cpu.py --bench build/cpu/rivulet-bench --ours ours.json --theirs torch.json

Each row is timed by both programs right after one another, with the same threads, f32, warm-up and number of
repetitions; then the table of ratios is printed. The rows of the bundled network are repeated from the inputs,
weights and results that rivulet-bench saves, and withheld when PyTorch's results differ (exit code 1).
"""
import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

import brook_torch


def matmul(s):
    a, b = (torch.randn(x) for x in s)
    return lambda: torch.matmul(a, b)


def linear(s):
    x, w, *b = (torch.randn(x) for x in s)
    return lambda: F.linear(x, w, *b)


def attention(s):
    # Tensors lie as [B, N, H, D]; PyTorch wants [B, H, N, D]. This release has the fused call under a private
    # name; the plain formula is timed too and the faster of the two counts.
    q, k, v = (torch.randn(x).transpose(1, 2) for x in s[:3])
    scale = 1 / math.sqrt(q.shape[-1])

    def plain():
        return torch.matmul(torch.softmax(torch.matmul(q * scale, k.transpose(-1, -2)), -1), v)

    fused = getattr(F, "scaled_dot_product_attention", None) or getattr(F, "_scaled_dot_product_attention", None)
    return [plain] + ([lambda: fused(q, k, v)] if fused else [])


def rms_norm(s):
    x, w = torch.randn(s[0]), torch.randn(s[1])
    return lambda: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


def layer_norm(s):
    x, *rest = (torch.randn(x) for x in s)
    return lambda: F.layer_norm(x, x.shape[-1:], *rest)


def gdn(s):
    if len(s) != 9:
        return None
    b, t, n, h, d = s[0]
    scale = 1 / math.sqrt(n * d)
    q, k, qr, kr, v = (torch.randn(x) for x in s[:5])
    q, k, kr = q.abs(), k.abs() * scale, kr * scale
    beta, decay = torch.rand(s[5]), torch.rand(s[6])
    kv0, z0 = torch.randn(s[7]) * scale, torch.rand(s[8])

    def run():
        out, last = brook_torch.gated_delta_net(q, k, qr, kr, v, beta, decay, kv0, z0)
        return out.contiguous(), last

    return run


def conv(s, function):
    # Channels last on both sides, PyTorch's faster layout here; padding keeps the size.
    dims = len(s[1]) - 2
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    x = torch.randn(s[0]).permute(0, -1, *range(1, dims + 1)).contiguous(memory_format=layout)
    w = torch.randn(s[1]).contiguous(memory_format=layout)
    bias = torch.randn(s[2]) if len(s) > 2 else None
    padding = [k // 2 for k in s[1][2:]]
    dense, dense_w = x.contiguous(), w.contiguous()
    return [lambda: function(x, w, bias, padding=padding), lambda: function(dense, dense_w, bias, padding=padding)]


def depthwise(s):
    x = torch.randn(s[0]).permute(0, 3, 1, 2)
    w, *bias = (torch.randn(x) for x in s[1:])
    dense = x.contiguous()
    groups = x.shape[1]
    return [
        lambda: F.conv2d(x, w, *bias, padding=1, groups=groups),
        lambda: F.conv2d(dense, w, *bias, padding=1, groups=groups),
    ]


def glu_silu(s):
    x = torch.randn(s[0])

    def run():
        a, g = x.chunk(2, -1)
        return a * F.silu(g)

    return run


def unary(function):
    def make(s):
        x = torch.randn(s[0])
        return lambda: function(x)

    return make


def binary(function):
    def make(s):
        a, b = (torch.randn(x) for x in s)
        return lambda: function(a, b)

    return make


RECIPES = {
    "matmul": matmul,
    "linear": linear,
    "attention": attention,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "gdn": gdn,
    "conv2d": lambda s: conv(s, F.conv2d),
    "conv3d": lambda s: conv(s, F.conv3d),
    "depthwise_conv3x3": depthwise,
    "glu_silu": glu_silu,
    "add": binary(torch.add),
    "mul": binary(torch.mul),
    "exp": unary(torch.exp),
    "silu": unary(F.silu),
    "gelu_tanh": unary(lambda x: F.gelu(x, approximate="tanh")),
    "softmax": unary(lambda x: torch.softmax(x, -1)),
    "sum": unary(torch.sum),
}


TOLERANCE = 1e-5  # of the results of the network, relative


def seconds_per_run(run, settings):
    """Sorted seconds of one run, one entry per repetition, after a warm-up."""
    end = time.perf_counter() + settings["warm_up_s"]
    runs = 0
    start = time.perf_counter()
    while runs == 0 or time.perf_counter() < end:
        run()
        runs += 1
    count = max(1, math.ceil(settings["repetition_s"] / ((time.perf_counter() - start) / runs)))
    result = []
    for _ in range(settings["repetitions"]):
        start = time.perf_counter()
        for _ in range(count):
            run()
        result.append((time.perf_counter() - start) / count)
    return sorted(result)


def quantile(values, q):
    at = q * (len(values) - 1)
    low, high = int(at), min(int(at) + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def blas_in_use():
    with open("/proc/self/maps") as maps:
        return sorted({os.path.realpath(line.split()[-1]) for line in maps if "blas" in line})


def time_ours(bench, name, settings):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [bench, "--filter", "^" + re.escape(name) + "$", "--json", out.name]
        command += ["--repetitions", str(settings["repetitions"]), "--seconds", str(settings["repetition_s"])]
        command += ["--threads", str(torch.get_num_threads())]
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if code not in (0, 1):  # 1: wrong results, as the file says
            sys.exit(f"torch_cpu.py: {bench} failed on {name}")
        with open(out.name) as f:
            return json.load(f)


def network_run(bench, row):
    """The faster way to do a row of the network, or what is wrong with its results."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as saved:
        subprocess.run([bench, "--filter", "^" + re.escape(row["name"]) + "$", "--save", saved.name], check=True)
        work = brook_torch.WORK[row["op"]](saved.name)
    seconds = []
    for run in work.runs:
        error = work.check(run)
        if not error <= TOLERANCE:
            return None, f"PyTorch's results are off by {error:.1e}"
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return work.runs[seconds.index(min(seconds))], ""


def time_theirs(bench, row, settings):
    """The row of PyTorch; without a time when its results are wrong, None when there is no counterpart."""
    if row["op"] in brook_torch.WORK:
        runs, red = network_run(bench, row)
        if red:
            return {"name": row["name"], "op": row["op"], "red": red}
    else:
        runs = RECIPES[row["op"]](row["shapes"])
    if runs is None:
        return None
    best = min((seconds_per_run(run, settings) for run in (runs if isinstance(runs, list) else [runs])),
               key=lambda times: quantile(times, 0.5))
    return {
        "name": row["name"],
        "op": row["op"],
        "shapes": row["shapes"],
        "repetitions": len(best),
        "median_s": quantile(best, 0.5),
        "spread": (quantile(best, 0.75) - quantile(best, 0.25)) / 2 / quantile(best, 0.5),
        "p25_s": quantile(best, 0.25),
        "p75_s": quantile(best, 0.75),
        "min_s": best[0],
        "max_s": best[-1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="path of rivulet-bench")
    parser.add_argument("--ours", required=True, help="JSON file for the rows of rivulet-bench")
    parser.add_argument("--theirs", required=True, help="JSON file for the rows of PyTorch")
    parser.add_argument("--filter", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.05, help="least seconds of a repetition")
    args = parser.parse_args()

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_grad_enabled(False)
    settings = {"warm_up_s": 0.05, "repetition_s": args.seconds, "repetitions": args.repetitions}
    names = subprocess.run([args.bench, "--list", "--filter", args.filter], check=True, capture_output=True, text=True)
    ours, theirs, red = None, [], False
    for name in names.stdout.splitlines():
        if name.split(" ")[0] not in (*RECIPES, *brook_torch.WORK):
            continue
        print(name, file=sys.stderr)
        result = time_ours(args.bench, name, settings)
        row = result["rows"][0]
        other = None if "red" in row else time_theirs(args.bench, row, settings)
        if other is None and "red" not in row:
            continue
        if ours is None:
            ours = result
        else:
            ours["rows"].append(row)
        if other is not None:
            theirs.append(other)
        for wrong in (r for r in (row, other) if r and "red" in r):
            red = True
            print(f"  withheld: {wrong['red']}", file=sys.stderr)
    if ours is None:
        sys.exit("torch_cpu.py: no row has a counterpart")
    frame = {key: ours[key] for key in ("commit", "cpu", "threads", "dtype", "warm_up_s", "repetition_s")}
    frame.update(what="PyTorch " + torch.__version__, torch=torch.__config__.show(), blas=blas_in_use(), rows=theirs)
    for path, content in ((args.ours, ours), (args.theirs, frame)):
        with open(path, "w") as f:
            json.dump(content, f, indent=2)
            f.write("\n")
    subprocess.run([args.bench, "--compare", args.ours, args.theirs], check=True)
    sys.exit(1 if red else 0)


if __name__ == "__main__":
    main()
