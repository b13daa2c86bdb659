#include "ops/gemm.cuh"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "ops/formats.h"
#include "ops/gemm_choices.h"
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
  switch (t) {
    case DType::f64:
      return CUDA_R_64F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f8_e4m3:
      return CUDA_R_8F_E4M3;
    case DType::f4_e2m1x2:
      return CUDA_R_4F_E2M1;
    default:
      return CUDA_R_32F;
  }
}

cublasLtMatmulMatrixScale_t mode_of(Scaling s) {
  return s == Scaling::rows       ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
         : s == Scaling::groups32 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0
         : s == Scaling::groups16 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3
                                  : CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
}

// Bytes of n elements.
int64_t bytes_of(DType t, int64_t n) { return t == DType::f4_e2m1x2 ? (n + 1) / 2 : n * size_of(t); }

constexpr size_t kWorkspace = 32 << 20;  // what the library's own Hopper kernels ask for at most

// The library's own description, as plain words.
using Algorithm = std::array<uint64_t, 8>;
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
Algorithm words_of(const cublasLtMatmulAlgo_t& a) {
  Algorithm words;
  std::memcpy(words.data(), &a, sizeof(words));
  return words;
}
cublasLtMatmulAlgo_t library_form(const Algorithm& words) {
  cublasLtMatmulAlgo_t a;
  std::memcpy(&a, words.data(), sizeof(a));
  return a;
}

// Scratch memory and the choices made so far; neither changes a result.
struct Library {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  float* zero_and_one = nullptr;
  std::mutex mutex;
  std::map<GemmChoices::Key, Algorithm> chosen;
  Library() {
    lt_check(cublasLtCreate(&handle), "create");
    cuda_check(cudaMalloc(&workspace, kWorkspace));
    constexpr float kBoth[] = {0, 1};
    cuda_check(cudaMalloc(&zero_and_one, sizeof(kBoth)));
    cuda_check(cudaMemcpy(zero_and_one, kBoth, sizeof(kBoth), cudaMemcpyHostToDevice));
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
    if (g.scaling != Scaling::none) {
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode_of(g.scaling));
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode_of(g.scaling));
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, g.scale_b);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, g.scale_a);
      if (g.in == DType::f8_e4m3) set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t(g.fast_sums));
      if (g.alpha_on_device) set(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
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

struct Alignments {
  uint32_t a, b, c;
};
Alignments alignments(const Gemm& g, bool bias) {
  const int64_t in = g.batch > 1 ? bytes_of(g.in, 2) / 2 : 0, out = g.batch > 1 ? size_of(g.out) : 0;
  return {alignment(g.a, g.step_a * in), alignment(g.b, g.step_b * in),
          std::min({alignment(g.c, g.step_c * out), alignment(g.addend, g.step_c * out),
                    alignment(bias ? g.bias : nullptr)})};
}

GemmChoices::Key key_of(const Gemm& g, bool bias, const Alignments& at) {
  return {g.trans_a,
          g.trans_b,
          g.m,
          g.n,
          g.k,
          g.lda,
          g.ldb,
          g.ldc,
          g.batch,
          g.step_a,
          g.step_b,
          g.step_c,
          int(g.in),
          int(g.out),
          g.beta != 0,
          bias,
          at.a,
          at.b,
          at.c,
          int(g.precision),
          g.addend != nullptr,
          int(g.scaling) * 4 + g.fast_sums * 2 + (g.alpha_on_device != nullptr)};
}

using Candidates = std::vector<Algorithm>;

// The library's recommendations, best first; at most `most`.
Candidates recommendations(const Description& d, const Alignments& at, int most) {
  cublasLtMatmulPreference_t preference = nullptr;
  lt_check(cublasLtMatmulPreferenceCreate(&preference), "preference");
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                        decltype(&cublasLtMatmulPreferenceDestroy)>
      owner(preference, &cublasLtMatmulPreferenceDestroy);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    lt_check(cublasLtMatmulPreferenceSetAttribute(preference, which, &value, sizeof(value)), "preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(kWorkspace));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, at.b);  // its A is our B
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, at.a);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, at.c);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, at.c);
  // Parts of a split sum stay in f32 (f64) until they are added.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  const std::unique_ptr<cublasLtMatmulHeuristicResult_t[]> results(
      new cublasLtMatmulHeuristicResult_t[size_t(most)]());
  int count = 0;
  Candidates found;
  if (cublasLtMatmulAlgoGetHeuristic(library().handle, d.operation, d.b, d.a, d.c, d.c, preference, most,
                                     results.get(), &count) != CUBLAS_STATUS_SUCCESS)
    return found;
  for (int i = 0; i < count; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS) found.push_back(words_of(results[i].algo));
  return found;
}

