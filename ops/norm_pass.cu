#include "ops/norm_pass.cuh"

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

template <int P, class T>
__device__ void widen(const Pack<T, P>& x, float (&out)[P]) {
#pragma unroll
  for (int i = 0; i < P; ++i) out[i] = float(x.v[i]);
}
template <class T, int P>
__device__ Pack<T, P> narrow(const float (&x)[P]) {
  Pack<T, P> out;
#pragma unroll
  for (int i = 0; i < P; ++i) out.v[i] = convert<T>(x[i]);
  return out;
}

// A pack as four words: the registers of a row of bf16 hold two values each only so.
template <class T>
__device__ uint4 load_words(const T* p) {
  return *reinterpret_cast<const uint4*>(p);
}
template <class T>
__device__ void store_words(T* p, uint4 x) {
  *reinterpret_cast<uint4*>(p) = x;
}
template <class T, int P>
__device__ void widen_words(uint4 x, float (&out)[P]) {
  const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2)
      out[2 * i] = __uint_as_float(words[i] << 16), out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    else
      out[i] = __uint_as_float(words[i]);
  }
}
template <class T, int P>
__device__ uint4 narrow_words(const float (&x)[P]) {
  const auto pack = narrow<T>(x);
  return reinterpret_cast<const uint4&>(pack);
}
// Keeps the compiler from holding on to the widened values, which need twice the registers.
template <int N>
__device__ void keep_packed(uint4 (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(x[i].x), "+r"(x[i].y), "+r"(x[i].z), "+r"(x[i].w));
}

// Turns the P / 2 pairs of a pack by the angles of pair `pair` on.
template <int P>
__device__ void rotate(float (&v)[P], const float* cos, const float* sin, int64_t pair, float sign) {
  const auto c = load_pack<float, P / 2>(cos + pair), s = load_pack<float, P / 2>(sin + pair);
#pragma unroll
  for (int i = 0; i < P / 2; ++i) {
    const float re = v[2 * i], im = v[2 * i + 1], t = sign * s.v[i];
    v[2 * i] = re * c.v[i] - im * t;
    v[2 * i + 1] = re * t + im * c.v[i];
  }
}

// The tables of a rotation: D channels to a head, N tokens.
struct Turn {
  const float *cos, *sin;
  uint32_t d, tokens;
  __device__ int64_t pair(int64_t row, int64_t j) const {
    return int64_t(uint32_t(row) % tokens) * (d / 2) + uint32_t(j) % d / 2;
  }
};

template <class T>
struct PassArguments {
  int64_t rows, c, rows_per_group;
  const T* x;
  int64_t x_step;
  const T *branch, *gate;
  T* sum;
  const T *w, *b;
  float offset, eps;
  Turn turn;
  T* y;
  int64_t y_step;
  float *mean, *r;
};

constexpr int kPassWarps = 4, kPassBlocks = 5;  // of a block, and blocks on a multiprocessor

template <class T, int kPer, bool kCentred, bool kResidual, bool kTurned>
__global__ void __launch_bounds__(32 * kPassWarps, kPassBlocks) norm_pass_kernel(PassArguments<T> a) {
  constexpr int P = kPack<T>;
  const int64_t row = int64_t(blockIdx.x) * kPassWarps + threadIdx.y;
  if (row >= a.rows) return;
  // Pack i of this lane lies i * kStep elements after its first, in every operand.
  constexpr int kStep = 32 * P;
  const int first = int(threadIdx.x) * P, left = int(a.c) - first;
  const int64_t group = row / a.rows_per_group * a.c + first;
  const float per_c = 1.f / float(a.c);
  const T* from = a.x + row * a.x_step + first;
  uint4 x[kPer];
  float v[P], total = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kPer; ++i) x[i] = i * kStep < left ? load_words(from + i * kStep) : uint4{};
  if constexpr (kResidual) {
    const T *branch = a.branch + row * a.c + first, *gate = a.gate + group;
    T* sum = a.sum + row * a.c + first;
    constexpr int kAtOnce = 3;  // packs of the branch that the registers hold
#pragma unroll
    for (int begin = 0; begin < kPer; begin += kAtOnce) {
      uint4 f[kAtOnce];
#pragma unroll
      for (int i = begin; i < begin + kAtOnce && i < kPer; ++i)
        if (i * kStep < left) f[i - begin] = load_words(branch + i * kStep);
#pragma unroll
      for (int i = begin; i < begin + kAtOnce && i < kPer; ++i) {
        if (i * kStep >= left) continue;
        float add[P], z[P];
        widen_words<T>(x[i], v);
        widen_words<T>(f[i - begin], add);
        if (a.gate) widen_words<T>(load_words(gate + i * kStep), z);
#pragma unroll
        for (int k = 0; k < P; ++k) v[k] += a.gate ? z[k] * add[k] : add[k];
        x[i] = narrow_words<T>(v);
        store_words(sum + i * kStep, x[i]);
      }
    }
  }
  if constexpr (kCentred) {
    if constexpr (kResidual) keep_packed(x);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      widen_words<T>(x[i], v);
#pragma unroll
      for (int k = 0; k < P; ++k) total += v[k];
    }
    total = warp_reduce(total, Plus{});
  }
  keep_packed(x);
  const float mu = kCentred ? total * per_c : 0.f;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (i * kStep >= left) continue;
    widen_words<T>(x[i], v);
