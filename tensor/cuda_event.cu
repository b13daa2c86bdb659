#include "tensor/cuda_event.h"

#include "tensor/cuda.cuh"

namespace rivulet {

struct CudaEvent::Handle {
  cudaEvent_t event = nullptr;
  ~Handle() {
    if (event != nullptr) cudaEventDestroy(event);
  }
};

namespace cuda {

std::shared_ptr<CudaEvent::Handle> make_event() {
  auto handle = std::make_shared<CudaEvent::Handle>();
  cuda_check(cudaEventCreate(&handle->event));
  return handle;
}

void record(const CudaEvent::Handle& event) { cuda_check(cudaEventRecord(event.event, stream())); }

double milliseconds(const CudaEvent::Handle& from, const CudaEvent::Handle& to) {
  float ms = 0;
  cuda_check(cudaEventSynchronize(to.event));
  cuda_check(cudaEventElapsedTime(&ms, from.event, to.event));
  return double(ms);
}

}  // namespace cuda
}  // namespace rivulet