cublasStatus_t multiply(const Gemm& g, const Description& d, const Algorithm& words) {
  const float alpha32 = float(g.alpha), beta32 = float(g.beta);
  const bool f64 = g.in == DType::f64;
  const void* alpha = f64 ? static_cast<const void*>(&g.alpha) : &alpha32;
  const void* beta = f64 ? static_cast<const void*>(&g.beta) : &beta32;
  Library& lib = library();
  if (g.alpha_on_device) {
    alpha = g.alpha_on_device;
    beta = lib.zero_and_one + (g.beta != 0);
  }
  const cublasLtMatmulAlgo_t algorithm = library_form(words);
  return cublasLtMatmul(lib.handle, d.operation, alpha, g.b, d.b, g.a, d.a, beta, g.addend ? g.addend : g.c,
                        d.c, g.c, d.c, &algorithm, lib.workspace, kWorkspace, stream());
}

// --- Timed choice ----------------------------------------------------------------------------------------

__global__ void fill_random(void* to, int64_t n, DType type, uint32_t seed) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    uint32_t h = uint32_t(i) * 2654435761u ^ seed;
    h = (h ^ (h >> 15)) * 2246822519u;
    h = (h ^ (h >> 13)) * 3266489917u;
    const float x = float(h >> 8) * (2.0f / 16777216.0f) - 1.0f;
    if (type == DType::f64)
      static_cast<double*>(to)[i] = x;
    else if (type == DType::f32)
      static_cast<float*>(to)[i] = x;
    else if (type == DType::f8_e4m3)
      static_cast<uint8_t*>(to)[i] = e4m3_of(x);
    else if (type == DType::f4_e2m1x2)
      static_cast<uint8_t*>(to)[i] = uint8_t(h);
    else
      static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16(x);
  }
}

// Scratch operands like those of a product. The weights (b) come in several copies, used in turn, so that
// they are read from memory as they are when other layers ran in between.
class Rehearsal {
 public:
  explicit Rehearsal(const Gemm& like) : g_(like) {
    const int64_t out = size_of(g_.out);
    const int64_t rows_a = g_.trans_a ? g_.k : g_.m, rows_b = g_.trans_b ? g_.n : g_.k;
    const int64_t bytes_a = bytes_of(g_.in, (g_.batch - 1) * g_.step_a + rows_a * g_.lda),
                  bytes_b = bytes_of(g_.in, (g_.batch - 1) * g_.step_b + rows_b * g_.ldb),
                  bytes_c = ((g_.batch - 1) * g_.step_c + g_.m * g_.ldc) * out;
    constexpr int64_t kCold = 96 << 20;  // more than any second-level cache here holds
    copies_ = std::clamp<int64_t>(kCold / std::max<int64_t>(bytes_b, 1), 1, 16);
    step_b_ = (bytes_b + 255) / 256 * 256;
    g_.a = random(bytes_a, g_.in, g_.a);
    b_ = static_cast<char*>(random(copies_ * step_b_ + 256, g_.in, g_.b));
    g_.c = random(bytes_c, g_.out, g_.c);
    if (g_.addend) g_.addend = random(bytes_c, g_.out, g_.addend);
    if (g_.bias) g_.bias = random(g_.n * out, g_.out, g_.bias);
    if (g_.scaling != Scaling::none) {
      g_.scale_a = scales(g_.m);
      g_.scale_b = scales(g_.n);
    }
    if (g_.alpha_on_device) g_.alpha_on_device = static_cast<const float*>(random(256, DType::f32, nullptr));
    for (cudaEvent_t& e : event_) cuda_check(cudaEventCreate(&e));
  }
  ~Rehearsal() {
    cudaStreamSynchronize(stream());
    for (void* p : owned_) cudaFree(p);
    for (cudaEvent_t e : event_) cudaEventDestroy(e);
  }
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

