#include <algorithm>
#include <limits>

#include "ops/conv_task.cuh"
#include "ops/wgmma.cuh"

// How a convolution is cut and run, and what follows where a tile cannot finish its pixels: the sum of the parts
// of cut taps, and the norm over more channels than a tile has.
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

void ConvTask::cut(int rows, int columns, bool even_boxes) {
  const auto up = [](int n, int d) { return (n + d - 1) / d; };
  int64_t best = std::numeric_limits<int64_t>::max();
  const int all_frames = batch * frames, widest = std::min(rows, (width + 7) / 8 * 8);
  for (int d = 1; d <= std::min(all_frames, 4); ++d)
    for (int a = 1; a <= 2; ++a)
      for (int bw = 1; bw <= std::min(widest, 256); ++bw) {
        int bh = std::min(rows / (d * a * bw), 256);
        while (bh > 0 && (bh * bw) % 8 != 0) --bh;
        if (bh == 0 || (even_boxes && d * a % 2 != 0)) continue;
        // Fewest tiles; then few copies, and boxes whose edges are short.
        const int64_t tiles = int64_t(up(all_frames, d)) * up(height, bh * a) * up(width, bw);
        const int64_t cost = tiles * 4096 + d * a * 512 + bw + bh * a;
        if (cost >= best) continue;
        best = cost;
        deep = d, across = a, box_w = bw, box_h = bh;
      }
  tiles_t = up(all_frames, deep);
  tiles_h = up(height, box_h * across);
  tiles_w = up(width, box_w);
  tiles_n = up(co, columns);
}

int processors() {
  int device = 0, count = 0;
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

namespace {

// v = the sum of the parts, bias and add; or of frames x as they are. A warp per pixel of y, 8 channels of each
// lane at a time.
constexpr int kRowWarpsHere = 4, kPacks = 8;

__global__ void __launch_bounds__(32 * kRowWarpsHere)
    finish_kernel(const __grid_constant__ ConvTask t, int from_parts) {
  const int64_t positions = int64_t(t.batch) * t.frames * t.height * t.width,
                row = int64_t(blockIdx.x) * kRowWarpsHere + threadIdx.y;
  if (row >= positions) return;
  const int lane = int(threadIdx.x);
  ConvTask::Place at{0, 0, 0, 0, true};
  at.x = int(row % t.width);
  at.y = int(row / t.width % t.height);
  at.t = int(row / t.width / t.height % t.frames);
  at.b = int(row / t.width / t.height / t.frames);
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
        const float* part = t.parts + (s * positions + row) * t.co + n;
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
  check(task.co <= 256 * kPacks, "conv_frames: ", task.co, " channels, at most ", 256 * kPacks);
  launch({dim3(blocks_for(task.positions(), kRowWarpsHere)), dim3(32, kRowWarpsHere)}, finish_kernel, task,
         int(from_parts));
}

// How a task is run.
struct Plan {
  int columns = 0, pair = 0, splits = 1;
};

// The tiles, and what keeps most processors busy in the last wave: parts of the taps, and what two blocks share.
Plan choose(const ConvTask& task, bool hopper) {
  Plan best;
  const bool to_space = task.move == FramesConv::Move::to_space;
  const int one_cell = to_space ? task.co / (task.st * task.sh * task.sw) : 0;
  const auto whole = [&](int columns) { return to_space ? one_cell % columns == 0 : task.co > columns / 2; };
  best.columns = hopper && whole(256) ? 256 : whole(128) ? 128 : 64;
  ConvTask probe = task;
  probe.cut(hopper ? hopper_rows(best.columns) : kMmaTileRows, best.columns);
  const int64_t m = probe.tiles_m(), n = probe.tiles_n, all = processors(), clusters = all / 2;
  const double part_bytes = 4.0 * double(task.positions()) * task.co;
  double least = std::numeric_limits<double>::infinity();
  for (int s = 1; s <= std::min(task.taps(), 9); ++s) {
    // finish_kernel has no room for more channels; parts cost memory and time.
    if (s > 1 && (task.co > 256 * kPacks || s * part_bytes > 160e6)) break;
    for (int pair = hopper ? 1 : 0; pair <= (hopper ? 2 : 0); ++pair) {
      if (pair == 2 && n % 2 != 0) continue;
      const int64_t units = pair == 1 ? (m + 1) / 2 * n : pair == 2 ? m * (n / 2) : m * n;
      const int64_t at_once = pair == 0 ? all : clusters;
      // Sharing weights moves fewer bytes than sharing pixels.
      const double time = double((units * s + at_once - 1) / at_once) / double(units * s) * double(units) *
                          double(at_once) / double(m * n) * (s > 1 ? 1.08 : 1.0) * (pair == 2 ? 1.03 : 1.0);
      if (time < least * 0.999) least = time, best.pair = pair, best.splits = s;
    }
  }
  return best;
}

}  // namespace

int conv_force_mma = 0, conv_force_splits = 0, conv_force_columns = 0, conv_force_pair = -1;

void run_conv(ConvTask task, const Frames& x, const Tensor& w) {
  const bool hopper = has_wgmma() && conv_force_mma == 0;
  Plan plan = choose(task, hopper);
  if (conv_force_splits != 0) plan.splits = conv_force_splits;
  if (conv_force_columns != 0) plan.columns = conv_force_columns;
  if (conv_force_pair >= 0) plan.pair = conv_force_pair;
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
  if (hopper)
    conv_products_wgmma(task, x, w, plan.columns, plan.pair);
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
