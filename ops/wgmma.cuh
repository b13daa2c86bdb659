// Hopper's asynchronous tensor cores (wgmma), bulk tensor copies (TMA) and the barriers that order them, for
// bf16 tiles in shared memory. Device code that uses these compiles for sm_90a alone: kernels guard their
// bodies with RIVULET_SM90A and have a twin for other GPUs, chosen by has_wgmma().
//
// A tile of rows lies in shared memory as panels of 64 columns: panel after panel, each row of a panel 128
// bytes, 1024-byte aligned, in the 128-byte swizzle that TMA writes and wgmma reads.
//
// Layouts and descriptors: PTX ISA 9.0, sections 9.7.15 (wgmma) and 5.5 (tensors).
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include "tensor/cuda.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define RIVULET_SM90A 1
#endif

namespace rivulet::cuda {

constexpr int kPanelColumns = 64, kPanelRowBytes = 128;

// Bytes of a tile of `rows` rows, `columns` wide.
__host__ __device__ constexpr int panel_bytes(int rows) { return rows * kPanelRowBytes; }
__host__ __device__ constexpr int panels_of(int columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns;
}

// True when the GPU in use runs sm_90a code.
inline bool has_wgmma() {
  int device = 0, major = 0;
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
}

// How TMA reads boxes of `box_rows` x 64 channels of one (batch, head) of a bf16 tensor [B, N, H, D] with a
// dense last dim, 16-byte aligned base and strides. Channels beyond D and rows beyond N come as zeros.
// Coordinates: channel, head, row, batch.
CUtensorMap head_rows_map(const Tensor& x, int box_rows);
// Boxes of a bf16 array, its dense dim first; strides in bytes, of the dims after it. Elements outside come as
// zeros. The first side of a box is kPanelColumns.
CUtensorMap tiled_map(const void* base, std::initializer_list<cuuint64_t> sizes,
                      std::initializer_list<cuuint64_t> strides, std::initializer_list<cuuint32_t> box);

#ifdef RIVULET_SM90A

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// --- Barriers in shared memory --------------------------------------------------------------------------
// A barrier completes a phase when `arrivals` threads have arrived and all bytes announced have landed.
__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
// Makes barrier_init visible to the copy engine; a __syncthreads must follow.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives and announces bytes that bulk copies will bring.
__device__ inline void barrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity has completed (phases count 0, 1, 0, ...).
__device__ inline void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Which of kStages buffers comes next, and the parity of its barrier.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// --- Copies ----------------------------------------------------------------------------------------------
// One panel: the box at (channel, head, row, batch) of a head_rows_map. One thread calls it.
__device__ inline void load_panel(const CUtensorMap* map, uint64_t* barrier, void* to, int channel, int head,
                                  int row, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
      "%5, "
      "%6}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(channel), "r"(head), "r"(row), "r"(batch)
      : "memory");
}
// All panels of a tile of kRows rows, `kColumns` wide.
template <int kRows, int kColumns>
__device__ void load_tile(const CUtensorMap* map, uint64_t* barrier, unsigned char* to, int head, int row,
                          int batch) {
#pragma unroll
  for (int p = 0; p < panels_of(kColumns); ++p)
    load_panel(map, barrier, to + p * panel_bytes(kRows), p * kPanelColumns, head, row, batch);
}
// `bytes` (a multiple of 16) of dense memory; both addresses 16-byte aligned.
__device__ inline void load_bytes(const void* from, uint64_t* barrier, void* to, int bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
__device__ inline void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// --- Matrix products -------------------------------------------------------------------------------------
// Registers per thread of the warpgroup that calls it; needs __launch_bounds__(threads, 1).
template <int kRegisters>
__device__ void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Before the first product of a batch whose accumulators or A registers were written by other instructions.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kPending committed batches are under way.
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of accumulators across a wait.
template <class T, int kCount>
__device__ void pin(T (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if constexpr (std::is_same_v<T, float>)
      asm volatile("" : "+f"(x[i])::"memory");
    else
      asm volatile("" : "+r"(x[i])::"memory");
}

// Shared memory written by ordinary stores is seen by wgmma and TMA issued after this and a barrier.
__device__ inline void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Descriptor of panels whose rows are the M or N index and whose columns are summed over (K-major).
// k_columns(c) moves it by c columns (a multiple of 16) within a panel of `rows` rows and to later panels.
__device__ inline uint64_t rows_operand(const void* tile) {
  return uint64_t((shared_address(tile) & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}
__device__ constexpr uint64_t rows_operand_step(int rows, int column) {
  return uint64_t(column / kPanelColumns * panel_bytes(rows) + column % kPanelColumns * 2) >> 4;
}
// Descriptor of panels whose rows are summed over and whose columns are the N index, or the M index of one
// panel (MN-major).
__device__ inline uint64_t columns_operand(const void* tile, int rows) {
  return uint64_t((shared_address(tile) & 0x3ffff) >> 4) | uint64_t(panel_bytes(rows) >> 4) << 16 |
         uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
__device__ constexpr uint64_t columns_operand_step(int row) { return uint64_t(row * kPanelRowBytes) >> 4; }

// d [64, N] (+)= a b of one warpgroup, f32 sums of bf16 products over 16 columns. A thread holds rows
// r = 16 * warp + lane / 4 and r + 8: d[4 j + 0, 1] are columns 8 j + 2 (lane % 4) + 0, 1 of row r and
// d[4 j + 2, 3] those of row r + 8.
// kColumns says how b lies: 0 rows_operand, 1 columns_operand. `add` = 0 overwrites d.
template <int N>
struct Wgmma;

// clang-format off
#define RIVULET_D32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31"
#define RIVULET_D40 RIVULET_D32 "," "%32,%33,%34,%35,%36,%37,%38,%39"
#define RIVULET_D48 RIVULET_D40 "," "%40,%41,%42,%43,%44,%45,%46,%47"
#define RIVULET_D56 RIVULET_D48 "," "%48,%49,%50,%51,%52,%53,%54,%55"
#define RIVULET_D64 RIVULET_D56 "," "%56,%57,%58,%59,%60,%61,%62,%63"
#define RIVULET_D88 RIVULET_D64 "," "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87"
#define RIVULET_D128 RIVULET_D88 "," "%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define RIVULET_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define RIVULET_F8(i) RIVULET_F4(i), RIVULET_F4(i + 4)
#define RIVULET_F16(i) RIVULET_F8(i), RIVULET_F8(i + 8)
#define RIVULET_F32(i) RIVULET_F16(i), RIVULET_F16(i + 16)
#define RIVULET_F64(i) RIVULET_F32(i), RIVULET_F32(i + 32)

#define RIVULET_WGMMA(N, D, o0, o1, o2, o3, o4, o5, o6, ...)                                              \
  template <>                                                                                             \
  struct Wgmma<N> {                                                                                       \
    using Accumulator = float[N / 2];                                                                     \
    /* a in shared memory, of 64 rows (rows_operand) or 64 columns (columns_operand, kAColumns 1) */       \
    template <int kColumns, int kAColumns = 0>                                                            \
    static __device__ void run(Accumulator& d, uint64_t a, uint64_t b, int add) {                         \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " o2 ", 0;\n"                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, " o0 ", " o1        \
                   ", p, 1, 1, " o4 ", " o3 ";\n}\n"                                                      \
                   : __VA_ARGS__ : "l"(a), "l"(b), "r"(add), "n"(kColumns), "n"(kAColumns));              \
    }                                                                                                     \
    /* a in registers, laid out as the accumulators of a product 16 wide, rounded to bf16 */              \
    template <int kColumns>                                                                               \
    static __device__ void run(Accumulator& d, const uint32_t* a, uint64_t b, int add) {                  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " o5 ", 0;\n"                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, {" o0 "," o1 "," o2 \
                   "," o3 "}, " o4 ", p, 1, 1, " o6 ";\n}\n"                                              \
                   : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),          \
                     "n"(kColumns));                                                                      \
    }                                                                                                     \
    /* a in shared memory as columns_operand: its rows are summed over, its 64 columns are the rows of d */ \
    static __device__ void run_columns(Accumulator& d, uint64_t a, uint64_t b) {                          \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " o2 ", 0;\n"                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, " o0 ", " o1        \
                   ", p, 1, 1, 1, 1;\n}\n"                                                               \
                   : __VA_ARGS__ : "l"(a), "l"(b), "r"(1));                                               \
    }                                                                                                     \
  };
RIVULET_WGMMA(64, RIVULET_D32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", RIVULET_F32(0))
RIVULET_WGMMA(80, RIVULET_D40, "%40", "%41", "%42", "%43", "%44", "%45", "%46", RIVULET_F32(0), RIVULET_F8(32))
RIVULET_WGMMA(96, RIVULET_D48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", RIVULET_F32(0), RIVULET_F16(32))
RIVULET_WGMMA(112, RIVULET_D56, "%56", "%57", "%58", "%59", "%60", "%61", "%62", RIVULET_F32(0), RIVULET_F16(32), RIVULET_F8(48))
RIVULET_WGMMA(128, RIVULET_D64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", RIVULET_F64(0))
RIVULET_WGMMA(176, RIVULET_D88, "%88", "%89", "%90", "%91", "%92", "%93", "%94", RIVULET_F64(0), RIVULET_F16(64), RIVULET_F8(80))
RIVULET_WGMMA(256, RIVULET_D128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", RIVULET_F64(0), RIVULET_F64(64))
#undef RIVULET_WGMMA
#undef RIVULET_F64
#undef RIVULET_F32
#undef RIVULET_F16
#undef RIVULET_F8
#undef RIVULET_F4
// clang-format on

#endif  // RIVULET_SM90A

}  // namespace rivulet::cuda
