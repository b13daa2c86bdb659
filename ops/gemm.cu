#include "ops/gemm.cuh"

#include <cublasLt.h>

#include <array>
#include <bit>
#include <map>
#include <mutex>

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

void lt_check(cublasStatus_t status, const char* what,
              std::source_location where = std::source_location::current()) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail("cublasLt: ", what, ": ", cublasLtGetStatusString(status), " at ", where.file_name(), ":",
         where.line());
}

cudaDataType_t type_of(DType t) {
  return t == DType::f64 ? CUDA_R_64F : t == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

constexpr size_t kWorkspace = 32 << 20;  // what the library's own Hopper kernels ask for at most

// Scratch memory and the choices made so far; neither changes a result.
struct Library {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  std::mutex mutex;
  std::map<std::array<int64_t, 20>, cublasLtMatmulAlgo_t> chosen;
  Library() {
    lt_check(cublasLtCreate(&handle), "create");
    cuda_check(cudaMalloc(&workspace, kWorkspace));
  }
};

Library& library() {
  static Library instance;
  return instance;
}

// The descriptions of one product. cuBLASLt is column-major, so it is told C^T = op(B)^T op(A)^T.
class Description {
 public:
  Description(const Gemm& g, cublasLtEpilogue_t epilogue) {
    const bool f64 = g.in == DType::f64;
    const cublasComputeType_t compute = f64                              ? CUBLAS_COMPUTE_64F
                                        : g.precision == Precision::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                         : CUBLAS_COMPUTE_32F;
    lt_check(cublasLtMatmulDescCreate(&operation, compute, f64 ? CUDA_R_64F : CUDA_R_32F), "describe");
    set(CUBLASLT_MATMUL_DESC_TRANSA, g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (epilogue == CUBLASLT_EPILOGUE_BIAS) {
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(g.out));
    }
    layout(b, type_of(g.in), g.trans_b ? g.k : g.n, g.trans_b ? g.n : g.k, g.ldb, g.batch, g.step_b);
    layout(a, type_of(g.in), g.trans_a ? g.m : g.k, g.trans_a ? g.k : g.m, g.lda, g.batch, g.step_a);
    layout(c, type_of(g.out), g.n, g.m, g.ldc, g.batch, g.step_c);
  }
  ~Description() {
    cublasLtMatrixLayoutDestroy(a);
    cublasLtMatrixLayoutDestroy(b);
    cublasLtMatrixLayoutDestroy(c);
    cublasLtMatmulDescDestroy(operation);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t which, const T& value) {
    lt_check(cublasLtMatmulDescSetAttribute(operation, which, &value, sizeof(value)), "describe");
  }
  void layout(cublasLtMatrixLayout_t& to, cudaDataType_t type, int64_t rows, int64_t cols, int64_t ld,
              int64_t batch, int64_t step) {
    lt_check(cublasLtMatrixLayoutCreate(&to, type, uint64_t(rows), uint64_t(cols), ld), "layout");
    if (batch == 1) return;
    const int32_t count = int32_t(batch);
    lt_check(cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)),
             "layout");
    lt_check(cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                              sizeof(step)),
             "layout");
  }
};

// The power of two that divides every product's address, up to 16 bytes, beyond which no kernel asks. Below
// that it depends on the view alone and not on the allocator: the same call chooses the same in every run.
uint32_t alignment(const void* p, int64_t step_bytes = 0) {
  return uint32_t(1) << std::countr_zero(uintptr_t(p) | uintptr_t(step_bytes) | 16u);
}

