#include <algorithm>
#include <limits>

#include "ops/conv_task.cuh"
#include "ops/wgmma.cuh"

// How a convolution is cut and run, and what follows where a tile cannot finish its pixels: the sum of the
// parts of cut taps, and the norm over more channels than a tile has.
namespace rivulet::cuda {

FramesView::FramesView(const Frames& f) {
  if (!f) return;
  check(f.count() <= kMostFrames, "conv_frames: ", f.count(), " frames in one call, at most ", kMostFrames);
  for (int i = 0; i < 2; ++i) store[i] = pointer<__nv_bfloat16>(f.stores[i]);
  height = int(f.height());
  width = int(f.width());
  c = int(f.channels());
  rim = int(f.rim);
  border = f.border;
  std::copy(f.at.begin(), f.at.end(), at);
}

void ConvTask::cut_squares(int count, int columns) {
  squares = count;
  tiles_w = (width + 7) / 8;
  tiles_h = (height + 7) / 8;
  tiles_t = batch * frames;
  tiles_n = (co + columns - 1) / columns;
}

int processors() {
  int device = 0, count = 0;
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

namespace {

// v = the sum of the parts, bias and add; or of frames x as they are. A warp per pixel of y, 8 channels of
// each lane at a time.
constexpr int kRowWarpsHere = 4, kMostPacks = 8, kMostFinished = 256 * kMostPacks;

template <int kPacks>
__global__ void __launch_bounds__(32 * kRowWarpsHere)
    finish_kernel(const __grid_constant__ ConvTask t, int from_parts) {
  const int positions = t.batch * t.frames * t.height * t.width,
            row = int(blockIdx.x) * kRowWarpsHere + int(threadIdx.y);
  if (row >= positions) return;
  const int lane = int(threadIdx.x);
  ConvTask::Place at{0, 0, 0, 0, true};
  const int line = row / t.width, frame = line / t.height;
  at.x = row - line * t.width;
  at.y = line - frame * t.height;
  at.b = frame / t.frames;
  at.t = frame - at.b * t.frames;
  const FramesView& like = t.raw ? t.raw : t.normed;
  float v[kPacks][8];
  float squares = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int n = p * 256 + lane * 8;
#pragma unroll
    for (int e = 0; e < 8; ++e) v[p][e] = 0;
    if (n >= t.co) continue;
    if (from_parts) {
      for (int s = 0; s < t.splits; ++s) {
        const float* part = t.parts + (int64_t(s) * positions + row) * t.co + n;
        const auto a = load_pack<float, 4>(part), b = load_pack<float, 4>(part + 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) v[p][e] += a.v[e], v[p][e + 4] += b.v[e];
      }
      if (t.bias != nullptr)
#pragma unroll
        for (int e = 0; e < 8; ++e) v[p][e] += t.bias[n + e];
      ConvTask::Place to = at;
      const int channel = t.moved(to, n);
      if (t.add != nullptr && to.valid) {
        const auto add = load_pack<__nv_bfloat16>(t.add + t.dense(like, to, channel, t.out_frames));
#pragma unroll
        for (int e = 0; e < 8; ++e) v[p][e] += __bfloat162float(add.v[e]);
      }
    } else {
      const auto x = load_pack<__nv_bfloat16>(t.x.pixel(at.b, at.t, at.y, at.x) + n);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[p][e] = __bfloat162float(x.v[e]);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) squares += v[p][e] * v[p][e];
  }
  const auto store = [&](const FramesView& view, auto&& value) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int n = p * 256 + lane * 8;
      if (n >= t.co) continue;
      Pack<__nv_bfloat16, 8> out;
#pragma unroll
      for (int e = 0; e < 8; ++e) out.v[e] = __float2bfloat16(value(v[p][e]));
      ConvTask::Place to = at;
      const int channel = t.moved(to, n);
      if (!to.valid) continue;
      store_pack(view.pixel(to.b, to.t, to.y, to.x) + channel, out);
      if (view.near_rim(to.y, to.x))
        view.each_copy(to.y, to.x,
                       [&](int y, int x) { store_pack(view.pixel(to.b, to.t, y, x) + channel, out); });
    }
  };
  if (t.raw) store(t.raw, [](float x) { return x; });
  if (!t.normed) return;
  const float scale = rsqrtf(warp_reduce(squares, Plus{}) / float(t.co) + 1e-8f);
  store(t.normed, [scale](float x) { return silu(x * scale); });
}

