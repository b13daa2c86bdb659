// conv3d in bf16 by the tensor cores (ops/conv_task.cuh): forward, and the gradient of x, which is a convolution
// with the taps in reverse. Borders in time cost nothing; x is copied with a rim only where the border in space
// is not zeros or frames stand on the left.
#include <algorithm>

#include "ops/conv_task.cuh"

namespace rivulet::cuda {
namespace {

struct PadMap {
  int in[3], out[3], before[3], c;
  Border border[3];
  const __nv_bfloat16* left[kMostLeftFrames] = {};
  int lefts = 0;
};

__device__ int continued(int i, int n, Border border) {
  if (i >= 0 && i < n) return i;
  if (border == Border::reflect) return i < 0 ? -i : 2 * (n - 1) - i;
  return border == Border::replicate ? (i < 0 ? 0 : n - 1) : -1;
}

// A thread per 8 channels of the result.
__global__ void __launch_bounds__(kThreads)
    pad_kernel(const __nv_bfloat16* x, const __grid_constant__ PadMap m, int64_t packs, __nv_bfloat16* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= packs) return;
  const int per_pixel = m.c / 8, channel = int(i % per_pixel) * 8;
  int64_t rest = i / per_pixel;
  const int ox = int(rest % m.out[2]);
  rest /= m.out[2];
  const int oy = int(rest % m.out[1]);
  rest /= m.out[1];
  const int ot = int(rest % m.out[0]);
  const int64_t b = rest / m.out[0];
  const int px = continued(ox - m.before[2], m.in[2], m.border[2]),
            py = continued(oy - m.before[1], m.in[1], m.border[1]);
  Pack<__nv_bfloat16, 8> v;
#pragma unroll
  for (int e = 0; e < 8; ++e) v.v[e] = __float2bfloat16(0.f);
  const __nv_bfloat16* frame = nullptr;
  const int64_t size = int64_t(m.in[1]) * m.in[2] * m.c;
  if (ot < m.lefts) {
    frame = m.left[ot] + b * size;
  } else {
    const int t = continued(ot - m.before[0], m.in[0], m.border[0]);
    if (t >= 0) frame = x + (b * m.in[0] + t) * size;
  }
  if (frame != nullptr && px >= 0 && py >= 0)
    v = load_pack<__nv_bfloat16>(frame + (int64_t(py) * m.in[2] + px) * m.c + channel);
  store_pack(out + i * 8, v);
}

int16_t place_in_time(int i, int n, Border border) {
  if (i >= 0 && i < n) return int16_t(i);
  if (border == Border::reflect) return int16_t(i < 0 ? -i : 2 * (n - 1) - i);
  return border == Border::replicate ? int16_t(i < 0 ? 0 : n - 1) : Frames::kZero;
}

}  // namespace

bool has_conv3d_bf16(const Shape& x, const Shape& w, const std::array<int64_t, 3>& stride,
                     const std::array<int64_t, 3>& out) {
  return x[4] % 8 == 0 && w[0] % 8 == 0 && w[0] <= 4096 && x[4] <= 4096 && stride == std::array<int64_t, 3>{1, 1, 1} &&
         out[0] + w[2] - 1 <= kMostFrames && x[0] * (x[1] + w[2]) <= INT16_MAX;
}

TensorCoreConv::TensorCoreConv(const Tensor& x, const ConvGeometry& g, const std::array<int64_t, 3>& kernel,
                               const Shape& y) {
  task.batch = int(x.dim(0));
  task.frames = int(y[1]), task.height = int(y[2]), task.width = int(y[3]), task.co = int(y[4]);
  task.kt = int(kernel[0]), task.kh = int(kernel[1]), task.kw = int(kernel[2]);
  task.c = int(x.dim(4));
  task.flipped = g.transposed;
  std::array<int64_t, 3> before = g.before;
  if (g.transposed)
    for (int i = 0; i < 3; ++i) before[i] = kernel[i] - 1 - g.before[i];
  const bool rim = g.border[1] != Border::zeros || g.border[2] != Border::zeros, copy = rim || !g.left.empty();
  source = is_aligned(x.raw(), 16) ? x : x.clone();
  if (copy) {
    PadMap m;
    Shape shape = x.shape();
    for (int i = 0; i < 3; ++i) {
      // In time only the frames on the left are joined; what lies behind the last is a matter of places.
      if (i == 0 && g.left.empty()) {
        m.before[0] = 0;
      } else {
        m.before[i] = int(before[i]);
        shape[i + 1] = i == 0 ? x.dim(1) + before[0] : y[i + 1] + kernel[i] - 1;
      }
      m.in[i] = int(x.dim(i + 1));
      m.out[i] = int(shape[i + 1]);
      m.border[i] = g.border[i];
    }
    m.c = task.c;
    for (const Tensor& f : g.left) m.left[m.lefts++] = pointer<const __nv_bfloat16>(f);
    source = Tensor(shape, DType::bf16, Device::cuda);
    launch({blocks_for(source.numel() / 8, kThreads), kThreads}, pad_kernel, pointer<const __nv_bfloat16>(source), m,
           source.numel() / 8, pointer<__nv_bfloat16>(source));
  }
  task.y0 = copy ? 0 : -int(before[1]);
  task.x0 = copy ? 0 : -int(before[2]);
  frames = Frames(source.reshape({source.dim(0) * source.dim(1), source.dim(2), source.dim(3), source.dim(4)}));
  frames.at.clear();
  const int lead = int(source.dim(1) - x.dim(1));  // frames that were joined
  for (int i = 0; i < task.frames + task.kt - 1; ++i) {
    const int t = i - int(before[0]);
    frames.at.push_back(t < 0 && lead > 0 ? int16_t(i) : place_in_time(t, int(x.dim(1)), g.border[0]));
    if (lead > 0 && t >= 0 && frames.at.back() != Frames::kZero)
      frames.at.back() = int16_t(frames.at.back() + lead);
  }
  task.x = FramesView(frames);
  task.x.step = int(source.dim(1));
}

void conv3d_bf16(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvGeometry& g, Tensor& y) {
  TensorCoreConv conv(x, g, {w.dim(1), w.dim(2), w.dim(3)}, y.shape());
  ConvTask& t = conv.task;
  const Tensor wide = bias ? bias.to(DType::f32) : bias;
  Frames out(y.reshape({y.dim(0) * y.dim(1), y.dim(2), y.dim(3), y.dim(4)}));
  out.at.resize(size_t(y.dim(1)));
  t.w = pointer<__nv_bfloat16>(w);
  t.bias = pointer<float>(wide);
  t.raw = FramesView(out);
  t.raw.step = t.out_frames = t.frames;
  run_conv(t, conv.frames, w);
}

}  // namespace rivulet::cuda