// The library's first recommendation, remembered by problem. False when it has none.
bool choose(const Gemm& g, const Description& d, bool bias, cublasLtMatmulAlgo_t& algorithm) {
  Library& lib = library();
  const int64_t in = size_of(g.in), out = size_of(g.out);
  const uint32_t of_a = alignment(g.a, g.batch > 1 ? g.step_a * in : 0),
                 of_b = alignment(g.b, g.batch > 1 ? g.step_b * in : 0),
                 of_c = std::min(alignment(g.c, g.batch > 1 ? g.step_c * out : 0),
                                 alignment(bias ? g.bias : nullptr));
  const std::array<int64_t, 20> key{
      g.trans_a,        g.trans_b, g.m,      g.n,      g.k,       g.lda,      g.ldb,       g.ldc,
      g.batch,          g.step_a,  g.step_b, g.step_c, int(g.in), int(g.out), g.beta != 0, bias,
      int(g.precision), of_a,      of_b,     of_c};
  const std::lock_guard lock(lib.mutex);
  if (const auto found = lib.chosen.find(key); found != lib.chosen.end()) {
    algorithm = found->second;
    return true;
  }
  cublasLtMatmulPreference_t preference = nullptr;
  lt_check(cublasLtMatmulPreferenceCreate(&preference), "preference");
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                        decltype(&cublasLtMatmulPreferenceDestroy)>
      owner(preference, &cublasLtMatmulPreferenceDestroy);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    lt_check(cublasLtMatmulPreferenceSetAttribute(preference, which, &value, sizeof(value)), "preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(kWorkspace));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_b);  // its A is our B
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_a);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_c);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_c);
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(lib.handle, d.operation, d.b, d.a, d.c, d.c,
                                                               preference, 1, &result, &count);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0 || result.state != CUBLAS_STATUS_SUCCESS) return false;
  lib.chosen.emplace(key, result.algo);
  algorithm = result.algo;
  return true;
}

bool run(const Gemm& g, cublasLtEpilogue_t epilogue) {
  const Description d(g, epilogue);
  cublasLtMatmulAlgo_t algorithm;
  if (!choose(g, d, epilogue == CUBLASLT_EPILOGUE_BIAS, algorithm)) return false;
  const float alpha32 = float(g.alpha), beta32 = float(g.beta);
  const bool f64 = g.in == DType::f64;
  const void* alpha = f64 ? static_cast<const void*>(&g.alpha) : &alpha32;
  const void* beta = f64 ? static_cast<const void*>(&g.beta) : &beta32;
  Library& lib = library();
  lt_check(cublasLtMatmul(lib.handle, d.operation, alpha, g.b, d.b, g.a, d.a, beta, g.c, d.c, g.c, d.c,
                          &algorithm, lib.workspace, kWorkspace, stream()),
           "matmul");
  return true;
}

// C += bias, or C = bias for beta == 0: one row of it repeated over the rows of every product.
template <class T>
__global__ void put_bias(T* c, const T* bias, int64_t rows, int64_t n, int64_t ldc, int64_t step_c,
                         bool add) {
  const int64_t j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= n) return;
  const Wide<T> b = bias ? Wide<T>(bias[j]) : 0;
  for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
    T& to = c[blockIdx.z * step_c + i * ldc + j];
    to = convert<T>(add ? Wide<T>(to) + b : b);
  }
}

void put_bias(const Gemm& g, bool add) {
  const dim3 grid(blocks_for(g.n, kThreads), unsigned(std::min<int64_t>(g.m, 65535)), unsigned(g.batch));
  check(g.batch <= 65535, "gemm: a batch of ", g.batch, " with a bias");
  dispatch_float(g.out, "gemm", [&]<class T>() {
    launch({grid, kThreads}, put_bias<T>, static_cast<T*>(g.c), static_cast<const T*>(g.bias), g.m, g.n,
           g.ldc, g.step_c, add);
  });
}

}  // namespace

void gemm(const Gemm& g) {
  if (g.m == 0 || g.n == 0 || g.batch == 0) return;
  if (g.k == 0) {
    check(g.beta == 0, "gemm: k is 0");
    return put_bias(g, false);
  }
  // f64 has no fused bias; other refusals are met in the same way.
  if (g.bias && g.in != DType::f64 && run(g, CUBLASLT_EPILOGUE_BIAS)) return;
  check(run(g, CUBLASLT_EPILOGUE_DEFAULT), "gemm: cuBLASLt has no kernel for ", g.in, " [", g.m, ", ", g.k,
        "] x [", g.k, ", ", g.n, "], transposed: ", g.trans_a, " ", g.trans_b, ", leading dims ", g.lda, " ",
        g.ldb, " ", g.ldc, ", batch ", g.batch);
  if (g.bias) put_bias(g, true);
}

}  // namespace rivulet::cuda