#pragma unroll
    for (int k = 0; k < P; ++k) squares += (v[k] - mu) * (v[k] - mu);
  }
  const float rstd = 1.f / sqrtf(warp_reduce(squares, Plus{}) * per_c + a.eps);
  keep_packed(x);
  const T *scale = a.w + group, *shift = a.b + group;
  T* to = a.y + row * a.y_step + first;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (i * kStep >= left) continue;
    float w[P], b[P];
    widen_words<T>(x[i], v);
    if (a.w) widen_words<T>(load_words(scale + i * kStep), w);
    if (a.b) widen_words<T>(load_words(shift + i * kStep), b);
#pragma unroll
    for (int k = 0; k < P; ++k) {
      v[k] = (v[k] - mu) * rstd;
      if (a.w) v[k] *= w[k] + a.offset;
      if (a.b) v[k] += b[k];
    }
    if constexpr (kTurned) rotate(v, a.turn.cos, a.turn.sin, a.turn.pair(row, first + i * kStep), 1.f);
    store_words(to + i * kStep, narrow_words<T>(v));
  }
  if (threadIdx.x != 0) return;
  if (kCentred) a.mean[row] = mu;
  a.r[row] = rstd;
}

// --- Backward
// --------------------------------------------------------------------------------------------------

template <class T>
struct BackwardArguments {
  int64_t rows, c, rows_per_group, rows_per_part;
  const T *g, *x;
  int64_t g_step, x_step;
  const T* w;
  float offset;
  Turn turn;
  const float *mean, *r;
  const T *direct, *branch, *gate;
  T *dx, *dbranch;
  float* partial;  // [parts, groups, kSums, c]: sums of g h, of g, of dx branch; or null
};

// a * b, rounded: never fused with what it is subtracted from, so that a row which equals its mean leaves
// exactly nothing.
__device__ float product(float a, float b) { return __fmul_rn(a, b); }

constexpr int kMostColumns = 320;  // threads of a block: two of 2560 bf16 channels fit a multiprocessor
constexpr int kRowsAtOnce = 2;