  // Microseconds of one product, the least of `trials` runs of `length`; infinite when it is refused.
  double time(const Description& d, const Algorithm& algorithm, int trials, int length) {
    double best = std::numeric_limits<double>::infinity();
    for (int t = 0; t < trials; ++t) {
      cuda_check(cudaEventRecord(event_[0], stream()));
      for (int i = 0; i < length; ++i) {
        g_.b = b_ + (turn_++ % copies_) * step_b_;
        if (multiply(g_, d, algorithm) != CUBLAS_STATUS_SUCCESS) {
          cudaGetLastError();
          return best;
        }
      }
      cuda_check(cudaEventRecord(event_[1], stream()));
      cuda_check(cudaEventSynchronize(event_[1]));
      float ms = 0;
      cuda_check(cudaEventElapsedTime(&ms, event_[0], event_[1]));
      best = std::min(best, 1e3 * double(ms) / length);
    }
    return best;
  }
  const Gemm& gemm() const { return g_; }

 private:
  // Of the same alignment as `like`.
  void* random(int64_t bytes, DType type, const void* like) {
    void* p = nullptr;
    cuda_check(cudaMalloc(&p, size_t(bytes + 256)));
    owned_.push_back(p);
    launch({1024, kThreads}, fill_random, p, bytes / size_of(type),
           type == DType::u8 ? DType::f4_e2m1x2 : type, uint32_t(owned_.size()));
    return static_cast<char*>(p) + uintptr_t(like) % 16;
  }
  // Every scale is 1 (f32, or codes) or thereabouts.
  void* scales(int64_t rows) {
    const bool groups = g_.scaling == Scaling::groups32 || g_.scaling == Scaling::groups16;
    const int64_t columns = (g_.k + (g_.scaling == Scaling::groups32 ? 31 : 15)) / 16;
    const int64_t bytes = groups ? (rows + 127) / 128 * 128 * (columns + 4) : rows * int64_t(sizeof(float));
    void* p = random(bytes, groups ? DType::u8 : DType::f32, nullptr);
    if (groups)
      cuda_check(cudaMemsetAsync(p, g_.scaling == Scaling::groups32 ? 127 : 0x38, size_t(bytes), stream()));
    return p;
  }
  Gemm g_;
  char* b_ = nullptr;
  int64_t copies_ = 1, step_b_ = 0, turn_ = 0;
  std::vector<void*> owned_;
  cudaEvent_t event_[2] = {};
};

std::array<int64_t, 4> configuration(const Algorithm& words) {
  const cublasLtMatmulAlgo_t a = library_form(words);
  std::array<int64_t, 4> out{};
  const cublasLtMatmulAlgoConfigAttributes_t which[] = {
      CUBLASLT_ALGO_CONFIG_TILE_ID, CUBLASLT_ALGO_CONFIG_STAGES_ID, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
      CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID};
  for (size_t i = 0; i < 4; ++i) {
    uint64_t value = 0;
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(&a, which[i], &value, i == 3 ? 2 : 4, &written);
    out[i] = int64_t(value);
  }
  return out;
}

