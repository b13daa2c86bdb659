// A point in the GPU's work, to time what lies between two of them.
#pragma once

#include <memory>

#include "tensor/device.h"

namespace rivulet {

class CudaEvent {
 public:
  CudaEvent();
  void record() const;  // the end of all work given so far
  // Milliseconds from this event to `later`; waits until that has happened.
  double milliseconds_to(const CudaEvent& later) const;

  struct Handle;

 private:
  std::shared_ptr<Handle> handle_;
};

namespace cuda {
std::shared_ptr<CudaEvent::Handle> make_event();
void record(const CudaEvent::Handle& event);
double milliseconds(const CudaEvent::Handle& from, const CudaEvent::Handle& to);
}  // namespace cuda

inline CudaEvent::CudaEvent() {
  if constexpr (kHasCuda)
    handle_ = cuda::make_event();
  else
    fail("an event of GPU work needs a build with CUDA");
}
inline void CudaEvent::record() const {
  if constexpr (kHasCuda) cuda::record(*handle_);
}
inline double CudaEvent::milliseconds_to(const CudaEvent& later) const {
  if constexpr (kHasCuda) return cuda::milliseconds(*handle_, *later.handle_);
  return 0;
}

}  // namespace rivulet
