// Bytes between the CPU and the GPU. Large copies go through two pinned buffers in turn: the threads fill
// one while the GPU's copy engine empties the other.
#include <cstring>
#include <mutex>

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

constexpr int64_t kBuffer = 8 << 20;
constexpr int64_t kStaged = 1 << 20;  // below this the driver's own staging is as fast

struct Staging {
  char* buffer[2] = {};
  cudaEvent_t done[2] = {};  // the copy engine has finished with the buffer
  std::mutex one_at_a_time;
  Staging() {
    for (int i = 0; i < 2; ++i) {
      cuda_check(cudaMallocHost(reinterpret_cast<void**>(&buffer[i]), kBuffer));
      cuda_check(cudaEventCreateWithFlags(&done[i], cudaEventDisableTiming));
    }
  }
};

Staging& staging() {
  static Staging instance;  // scratch memory; holds nothing between calls
  return instance;
}

void copy_on_cpu(char* to, const char* from, int64_t bytes) {
  parallel_for(bytes, 1 << 20, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin, from + begin, size_t(end - begin));
  });
}

void upload(char* to, const char* from, int64_t bytes) {
  Staging& s = staging();
  const std::lock_guard lock(s.one_at_a_time);
  int turn = 0;
  for (int64_t at = 0; at < bytes; at += kBuffer, turn ^= 1) {
    const int64_t n = std::min(kBuffer, bytes - at);
    cuda_check(cudaEventSynchronize(s.done[turn]));
    copy_on_cpu(s.buffer[turn], from + at, n);
    cuda_check(cudaMemcpyAsync(to + at, s.buffer[turn], size_t(n), cudaMemcpyHostToDevice, stream()));
    cuda_check(cudaEventRecord(s.done[turn], stream()));
  }
}

void download(char* to, const char* from, int64_t bytes) {
  Staging& s = staging();
  const std::lock_guard lock(s.one_at_a_time);
  const auto start = [&](int64_t at, int turn) {
    if (at >= bytes) return;
    cuda_check(cudaMemcpyAsync(s.buffer[turn], from + at, size_t(std::min(kBuffer, bytes - at)),
                               cudaMemcpyDeviceToHost, stream()));
    cuda_check(cudaEventRecord(s.done[turn], stream()));
  };
  start(0, 0);
  int turn = 0;
  for (int64_t at = 0; at < bytes; at += kBuffer, turn ^= 1) {
    start(at + kBuffer, turn ^ 1);
    cuda_check(cudaEventSynchronize(s.done[turn]));
    copy_on_cpu(to + at, s.buffer[turn], std::min(kBuffer, bytes - at));
  }
}

}  // namespace

void transfer(const Tensor& to, const Tensor& from) {
  const bool up = to.device() == Device::cuda;
  const int64_t bytes = to.bytes();
  if (bytes == 0) return;
  if (bytes >= kStaged) {
    const auto t = static_cast<char*>(to.raw());
    const auto f = static_cast<const char*>(from.raw());
    return up ? upload(t, f, bytes) : download(t, f, bytes);
  }
  cuda_check(cudaMemcpyAsync(to.raw(), from.raw(), size_t(bytes),
                             up ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, stream()));
  // The driver has read unpinned memory before it returns, but may still be writing it.
  if (!up) synchronize();
}

}  // namespace rivulet::cuda