GemmChoice timed_choice(const Gemm& g, cublasLtEpilogue_t epilogue, const Candidates& candidates) {
  Rehearsal rehearsal(g);
  const Description d(rehearsal.gemm(), epilogue);
  rehearsal.time(d, candidates[0], 1, 4);  // wakes the clocks
  struct Timed {
    double us;
    size_t index;
  };
  const auto faster = [](const Timed& a, const Timed& b) { return a.us < b.us; };
  std::vector<Timed> order;
  for (size_t i = 0; i < candidates.size(); ++i) order.push_back({rehearsal.time(d, candidates[i], 2, 3), i});
  std::sort(order.begin(), order.end(), faster);
  constexpr size_t kFinalists = 6;
  if (order.size() > kFinalists) order.erase(order.begin() + kFinalists, order.end());
  for (Timed& t : order) t.us = rehearsal.time(d, candidates[t.index], 3, 10);
  const Timed best = *std::min_element(order.begin(), order.end(), faster);
  GemmChoice choice;
  choice.algorithm = candidates[best.index];
  choice.best_us = best.us;
  choice.first_us = rehearsal.time(d, candidates[0], 3, 10);
  choice.configuration = configuration(candidates[best.index]);
  return choice;
}

// The algorithm of a product. False when the library has nothing for it.
bool choose(const Gemm& g, const Description& d, cublasLtEpilogue_t epilogue, Algorithm& algorithm) {
  Library& lib = library();
  const bool bias = epilogue == CUBLASLT_EPILOGUE_BIAS;
  const Alignments at = alignments(g, bias);
  const GemmChoices::Key key = key_of(g, bias, at);
  const GemmScope::Current scope = GemmScope::current();
  if (scope.choices) {
    const GemmChoice* choice = scope.choices->find(key);
    if (!choice && scope.time_new) {
      cudaStreamCaptureStatus capturing{};
      cuda_check(cudaStreamIsCapturing(stream(), &capturing));
      check(capturing == cudaStreamCaptureStatusNone, "gemm: [", g.m, ", ", g.k, "] x [", g.k, ", ", g.n,
            "] has no chosen algorithm, and none can be timed while a graph is captured");
      constexpr int kMost = 64;
      const Candidates candidates = recommendations(d, at, kMost);
      if (candidates.empty()) return false;
      scope.choices->put(key, timed_choice(g, epilogue, candidates));
      choice = scope.choices->find(key);
    }
    if (choice) {
      algorithm = choice->algorithm;
      return true;
    }
  }
  const std::lock_guard lock(lib.mutex);
  if (const auto found = lib.chosen.find(key); found != lib.chosen.end()) {
    algorithm = found->second;
    return true;
  }
  const Candidates candidates = recommendations(d, at, 1);
  if (candidates.empty()) return false;
  algorithm = candidates[0];
  lib.chosen.emplace(key, algorithm);
  return true;
}

bool run(const Gemm& g, cublasLtEpilogue_t epilogue) {
  const Description d(g, epilogue);
  Algorithm algorithm;
  if (!choose(g, d, epilogue, algorithm)) return false;
  lt_check(multiply(g, d, algorithm), "matmul");
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

int64_t cublaslt_version() { return int64_t(cublasLtGetVersion()); }

bool try_gemm(const Gemm& g) {
  if (g.m == 0 || g.n == 0 || g.batch == 0) return true;
  if (g.k == 0) {
    check(g.beta == 0, "gemm: k is 0 and there is something to add to");
    put_bias(g, false);
    return true;
  }
  // f64 has no fused bias; other refusals are met in the same way.
  if (g.bias && g.in != DType::f64 && run(g, CUBLASLT_EPILOGUE_BIAS)) return true;
  if (!run(g, CUBLASLT_EPILOGUE_DEFAULT)) return false;
  if (g.bias) put_bias(g, true);
  return true;
}

void gemm(const Gemm& g) {
  check(try_gemm(g), "gemm: cuBLASLt has no kernel for ", g.in, " [", g.m, ", ", g.k, "] x [", g.k, ", ", g.n,
        "], transposed: ", g.trans_a, " ", g.trans_b, ", leading dims ", g.lda, " ", g.ldb, " ", g.ldc,
        ", batch ", g.batch);
}

}  // namespace rivulet::cuda
