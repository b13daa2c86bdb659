// A piece of GPU work recorded once and started as a whole afterwards: one launch instead of hundreds.
#pragma once

#include <functional>
#include <memory>

#include "tensor/device.h"

namespace rivulet {

// What capture() records must allocate from an arena only, must not wait for the GPU nor copy to or from the
// CPU, and finds its data at the same addresses in every replay. The recorded work is not run by capture().
class CudaGraph {
 public:
  CudaGraph() = default;
  bool captured() const { return graph_ != nullptr; }
  // Throws on a device without graphs, and when `work` does something that a graph cannot hold.
  void capture(const std::function<void()>& work);
  void replay() const;
  void drop() { graph_.reset(); }

  struct Recording;

 private:
  std::shared_ptr<Recording> graph_;
};

namespace cuda {
std::shared_ptr<CudaGraph::Recording> capture(const std::function<void()>& work);
void replay(const CudaGraph::Recording& graph);
}  // namespace cuda

inline void CudaGraph::capture(const std::function<void()>& work) {
  if constexpr (kHasCuda)
    graph_ = cuda::capture(work);
  else
    fail("a graph of GPU work needs a build with CUDA");
}
inline void CudaGraph::replay() const {
  check(captured(), "a graph of GPU work was replayed before it was captured");
  if constexpr (kHasCuda) cuda::replay(*graph_);
}

}  // namespace rivulet
