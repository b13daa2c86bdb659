"""Times PyTorch's 3-D convolution (cuDNN) on the shapes of LTX-2's video autoencoder at 1280x704, 24 frames at a
time, bf16: the peer of `rivulet bench-vae --layers`. Usage: conv3d_torch.py [OUT.json]"""
import json
import sys

import torch

# name, frames, height, width, channels in, channels out
LAYERS = [
    ("128", 24, 176, 320, 128, 128),
    ("256", 24, 88, 160, 256, 256),
    ("512", 12, 88, 160, 512, 512),
    ("1024", 6, 44, 80, 1024, 1024),
    ("2048", 3, 22, 40, 2048, 2048),
    ("decoder 1024", 3, 22, 40, 1024, 1024),
    ("decoder 512", 6, 44, 80, 512, 512),
    ("decoder 256", 12, 88, 160, 256, 256),
    ("up 1024-4096", 3, 22, 40, 1024, 4096),
    ("up 512-2048", 6, 44, 80, 512, 2048),
    ("up 256-1024", 12, 88, 160, 256, 1024),
]


def median_ms(work, repetitions=5):
    times = []
    for i in range(2 + repetitions):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def main():
    torch.backends.cudnn.benchmark = True
    rows = []
    for name, t, h, w, c, co in LAYERS:
        flop = 2 * t * h * w * co * 27 * c
        row = {"layer": name, "shape": [t, h, w, c, co]}
        for layout, form in (("ncdhw", torch.contiguous_format), ("ndhwc", torch.channels_last_3d)):
            x = torch.randn(1, c, t + 2, h, w, device="cuda", dtype=torch.bfloat16).to(memory_format=form)
            k = torch.randn(co, c, 3, 3, 3, device="cuda", dtype=torch.bfloat16).to(memory_format=form)
            b = torch.randn(co, device="cuda", dtype=torch.bfloat16)
            ms = median_ms(lambda: torch.nn.functional.conv3d(x, k, b, padding=(0, 1, 1)))
            row[layout + "_ms"] = ms
            print(f"{name:16s} {layout} {ms:8.3f} ms {flop / ms * 1e-9:7.1f} TFLOP/s", flush=True)
        rows.append(row)
    report = {"what": "torch conv3d", "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
              "gpu": torch.cuda.get_device_name(), "dtype": "bf16", "layers": rows}
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as f:
            json.dump(report, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
