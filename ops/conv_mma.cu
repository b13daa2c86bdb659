// Convolution by mma.sync, for every GPU from sm_80 on: the twin of conv_hopper.cu. A block of 8 warps has 128
// positions and 128 channels; pixels and weights come by asynchronous copies, 32 channels of a tap at a time.
#include "ops/attention_mma.cuh"
#include "ops/conv_task.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kRows = kMmaTileRows, kDepth = 32, kPitch = kDepth + 8, kStages = 4, kMmaBlock = 256;

template <int kN>
struct MmaShared {
  __nv_bfloat16 x[kStages][kRows * kPitch], w[kStages][kN * kPitch];
};

template <int kN>
__global__ void __launch_bounds__(kMmaBlock) conv_mma_kernel(const __grid_constant__ ConvTask t) {
  extern __shared__ unsigned char raw[];
  auto& s = *reinterpret_cast<MmaShared<kN>*>(raw);
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int split = int(blockIdx.x) % t.splits, tile = int(blockIdx.x) / t.splits;
  const int n0 = tile % t.tiles_n * kN, m = tile / t.tiles_n;
  const int taps = t.kt * t.kh * t.kw, first = taps * split / t.splits, last = taps * (split + 1) / t.splits;
  const int per_tap = (t.c + kDepth - 1) / kDepth, steps = (last - first) * per_tap;
  const int chunk = thread % 4 * 8, row = thread / 4;  // this thread copies rows `row` and `row` + 64
  ConvTask::Place places[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) places[i] = t.place(m, row + 64 * i);

  const auto copy = [&](int step) {
    if (step < steps) {
      const int tap = first + step / per_tap, c = step % per_tap * kDepth + chunk, stage = step % kStages;
      const int ux = tap % t.kw, uy = tap / t.kw % t.kh, ut = tap / (t.kw * t.kh);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const ConvTask::Place& p = places[i];
        const int y = p.y + uy + t.y0 - t.x.rim, x = p.x + ux + t.x0 - t.x.rim;
        const int place = p.valid ? t.x.at[p.t + ut] : Frames::kZero;
        const bool inside = place != Frames::kZero && c < t.c && y >= -t.x.rim && y < t.x.height + t.x.rim &&
                            x >= -t.x.rim && x < t.x.width + t.x.rim;
        copy_async(s.x[stage] + (row + 64 * i) * kPitch + chunk,
                   inside ? t.x.pixel(p.b, p.t + ut, y, x) + c : t.w, inside);
        if (64 * i >= kN) continue;
        const int n = n0 + row + 64 * i;
        const bool real = n < t.co && c < t.c;
        copy_async(s.w[stage] + (row + 64 * i) * kPitch + chunk,
                   real ? t.w + (int64_t(n) * taps + (t.flipped ? taps - 1 - tap : tap)) * t.c + c : t.w, real);
      }
    }
    copy_commit();
  };

  float sums[kN / 2] = {};
  for (int i = 0; i < kStages - 1; ++i) copy(i);
  const int x_at = (warp * 16 + lane % 16) * kPitch + lane / 16 * 8,
            w_at = (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
  for (int step = 0; step < steps; ++step) {
    copy_wait<kStages - 2>();
    __syncthreads();
    copy(step + kStages - 1);
    const __nv_bfloat16 *x = s.x[step % kStages] + x_at, *w = s.w[step % kStages] + w_at;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[4];
      load_matrices(a, x + k);
#pragma unroll
      for (int j = 0; j < kN / 16; ++j) {
        uint32_t b[4];
        load_matrices(b, w + 16 * j * kPitch + k);
        mma(sums + 8 * j, a, b[0], b[1]);
        mma(sums + 8 * j + 4, a, b[2], b[3]);
      }
    }
  }
  store_sums<kN>(t, sums, m, warp * 16, n0, split);
}

template <int kN>
void run(ConvTask task) {
  task.cut(kRows, kN);
  cuda_check(cudaFuncSetAttribute(conv_mma_kernel<kN>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(sizeof(MmaShared<kN>))));
  launch({dim3(blocks_for(int64_t(task.tiles_m()) * task.tiles_n * task.splits, 1)), kMmaBlock,
          sizeof(MmaShared<kN>)},
         conv_mma_kernel<kN>, task);
}

}  // namespace

void conv_products_mma(const ConvTask& task, int columns) {
  if (columns == 128)
    run<128>(task);
  else
    run<64>(task);
}

}  // namespace rivulet::cuda