// Every thread has one pack of the columns and goes down the rows of its part, some at a time; the two sums
// along each row are the block's.
template <class T, bool kCentred, bool kResidual, bool kTurned>
__global__ void __launch_bounds__(kMostColumns, 2) norm_pass_backward_kernel(BackwardArguments<T> a) {
  constexpr int P = kPack<T>, kSums = kResidual ? 3 : kCentred ? 2 : 1, kRows = kRowsAtOnce;
  __shared__ float2 sums[2][kRows][kMostColumns / 32];
  const int64_t j = int64_t(threadIdx.x) * P;
  const bool active = j < a.c;
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int64_t group = blockIdx.y * a.c + j, first = blockIdx.y * a.rows_per_group;
  const int64_t begin = blockIdx.x * a.rows_per_part, end = min(a.rows_per_group, begin + a.rows_per_part);
  const float per_c = 1.f / float(a.c);
  float w[P], z[P], acc[kSums][P] = {};
#pragma unroll
  for (int k = 0; k < P; ++k) w[k] = z[k] = 1;
  if (active && a.w) {
    widen(load_pack<T, P>(a.w + group), w);
#pragma unroll
    for (int k = 0; k < P; ++k) w[k] += a.offset;
  }
  if (kResidual && active && a.gate) widen(load_pack<T, P>(a.gate + group), z);
  int turn = 0;
  for (int64_t at = begin; at < end; at += kRows, turn ^= 1) {
    Pack<T, P> g[kRows], x[kRows], direct[kRows], branch[kRows];
    float mu[kRows], r[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      g[i] = x[i] = direct[i] = branch[i] = Pack<T, P>{};
      mu[i] = r[i] = 0;
      const int64_t row = first + at + i;
      if (at + i >= end) continue;
      if (kCentred) mu[i] = a.mean[row];
      r[i] = a.r[row];
      if (!active) continue;
      if (a.g) g[i] = load_pack<T, P>(a.g + row * a.g_step + j);
      x[i] = load_pack<T, P>(a.x + row * a.x_step + j);
      if constexpr (kResidual) {
        if (a.direct) direct[i] = load_pack<T, P>(a.direct + row * a.c + j);
        if (a.gate) branch[i] = load_pack<T, P>(a.branch + row * a.c + j);
      }
    }
    // g (turned back) in f32: kept, since both halves of the work need it.
    float up[kRows][P];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      widen(g[i], up[i]);
      if (kTurned && active && at + i < end)
        rotate(up[i], a.turn.cos, a.turn.sin, a.turn.pair(first + at + i, j), -1.f);
      float v[P], total = 0, dot = 0;
      widen(x[i], v);
#pragma unroll
      for (int k = 0; k < P; ++k) {
        const float u = product(up[i][k], w[k]);
        total += u;
        dot += u * (v[k] - mu[i]);
      }
      if (!active) total = dot = 0;
      if (kCentred) total = warp_reduce(total, Plus{});
      dot = warp_reduce(dot, Plus{});
      if (threadIdx.x % 32 == 0) sums[turn][i][warp] = {total, dot};
    }
    __syncthreads();  // the other half of `sums` is written before anyone comes here again
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float total = 0, dot = 0;
      for (int k = 0; k < warps; ++k) {
        total += sums[turn][i][k].x;
        dot += sums[turn][i][k].y;
      }
      if (!active || at + i >= end) continue;
      const int64_t row = first + at + i;
      const float shift = kCentred ? total * per_c : 0.f, pull = dot * r[i] * r[i] * per_c;
      float v[P], d[P];
      widen(x[i], v);
#pragma unroll
      for (int k = 0; k < P; ++k) {
        const float u = up[i][k], centred = v[k] - mu[i];
        d[k] = r[i] * (product(u, w[k]) - shift - centred * pull);
        acc[0][k] += u * centred * r[i];
        if (kCentred) acc[1][k] += u;
      }
      if constexpr (kResidual) {
        float add[P], f[P];
        widen(direct[i], add);
#pragma unroll
        for (int k = 0; k < P; ++k) d[k] += add[k];
        if (a.gate) {
          widen(branch[i], f);
#pragma unroll
          for (int k = 0; k < P; ++k) {
            acc[2][k] += d[k] * f[k];
            f[k] = d[k] * z[k];
          }
          store_pack(a.dbranch + row * a.c + j, narrow<T>(f));
        }
      }
      store_pack(a.dx + row * a.c + j, narrow<T>(d));
    }
  }
  if (!active || !a.partial) return;
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    float* to = a.partial + ((int64_t(blockIdx.x) * gridDim.y + blockIdx.y) * kSums + s) * a.c + j;
#pragma unroll
    for (int k = 0; k < P; k += 4)
      store_pack(to + k, Pack<float, 4>{acc[s][k], acc[s][k + 1], acc[s][k + 2], acc[s][k + 3]});
  }
}

// --- Launches
// --------------------------------------------------------------------------------------------------

int64_t step_of(const Tensor& rows) { return rows.dim(0) == 1 ? rows.dim(1) : rows.strides()[0]; }

// Whether rows of c channels are whole packs at aligned addresses, in every tensor given.
bool in_packs(int64_t c, const Tensors& all) {
  for (const Tensor& t : all) {
    if (!t) continue;
    if (!is_aligned(t.raw(), 16)) return false;
    if (t.dims() == 2 && step_of(t) * size_of(t.dtype()) % 16 != 0) return false;
  }
  return c * size_of(all[0].dtype()) % 16 == 0;
}

// Whether a pack of `per_pack` channels never leaves its head.
bool turns_in_packs(const Tensor& cos, const Tensor& sin, int64_t per_pack) {
  return !cos || (2 * cos.dim(1) % per_pack == 0 && is_aligned(cos.raw(), 16) && is_aligned(sin.raw(), 16));
}

Turn turn_of(const Tensor& cos, const Tensor& sin) {
  if (!cos) return {nullptr, nullptr, 1, 1};
  return {pointer<float>(cos), pointer<float>(sin), uint32_t(2 * cos.dim(1)), uint32_t(cos.dim(0))};
}

// f.template operator()<T>() for the two types; false for others.
template <class F>
bool with_type(DType t, F&& f) {
  if (t == DType::f32) return f.template operator()<float>();
  if (t == DType::bf16) return f.template operator()<__nv_bfloat16>();
  return false;
}

template <class T, int kPer>
void launch_pass(const PassArguments<T>& a, bool centred, bool residual, bool turned) {
  const Launch l{{blocks_for(a.rows, kPassWarps)}, {32, kPassWarps}};
  if (turned)
    launch(l, norm_pass_kernel<T, kPer, false, false, true>, a);
  else if (residual)
    launch(l, norm_pass_kernel<T, kPer, true, true, false>, a);
  else if (centred)
    launch(l, norm_pass_kernel<T, kPer, true, false, false>, a);
  else
    launch(l, norm_pass_kernel<T, kPer, false, false, false>, a);
}

}  // namespace

