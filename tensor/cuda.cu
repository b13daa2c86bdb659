#include <atomic>

#include "tensor/cuda.cuh"

namespace rivulet {

void cuda_check(cudaError_t error, std::source_location where) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a reported error must not surface again at the next check
  fail("cuda: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ") at ", where.file_name(), ":",
       where.line());
}

namespace cuda {
namespace {

// Stands for all kernels: a device that has no code for it has none for the others.
__global__ void probe() {}

// Accounting only; no behaviour depends on these.
std::atomic<int64_t> bytes_now{0}, bytes_peak{0};

struct Context {
  cudaStream_t stream = nullptr;
  cudaMemPool_t pool = nullptr;
  Context() {
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    int device = 0;
    cuda_check(cudaGetDevice(&device));
    cuda_check(cudaDeviceGetDefaultMemPool(&pool, device));
    uint64_t keep_all = ~uint64_t(0);  // freed blocks stay in the pool: the next step asks for them again
    cuda_check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all));
  }
};

const Context& context() {
  static const Context instance;
  return instance;
}

int64_t pool_bytes() {
  uint64_t held = 0;
  cuda_check(cudaMemPoolGetAttribute(context().pool, cudaMemPoolAttrReservedMemCurrent, &held));
  return int64_t(held);
}

}  // namespace

cudaStream_t stream() { return context().stream; }

bool available() {
  int count = 0;
  cudaFuncAttributes attributes;
  const bool ok = cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
                  cudaFuncGetAttributes(&attributes, probe) == cudaSuccess;
  cudaGetLastError();  // "no device" and "no code for this device" are answers here
  return ok;
}

std::string device_name() {
  int device = 0;
  cudaDeviceProp properties{};
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

std::string driver_version() {
  int version = 0;
  cuda_check(cudaDriverGetVersion(&version));
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

int64_t bytes_in_use() {
  size_t free_bytes = 0, total = 0;
  cuda_check(cudaMemGetInfo(&free_bytes, &total));
  return int64_t(total - free_bytes);
}

void synchronize() { cuda_check(cudaStreamSynchronize(stream())); }

void* record_event() {
  cudaEvent_t event = nullptr;
  cuda_check(cudaEventCreate(&event));
  cuda_check(cudaEventRecord(event, stream()));
  return event;
}
double seconds_between(void* earlier, void* later) {
  float ms = 0;
  cuda_check(cudaEventSynchronize(static_cast<cudaEvent_t>(later)));
  cuda_check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(earlier), static_cast<cudaEvent_t>(later)));
  return ms * 1e-3;
}
void destroy_event(void* event) { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }

MemoryUse memory() { return {bytes_now.load(), bytes_peak.load()}; }

void trim() {
  synchronize();
  cuda_check(cudaMemPoolTrimTo(context().pool, 0));
  bytes_peak = bytes_now.load();
}

void* allocate(int64_t bytes) {
  const Context& c = context();
  void* p = nullptr;
  const size_t size = size_t(std::max<int64_t>(bytes, 1));
  cudaError_t error = cudaMallocAsync(&p, size, c.stream);
  if (error == cudaErrorMemoryAllocation) {
    // Blocks of other sizes may hold what is missing: give them back and ask once more.
    cudaGetLastError();
    cuda_check(cudaStreamSynchronize(c.stream));
    cuda_check(cudaMemPoolTrimTo(c.pool, 0));
    error = cudaMallocAsync(&p, size, c.stream);
  }
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free_bytes, &total));
    fail("out of GPU memory: asked for ", bytes, " bytes, tensors hold ", bytes_now.load(), ", the pool ",
         pool_bytes(), "; ", free_bytes, " of ", total, " bytes of ", device_name(), " are free");
  }
  cuda_check(error);
  const int64_t now = bytes_now += bytes;
  int64_t peak = bytes_peak.load();
  while (now > peak && !bytes_peak.compare_exchange_weak(peak, now)) {
  }
  return p;
}

// Runs in destructors, at the end of the process possibly after the driver has gone: errors have no taker.
void release(void* p, int64_t bytes) {
  bytes_now -= bytes;
  cudaFreeAsync(p, context().stream);
}

}  // namespace cuda
}  // namespace rivulet
