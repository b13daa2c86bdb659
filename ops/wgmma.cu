#include "ops/wgmma.cuh"

namespace rivulet::cuda {
namespace {

// From the driver at run time, so that programs link without libcuda and start where there is none.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto kEncode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    cuda_check(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    check(found == cudaDriverEntryPointSuccess, "cuda: this driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return kEncode;
}

}  // namespace

CUtensorMap head_rows_map(const Tensor& x, int box_rows) {
  constexpr int kDims = 4;
  const int order[kDims] = {3, 2, 1, 0};  // channel, head, row, batch
  cuuint64_t sizes[kDims], strides[kDims - 1];
  for (int i = 0; i < kDims; ++i) {
    sizes[i] = cuuint64_t(x.dim(order[i]));
    // The stride of a dim of one is never used, but must be valid.
    if (i > 0) strides[i - 1] = sizes[i] == 1 ? 16 : cuuint64_t(x.strides()[order[i]]) * sizeof(bf16);
  }
  const cuuint32_t box[kDims] = {kPanelColumns, 1, cuuint32_t(box_rows), 1}, every[kDims] = {1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kDims, x.raw(), sizes, strides,
                                    box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "cuda: no tensor map for shape ", x.shape(), ", strides ", x.strides(),
        ", error ", int(result));
  return map;
}

CUtensorMap tiled_map(const void* base, std::initializer_list<cuuint64_t> sizes,
                      std::initializer_list<cuuint64_t> strides, std::initializer_list<cuuint32_t> box) {
  const cuuint32_t every[] = {1, 1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, cuuint32_t(sizes.size()), const_cast<void*>(base),
                sizes.begin(), strides.begin(), box.begin(), every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "cuda: no tensor map of ", sizes.size(), " dims, the first of ",
        *sizes.begin(), " elements, error ", int(result));
  return map;
}

}  // namespace rivulet::cuda
