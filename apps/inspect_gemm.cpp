// rivulet inspect --gemm: which scaled matrix products this GPU has, and what they cost on the 2B model's
// shapes.
#include <cstdio>

#include "apps/commands.h"
#include "nn/config.h"
#include "ops/gemm_choices.h"
#include "ops/gemm_probe.h"
#include "tensor/cuda.h"
#include "tensor/safetensors.h"

namespace rivulet {
namespace {

// Products of a steady chunk of 2640 tokens, and of one frame (dit.md section 8).
const std::vector<std::array<int64_t, 3>> kShapes = {
    {2640, 6720, 2240}, {2640, 2240, 2240}, {2640, 13440, 2240}, {2640, 2240, 6720}, {880, 2240, 2240}};

void print(const std::vector<GemmProbe>& rows) {
  std::printf("%-22s %-5s %-10s %-5s %-18s %-28s %5s %9s %9s %8s\n", "scaling", "out", "epilogue", "sums",
              "m x n x k", "status", "algos", "first us", "best us", "TFLOP/s");
  for (const GemmProbe& r : rows) {
    const std::string shape =
        std::to_string(r.shape[0]) + "x" + std::to_string(r.shape[1]) + "x" + std::to_string(r.shape[2]);
    std::printf("%-22s %-5s %-10s %-5s %-18s %-28s %5d %9.1f %9.1f %8.0f\n", r.scaling.c_str(), r.out.c_str(),
                r.epilogue.c_str(), r.fast_sums ? "fast" : "f32", shape.c_str(), r.status.c_str(),
                r.algorithms, r.first_us, r.best_us, r.tflop_s());
  }
}

Json to_json(const std::vector<GemmProbe>& rows) {
  Json list = Json::array();
  for (const GemmProbe& r : rows)
    list.push_back({{"scaling", r.scaling},
                    {"out", r.out},
                    {"epilogue", r.epilogue},
                    {"fast_sums", r.fast_sums},
                    {"shape", r.shape},
                    {"status", r.status},
                    {"algorithms", r.algorithms},
                    {"first_us", r.first_us},
                    {"best_us", r.best_us},
                    {"tflop_s", r.tflop_s()}});
  return list;
}

}  // namespace

int run_inspect_gemm(const std::string& json) {
  check(cuda_available(), "inspect --gemm: needs a GPU and a build with CUDA kernels for it");
  if constexpr (kHasCuda) {
    std::printf("%s, driver for CUDA %s, cuBLASLt %lld\n", cuda::device_name().c_str(),
                cuda::driver_version().c_str(), static_cast<long long>(cuda::cublaslt_version()));
    const std::vector<GemmProbe> rows = cuda::probe_gemms(kShapes);
    print(rows);
    if (!json.empty())
      write_file(json, Json{{"what", "rivulet inspect --gemm"},
                            {"gpu", cuda::device_name()},
                            {"cuda_driver", cuda::driver_version()},
                            {"cublaslt", cuda::cublaslt_version()},
                            {"rows", to_json(rows)}}
                               .dump(1) +
                           "\n");
  }
  return 0;
}

}  // namespace rivulet
