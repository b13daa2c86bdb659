// Where a tensor's bytes live, and the one dispatcher between the CPU and CUDA twins of an op.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "tensor/error.h"

namespace rivulet {

// `meta` tensors have a shape and no bytes: a 2-billion parameter model can be described in them.
enum class Device : uint8_t { cpu, cuda, meta };

constexpr const char* name_of(Device d) {
  return d == Device::cpu ? "cpu" : d == Device::cuda ? "cuda" : "meta";
}
inline std::ostream& operator<<(std::ostream& os, Device d) { return os << name_of(d); }

// "cpu" or "cuda"; throws on other words, and on cuda in a build without it.
Device device_named(const std::string& name);

#ifdef RIVULET_CUDA
inline constexpr bool kHasCuda = true;
#else
inline constexpr bool kHasCuda = false;
#endif

// Declares the kernels of an op in both namespaces: KERNELS(void rms_norm(const Tensor& x, Tensor& y);)
#define KERNELS(...) \
  namespace cpu {    \
  __VA_ARGS__        \
  }                  \
  namespace cuda {   \
  __VA_ARGS__        \
  }

// ON_DEVICE(x, rms_norm(x, y)) calls cpu::rms_norm or cuda::rms_norm by where x lives. In a build without
// CUDA the cuda name stands in a discarded branch only, so it needs no definition there.
#define ON_DEVICE(x, ...)                                                       \
  [&]<bool has_cuda>() {                                                        \
    if constexpr (has_cuda) {                                                   \
      if ((x).device() == ::rivulet::Device::cuda) return cuda::__VA_ARGS__;    \
    }                                                                           \
    if ((x).device() == ::rivulet::Device::cpu) return cpu::__VA_ARGS__;        \
    ::rivulet::fail("no kernel for a ", (x).device(), " tensor in this build"); \
  }.template operator()<::rivulet::kHasCuda>()

}  // namespace rivulet
