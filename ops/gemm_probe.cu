#include "ops/gemm_probe.h"

#include <cublasLt.h>

#include <algorithm>
#include <limits>

#include "ops/formats.h"
#include "tensor/cuda.cuh"
#include "tensor/cuda_event.h"

namespace rivulet::cuda {
namespace {

struct Way {
  const char* name;
  cudaDataType_t in;
  int bits;
  int a_mode, b_mode;  // of the weights, of the activations; -1: unscaled
};
constexpr Way kWays[] = {
    {"bf16", CUDA_R_16BF, 16, -1, -1},
    {"fp8 a tensor", CUDA_R_8F_E4M3, 8, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F,
     CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F},
    {"fp8 a row", CUDA_R_8F_E4M3, 8, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
     CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F},
    {"fp8 128 x 128 and 128", CUDA_R_8F_E4M3, 8, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
     CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F},
    {"mxfp8", CUDA_R_8F_E4M3, 8, CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0,
     CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0},
    {"nvfp4", CUDA_R_4F_E2M1, 4, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3,
     CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3}};
struct Out {
  const char* name;
  cudaDataType_t type;
};
constexpr Out kOuts[] = {{"bf16", CUDA_R_16BF}, {"f32", CUDA_R_32F}, {"e4m3", CUDA_R_8F_E4M3}};
struct Epilogue {
  const char* name;
  cublasLtEpilogue_t value;
};
constexpr Epilogue kEpilogues[] = {{"none", CUBLASLT_EPILOGUE_DEFAULT},
                                   {"bias", CUBLASLT_EPILOGUE_BIAS},
                                   {"bias, gelu", CUBLASLT_EPILOGUE_GELU_BIAS}};
constexpr int64_t kWorkspace = 32 << 20;
constexpr int kMost = 16, kTimed = 8;

__global__ void fill_codes(uint8_t* to, int64_t n, int bits) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    uint32_t h = uint32_t(i) * 2654435761u;
    h = (h ^ (h >> 15)) * 2246822519u;
    const float x = float(h >> 8) * (2.0f / 16777216.0f) - 1.0f;
    if (bits == 8) to[i] = e4m3_of(x);
    if (bits == 4) to[i] = uint8_t(h);
    if (bits == 16) reinterpret_cast<__nv_bfloat16*>(to)[i / 2] = __float2bfloat16(x);
  }
}

// Random operands, scales that are all 1, and room for the result.
struct Buffers {
  Tensor a, b, c, bias, ones, bytes, workspace;
  Buffers(const Way& way, int64_t m, int64_t n, int64_t k) {
    const auto make = [](int64_t bytes) { return Tensor({bytes}, DType::u8, Device::cuda); };
    a = make(m * k * way.bits / 8);
    b = make(n * k * way.bits / 8);
    for (const Tensor& t : {a, b})
      launch({1024, kThreads}, fill_codes, static_cast<uint8_t*>(t.raw()), t.numel(), way.bits);
    c = make(m * n * 4);
    bias = zeros({n}, DType::f32, Device::cuda);
    ones = full({std::max(m, n) * (k / 128 + 2)}, 1, DType::f32, Device::cuda);
    bytes = make((std::max(m, n) + 128) * (k / 16 + 8));
    bytes.fill(way.bits == 4 ? 0x38 : 127);
    workspace = make(kWorkspace);
  }
  const void* scale(int mode) const {
    const bool small =
        mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 || mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0;
    return small ? bytes.raw() : ones.raw();
  }
};

struct Description {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;

