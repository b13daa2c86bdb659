// The GPU as host code sees it. Everything here may be called in a build without CUDA.
#pragma once

#include <string>

#include "tensor/storage.h"

namespace rivulet {

namespace cuda {
bool available();
std::string device_name();
std::string driver_version();  // "13.0": of CUDA, that the driver offers
void synchronize();
MemoryUse memory();

// Events of the stream, for GpuMark below.
void* record_event();
double seconds_between(void* earlier, void* later);
void destroy_event(void* event);
int64_t bytes_in_use();
// Gives memory that no tensor holds back to the driver, and lets the peak of memory() start anew.
void trim();
}  // namespace cuda

// True when this build has CUDA kernels and the machine has a GPU that they can run on.
inline bool cuda_available() {
  if constexpr (kHasCuda) return cuda::available();
  return false;
}

// Waits for all work given to `device`; reports errors of kernels that were still running.
inline void synchronize(Device device) {
  if constexpr (kHasCuda)
    if (device == Device::cuda) cuda::synchronize();
}

// A moment in the work of the GPU: all that was given to it before has been done. Nothing in a build without
// CUDA.
class GpuMark {
 public:
  GpuMark() {
    if constexpr (kHasCuda) event_ = cuda::record_event();
  }
  ~GpuMark() {
    if constexpr (kHasCuda) cuda::destroy_event(event_);
  }
  GpuMark(const GpuMark&) = delete;
  GpuMark& operator=(const GpuMark&) = delete;
  // Seconds between the two by the clock of the GPU; waits for this one.
  double since(const GpuMark& earlier) const {
    if constexpr (kHasCuda) return cuda::seconds_between(earlier.event_, event_);
    return 0;
  }

 private:
  void* event_ = nullptr;
};

// Bytes of GPU memory held by tensors now and at most so far (arenas count as held whole).
inline MemoryUse cuda_memory() {
  if constexpr (kHasCuda) return cuda::memory();
  return {};
}

// Bytes of the GPU that are taken, by whomever and for whatever: contexts, code and pools included.
inline int64_t cuda_bytes_in_use() {
  if constexpr (kHasCuda) return cuda::bytes_in_use();
  return 0;
}

inline void cuda_trim() {
  if constexpr (kHasCuda) cuda::trim();
}

}  // namespace rivulet
