#include "tensor/cuda_graph.h"

#include "tensor/cuda.cuh"

namespace rivulet {

struct CudaGraph::Recording {
  cudaGraphExec_t exec = nullptr;
  ~Recording() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
  }
};

namespace cuda {

std::shared_ptr<CudaGraph::Recording> capture(const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  cuda_check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal));
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream(), &graph);  // fails too when the work broke the capture
    cudaGetLastError();
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  cuda_check(cudaStreamEndCapture(stream(), &graph));
  auto recording = std::make_shared<CudaGraph::Recording>();
  const cudaError_t error = cudaGraphInstantiate(&recording->exec, graph, 0);
  cudaGraphDestroy(graph);
  cuda_check(error);
  return recording;
}

void replay(const CudaGraph::Recording& graph) { cuda_check(cudaGraphLaunch(graph.exec, stream())); }

}  // namespace cuda
}  // namespace rivulet
