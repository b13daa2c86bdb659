// Tiles of bf16 attention for mma.sync. A block is 4 warps with 16 rows each; what a warp multiplies by lies
// in shared memory in rows padded by 16 bytes, so that ldmatrix reads 8 rows from different banks.
#pragma once

#include "ops/attention_bf16.cuh"

namespace rivulet::cuda {

constexpr int kMmaThreads = 128, kMmaRows = 64;

// A strided [B, N, H, D] tensor.
struct Rows16 {
  const __nv_bfloat16* p = nullptr;
  int64_t step_b = 0, stride = 0, step_h = 0;
  Rows16() = default;
  explicit Rows16(const Tensor& x)
      : p(pointer<__nv_bfloat16>(x)),
        step_b(x.strides()[0]),
        stride(x.strides()[1]),
        step_h(x.strides()[2]) {}
  __device__ const __nv_bfloat16* at(int b, int h) const { return p + b * step_b + h * step_h; }
};

__device__ inline uint32_t shared_offset(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Starts a 16-byte copy, of zeros where `valid` is false. `from` must be readable memory either way.
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_offset(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrices(uint32_t (&r)[4], const __nv_bfloat16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_offset(row))
               : "memory");
}
__device__ inline void load_transposed(uint32_t (&r)[4], const __nv_bfloat16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_offset(row))
               : "memory");
}
// d [16, 8] += a [16, 16] b [16, 8]
__device__ inline void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <int kWidth>
struct MmaTile {
  static constexpr int kPitch = kWidth + 8, kElements = kMmaRows * kPitch;
  using Rows = uint32_t[kWidth / 4];  // 16 rows of this warp as left operand
  using Output = float[kWidth / 2];   // [16, kWidth]

  // Starts copying rows first .. first + 64 of x, zeros beyond `rows` and d.
  static __device__ void copy(const __nv_bfloat16* x, int64_t stride, int first, int rows, int d,
                              __nv_bfloat16* to) {
    constexpr int kChunks = kWidth / 8;
    for (int at = int(threadIdx.x); at < kMmaRows * kChunks; at += kMmaThreads) {
      const int r = at / kChunks, c = at % kChunks * 8;
      const bool valid = first + r < rows && c < d;
      copy_async(to + r * kPitch + c, valid ? x + (first + r) * stride + c : x, valid);
    }
  }

  static __device__ void load(const __nv_bfloat16* tile, Rows& a) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const __nv_bfloat16* row = tile + (warp * 16 + lane % 16) * kPitch + lane / 16 * 8;
#pragma unroll
    for (int c = 0; c < kWidth / 16; ++c)
      load_matrices(reinterpret_cast<uint32_t(&)[4]>(a[4 * c]), row + 16 * c);
  }

  // s [16, kColumns] = a b', b the first kColumns rows at `tile`
  template <int kColumns>
  static __device__ void multiply_rows(const Rows& a, const __nv_bfloat16* tile, float (&s)[kColumns / 2]) {
    const int lane = int(threadIdx.x) % 32;
    const __nv_bfloat16* row = tile + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) s[i] = 0;
#pragma unroll
    for (int c = 0; c < kWidth / 16; ++c)
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
        uint32_t b[4];
        load_matrices(b, row + 16 * j * kPitch + 16 * c);
        mma(s + 8 * j, a + 4 * c, b[0], b[1]);
        mma(s + 8 * j + 4, a + 4 * c, b[2], b[3]);
      }
  }

  // o += p b, p [16, kColumns], b the first kColumns rows at `tile`
  template <int kColumns>
  static __device__ void multiply_columns(const uint32_t (&p)[kColumns / 4], const __nv_bfloat16* tile,
                                          Output& o) {
    const int lane = int(threadIdx.x) % 32;
    const __nv_bfloat16* row = tile + lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j)
#pragma unroll
      for (int c = 0; c < kWidth / 16; ++c) {
        uint32_t b[4];
        load_transposed(b, row + 16 * j * kPitch + 16 * c);
        mma(o + 8 * c, p + 4 * j, b[0], b[1]);
        mma(o + 8 * c + 4, p + 4 * j, b[2], b[3]);
      }
  }
};

// Calls f.template operator()<kWidth>() with the least width that holds d channels.
template <class F>
void dispatch_bf16_width(int64_t d, F&& f) {
  if (d <= 64)
    f.template operator()<64>();
  else if (d <= 112)
    f.template operator()<112>();
  else
    f.template operator()<128>();
}

}  // namespace rivulet::cuda
