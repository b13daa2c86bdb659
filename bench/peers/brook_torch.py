"""The bundled network in plain PyTorch, for torch_cpu.py: one network call, one edited chunk, one training step.

Each reads a file that `rivulet-bench --save` wrote and returns a Repeat, which can check that it computes the
same. Formulas and shapes are those of models/sana_streaming; where PyTorch offers two ways, both are given.
"""
import functools
import json
import math
import struct

import torch
import torch.nn.functional as F

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}


def read_safetensors(path):
    """Tensors by name, half precision widened to f32, and the metadata."""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = bytearray(f.read())
    meta, tensors = header.pop("__metadata__", {}), {}
    for name, at in header.items():
        begin, end = at["data_offsets"]
        t = torch.frombuffer(data[begin:end], dtype=DTYPES[at["dtype"]]).reshape(at["shape"])
        tensors[name] = t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
    return tensors, meta


def attention(q, k, v, mask=None):
    """q [B, N, H, D], k and v [B, M, H, D]; mask [B, M], True for keys that count."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None, None, :]
    fused = getattr(F, "scaled_dot_product_attention", None)  # not in every release
    if fused:
        return fused(q, k, v, attn_mask=mask).transpose(1, 2)
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2)


def gated_delta_net(q, k, q_rot, k_rot, v, beta, decay, kv0, z0):
    """The recurrence in frame form: matrix products per frame, forward from a state and back in the chunk.

    q ... v [B, T, S, H, D], beta [B, T, S, H], decay [B, T, H], kv0 [B, H, value, key], z0 [B, H, D].
    Returns the output [B, T, S, H, D] and the last state in the layout of the first.
    """
    q, k, q_rot, k_rot, v = (x.transpose(2, 3) for x in (q, k, q_rot, k_rot, v))
    frames, eye = q.shape[1], torch.eye(q.shape[-1])
    write = beta.transpose(2, 3).unsqueeze(-1)
    g = decay[..., None, None]
    kb, krb = k * write, k_rot * write
    keep = g * (eye - torch.matmul(k_rot.transpose(-1, -2), krb))  # [B, T, H, D, D]
    keep_z = g * (eye - torch.matmul(k.transpose(-1, -2), kb))
    add = torch.matmul(krb.transpose(-1, -2), v)
    add_z = kb.sum(-2).unsqueeze(-1)
    m, z = kv0.transpose(-1, -2), z0.unsqueeze(-1)
    ms, zs = [], []
    for i in range(frames):
        m = torch.matmul(keep[:, i], m) + add[:, i]
        z = torch.matmul(keep_z[:, i], z) + add_z[:, i]
        ms.append(m)
        zs.append(z)
    last = m.transpose(-1, -2), z.squeeze(-1)
    r, rz = torch.zeros_like(m), torch.zeros_like(z)
    for i in range(frames - 1, -1, -1):
        ms[i] = ms[i] + r
        zs[i] = zs[i] + rz
        if i > 0:
            r = torch.matmul(keep[:, i], r) + add[:, i]
            rz = torch.matmul(keep_z[:, i], rz) + add_z[:, i]
    num = torch.matmul(q_rot, torch.stack(ms, 1))
    den = torch.matmul(q, torch.stack(zs, 1)) + 1e-8
    return (num / den).transpose(2, 3), last


def rms_norm(x, w, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


@functools.lru_cache  # the same for every call on the same frames
def rope_table(first, frames, height, width, dim):
    """cos and sin [tokens, 1, D/2]; the last two thirds of the channels turn with row and column."""
    side = 2 * (dim // 6)

    def angles(positions, d):
        return positions.double()[:, None] * 10000.0 ** (-2 * torch.arange(d // 2).double() / d)

    f, y, x = torch.meshgrid(first + torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    axes = ((f, dim - 2 * side), (y, side), (x, side))
    angle = torch.cat([angles(p.flatten(), d) for p, d in axes], 1)
    return angle.cos().float()[:, None], angle.sin().float()[:, None]


def rotate(x, table):
    """x [B, N, H, D]; neighbouring channels are the two parts of a complex number."""
    cos, sin = table
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Brook:
    """The network on a dict of weights. Activations are [B, T, S, C].

    dense: give the depthwise convolution planes in memory order instead of a view with channels last.
    """

    def __init__(self, weights, config, dense):
        self.w, self.config, self.dense = weights, config, dense
        self.c = config["dit"]
        self.heads = self.c["heads"]

    def linear(self, x, name):
        w = self.w[name + ".weight"]
        if w.dim() == 3 and w.shape[2] == 3:  # a temporal kernel of which the centre is used
            w = w[:, :, 1]
        return F.linear(x, w.reshape(w.shape[0], -1), self.w.get(name + ".bias"))

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1))

    def gdn(self, u, at, rope, past):
        n, tokens = self.split, u.shape[2]
        rotated = lambda x: rotate(n(x).flatten(1, 2), rope).unflatten(1, u.shape[1:3])
        q = F.relu(rms_norm(self.linear(u, at + "q"), self.w[at + "q_norm.weight"], 1e-5))
        k = F.relu(rms_norm(self.linear(u, at + "k"), self.w[at + "k_norm.weight"], 1e-5))
        k = k / math.sqrt(u.shape[-1] // self.heads * tokens)
        beta = torch.sigmoid(self.linear(u, at + "beta_proj"))
        rate = F.softplus(self.linear(u.mean(2), at + "gate_proj") + self.w[at + "dt_bias"])
        decay = torch.exp(-torch.exp(self.w[at + "A_log"]) * rate)
        v = n(self.linear(u, at + "v"))
        size = u.shape[-1] // self.heads
        start = past or (torch.zeros(u.shape[0], self.heads, size, size), torch.zeros(u.shape[0], self.heads, size))
        out, last = gated_delta_net(n(q), n(k), rotated(q), rotated(k), v, beta, decay, *start)
        gate = F.silu(self.linear(u, at + "output_gate"))
        return self.linear(out.flatten(-2) * gate, at + "proj"), last

    def softmax(self, u, at, rope, past):
        x = u.flatten(1, 2)
        q = rotate(self.split(rms_norm(self.linear(x, at + "q"), self.w[at + "q_norm.weight"], 1e-5)), rope)
        k = rotate(self.split(rms_norm(self.linear(x, at + "k"), self.w[at + "k_norm.weight"], 1e-5)), rope)
        v = self.split(self.linear(x, at + "v"))
        keys, values = (torch.cat((old, new), 1) for old, new in zip(past, (k, v))) if past else (k, v)
        out = attention(q, keys, values).flatten(-2).reshape(u.shape)
        return self.linear(out * F.silu(self.linear(u, at + "output_gate")), at + "proj"), (k, v)

    def cross(self, h, at, key, value, mask):
        q = self.split(rms_norm(self.linear(h.flatten(1, 2), at + "q_linear"), self.w[at + "q_norm.weight"], 1e-6))
        return self.linear(attention(q, key, value, mask).flatten(-2), at + "proj").reshape(h.shape)

    def mlp(self, u, at, grid, left):
        x = F.silu(self.linear(u, at + "inverted_conv.conv")).flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2)
        w = self.w[at + "depth_conv.conv.weight"]
        x = F.conv2d(x.contiguous() if self.dense else x, w, self.w[at + "depth_conv.conv.bias"], padding=1,
                     groups=w.shape[0])
        a, g = x.permute(0, 2, 3, 1).chunk(2, -1)
        r = self.linear(a * F.silu(g), at + "point_conv.conv").reshape(u.shape)
        taps = self.w[at + "t_conv.weight"].squeeze(-1)
        left = torch.zeros_like(r[:, :1]) if left is None else left.unsqueeze(1)
        before, after = torch.cat((left, r[:, :-1]), 1), torch.cat((r[:, 1:], torch.zeros_like(left)), 1)
        return r + F.linear(torch.cat((before, r, after), -1), torch.cat(taps.unbind(-1), 1)), r[:, -1]

    def text_keys(self, text):
        """Keys and values of every block for a text [B, L, caption channels]."""
        y = self.linear(F.gelu(self.linear(text, "dit.y_embedder.y_proj.fc1"), approximate="tanh"),
                        "dit.y_embedder.y_proj.fc2")
        y = rms_norm(y, self.w["dit.attention_y_norm.weight"], 1e-5)
        pairs = []
        for i in range(self.c["depth"]):
            k, v = self.linear(y, f"dit.blocks.{i}.cross_attn.kv_linear").chunk(2, -1)
            k = rms_norm(k, self.w[f"dit.blocks.{i}.cross_attn.k_norm.weight"], 1e-6)
            pairs.append((self.split(k), self.split(v)))
        return pairs

    def encode(self, ids):
        """The instruction encoder: i64 [B, L] with 0 for padding."""
        w = lambda name: self.w["text." + name]
        h = F.embedding(ids, w("word")) + w("position")
        q, k, v = self.linear(rms_norm(h, w("norm_attn.weight"), 1e-5), "text.qkv").unflatten(-1, (3, 4, -1)).unbind(2)
        h = h + self.linear(attention(q, k, v, ids != 0).flatten(-2), "text.proj")
        inner = self.linear(rms_norm(h, w("norm_mlp.weight"), 1e-5), "text.fc1")
        h = h + self.linear(F.gelu(inner, approximate="tanh"), "text.fc2")
        return rms_norm(h, w("norm_out.weight"), 1e-5)

    def network(self, x, t, keys, mask, past=None, first_frame=0):
        """x [B, 2 Cl, T, H, W] to u [B, Cl, T, H, W], and what each block would hand to the next chunk."""
        batch, _, frames, *grid = x.shape
        width = self.c["width"]
        rope = rope_table(first_frame, frames, *grid, width // self.heads)
        angle = t.trunc()[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        e = torch.cat((angle.cos(), angle.sin()), -1)
        temb = self.linear(F.silu(self.linear(e, "dit.t_embedder.mlp.0")), "dit.t_embedder.mlp.2")
        t0 = self.linear(F.silu(temb), "dit.t_block.1").reshape(batch, 1, 6, width)
        norm = lambda h, shift, scale: F.layer_norm(h, (width,), eps=1e-6) * (1 + scale) + shift
        h = self.linear(x.permute(0, 2, 3, 4, 1).flatten(2, 3), "dit.x_embedder.proj")
        memory = []
        for i in range(self.c["depth"]):
            at = f"dit.blocks.{i}."
            mod = (self.w[at + "scale_shift_table"] + t0).unsqueeze(3).unbind(2)
            attend = self.softmax if i in self.c["softmax_blocks"] else self.gdn
            own, state = attend(norm(h, mod[0], mod[1]), at + "attn.", rope, past[i][0] if past else None)
            h = h + mod[2] * own
            h = h + self.cross(h, at + "cross_attn.", *keys[i], mask)
            branch, tail = self.mlp(norm(h, mod[3], mod[4]), at + "mlp.", grid, past[i][1] if past else None)
            h = h + mod[5] * branch
            memory.append((state, tail))
        mod = self.w["dit.final_layer.scale_shift_table"] + temb[:, None]
        shift, scale = mod.reshape(batch, 1, 2, 1, width).unbind(2)
        out = self.linear(norm(h, shift, scale), "dit.final_layer.linear")
        return out.unflatten(2, grid).permute(0, 4, 1, 2, 3), memory

    def velocity(self, x, source, basis, sigma, t, *rest):
        u, memory = self.network(torch.cat((x, source), 1), t, *rest)
        if self.config["prediction"] == "velocity":
            return u, memory
        weights = u[:, -36:].unflatten(1, (12, 3)).flatten(3)
        mixed = torch.einsum("bfkn,bkcn->bfcn", basis, weights).reshape(source.shape)
        x0 = source + F.pad(u[:, :-36], (0,) * 7 + (36,)) + mixed
        return (x - x0) / sigma.clamp(min=1e-3).reshape(-1, 1, 1, 1, 1), memory


def encode_pixels(pixels, basis, p):
    """[F, H, W, 3] in [0, 1] -> latents [1, C, F, h, w] of p x p patches."""
    count, height, width, _ = pixels.shape
    x = (pixels * 2 - 1).reshape(count, height // p, p, width // p, p, 3)
    return F.linear(x.transpose(2, 3).flatten(3), basis).permute(3, 0, 1, 2)[None].contiguous()


def colour_functions(pixels):
    r, g, b = pixels.clamp(0, 1).unbind(3)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    s = ((chroma / (high + 1e-3) - 0.2) / 0.4).clamp(0, 1)
    weight = s * s * (3 - 2 * s) / (chroma + 1e-3)
    band = lambda a, f, b, c: (a - f(b, c)).relu().square() * weight
    opposite = lambda a, b, c: (torch.minimum(b, c) - a).relu().square() * weight
    yield torch.stack((band(r, torch.maximum, g, b), band(g, torch.maximum, r, b), band(b, torch.maximum, r, g)), 3)
    yield torch.stack((opposite(b, r, g), opposite(r, g, b), opposite(g, r, b)), 3)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    taps = torch.tensor([0.03465, 0.1197, 0.2150, 0.2613, 0.2150, 0.1197, 0.03465])
    blur = F.conv2d(F.pad(luma[:, None], (3, 3, 3, 3), "replicate"), (taps[:, None] * taps)[None, None])[:, 0]
    dark = (blur - luma).relu() / (blur + 0.08)
    yield torch.stack((luma * luma, dark, dark * dark), 3)


def colour_basis(pixels, basis, p):
    """What models/colour_basis computes of one chunk."""
    parts = [encode_pixels(planes + 0.5, basis, p) for planes in colour_functions(pixels)]
    parts.append(encode_pixels(pixels, basis, p))
    return torch.cat([z.unflatten(1, (-1, 3)).flatten(3) for z in parts], 2)


class Repeat:
    """One piece of work: `runs` are ways to do it, check(run) gives the relative error of one of them."""

    def __init__(self, path):
        self.saved, self.meta = read_safetensors(path)
        self.config = json.loads(self.meta["config"])
        self.runs = [self.make(dense) for dense in (False, True)]

    def brook(self, dense, trainable=False):
        weights = {k[len("weights."):]: v.clone() for k, v in self.saved.items() if k.startswith("weights.")}
        for w in weights.values():
            w.requires_grad_(trainable)
        return Brook(weights, self.config, dense)

    def text(self):
        depth = self.config["dit"]["depth"]
        keys = [(self.saved[f"text.k.{i}"], self.saved[f"text.v.{i}"]) for i in range(depth)]
        return keys, self.saved["text.mask"].bool()

    def past(self):
        dit = self.config["dit"]
        names = lambda i: ("k", "v") if i in dit["softmax_blocks"] else ("kv", "z")
        blocks = [(tuple(self.saved[f"past.{i}.{n}"] for n in names(i)), self.saved[f"past.{i}.tail"])
                  for i in range(dit["depth"])]
        return blocks, int(self.meta["first_frame"])

    def check(self, run):
        out, want = run().double(), self.saved["out"].double()
        return float((out - want).abs().max() / want.abs().max())


class Forward(Repeat):
    def make(self, dense):
        brook, keys, past = self.brook(dense), self.text(), self.past()
        return lambda: brook.network(self.saved["x"], self.saved["t"], *keys, *past)[0]


class Chunk(Repeat):
    def make(self, dense):
        brook, keys, past = self.brook(dense), self.text(), self.past()
        basis, p = codec_basis(self.config["patch"]), self.config["patch"]
        steps = self.saved["steps"].tolist() + [0]

        def run():
            frames = self.saved["frames"]
            pixels = frames.float() / 255
            source = encode_pixels(pixels, basis, p)
            functions = colour_basis(pixels, basis, p)
            x = self.saved["noise"]
            for now, after in zip(steps, steps[1:]):
                level = torch.full((1,), now / 1000)
                v = brook.velocity(x, source, functions, level, torch.full((1,), float(now)), *keys, *past)[0]
                x = x + v * ((after - now) / 1000)
            brook.network(torch.cat((x, source), 1), torch.zeros(1), *keys, *past)
            patches = F.linear(x[0].permute(1, 2, 3, 0), basis.T).unflatten(-1, (p, p, 3))
            pixels = (patches.transpose(2, 3).reshape(frames.shape) + 1) * 0.5
            return (pixels.clamp(0, 1) * 255 + 0.5).to(torch.uint8)

        return run

    def check(self, run):
        """Rounding to whole levels may fall either way: the mean distance counts, relative to full scale."""
        return float((run().double() - self.saved["out"].double()).abs().mean() / 255)


class TrainingStep(Repeat):
    def make(self, dense):
        brook = self.brook(dense, trainable=True)
        lr, beta1, beta2, eps, decay = self.saved["adamw"].tolist()
        optimizer = torch.optim.AdamW(brook.w.values(), lr, (beta1, beta2), eps, decay)
        ids, source, basis, target, noise, sigma = (
            self.saved[n] for n in ("ids", "source", "basis", "target", "noise", "sigma")
        )
        sigma = sigma.float()
        level = sigma.reshape(-1, 1, 1, 1, 1)

        def run():
            with torch.enable_grad():
                optimizer.zero_grad()
                keys = brook.text_keys(brook.encode(ids))
                x = target * (1 - level) + noise * level
                v, _ = brook.velocity(x, source, basis, sigma, sigma * 1000, keys, ids != 0)
                loss = F.mse_loss(v, noise - target)
                loss.backward()
                optimizer.step()
            return loss.detach()

        return run

    def check(self, run):
        """The losses of the first steps: the second one is right only if the gradients and the update are."""
        want = self.saved["losses"].tolist()
        return max(abs(float(run()) - w) / w for w in want)


def codec_basis(p):
    """Orthonormal rows [3 p p, p p 3]: DCT of a patch from low to high frequency, three colour directions each."""
    k = torch.arange(p).double()
    dct = torch.cos(math.pi * (k + 0.5) * k[:, None] / p) * math.sqrt(2 / p)
    dct[0] /= math.sqrt(2)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]).double()
    colours /= colours.norm(dim=1, keepdim=True)
    order = sorted(range(p * p), key=lambda f: f // p + f % p)
    planes = torch.einsum("ay,bx,mc->abmyxc", dct, dct, colours).reshape(p * p, 3, -1)
    return planes[order].reshape(3 * p * p, -1).float()


WORK = {"brook_dit_forward": Forward, "brook_chunk": Chunk, "brook_training_step": TrainingStep}