void finish(const ConvTask& task, bool from_parts) {
  check(task.co <= kMostFinished && task.positions() <= INT32_MAX, "conv_frames: ", task.co,
        " channels, at most ", kMostFinished, ", of ", task.positions(), " pixels");
  launch({dim3(blocks_for(task.positions(), kRowWarpsHere)), dim3(32, kRowWarpsHere)},
         task.co <= 512 ? finish_kernel<2> : finish_kernel<kMostPacks>, task, int(from_parts));
}

// How a task is run.
struct Plan {
  int columns = 0, splits = 1;
};

// The tiles, and parts of the taps where those keep more processors busy in the last wave.
Plan choose(const ConvTask& task, bool wgmma) {
  Plan best;
  const bool to_space = task.move == FramesConv::Move::to_space;
  const int one_cell = to_space ? task.co / (task.st * task.sh * task.sw) : 0;
  const auto fits = [&](int columns) { return to_space ? one_cell % columns == 0 : task.co > columns / 2; };
  best.columns = wgmma && fits(256) ? 256 : fits(128) ? 128 : 64;
  ConvTask probe = task;
  probe.cut_squares(wgmma ? squares_of_wgmma(best.columns) : kSquaresOfMma, best.columns);
  const int64_t tiles = int64_t(probe.tiles_m()) * probe.tiles_n, count = processors();
  const double part_bytes = 4.0 * double(task.positions()) * task.co;
  double least = std::numeric_limits<double>::infinity();
  for (int s : {1, task.kt}) {
    // Parts cost memory and time, and finish_kernel has no room for more channels.
    if (s > 1 && (task.co > kMostFinished || s * part_bytes > 160e6)) break;
    const double time = double((tiles * s + count - 1) / count) / s * (s > 1 ? 1.06 : 1.0);
    if (time < least * 0.999) least = time, best.splits = s;
  }
  return best;
}

}  // namespace

void run_conv(ConvTask task, const Frames& x, const Tensor& w) {
  const bool wgmma = has_wgmma() && task.kh == 3 && task.kw == 3;
  const Plan plan = choose(task, wgmma);
  task.splits = plan.splits;
  const FramesView raw = task.raw, normed = task.normed;
  const bool moved = task.move != FramesConv::Move::none,
             whole_pixels = task.move == FramesConv::Move::to_space ? normed.c == plan.columns
                                                                    : !moved && task.co <= plan.columns;
  const bool norm_after = normed && !(task.splits > 1 ? !moved : whole_pixels);
  Tensor parts;
  if (task.splits > 1) {
    parts = Tensor({task.splits, task.positions(), task.co}, DType::f32, Device::cuda);
    task.parts = parts.data<float>();
  }
  if (norm_after) {
    if (!raw) task.raw = normed;
    task.normed = {};
  }
  if (wgmma)
    conv_products_wgmma(task, x, w, plan.columns);
  else
    conv_products_mma(task, plan.columns);
  if (task.splits > 1) finish(task, true);
  if (norm_after) {
    ConvTask norm;
    norm.x = task.raw;
    norm.normed = normed;
    norm.batch = task.batch;
    norm.frames = task.out_frames;
    norm.height = normed.height, norm.width = normed.width, norm.co = normed.c;
    finish(norm, false);
  }
}

ConvTask conv_task(const FramesConv& job) {
  ConvTask t;
  t.x = FramesView(job.x);
  t.raw = FramesView(job.raw);
  t.normed = FramesView(job.normed);
  t.w = pointer<__nv_bfloat16>(job.w);
  t.bias = pointer<float>(job.bias);
  t.add = pointer<__nv_bfloat16>(job.add);
  t.move = job.move;
  t.st = int(job.block[0]), t.sh = int(job.block[1]), t.sw = int(job.block[2]);
  t.drop = int(job.drop);
  t.kt = int(job.w.dim(1)), t.kh = int(job.w.dim(2)), t.kw = int(job.w.dim(3));
  t.c = int(job.w.dim(4)), t.co = int(job.w.dim(0));
  t.frames = int(job.x.count()) - t.kt + 1;
  t.height = t.x.height, t.width = t.x.width;
  t.y0 = t.x.rim - t.kh / 2, t.x0 = t.x.rim - t.kw / 2;
  t.out_frames = int((job.raw ? job.raw : job.normed).count());
  return t;
}

void conv_frames(const FramesConv& job) { run_conv(conv_task(job), job.x, job.w); }

void move_frames(const Frames& x, const Frames& to, bool norm) {
  ConvTask t;
  t.x = FramesView(x);
  (norm ? t.normed : t.raw) = FramesView(to);
  t.frames = int(x.count()), t.height = t.x.height, t.width = t.x.width, t.co = t.x.c;
  finish(t, false);
}

}  // namespace rivulet::cuda
