#include "ops/gdn_fused.cuh"

// Phase B: s <- g (s - s P) over the frames for states [value, key] in f32 registers. The product is taken of
// the two bf16 halves of s, so that a state loses nothing to rounding from frame to frame.
namespace rivulet::cuda {
namespace {

constexpr int kChainThreads = 128, kChainWarps = 4, kStages = 3;

struct ChainPair {
  FusedChain chain[2];
};

// Walks a chain: absorb(f), add(f) and keep(f) in its order. The first absorption of nothing and the last
// one whose result nobody wants are left out; wanted(f) says so.
struct ChainWalk {
  int t;
  bool after, around, from_start, to_end;
  __device__ ChainWalk(int t, const FusedChain& c, const float* start, const float* end)
      : t(t),
        after(c.order == ChainOrder::after),
        around(c.order == ChainOrder::around),
        from_start(start != nullptr),
        to_end(end != nullptr) {}
  __device__ int frame(int step) const { return after ? step : t - 1 - step; }
  __device__ bool absorbs(int step) const { return after ? step > 0 || from_start : step < t - 1 || to_end; }
};

template <int D>
constexpr size_t kChainShared = size_t(kStages) * D* padded(D) * sizeof(half_t);

// A warp's 16 values x D keys of a state.
template <int D>
__device__ void walk_state(const FusedSizes& n, const FusedChain& chain, const half_t* p, const float* decay,
                           half_t* stages, int strip) {
  const int lane = int(threadIdx.x) % 32, bh = int(blockIdx.x), b = bh / n.h, h = bh % n.h;
  const bool works = strip < D / 16;
  const ChainWalk walk(n.t, chain, chain.start, chain.end);
  const int64_t mine = int64_t(16 * strip + lane / 4) * D + lane % 4 * 2;
  // f(acc pair, offset) over the lane's pairs of values within a D x D matrix.
  float s[D / 8][4] = {};
  const auto for_pairs = [&](auto&& f) {
    if (!works) return;
#pragma unroll
    for (int t = 0; t < D / 8; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) f(s[t][2 * half], s[t][2 * half + 1], mine + half * 8 * D + 8 * t);
  };
  // What the next frame adds, and its decay, are fetched a step ahead.
  float2 more[D / 8][2];
  float g = 0;
  const auto fetch = [&](int step) {
    if (step >= n.t || !works) return;
    const int f = walk.frame(step);
    const float* from = chain.add + (int64_t(bh) * n.t + f) * D * D + mine;
    g = decay[(int64_t(b) * n.t + f) * n.h + h];
#pragma unroll
    for (int t = 0; t < D / 8; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        more[t][half] = *reinterpret_cast<const float2*>(from + half * 8 * D + 8 * t);
  };
  const auto add = [&] {
#pragma unroll
    for (int t = 0; t < D / 8; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        s[t][2 * half] += more[t][half].x, s[t][2 * half + 1] += more[t][half].y;
  };
  const auto write = [&](float* to) {
    for_pairs([&](float x, float y, int64_t at) { *reinterpret_cast<float2*>(to + at) = {x, y}; });
  };
  const auto keep = [&](int f) { write(chain.kept + (int64_t(bh) * n.t + f) * D * D); };
  const auto prefetch = [&](int step) {
    if (step < n.t && walk.absorbs(step)) {
      const half_t* from = p + (int64_t(bh) * n.t + walk.frame(step)) * D * D;
      half_t* to = stages + step % kStages * D * padded(D);
      for (int i = int(threadIdx.x); i < D * D / 8; i += kChainThreads)
        copy_16_bytes_async(to + i / (D / 8) * padded(D) + i % (D / 8) * 8, from + 8 * i);
    }
    commit_copies();
  };

  if (chain.start != nullptr)
    for_pairs([&](float& x, float& y, int64_t at) {
      const float2 v = *reinterpret_cast<const float2*>(chain.start + int64_t(bh) * D * D + at);
      x = v.x, y = v.y;
    });
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) prefetch(step);
  fetch(0);
#pragma unroll 1
  for (int step = 0; step < n.t; ++step) {
    const int f = walk.frame(step);
    const float decayed = g;
    if (walk.around) {
      add();
      fetch(step + 1);
    }
    if (!walk.after) keep(f);
    wait_copies<kStages - 2>();
    __syncthreads();  // this step's P is there; the stage of the step before is free
    prefetch(step + kStages - 1);
    if (walk.absorbs(step) && works) {
      const half_t* matrix = stages + step % kStages * D * padded(D);
      Frag high[D / 16], low[D / 16];
#pragma unroll
      for (int k = 0; k < D / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float* x = &s[2 * k + i / 2][i % 2 * 2];
          x[0] *= decayed, x[1] *= decayed;
          high[k].r[i] = pack2(-x[0], -x[1]);
          const float2 rounded = unpack2(high[k].r[i]);
          low[k].r[i] = pack2(-x[0] - rounded.x, -x[1] - rounded.y);
        }
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        Frag x[D / 16];
#pragma unroll
        for (int j = 0; j < D / 16; ++j) x[j] = by_rows<D>(matrix, 16 * j, 16 * k);
        for (const Frag& a : {high[k], low[k]})
#pragma unroll
          for (int j = 0; j < D / 16; ++j) {
            mma(s[2 * j], a, x[j].r[0], x[j].r[1]);
            mma(s[2 * j + 1], a, x[j].r[2], x[j].r[3]);
          }
      }
    }
    if (!walk.around) {
      add();
      fetch(step + 1);
    }
    if (walk.after) keep(f);
  }
  if (chain.end != nullptr) write(chain.end + int64_t(bh) * D * D);
}

// The normaliser: a warp takes every fourth row of Pz, a lane four columns. What the next frame needs is on
// its way while the parts of this one are added.
template <int D>
__device__ void walk_normaliser(const FusedSizes& n, const FusedChain& chain, const float* p_z,
                                const float* decay, float* shared) {
  float *state = shared, *parts = shared + D;  // parts [4][D]
  const int i = int(threadIdx.x), warp = i / 32, column = i % 32 * 4, bh = int(blockIdx.x), b = bh / n.h,
            h = bh % n.h;
  const ChainWalk walk(n.t, chain, chain.start_z, chain.end_z);
  float s = 0;
  if (chain.start_z != nullptr && i < D) s = chain.start_z[bh * D + i];
  float4 rows[D / 4];
  float more = 0, g = 0;
  const auto fetch = [&](int step) {
    if (step >= n.t) return;
    const int64_t cell = int64_t(bh) * n.t + walk.frame(step);
    g = decay[(int64_t(b) * n.t + walk.frame(step)) * n.h + h];
    more = i < D ? chain.add_z[cell * D + i] : 0;
    if (!walk.absorbs(step) || column >= D) return;
    const float* from = p_z + cell * D * D + column;
#pragma unroll
    for (int j = 0; j < D / 4; ++j) rows[j] = *reinterpret_cast<const float4*>(from + (4 * j + warp) * D);
  };
  fetch(0);
#pragma unroll 1
  for (int step = 0; step < n.t; ++step) {
    const int64_t at = (int64_t(bh) * n.t + walk.frame(step)) * D + i;
    const float added = more, decayed = g;
    if (walk.around) s += added;
    if (!walk.after && i < D) chain.kept_z[at] = s;
    if (walk.absorbs(step)) {
      if (i < D) state[i] = s;
      __syncthreads();
      if (column < D) {
        float4 sum = {};
#pragma unroll
        for (int j = 0; j < D / 4; ++j) {
          const float x = state[4 * j + warp];
          sum.x += rows[j].x * x, sum.y += rows[j].y * x, sum.z += rows[j].z * x, sum.w += rows[j].w * x;
        }
        *reinterpret_cast<float4*>(parts + warp * D + column) = sum;
      }
      fetch(step + 1);
      __syncthreads();
      if (i < D) {
        const float product = parts[i] + parts[D + i] + parts[2 * D + i] + parts[3 * D + i];
        s = decayed * (s - product);
      }
    } else {
      fetch(step + 1);
    }
    if (!walk.around) s += added;
    if (walk.after && i < D) chain.kept_z[at] = s;
  }
  if (chain.end_z != nullptr && i < D) chain.end_z[bh * D + i] = s;
}

// blockIdx.x: batch and head; y: strips of a state, the last the normaliser; z: the chain.
template <int D>
__global__ void __launch_bounds__(kChainThreads)
    chain_kernel(FusedSizes n, const half_t* p, const float* p_z, const float* decay,
                 __grid_constant__ const ChainPair pair) {
  extern __shared__ __align__(16) unsigned char shared[];
  const FusedChain& chain = pair.chain[blockIdx.z];
  if (blockIdx.y + 1 == gridDim.y)
    walk_normaliser<D>(n, chain, p_z, decay, reinterpret_cast<float*>(shared));
  else
    walk_state<D>(n, chain, p, decay, reinterpret_cast<half_t*>(shared),
                  int(blockIdx.y) * kChainWarps + int(threadIdx.x) / 32);
}

}  // namespace

void run_fused_chains(const FusedSizes& n, const half_t* p, const float* p_z, const float* decay,
                      const FusedChain& first, const FusedChain* second) {
  const ChainPair pair{{first, second != nullptr ? *second : FusedChain{}}};
  dispatch_head(n.d, [&]<int D>() {
    allow_shared(chain_kernel<D>, kChainShared<D>);
    const dim3 grid(unsigned(n.b * n.h), blocks_for(D / 16, kChainWarps) + 1, second != nullptr ? 2 : 1);
    launch({grid, kChainThreads, kChainShared<D>}, chain_kernel<D>, n, p, p_z, decay, pair);
  });
}

}  // namespace rivulet::cuda