  Description(const Way& way, const Out& out, const Epilogue& e, bool fast, const Buffers& at, int64_t m,
              int64_t n, int64_t k) {
    cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, e.value);
    if (e.value != CUBLASLT_EPILOGUE_DEFAULT) {
      const void* bias = at.bias.raw();
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    }
    if (way.a_mode >= 0) {
      const void *scale_a = at.scale(way.a_mode), *scale_b = at.scale(way.b_mode), *one = at.ones.raw();
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, way.a_mode);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, way.b_mode);
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale_a);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale_b);
      if (way.bits == 8) set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t(fast));
      if (out.type == CUDA_R_8F_E4M3) set(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, one);
    }
    const cudaDataType_t c_type = out.type == CUDA_R_8F_E4M3 ? CUDA_R_16BF : out.type;
    cublasLtMatrixLayoutCreate(&a, way.in, uint64_t(k), uint64_t(n), k);
    cublasLtMatrixLayoutCreate(&b, way.in, uint64_t(k), uint64_t(m), k);
    cublasLtMatrixLayoutCreate(&c, c_type, uint64_t(n), uint64_t(m), n);
    cublasLtMatrixLayoutCreate(&d, out.type, uint64_t(n), uint64_t(m), n);
    cublasLtMatmulPreferenceCreate(&preference);
    const uint64_t workspace = kWorkspace;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                         sizeof(workspace));
  }
  ~Description() {
    for (cublasLtMatrixLayout_t l : {a, b, c, d}) cublasLtMatrixLayoutDestroy(l);
    cublasLtMatmulDescDestroy(operation);
    cublasLtMatmulPreferenceDestroy(preference);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t which, const T& value) {
    cublasLtMatmulDescSetAttribute(operation, which, &value, sizeof(value));
  }
};

void probe(cublasLtHandle_t handle, const Description& d, const Buffers& at, GemmProbe& row) {
  cublasLtMatmulHeuristicResult_t results[kMost] = {};
  const cublasStatus_t found = cublasLtMatmulAlgoGetHeuristic(handle, d.operation, d.a, d.b, d.c, d.d,
                                                              d.preference, kMost, results, &row.algorithms);
  row.status = found == CUBLAS_STATUS_SUCCESS ? "ok" : cublasLtGetStatusString(found);
  if (found != CUBLAS_STATUS_SUCCESS || row.algorithms == 0) {
    row.algorithms = 0;
    return;
  }
  const float one = 1, zero = 0;
  row.best_us = std::numeric_limits<double>::infinity();
  for (int i = 0; i < std::min(row.algorithms, kTimed); ++i) {
    const auto run = [&] {
      return cublasLtMatmul(handle, d.operation, &one, at.b.raw(), d.a, at.a.raw(), d.b, &zero, at.c.raw(),
                            d.c, at.c.raw(), d.d, &results[i].algo, at.workspace.raw(), kWorkspace, stream());
    };
    const cublasStatus_t ran = run();
    if (ran != CUBLAS_STATUS_SUCCESS) {
      if (i == 0) row.status = cublasLtGetStatusString(ran);
      cudaGetLastError();
      continue;
    }
    constexpr int kRuns = 8;
    const CudaEvent begin, end;
    begin.record();
    for (int r = 0; r < kRuns; ++r) run();
    end.record();
    const double us = 1e3 * begin.milliseconds_to(end) / kRuns;
    if (i == 0) row.first_us = us;
    row.best_us = std::min(row.best_us, us);
  }
  if (row.best_us == std::numeric_limits<double>::infinity()) row.best_us = 0;
}

}  // namespace

std::vector<GemmProbe> probe_gemms(const std::vector<std::array<int64_t, 3>>& shapes) {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS, "gemm probe: cuBLASLt does not start");
  std::vector<GemmProbe> rows;
  for (const auto& [m, n, k] : shapes)
    for (const Way& way : kWays) {
      const Buffers at(way, m, n, k);
      for (const Out& out : kOuts)
        for (const Epilogue& e : kEpilogues)
          for (const bool fast : {false, true}) {
            if (fast && way.bits != 8) continue;
            GemmProbe row{way.name, out.name, e.name, fast, {m, n, k}, {}, 0, 0, 0};
            const Description d(way, out, e, fast, at, m, n, k);
            probe(handle, d, at, row);
            rows.push_back(row);
          }
    }
  cublasLtDestroy(handle);
  return rows;
}

}  // namespace rivulet::cuda