bool norm_pass(const NormPass& p) {
  const int64_t c = p.x.dim(-1), rows = p.x.numel() / std::max<int64_t>(c, 1);
  return with_type(p.x.dtype(), [&]<class T>() {
    const int64_t per = (c / kPack<T> + 31) / 32;
    if (rows == 0 || rows > 0x7fffffff || per > 9 ||
        !in_packs(c, {p.x, p.branch, p.gate, p.sum, p.w, p.b, p.y}) ||
        !turns_in_packs(p.cos, p.sin, kPack<T>))
      return false;
    const PassArguments<T> a{rows,
                             c,
                             p.norm.rows_per_group,
                             pointer<T>(p.x),
                             p.x.dims() == 2 ? step_of(p.x) : c,
                             pointer<T>(p.branch),
                             pointer<T>(p.gate),
                             pointer<T>(p.sum),
                             pointer<T>(p.w),
                             pointer<T>(p.b),
                             float(p.norm.offset),
                             float(p.eps),
                             turn_of(p.cos, p.sin),
                             pointer<T>(p.y),
                             p.y.dims() == 2 ? step_of(p.y) : c,
                             pointer<float>(p.mean),
                             pointer<float>(p.r)};
    const bool residual = p.branch.defined(), turned = p.cos.defined();
    if (per <= 1)
      launch_pass<T, 1>(a, p.norm.centred, residual, turned);
    else if (per <= 3)
      launch_pass<T, 3>(a, p.norm.centred, residual, turned);
    else
      launch_pass<T, 9>(a, p.norm.centred, residual, turned);
    return true;
  });
}

bool norm_pass_backward(const NormPassBackward& p) {
  const int64_t c = p.x.dim(-1), per_group = p.norm.rows_per_group;
  const int64_t rows = p.x.numel() / std::max<int64_t>(c, 1);
  return with_type(p.x.dtype(), [&]<class T>() {
    const int64_t threads = (c / kPack<T> + 31) / 32 * 32;
    if (rows == 0 || threads > kMostColumns || rows / per_group > 65535 ||
        !in_packs(c, {p.x, p.g, p.w, p.direct, p.branch, p.gate, p.dx, p.dbranch}) ||
        !turns_in_packs(p.cos, p.sin, kPack<T>))
      return false;
    const int64_t groups = rows / per_group;
    // Some blocks for every multiprocessor of a large GPU, of at least 8 rows: by the shape alone, so that
    // sums repeat.
    const int64_t parts = std::clamp<int64_t>(per_group / 8, 1, std::max<int64_t>(1, 396 / groups));
    const bool residual = p.branch.defined(), turned = p.cos.defined();
    const int64_t kinds = residual ? 3 : p.norm.centred ? 2 : 1;
    Tensor partial;
    if (p.dw || p.db || p.dgate) partial = Tensor({parts, groups, kinds, c}, DType::f32, Device::cuda);
    const BackwardArguments<T> a{rows,
                                 c,
                                 per_group,
                                 (per_group + parts - 1) / parts,
                                 pointer<T>(p.g),
                                 pointer<T>(p.x),
                                 p.g && p.g.dims() == 2 ? step_of(p.g) : c,
                                 p.x.dims() == 2 ? step_of(p.x) : c,
                                 pointer<T>(p.w),
                                 float(p.norm.offset),
                                 turn_of(p.cos, p.sin),
                                 pointer<float>(p.mean),
                                 pointer<float>(p.r),
                                 pointer<T>(p.direct),
                                 pointer<T>(p.branch),
                                 pointer<T>(p.gate),
                                 pointer<T>(p.dx),
                                 pointer<T>(p.dbranch),
                                 pointer<float>(partial)};
    const Launch l{{unsigned(parts), unsigned(groups)}, {unsigned(threads)}};
    if (turned)
      launch(l, norm_pass_backward_kernel<T, false, false, true>, a);
    else if (residual)
      launch(l, norm_pass_backward_kernel<T, true, true, false>, a);
    else if (p.norm.centred)
      launch(l, norm_pass_backward_kernel<T, true, false, false>, a);
    else
      launch(l, norm_pass_backward_kernel<T, false, false, false>, a);
    if (!partial) return true;
    const Tensor sums = rivulet::sum_to(partial, {1, groups, kinds, c});
    const Tensor* results[] = {&p.dw, &p.db, &p.dgate};
    for (int64_t k = 0; k < kinds; ++k)
      if (*results[k]) results[k]->copy_from(sums.select(2, k).reshape(results[k]->shape()));
    return true;
  });
}

}  // namespace rivulet::cuda
